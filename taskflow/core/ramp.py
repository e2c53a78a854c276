"""Slow start: after a recovery 1 call at a time, then 2, 4, …, so that a backlog does not undo it.

The limit doubles once as many calls as it allows have succeeded since it last did. It is over at `_FULL`, or when
`lasts_s` have passed: calls that hang must not hold it for ever.
"""

from __future__ import annotations

_FULL = 128  # calls at once: seven doublings, 127 successes; more than most dependencies ever see


class Ramp:
    """The limit of the calls in flight while a dependency proves itself."""

    __slots__ = ("_good", "_in_flight", "_until", "limit")

    def __init__(self, *, now: float, lasts_s: float) -> None:
        self.limit = 1
        self._good = 0
        self._in_flight = 0
        self._until = now + lasts_s

    def is_over(self, now: float) -> bool:
        """Whether there is no limit any more."""
        return self.limit >= _FULL or now >= self._until

    def try_start(self) -> bool:
        """Whether one more call may start; if so, it has."""
        if self._in_flight >= self.limit:
            return False
        self._in_flight += 1
        return True

    def end(self, *, is_good: bool) -> None:
        """One of the calls that were let start has ended."""
        self._in_flight -= 1
        self._good += is_good
        if self._good >= self.limit:
            self.limit *= 2
            self._good = 0
