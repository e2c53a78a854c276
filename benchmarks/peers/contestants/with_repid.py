"""repid on Redis streams: acknowledged after the run, no results, what a dead worker held stays pending."""

from __future__ import annotations

import asyncio

from repid import Repid, Router
from repid.connections.redis import RedisServer
from side import CONCURRENCY, Stamps


class Queue:
    has_bulk = False

    def __init__(self, url: str, stamps: Stamps) -> None:
        self._app = Repid()
        self._app.servers.register_server("default", RedisServer(url, batch_size=100), is_default=True)
        self._stamp = stamps.stamp

    async def prepare(self) -> None:
        pass

    async def open(self) -> None:
        self._connection = self._app.servers.default.connection()
        await self._connection.__aenter__()

    async def one(self, number: int) -> None:
        await self._app.send_message_json(channel="noop", payload={"number": number}, headers={"topic": "noop"})

    async def result(self, _submitted: None) -> bool:
        return False

    async def work(self) -> None:
        router = Router()

        @router.actor(channel="noop")
        async def noop(number: int) -> int:
            self._stamp()
            return number

        self._app.include_router(router)
        async with self._app.servers.default.connection():
            await self._app.run_worker(tasks_limit=CONCURRENCY)
        await asyncio.sleep(0)
