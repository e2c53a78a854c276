"""The circuit breakers of one worker: it counts outcomes here, and tells the gate only what changes it.

Whether a dependency's jobs may be claimed is the gate's word, one for the whole deployment (`core.gate`): an open
breaker is a held gate, a probe is the one claim that it admits, a recovery is its ramp. Here is counted what is claimed
while the gate is closed; what is claimed during a recovery is the gate's own to judge, one word for each call.

A job that was submitted before its breaker was declared does not have the gate. For those this worker's own breaker is
all there is: it turns them away before they are counted as attempts, and sends a probe of its own.

A few jobs may use up their attempts before their breaker has seen enough to trip. So a job that is about to fail for
the last time, with an error of its dependency and where nothing but failures was seen, trips the gate instead, and
waits with the others.

State is bounded: the least recently used goes first, one that is not closed only if there is no other.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from taskflow.core import events
from taskflow.core.breaker import Breaker, BreakerState, Denied, Permit, Verdict
from taskflow.core.gate import TRIPPED, Recovery, Trip, Word, of_family, open_for_s
from taskflow.core.outcome import ErrorRecord, Failed, Outcome, Rejected, Succeeded
from taskflow.runtime.words import GateWord

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from taskflow.clock import Clock
    from taskflow.core.gate import Gate
    from taskflow.core.job import Claim
    from taskflow.core.specs import CircuitBreaker
    from taskflow.settings.tuning import TaskPolicy

_MOST = 10_000  # breakers: lane keys come from arguments, so their number has no bound of its own
_LEAST_S = 0.1  # a wait that rounds to nothing would have the job claimed again at once, and again
_SEARCHED = 100  # breakers that are looked at for one to forget
_SPREAD = 0.1  # jobs that a breaker turned away come back over this share of the wait, not all at once
_MOST_MET = 100  # characters of an error's type
_SLOW = "slow_call"
_WORD_BITS = 53  # of a word's number: every broker can keep it exactly


@dataclass(slots=True)
class View:
    """What this worker knows of one gate."""

    gate: str
    has_gate: bool  # whether the jobs have it; else `breaker` is all there is
    breaker: Breaker  # counts what was claimed in `era` while the gate was closed
    era: int = 0
    until: float = 0.0  # claims of an era before it are turned away until then: they were made before it tripped
    probed: int = 0  # the last era of which a probe was seen here
    good_at: float = float("-inf")  # when a call last went well
    met: str = ""  # what the last bad call met: the type of its error, `slow_call`

    def begin(self, era: int, until: float = 0.0) -> None:
        """What was counted in another era is void."""
        self.era, self.until = era, until
        self.breaker = Breaker(self.breaker.spec)


class Admitted(NamedTuple):
    """Leave for one attempt, and what its word will be about. It has a permit or a recovery."""

    view: View
    spec: CircuitBreaker
    era: int = 0
    permit: Permit | None = None
    recovery: Recovery | None = None  # while the gate recovers
    is_last: bool = False  # whether the job has failed before, and dies if it fails again

    @property
    def is_probe(self) -> bool:
        """Whether all that is known of the dependency hangs on this call."""
        return self.recovery is not None and self.recovery.ramp == 1


class Judged(NamedTuple):
    """The outcome for the job, and what its gate must hear first."""

    outcome: Outcome
    word: GateWord | None = None


class Breakers:
    """Asked before an attempt, told after it; and told what the gate said to its words."""

    def __init__(self, clock: Clock, emit: Callable[[events.Event], None], rng: random.Random) -> None:
        self._clock = clock
        self._emit = emit
        self._rng = rng
        self._views: OrderedDict[tuple[str, bool], View] = OrderedDict()

    def admit(self, claim: Claim, policy: TaskPolicy, spec: CircuitBreaker) -> Admitted | Rejected:
        """Leave to start, or how long to wait. `spec` is the policy's breaker."""
        gate = of_family(claim.gates, spec.name)
        if gate is None:
            return self._admit_alone(self._find(spec.name, spec, has_gate=False), spec, policy.timeout_s)
        view = self._find(gate, spec, has_gate=True)
        recovery = next((one for one in claim.recoveries if one.gate == gate), None)
        era = 0 if recovery is None else recovery.era
        if era != view.era:
            left_s = view.until - self._clock.now()
            if era < view.era and left_s > 0:
                return self._turned_away(left_s)
            view.begin(era)
        if recovery is None or recovery.ramp is None:
            permit = view.breaker.admit(now=self._clock.now())
            assert isinstance(permit, Permit)  # it is replaced when it trips
            return Admitted(view, spec, era, permit, is_last=0 < claim.attempts >= policy.retry.attempts - 1)
        if recovery.ramp == 1 and view.probed != era:
            view.probed = era
            self._emit(events.BreakerMoved(spec.name, gate, BreakerState.HALF_OPEN))
        return Admitted(view, spec, era, recovery=recovery)

    def report(self, admitted: Admitted, outcome: Outcome, run_s: float) -> Judged:
        """Take the outcome of what was admitted."""
        view, permit, recovery, spec = admitted.view, admitted.permit, admitted.recovery, admitted.spec
        verdict, now = _verdict(outcome), self._clock.now()
        if verdict is Verdict.IGNORED:
            self.give_back(admitted)
            return Judged(outcome)
        is_bad = isinstance(outcome, Failed) or (spec.slow_call is not None and run_s >= spec.slow_call)
        if is_bad:
            view.met = outcome.error.type[:_MOST_MET] if isinstance(outcome, Failed) else _SLOW
        if recovery is not None:
            word = Word(recovery.era, self._word(), not is_bad, spec, view.met if is_bad else "")
            if recovery.ramp == 1:
                outcome = self._spared(outcome, open_for_s(recovery.failed + 1, spec))
            return Judged(outcome, GateWord(view.gate, word))
        assert permit is not None
        if not view.has_gate:
            moved = view.breaker.report(permit, verdict, now=now, took_s=run_s)
            if moved is not None:
                cause = view.met if moved.to is BreakerState.OPEN else ""
                self._emit(events.BreakerMoved(spec.name, view.gate, moved.to, cause))
            return Judged(self._spared(outcome, spec.open_for) if permit.probe else outcome)
        if verdict is Verdict.SUCCESS:
            view.good_at = now
        is_all_bad = admitted.is_last and _is_broken(outcome) and now - view.good_at >= spec.window
        if admitted.era != view.era:  # it was made before the gate tripped
            return Judged(self._spared(outcome, spec.open_for) if is_all_bad else outcome)
        moved = view.breaker.report(permit, verdict, now=now, took_s=run_s)
        if moved is None and not is_all_bad:
            return Judged(outcome)
        trip = GateWord(view.gate, Trip(view.era, self._word(), spec, view.met))
        view.begin(view.era + 1, now + spec.open_for)
        return Judged(self._spared(outcome, spec.open_for) if is_all_bad else outcome, trip)

    def give_back(self, admitted: Admitted) -> None:
        """What was admitted was not made, or says nothing."""
        if admitted.permit is not None and not admitted.view.has_gate:
            admitted.view.breaker.report(admitted.permit, Verdict.IGNORED, now=self._clock.now())

    def heard(self, told: GateWord, gate: Gate) -> None:
        """The gate as it is after a word of this worker. Whoever's word moved it announces that."""
        change = told.change
        spec = change.spec
        view = self._views.get((gate.name, True))
        hold_s = open_for_s(gate.failed, spec)
        if view is not None and gate.era != view.era:
            view.begin(gate.era, 0.0 if gate.ramp is None else self._clock.now() + hold_s)
        if gate.word != change.word:
            return  # another's was first
        if gate.era != change.era:
            self._emit(events.BreakerMoved(spec.name, gate.name, BreakerState.OPEN, change.cause))
            self._emit(events.GateHeld(gate.name, hold_s, TRIPPED))
        elif gate.ramp is None:
            self._emit(events.BreakerMoved(spec.name, gate.name, BreakerState.CLOSED))

    def _spared(self, outcome: Outcome, wait_s: float) -> Outcome:
        """The outcome for the job where its dependency is to blame: no attempt, it waits until others have probed."""
        return self._turned_away(wait_s, outcome.error) if isinstance(outcome, Failed) else outcome

    def _admit_alone(self, view: View, spec: CircuitBreaker, lease_s: float) -> Admitted | Rejected:
        """As `admit`, by this worker's own breaker."""
        before = view.breaker.state
        answer = view.breaker.admit(now=self._clock.now(), lease_s=lease_s)
        if isinstance(answer, Denied):
            return self._turned_away(answer.retry_after_s)
        if view.breaker.state is not before:
            self._emit(events.BreakerMoved(spec.name, view.gate, view.breaker.state))
        return Admitted(view, spec, permit=answer)

    def _turned_away(self, wait_s: float, error: ErrorRecord | None = None) -> Rejected:
        return Rejected(TRIPPED, max(_LEAST_S, wait_s) * (1 + self._rng.random() * _SPREAD), error)

    def _word(self) -> int:
        return self._rng.getrandbits(_WORD_BITS) or 1

    def _find(self, gate: str, spec: CircuitBreaker, *, has_gate: bool) -> View:
        key = (gate, has_gate)
        found = self._views.get(key)
        if found is None:
            found = self._views[key] = View(gate, has_gate, Breaker(spec))
            self._forget_one()
        else:
            self._views.move_to_end(key)
            if found.breaker.spec is not spec:
                # Another task of the same dependency, tuned otherwise: one dependency has one record, and each of its
                # callers judges it by its own numbers.
                found.breaker.spec = spec
        return found

    def _forget_one(self) -> None:
        if len(self._views) > _MOST:
            now = self._clock.now()
            oldest = list(islice(self._views.items(), _SEARCHED))
            calm = (key for key, view in oldest if view.until <= now and view.breaker.state is BreakerState.CLOSED)
            del self._views[next(calm, oldest[0][0])]


def _is_broken(outcome: Outcome) -> bool:
    """Whether it is the dependency that failed, and not the job's data."""
    return isinstance(outcome, Failed) and outcome.error.kind in {"transient", "timeout"}


def _verdict(outcome: Outcome) -> Verdict:
    """What an outcome says about the dependency. Bad data, cancellation and shutdown say nothing."""
    match outcome:
        case Succeeded():
            return Verdict.SUCCESS
        case Failed(ErrorRecord(kind="bad_data")):
            return Verdict.IGNORED
        case Failed(retryable=True) | Failed(ErrorRecord(kind="timeout")):
            return Verdict.FAILURE
        case _:
            return Verdict.IGNORED
