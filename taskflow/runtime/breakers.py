"""The circuit breakers of one worker: each counts locally, one for each gate that a task's `breaker` makes.

An open breaker turns jobs away before they are counted as attempts. State is bounded: least recently used first, but
never one that is open.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple

from taskflow.core import events
from taskflow.core.breaker import Breaker, BreakerState, Denied, Permit, Verdict
from taskflow.core.gate import Hold, family
from taskflow.core.outcome import Failed, Outcome, Rejected, Succeeded

if TYPE_CHECKING:
    from collections.abc import Callable

    from taskflow.clock import Clock
    from taskflow.core.job import Claim
    from taskflow.core.specs import CircuitBreaker
    from taskflow.settings import TaskPolicy

_MOST = 10_000  # breakers: lane keys come from arguments, so their number has no bound of its own
_SPREAD = 0.1  # jobs that a breaker turned away come back over this share of the wait, not all at once


class Admitted(NamedTuple):
    """The permit of one attempt, and the breaker that gave it; None for a task without one."""

    breaker: Breaker | None = None
    permit: Permit | None = None
    gate: str = ""


_FREE = Admitted()


class Breakers:
    """Asked before an attempt, told after it."""

    def __init__(self, clock: Clock, emit: Callable[[events.Event], None], jitter: Callable[[], float]) -> None:
        self._clock = clock
        self._emit = emit
        self._jitter = jitter
        self._breakers: OrderedDict[str, Breaker] = OrderedDict()

    def admit(self, claim: Claim, policy: TaskPolicy) -> Admitted | Rejected:
        """Leave to start, or how long to wait."""
        spec = policy.breaker
        if spec is None:
            return _FREE
        gate = next((name for name in claim.gates if family(name) == spec.name), spec.name)
        breaker = self._find(gate, spec)
        before = breaker.state
        answer = breaker.admit(now=self._clock.now())
        if isinstance(answer, Denied):
            return Rejected("circuit_open", answer.retry_after_s * (1 + self._jitter() * _SPREAD))
        if breaker.state is not before:
            self._emit(events.BreakerMoved(spec.name, gate, breaker.state))
        return Admitted(breaker, answer, gate)

    def report(self, admitted: Admitted, outcome: Outcome | None, run_s: float) -> Hold | None:
        """Take the outcome of what was admitted. Returns the hold of its gate, if the breaker opened."""
        breaker, permit, gate = admitted
        if breaker is None or permit is None:
            return None
        moved = breaker.report(permit, _verdict(outcome), now=self._clock.now(), took_s=run_s)
        if moved is None:
            return None
        self._emit(events.BreakerMoved(breaker.spec.name, gate, moved.to))
        if moved.to is BreakerState.OPEN:
            return Hold(moved.open_for_s, "circuit_open")
        return None

    def _find(self, gate: str, spec: CircuitBreaker) -> Breaker:
        found = self._breakers.get(gate)
        if found is None or found.spec != spec:  # a spec that was tuned starts afresh
            found = self._breakers[gate] = Breaker(spec)
            self._forget_some()
        self._breakers.move_to_end(gate)
        return found

    def _forget_some(self) -> None:
        for gate in list(self._breakers)[: max(0, len(self._breakers) - _MOST)]:
            if self._breakers[gate].state is BreakerState.CLOSED:
                del self._breakers[gate]


def _verdict(outcome: Outcome | None) -> Verdict:
    """What an outcome says about the dependency. Bad data, cancellation and shutdown say nothing."""
    match outcome:
        case Succeeded():
            return Verdict.SUCCESS
        case Failed(retryable=True):
            return Verdict.FAILURE
        case _:
            return Verdict.IGNORED
