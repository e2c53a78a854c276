"""Who waits in this loop, for work or for jobs to end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class Waiters:
    """Futures that wait for any work, and futures by the ids of jobs."""

    def __init__(self) -> None:
        self.work: set[asyncio.Future[None]] = set()
        self.finals: dict[str, set[asyncio.Future[None]]] = {}

    def tell_work(self) -> None:
        """Something may be claimed."""
        for future in self.work:
            resolve(future)
        self.work.clear()

    def tell_finals(self, job_ids: Iterable[str]) -> None:
        """These jobs ended."""
        if not self.finals:
            return
        for job_id in job_ids:
            for future in self.finals.get(job_id, ()):
                resolve(future)

    def tell_all(self) -> None:
        """Everything may have happened: nobody told us for a while, or the broker closes."""
        self.tell_work()
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


def resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def settled(future: asyncio.Future[None], timeout_s: float) -> bool:
    """Whether `future` was resolved within `timeout_s`. It stays as it is otherwise."""
    done, _ = await asyncio.wait((future,), timeout=max(0.0, timeout_s))
    return bool(done)
