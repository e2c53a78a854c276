"""Frozen specs of the policies: what a user writes down. State lives elsewhere. All durations are seconds.

A spec checks its own numbers, and says which one is wrong. The policies of tasks remember what was said.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, TypeVar, get_args

from taskflow.core import bucket
from taskflow.errors import ConfigError

Jitter = Literal["full", "equal", "decorrelated", "none"]
RETRY_NUMBERS = ("attempts", "base", "factor", "max_delay", "jitter")  # what JSON can carry of a `Retry`

_PERIODS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_MOST_CALLS = 100_000  # of a window that keeps each one
_MOST = 1e9  # thirty years, as seconds: beyond it an instant loses its microseconds


class ErrorClass(StrEnum):
    """What an error says of the call: whether another attempt can help, and who needs a rest."""

    TRANSIENT = "transient"  # broken off, timed out, deadlocked: the same call may succeed
    THROTTLED = "throttled"  # the other side counts our calls, and says so
    OVERLOADED = "overloaded"  # somebody has no room
    PERMANENT = "permanent"  # the same call fails again
    CANCELLED = "cancelled"  # nobody wants the answer any more


_Class = TypeVar("_Class", bound=type)


def _remembers(spec: _Class) -> _Class:
    """Keep in `said` which fields the constructor was given: one that equals its default was said all the same.

    A copy and a pickle keep it; `dataclasses.replace` gives all fields, so its result says them all.
    """
    make: Callable[..., None] = vars(spec)["__init__"]
    names = [each.name for each in dataclasses.fields(spec) if each.init]

    @functools.wraps(make)
    def remember(self: object, *args: object, **kwargs: object) -> None:
        make(self, *args, **kwargs)
        object.__setattr__(self, "said", frozenset((*names[: len(args)], *kwargs)))

    spec.__init__ = remember  # type: ignore[misc]
    return spec


def _check(ok: bool, spec: str, field: str, value: object, wants: str) -> None:
    if not ok:
        raise ConfigError(f"{spec}: {field} must be {wants}, got {value!r}")


def _check_name(spec: str, name: object) -> None:
    ok = isinstance(name, str) and bool(name.strip()) and "/" not in name and name.isprintable() and len(name) <= 100
    _check(ok, spec, "name", name, "a printable name of at most 100 characters without '/'")


def _check_numbers(policy: object, *fields: str) -> None:
    """Comparisons come after it: text and booleans are no numbers, NaN and infinity none to count with."""
    for field in fields:
        value = getattr(policy, field)
        ok = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _MOST
        _check(ok, type(policy).__name__, field, value, f"a number up to {_MOST:g}")


def _check_counts(policy: object, *fields: str) -> None:
    for field in fields:
        value = getattr(policy, field)
        ok = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MOST
        _check(ok, type(policy).__name__, field, value, "a whole number, at least 1")


@dataclass(frozen=True, slots=True)
class RetryBudget:
    """Retries may add at most `ratio` of the first attempts' load; `cap` tokens are saved up at most."""

    name: str
    ratio: float = 0.2
    cap: float = 10

    def __post_init__(self) -> None:
        _check_name("RetryBudget", self.name)
        _check_numbers(self, "ratio", "cap")
        _check(self.ratio >= 0, "RetryBudget", "ratio", self.ratio, "at least 0")
        _check(self.cap > 0, "RetryBudget", "cap", self.cap, "more than 0")


