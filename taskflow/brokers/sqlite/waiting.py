"""Who waits in this loop, for work or for jobs to end, and how they hear of it."""

from __future__ import annotations

import asyncio

from taskflow.brokers.waiting import Awaited, resolve


class Waiters:
    """Those who wait for work know queues by their numbers. Used in the loop; looked at from the writer."""

    def __init__(self) -> None:
        self.work: set[WorkWaiter] = set()
        self.finals = Awaited()

    def tell_work(self, queues: set[int]) -> None:
        """Something may be claimed from these queues."""
        for waiter in self.work:
            if waiter.queues is None or not waiter.queues.isdisjoint(queues):
                resolve(waiter.future)

    def tell_all(self) -> None:
        """The broker closes."""
        for waiter in self.work:
            resolve(waiter.future)
        self.finals.tell_all()


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
