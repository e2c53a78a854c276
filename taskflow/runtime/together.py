"""Many callers' submits in few round trips: what comes while others are under way makes the next batch.

A web service submits one job a request. On a server each would be a round trip and a commit of its own; a hundred of
them at once cost little more than one. Whoever finds the way free goes at once, and waits for nobody.
"""

from __future__ import annotations

import asyncio
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

from taskflow.errors import BrokerUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

    from taskflow.brokers.base import Receipt
    from taskflow.core.job import Job

_AT_ONCE = 2  # round trips: one large batch on its way must not hold up all that is small
MOST_BYTES = 8 * 2**20  # of payloads in one round trip: a server that takes in more holds up all others meanwhile
_payload = attrgetter("payload")


def batches(jobs: Sequence[Job], most: int) -> Iterator[Sequence[Job]]:
    """The jobs in order, in batches of at most `most` jobs and `MOST_BYTES` of payloads; a larger job goes alone."""
    for start in range(0, len(jobs), most):
        batch = jobs[start : start + most]
        if _bytes_of(batch) <= MOST_BYTES:
            yield batch
        else:
            yield from _by_bytes(batch)


def _by_bytes(jobs: Sequence[Job]) -> Iterator[Sequence[Job]]:
    batch: list[Job] = []
    left = MOST_BYTES
    for job in jobs:
        left -= len(job.payload)
        if left < 0 and batch:
            yield batch
            batch, left = [], MOST_BYTES - len(job.payload)
        batch.append(job)
    yield batch


def _bytes_of(jobs: Sequence[Job]) -> int:
    return sum(map(len, map(_payload, jobs)))


class _Part(NamedTuple):
    """What one caller submits."""

    jobs: Sequence[Job]
    bounds: Mapping[str, int]
    answer: asyncio.Future[list[Receipt]]


class Together:
    """Calls `submit` for all, with at most `most` jobs and `MOST_BYTES` of several callers in one batch."""

    def __init__(
        self, submit: Callable[[Sequence[Job], Mapping[str, int]], Awaitable[list[Receipt]]], most: int
    ) -> None:
        self._submit = submit
        self._most = most
        self._under_way = 0
        self._waiting: list[_Part] = []
        self._flights: set[asyncio.Task[None]] = set()

    async def submit(self, jobs: Sequence[Job], bounds: Mapping[str, int]) -> list[Receipt]:
        """As `Broker.submit`, and what that raises."""
        if self._under_way < _AT_ONCE:
            self._under_way += 1
            try:
                return await self._submit(jobs, bounds)
            finally:
                self._landed()
        answer: asyncio.Future[list[Receipt]] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Part(jobs, bounds, answer))
        return await answer

    def _landed(self) -> None:
        self._under_way -= 1
        parts: list[_Part] = []
        count = size = 0
        for part in self._waiting:
            count += len(part.jobs)
            size += _bytes_of(part.jobs)
            if parts and (count > self._most or size > MOST_BYTES):
                break
            parts.append(part)
        del self._waiting[: len(parts)]
        parts = [part for part in parts if not part.answer.done()]  # its caller was cancelled meanwhile
        if parts:
            self._under_way += 1
            flight = asyncio.get_running_loop().create_task(self._fly(parts), name="taskflow submit")
            self._flights.add(flight)
            flight.add_done_callback(self._flights.discard)

    async def _fly(self, parts: list[_Part]) -> None:
        try:
            await self._tell(parts)
        finally:
            for part in parts:
                part.answer.cancel()  # those that got no answer: the loop ends
            self._landed()

    async def _tell(self, parts: list[_Part]) -> None:
        jobs = [job for part in parts for job in part.jobs]
        bounds = {queue: most for part in parts for queue, most in part.bounds.items()}
        try:
            receipts = await self._submit(jobs, bounds)
        except Exception as error:  # noqa: BLE001 - it is the callers'
            if len(parts) > 1 and not isinstance(error, BrokerUnavailable):
                for part in parts:  # one of them is refused, or breaks the driver: the others have done nothing
                    await self._tell([part])
                return
            for part in parts:
                _refuse(part, error)
            return
        at = 0
        for part in parts:
            if not part.answer.done():
                part.answer.set_result(receipts[at : at + len(part.jobs)])
            at += len(part.jobs)


def _refuse(part: _Part, error: Exception) -> None:
    if part.answer.done():
        return
    if isinstance(error, BrokerUnavailable):  # each caller adds to it what it knows: to one of its own
        own = BrokerUnavailable(str(error), retry_after_s=error.retry_after_s or 0.0, kind=error.kind)
        own.__cause__ = error
        error = own
    part.answer.set_exception(error)
