"""aiotaskqueue on Redis streams: acknowledged after the run, the result kept for a day and asked for every 2 ms."""

# Without `from __future__ import annotations`: aiotaskqueue reads a task's argument types as they stand.

from datetime import timedelta
from typing import Any

import msgspec
from aiotaskqueue import Configuration, Publisher, TaskRouter
from aiotaskqueue.broker.redis import RedisBroker, RedisBrokerConfig
from aiotaskqueue.result.redis import RedisResultBackend
from aiotaskqueue.serialization import SerializationBackendId, serialize_task
from aiotaskqueue.worker import AsyncWorker
from redis.asyncio import Redis
from side import CONCURRENCY, Stamps


class Json:
    """Any value; the package's own takes `msgspec.Struct` alone."""

    id = SerializationBackendId("json")

    def serializable(self, _value: Any) -> bool:
        return True

    def serialize(self, value: Any) -> str:
        return msgspec.json.encode(value).decode()

    def deserialize(self, value: str, type: type[Any]) -> Any:  # noqa: A002 - their name
        return msgspec.json.decode(value, type=type)


class Queue:
    has_bulk = True

    def __init__(self, url: str, stamps: Stamps) -> None:
        redis = Redis.from_url(url)
        self._configuration = Configuration(default_serialization_backend=Json())
        self._broker = RedisBroker(
            redis=redis, consumer_name="one", broker_config=RedisBrokerConfig(xread_count=100), max_concurrency=100
        )
        self._results = RedisResultBackend(redis, self._configuration, timedelta(milliseconds=2))
        self._publisher = Publisher(self._broker, self._configuration)
        self._router = TaskRouter()

        @self._router.task("noop")
        async def noop(number: int) -> int:
            stamps.stamp()
            return number

        self._noop = noop

    async def prepare(self) -> None:
        async with self._broker:
            pass

    async def open(self) -> None:
        await self._broker.__aenter__()

    async def one(self, number: int) -> Any:
        return await self._publisher.enqueue(self._noop(number))

    async def bulk(self, numbers: range) -> None:
        backend = self._configuration.default_serialization_backend
        backends = self._configuration.serialization_backends
        await self._broker.enqueue_batch(
            [serialize_task(self._noop(n), default_backend=backend, serialization_backends=backends) for n in numbers]
        )

    async def result(self, submitted: Any) -> bool:
        await self._results.wait(submitted)
        return True

    async def work(self) -> None:
        await AsyncWorker(
            self._broker,
            result_backend=self._results,
            tasks=self._router,
            configuration=self._configuration,
            concurrency=CONCURRENCY,
        ).run()
