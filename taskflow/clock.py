"""The one source of waiting: `now`, a call at an instant, a sleep. The runtime never waits on anything else.

Three clocks, three names: this one (monotonic seconds, for deadlines), the broker's (leases and due times), the
wall's (for people, at the edge).
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

NEVER = float("inf")  # an instant that does not come


class Timer:
    """A call that may still be cancelled."""

    __slots__ = ("_heap", "callback")

    def __init__(self, callback: Callable[[], object], heap: TimerHeap) -> None:
        self.callback: Callable[[], object] | None = callback
        self._heap = heap

    def cancel(self) -> None:
        """Do not call. Once it was called, or cancelled, nothing happens."""
        if self.callback is not None:
            self.callback = None
            self._heap.forget()


class Clock(Protocol):
    """Monotonic seconds, and everything that waits on them."""

    def now(self) -> float: ...

    def wall(self) -> float:
        """Seconds since 1970: brokers that live in this process make their instants of it."""
        ...

    def call_at(self, when: float, callback: Callable[[], object]) -> Timer: ...

    async def sleep(self, seconds: float) -> None: ...


_SWEEP = 64  # cancelled timers that are not worth a sweep


class TimerHeap:
    """All timers in one heap; whoever owns it arms a single alarm for the earliest."""

    __slots__ = ("_dead", "_heap", "_order")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._dead = 0  # cancelled, and still in the heap

    def push(self, when: float, callback: Callable[[], object]) -> Timer:
        """Call `callback` at `when`."""
        timer = Timer(callback, self)
        heapq.heappush(self._heap, (when, next(self._order), timer))
        return timer

    def forget(self) -> None:
        """A timer was cancelled. Once most are, they are swept out, so that the heap stays as small as its use."""
        self._dead += 1
        if self._dead > _SWEEP and self._dead * 2 > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[2].callback is not None]
            heapq.heapify(self._heap)
            self._dead = 0

    def earliest(self) -> float | None:
        """The instant of the next live timer."""
        heap = self._heap
        while heap and heap[0][2].callback is None:
            heapq.heappop(heap)
            self._dead -= 1
        return heap[0][0] if heap else None

    def fire(self, now: float) -> None:
        """Call all that are due at `now`, in order of their instants.

        A callback that raises stops it: the rest stay, and are called by the next `fire`.
        """
        while self._heap and self._heap[0][0] <= now:  # a callback may sweep the heap
            timer = heapq.heappop(self._heap)[2]
            callback, timer.callback = timer.callback, None
            if callback is None:
                self._dead -= 1
            else:
                callback()


async def sleep_on(clock: Clock, seconds: float) -> None:
    """Sleep on `clock` by one of its timers."""
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def wake() -> None:
        if not done.done():
            done.set_result(None)

    timer = clock.call_at(clock.now() + max(0.0, seconds), wake)
    try:
        await done
    finally:
        timer.cancel()


class LoopClock:
    """Real time. One `loop.call_at` serves all timers: a push on our heap costs a tenth of the loop's own timer."""

    def __init__(self) -> None:
        self._timers = TimerHeap()
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = NEVER
        self._loop: asyncio.AbstractEventLoop | None = None

    def now(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()

    def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # a flow that is opened again in another loop starts with no timers
            self._loop, self._timers, self._alarm, self._alarm_at = loop, TimerHeap(), None, NEVER
        timer = self._timers.push(when, callback)
        if when < self._alarm_at:
            self._arm(when)
        return timer

    async def sleep(self, seconds: float) -> None:
        await sleep_on(self, seconds)

    def _arm(self, when: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        assert self._loop is not None
        self._alarm_at = when
        self._alarm = self._loop.call_later(max(0.0, when - self.now()), self._ring, self._timers)

    def _ring(self, timers: TimerHeap) -> None:
        if timers is not self._timers:
            return  # an alarm of the loop before
        self._alarm, self._alarm_at = None, NEVER
        try:
            timers.fire(self.now())
        finally:  # also when a callback raised: the loop reports it, the others are called next
            earliest = timers.earliest()
            if earliest is not None and earliest < self._alarm_at:
                self._arm(earliest)
