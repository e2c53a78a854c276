"""A rate limit as one number: GCRA, the generic cell rate algorithm (ITU-T I.371), in virtual scheduling form.

`tat`, the theoretical arrival time, is the instant at which the bucket would be full again. A start moves it
`interval_s` onward; `burst` starts may be borrowed from the future. `now` is the caller's, in the clock that made `tat`.
"""

from __future__ import annotations

# Instants are seconds since 1970: a float's last digit there is a quarter of a microsecond.
_ROUNDING_S = 1e-6


def available(tat: float, *, now: float, interval_s: float, burst: int) -> int:
    """How many may start now."""
    debt_s = max(tat, now) - now
    return max(0, int((interval_s * burst - debt_s + _ROUNDING_S) / interval_s))


def take(tat: float, count: int, *, now: float, interval_s: float) -> float:
    """`tat` after `count` starts."""
    return max(tat, now) + interval_s * count


def give_back(tat: float, count: int, *, interval_s: float) -> float:
    """`tat` after `count` starts turned out not to happen."""
    return tat - interval_s * count


def next_at(tat: float, *, now: float, interval_s: float, burst: int) -> float:
    """The instant at which at least one may start; `now` when it may already."""
    return max(now, tat - interval_s * (burst - 1))
