"""The time by which an answer is wanted, here and in other processes."""

from __future__ import annotations

import math
from typing import ClassVar, Self

from taskflow.errors import ConfigError
from taskflow.policies.registry import default_registry
from taskflow.policies.scope import Scope, current, remaining_s

_MOST_MS = 86_400_000 * 365  # a year: what is longer is no deadline


class Deadline:
    """The time by which an answer is wanted: for all policies inside `with Deadline(3):`, and for other processes.

    It travels as *remaining* time, since clocks of two machines differ: send `Deadline.header()` along, and take it in
    on the other side by `with Deadline.from_header(value):`. It stops nothing by itself: a `Timeout` inside does, and
    a `Retry` does not sleep past it.
    """

    HEADER: ClassVar[str] = "X-Deadline-Ms"

    __slots__ = ("_scope", "_seconds")

    def __init__(self, seconds: float | None) -> None:
        if seconds is not None and not (isinstance(seconds, int | float) and not math.isnan(seconds)):
            raise ConfigError(f"Deadline: takes seconds from now on, or None for no deadline; got {seconds!r}")
        self._seconds = seconds
        self._scope: Scope | None = None

    @classmethod
    def from_header(cls, value: str | None) -> Self:
        """The deadline that a caller sent; none if `value` is missing or no whole number of milliseconds."""
        text = (value or "").strip()
        if not (text.isascii() and text.removeprefix("-").isdigit() and len(text) < 20):
            return cls(None)
        millis = int(text)
        return cls(None if millis > _MOST_MS else max(0, millis) / 1000)

    @classmethod
    def header(cls) -> dict[str, str]:
        """What to send to another process: the time that is left; nothing where there is no deadline."""
        left_s = cls.remaining_s()
        return {} if left_s is None else {cls.HEADER: str(math.floor(left_s * 1000))}

    @classmethod
    def remaining_s(cls) -> float | None:
        """Seconds that are left for whatever runs here, never negative; None if nobody set a deadline."""
        left_s = remaining_s()
        return None if left_s == math.inf else max(0.0, left_s)

    def __enter__(self) -> Self:
        clock = default_registry().clock
        at = math.inf if self._seconds is None else clock.now() + self._seconds
        self._scope = Scope(current.get(), clock, at=at)
        current.set(self._scope)
        return self

    def __exit__(self, *exc: object) -> None:
        scope = self._scope
        assert scope is not None
        scope.is_over = True
        current.set(scope.outer)
