"""How long to wait before the next attempt.

The cap comes first and the jitter after it, so that jitter survives at the cap; an overflow is the cap, so that
attempt 5,000 is as safe as attempt 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from taskflow.core import specs


def exponential(attempt: int, *, base_s: float, factor: float, cap_s: float) -> float:
    """Seconds to wait after failed attempt number `attempt` (the first is 1).

    `min(cap_s, base_s * factor ** (attempt - 1))`; the cap where that is too large for a float.
    """
    try:
        return min(cap_s, base_s * float(factor) ** max(0, attempt - 1))
    except OverflowError:  # a float ends near 1e308: at factor 2 that is attempt 1,025
        return cap_s if base_s else 0.0


def delay_s(retry: specs.Retry, attempt: int, *, jitter: float, last_s: float | None = None) -> float:
    """Seconds to wait after failed attempt number `attempt` (the first is 1), drawn by `jitter` in [0, 1).

    `full` is uniform in [0, ceiling), `equal` in [ceiling / 2, ceiling), `none` is the ceiling, `decorrelated` is
    uniform in [base, 3 * last_s) (AWS Architecture Blog, "Exponential Backoff And Jitter", 2015; here the bound is
    capped, not the draw, so that a crowd at the cap stays spread). `last_s` is the wait before this one; whoever does
    not know it gets the mean growth. What `retry.delay` says is taken as it is, in [0, max_delay].
    """
    if retry.delay is not None:
        return min(max(0.0, retry.delay(attempt)), retry.max_delay)
    ceiling = exponential(attempt, base_s=retry.base, factor=retry.factor, cap_s=retry.max_delay)
    match retry.jitter:
        case "full":
            return ceiling * jitter
        case "equal":
            return ceiling * (0.5 + jitter / 2)
        case "decorrelated":
            least = min(retry.base, retry.max_delay)
            most = min(retry.max_delay, 3 * max(ceiling if last_s is None else last_s, least))
            return least + (most - least) * jitter
        case _:
            return ceiling


class Pauses:
    """The waits of one operation that is repeated until it gets through: each twice as long as the one before.

    From `first_s` up to `most_s`, jittered over the upper half by `draw`, which gives numbers in [0, 1): never a spin,
    no two in step, and soon back after an outage.
    """

    __slots__ = ("_draw", "_failed", "_first_s", "_most_s")

    def __init__(self, first_s: float, most_s: float, draw: Callable[[], float]) -> None:
        self._first_s, self._most_s, self._draw = first_s, most_s, draw
        self._failed = 0

    def next_s(self) -> float:
        """Seconds to wait this time."""
        self._failed += 1
        wait_s = exponential(self._failed, base_s=self._first_s, factor=2, cap_s=self._most_s)
        return wait_s * (0.5 + self._draw() / 2)

    def reset(self) -> None:
        """It got through: the next wait is short again."""
        self._failed = 0
