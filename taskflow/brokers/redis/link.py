"""The way to the server: a few connections, scripts by hash, errors in our words, every wait with a bound."""

from __future__ import annotations

import asyncio
import select
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import redis
import redis.asyncio
from redis.exceptions import NoScriptError, RedisError

from taskflow.brokers.redis.address import ANSWER_S, OPTIONS, where
from taskflow.brokers.redis.failures import is_elsewhere, translated
from taskflow.brokers.redis.scripts import script
from taskflow.brokers.redis.sentinel import split
from taskflow.brokers.waiting import UnderWay
from taskflow.errors import BrokerError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from taskflow.brokers.redis.sentinel import Sentinels

CONNECTIONS = 4  # at most, and one more that listens: a script runs alone at the server anyway


class Link:
    """One broker's connections. `wall` gives scripts another time than the server's: for tests alone."""

    def __init__(self, url: str, namespace: str, wall: Callable[[], float] | None) -> None:
        self.namespace = namespace
        self.prefix = f"{{{namespace}}}:"
        self.where = where(url)  # refuses what is no address
        self._url, self._wall = url, wall
        self._plain, self._sentinels = split(url)
        self._unheard = url.partition("://")[0]  # until the server has answered once
        self._client: Any = None  # the driver's own types are incomplete
        self._listener: Any = None
        self._shut: tuple[Any, ...] = ()
        self._calls = UnderWay()

    @property
    def is_open(self) -> bool:
        return self._client is not None

    def open(self) -> None:
        """Connections are made when they are needed."""
        self._client = redis.asyncio.Redis.from_pool(self._pool(CONNECTIONS))
        self._listener = redis.asyncio.Redis.from_pool(self._pool(1))

    def _pool(self, connections: int) -> _Pool:
        pool = _Pool.from_url(self._plain, max_connections=connections, timeout=ANSWER_S, **OPTIONS)
        _set_up(pool, self._sentinels)
        return pool

    def shut(self) -> None:
        """Begin nothing more. Idempotent."""
        self._shut += tuple(client for client in (self._client, self._listener) if client is not None)
        self._client = self._listener = None

    async def close(self) -> None:
        """Calls that are under way end first: the driver would lose connections that it makes meanwhile. Idempotent."""
        self.shut()
        clients, self._shut = self._shut, ()
        await self._calls.ended(ANSWER_S)
        for client in clients:
            await client.aclose()

    def pubsub(self) -> Any:
        """The connection that listens."""
        return self._opened(self._listener).pubsub()

    async def run(self, verb: str, *args: str | bytes | float) -> Any:
        """What the script of this verb answers. It is not repeated: a lost reply is the caller's to judge."""
        client = self._opened(self._client)
        found = script(verb)
        time = "" if self._wall is None else repr(self._wall())
        try:
            with self._calls, heeding_cancellation():
                try:
                    said = await client.execute_command("EVALSHA", found.sha, 1, self.prefix, time, *args)
                except NoScriptError:  # a restart, a failover, SCRIPT FLUSH: nothing has run
                    said = await client.execute_command("EVAL", found.text, 1, self.prefix, time, *args)
        except (RedisError, OSError) as error:
            failure = self.failure(error)
            if is_elsewhere(failure):
                await self._hang_up(client)
            raise failure from error
        else:
            self._unheard = ""
            return said

    async def _hang_up(self, client: Any) -> None:
        """Connections are made anew. After a planned failover all still lead to the old primary, and none breaks."""
        listener = self._listener
        with suppress(RedisError, OSError):
            await client.connection_pool.disconnect(inuse_connections=False)  # those in use will hear it themselves
            if listener is not None:
                await listener.connection_pool.disconnect()

    async def ask(self, *command: str) -> Any:
        """What the server answers to a command of its own."""
        try:
            with heeding_cancellation():
                return await self._opened(self._client).execute_command(*command)
        except (RedisError, OSError) as error:
            raise self.failure(error) from error

    def failure(self, error: Exception) -> BrokerError | ConfigError:
        """Our error for one of the driver's."""
        return translated(error, self.where, self._unheard)

    def sync(self, answer_s: float) -> SyncLink:
        """A connection of its own, for a thread, that gives up `answer_s` after each word, and is made anew."""
        return SyncLink(self._url, self.prefix, self._wall, self.where, answer_s=answer_s)

    def _opened(self, client: Any) -> Any:
        if client is None:
            raise BrokerError(f"the broker at {self.where} is not open: call open() first, and nothing after close()")
        return client


