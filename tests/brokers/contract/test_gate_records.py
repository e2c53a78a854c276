"""Whose word a gate goes by, its declaration's, a person's or its family's; and how long it is remembered."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from taskflow.core import gate as gating
from taskflow.core.decision import Bury
from tests.brokers.words import (
    BOOM,
    DONE,
    LONG_S,
    NOTHING_KEPT,
    QUICK,
    claim,
    claim_one,
    claimed_soon,
    eventually,
    reclaim,
    settle,
    submit,
    through,
)

if TYPE_CHECKING:
    from taskflow.brokers.base import FullBroker

pytestmark = pytest.mark.anyio


async def test_word_of_an_operator_wins_until_it_is_taken_back(broker: FullBroker) -> None:
    await broker.gate("smtp", gating.OverrideLimit(1))
    await broker.gate("smtp", gating.Declare(limit=3))
    await submit(broker, *through("smtp", count=9))

    overridden = len(await claim(broker))
    await broker.gate("smtp", gating.OverrideLimit(None))
    declared = len(await claimed_soon(broker))

    assert (overridden, declared) == (1, 2)


async def test_rate_of_an_operator_wins_until_it_is_taken_back(broker: FullBroker) -> None:
    await broker.gate("smtp", gating.OverrideRate(gating.Rate(LONG_S, burst=2)))
    await broker.gate("smtp", gating.Declare(rate=gating.Rate(LONG_S, burst=4)))
    await submit(broker, *through("smtp", count=9))

    overridden = len(await claim(broker))
    gate = await broker.gate("smtp", gating.OverrideRate(None))
    declared = len(await claimed_soon(broker))

    assert (overridden, declared) == (2, 2)
    assert (gate.rate, gate.rate_override) == (gating.Rate(LONG_S, burst=4), None)


async def test_declaration_does_not_make_a_new_generation(broker: FullBroker) -> None:
    held = await broker.gate("smtp", gating.Hold(LONG_S))

    declared = await broker.gate("smtp", gating.Declare(limit=1))

    assert declared.generation == held.generation


async def test_keyed_gate_inherits_from_its_family_and_counts_for_itself(broker: FullBroker) -> None:
    await broker.gate("http", gating.Declare(limit=2))
    await submit(broker, *through("http/a", count=5), *through("http/b", count=5))

    claims = await claim(broker)

    assert Counter(got.gates for got in claims) == {("http/a",): 2, ("http/b",): 2}


async def test_keyed_gate_inherits_the_rate_of_its_family(broker: FullBroker) -> None:
    await broker.gate("http", gating.Declare(rate=gating.Rate(LONG_S, burst=2)))
    await submit(broker, *through("http/a", count=5), *through("http/b", count=5))

    claims = await claim(broker)

    assert Counter(got.gates for got in claims) == {("http/a",): 2, ("http/b",): 2}
    assert await claim(broker) == []


async def test_hold_of_a_keyed_gate_is_its_own(broker: FullBroker) -> None:
    await broker.gate("http/a", gating.Hold(LONG_S))
    await submit(broker, *through("http/a"), *through("http/b"))

    assert [got.gates for got in await claim(broker)] == [("http/b",)]


async def test_hold_of_a_family_holds_all_its_keys(broker: FullBroker) -> None:
    await broker.gate("http", gating.Hold(LONG_S))
    await submit(broker, *through("http/a"), *through("http/b"), *through("smtp"))

    held = await claim(broker)
    await broker.gate("http", gating.Release())
    released = await claimed_soon(broker)
    while len(released) < 2:
        released += await claimed_soon(broker)

    assert [got.gates for got in held] == [("smtp",)]
    assert {got.gates for got in released} == {("http/a",), ("http/b",)}


async def test_wider_limit_of_a_family_wakes_its_keys(broker: FullBroker) -> None:
    await broker.gate("http", gating.Declare(limit=1))
    await submit(broker, *through("http/a", count=5))
    assert len(await claim(broker)) == 1
    assert await claim(broker) == []

    await broker.gate("http", gating.OverrideLimit(3))

    assert len(await claimed_soon(broker)) == 2


async def test_limit_of_zero_closes_a_gate(broker: FullBroker) -> None:
    await broker.gate("smtp", gating.OverrideLimit(0))
    await submit(broker, *through("smtp"))

    assert await claim(broker) == []
    await broker.gate("smtp", gating.OverrideLimit(None))
    assert len(await claimed_soon(broker)) == 1


async def test_gate_that_matters_is_never_forgotten(broker: FullBroker) -> None:
    await broker.gate("held", gating.Hold(LONG_S))
    await broker.gate("declared", gating.Declare(limit=5))
    await broker.gate("overridden", gating.OverrideRate(gating.Rate(1.0)))
    await broker.gate("tripped", gating.Trip(0, 1, QUICK))
    await submit(broker, *through("live"), *through("waited-for", queue="other"))
    await claim_one(broker)
    before = {gate.name: gate for gate in await broker.gates()}

    for _ in range(3):
        await reclaim(broker, retention=NOTHING_KEPT)

    after = {gate.name: gate for gate in await broker.gates()}
    matter = {"held", "declared", "overridden", "tripped", "live"}
    assert matter <= set(after)
    assert {name: after[name] for name in matter} == {name: before[name] for name in matter}


async def test_spent_rate_of_a_keyed_gate_is_never_forgotten(broker: FullBroker) -> None:
    await broker.gate("http", gating.Declare(rate=gating.Rate(LONG_S)))
    await submit(broker, *through("http/a"))
    await settle(broker, await claim_one(broker), DONE)

    await reclaim(broker, retention=NOTHING_KEPT)
    await submit(broker, *through("http/a"))

    assert await claim(broker) == []


async def test_forgotten_gate_is_known_again_when_its_job_comes_back_from_the_dead(broker: FullBroker) -> None:
    (one,) = through("smtp")
    await submit(broker, one)
    await settle(broker, await claim_one(broker), Bury(BOOM))

    async def forgotten() -> bool:
        await reclaim(broker)
        return await broker.gates() == []

    await eventually(forgotten)
    await broker.retry([one.id])
    await claim_one(broker)

    assert [(gate.name, gate.live) for gate in await broker.gates()] == [("smtp", 1)]
