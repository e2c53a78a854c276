from __future__ import annotations

import asyncio
import errno
import socket
import sqlite3
import ssl
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from taskflow import ErrorClass, RateLimited, classify, register_classifier
from taskflow.errors import BrokerUnavailable, BulkheadFull, CircuitOpen, DeadlineExceeded
from taskflow.policies.classes import known_class
from taskflow.policies.hints import asked_wait_s

if TYPE_CHECKING:
    from pathlib import Path

    from taskflow.core.specs import ErrorClass as CoreErrorClass

pytestmark = pytest.mark.anyio

TRANSIENT, THROTTLED, OVERLOADED, PERMANENT, CANCELLED = ErrorClass


class PostgresError(Exception):
    """As psycopg and asyncpg carry a SQLSTATE."""

    def __init__(self, sqlstate: str) -> None:
        super().__init__(sqlstate)
        self.sqlstate = sqlstate


class OldPostgresError(Exception):
    """As psycopg2 does."""

    def __init__(self, pgcode: str) -> None:
        super().__init__(pgcode)
        self.pgcode = pgcode


class Wrapped(Exception):
    """As SQLAlchemy carries the driver's error."""

    def __init__(self, orig: Exception) -> None:
        super().__init__("wrapped")
        self.orig = orig


class OperationalError(Exception):
    """As drivers raise it when the connection fails: without a SQLSTATE."""

    sqlstate = None


class Response:
    """What errors of httpx and requests are about."""

    def __init__(self, status_code: int) -> None:
        self.status_code = status_code
        self.headers = {"Retry-After": "7"}


class HTTPStatusError(Exception):
    """As httpx and requests raise it for a status that is no success."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.response = Response(status)


class TransportError(Exception):
    """As httpx raises it: of its own kind, not of Python's."""


class ConnectTimeout(TransportError):
    """One of them."""


class UnsupportedProtocol(TransportError):
    """One that will not pass."""


for made in (TransportError, ConnectTimeout, UnsupportedProtocol):
    made.__module__ = "httpx"


def status_error(status: int) -> aiohttp.ClientResponseError:
    info: Any = aiohttp.RequestInfo(URL("http://x"), "GET", {}, URL("http://x"))  # type: ignore[arg-type]
    return aiohttp.ClientResponseError(info, (), status=status)


ERRORS: list[tuple[BaseException, ErrorClass | None]] = [
    # the system and asyncio
    (ConnectionResetError(), TRANSIENT),
    (TimeoutError(), TRANSIENT),
    (DeadlineExceeded("late"), TRANSIENT),
    (asyncio.IncompleteReadError(b"", 5), TRANSIENT),
    (socket.gaierror(), TRANSIENT),
    (OSError(errno.EHOSTUNREACH, "no route"), TRANSIENT),
    (OSError(errno.EMFILE, "too many files"), OVERLOADED),
    (OSError(errno.ENOSPC, "no space"), OVERLOADED),
    (asyncio.QueueFull(), OVERLOADED),
    (FileNotFoundError(), PERMANENT),
    (PermissionError(), PERMANENT),
    (ssl.SSLCertVerificationError(), PERMANENT),
    (ssl.SSLError(), TRANSIENT),
    # the program and its data
    (ValueError(), PERMANENT),
    (KeyError(), PERMANENT),
    (RuntimeError(), None),
    # nobody wants it any more
    (asyncio.CancelledError(), CANCELLED),
    (KeyboardInterrupt(), CANCELLED),
    # ours
    (RateLimited("slow down"), THROTTLED),
    (BulkheadFull("full"), OVERLOADED),
    (CircuitOpen("open"), OVERLOADED),
    (BrokerUnavailable("gone"), TRANSIENT),
    # aiohttp
    *((status_error(status), TRANSIENT) for status in (408, 425, 500, 502, 504, 599)),
    (status_error(429), THROTTLED),
    (status_error(503), OVERLOADED),
    *((status_error(status), PERMANENT) for status in (200, 302, 400, 401, 404, 409, 501)),
    (aiohttp.ServerDisconnectedError(), TRANSIENT),
    (aiohttp.ServerTimeoutError(), TRANSIENT),
    (aiohttp.ClientPayloadError(), TRANSIENT),
    (aiohttp.ClientOSError(), TRANSIENT),
    (aiohttp.InvalidURL("x"), PERMANENT),
    # httpx and requests
    *((HTTPStatusError(status), TRANSIENT) for status in (408, 500, 502)),
    (HTTPStatusError(429), THROTTLED),
    (HTTPStatusError(503), OVERLOADED),
    (HTTPStatusError(404), PERMANENT),
    (ConnectTimeout(), TRANSIENT),
    (UnsupportedProtocol(), PERMANENT),
    # PostgreSQL
    *((PostgresError(state), TRANSIENT) for state in ("40001", "40P01", "08006", "57P01", "55P03", "57014", "25006")),
    *((PostgresError(state), OVERLOADED) for state in ("53300", "53100")),
    *((PostgresError(state), PERMANENT) for state in ("23505", "23503", "22P02", "42601", "28P01", "57000")),
    (PostgresError("XX000"), None),
    (OldPostgresError("40P01"), TRANSIENT),
    (OldPostgresError("23505"), PERMANENT),
    (OperationalError(), TRANSIENT),
    (Wrapped(PostgresError("40001")), TRANSIENT),
    (Wrapped(sqlite3.IntegrityError()), PERMANENT),
    # groups: transient only if every error in it is
    (ExceptionGroup("", [OSError(), ExceptionGroup("", [TimeoutError()])]), TRANSIENT),
    (ExceptionGroup("", [OSError(), ValueError()]), PERMANENT),
    (ExceptionGroup("", [OSError(), RuntimeError()]), None),
    (ExceptionGroup("", [OSError(), RateLimited("")]), THROTTLED),
    (BaseExceptionGroup("", [ValueError(), asyncio.CancelledError()]), CANCELLED),
]


