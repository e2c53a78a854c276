"""A circuit breaker: trips on a failure rate, a slow-call rate or failures in a row; fenced and leased probes.

Every permit carries the generation in which it was given: a word from an earlier one counts for nothing (gobreaker's
idea). A probe is a lease: one that never reports back gives way after the open time (Polly's re-armed probe).
The machine returns its transitions; the shell announces them. Never await between its calls.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from taskflow.core.backoff import exponential
from taskflow.core.window import CallWindow, Window

if TYPE_CHECKING:
    from taskflow.core.specs import CircuitBreaker


class BreakerState(StrEnum):
    """Closed: calls pass. Open: none does. Half-open: one probe at a time."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Mode(StrEnum):
    """Who decides: the breaker, or a person who has forced it."""

    AUTOMATIC = "automatic"
    ISOLATED = "isolated"  # no call passes
    DISABLED = "disabled"  # every call passes, none is counted
    METRICS_ONLY = "metrics_only"  # every call passes and is counted: to see what the numbers would do


class Verdict(StrEnum):
    """What a call says about its dependency. `IGNORED`: nothing (it was cancelled, or the data was bad)."""

    SUCCESS = "success"
    FAILURE = "failure"
    IGNORED = "ignored"


class Permit(NamedTuple):
    """Leave to make one call; its word comes back through `Breaker.report`."""

    generation: int
    probe: int = 0  # number of the probe, 0 for an ordinary call


class Denied(NamedTuple):
    """No call now; look again in `retry_after_s`."""

    retry_after_s: float


class Transition(NamedTuple):
    """The breaker went to `to`; `open_for_s` is how long it stays open."""

    to: BreakerState
    open_for_s: float = 0.0


class Snapshot(NamedTuple):
    """What a breaker knows at an instant. The counts are those of its window."""

    state: BreakerState
    mode: Mode
    generation: int
    calls: int
    failures: int
    slow: int
    consecutive: int
    retry_after_s: float  # until the next probe may go; 0 while calls pass


_FIRST = Permit(0)
_UNCOUNTED = -1  # the probe number of calls whose word is not asked for


@dataclass(slots=True)
class Breaker:
    """The state machine of one `CircuitBreaker` spec. `now` is in seconds, of any monotonic clock."""

    spec: CircuitBreaker
    state: BreakerState = BreakerState.CLOSED
    generation: int = 0  # grows with every transition
    mode: Mode = Mode.AUTOMATIC
    opened: int = 0  # times in a row that it opened or lost a probe, without a recovery in between
    _until: float = 0.0  # open: when to probe; half-open: when the probe's lease ends
    _probe: int = 0  # number of the probe in flight, 0 for none
    _probes: int = 0
    _good: int = 0
    _consecutive: int = 0
    _window: Window | CallWindow = field(init=False)
    _pass: Permit = _FIRST  # every ordinary call of a generation has the same one

    def __post_init__(self) -> None:
        length = self.spec.window_calls
        self._window = Window(self.spec.window) if length is None else CallWindow(length)

    def admit(self, *, now: float, lease_s: float = 0.0) -> Permit | Denied:
        """Leave to make a call now, or the time to wait. Past the open time the first caller becomes the probe.

        `lease_s` is how long the call may take (its timeout): a probe is not given up before that.
        """
        if self.state is BreakerState.CLOSED:
            return self._pass
        if self.mode is Mode.ISOLATED:
            return Denied(self.spec.open_for)  # nobody knows: look again
        if now < self._until:
            left_s = self._until - now
            # A probe may come back long before its lease ends.
            return Denied(left_s if self.state is BreakerState.OPEN else min(left_s, self.spec.open_for))
        if self.state is BreakerState.OPEN:
            self._go(BreakerState.HALF_OPEN)
            self._good = 0
        elif self._probe:
            # Lost, or slower than its lease. Were the next lease no longer, slow probes would replace one another for
            # ever.
            self.opened += 1
        # This call is the probe. Should it never report back, the next one may try when its lease ends.
        self._probes += 1
        self._probe = self._probes
        self._until = now + max(lease_s, self._open_for_s())
        return Permit(self.generation, self._probe)

    def report(self, permit: Permit, verdict: Verdict, *, now: float, took_s: float = 0.0) -> Transition | None:
        """Take the word of the call that had `permit`, and return the transition that it caused."""
        if permit is not self._pass and permit != (self.generation, self._probe):
            return None
        if permit.probe == _UNCOUNTED:
            return None
        is_failure = verdict is Verdict.FAILURE
        is_slow = self.spec.slow_call is not None and took_s >= self.spec.slow_call
        if permit.probe:
            self._probe = 0
            self._until = now  # the next probe may go at once
        if verdict is Verdict.IGNORED:
            return None
        if permit.probe:
            return self._judge_probe(is_good=not is_failure and not is_slow, now=now)
        self._window.add(now=now, is_failure=is_failure, is_slow=is_slow)
        self._consecutive = self._consecutive + 1 if is_failure else 0
        return self._open(now) if self.mode is Mode.AUTOMATIC and self._is_tripped() else None

    def force(self, mode: Mode) -> None:
        """Do as a person says, until the next word; `AUTOMATIC` closes it. What was counted is forgotten."""
        self.mode = mode
        self.opened = self._consecutive = self._probe = 0
        self._window.clear()
        self._go(BreakerState.OPEN if mode is Mode.ISOLATED else BreakerState.CLOSED)
        if mode is Mode.DISABLED:
            self._pass = Permit(self.generation, _UNCOUNTED)

    def snapshot(self, *, now: float) -> Snapshot:
        """What it knows, without changing it but for what has left its window."""
        self._window.advance(now)
        seen = self._window
        left_s = self.spec.open_for if self.mode is Mode.ISOLATED else max(0.0, self._until - now)
        return Snapshot(
            self.state,
            self.mode,
            self.generation,
            seen.calls,
            seen.failures,
            seen.slow,
            self._consecutive,
            0.0 if self.state is BreakerState.CLOSED else left_s,
        )

    def _judge_probe(self, *, is_good: bool, now: float) -> Transition | None:
        if not is_good:
            return self._open(now)
        self._good += 1
        return self._close() if self._good >= self.spec.close_after else None

    def _is_tripped(self) -> bool:
        spec, seen = self.spec, self._window
        if not (self._consecutive or seen.failures or seen.slow):
            return False  # as nearly always
        if self._consecutive >= spec.consecutive:
            return True
        if seen.calls < spec.min_calls:
            return False
        # Quotients, not products: 7 of 100 is exactly 0.07, and 0.07 * 100 is more than 7.
        return seen.failures / seen.calls >= spec.failure_rate or seen.slow / seen.calls >= spec.slow_rate

    def _open_for_s(self) -> float:
        # Each failed recovery doubles the open time, as Envoy's and Finagle's growing ejection.
        return exponential(self.opened, base_s=self.spec.open_for, factor=2, cap_s=self.spec.max_open_for)

    def _open(self, now: float) -> Transition:
        self.opened += 1
        open_for_s = self._open_for_s()
        self._until = now + open_for_s
        self._go(BreakerState.OPEN)
        return Transition(BreakerState.OPEN, open_for_s)

    def _close(self) -> Transition:
        self.opened = 0
        self._consecutive = 0
        self._window.clear()
        self._go(BreakerState.CLOSED)
        return Transition(BreakerState.CLOSED)

    def _go(self, state: BreakerState) -> None:
        self.state = state
        self.generation += 1
        self._pass = Permit(self.generation)
