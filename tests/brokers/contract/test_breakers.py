"""What a tripped gate promises: one probe of the whole fleet, a ramp of good words, and no late word that counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from taskflow.core import gate as gating
from taskflow.core.decision import Release, Snooze
from taskflow.core.specs import CircuitBreaker
from tests.brokers.words import (
    DONE,
    LONG_S,
    QUICK,
    claim,
    claim_one,
    claimed_soon,
    die,
    gate_of,
    job,
    named,
    settle,
    settle_all,
    submit,
    through,
)

if TYPE_CHECKING:
    from taskflow.brokers.base import FullBroker
    from taskflow.core.decision import Decision
    from taskflow.core.job import Claim

pytestmark = pytest.mark.anyio


async def test_tripped_gate_is_probed_by_one_claim_of_the_whole_fleet(broker: FullBroker) -> None:
    await submit(broker, *through("smtp", count=25), *through("smtp", count=25, queue="other"))
    await broker.gate("smtp", gating.Trip(0, 1, QUICK))
    held = await claim(broker, "w1", queues=("q", "other"))

    claims = list(await claimed_soon(broker, "w1", queues=("q", "other")))
    for number in range(50):
        claims += await claim(broker, f"w{number % 4}", queues=("q", "other") if number % 2 else ("other", "q"))

    assert held == []
    assert len(claims) == 1
    assert (await gate_of(broker, "smtp")).live == 1


async def test_claim_knows_what_its_tripped_gates_were(broker: FullBroker) -> None:
    await submit(broker, *through("smtp", "db"))
    assert (await claim_one(broker)).recoveries == ()
    await broker.gate("smtp", gating.Trip(0, 1, QUICK))
    await submit(broker, *through("db", "http"), *through("db", "smtp", priority=9), job())
    await broker.gate("smtp", gating.OverrideLimit(5))
    await broker.gate("smtp", gating.Word(1, 2, is_good=True, spec=QUICK))

    got: list[Claim] = []
    while len(got) < 3:
        got += await claimed_soon(broker)

    assert {one.gates: one.recoveries for one in got} == {
        (): (),
        ("db", "http"): (),
        ("db", "smtp"): (gating.Recovery("smtp", 1, 2, 1),),
    }


async def test_late_word_of_an_earlier_era_changes_nothing(broker: FullBroker) -> None:
    await broker.gate("smtp", gating.Trip(0, 1, QUICK))
    failed = await broker.gate("smtp", gating.Word(1, 2, is_good=False, spec=QUICK))

    late = [
        await broker.gate("smtp", gating.Word(1, 3, is_good=True, spec=QUICK)),
        await broker.gate("smtp", gating.Word(1, 4, is_good=False, spec=QUICK)),
        await broker.gate("smtp", gating.Trip(0, 5, QUICK)),
    ]

    assert (failed.era, failed.ramp, failed.failed, failed.word) == (2, 1, 2, 2)
    assert late == [failed] * 3
    assert await broker.gates() == [failed]


async def test_word_that_is_told_twice_counts_once(broker: FullBroker) -> None:
    spec = CircuitBreaker("smtp", close_after=2)
    await broker.gate("smtp", gating.Trip(0, 1, spec))

    once = await broker.gate("smtp", gating.Word(1, 7, is_good=True, spec=spec))
    twice = await broker.gate("smtp", gating.Word(1, 7, is_good=True, spec=spec))

    assert (once.good, once.ramp) == (1, 1)
    assert twice == once


async def test_good_words_widen_the_gate_until_it_is_open(broker: FullBroker) -> None:
    await submit(broker, *through("smtp", count=200))
    await broker.gate("smtp", gating.Trip(0, 1, QUICK))
    widths, word = [], 1

    while (gate := await gate_of(broker, "smtp")).ramp is not None:
        claims = await claimed_soon(broker, limit=200, gated=200)
        widths.append(len(claims))
        assert await claim(broker, limit=200, gated=200) == []
        for _ in claims:
            word += 1
            await broker.gate("smtp", gating.Word(gate.era, word, is_good=True, spec=QUICK))
        await settle_all(broker, claims, DONE)

    assert widths == [1, 2, 4, 8, 16, 32]
    assert len(await claimed_soon(broker, limit=200, gated=200)) == 200 - sum(widths)


async def test_one_failure_in_a_ramp_is_remembered_and_the_second_in_a_row_trips_the_gate(broker: FullBroker) -> None:
    await broker.gate("smtp", gating.Trip(0, 1, QUICK))
    await broker.gate("smtp", gating.Word(1, 2, is_good=True, spec=QUICK))

    once = await broker.gate("smtp", gating.Word(1, 3, is_good=False, spec=QUICK))
    twice = await broker.gate("smtp", gating.Word(1, 4, is_good=False, spec=QUICK))

    assert (once.era, once.ramp, once.good, once.bad) == (1, 2, 0, 1)
    assert (twice.era, twice.ramp, twice.bad, twice.failed, twice.generation) == (2, 1, 0, 2, 4)
    assert await broker.gates() == [twice]


async def test_lost_probe_gives_way_to_the_next(broker: FullBroker) -> None:
    await submit(broker, *through("smtp", count=2))
    await broker.gate("smtp", gating.Trip(0, 1, QUICK))
    probe = (await claimed_soon(broker, "w1"))[0]
    assert await claim(broker, "w2") == []

    await die(broker, "w1")
    (next_probe,) = await claimed_soon(broker, "w2")

    assert (probe.recoveries, next_probe.recoveries) == ((gating.Recovery("smtp", 1, 1, 1),),) * 2
    assert await claim(broker, "w2") == []


@pytest.mark.parametrize("decision", [Release(), Snooze(0.0, "cancelled")], ids=named)
async def test_probe_that_says_nothing_gives_way_to_the_next(broker: FullBroker, decision: Decision) -> None:
    await submit(broker, *through("smtp", count=2))
    await broker.gate("smtp", gating.Trip(0, 1, QUICK))
    (probe,) = await claimed_soon(broker)
    before = await gate_of(broker, "smtp")

    await settle(broker, probe, decision)
    next_probe = await claimed_soon(broker)

    assert len(next_probe) == 1
    assert await gate_of(broker, "smtp") == before


async def test_operators_release_opens_a_tripped_gate_fully(broker: FullBroker) -> None:
    await submit(broker, *through("smtp", count=5))
    await broker.gate("smtp", gating.Trip(0, 1, CircuitBreaker("smtp")))
    assert await claim(broker) == []

    gate = await broker.gate("smtp", gating.Release())

    assert (gate.ramp, gate.failed, gate.era) == (None, 0, 2)
    assert {one.recoveries for one in await claimed_soon(broker)} == {(gating.Recovery("smtp", 2, None, 0),)}
    assert await broker.gate("smtp", gating.Word(1, 9, is_good=False, spec=QUICK)) == await gate_of(broker, "smtp")


async def test_operators_hold_is_not_ended_by_good_words(broker: FullBroker) -> None:
    await submit(broker, *through("smtp", count=5))
    await broker.gate("smtp", gating.Trip(0, 1, QUICK))
    await broker.gate("smtp", gating.OverrideLimit(1))
    await broker.gate("smtp", gating.Hold(LONG_S, "by hand"))

    gate = await broker.gate("smtp", gating.Word(1, 2, is_good=True, spec=QUICK))

    assert (gate.ramp, gate.reason) == (None, "by hand")
    assert await claim(broker) == []


async def test_keyed_gate_trips_alone(broker: FullBroker) -> None:
    await submit(broker, *through("http/a", count=3), *through("http/b", count=3))

    await broker.gate("http/a", gating.Trip(0, 1, CircuitBreaker("http")))

    assert [(got.gates, got.recoveries) for got in await claim(broker)] == [(("http/b",), ())] * 3
