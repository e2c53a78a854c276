"""Connections to the server: the address, a bounded pool, and calls that end in our errors."""

from __future__ import annotations

import asyncio
import random
import re
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import asyncpg

from taskflow.brokers.postgres import errors, schema
from taskflow.brokers.postgres.doubts import doubts_about
from taskflow.brokers.postgres.options import connect_s, for_driver
from taskflow.brokers.waiting import UnderWay
from taskflow.core.backoff import Pauses
from taskflow.errors import BrokerError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

CALL_S = 10.0  # the longest that a call takes: one whose connection the network has dropped is heard of by then
UPKEEP_S = 30.0  # a call that moves or forgets thousands of jobs
_CONNECT_S = 10.0
_CANCEL_S = 1.0  # for the server's word that it has given up a statement that we gave up
_POOL = 4  # connections of one broker object, besides the one that listens
_PROOF_S, _PROOFS = 2.0, 3  # to find out that a pooler shares sessions; one that is busy may need another try
_PID = "SELECT pg_backend_pid()"
# The server drops what all have read from its queue of notifications when it adds to it, or is asked how full it is: a
# full one stays full for ever without the question.
_DROP_READ = "SELECT pg_notification_queue_usage()"
_TRIES = 5  # of a call that met a deadlock or another's id
# A role or a database may have another default, and an older snapshot than a statement's own loses jobs.
_SETTINGS = {"default_transaction_isolation": schema.ISOLATION}
_PAUSE_S, _MOST_PAUSE_S = 0.03, 0.5  # before the second of them, and at most: who met parts
_HOSTS = re.compile(r"(([^\[\]:,]*|\[[^\]]*\])(:\d*)?(,|$))*")
_ON = frozenset({"1", "on", "true", "yes"})
_OFF = frozenset({"0", "off", "false", "no"})


class Address:
    """A URL as the driver takes it, our own options apart. `where` may be shown."""

    def __init__(self, url: str) -> None:
        try:
            parts = urlsplit(url)
        except ValueError:  # its words may hold the password
            raise _no_address() from None
        if "@" in f"{parts.path}{parts.query}{parts.fragment}":  # what stands before it would be taken for the host
            raise _no_address()
        if parts.scheme not in {"postgresql", "postgres"}:
            raise ConfigError(
                f"PostgresBroker needs postgresql://[USER[:PASSWORD]@]HOST[:PORT]/DATABASE, not {parts.scheme}://"
            )
        user, _, hosts = parts.netloc.rpartition("@")
        if "@" in user or parts.fragment or not _HOSTS.fullmatch(hosts):  # a part of the password would be shown
            raise _no_address()
        options = parse_qsl(parts.query, keep_blank_values=True)
        listen = next((value for name, value in options if name == "listen"), "on").lower()
        if listen not in _ON | _OFF:
            raise ConfigError(f"TASKFLOW_BROKER__URL: listen is on (the default) or off, not {listen!r}")
        self.listens = listen in _ON
        self._connect_s = connect_s(options, _CONNECT_S)
        named = for_driver(options)
        if "application_name" not in dict(named):
            named.append(("application_name", "taskflow"))
        self.dsn = urlunsplit(parts._replace(query=urlencode(named)))
        self.where = f"{hosts or dict(options).get('host', '')}{parts.path}"
        # A pooler that shares its sessions refuses settings, or passes them over; so does one that keeps them.
        self._sets = self.listens

    async def connect(self, _dsn: None = None, **of_pool: Any) -> asyncpg.Connection:
        """A connection of its own, or of a pool, which has more to say about it."""
        if self._sets:
            try:
                return await self._connect(server_settings=_SETTINGS, **of_pool)
            except errors.NotConnected as error:
                if not errors.is_of_settings(error.said):
                    raise
                self._sets = False
        return await self._connect(**of_pool)

    async def _connect(self, **more: Any) -> asyncpg.Connection:
        try:
            return await _connect(
                self.dsn,
                timeout=self._connect_s,
                command_timeout=CALL_S,
                # A pooler that cannot LISTEN cannot keep prepared statements either.
                statement_cache_size=256 if self.listens else 0,
                **more,
            )
        except asyncpg.PostgresError as error:
            raise errors.NotConnected(error) from error


