"""A circuit breaker for calls: the core's machine, a slow start after it has closed, and the words of a person."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from taskflow.core.breaker import Breaker, BreakerState, Denied, Mode, Permit, Snapshot, Verdict
from taskflow.core.ramp import Ramp
from taskflow.core.specs import ErrorClass
from taskflow.errors import CircuitOpen, Rejected
from taskflow.policies.classes import known_class
from taskflow.policies.scope import deadline_at

if TYPE_CHECKING:
    from taskflow.clock import Clock
    from taskflow.core.specs import CircuitBreaker

# Bad data says nothing about the dependency, and 429 that it lives and counts: that is for the rate limit.
_SAYS_NOTHING = frozenset({ErrorClass.PERMANENT, ErrorClass.THROTTLED, ErrorClass.CANCELLED})
_RAMP_RETRY_S = 1.0  # the calls that are let through in a slow start end soon, or the breaker opens again
_ROUNDING_S = 1e-6


Leave = tuple[Permit, Ramp | None, float]  # the breaker's permit, the ramp that counts the call, when it began


class Circuit:
    """The breaker of one dependency, shared by all pipelines of its registry that name it."""

    __slots__ = ("_breaker", "_clock", "_in_flight", "_ramp", "placed_at", "spec", "used_at")

    def __init__(self, spec: CircuitBreaker, clock: Clock) -> None:
        self.spec = spec
        self.placed_at = self.used_at = clock.now()
        self._clock = clock
        self._breaker = Breaker(spec)
        self._ramp: Ramp | None = None
        self._in_flight = 0

    # ---- for people ----

    def isolate(self) -> None:
        """Let no call pass, until `close()`."""
        self._force(Mode.ISOLATED)

    def close(self) -> None:
        """Let calls pass and count them anew. Ends `isolate`, `disable` and `metrics_only`."""
        self._force(Mode.AUTOMATIC)

    def disable(self) -> None:
        """Let every call pass and count none, until `close()`."""
        self._force(Mode.DISABLED)

    def metrics_only(self) -> None:
        """Let every call pass and count them all (see `snapshot`), until `close()`."""
        self._force(Mode.METRICS_ONLY)

    def snapshot(self) -> Snapshot:
        """State, mode and counts at this moment."""
        return self._breaker.snapshot(now=self._clock.now())

    def _force(self, mode: Mode) -> None:
        self._breaker.force(mode)
        self._ramp = None

    # ---- for pipelines ----

    def is_idle(self, now: float, idle_s: float) -> bool:
        """Whether nothing is lost by forgetting it: no call in flight, no word of a person, not open."""
        breaker = self._breaker
        if self._in_flight or breaker.mode is not Mode.AUTOMATIC:
            return False
        if breaker.state is BreakerState.CLOSED:
            return True
        return now - self.used_at >= idle_s and breaker.snapshot(now=now).retry_after_s == 0

    def admit(self, now: float, lease_s: float) -> Leave:
        """Leave for one call. Raises `CircuitOpen`."""
        self.used_at = now
        ramp = self._ramp
        if ramp is not None:
            ramp = self._climb(ramp, now)
        answer = self._breaker.admit(now=now, lease_s=lease_s)
        if isinstance(answer, Denied):
            raise self._open(answer.retry_after_s)
        self._in_flight += 1
        return answer, ramp, now

    def report(self, leave: Leave, verdict: Verdict, now: float) -> None:
        """Take the word of a call."""
        permit, ramp, began = leave
        self._in_flight -= 1
        if ramp is not None:
            ramp.end(is_good=verdict is Verdict.SUCCESS)
        moved = self._breaker.report(permit, verdict, now=now, took_s=now - began)
        if moved is not None:
            closed = moved.to is BreakerState.CLOSED
            self._ramp = Ramp(now=now, lasts_s=self.spec.open_for) if closed else None

    def _climb(self, ramp: Ramp, now: float) -> Ramp | None:
        if ramp.is_over(now):
            self._ramp = None
            return None
        if not ramp.try_start():
            raise CircuitOpen(
                f"{self.spec.name}: the circuit has just closed, and {ramp.limit} calls at once may prove it",
                retry_after_s=_RAMP_RETRY_S,
            )
        return ramp

    def _open(self, retry_after_s: float) -> CircuitOpen:
        if self._breaker.mode is Mode.ISOLATED:
            return CircuitOpen(f"{self.spec.name}: the circuit is isolated by hand", retry_after_s=retry_after_s)
        return CircuitOpen(
            f"{self.spec.name}: the circuit is {self._breaker.state}; try again in {retry_after_s:.3g} s",
            retry_after_s=retry_after_s,
        )


class CircuitGuard:
    """One pipeline's way through a circuit: what it counts as a failure, and how long its calls may take."""

    __slots__ = ("_circuit", "_clock", "_is_failure", "_lease_s", "_own_s")

    def __init__(
        self, circuit: Circuit, clock: Clock, *, own_s: float, is_failure: Callable[[Any], bool] | None
    ) -> None:
        self._circuit = circuit
        self._clock = clock
        self._own_s = own_s  # the least timeout of the pipeline: infinite if it has none
        self._lease_s = 0.0 if own_s == math.inf else own_s
        self._is_failure = is_failure

    def enter(self, now: float) -> Leave:
        return self._circuit.admit(now, self._lease_s)

    def leave(self, permit: Leave, now: float, error: BaseException | None, result: Any) -> BaseException | None:
        verdict = Verdict.SUCCESS
        if error is not None:
            verdict = self._judge(error, now, now - permit[2])
        elif self._is_failure is not None:
            try:
                verdict = Verdict.FAILURE if self._is_failure(result) else Verdict.SUCCESS
            except Exception:  # noqa: BLE001 - the `Retry` whose function it is asks it too, and lets that out
                verdict = Verdict.IGNORED
        self._circuit.report(permit, verdict, now)
        return error

    def _judge(self, error: BaseException, now: float, took_s: float) -> Verdict:
        """What an error says about the dependency."""
        if isinstance(error, TimeoutError | asyncio.CancelledError):
            if now + _ROUNDING_S >= deadline_at(self._clock):
                # The caller's time was over. That is no word on a dependency which had less than its own.
                slow_s = self._circuit.spec.slow_call
                enough_s = min(self._own_s, math.inf if slow_s is None else slow_s)
                return Verdict.FAILURE if took_s + _ROUNDING_S >= enough_s else Verdict.IGNORED
            return Verdict.FAILURE if isinstance(error, TimeoutError) else Verdict.IGNORED
        says_nothing = isinstance(error, Rejected) or known_class(error) in _SAYS_NOTHING
        return Verdict.IGNORED if says_nothing else Verdict.FAILURE
