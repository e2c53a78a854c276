"""procrastinate: todo, doing, succeeded, each a transaction of its own; no results; a pool of 4 to 20 connections."""

from __future__ import annotations

from typing import Any

import procrastinate
from side import CONCURRENCY, Stamps


class Queue:
    has_bulk = True

    def __init__(self, url: str, stamps: Stamps) -> None:
        connector = procrastinate.PsycopgConnector(conninfo=url, min_size=4, max_size=20)
        self._app = procrastinate.App(connector=connector)

        @self._app.task(name="noop")
        async def noop(number: int) -> int:
            stamps.stamp()
            return number

        self._noop = noop

    async def prepare(self) -> None:
        async with self._app.open_async():
            await self._app.schema_manager.apply_schema_async()

    async def open(self) -> None:
        await self._app.open_async()

    async def one(self, number: int) -> Any:
        return await self._noop.defer_async(number=number)

    async def bulk(self, numbers: range) -> None:
        await self._noop.batch_defer_async(*({"number": number} for number in numbers))

    async def result(self, _submitted: Any) -> bool:
        return False

    async def work(self) -> None:
        async with self._app.open_async():
            await self._app.run_worker_async(concurrency=CONCURRENCY)
