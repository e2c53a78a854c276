"""Our errors for PostgreSQL's and the network's: what happened, where, what to do. Never a password."""

from __future__ import annotations

import ssl
from contextlib import contextmanager
from typing import TYPE_CHECKING

import asyncpg

from taskflow.errors import BrokerError, BrokerUnavailable, ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

_RETRY_AFTER_S = {"full": 30.0, "locked": 1.0}  # seconds; a disk seldom gets space within a few
_AGAIN = frozenset({"40001", "40P01", "23505"})  # serialization, deadlock, an id that came in between: do it again
_ACCESS = frozenset({"28000", "28P01", "42501", "3D000", "3F000"})
_TIMEOUT = frozenset({"57014", "55P03"})
# Classes that speak of a statement and what is in it. All others speak of the server, of others, or of a pooler: the
# same statement may well do later.
_OF_STATEMENT = ("0A", "21", "22", "23", "2F", "38", "39", "42", "44", "54", "P0", "XX")
_OF_OPTIONS = ("22", "42")  # as a connection is made: ?options= name a setting that the server has not
_PROTOCOL = "08P01"  # with which PgBouncer says nearly everything
STRAY = frozenset({"26000", "42P05"})  # a prepared statement is gone, or there already: the session is another one


class NotConnected(ConnectionError):
    """A server, or a pooler in front of it, said this instead of making a connection: of no statement of ours."""

    def __init__(self, said: asyncpg.PostgresError) -> None:
        super().__init__(str(said))
        self.said = said


@contextmanager
def in_our_words(where: str) -> Iterator[None]:
    """What the driver raises within the block comes out translated; all else as it is."""
    try:
        yield
    except Exception as error:
        if is_translated(error):
            raise translated(error, where) from error
        raise


def is_retried(error: BaseException) -> bool:
    """Whether nothing has changed, and the same again will do."""
    return isinstance(error, asyncpg.PostgresError) and error.sqlstate in _AGAIN


def is_translated(error: BaseException) -> bool:
    """Whether `translated` has a word for it."""
    return isinstance(error, asyncpg.PostgresError | OSError | TimeoutError) or is_of_driver(error)


def is_of_driver(error: BaseException) -> bool:
    """Whether the driver has lost track of its connection: no use of it can be right any more."""
    return isinstance(error, asyncpg.InterfaceError | asyncpg.InternalClientError)


def is_of_notify(error: BaseException) -> bool:
    """Whether the server's one queue of notifications is full: because a session has not read them for long."""
    # Too long a row of an index has this state, too.
    return isinstance(error, asyncpg.PostgresError) and error.sqlstate == "54000" and "NOTIFY" in str(error)


def is_of_settings(error: BaseException) -> bool:
    """Whether a pooler refuses a connection for a setting that we send with it. The words are PgBouncer's."""
    return isinstance(error, asyncpg.PostgresError) and "unsupported startup parameter" in str(error).lower()


def translated(error: BaseException, where: str) -> BrokerError | ConfigError:
    """Our error for this one. `where` names host and database."""
    if isinstance(error, NotConnected):
        return _of_connecting(error.said, where)
    if isinstance(error, asyncpg.PostgresError) and (
        not isinstance(error, asyncpg.PostgresConnectionError) or error.sqlstate == _PROTOCOL
    ):
        return _of_server(error, where)
    if isinstance(error, TimeoutError):
        return _unavailable(
            "timeout", f"PostgreSQL at {where} did not answer in time. Retry; look at its load and locks"
        )
    if isinstance(error, asyncpg.InterfaceError) and isinstance(error, ValueError):
        if "root certificate" in str(error):  # the driver's words name the file that it looked for
            return ConfigError(
                f"TASKFLOW_BROKER__URL: sslmode needs the CA of PostgreSQL at {where}: add sslrootcert=FILE ({error})"
            )
        return ConfigError(f"TASKFLOW_BROKER__URL: PostgreSQL at {where} cannot be addressed ({type(error).__name__})")
    if isinstance(error, ssl.SSLCertVerificationError):
        return ConfigError(
            f"PostgreSQL at {where} shows a certificate that is not trusted here ({error.verify_message}): in "
            "TASKFLOW_BROKER__URL name its CA by ?sslrootcert=FILE, and the host as the certificate does"
        )
    if type(error) is ConnectionError and "SSL" in str(error):  # the driver's own words for the server's no
        return ConfigError(
            f"PostgreSQL at {where} offers no TLS, and sslmode in TASKFLOW_BROKER__URL asks for it: turn ssl on in the "
            "server, or say sslmode=prefer"
        )
    return _unavailable(
        "connection",
        f"PostgreSQL at {where} cannot be reached ({type(error).__name__}): is it up, and does the network let us?",
    )


