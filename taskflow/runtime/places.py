"""Places for sync handlers: a bounded number at once, handed on in order of arrival."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress


class Places:
    """At most `limit` at once. `busy` is what jobs are told that come back later for want of one."""

    def __init__(self, limit: int, busy: str) -> None:
        self.limit = limit
        self.busy = busy
        self.taken = 0
        self.abandoned = 0  # taken by what was given up on
        self._waiters: deque[asyncio.Future[None]] = deque()

    @property
    def is_crowded(self) -> bool:
        """Whether one more need not wait: all were given up on, or the next of each is waiting already."""
        return self.abandoned >= self.limit or len(self._waiters) >= self.limit

    def try_take(self) -> bool:
        """Take a place if one is free and nobody waits for it."""
        if self.taken < self.limit and not self._waiters:
            self.taken += 1
            return True
        return False

    async def take(self) -> None:
        """Wait for a place, in order of arrival."""
        if self.try_take():
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self.give_back()  # the place was handed over in the very moment in which we were cancelled
            else:
                with suppress(ValueError):  # `give_back` may have passed it over already
                    self._waiters.remove(waiter)
            raise

    def give_back(self) -> None:
        """Free a place: hand it to the first who waits."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self.taken -= 1
