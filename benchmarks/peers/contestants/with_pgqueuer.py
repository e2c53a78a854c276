"""pgqueuer by batches of 200: acknowledged in batches after the run, no results, one connection."""

from __future__ import annotations

from typing import Any

import asyncpg
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job  # noqa: TC002 - as aiotaskqueue
from pgqueuer.queries import Queries
from side import Stamps  # noqa: TC002 - as above


class Queue:
    has_bulk = True

    def __init__(self, url: str, stamps: Stamps) -> None:
        self._url = url
        self._stamp = stamps.stamp

    async def prepare(self) -> None:
        await self.open()
        await self._queries.install()

    async def open(self) -> None:
        self._queries = Queries(AsyncpgDriver(await asyncpg.connect(self._url)))

    async def one(self, number: int) -> Any:
        return await self._queries.enqueue("noop", str(number).encode())

    async def bulk(self, numbers: range) -> None:
        count = len(numbers)
        await self._queries.enqueue(["noop"] * count, [str(n).encode() for n in numbers], [0] * count)

    async def result(self, _submitted: Any) -> bool:
        return False

    async def work(self) -> None:
        flow = PgQueuer(AsyncpgDriver(await asyncpg.connect(self._url)))

        @flow.entrypoint("noop")
        async def noop(job: Job) -> None:
            int(job.payload or b"0")
            self._stamp()

        await flow.run(batch_size=200, max_concurrent_tasks=1_000)
