"""The breaker against a model that keeps every call in a list, under random interleavings of calls and their words.

Probes are cancelled, hung and late; permits of earlier generations report at any time, and more than once.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any, NamedTuple

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from taskflow.core.breaker import Breaker, BreakerState, Denied, Permit, Transition, Verdict
from taskflow.core.specs import CircuitBreaker

CLOSED, OPEN, HALF_OPEN = BreakerState

SPECS = st.builds(
    CircuitBreaker,
    st.just("smtp"),
    failure_rate=st.sampled_from([0.3, 0.5, 1.0]),
    min_calls=st.integers(1, 5),
    window=st.sampled_from([5.0, 60.0]),
    consecutive=st.integers(1, 5),
    slow_call=st.sampled_from([None, 1.0]),
    slow_rate=st.sampled_from([0.5, 1.0]),
    open_for=st.sampled_from([1.0, 10.0]),
    max_open_for=st.sampled_from([10.0, 45.0]),
    close_after=st.integers(1, 3),
)


class Given(NamedTuple):
    """A permit, and what the model knows of it."""

    permit: Permit
    era: int  # how many transitions there had been
    lease_until: float | None  # None for an ordinary call


class Call(NamedTuple):
    slice: int
    is_failure: bool
    is_slow: bool


class BreakerModel(RuleBasedStateMachine):
    @initialize(spec=SPECS, now=st.sampled_from([0.0, 1_000.0, 1_000_000.0]))
    def start(self, spec: CircuitBreaker, now: float) -> None:
        self.spec, self.now = spec, now
        self.breaker = Breaker(spec)
        self.given: list[Given] = []
        self.state, self.era = CLOSED, 0
        self.calls: list[Call] = []
        self.in_a_row = self.outages = self.good = 0
        self.until = 0.0
        self.probe: Given | None = None

    def open_for_s(self) -> float:
        return min(self.spec.max_open_for, self.spec.open_for * 2.0 ** (self.outages - 1))

    def go(self, state: BreakerState) -> None:
        self.state, self.era = state, self.era + 1

    # ---- time and calls ----

    @rule(seconds=st.sampled_from([0.0, 0.1, 0.5, 1.0, 4.0, 10.0, 61.0, 300.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(lease_s=st.sampled_from([0.0, 3.0, 30.0]))
    def ask(self, lease_s: float) -> None:
        answer = self.breaker.admit(now=self.now, lease_s=lease_s)

        if self.state is CLOSED:
            assert isinstance(answer, Permit)
            assert answer.probe == 0
            self.given.append(Given(answer, self.era, None))
        elif self.now < self.until:
            bound = math.inf if self.state is OPEN else self.spec.open_for
            assert answer == Denied(min(self.until - self.now, bound))
            assert answer.retry_after_s > 0
        else:
            assert isinstance(answer, Permit)
            assert answer.probe > 0
            self.note_probe(answer, lease_s)

    def note_probe(self, permit: Permit, lease_s: float) -> None:
        # Two probes at once would be two calls to a dependency that may be down: never while a lease is alive.
        assert self.probe is None or self.probe.lease_until is None or self.probe.lease_until <= self.now
        if self.state is OPEN:
            self.go(HALF_OPEN)
            self.good = 0
        elif self.probe is not None:
            self.outages += 1
        self.until = self.now + max(lease_s, self.open_for_s())
        self.probe = Given(permit, self.era, self.until)
        self.given.append(self.probe)

    @precondition(lambda self: self.given)
    @rule(data=st.data(), verdict=st.sampled_from(Verdict), took_s=st.sampled_from([0.0, 0.99, 1.0, 50.0]))
    def report(self, data: st.DataObject, verdict: Verdict, took_s: float) -> None:
        index = data.draw(st.integers(0, len(self.given) - 1))
        is_last_word = data.draw(st.booleans())
        told = self.given[index]
        if told.lease_until is None or is_last_word:  # an ordinary call reports once; a probe may try again
            del self.given[index]
        before = self.snapshot()

        moved = self.breaker.report(told.permit, verdict, now=self.now, took_s=took_s)

        is_slow = self.spec.slow_call is not None and took_s >= self.spec.slow_call
        if told.era != self.era or (told.lease_until is not None and told is not self.probe):
            assert moved is None
            assert self.snapshot() == before, "a stale word changed something"
        elif told.lease_until is None:
            assert moved == self.expect_call(verdict, is_slow=is_slow)
        else:
            assert moved == self.expect_probe(verdict, is_slow=is_slow)

    def expect_call(self, verdict: Verdict, *, is_slow: bool) -> Transition | None:
        if verdict is Verdict.IGNORED:
            return None
        spec, is_failure = self.spec, verdict is Verdict.FAILURE
        newest = math.floor(self.now * 10 / spec.window)
        self.calls.append(Call(newest, is_failure, is_slow))
        self.in_a_row = self.in_a_row + 1 if is_failure else 0
        recent = [call for call in self.calls if call.slice > newest - 10]
        rates = (
            sum(call.is_failure for call in recent) / len(recent) >= spec.failure_rate,
            sum(call.is_slow for call in recent) / len(recent) >= spec.slow_rate,
        )
        if self.in_a_row >= spec.consecutive or (len(recent) >= spec.min_calls and any(rates)):
            return self.expect_open()
        return None

    def expect_probe(self, verdict: Verdict, *, is_slow: bool) -> Transition | None:
        self.probe, self.until = None, self.now
        if verdict is Verdict.IGNORED:
            return None
        if verdict is Verdict.FAILURE or is_slow:
            return self.expect_open()
        self.good += 1
        if self.good < self.spec.close_after:
            return None
        self.go(CLOSED)
        self.outages = self.in_a_row = 0
        self.calls.clear()
        return Transition(CLOSED)

    def expect_open(self) -> Transition:
        self.outages += 1
        self.go(OPEN)
        self.until = self.now + self.open_for_s()
        return Transition(OPEN, self.open_for_s())

    # ---- what always holds ----

    def snapshot(self) -> dict[str, Any]:
        return dataclasses.asdict(self.breaker)

    @invariant()
    def the_state_is_the_models(self) -> None:
        if hasattr(self, "breaker"):
            assert self.breaker.state is self.state

    @invariant()
    def the_generation_grows_with_every_transition(self) -> None:
        if hasattr(self, "breaker"):
            assert self.breaker.generation == self.era

    @invariant()
    def it_always_admits_again_when_its_time_is_over(self) -> None:
        if hasattr(self, "breaker"):
            later = copy.copy(self.breaker).admit(now=max(self.now, self.until))  # `admit` changes no list

            assert isinstance(later, Permit)


TestBreakerAgainstItsModel = BreakerModel.TestCase
TestBreakerAgainstItsModel.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
