"""arq: the job is removed after its run, the result kept for an hour. Polls every 5 ms (0.5 s is its default)."""

from __future__ import annotations

from typing import Any

from arq import create_pool
from arq.connections import RedisSettings
from arq.worker import Worker, func
from side import CONCURRENCY, Stamps


class Queue:
    has_bulk = False

    def __init__(self, url: str, stamps: Stamps) -> None:
        self._settings = RedisSettings.from_dsn(url)
        self._stamp = stamps.stamp

    async def prepare(self) -> None:
        pass

    async def open(self) -> None:
        self._pool = await create_pool(self._settings)

    async def one(self, number: int) -> Any:
        return await self._pool.enqueue_job("noop", number)

    async def result(self, submitted: Any) -> bool:
        await submitted.result(poll_delay=0.002)
        return True

    async def work(self) -> None:
        async def noop(_ctx: dict[Any, Any], number: int) -> int:
            self._stamp()
            return number

        functions = [func(noop, name="noop")]
        await Worker(functions, redis_settings=self._settings, max_jobs=CONCURRENCY, poll_delay=0.005).async_run()
