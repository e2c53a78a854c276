"""A slot: a long-lived loop's place for one job at a time, and the way to stop what runs in it.

Stopping a job (its time is up, a person cancelled it, the lease is lost, the worker shuts down) cancels the slot's
task once and remembers why; `asyncio` delivers that inside the handler, and the slot takes the cancellation back
(`uncancel`) when the handler has ended. That is what `asyncio.timeout` does, at a fraction of its price: no object
and no timer for each job.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from taskflow.clock import Clock, Timer

TIMEOUT, CANCELLED, SHUTDOWN, LEASE_LOST = "timeout", "cancelled", "shutdown", "lease_lost"

# A handler that swallowed its cancellation is cancelled again after this many seconds.
_AGAIN_S = 10.0


class Slot:
    """Runs one job at a time in the task that `bind` was called in."""

    __slots__ = ("_cancels", "_clock", "_running", "_task", "_timer", "_timer_at", "deadline_at", "stopped")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._task: asyncio.Task[Any] | None = None
        self._timer: Timer | None = None
        self._timer_at = float("inf")
        self._running = False
        self._cancels = 0
        self.deadline_at = float("inf")
        self.stopped: str | None = None  # why the running job was told to stop

    def bind(self) -> None:
        """This task is the slot's from now on."""
        self._task = asyncio.current_task()

    def stop(self, why: str) -> None:
        """Cancel what runs here. The first reason stands; asking again cancels again."""
        if self._running and self._task is not None:
            self.stopped = self.stopped or why
            self._cancels += 1
            self._task.cancel()

    def start_clock(self, deadline_at: float) -> None:
        """The job may run until `deadline_at`. One timer serves the slot for life: it is moved only to ring earlier."""
        self.deadline_at = deadline_at
        if deadline_at < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = deadline_at
            self._timer = self._clock.call_at(deadline_at, self._ring)

    def _ring(self) -> None:
        self._timer, self._timer_at = None, float("inf")
        if not self._running:
            return
        if self._clock.now() >= self.deadline_at:
            self.stop(TIMEOUT)
            self.deadline_at = self._clock.now() + _AGAIN_S
        self.start_clock(self.deadline_at)

    async def run(self, work: Callable[[], Any]) -> Any:
        """What `await work()` gives. Raises `Stopped` if it was told to stop and did, or what the handler raised."""
        self.stopped = None
        self._running = True
        task = self._task
        assert task is not None
        try:
            return await work()
        except asyncio.CancelledError:
            if self._take_back(task) and self.stopped is not None:
                raise Stopped(self.stopped) from None
            if task.cancelling():
                raise  # not ours: the whole slot is being cancelled
            raise Failure("the handler raised CancelledError, though nobody cancelled it") from None
        except SystemExit as error:
            raise Failure(f"the handler called sys.exit({error.code!r})") from error
        finally:
            self._running = False
            self.deadline_at = float("inf")
            self._take_back(task)

    def _take_back(self, task: asyncio.Task[Any]) -> bool:
        """Undo our own cancellations. True if none but ours is left."""
        while self._cancels:
            self._cancels -= 1
            task.uncancel()
        return not task.cancelling()


class Stopped(Exception):
    """The handler stopped because it was told to."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class Failure(Exception):
    """A failure that has no exception of its own."""