@_remembers
@dataclass(frozen=True, slots=True)
class Retry:
    """Exponential backoff with full jitter. `attempts` counts all runs, the first one too.

    `on` are the errors that are worth another attempt, `never` the ones among them that are not: exception classes,
    and classes of error as in `on=(ErrorClass.TRANSIENT,)`. For a task, what is not said here comes from
    TASKFLOW_RETRY__…. `factor=1, jitter="none"` waits `base` each time; `delay(attempt)` gives the seconds itself, in
    place of base, factor and jitter. `on_result(result)` tells which results are failures (for calls, not for tasks).
    """

    attempts: int = 3
    on: tuple[type[BaseException] | ErrorClass, ...] = (Exception,)
    never: tuple[type[BaseException] | ErrorClass, ...] = ()
    base: float = 0.5
    factor: float = 2
    max_delay: float = 60
    jitter: Jitter = "full"
    budget: RetryBudget | None = None
    on_result: Callable[[Any], bool] | None = None
    delay: Callable[[int], float] | None = None
    said: frozenset[str] = dataclasses.field(default=frozenset(), init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_counts(self, "attempts")
        _check_numbers(self, "base", "factor", "max_delay")
        _check(self.base >= 0, "Retry", "base", self.base, "at least 0 seconds")
        _check(self.factor >= 1, "Retry", "factor", self.factor, "at least 1")
        _check(self.max_delay >= 0, "Retry", "max_delay", self.max_delay, "at least 0 seconds")
        kinds = get_args(Jitter)
        _check(self.jitter in kinds, "Retry", "jitter", self.jitter, f"one of {', '.join(map(repr, kinds))}")
        for field, value in (("on", self.on), ("never", self.never)):
            classes = value if isinstance(value, tuple) else (value,)
            ok = all(isinstance(c, ErrorClass) or _is_exception(c) for c in classes)
            _check(ok, "Retry", field, value, "an exception class, an ErrorClass, or a tuple of them")
            object.__setattr__(self, field, classes)
        for field, function in (("on_result", self.on_result), ("delay", self.delay)):
            _check(function is None or callable(function), "Retry", field, function, "a function")

    def covers(self, error: BaseException, classify: Callable[[BaseException], ErrorClass] | None = None) -> bool:
        """Whether `error` is worth another attempt. A group is only if every error in it is.

        `classify` gives the class of an error; without it, none is of a class that `on` or `never` names.
        """
        if _is_among(error, self.never, classify):
            return False
        if isinstance(error, BaseExceptionGroup):
            return all(self.covers(leaf, classify) for leaf in error.exceptions)
        return isinstance(error, Exception) and _is_among(error, self.on, classify)


def _is_exception(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, BaseException)


def _is_among(
    error: BaseException,
    kinds: tuple[type[BaseException] | ErrorClass, ...],
    classify: Callable[[BaseException], ErrorClass] | None,
) -> bool:
    for kind in kinds:
        if isinstance(kind, ErrorClass):
            if classify is not None and classify(error) is kind:
                return True
        elif isinstance(error, kind):
            return True
    return False


@_remembers
@dataclass(frozen=True, slots=True)
class CircuitBreaker:
    """Opens when `failure_rate` of at least `min_calls` in `window` seconds failed, or `consecutive` in a row.

    `window_calls` counts the last so many calls instead. `slow_call` seconds makes a call slow; `slow_rate` of slow
    calls opens too. Open for `open_for` seconds, growing to `max_open_for`; `close_after` good probes close it.
    `per_lane` gives every lane key a breaker of its own. For a task, what is not said here comes from
    TASKFLOW_BREAKER__….
    """

    name: str
    failure_rate: float = 0.5
    min_calls: int = 10
    window: float = 60
    consecutive: int = 5
    slow_call: float | None = None
    slow_rate: float = 0.8
    open_for: float = 10
    max_open_for: float = 300
    close_after: int = 2
    per_lane: bool = False
    window_calls: int | None = None
    said: frozenset[str] = dataclasses.field(default=frozenset(), init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        me = "CircuitBreaker"
        _check_name(me, self.name)
        _check_counts(self, "min_calls", "consecutive", "close_after")
        _check_numbers(self, "failure_rate", "window", "slow_rate", "open_for", "max_open_for")
        if self.slow_call is not None:
            _check_numbers(self, "slow_call")
            _check(self.slow_call > 0, me, "slow_call", self.slow_call, "more than 0 seconds")
        if self.window_calls is not None:
            _check_counts(self, "window_calls")
            ok = self.min_calls <= self.window_calls <= _MOST_CALLS
            _check(
                ok, me, "window_calls", self.window_calls, f"from min_calls to {_MOST_CALLS}, or the rate never counts"
            )
        _check(0 < self.failure_rate <= 1, me, "failure_rate", self.failure_rate, "in (0, 1]")
        _check(self.window >= 0.001, me, "window", self.window, "at least 0.001 seconds")
        _check(0 < self.slow_rate <= 1, me, "slow_rate", self.slow_rate, "in (0, 1]")
        _check(self.open_for > 0, me, "open_for", self.open_for, "more than 0 seconds")
        _check(self.max_open_for >= self.open_for, me, "max_open_for", self.max_open_for, "at least open_for")


@_remembers
@dataclass(frozen=True, slots=True)
class Bulkhead:
    """At most `limit` at once; a caller waits at most `wait` seconds for a slot (jobs wait in their queue instead)."""

    name: str
    limit: int
    wait: float = 0
    per_lane: bool = False
    said: frozenset[str] = dataclasses.field(default=frozenset(), init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_name("Bulkhead", self.name)
        _check_counts(self, "limit")
        _check_numbers(self, "wait")
        _check(self.wait >= 0, "Bulkhead", "wait", self.wait, "at least 0 seconds")


@_remembers
@dataclass(frozen=True, slots=True)
class RateLimit:
    """At most `rate` starts, as in "100/m" (s, m, h, d); `burst` at once, 1 unless said, then evenly spaced.

    A caller waits at most `wait` seconds for its turn (jobs wait in their queue instead).
    """

    name: str
    rate: str
    burst: int | None = None
    per_lane: bool = False
    wait: float = 0
    said: frozenset[str] = dataclasses.field(default=frozenset(), init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_name("RateLimit", self.name)
        interval_s = parse_rate(self.rate)
        if self.burst is not None:
            _check_counts(self, "burst")
            ok = bucket.is_countable(interval_s, self.burst)
            _check(ok, "RateLimit", "burst", self.burst, f"at most what {self.rate!r} allows in thirty years")
        _check_numbers(self, "wait")
        _check(self.wait >= 0, "RateLimit", "wait", self.wait, "at least 0 seconds")

    @property
    def interval_s(self) -> float:
        """Seconds between two starts at the full rate."""
        return parse_rate(self.rate)


def parse_rate(text: str) -> float:
    """Seconds between two starts at rate `text`: a count, "/", and s, m, h or d ("100/m" is 0.6).

    Raises `ConfigError`, also for less than one start in thirty years or more than 100,000 a second.
    """
    count, _, period = str(text).partition("/")
    try:
        number = float(count)
    except ValueError:
        number = 0.0
    period_s = _PERIODS.get(period.strip())
    if period_s is None or not 0 < number < math.inf:
        raise ConfigError(f"a rate is a count per s, m, h or d, as in '100/m'; got {text!r}")
    if not bucket.is_countable(period_s / number, burst=1):
        raise ConfigError(f"a rate is at most 100,000 starts a second, at least one in thirty years; got {text!r}")
    return period_s / number


@dataclass(frozen=True, slots=True)
class Timeout:
    """At most `seconds`: for all attempts together outside a `Retry`, for each of them inside."""

    seconds: float

    def __post_init__(self) -> None:
        _check_numbers(self, "seconds")
        _check(self.seconds > 0, "Timeout", "seconds", self.seconds, "more than 0")


def _injected() -> Exception:
    return ConnectionError("injected by Chaos")


@dataclass(frozen=True, slots=True)
class Chaos:
    """Faults and waits on purpose, to see what the rest makes of them. Does nothing until a rate is said.

    A share `fault_rate` of the calls raises what `fault()` makes (an exception class is such a function), a share
    `latency_rate` waits `latency` seconds first. `seed` makes it the same each time; `enabled` is asked at each call.
    """

    fault_rate: float = 0
    latency_rate: float = 0
    latency: float = 0
    fault: Callable[[], Exception] = _injected
    seed: int | None = None
    enabled: Callable[[], bool] | None = None

    def __post_init__(self) -> None:
        _check_numbers(self, "fault_rate", "latency_rate", "latency")
        _check(0 <= self.fault_rate <= 1, "Chaos", "fault_rate", self.fault_rate, "from 0 to 1")
        _check(0 <= self.latency_rate <= 1, "Chaos", "latency_rate", self.latency_rate, "from 0 to 1")
        _check(self.latency >= 0, "Chaos", "latency", self.latency, "at least 0 seconds")
        _check(callable(self.fault), "Chaos", "fault", self.fault, "a function that makes an exception, or its class")
