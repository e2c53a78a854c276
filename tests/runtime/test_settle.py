"""What became of a job is told until it is heard: once, fenced, and in spite of its neighbours."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import pytest

from taskflow.brokers.base import ClaimRequest, Retention, Settlement, SettleReply
from taskflow.brokers.memory import MemoryBroker
from taskflow.core import events
from taskflow.core.decision import Complete, Decision, Retry, Snooze
from taskflow.core.gate import Gate, Trip, Word
from taskflow.core.job import Claim, JobState
from taskflow.core.outcome import ErrorRecord
from taskflow.core.specs import CircuitBreaker
from taskflow.errors import BrokerError
from taskflow.runtime.calls import BrokerCalls
from taskflow.runtime.settle import Settler
from taskflow.runtime.walk import Walk
from taskflow.runtime.words import GateHold, GateWord
from taskflow.testing import Faults, VirtualClock, all_blocked
from tests.runtime.made import put

pytestmark = pytest.mark.anyio


class Bench:
    """A settler at work on a memory broker."""

    def __init__(self, broker: Any = None) -> None:
        self.clock = VirtualClock()
        self.memory = MemoryBroker(self.clock)
        self.faults = Faults(self.memory)
        self.events: list[Any] = []
        self.held: dict[str, int] = {}
        rng = random.Random(1)
        broker = self.faults if broker is None else broker(self.memory)
        calls = BrokerCalls(self.clock, rng, self.events.append)
        self.told = 0
        self.heard: list[tuple[GateWord, Gate]] = []
        self.settler = Settler(
            broker, calls, self.clock, self.events.append, self._forget, self._on_told, self._on_word
        )
        self.task = asyncio.create_task(self.settler.run())

    def _on_told(self) -> None:
        self.told += 1

    def _on_word(self, word: GateWord, gate: Gate) -> None:
        self.heard.append((word, gate))

    def _forget(self, walks: Sequence[Walk]) -> None:
        for walk in walks:
            self.held.pop(walk.claim.job_id, None)

    async def claim(self, *ids: str, **changes: Any) -> list[Claim]:
        await put(self.memory, *ids, **changes)
        claims = await self.memory.claim(ClaimRequest("w", ("default",), 100, 100, 1, 10.0))
        self.held.update((claim.job_id, claim.token) for claim in claims)
        return claims

    def end(self, claim: Claim, decision: Decision | None = None, hold: GateHold | GateWord | None = None) -> None:
        walk = Walk(claim, 0.0)
        walk.decision, walk.total_s, walk.hold = decision or Complete(), 0.0, hold
        self.settler.push(walk)

    def said(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def settled(self) -> list[str]:
        return [job.claim.job_id for event in self.said(events.JobsSettled) for job in event.jobs]

    async def states(self, *ids: str) -> list[JobState]:
        found = await self.memory.states(ids)
        return [found[job_id] for job_id in ids]

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])


async def test_what_piles_up_during_one_round_trip_is_the_next_batch() -> None:
    sizes: list[int] = []

    class Counting(Faults):
        async def settle(self, settlements: Sequence[Settlement]) -> list[SettleReply]:
            sizes.append(len(settlements))
            await asyncio.sleep(0)
            return await self._broker.settle(settlements)

    bench = Bench(Counting)
    claims = await bench.claim("a", "b", "c", "d")

    bench.end(claims[0])
    await asyncio.sleep(0)
    for claim in claims[1:]:
        bench.end(claim)
    await all_blocked()

    assert sizes == [1, 3]
    assert bench.held == {}
    await bench.stop()


async def test_whoever_waits_for_what_is_unsettled_hears_when_it_was_told() -> None:
    bench = Bench()
    (claim,) = await bench.claim("a")
    seen: list[int] = []
    bench.settler._on_told = lambda: seen.append(bench.settler.unsettled)

    bench.end(claim)
    await all_blocked()

    assert seen == [0]
    await bench.stop()


async def test_a_lost_reply_is_told_again_and_announced_once() -> None:
    bench = Bench()
    (claim,) = await bench.claim("a")
    bench.faults.lose_reply("settle")

    bench.end(claim)
    await bench.clock.advance(10)

    assert await bench.states("a") == [JobState.SUCCEEDED]
    assert bench.settled() == ["a"]
    assert bench.said(events.SettlementStale) == []
    assert bench.settler.unsettled == 0
    await bench.stop()


async def test_settlements_outlive_an_outage_that_is_asked_about_at_most_every_few_seconds() -> None:
    bench = Bench()
    claims = await bench.claim("a", "b")
    bench.faults.cut("settle")

    bench.end(claims[0])
    await bench.clock.advance(300)
    bench.end(claims[1])
    failures = len(bench.said(events.BrokerFailed))
    unsettled = bench.settler.unsettled
    bench.faults.mend()
    await bench.clock.advance(10)

    assert unsettled == 2
    assert 300 / 5 <= failures <= 300 / 2.5 + 10
    assert await bench.states("a", "b") == [JobState.SUCCEEDED] * 2
    assert len(bench.said(events.BrokerRecovered)) == 1
    await bench.stop()


async def test_a_late_word_is_announced_as_stale_and_changes_nothing() -> None:
    bench = Bench()
    (claim,) = await bench.claim("a")
    await bench.memory.leave("w")
    await bench.memory.reclaim(max_lost=3, retention=Retention())
    (newer,) = await bench.memory.claim(ClaimRequest("other", ("default",), 1, 1, 1, 10.0))

    bench.end(claim)
    await all_blocked()

    assert [event.token for event in bench.said(events.SettlementStale)] == [claim.token]
    assert bench.settled() == []
    assert await bench.states("a") == [JobState.RUNNING]
    assert newer.token > claim.token
    await bench.stop()


@pytest.mark.parametrize("error", [BrokerError("this one is not for me"), RuntimeError("a driver's own")])
async def test_one_settlement_that_is_refused_does_not_take_its_batch_along(error: Exception) -> None:
    class Picky(Faults):
        async def settle(self, settlements: Sequence[Settlement]) -> list[SettleReply]:
            if any(settlement.job_id == "b" for settlement in settlements):
                raise error
            return await self._broker.settle(settlements)

    bench = Bench(Picky)
    claims = await bench.claim("a", "b", "c")

    for claim in claims:
        bench.end(claim)
    await all_blocked()

    assert await bench.states("a", "b", "c") == [JobState.SUCCEEDED, JobState.RUNNING, JobState.SUCCEEDED]
    assert bench.held == {}  # b is not vouched for any more: its lease ends, and another worker has a try
    assert len(bench.said(events.BrokerFailed)) == 1
    assert not bench.task.done()
    await bench.stop()


@pytest.mark.parametrize("error", [BrokerError("XX000: max clients reached"), RuntimeError("a driver's own")])
async def test_a_broker_that_refuses_everything_for_a_while_is_an_outage_whatever_it_says(error: Exception) -> None:
    class Troubled(Faults):
        is_full = True

        async def settle(self, settlements: Sequence[Settlement]) -> list[SettleReply]:
            if self.is_full:
                raise error
            return await self._broker.settle(settlements)

    bench = Bench(Troubled)
    claims = await bench.claim("a", "b")

    for claim in claims:
        bench.end(claim)
    await bench.clock.advance(300)
    failures = len(bench.said(events.BrokerFailed))
    held = set(bench.held)
    bench.settler._broker.is_full = False  # type: ignore[attr-defined]
    await bench.clock.advance(10)

    assert held == {"a", "b"}
    assert 300 / 5 <= failures <= 300 / 2.5 + 10
    assert await bench.states("a", "b") == [JobState.SUCCEEDED] * 2
    assert bench.settled() == ["a", "b"]
    assert len(bench.said(events.BrokerRecovered)) == 1
    await bench.stop()


async def test_a_round_trip_is_bounded_by_the_bytes_of_what_it_tells() -> None:
    told: list[list[str]] = []

    class Counting(Faults):
        async def settle(self, settlements: Sequence[Settlement]) -> list[SettleReply]:
            told.append([settlement.job_id for settlement in settlements])
            return await self._broker.settle(settlements)

    bench = Bench(Counting)
    large, error = Complete(b"x" * 400_000), ErrorRecord("ValueError", "no", "error", "x" * 400_000)
    decisions = {"a": large, "b": large, "c": Complete(), "d": large, "e": Retry(1.0, error), "f": large}
    decisions["g"] = Complete(b"x" * 3_000_000)
    claims = await bench.claim(*decisions)

    for claim in claims:
        bench.end(claim, decisions[claim.job_id])
    await all_blocked()

    assert told == [["a", "b", "c"], ["d", "e"], ["f"], ["g"]]
    assert bench.held == {}
    await bench.stop()


async def test_a_gate_is_held_before_the_jobs_that_say_so_are_back_in_their_queue() -> None:
    bench = Bench()
    first, second = await bench.claim("a", "b", gates=("smtp",))

    bench.end(first, Snooze(0.0, "no"), GateHold("smtp", 5.0, "short"))
    bench.end(second, Snooze(0.0, "no"), GateHold("smtp", 60.0, "long"))
    await all_blocked()
    siblings = await bench.memory.claim(ClaimRequest("w", ("default",), 100, 100, 1, 10.0))

    assert siblings == []
    assert [(event.gate, event.for_s) for event in bench.said(events.GateHeld)] == [("smtp", 60.0)]
    await bench.stop()


async def test_a_breakers_word_is_heard_before_the_claim_that_it_is_about_makes_room_for_another() -> None:
    bench = Bench()
    spec = CircuitBreaker("smtp", open_for=10)
    first, second = await bench.claim("a", "b", gates=("smtp",))
    bench.faults.lose_reply("gate")

    bench.end(first, Snooze(0.0, "circuit_open"), GateWord("smtp", Trip(0, 1, spec)))
    is_holding = bench.settler.is_holding
    bench.end(second, Snooze(0.0, "circuit_open"), GateWord("smtp", Word(1, 2, is_good=False, spec=spec)))
    await all_blocked()
    await bench.clock.advance(5)
    siblings = await bench.memory.claim(ClaimRequest("w", ("default",), 100, 100, 1, 10.0))

    assert (is_holding, bench.settler.is_holding) == (True, False)
    assert siblings == []
    assert [(word.change.word, gate.era, gate.failed) for word, gate in bench.heard] == [(1, 1, 1), (2, 2, 2)]
    await bench.stop()


@pytest.mark.parametrize(
    "word", [GateHold("smtp", 5.0, "open"), GateWord("smtp", Trip(0, 1, CircuitBreaker("smtp")))], ids=["hold", "word"]
)
async def test_a_gate_that_cannot_be_told_is_no_reason_to_lose_the_settlement(word: GateHold | GateWord) -> None:
    class NoGates(Faults):
        async def gate(self, *_args: object) -> None:
            raise BrokerError("no gates here")

    bench = Bench(NoGates)
    (claim,) = await bench.claim("a")

    bench.end(claim, None, word)
    await all_blocked()

    assert await bench.states("a") == [JobState.SUCCEEDED]
    assert len(bench.said(events.BrokerFailed)) == 1
    assert not bench.settler.is_holding
    await bench.stop()


async def test_idle_returns_when_the_last_word_was_heard_and_not_before() -> None:
    bench = Bench()
    (claim,) = await bench.claim("a")
    bench.faults.cut("settle")
    bench.end(claim)
    idle = asyncio.create_task(bench.settler.idle())

    await bench.clock.advance(60)
    before = idle.done()
    bench.faults.mend()
    await bench.clock.advance(10)

    assert not before
    assert idle.done()
    await bench.stop()


async def test_what_a_cancelled_run_had_in_hand_is_told_by_the_next() -> None:
    bench = Bench()
    (claim,) = await bench.claim("a")
    bench.faults.cut("settle")
    bench.end(claim)
    await all_blocked()

    await bench.stop()
    bench.faults.mend()
    unsettled = bench.settler.unsettled
    bench.task = asyncio.create_task(bench.settler.run())
    await all_blocked()

    assert unsettled == 1
    assert await bench.states("a") == [JobState.SUCCEEDED]
    await bench.stop()