def _of_connecting(error: asyncpg.PostgresError, where: str) -> BrokerError | ConfigError:
    failure = translated(error, where)
    if isinstance(failure, ConfigError | BrokerUnavailable):
        return failure
    if (error.sqlstate or "").startswith(_OF_OPTIONS):
        return ConfigError(f"PostgreSQL at {where} refuses us ({_said(error)}): see ?options= in TASKFLOW_BROKER__URL")
    return _unavailable("refused", f"PostgreSQL at {where}, or a pooler in front of it, refuses ({_said(error)})")


def _said(error: asyncpg.PostgresError) -> str:
    return f"{error.args[0] if error.args else type(error).__name__}"


def _of_server(error: asyncpg.PostgresError, where: str) -> BrokerError | ConfigError:
    state = error.sqlstate or ""
    said = _said(error)
    if state in _ACCESS:
        return ConfigError(
            f"PostgreSQL at {where} refuses us ({said}): see user, password and database in TASKFLOW_BROKER__URL, and "
            "the user's rights: CONNECT and, for the first start, CREATE on the database; a schema that is there "
            "already must be the user's own"
        )
    if state in STRAY:
        return no_session(where)
    if state == _PROTOCOL:
        return _unavailable("refused", f"PostgreSQL at {where}, or a pooler in front of it, refuses ({said})")
    if state == "25006" or _is_said(error, "0A000", "get_relation_info", "recovery"):  # a table that a standby has not
        return _unavailable("refused", f"PostgreSQL at {where} is read-only ({said}): a standby? Name the primary")
    if state in _TIMEOUT:
        return _unavailable("timeout", f"PostgreSQL at {where} gave up ({said}): look at its load and locks")
    if state == "53300":
        return _unavailable("refused", f"PostgreSQL at {where} has no connection left ({said})")
    if state in {"53100", "53200", "58030"}:
        return _unavailable("full", f"PostgreSQL at {where} has no space ({said}): nothing was changed. Free some")
    if is_of_notify(error):
        return _unavailable(
            "full",
            f"PostgreSQL at {where} has its NOTIFY queue full ({said}): nothing was changed. A session that listens "
            "has a transaction open for long: see SELECT pg_notification_queue_usage() and the log, and end it",
        )
    if _is_said(error, "54000", "GetNew", "wraparound"):  # Get New TransactionId or MultiXactId
        return _unavailable("full", f"PostgreSQL at {where} takes no changes ({said}): it needs VACUUM, see its log")
    if state.startswith(("57P", "08")):
        return _unavailable("connection", f"PostgreSQL at {where} goes down or comes up ({said})")
    if state in _AGAIN:
        return _unavailable("locked", f"PostgreSQL at {where} could not serialize ({said}): nothing was changed")
    if not state.startswith(_OF_STATEMENT):
        return _unavailable("refused", f"PostgreSQL at {where} cannot do it now ({state} {said}): see its log")
    if state.startswith("XX"):  # a page or an index that is broken: as a rule it is under one job alone
        return BrokerError(f"PostgreSQL at {where} broke on a statement ({state} {said}): see its log")
    return BrokerError(f"PostgreSQL at {where} refused a statement ({type(error).__name__}, {state}): please report it")


def _is_said(error: asyncpg.PostgresError, state: str, function: str, word: str) -> bool:
    """Whether this function of the server says it. Its words are English only where the server's messages are."""
    if error.sqlstate != state:
        return False
    return (getattr(error, "server_source_function", None) or "").startswith(function) or word in str(error)


def no_session(where: str) -> ConfigError:
    """A pooler gives our session of the server to others between two statements."""
    return ConfigError(
        f"TASKFLOW_BROKER__URL: {where} is a pooler that shares its sessions (PgBouncer with pool_mode=transaction): "
        "LISTEN and prepared statements get lost there. Add listen=off to the URL, or name the server itself"
    )


def _unavailable(kind: str, message: str) -> BrokerUnavailable:
    return BrokerUnavailable(message, kind=kind, retry_after_s=_RETRY_AFTER_S.get(kind, 2.0))
