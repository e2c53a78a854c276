"""Counts over the last seconds or the last calls, with running totals: O(1) to add and to read.

As resilience4j's windows (one bucket a slice or a call, subtract on evict), with Polly's ten buckets a time window.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

_BUCKETS = 10
_SURELY = 1 - 1e-9  # below it no rounding makes an instant belong to the next slice: most calls end here


@dataclass(slots=True)
class Window:
    """Totals of calls, failures and slow calls over the last `length_s` seconds, to a tenth of it."""

    length_s: float
    calls: int = 0
    failures: int = 0
    slow: int = 0
    _ring: list[list[int]] = field(default_factory=lambda: [[0, 0, 0] for _ in range(_BUCKETS)])
    _slice: int = 0

    def add(self, *, now: float, is_failure: bool, is_slow: bool) -> None:
        """Count one call that ended at `now`. A clock that went back counts into the newest slice."""
        if now * _BUCKETS >= (self._slice + 1) * self.length_s * _SURELY:
            self.advance(now)
        bucket = self._ring[self._slice % _BUCKETS]
        bucket[0] += 1
        bucket[1] += is_failure
        bucket[2] += is_slow
        self.calls += 1
        self.failures += is_failure
        self.slow += is_slow

    def advance(self, now: float) -> None:
        """Forget what is older than the window at `now`."""
        current = math.floor(now * _BUCKETS / self.length_s)
        if current <= self._slice:
            return
        for passed in range(max(self._slice + 1, current - _BUCKETS + 1), current + 1):
            bucket = self._ring[passed % _BUCKETS]
            self.calls -= bucket[0]
            self.failures -= bucket[1]
            self.slow -= bucket[2]
            bucket[:] = (0, 0, 0)
        self._slice = current

    def clear(self) -> None:
        """Forget all."""
        self.calls = self.failures = self.slow = 0
        for bucket in self._ring:
            bucket[:] = (0, 0, 0)


class CallWindow:
    """Totals of calls, failures and slow calls over the last `length` calls."""

    __slots__ = ("_next", "_ring", "calls", "failures", "slow")

    def __init__(self, length: int) -> None:
        self.calls = self.failures = self.slow = self._next = 0
        self._ring: list[tuple[bool, bool] | None] = [None] * length

    def add(self, *, now: float, is_failure: bool, is_slow: bool) -> None:  # noqa: ARG002 - as a Window's
        """Count one call; the oldest gives way."""
        gone = self._ring[self._next]
        if gone is None:
            self.calls += 1
        else:
            self.failures -= gone[0]
            self.slow -= gone[1]
        self._ring[self._next] = (is_failure, is_slow)
        self._next = (self._next + 1) % len(self._ring)
        self.failures += is_failure
        self.slow += is_slow

    def advance(self, now: float) -> None:
        """Time forgets nothing here."""

    def clear(self) -> None:
        """Forget all."""
        self.calls = self.failures = self.slow = self._next = 0
        self._ring = [None] * len(self._ring)


HALF_LIFE_S = 10.0


@dataclass(slots=True)
class DrainRate:
    """Jobs a second that leave a queue: an average that forgets half in `HALF_LIFE_S`."""

    per_s: float = 0.0
    at: float = 0.0

    def add(self, count: int, *, now: float) -> None:
        """`count` jobs left at `now`."""
        self.per_s = self.read(now=now) + count * math.log(2) / HALF_LIFE_S
        self.at = max(self.at, now)

    def read(self, *, now: float) -> float:
        """Jobs a second, as seen at `now`."""
        return self.per_s * math.exp2(-max(0.0, now - self.at) / HALF_LIFE_S)


# What a full queue says when nothing has left it lately, and the bounds of what it says otherwise.
_UNKNOWN_S, _LEAST_S, _MOST_S = 5.0, 0.05, 60.0
NOTHING_PER_S = 0.001  # the rate decays, and is never quite 0 again


def retry_after_s(wanted: int, *, drain_per_s: float) -> float:
    """Seconds until `wanted` jobs will have left, at the rate at which jobs leave now."""
    if drain_per_s < NOTHING_PER_S:
        return _UNKNOWN_S
    return min(max(_LEAST_S, wanted / drain_per_s), _MOST_S)
