"""Who waits in this loop, for work or for jobs to end, and how they hear of it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class Waiters:
    """Futures by what they wait for: numbers of queues, or ids of jobs. Used in the loop; looked at from the writer."""

    def __init__(self) -> None:
        self.work: set[WorkWaiter] = set()
        self.finals: dict[str, set[asyncio.Future[None]]] = {}

    def tell_work(self, queues: set[int]) -> None:
        """Something may be claimed from these queues."""
        for waiter in self.work:
            if waiter.queues is None or not waiter.queues.isdisjoint(queues):
                resolve(waiter.future)

    def tell_finals(self, job_ids: Iterable[str]) -> None:
        """These jobs ended."""
        for job_id in job_ids:
            for future in self.finals.get(job_id, ()):
                resolve(future)

    def tell_all(self) -> None:
        """The broker closes."""
        for waiter in self.work:
            resolve(waiter.future)
        self.tell_finals(list(self.finals))

    def add_finals(self, job_ids: Iterable[str], future: asyncio.Future[None]) -> None:
        for job_id in job_ids:
            self.finals.setdefault(job_id, set()).add(future)

    def remove_finals(self, job_ids: Iterable[str], future: asyncio.Future[None]) -> None:
        for job_id in job_ids:
            waiting = self.finals.get(job_id)
            if waiting is not None:
                waiting.discard(future)
                if not waiting:
                    del self.finals[job_id]


class WorkWaiter:
    """One call of `wait`. `queues` is None until it knows their numbers: it hears of all then."""

    __slots__ = ("future", "queues")

    def __init__(self) -> None:
        self.queues: set[int] | None = None
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def again(self) -> None:
        """Wait for the next word."""
        if self.future.done():
            self.future = asyncio.get_running_loop().create_future()


def resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def settled(future: asyncio.Future[None], timeout_s: float) -> bool:
    """Whether `future` was resolved within `timeout_s`. It stays as it is otherwise."""
    done, _ = await asyncio.wait((future,), timeout=max(0.0, timeout_s))
    return bool(done)
