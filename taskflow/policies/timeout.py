"""A limit on time: cancels the body, and tells its own cancellation from one that came from outside.

As `asyncio.timeout` does (never `wait_for`: on 3.11 it swallows a cancellation that meets the result, cpython 86296),
on an injected clock, and never past the deadline of the call around it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from taskflow.errors import DeadlineExceeded
from taskflow.policies.scope import Scope, calls_end_at, current

if TYPE_CHECKING:
    from taskflow.clock import Clock, Timer


class Expiry(Scope):
    """One running body, and the alarm that will cancel it."""

    __slots__ = ("_cancelling", "_task", "fired", "is_own", "timer")

    timer: Timer

    def __init__(self, outer: Scope | None, clock: Clock, at: float, task: asyncio.Task[object], is_own: bool) -> None:
        # Not by `super`: it would cost a call of each call.
        self.outer, self.clock, self.at, self.retries, self.is_over = outer, clock, at, "", False
        self.fired = False
        self.is_own = is_own  # the timeout's own limit, not the caller's deadline
        self._task = task
        self._cancelling = task.cancelling()

    def fire(self) -> None:
        self.fired = True
        self._task.cancel()

    def was_ours(self) -> bool:
        """Whether nobody else has cancelled the task too. Takes our own cancellation back."""
        return self._task.uncancel() <= self._cancelling


class TimeoutGuard:
    """At most `seconds`, or what the calls around it have left."""

    __slots__ = ("_clock", "_name", "_seconds")

    def __init__(self, seconds: float, name: str, clock: Clock) -> None:
        self._seconds = seconds
        self._name = name
        self._clock = clock

    def enter(self, now: float) -> Expiry:
        clock, outer = self._clock, current.get()
        at, is_own = now + self._seconds, True
        if outer is not None and (outer_at := calls_end_at(clock)) < at:
            if outer_at <= now:
                raise DeadlineExceeded(f"{self._name}: not called, since the caller's deadline has passed")
            at, is_own = outer_at, False
        task = asyncio.current_task()
        assert task is not None
        expiry = Expiry(outer, clock, at, task, is_own)
        expiry.timer = clock.call_at(at, expiry.fire)
        current.set(expiry)
        return expiry

    def leave(self, permit: Expiry, now: float, error: BaseException | None, result: object) -> BaseException | None:
        del now, result
        permit.timer.cancel()
        permit.is_over = True
        current.set(permit.outer)
        if permit.fired and permit.was_ours() and isinstance(error, asyncio.CancelledError):
            return DeadlineExceeded(
                f"{self._name}: still running after its timeout of {self._seconds:g} s"
                if permit.is_own
                else f"{self._name}: still running when the caller's deadline passed"
            )
        return error
