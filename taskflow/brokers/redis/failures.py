"""What the driver's and the server's errors mean, in our words. None of them holds a password."""

from __future__ import annotations

import re
import ssl

import redis.exceptions as theirs
from redis.sentinel import MasterNotFoundError

from taskflow.errors import BrokerError, BrokerUnavailable, ConfigError

_POINT = "point TASKFLOW_BROKER__URL at"

# The server's word, the driver's class for it, which swallows the word; our kind; what happened and what to do; when
# to come back. Scripts of 6.2 put words of their own before the server's, so it is looked for anywhere.
_WORDS: tuple[tuple[str, type[Exception] | None, str, str, float], ...] = (
    ("LOADING", theirs.BusyLoadingError, "loading", "reads its data from the disk: it answers once it has it all", 1.0),
    ("READONLY", theirs.ReadOnlyError, "read_only", f"is a read-only replica: {_POINT} the primary", 1.0),
    ("OOM", theirs.OutOfMemoryError, "full", "has no memory left: raise maxmemory, or let jobs drain", 5.0),
    ("MISCONF", None, "full", "cannot write to its disk: free space there, and look at the server's log", 5.0),
    ("NOREPLICAS", None, "no_replicas", "has too few replicas to take a write (min-replicas-to-write)", 1.0),
    ("MASTERDOWN", theirs.MasterDownError, "cluster", "is a replica that has lost its primary", 1.0),
    ("CLUSTERDOWN", theirs.ClusterDownError, "cluster", "is in a cluster that has no owner for its keys now", 1.0),
    ("TRYAGAIN", theirs.TryAgainError, "cluster", "is in a cluster that moves its keys now", 0.5),
    ("BUSY ", None, "busy", "is busy with somebody's long script", 1.0),
    ("UNKILLABLE", None, "busy", "is busy with somebody's long script", 1.0),
)
_MOVED = ("MOVED ", "ASK ", "non local key")
_NEEDED = re.compile(r"on (~\S+) (&\S+) needed: (\+.*)")  # the word of `allowed.lua`
_FORBIDDEN = ("NOPERM", "ACL failure", "user executing the script can't")
_REFUSED = ("NOAUTH", "WRONGPASS", "invalid password", "invalid username", "AUTH called", "no password is set")


# TLS that broke off: an outage. Whatever else it complains of is how one of the two sides is set up.
_TORN = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)


def is_forbidden(error: BaseException | None) -> bool:
    """Whether the server forbids this user a command, a key or a channel. Of scripts, each version has its words."""
    said = str(error)
    return isinstance(error, theirs.NoPermissionError) or any(word in said for word in _FORBIDDEN)


def is_elsewhere(error: BrokerError | ConfigError) -> bool:
    """Whether this server cannot do it, and another one can: the address may lead there by now."""
    return isinstance(error, BrokerUnavailable) and error.kind in {"read_only", "cluster"}


def is_set_up_wrongly(error: Exception) -> bool:
    """Whether a server that was to be connected to refuses user or password, or TLS failed: waiting would not help."""
    met = _behind(error)
    return isinstance(error, theirs.AuthenticationError) or (
        isinstance(met, ssl.SSLError) and not isinstance(met, _TORN)
    )


def _behind(error: BaseException) -> BaseException:
    """What the driver met: the system's own word, where there is one."""
    return error.__cause__ or error.__context__ or error


def _or_another_scheme(met: BaseException, unheard: str) -> str:
    """A guess: the scheme is not the server's. That one hangs up at the first word, or waits for more of them."""
    hung_up = (theirs.ConnectionError, ConnectionError, EOFError, *_TORN)
    if not unheard.startswith("redis") or isinstance(met, ConnectionRefusedError):
        return ""
    if unheard.startswith("rediss"):
        torn = isinstance(met, (*hung_up, theirs.TimeoutError, TimeoutError))
        return f" Or it does not speak TLS: then say redis{unheard[6:]}://" if torn else ""
    return f" Or it speaks TLS: then say rediss{unheard[5:]}://, or is no Redis" if isinstance(met, hung_up) else ""


