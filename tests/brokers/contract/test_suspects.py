"""What is promised of suspects, jobs that were lost twice: one at a time, and what they break is their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from taskflow.brokers.base import Accepted
from taskflow.core.job import JobState
from tests.brokers.words import (
    AGAIN,
    claim,
    claim_one,
    die,
    eventually,
    ids,
    job,
    make_suspect,
    reclaim,
    settle,
    shown,
    submit,
)

if TYPE_CHECKING:
    from taskflow.brokers.base import FullBroker

pytestmark = pytest.mark.anyio


async def test_job_lost_once_is_claimed_with_the_others(broker: FullBroker) -> None:
    await submit(broker, job())
    await claim_one(broker, "w1")
    await die(broker, "w1")

    got = await claim_one(broker, "w2", suspects=0)

    assert (got.lost, got.is_suspect) == (1, False)


async def test_job_lost_twice_is_claimed_only_by_who_asks_for_suspects(broker: FullBroker) -> None:
    one = job()
    await submit(broker, one)
    await make_suspect(broker, one)

    without = await claim(broker, suspects=0)
    got = await claim_one(broker, suspects=1)

    assert without == []
    assert (got.job_id, got.lost, got.is_suspect) == (one.id, 2, True)


async def test_suspects_are_claimed_one_at_a_time(broker: FullBroker) -> None:
    jobs = [job(), job(lane="b"), job(lane="b"), job(priority=9)]
    await submit(broker, *jobs)
    await make_suspect(broker, *jobs)
    await submit(broker, job())

    first, second = await claim(broker, "w1"), await claim(broker, "w2")

    assert sum(got.is_suspect for got in first) == 1
    assert len(first) == 2
    assert [got.is_suspect for got in second] == [True]


async def test_suspects_do_not_stand_in_the_way_of_their_lane(broker: FullBroker) -> None:
    suspect, other = job(), job()
    await submit(broker, suspect)
    await make_suspect(broker, suspect)
    await submit(broker, other)

    assert ids(await claim(broker, suspects=0)) == [other.id]


async def test_loss_of_a_suspect_is_its_own(broker: FullBroker) -> None:
    suspect, neighbour = job(), job()
    await submit(broker, suspect)
    await make_suspect(broker, suspect)
    await submit(broker, neighbour)
    assert len(await claim(broker, "w1")) == 2

    await die(broker, "w1")

    assert (await shown(broker, suspect.id)).lost == 3
    assert (await shown(broker, neighbour.id)).lost == 0


async def test_suspect_that_was_lost_too_often_is_buried(broker: FullBroker) -> None:
    one = job(key="ada")
    await submit(broker, one)
    await make_suspect(broker, one)
    await claim_one(broker, "w1", lease_s=0.02)
    (first,) = await eventually(lambda: reclaim(broker, max_lost=2))
    await claim_one(broker, "w1", lease_s=0.02)
    (second,) = await eventually(lambda: reclaim(broker, max_lost=2))

    assert (first.state, first.lost) == (JobState.READY, 3)
    assert (second.state, second.lost) == (JobState.DEAD, 4)
    info = await shown(broker, one.id)
    assert (info.state, info.attempts, info.errors[-1].kind) == (JobState.DEAD, 0, "lost")
    (receipt,) = await submit(broker, job(key="ada"))
    assert receipt.accepted is Accepted.NEW


async def test_suspect_that_fails_in_its_handler_is_an_ordinary_failure(broker: FullBroker) -> None:
    one = job()
    await submit(broker, one)
    await make_suspect(broker, one)

    reply = await settle(broker, await claim_one(broker), AGAIN)

    assert reply.state is JobState.READY
    assert (await shown(broker, one.id)).lost == 2
    assert await claim(broker, suspects=0) == []
