"""A circuit under random interleavings of calls, their words, time and a person: what must hold after each step.

Each byte is a step. `INTERLEAVINGS=10000 pytest tests/policies/test_interleavings.py` plays ten thousand of them.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taskflow.core.breaker import BreakerState, Mode, Permit, Verdict
from taskflow.core.specs import CircuitBreaker
from taskflow.errors import CircuitOpen
from taskflow.policies.circuit import Circuit
from taskflow.testing import VirtualClock

if TYPE_CHECKING:
    from taskflow.core.ramp import Ramp

EXAMPLES = int(os.environ.get("INTERLEAVINGS", "1000"))
SPEC = CircuitBreaker("smtp", consecutive=2, min_calls=3, window=30, open_for=10, max_open_for=40, close_after=2)
CLOSED, OPEN, HALF_OPEN = BreakerState
VERDICTS = (Verdict.SUCCESS, Verdict.FAILURE, Verdict.IGNORED, Verdict.SUCCESS)
WAITS_S = (0.5, 3.0, 10.0, 41.0)
MODES = (Mode.AUTOMATIC, Mode.ISOLATED, Mode.DISABLED, Mode.METRICS_ONLY)


class Running(NamedTuple):
    permit: Permit
    ramp: Ramp | None
    generation: int
    lease_until: float  # of a probe


class World:
    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.circuit = Circuit(SPEC, self.clock)
        self.running: list[Running] = []

    def step(self, byte: int) -> None:
        before = self.circuit.snapshot()
        what, which = byte & 0b11, byte >> 2
        if what == 0 or (what == 1 and not self.running):
            self.admit()
        elif what == 1:
            self.report(self.running.pop(which % len(self.running)), VERDICTS[which >> 4])
        elif what == 2:
            self.clock._now += WAITS_S[which % 4]
        elif which > 56:  # people speak seldom
            self.force(MODES[which % 4])
        else:
            self.admit()
        after = self.circuit.snapshot()
        assert after.generation >= before.generation
        assert after.state is before.state or after.generation > before.generation
        assert after.calls >= after.failures >= 0

    def admit(self) -> None:
        now, before = self.clock.now(), self.circuit.snapshot()
        live = [call for call in self.running if call.generation == before.generation]
        probes = [call for call in live if call.permit.probe > 0 and call.lease_until > now]
        try:
            leave = self.circuit.admit(now, 0.0)
        except CircuitOpen as turned_away:
            wait_s = turned_away.retry_after_s
        else:
            wait_s = None
        if wait_s is not None:
            assert wait_s > 0
            ramped = [call for call in live if call.ramp is not None]
            assert before.state is not CLOSED or ramped, "a closed circuit denies only in its slow start"
            assert before.state is CLOSED or before.mode is Mode.ISOLATED or before.retry_after_s > 0
            return
        permit, ramp, _ = leave
        assert before.mode is not Mode.ISOLATED
        seen = self.circuit.snapshot()
        if seen.state is HALF_OPEN:
            assert permit.probe > 0
            assert probes == [], "two probes at once"
        if ramp is not None:
            assert len([call for call in self.running if call.ramp is ramp]) < ramp.limit
        self.running.append(Running(permit, ramp, seen.generation, now + SPEC.open_for))

    def report(self, call: Running, verdict: Verdict) -> None:
        before = self.circuit.snapshot()
        self.circuit.report((call.permit, call.ramp, self.clock.now()), verdict, self.clock.now())
        after = self.circuit.snapshot()
        if call.generation != before.generation:
            assert after == before, "a word from an earlier generation changed something"
        if verdict is Verdict.IGNORED:
            assert after.state is before.state

    def force(self, mode: Mode) -> None:
        word = {
            Mode.AUTOMATIC: self.circuit.close,
            Mode.ISOLATED: self.circuit.isolate,
            Mode.DISABLED: self.circuit.disable,
            Mode.METRICS_ONLY: self.circuit.metrics_only,
        }
        word[mode]()
        assert self.circuit.snapshot().mode is mode


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(min_size=5, max_size=60))
def test_any_interleaving_keeps_the_invariants(steps: bytes) -> None:
    world = World()
    for byte in steps:
        world.step(byte)

    # Whatever hangs, it recovers: time passes, and probes that succeed close it.
    if world.circuit.snapshot().mode is not Mode.AUTOMATIC:
        world.circuit.close()
    world.running.clear()
    if world.circuit.snapshot().state is CLOSED:
        for _ in range(SPEC.consecutive):
            world.clock._now += SPEC.open_for  # a slow start is over
            leave = world.circuit.admit(world.clock.now(), 0.0)
            world.circuit.report(leave, Verdict.FAILURE, world.clock.now())
    while world.circuit.snapshot().state is not CLOSED:
        world.clock._now += SPEC.max_open_for
        leave = world.circuit.admit(world.clock.now(), 0.0)
        world.circuit.report(leave, Verdict.SUCCESS, world.clock.now())
    assert world.circuit.snapshot().state is CLOSED
    world.circuit.admit(world.clock.now(), 0.0)
    with pytest.raises(CircuitOpen, match="1 calls at once"):  # it starts slowly
        world.circuit.admit(world.clock.now(), 0.0)
