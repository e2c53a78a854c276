"""A rate limit as one number: GCRA, the generic cell rate algorithm (ITU-T I.371), in virtual scheduling form.

`tat`, the theoretical arrival time, is the instant at which the bucket would be full again. A start moves it
`interval_s` onward; `burst` starts may be borrowed from the future. `now` is the caller's, in the clock of `tat`.
"""

from __future__ import annotations

import math

# Instants are seconds since 1970: a float's last digit there is a quarter of a microsecond, half of one from 2038 on.
_ROUNDING_S = 1e-6
# So a shorter interval would be counted with an error of more than one in a hundred,
LEAST_INTERVAL_S = 1e-5
# and a `tat` further ahead (thirty years) with one of more than a microsecond.
MOST_DEBT_S = 1e9
# Readings of the clock may differ by so much between callers that wait for the same lock.
_SKEW_S = 10.0


def is_countable(interval_s: float, burst: int) -> bool:
    """Whether a float can keep count of this rate."""
    return burst >= 1 and interval_s >= LEAST_INTERVAL_S and interval_s * burst <= MOST_DEBT_S


def available(tat: float, *, now: float, interval_s: float, burst: int) -> int:
    """How many may start now: 0 to `burst`."""
    debt_s = _counted(tat, now, interval_s, burst) - now
    return max(0, burst - math.ceil((debt_s - _ROUNDING_S) / interval_s))


def take(tat: float, count: int, *, now: float, interval_s: float, burst: int) -> float:
    """`tat` after `count` starts."""
    return _counted(tat, now, interval_s, burst) + interval_s * count


def give_back(tat: float, count: int, *, interval_s: float) -> float:
    """`tat` after `count` starts turned out not to happen.

    Exact if the bucket was not full since they were taken; never makes more than `burst` available.
    """
    return tat - interval_s * count


def next_at(tat: float, *, now: float, interval_s: float, burst: int) -> float:
    """The instant at which at least one may start; `now` when it may already."""
    return max(now, _counted(tat, now, interval_s, burst) - interval_s * (burst - 1))


def reserve(tat: float, *, now: float, interval_s: float, burst: int) -> tuple[float, float]:
    """`tat` after one start that waits for its turn, and the instant of that turn; `now` where there is no wait.

    Every debt counts: for a `tat` of the caller's own monotonic clock alone.
    """
    turn = tat - interval_s * (burst - 1)
    return max(tat, now) + interval_s, turn if turn > now + _ROUNDING_S else now


def _counted(tat: float, now: float, interval_s: float, burst: int) -> float:
    # A bucket never owes more than its burst. A `tat` that says so was made at a slower rate, or before the clock was
    # set back: it would close the limit for hours, so it does not count.
    return tat if now < tat <= now + interval_s * burst + _SKEW_S else now
