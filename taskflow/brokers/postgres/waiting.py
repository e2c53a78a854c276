"""Who waits in this loop, for work or for jobs to end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskflow.brokers.waiting import Awaited, resolve

if TYPE_CHECKING:
    import asyncio


class Waiters:
    """Futures that wait for any work, and futures by the ids of jobs."""

    def __init__(self) -> None:
        self.work: set[asyncio.Future[None]] = set()
        self.finals = Awaited()

    def tell_work(self) -> None:
        """Something may be claimed."""
        for future in self.work:
            resolve(future)
        self.work.clear()

    def tell_all(self) -> None:
        """Everything may have happened: nobody told us for a while, or the broker closes."""
        self.tell_work()
        self.finals.tell_all()
