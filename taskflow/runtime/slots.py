"""The slots of one worker, and the buffer that they serve: what was claimed and has not started.

Slots wake each other one at a time: a job that never waits costs no wake-up, and jobs that wait fill all slots within
a few turns of the loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from taskflow.core.job import SUSPECT_AFTER
from taskflow.runtime.slot import Slot

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from taskflow.clock import Clock
    from taskflow.runtime.attempt import Attempts
    from taskflow.runtime.bell import Bell
    from taskflow.runtime.walk import Walk


class Slots:
    """At most `limit` slots. `room` and `less` are rung, if they are wanted, when a job here ends; `is_ending` tells
    whether a slot that is cancelled by nobody we know is the end of the worker.

    The others read, and change by `put` and `take_out` only: `buffer`, the next to start first; `busy`, slots that run
    a job, or keep their place for an abandoned thread; `suspects`, jobs here that may have killed their last workers.
    """

    def __init__(
        self, limit: int, clock: Clock, attempts: Attempts, *, room: Bell, less: Bell, is_ending: Callable[[], bool]
    ) -> None:
        self._limit = limit
        self._clock = clock
        self._attempts = attempts
        self._room = room
        self._less = less
        self._is_ending = is_ending
        self.buffer: deque[Walk] = deque()
        self.busy = 0
        self.suspects = 0
        self.tasks: set[asyncio.Task[None]] = set()
        self._made = 0
        self._idle: deque[asyncio.Future[None]] = deque()
        self._waking = False  # one idle slot has been woken and has not taken a job yet

    def put(self, walks: Sequence[Walk], *, first: Sequence[Walk]) -> None:
        """They wait here, to be started in order: `first` before all that is here, `walks` after it. `wake` then."""
        buffer = self.buffer
        buffer.extend(walks)
        if first:
            buffer.extendleft(reversed(first))
            self.suspects += sum(walk.claim.is_suspect for walk in first)

    def take_out(self, is_meant: Callable[[Walk], bool]) -> list[Walk]:
        """What has not started, and is meant, leaves the buffer."""
        found = [walk for walk in self.buffer if is_meant(walk)]
        if found:
            rest = [walk for walk in self.buffer if not is_meant(walk)]
            self.buffer.clear()
            self.buffer.extend(rest)
            self.suspects -= sum(walk.claim.is_suspect for walk in found)
        return found

    def wake(self) -> None:
        """Get one slot going for what is in the buffer; it wakes the next one itself."""
        if self._waking or not self.buffer:
            return
        while self._idle:
            waiter = self._idle.popleft()
            if not waiter.done():
                self._waking = True
                waiter.set_result(None)
                return
        if len(self.tasks) < self._limit:
            self._waking = True
            self._made += 1
            task = asyncio.create_task(self._serve(), name=f"taskflow slot {self._made}")
            self.tasks.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        self._waking = False  # it may have been the one that was woken
        self._less.ring()
        if not self._is_ending():
            self.wake()
            self._room.ring_if_wanted()

    async def _serve(self) -> None:
        slot = Slot(self._clock, self._is_ending)
        slot.bind()
        loop = asyncio.get_running_loop()
        buffer, admit, run = self.buffer, self._attempts.admit, self._attempts.run
        room, less = self._room, self._less
        try:
            while True:
                self._waking = False
                while buffer:
                    walk = buffer.popleft()
                    self.busy += 1
                    if buffer and not self._waking:
                        self.wake()
                    try:
                        if admit(walk, slot):
                            await run(walk)
                    finally:
                        self.busy -= 1
                        if self.suspects and walk.claim.lost >= SUSPECT_AFTER:
                            self.suspects -= 1
                        if room.is_wanted:
                            room.ring()
                        if less.is_wanted:
                            less.ring()
                    if slot.is_spent:
                        return
                waiter = loop.create_future()
                self._idle.append(waiter)
                await waiter
        finally:
            slot.unbind()
