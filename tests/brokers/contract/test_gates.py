"""What a gate promises: no job passes while it is held, and never more than its limit and its rate admit."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from taskflow.brokers.base import QUOTA, WAKE
from taskflow.core import gate as gating
from taskflow.core.decision import Release
from taskflow.core.job import JobState
from tests.brokers.words import (
    AGAIN,
    DONE,
    ENDS,
    LONG_S,
    RUNS_AGAIN,
    claim,
    claim_one,
    claimed_soon,
    die,
    gate_of,
    ids,
    job,
    named,
    settle,
    shown,
    submit,
    through,
)

if TYPE_CHECKING:
    from taskflow.brokers.base import FullBroker
    from taskflow.core.decision import Decision

pytestmark = pytest.mark.anyio


async def test_gate_of_which_nothing_is_said_admits_all(broker: FullBroker) -> None:
    await submit(broker, *through("smtp", count=20))

    assert len(await claim(broker)) == 20
    assert (await gate_of(broker, "smtp")).live == 20


async def test_held_gate_admits_none_until_its_hold_is_over(broker: FullBroker) -> None:
    held_at = time.monotonic()  # before: the commit that closes it may take longer than a hold
    changed = await broker.gate("smtp", gating.Hold(0.5, "it is down"))
    await submit(broker, *through("smtp"))

    while_held = await claim(broker)
    later = await claimed_soon(broker)

    assert while_held == []
    assert time.monotonic() - held_at >= 0.499
    assert len(later) == 1
    assert (changed.reason, changed.generation) == ("it is down", 1)
    assert changed.held_until > 0


async def test_jobs_behind_a_held_gate_stay_ready(broker: FullBroker) -> None:
    (one,) = through("smtp")
    await submit(broker, one)
    await broker.gate("smtp", gating.Hold(LONG_S))

    await claim(broker)

    info = await shown(broker, one.id)
    assert (info.state, info.attempts, info.snoozes) == (JobState.READY, 0, 0)


async def test_other_jobs_flow_past_a_held_gate(broker: FullBroker) -> None:
    await submit(broker, *through("smtp", count=50, priority=9), *through("http", count=3), job(), job(lane="b"))
    await broker.gate("smtp", gating.Hold(LONG_S))

    assert Counter(got.gates for got in await claim(broker, limit=10)) == {("http",): 3, (): 2}


async def test_released_gate_admits_again(broker: FullBroker) -> None:
    await broker.gate("smtp", gating.Hold(LONG_S, "it is down"))
    await submit(broker, *through("smtp"))
    await claim(broker)

    gate = await broker.gate("smtp", gating.Release())

    assert (gate.held_until, gate.reason, gate.generation) == (0, "", 2)
    assert len(await claimed_soon(broker)) == 1


async def test_change_from_an_older_generation_is_refused(broker: FullBroker) -> None:
    first = await broker.gate("smtp", gating.Hold(LONG_S, "first"), 0)

    refused = await broker.gate("smtp", gating.Hold(1, "second"), 0)
    accepted = await broker.gate("smtp", gating.Release(), first.generation)
    always = await broker.gate("smtp", gating.Hold(LONG_S, "third"))

    assert refused == first
    assert (accepted.generation, always.generation, always.reason) == (2, 3, "third")


async def test_mass_release_wakes_every_lane_in_the_end(broker: FullBroker) -> None:
    await broker.gate("smtp", gating.Hold(LONG_S))
    jobs = [job(gates=("smtp",), lane=str(number)) for number in range(2 * WAKE + 7)]
    await submit(broker, *jobs)
    assert await claim(broker, limit=1_000, gated=1_000) == []

    await broker.gate("smtp", gating.Release())
    first = await claimed_soon(broker, limit=1_000, gated=1_000)
    taken = ids(first)
    while len(taken) < len(jobs):
        taken += ids(await claimed_soon(broker, limit=1_000, gated=1_000))

    assert len(first) <= WAKE
    assert sorted(taken) == sorted(one.id for one in jobs)


async def test_mass_release_of_many_gates_wakes_a_bounded_number_of_lanes(broker: FullBroker) -> None:
    await broker.gate("http", gating.Hold(LONG_S))
    jobs = [job(gates=(f"http/{number}",)) for number in range(2 * WAKE)]
    await submit(broker, *jobs)
    assert await claim(broker) == []

    await broker.gate("http", gating.Release())
    first = await claimed_soon(broker, limit=1_000, gated=1_000)
    taken = ids(first)
    while len(taken) < len(jobs):
        taken += ids(await claimed_soon(broker, limit=1_000, gated=1_000))

    assert len(first) <= WAKE
    assert sorted(taken) == sorted(one.id for one in jobs)


async def test_gate_is_never_over_its_limit(broker: FullBroker) -> None:
    await broker.gate("smtp", gating.Declare(limit=3))
    await submit(broker, *through("smtp", count=5), *through("smtp", count=5, lane="b", queue="other"))

    claims = await claim(broker, "w1", queues=("q", "other")) + await claim(broker, "w2", queues=("other", "q"))

    assert len(claims) == 3
    assert (await gate_of(broker, "smtp")).live == 3


@pytest.mark.parametrize("decision", [*RUNS_AGAIN, *(decision for decision, _ in ENDS)], ids=named)
async def test_settled_claim_makes_room_in_its_gate(broker: FullBroker, decision: Decision) -> None:
    await broker.gate("smtp", gating.Declare(limit=1))
    await submit(broker, *through("smtp", count=2))
    running = await claim_one(broker)
    assert await claim(broker) == []

    await settle(broker, running, decision)

    assert (await gate_of(broker, "smtp")).live == 0
    assert len(await claimed_soon(broker)) == 1
    assert (await gate_of(broker, "smtp")).live == 1


async def test_repeated_settlement_makes_room_only_once(broker: FullBroker) -> None:
    await broker.gate("smtp", gating.Declare(limit=2))
    await submit(broker, *through("smtp", count=5))
    running, _ = await claim(broker)

    for _ in range(3):
        await settle(broker, running, DONE)

    assert (await gate_of(broker, "smtp")).live == 1
    assert len(await claimed_soon(broker)) == 1


async def test_reclaimed_claim_makes_room_in_its_gate(broker: FullBroker) -> None:
    await broker.gate("smtp", gating.Declare(limit=1))
    await submit(broker, *through("smtp", count=2))
    await claim_one(broker, "w1")

    await die(broker, "w1")

    assert (await gate_of(broker, "smtp")).live == 0
    assert len(await claimed_soon(broker, "w2")) == 1


async def test_lanes_of_one_gate_share_it_in_turn(broker: FullBroker) -> None:
    await broker.gate("smtp", gating.Declare(limit=1))
    await submit(broker, *through("smtp", count=30, lane="long"), *through("smtp", lane="short"))
    lanes = []

    for _ in range(QUOTA + 1):
        (got,) = await claimed_soon(broker)
        lanes.append(got.lane)
        await settle(broker, got, DONE)

    assert "short" in lanes


async def test_gate_with_room_again_gives_it_to_the_higher_priority(broker: FullBroker) -> None:
    await broker.gate("smtp", gating.Declare(limit=1))
    await submit(broker, *through("smtp", count=3, lane="calm"))
    running = await claim_one(broker)
    assert await claim(broker) == []
    (urgent,) = through("smtp", lane="urgent", priority=9)
    await submit(broker, urgent)
    assert await claim(broker) == []

    await settle(broker, running, DONE)

    assert ids(await claimed_soon(broker)) == [urgent.id]


async def test_job_is_claimed_only_if_all_its_gates_admit_it(broker: FullBroker) -> None:
    await submit(broker, *through("smtp", "http", "db"))
    for name in ("smtp", "http", "db"):
        await broker.gate(name, gating.Hold(LONG_S))

    for name in ("http", "smtp"):
        await broker.gate(name, gating.Release())
        assert await claim(broker) == []
    await broker.gate("db", gating.Release())

    assert len(await claimed_soon(broker)) == 1
    assert {gate.live for gate in await broker.gates()} == {1}


async def test_job_of_two_gates_gets_what_the_narrower_admits(broker: FullBroker) -> None:
    await broker.gate("wide", gating.Declare(limit=5))
    await broker.gate("narrow", gating.Declare(limit=2))
    await submit(broker, *through("wide", "narrow", count=9))

    assert len(await claim(broker)) == 2
    assert (await gate_of(broker, "wide")).live == 2


async def test_room_left_by_a_lane_of_another_held_gate_is_used(broker: FullBroker) -> None:
    await broker.gate("smtp", gating.Hold(LONG_S))
    await broker.gate("down", gating.Hold(LONG_S))
    await submit(broker, *(job(gates=("smtp", "down"), lane=str(number)) for number in range(5)), *through("smtp"))
    assert await claim(broker) == []

    await broker.gate("smtp", gating.Declare(limit=1))
    await broker.gate("smtp", gating.Release())

    assert [got.gates for got in await claimed_soon(broker)] == [("smtp",)]


async def test_rate_admits_its_burst_and_then_one_an_interval(broker: FullBroker) -> None:
    await broker.gate("smtp", gating.Declare(rate=gating.Rate(1.0, burst=3)))
    await submit(broker, *through("smtp", count=5))

    claimed_at = time.monotonic()  # before: the interval begins within the claim
    burst = await claim(broker)
    nothing = await claim(broker)
    fourth = await claimed_soon(broker)

    assert (len(burst), nothing, len(fourth)) == (3, [], 1)
    assert time.monotonic() - claimed_at >= 0.999


async def test_release_gives_rate_tokens_back(broker: FullBroker) -> None:
    await broker.gate("smtp", gating.Declare(rate=gating.Rate(LONG_S, burst=3)))
    await submit(broker, *through("smtp", count=5))
    claims = await claim(broker)

    await settle(broker, claims[0], Release())
    await settle(broker, claims[1], AGAIN)
    await settle(broker, claims[2], DONE)

    assert len(claims) == 3
    assert len(await claimed_soon(broker)) == 1
    assert await claim(broker) == []