def test_an_error_asks_to_wait_as_the_response_does_that_it_is_about() -> None:
    assert asked_wait_s(HTTPStatusError(429), wall=0) == 7
    assert asked_wait_s(ConnectTimeout(), wall=0) is None


@pytest.mark.parametrize(("error", "kind"), ERRORS, ids=lambda value: repr(value)[:50])
def test_an_error_has_its_class(error: BaseException, kind: ErrorClass | None) -> None:
    assert known_class(error) is kind
    assert classify(error) is (kind or PERMANENT)  # only a known mishap is worth another attempt


def test_a_locked_database_may_be_free_soon_and_a_violated_constraint_stays_one(tmp_path: Path) -> None:
    first, second = (sqlite3.connect(tmp_path / "x.db", timeout=0, isolation_level=None) for _ in range(2))
    try:
        first.execute("CREATE TABLE t (id INTEGER PRIMARY KEY)")
        first.execute("INSERT INTO t VALUES (1)")
        first.execute("BEGIN IMMEDIATE")
        statements = {
            "BEGIN IMMEDIATE": TRANSIENT,
            "SELECT * FROM missing": PERMANENT,
            "SELEC": PERMANENT,
        }
        for statement, kind in statements.items():
            with pytest.raises(sqlite3.OperationalError) as failed:
                second.execute(statement)
            assert classify(failed.value) is kind
        with pytest.raises(sqlite3.IntegrityError) as violated:
            first.execute("INSERT INTO t VALUES (1)")
        assert classify(violated.value) is PERMANENT
        first.execute("PRAGMA max_page_count = 2")
        with pytest.raises(sqlite3.OperationalError, match="full") as full:
            first.execute(
                "CREATE TABLE u AS WITH RECURSIVE n(i) AS (SELECT 1 UNION SELECT i + 1 FROM n LIMIT 9999) SELECT * FROM n"
            )
        assert classify(full.value) is OVERLOADED
    finally:
        first.close()
        second.close()


async def test_what_aiohttp_really_raises() -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=int(request.match_info["status"]), headers={"Retry-After": "7"})

    app = web.Application()
    app.router.add_get("/{status}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    found: dict[str, ErrorClass] = {}
    async with aiohttp.ClientSession() as session:
        for path in ("429", "503", "404", "500"):
            with pytest.raises(aiohttp.ClientResponseError) as failed:
                async with session.get(f"http://127.0.0.1:{port}/{path}", raise_for_status=True):
                    pass
            found[path] = classify(failed.value)
        await runner.cleanup()
        with pytest.raises(aiohttp.ClientConnectorError) as refused:
            await session.get(f"http://127.0.0.1:{port}/")
        found["refused"] = classify(refused.value)

    assert found == {"429": THROTTLED, "503": OVERLOADED, "404": PERMANENT, "500": TRANSIENT, "refused": TRANSIENT}


def test_whoever_knows_better_is_asked_first_and_can_leave_again() -> None:
    def mine(error: BaseException) -> CoreErrorClass | None:
        return OVERLOADED if isinstance(error, RuntimeError) else None

    undo = register_classifier(mine)
    try:
        assert classify(RuntimeError()) is OVERLOADED
        assert classify(ExceptionGroup("", [RuntimeError(), OSError()])) is OVERLOADED
        assert classify(ValueError()) is PERMANENT
    finally:
        undo()
        undo()

    assert known_class(RuntimeError()) is None


def test_a_classifier_that_raises_does_not_hide_the_error_it_was_asked_about() -> None:
    def broken(error: BaseException) -> CoreErrorClass | None:
        raise ZeroDivisionError

    undo = register_classifier(broken)
    try:
        error = ConnectionResetError()
        assert classify(error) is TRANSIENT
        assert error.__notes__ == ["taskflow: a registered classifier raised ZeroDivisionError for this"]
    finally:
        undo()
