"""What an error says of the call: classes for aiohttp, httpx, requests, asyncio and the system, SQLite and SQLSTATE
databases.

Libraries are known by the marks of their errors (`status`, `response`, `sqlstate`, `sqlite_errorcode`), not imported.
What they leave open, whoever knows better says: `register_classifier`.
"""

from __future__ import annotations

import asyncio
import errno
import ssl
from collections.abc import Callable, Mapping
from typing import Any

from taskflow.core.specs import ErrorClass
from taskflow.errors import BrokerUnavailable, BulkheadFull, CircuitOpen, QueueFull, RateLimited

Classifier = Callable[[BaseException], ErrorClass | None]

TRANSIENT, THROTTLED, OVERLOADED, PERMANENT, CANCELLED = ErrorClass

# What a group is, if its errors differ: the first of these that is among them.
_GRAVEST = (CANCELLED, PERMANENT, THROTTLED, OVERLOADED, TRANSIENT)

_BY_TYPE: tuple[tuple[type | tuple[type, ...], ErrorClass], ...] = (
    ((RateLimited,), THROTTLED),
    ((BulkheadFull, CircuitOpen, QueueFull, asyncio.QueueFull), OVERLOADED),
    (BrokerUnavailable, TRANSIENT),
    # A certificate is wrong until somebody mends it. (It is a ValueError and an OSError too.)
    (ssl.SSLCertVerificationError, PERMANENT),
    ((TimeoutError, ConnectionError, EOFError), TRANSIENT),
    ((FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError), PERMANENT),
    # Bad data, or a mistake in the program.
    ((ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError), PERMANENT),
)
_NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT})

_STATUSES = {408: TRANSIENT, 425: TRANSIENT, 429: THROTTLED, 501: PERMANENT, 503: OVERLOADED, 505: PERMANENT}

# SQLSTATE, by its whole code, else by its class (PostgreSQL's appendix A).
_STATES = {
    "25006": TRANSIENT,  # read only: the primary has moved
    "55P03": TRANSIENT,  # a lock was not free
    "57014": TRANSIENT,  # statement timeout
    "57P01": TRANSIENT,  # the server shuts down, has crashed, or cannot connect yet
    "57P02": TRANSIENT,
    "57P03": TRANSIENT,
}
_STATE_CLASSES = {
    "08": TRANSIENT,  # connection
    "40": TRANSIENT,  # rolled back: deadlock (40P01), serialization (40001)
    "53": OVERLOADED,  # too many connections, no disk, no memory
    "58": TRANSIENT,  # the system around the database
}
_OPEN_STATES = frozenset({"XX", "P0", "HV"})  # its own bugs, raised by user code, foreign data: could be anything

# SQLite's primary result codes (sqlite.org/rescode.html): busy, locked, I/O, cannot open, protocol; full.
_SQLITE_TRANSIENT = frozenset({5, 6, 10, 14, 15})
_SQLITE_FULL = 13
_SQLITE_PERMANENT = ("IntegrityError", "DataError", "ProgrammingError", "NotSupportedError", "OperationalError")

_classifiers: list[Classifier] = []


def register_classifier(classifier: Classifier) -> Callable[[], None]:
    """Ask `classifier` before ours, and before those that were registered earlier; None leaves it to them.

    Returns what takes it out again.
    """
    _classifiers.insert(0, classifier)

    def undo() -> None:
        if classifier in _classifiers:
            _classifiers.remove(classifier)

    return undo


def classify(error: BaseException) -> ErrorClass:
    """The class of `error`; `PERMANENT` where nobody knows it: only a known mishap is worth another attempt."""
    return known_class(error) or PERMANENT


def known_class(error: BaseException) -> ErrorClass | None:
    """The class of `error`, or None where nobody knows it. A group is transient only if every error in it is."""
    for classifier in _classifiers:
        try:
            said = classifier(error)
        except Exception as broken:  # noqa: BLE001 - the user's; it must not hide the error that it was asked about
            error.add_note(f"taskflow: a registered classifier raised {type(broken).__name__} for this")
            continue
        if said is not None:
            return said
    if isinstance(error, BaseExceptionGroup):
        return _of_group(error)
    return _ours(error) if isinstance(error, Exception) else CANCELLED


def status_class(status: int) -> ErrorClass:
    """The class of an HTTP status that is no success."""
    return _STATUSES.get(status, TRANSIENT if status >= 500 else PERMANENT)


def _of_group(group: BaseExceptionGroup[Any]) -> ErrorClass | None:
    leaves = [known_class(leaf) for leaf in group.exceptions]
    found = next((kind for kind in _GRAVEST if kind in leaves), None)
    return None if None in leaves and found not in (CANCELLED, PERMANENT) else found


def _ours(error: Exception) -> ErrorClass | None:
    library = type(error).__module__.partition(".")[0]
    if library == "aiohttp":
        return _of_aiohttp(error)
    if library == "sqlite3":
        return _of_sqlite(error)
    status = getattr(getattr(error, "response", None), "status_code", None)  # of httpx and requests
    if isinstance(status, int):
        return status_class(status)
    if library == "httpx":
        return _of_httpx(error)
    cause = getattr(error, "orig", None)  # SQLAlchemy's errors carry the driver's
    if isinstance(cause, Exception) and cause is not error:
        return known_class(cause)
    state = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    if isinstance(state, str) and len(state) == 5:
        return _of_state(state)
    if type(error).__name__ == "OperationalError":  # a database's connection failed, before it could say why
        return TRANSIENT
    return _of_system(error)


def _of_system(error: Exception) -> ErrorClass | None:
    for kinds, found in _BY_TYPE:
        if isinstance(error, kinds):
            return found
    if isinstance(error, OSError):
        return OVERLOADED if error.errno in _NO_ROOM else TRANSIENT
    return None


def _of_aiohttp(error: Exception) -> ErrorClass:
    status = getattr(error, "status", None)
    if isinstance(status, int) and status:
        return status_class(status)
    # A wrong URL or certificate is a ValueError; all else that breaks between us and the server may pass.
    return PERMANENT if isinstance(error, ValueError | TypeError | AssertionError) else TRANSIENT


def _of_httpx(error: Exception) -> ErrorClass | None:
    """What broke between us and the server may pass; a wrong URL will not."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"UnsupportedProtocol", "LocalProtocolError", "InvalidURL", "TooManyRedirects"}:
        return PERMANENT
    return TRANSIENT if "TransportError" in names else _of_system(error)


def _of_sqlite(error: Exception) -> ErrorClass | None:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in _SQLITE_TRANSIENT:
        return TRANSIENT
    if code == _SQLITE_FULL:
        return OVERLOADED
    return PERMANENT if type(error).__name__ in _SQLITE_PERMANENT else None


def _of_state(state: str) -> ErrorClass | None:
    family = state[:2]
    if family in _OPEN_STATES:
        return None
    return _STATES.get(state) or _STATE_CLASSES.get(family, PERMANENT)


def headers_of(answer: object) -> Mapping[str, str] | None:
    """The HTTP headers of an error, of the response that it is about, or of a response, where it has some."""
    headers = getattr(answer, "headers", None)
    if headers is None:
        headers = getattr(getattr(answer, "response", None), "headers", None)
    return headers if isinstance(headers, Mapping) else None
