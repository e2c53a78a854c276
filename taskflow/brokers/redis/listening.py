"""One connection that listens, for all that wait here: for work, and for jobs to end."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import TYPE_CHECKING, Any

import redis.exceptions
from redis.exceptions import RedisError

from taskflow.brokers.redis.link import heeding_cancellation
from taskflow.brokers.waiting import Awaited, fail
from taskflow.core.backoff import Pauses
from taskflow.errors import BrokerError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from taskflow.brokers.redis.link import Link

_QUIET_S = 5.0  # then the connection is asked whether it lives: there is no poll behind it
_ANSWER_S = 5.0
_CANCELLED_S = 0.1
_AGAIN_S, _MOST_AGAIN_S = 0.1, 1.0  # between two tries to listen, whoever asks for them


class Listening:
    """Who waits, by queue and by job id. Listens from the first `ready` on, until `close` or a lost connection."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._work, self._ends = f"{link.prefix}work".encode(), f"{link.prefix}ends".encode()
        self._by_queue, self._by_job = Awaited(), Awaited()
        self._tasks: set[asyncio.Task[None]] = set()
        self._subscribed: asyncio.Future[None] | None = None  # None while nobody listens
        self._failure: BrokerError | ConfigError | None = None  # of the last try; for a while there is no other
        self._again_at = 0.0
        self._pauses = Pauses(_AGAIN_S, _MOST_AGAIN_S, random.random)

    async def ready(self) -> None:
        """From now on no word is missed, as long as the connection holds. Raises `BrokerUnavailable`.

        Thousands may ask, and ask again: while the server is away one try at a time is enough for all of them.
        """
        loop = asyncio.get_running_loop()
        while self._subscribed is None or not self._subscribed.done():  # it may be lost again before we are back here
            if self._subscribed is None:
                if self._failure is not None and loop.time() < self._again_at:
                    raise self._failure.with_traceback(None)
                self._subscribed = loop.create_future()
                task = asyncio.create_task(self._listen(self._subscribed), name="taskflow-redis-listen")
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            await asyncio.shield(self._subscribed)

    async def close(self) -> None:
        """Whoever waits returns."""
        while self._tasks:  # Python 3.11's `wait_for`, which the driver uses, may swallow a cancellation
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks, timeout=_CANCELLED_S)
        subscribed, self._subscribed = self._subscribed, None
        if subscribed is not None and not subscribed.done():  # its task had not even begun
            fail(subscribed, BrokerError(f"{self._link.where} was closed"))
        self._wake_all()

    def add(self, future: asyncio.Future[None], *, queues: Iterable[str] = (), job_ids: Iterable[str] = ()) -> None:
        """`future` gets its result when there may be work in one of the queues, or one of the jobs has ended."""
        self._by_queue.add(queues, future)
        self._by_job.add(job_ids, future)

    def remove(self, future: asyncio.Future[None], *, queues: Iterable[str] = (), job_ids: Iterable[str] = ()) -> None:
        self._by_queue.remove(queues, future)
        self._by_job.remove(job_ids, future)

    async def _listen(self, subscribed: asyncio.Future[None]) -> None:
        pubsub = None
        try:
            pubsub = self._link.pubsub()
            with heeding_cancellation():
                await pubsub.subscribe(self._work, self._ends)
            await self._hear(pubsub, subscribed)
        except (RedisError, OSError) as error:
            failure = self._link.failure(error)
            failure.__cause__ = error
            if not subscribed.done():
                self._failure = failure
                self._again_at = asyncio.get_running_loop().time() + self._pauses.next_s()
                fail(subscribed, failure)
        except BrokerError as error:
            fail(subscribed, error)
        finally:
            if self._subscribed is subscribed:
                self._subscribed = None
            if not subscribed.done():
                fail(subscribed, BrokerError(f"{self._link.where} was closed"))
            self._wake_all()  # what was said meanwhile nobody knows
            if pubsub is not None:
                with contextlib.suppress(RedisError, OSError):
                    await pubsub.aclose()

    async def _hear(self, pubsub: Any, subscribed: asyncio.Future[None]) -> None:
        confirmed, is_asked = 0, False
        while True:
            message = await pubsub.get_message(timeout=_ANSWER_S if is_asked or confirmed < 2 else _QUIET_S)
            if message is None:
                if is_asked or confirmed < 2:
                    raise redis.exceptions.TimeoutError("the connection that listens is dead")
                with heeding_cancellation():
                    await pubsub.ping()
                is_asked = True
                continue
            is_asked = False
            if message["type"] == "subscribe":
                confirmed += 1
                if confirmed == 2 and not subscribed.done():
                    subscribed.set_result(None)
                    self._failure = None
                    self._pauses.reset()
            elif message["type"] == "message":
                self._tell(message["channel"], message["data"].decode())

    def _tell(self, channel: bytes, said: str) -> None:
        if channel == self._work:
            self._by_queue.tell([said])
        else:
            self._by_job.tell(said.split())

    def _wake_all(self) -> None:
        self._by_queue.tell_all()
        self._by_job.tell_all()
