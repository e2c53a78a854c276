"""At most so many calls at once; others wait in line, for a bounded time, and a bounded number of them."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from taskflow.errors import BulkheadFull, ConfigError, DeadlineExceeded
from taskflow.policies.guard import Waiting
from taskflow.policies.scope import deadline_at
from taskflow.telemetry import turned_away

if TYPE_CHECKING:
    from taskflow.clock import Clock
    from taskflow.core.specs import Bulkhead

_LEAST_WAITERS = 1_024  # Envoy's default for pending requests; or the limit, where that is more
_SMOOTHING = 0.1  # of the mean time that a slot is held: about the last ten calls
_LEAST_S, _MOST_S = 0.05, 60.0  # bounds of what a full bulkhead says


class Slots:
    """The slots of one bulkhead, shared by all pipelines of its registry that name it. First come, first served."""

    __slots__ = ("_clock", "_held_s", "_waiters", "in_use", "limit", "placed_at", "spec", "used_at")

    def __init__(self, spec: Bulkhead, clock: Clock) -> None:
        self.spec = spec
        self.limit = spec.limit
        self.in_use = 0
        self.placed_at = self.used_at = clock.now()
        self._clock = clock
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._held_s = 0.0
        turned_away.declare(spec.name, BulkheadFull.code)

    @property
    def waiting(self) -> int:
        """Calls in line."""
        return len(self._waiters)

    def set_limit(self, limit: int) -> None:
        """From now on at most `limit` at once. Wakes as many as it grew by; a lower one takes no slot away."""
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise ConfigError(f"{self.spec.name}: the limit of a bulkhead is a whole number, at least 1; got {limit!r}")
        self.limit = limit
        self._hand_on()

    def is_idle(self, now: float, idle_s: float) -> bool:
        """Whether nothing is lost by forgetting it."""
        del now, idle_s
        return not self.in_use and not self._waiters and self.limit == self.spec.limit

    # ---- a guard ----

    def enter(self, now: float) -> float | Waiting:
        """A slot (the instant from which it is held), or the wait for one. Raises `BulkheadFull`."""
        self.used_at = now
        if self.in_use < self.limit and not self._waiters:
            self.in_use += 1
            return now
        if not self.spec.wait or len(self._waiters) >= max(_LEAST_WAITERS, self.limit):
            raise self._full(f"{len(self._waiters)} wait")
        return Waiting(self._wait(now))

    def leave(self, permit: float, now: float, error: BaseException | None, result: object) -> BaseException | None:
        """Give the slot back, or on to the next in line."""
        del result
        self._held_s += (now - permit - self._held_s) * _SMOOTHING
        self.in_use -= 1
        if self._waiters:
            self._hand_on()
        return error

    async def _wait(self, now: float) -> float:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        until = min(now + self.spec.wait, deadline := deadline_at(self._clock))

        def give_up() -> None:
            if not waiter.done():
                self._waiters.remove(waiter)
                is_late = deadline <= until
                what = f"{self.spec.name}: the caller's deadline passed in line for a slot"
                waiter.set_exception(
                    DeadlineExceeded(what) if is_late else self._full(f"none was free in {self.spec.wait:g} s")
                )

        self._waiters.append(waiter)
        timer = self._clock.call_at(until, give_up)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.cancelled():
                with suppress(ValueError):  # whoever freed a slot has passed it over already
                    self._waiters.remove(waiter)
            elif waiter.exception() is None:  # it got the slot at the moment in which it was cancelled
                self.in_use -= 1
                self._hand_on()
            raise
        finally:
            timer.cancel()
        return self._clock.now()

    def _hand_on(self) -> None:
        """Give the free slots to the first in line."""
        while self._waiters and self.in_use < self.limit:
            waiter = self._waiters.popleft()
            if not waiter.done():
                self.in_use += 1
                waiter.set_result(None)

    def _full(self, what: str) -> BulkheadFull:
        turned_away.count(self.spec.name, BulkheadFull.code)
        wait_s = self._held_s * (len(self._waiters) + 1) / self.limit
        return BulkheadFull(
            f"{self.spec.name}: all {self.limit} slots are taken, and {what}",
            retry_after_s=min(max(_LEAST_S, wait_s), _MOST_S),
        )