class _Pool(redis.asyncio.BlockingConnectionPool):
    """Gives out no connection that the server has closed: nothing was sent over it yet, so another one will do."""

    async def ensure_connection(self, connection: Any) -> None:
        """As the driver's, which knows of the end only once the loop had a turn to hear it."""
        if _is_hung_up(connection):
            await connection.disconnect(nowait=True)
        await super().ensure_connection(connection)


_HUNG_UP = getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR


def _is_hung_up(connection: Any) -> bool:
    """What the system knows of the connection, whatever the loop was told."""
    writer = connection._writer  # noqa: SLF001 - the driver has no other way to its socket
    if writer is None:
        return False
    way = writer.get_extra_info("socket")
    if way is None or way.fileno() < 0:
        return False
    asked = select.poll()
    asked.register(way.fileno(), _HUNG_UP)
    return bool(asked.poll(0))


class SyncLink:
    """As `Link`, for one thread at a time."""

    def __init__(self, url: str, prefix: str, wall: Callable[[], float] | None, place: str, *, answer_s: float) -> None:
        plain, sentinels = split(url)
        self._client: Any = redis.Redis.from_url(plain, **OPTIONS)
        patience = {"socket_timeout": answer_s, "socket_connect_timeout": answer_s}
        self._client.connection_pool.connection_kwargs |= patience  # whatever the URL says: a beat has its own time
        _set_up(self._client.connection_pool, sentinels)
        self._prefix, self._wall, self._where = prefix, wall, place

    def run(self, verb: str, *args: str | bytes | float) -> Any:
        """As `Link.run`."""
        found = script(verb)
        time = "" if self._wall is None else repr(self._wall())
        try:
            try:
                return self._client.execute_command("EVALSHA", found.sha, 1, self._prefix, time, *args)
            except NoScriptError:
                return self._client.execute_command("EVAL", found.text, 1, self._prefix, time, *args)
        except (RedisError, OSError) as error:
            failure = translated(error, self._where)
            if is_elsewhere(failure):
                self._client.connection_pool.disconnect()
            raise failure from error

    def close(self) -> None:
        """Idempotent."""
        self._client.close()


def _set_up(pool: Any, sentinels: Sentinels | None) -> None:
    """What the URL has no say in, and what drivers older than 6 leave out."""
    made: dict[str, Any] = pool.connection_kwargs
    made["decode_responses"] = False  # whatever the URL says: payloads are bytes
    is_tls = issubclass(pool.connection_class, redis.asyncio.SSLConnection | redis.SSLConnection)
    if is_tls and made.get("ssl_cert_reqs", "required") == "required":
        made.setdefault("ssl_check_hostname", True)
    if sentinels is not None:
        sentinels.lead(pool)


@contextmanager
def heeding_cancellation() -> Iterator[None]:
    """Whoever is cancelled while the driver is at work is cancelled.

    The driver sends by `asyncio.wait_for`, which on Python 3.11 swallows a cancellation that comes as the send ends: a
    wait would go on for as long as it was asked for, and who cancelled it would wait for that.
    """
    task = asyncio.current_task()
    assert task is not None, "the driver works in tasks alone"
    before = task.cancelling()
    try:
        yield
    except asyncio.CancelledError:
        raise
    except Exception as error:
        _raise_if_cancelled(task, before)
        if is_torn(error):
            raise redis.exceptions.ConnectionError("the connection was lost as the driver wrote to it") from error
        raise
    else:
        _raise_if_cancelled(task, before)


def is_torn(error: Exception) -> bool:
    """Whether asyncio was asked to write to a connection that it has lost: an `AttributeError`, from Python 3.12 on."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    module = "" if last is None else str(last.tb_frame.f_globals.get("__name__"))
    return isinstance(error, AttributeError) and module.startswith("asyncio.")


def _raise_if_cancelled(task: asyncio.Task[Any], before: int) -> None:
    if task.cancelling() > before:
        raise asyncio.CancelledError