class Pool:
    """A bounded number of connections. A call gets one for one statement."""

    def __init__(self, address: Address, namespace: str) -> None:
        self._address, self._namespace = address, namespace
        self._name = schema.quoted(namespace)
        self._pool: asyncpg.Pool | None = None
        self._calls = UnderWay()
        self.doubts: tuple[str, ...] = ()

    @property
    def is_open(self) -> bool:
        return self._pool is not None

    async def open(self) -> None:
        """Connect, and bring the schema up to date."""
        pool = asyncpg.create_pool(
            min_size=0,
            max_size=_POOL,
            connect=self._address.connect,
            init=None if self._address.listens else _learn_arrays,
            reset=_no_reset,
        )
        try:
            with errors.in_our_words(self._address.where), _addressed():
                await pool
                async with pool.acquire(timeout=CALL_S) as connection:
                    if self._address.listens:
                        await self._refuse_shared_session(connection)
                    await _again(lambda: schema.migrate(connection, self._namespace))
                    self.doubts = await doubts_about(connection, self._address.where)
        except BaseException:  # cancelled, too: nobody else ends what has been connected
            pool.terminate()
            raise
        self._pool = pool

    async def _refuse_shared_session(self, mine: Any) -> None:
        """Raise `ConfigError` where a pooler lets others have the session of this connection meanwhile.

        A pooler gives its clients process ids of its own making. With one that keeps sessions, another connection may
        have to wait for a session: then there is no proof, and none is needed.
        """
        if await mine.fetchval(_PID) == mine.get_server_pid():
            return
        other = await self._address.connect()
        is_shared = False
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(_PROOF_S):
                    for _ in range(_PROOFS):
                        mine_was = await mine.fetchval(_PID)
                        async with other.transaction():
                            is_shared |= await other.fetchval(_PID) == mine_was or await mine.fetchval(_PID) != mine_was
        finally:
            other.terminate()
        if is_shared:
            raise errors.no_session(self._address.where)

    async def close(self) -> None:
        """Calls that are under way end first, those that wait for a connection among them."""
        await self._calls.ended(CALL_S)
        pool, self._pool = self._pool, None
        if pool is None:
            return
        try:
            async with asyncio.timeout(CALL_S):
                await pool.close()
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            pool.terminate()

    async def fetch(self, statement: str, *values: Any, within_s: float = CALL_S) -> list[Any]:
        """The rows of one statement, in which `~.` stands for the schema."""
        text = statement.replace("~", self._name)
        rows: list[Any] = await self._call(lambda connection: connection.fetch(text, *values, timeout=within_s))
        return rows

    async def value(self, statement: str, *values: Any) -> Any:
        """The one value of one statement."""
        return await self._call(lambda connection: connection.fetchval(statement.replace("~", self._name), *values))

    async def _call(self, call: Callable[[Any], Awaitable[Any]]) -> Any:
        pool = self._pool
        if pool is None:
            raise BrokerError(
                f"the broker on {self._address.where} is not open: call open() first, and nothing after close()"
            )

        async def once() -> Any:
            connection = await pool.acquire(timeout=CALL_S)
            try:
                return await call(connection)
            except BaseException as error:  # cancelled, too: the pool must not lend it again in the middle of an answer
                # It makes another. Through a pooler, a statement that was given up half way keeps a session.
                if errors.is_of_driver(error) or not (isinstance(error, Exception) or self._address.listens):
                    connection.terminate()
                elif errors.is_of_notify(error):
                    await connection.execute(_DROP_READ)
                raise
            finally:
                with suppress(TimeoutError):  # the pool has ended it, and makes another
                    await pool.release(connection, timeout=_CANCEL_S)

        with self._calls, errors.in_our_words(self._address.where):
            return await _again(once)


def _no_address() -> ConfigError:
    return ConfigError(
        "TASKFLOW_BROKER__URL is no address of a PostgreSQL server: it must be "
        "postgresql://[USER[:PASSWORD]@]HOST[:PORT]/DATABASE[?OPTION=VALUE]; in user, password and values write "
        "%40 for @, %2F for /, %3A for :, %23 for #, %3F for ?, %5B for [, %25 for %"
    )


@contextmanager
def _addressed() -> Iterator[None]:
    """A port that is none: what the driver quotes may be of the password."""
    try:
        yield
    except ValueError as error:
        if type(error) is ValueError:
            raise _no_address() from None
        raise


async def look(address: Address, namespace: str) -> tuple[int, tuple[str, ...]]:
    """The version of the schema, which is left as it is, and what the server's settings may cost."""
    with errors.in_our_words(address.where), _addressed():
        connection = await address.connect()
        try:
            version = await schema.version_of(connection, namespace)
            return version, await doubts_about(connection, address.where)
        finally:
            connection.terminate()


async def _again(call: Callable[[], Awaitable[Any]]) -> Any:
    """Once more where the server undid everything, because of others."""
    pauses = Pauses(_PAUSE_S, _MOST_PAUSE_S, random.random)
    for left in reversed(range(_TRIES)):
        try:
            return await call()
        except asyncpg.PostgresError as error:
            if left == 0 or not errors.is_retried(error):
                raise
        await asyncio.sleep(pauses.next_s())
    raise AssertionError("unreachable")


_late: set[asyncio.Task[Any]] = set()  # connections that nobody waits for any more


async def _connect(*values: Any, **options: Any) -> asyncpg.Connection:
    """As `asyncpg.connect`, which leaves an unheard error behind when it is cancelled half way: it ends by itself."""
    connecting = asyncio.ensure_future(asyncpg.connect(*values, **options))
    try:
        return await asyncio.shield(connecting)
    except asyncio.CancelledError:
        _late.add(connecting)
        connecting.add_done_callback(_end_late)
        raise


def _end_late(connecting: asyncio.Task[Any]) -> None:
    _late.discard(connecting)
    if not connecting.cancelled() and connecting.exception() is None:
        connecting.result().terminate()


_ARRAYS = "SELECT $1::bigint[], $2::integer[], $3::float8[], $4::boolean[], $5::bytea[]"


async def _learn_arrays(connection: asyncpg.Connection) -> None:
    """Let the driver ask about all arrays that we use in one transaction, which leaves nothing behind.

    It turns the session's compiler (`jit`) off while it asks, and on again in what may be another session by then: the
    first would go on without, for whoever gets it next.
    """
    asking = connection.transaction()
    await asking.start()
    await connection.fetch(_ARRAYS, [], [], [], [], [])
    await asking.rollback()


async def _no_reset(_connection: Any) -> None:
    """Nothing that we do leaves anything behind in a session: no round trip for it."""
