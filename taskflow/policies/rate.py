"""At most so many starts: GCRA, with turns that callers wait for in order, and a pause when the other side asks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskflow.core.bucket import reserve
from taskflow.core.specs import ErrorClass
from taskflow.errors import DeadlineExceeded, RateLimited, Rejected
from taskflow.policies.classes import known_class
from taskflow.policies.guard import Waiting
from taskflow.policies.hints import asked_wait_s
from taskflow.policies.retry_after import LONGEST_S
from taskflow.policies.scope import deadline_at
from taskflow.telemetry import turned_away

if TYPE_CHECKING:
    from taskflow.clock import Clock
    from taskflow.core.specs import RateLimit


class Turns:
    """The bucket of one rate limit, shared by all pipelines of its registry that name it.

    A caller who may wait reserves its turn at once, so that nobody overtakes it; one who gives up gives it back.
    """

    __slots__ = ("_burst", "_clock", "_interval_s", "_tat", "placed_at", "spec", "used_at")

    def __init__(self, spec: RateLimit, clock: Clock) -> None:
        self.spec = spec
        self.placed_at = self.used_at = clock.now()
        self._clock = clock
        self._interval_s, self._burst = spec.interval_s, spec.burst or 1
        self._tat = clock.now()
        turned_away.declare(spec.name, RateLimited.code)

    def is_idle(self, now: float, idle_s: float) -> bool:
        """Whether nothing is lost by forgetting it: the bucket is full."""
        del idle_s
        return self._tat <= now

    def pause(self, seconds: float) -> None:
        """No start for so long: the other side asked for it. Those who come later still take turns after it."""
        until = self._clock.now() + seconds
        self._tat = max(self._tat, until + self._interval_s * (self._burst - 1))

    # ---- a guard ----

    def enter(self, now: float) -> Waiting | None:
        """A start now, or the wait for its turn. Raises `RateLimited` where that is too long."""
        self.used_at = now
        tat, turn = reserve(self._tat, now=now, interval_s=self._interval_s, burst=self._burst)
        if turn <= now:
            self._tat = tat
            return None
        wait_s = turn - now
        if wait_s > self.spec.wait:
            turned_away.count(self.spec.name, RateLimited.code)
            raise RateLimited(
                f"{self.spec.name}: the rate of {self.spec.rate} is used up; the next turn is in {wait_s:.3g} s",
                retry_after_s=wait_s,
            )
        if turn >= deadline_at(self._clock):
            raise DeadlineExceeded(f"{self.spec.name}: the next turn, in {wait_s:.3g} s, is past the caller's deadline")
        self._tat = tat
        return Waiting(self._wait(wait_s))

    def leave(self, permit: None, now: float, error: BaseException | None, result: object) -> BaseException | None:
        """Whoever was throttled speaks for all: its siblings wait too."""
        del permit, now, result
        if error is not None and not isinstance(error, Rejected) and known_class(error) is ErrorClass.THROTTLED:
            self.pause(min(asked_wait_s(error, wall=self._clock.wall()) or 0.0, LONGEST_S))
        return error

    async def _wait(self, wait_s: float) -> None:
        try:
            await self._clock.sleep(wait_s)
        except BaseException:
            self._tat -= self._interval_s
            raise
