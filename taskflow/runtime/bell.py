"""A bell that one waits for and others ring.

An `asyncio.Event` would cost a call for each job that ends, though as a rule nobody waits for that. Whoever rings this
one may look first whether it is wanted.
"""

from __future__ import annotations

import asyncio


class Bell:
    """For one who waits at a time. `is_wanted`: somebody waits, and asked to be woken by whatever happens."""

    __slots__ = ("_waiter", "is_wanted")

    def __init__(self) -> None:
        self.is_wanted = False
        self._waiter: asyncio.Future[None] | None = None

    def expect(self, *, is_wanted: bool = True) -> asyncio.Future[None]:
        """Done when it rings from now on: by `ring` alone, if it is not wanted."""
        self.is_wanted = is_wanted
        self._waiter = waiter = asyncio.get_running_loop().create_future()
        return waiter

    def ring(self) -> None:
        """Wake who waits, wanted or not."""
        self.is_wanted = False
        if self._waiter is not None:
            ring(self._waiter)

    def ring_if_wanted(self) -> None:
        """Wake who waits for this."""
        if self.is_wanted:
            self.ring()


def ring(waiter: asyncio.Future[None]) -> None:
    """Wake who waits for this future, unless somebody has, or it was cancelled."""
    if not waiter.done():
        waiter.set_result(None)