def translated(error: Exception, where: str, unheard: str = "") -> BrokerError | ConfigError:
    """Our error for one of theirs, met at the server `where`. The caller chains the cause.

    `unheard` is the URL's scheme as long as nothing was heard from there: it may be the wrong one.
    """
    said = str(error)
    refused = (theirs.AuthenticationError, theirs.AuthorizationError)
    # While it connects, the driver wraps what it raised itself.
    if isinstance(error, refused) or isinstance(error.__cause__, refused) or any(word in said for word in _REFUSED):
        return ConfigError(
            f"{where} refuses user or password, see those of TASKFLOW_BROKER__URL (redis://USER:PASSWORD@HOST)"
        )
    if needed := _NEEDED.search(said):
        keys, channels, rules = needed.groups()
        commands = rules.replace("+", "").replace(" ", ", ").upper()
        return ConfigError(
            f"{where} forbids this user {commands}, or has renamed them (rename-command). Nothing was changed. A "
            f"broker needs the keys and channels of its namespace, {keys} and {channels}, and these commands: "
            f"ACL SETUSER NAME {rules}"
        )
    if is_forbidden(error):
        return ConfigError(
            f"{where} forbids this user what a broker needs: allow it the keys and channels of its namespace, and the "
            f"commands of taskflow's scripts ({said[:200]})"
        )
    if isinstance(error, theirs.AskError) or any(word in said for word in _MOVED):
        return ConfigError(
            f"{where} is a node of a cluster that does not own the keys of this namespace: {_POINT} the node that does"
        )
    if "DB index" in said:
        return ConfigError(f"{where} has no such database ({said[:200]}): name another one in TASKFLOW_BROKER__URL")
    for word, known, kind, what, retry_after_s in _WORDS:
        if word in said or (known is not None and isinstance(error, known)):
            return BrokerUnavailable(f"{where} {what}. Nothing was changed", retry_after_s=retry_after_s, kind=kind)
    if isinstance(error, theirs.TimeoutError | TimeoutError):
        return BrokerUnavailable(
            f"{where} did not answer in time: it hangs, is overloaded, or the network drops its packets."
            f"{_or_another_scheme(error, unheard)}",
            retry_after_s=1.0,
            kind="timeout",
        )
    if isinstance(error, theirs.ConnectionError | OSError):
        return _of_the_way(error, where, unheard)
    if isinstance(error, theirs.InvalidResponse):
        return _no_way(
            f"{where} is no Redis, or something in between is none: it answers in other words ({said[:200]}). Correct "
            "the address of TASKFLOW_BROKER__URL"
        )
    return BrokerError(f"{where} refused a command ({said[:500]}): this is a bug of taskflow, please report it")


def _of_the_way(error: Exception, where: str, unheard: str) -> BrokerUnavailable | ConfigError:
    """There is no connection to the server, or to the sentinels that know it."""
    met = error if isinstance(error, MasterNotFoundError) else _behind(error)
    if isinstance(met, theirs.ConnectionError) and not isinstance(met, MasterNotFoundError):
        met = _behind(met)  # while it connects, the driver wraps what it raised itself
    if isinstance(met, MasterNotFoundError):
        last = met if met.__cause__ is None else _behind(met.__cause__)
        return _no_way(
            f"{where} cannot be reached ({error}): are they up, and are their addresses and the service's name in "
            f"TASKFLOW_BROKER__URL right?{_or_another_scheme(last, unheard)}"
        )
    if isinstance(met, ssl.SSLCertVerificationError):
        return ConfigError(
            f"{where} shows a certificate that is not trusted here ({met.verify_message}): in TASKFLOW_BROKER__URL "
            "name its CA by ?ssl_ca_certs=FILE, and the host as the certificate does"
        )
    if isinstance(met, ssl.SSLError) and not isinstance(met, _TORN):
        return ConfigError(
            f"{where} and this side do not agree on TLS ({met.reason}): rediss:// is for a server that speaks it, "
            "?ssl_ca_certs=FILE names its CA, ?ssl_certfile=FILE&ssl_keyfile=FILE a certificate of your own"
        )
    return _no_way(
        f"{where} cannot be reached ({type(met).__name__}): is it up, and is the address of TASKFLOW_BROKER__URL "
        f"right?{_or_another_scheme(met, unheard)}"
    )


def _no_way(message: str) -> BrokerUnavailable:
    return BrokerUnavailable(message, retry_after_s=1.0, kind="connection")
