"""What a lease promises: a worker that beats keeps its claims, and those of a dead one are claimed again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from taskflow.brokers.base import BeatReply, Settled
from taskflow.core.decision import Release
from taskflow.core.job import JobState
from tests.brokers.words import DONE, LONG_S, claim, claim_one, die, eventually, ids, job, reclaim, settle, submit

if TYPE_CHECKING:
    from taskflow.brokers.base import FullBroker

pytestmark = pytest.mark.anyio


async def test_expired_claim_can_be_claimed_again_with_a_higher_token(broker: FullBroker) -> None:
    one = job()
    await submit(broker, one)
    first = await claim_one(broker, "w1", lease_s=0.05)

    (moved,) = await eventually(lambda: reclaim(broker))
    second = await claim_one(broker, "w2")

    assert moved[:5] == (one.id, "work", "q", JobState.READY, 1)
    assert moved.reason
    assert (second.job_id, second.lost, second.attempts) == (one.id, 1, 0)
    assert second.token > first.token


async def test_lease_that_runs_is_not_reclaimed(broker: FullBroker) -> None:
    await submit(broker, job())
    await claim_one(broker, lease_s=60)

    assert await reclaim(broker) == []


async def test_beat_renews_the_lease_for_all_claims(broker: FullBroker) -> None:
    await submit(broker, job(), job())
    tokens = {got.job_id: got.token for got in await claim(broker, "w1", lease_s=0.5)}
    others = await _lost_to_a_short_lease(broker)

    async def beaten() -> bool:
        assert await broker.beat("w1", tokens, 0.5) == BeatReply()
        return bool({moved.job_id for moved in await reclaim(broker)} & {others})

    await eventually(beaten)

    assert await broker.states([*tokens]) == dict.fromkeys(tokens, JobState.RUNNING)


async def _lost_to_a_short_lease(broker: FullBroker) -> str:
    """A job of another worker whose lease, three times as long, will end: something to wait for."""
    await submit(broker, job(queue="other"))
    return (await claim_one(broker, "w2", queues=("other",), lease_s=1.5)).job_id


async def test_claim_renews_the_lease(broker: FullBroker) -> None:
    await submit(broker, job())
    one = await claim_one(broker, "w1", lease_s=0.5)
    other = await _lost_to_a_short_lease(broker)
    moved: set[str] = set()

    async def claimed() -> bool:
        await claim(broker, "w1", lease_s=0.5, queues=("nothing here",))
        moved.update(found.job_id for found in await reclaim(broker))
        return other in moved

    await eventually(claimed)

    assert moved == {other}
    assert (await settle(broker, one, DONE)).answer is Settled.APPLIED


async def test_beat_tells_which_claims_are_lost(broker: FullBroker) -> None:
    await submit(broker, *(job() for _ in range(4)))
    mine, settled, reclaimed = await claim(broker, "w1", limit=3)
    await die(broker, "w1")
    again = {got.job_id: got for got in await claim(broker, "w1", limit=2)}
    theirs = await claim_one(broker, "w2", limit=1)
    mine, settled = again[mine.job_id], again[settled.job_id]
    await settle(broker, settled, DONE)
    sent = {one.job_id: one.token for one in (mine, settled, reclaimed, theirs)} | {"0" * 32: 1}

    reply = await broker.beat("w1", sent, 60)

    assert set(reply.lost) == {settled.job_id, reclaimed.job_id, theirs.job_id, "0" * 32}
    assert reply.cancel == ()


async def test_beat_with_an_old_token_is_lost(broker: FullBroker) -> None:
    await submit(broker, job())
    old = await claim_one(broker, "w1")
    await settle(broker, old, Release())
    new = await claim_one(broker, "w1")

    assert (await broker.beat("w1", {old.job_id: old.token}, 60)).lost == (old.job_id,)
    assert (await broker.beat("w1", {new.job_id: new.token}, 60)).lost == ()


async def test_beat_of_a_worker_without_claims_is_welcome(broker: FullBroker) -> None:
    assert await broker.beat("nobody", {}, 60) == BeatReply()


async def test_claim_missing_from_two_beats_in_a_row_is_reclaimed(broker: FullBroker) -> None:
    await submit(broker, job(), job())
    vouched, missing = await claim(broker, "w1")
    tokens = {vouched.job_id: vouched.token}

    await broker.beat("w1", tokens, 60)
    after_one = await reclaim(broker)
    await broker.beat("w1", tokens, 60)
    after_two = await reclaim(broker)

    assert after_one == []
    assert [(moved.job_id, moved.state) for moved in after_two] == [(missing.job_id, JobState.READY)]
    assert (await settle(broker, missing, DONE)).answer is Settled.STALE
    assert (await settle(broker, vouched, DONE)).answer is Settled.APPLIED


async def test_beats_from_before_the_claim_do_not_count(broker: FullBroker) -> None:
    for _ in range(3):
        await broker.beat("w1", {}, 60)
    await submit(broker, job())
    await claim_one(broker, "w1")

    await broker.beat("w1", {}, 60)  # was on its way when the claim was made

    assert await reclaim(broker) == []


async def test_claim_missing_from_every_second_beat_is_kept(broker: FullBroker) -> None:
    await submit(broker, job())
    one = await claim_one(broker, "w1")

    for tokens in ({}, {one.job_id: one.token}) * 3:
        await broker.beat("w1", tokens, 60)
        assert await reclaim(broker) == []


async def test_beat_from_a_thread_is_a_beat(broker: FullBroker) -> None:
    sync = broker.sync_beat()
    if sync is None:
        assert not broker.is_durable, "a broker that outlives its worker needs a beat that no handler can block"
        return
    await submit(broker, job(), job(), job())
    mine, cancelled, missing = await claim(broker, "w1", lease_s=0.0)  # over at once, but for the beats
    await broker.cancel([cancelled.job_id])

    def beat() -> BeatReply:
        return sync.beat("w1", {mine.job_id: mine.token, cancelled.job_id: cancelled.token, "0" * 32: 1}, 60)

    try:
        replies = [await asyncio.to_thread(beat) for _ in range(2)]
    finally:
        await asyncio.to_thread(sync.close)

    assert replies == [BeatReply(lost=("0" * 32,), cancel=(cancelled.job_id,))] * 2
    assert [moved.job_id for moved in await reclaim(broker)] == [missing.job_id]


async def test_worker_that_left_holds_nothing(broker: FullBroker) -> None:
    one = job()
    await submit(broker, one)
    await claim_one(broker, "w1", lease_s=LONG_S)

    await broker.leave("w1")
    await reclaim(broker)

    assert ids(await claim(broker, "w2")) == [one.id]


async def test_worker_that_left_may_come_back(broker: FullBroker) -> None:
    await submit(broker, job())
    await broker.leave("w1")
    await broker.leave("w1")

    await claim_one(broker, "w1")

    assert await reclaim(broker) == []


async def test_dead_worker_loses_only_its_own_jobs(broker: FullBroker) -> None:
    await submit(broker, *(job() for _ in range(4)))
    lost = await claim(broker, "w1", limit=2)
    kept = await claim(broker, "w2", limit=2)

    await die(broker, "w1")

    assert await broker.states(ids(lost)) == dict.fromkeys(ids(lost), JobState.READY)
    assert await broker.states(ids(kept)) == dict.fromkeys(ids(kept), JobState.RUNNING)


async def test_reclaimed_job_keeps_its_place_in_the_line(broker: FullBroker) -> None:
    first, second = job(), job()
    await submit(broker, first, second)
    await claim_one(broker, "w1", limit=1)

    await die(broker, "w1")

    assert ids(await claim(broker, "w2")) == [first.id, second.id]
