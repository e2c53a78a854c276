"""taskflow: leases and fencing, timeouts and metrics on, the result kept for an hour."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

from side import CONCURRENCY, Stamps

from taskflow import Settings, TaskFlow


class Queue:
    has_bulk = True

    def __init__(self, url: str, stamps: Stamps) -> None:
        self._flow = TaskFlow(settings=Settings.from_env({"TASKFLOW_BROKER__URL": url}))

        @self._flow.task
        async def noop(number: int) -> int:
            stamps.stamp()
            return number

        self._noop = noop

    async def prepare(self) -> None:
        async with self._flow:
            pass

    async def open(self) -> None:
        await self._flow.__aenter__()

    async def one(self, number: int) -> Any:
        return await self._noop.submit(number)

    async def bulk(self, numbers: range) -> None:
        await self._noop.submit_many([self._noop.call(number) for number in numbers])

    async def result(self, submitted: Any) -> bool:
        await submitted.result(timeout=30)
        return True

    async def work(self) -> None:
        stopped = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
        async with self._flow.worker(concurrency=CONCURRENCY):
            await stopped.wait()
