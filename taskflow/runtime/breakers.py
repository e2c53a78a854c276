"""The circuit breakers of one worker: each counts locally, one for each gate that a task's `breaker` makes.

An open breaker turns jobs away before they are counted as attempts, and holds the gate, so that their siblings wait in
the queue instead of being claimed and turned away one after the other. State is bounded: the least recently used goes
first, one that is not closed only if there is no other.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from taskflow.core import events
from taskflow.core.breaker import Breaker, BreakerState, Denied, Permit, Verdict
from taskflow.core.gate import family
from taskflow.core.outcome import ErrorRecord, Failed, Outcome, Rejected, Succeeded
from taskflow.runtime.walk import GateHold

if TYPE_CHECKING:
    from collections.abc import Callable

    from taskflow.clock import Clock
    from taskflow.core.job import Claim
    from taskflow.core.specs import CircuitBreaker
    from taskflow.settings.tuning import TaskPolicy

_MOST = 10_000  # breakers: lane keys come from arguments, so their number has no bound of its own
_LEAST_S = 0.1  # a wait that rounds to nothing would have the job claimed again at once, and again
_PROBING_S = 1.0  # how long siblings wait at the gate while a probe is under way: its word may come at any time
_SEARCHED = 100  # breakers that are looked at for one to forget
_SPREAD = 0.1  # jobs that a breaker turned away come back over this share of the wait, not all at once


class Admitted(NamedTuple):
    """The permit of one attempt, and the breaker that gave it; None for a task without one."""

    breaker: Breaker | None = None
    permit: Permit | None = None
    gate: str = ""


class TurnedAway(NamedTuple):
    """No attempt: how long the job waits, and the hold of its gate."""

    outcome: Rejected
    hold: GateHold | None


_FREE = Admitted()


class Breakers:
    """Asked before an attempt, told after it."""

    def __init__(self, clock: Clock, emit: Callable[[events.Event], None], jitter: Callable[[], float]) -> None:
        self._clock = clock
        self._emit = emit
        self._jitter = jitter
        self._breakers: OrderedDict[str, Breaker] = OrderedDict()

    def admit(self, claim: Claim, policy: TaskPolicy) -> Admitted | TurnedAway:
        """Leave to start, or how long to wait."""
        spec = policy.breaker
        if spec is None:
            return _FREE
        gate = next((name for name in claim.gates if family(name) == spec.name), spec.name)
        breaker = self._find(gate, spec)
        before = breaker.state
        answer = breaker.admit(now=self._clock.now(), lease_s=policy.timeout_s)
        if isinstance(answer, Denied):
            wait_s = max(_LEAST_S, answer.retry_after_s)
            held_s = wait_s if breaker.state is BreakerState.OPEN else min(wait_s, _PROBING_S)
            hold = GateHold(gate, held_s, "circuit_open") if gate in claim.gates else None
            return TurnedAway(Rejected("circuit_open", wait_s * (1 + self._jitter() * _SPREAD)), hold)
        if breaker.state is not before:
            self._emit(events.BreakerMoved(spec.name, gate, breaker.state))
        return Admitted(breaker, answer, gate)

    def report(self, admitted: Admitted, outcome: Outcome | None, run_s: float) -> GateHold | None:
        """Take the outcome of what was admitted. Returns the hold of its gate, if the breaker opened."""
        breaker, permit, gate = admitted
        if breaker is None or permit is None:
            return None
        moved = breaker.report(permit, _verdict(outcome), now=self._clock.now(), took_s=run_s)
        if moved is None:
            return None
        self._emit(events.BreakerMoved(breaker.spec.name, gate, moved.to))
        return GateHold(gate, moved.open_for_s, "circuit_open") if moved.to is BreakerState.OPEN else None

    def _find(self, gate: str, spec: CircuitBreaker) -> Breaker:
        found = self._breakers.get(gate)
        if found is None:
            found = self._breakers[gate] = Breaker(spec)
            self._forget_one()
        else:
            self._breakers.move_to_end(gate)
            if found.spec is not spec:
                # Another task of the same dependency, tuned otherwise: one dependency has one record, and each of its
                # callers judges it by its own numbers.
                found.spec = spec
        return found

    def _forget_one(self) -> None:
        if len(self._breakers) > _MOST:
            oldest = list(islice(self._breakers, _SEARCHED))
            closed = (gate for gate in oldest if self._breakers[gate].state is BreakerState.CLOSED)
            del self._breakers[next(closed, oldest[0])]


def _verdict(outcome: Outcome | None) -> Verdict:
    """What an outcome says about the dependency. Bad data, cancellation and shutdown say nothing."""
    match outcome:
        case Succeeded():
            return Verdict.SUCCESS
        case Failed(retryable=True) | Failed(ErrorRecord(kind="timeout")):
            return Verdict.FAILURE
        case _:
            return Verdict.IGNORED
