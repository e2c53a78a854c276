"""What is promised of finished jobs: each is kept for its time, then forgotten, a bounded number at once."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from taskflow.brokers.base import Accepted
from taskflow.core.decision import Bury, Complete
from taskflow.core.job import JobState
from taskflow.errors import JobNotFound
from tests.brokers.words import (
    BOOM,
    DONE,
    KEEP,
    LONG_S,
    NOTHING_KEPT,
    claim,
    claim_one,
    eventually,
    job,
    reclaim,
    settle,
    settle_all,
    state,
    submit,
)

if TYPE_CHECKING:
    from taskflow.brokers.base import FullBroker, Retention

pytestmark = pytest.mark.anyio


async def test_finished_jobs_are_kept_for_their_time_and_then_forgotten(broker: FullBroker) -> None:
    done, dead, waits = job(), job(), job(delay_s=LONG_S)
    await submit(broker, done, dead, waits)
    first, second = await claim(broker)
    await settle(broker, first, DONE)
    await settle(broker, second, Bury(BOOM))

    await reclaim(broker)
    kept = await broker.states([done.id, dead.id, waits.id])
    await eventually(lambda: _gone(broker, done.id, KEEP._replace(finished_s=0)))
    without_done = await broker.states([done.id, dead.id, waits.id])
    await eventually(lambda: _gone(broker, dead.id, KEEP._replace(dead_s=0)))

    assert kept == {done.id: JobState.SUCCEEDED, dead.id: JobState.DEAD, waits.id: JobState.SCHEDULED}
    assert without_done == {dead.id: JobState.DEAD, waits.id: JobState.SCHEDULED}
    assert await broker.states([done.id, dead.id, waits.id]) == {waits.id: JobState.SCHEDULED}
    with pytest.raises(JobNotFound):
        await broker.finals([done.id], LONG_S)


async def _gone(broker: FullBroker, job_id: str, retention: Retention) -> bool:
    await reclaim(broker, retention=retention)
    return await broker.show(job_id) is None


async def test_forgotten_job_may_be_submitted_again(broker: FullBroker) -> None:
    one = job()
    await submit(broker, one)
    await settle(broker, await claim_one(broker), DONE)
    await eventually(lambda: _gone(broker, one.id, NOTHING_KEPT))

    (receipt,) = await submit(broker, one)

    assert receipt.accepted is Accepted.NEW
    assert len(await claim(broker)) == 1


async def test_result_that_was_pruned_says_so(broker: FullBroker) -> None:
    one, without = job(), job()
    await submit(broker, one, without)
    first, second = await claim(broker)
    await settle(broker, first, DONE)
    await settle(broker, second, Complete(None))

    async def pruned() -> bool:
        await reclaim(broker, retention=KEEP._replace(result_s=0))
        return (await broker.finals([one.id], 0))[one.id].result is None

    before = await broker.finals([one.id, without.id], 0)
    await eventually(pruned)
    after = await broker.finals([one.id, without.id], 0)

    assert (before[one.id].kept, before[without.id].kept) == (True, True)
    assert (after[one.id].state, after[one.id].kept) == (JobState.SUCCEEDED, False)
    assert after[without.id] == before[without.id]


async def test_one_reclaim_prunes_a_bounded_number_of_jobs(broker: FullBroker) -> None:
    jobs = [job() for _ in range(7)]
    await submit(broker, *jobs)
    await settle_all(broker, await claim(broker), DONE)
    kept = [7]

    async def all_gone() -> bool:
        await reclaim(broker, retention=NOTHING_KEPT._replace(rows=3))
        kept.append(len(await broker.states([one.id for one in jobs])))
        return kept[-1] == 0

    await eventually(all_gone)

    assert all(before - after <= 3 for before, after in itertools.pairwise(kept))


async def test_jobs_of_a_batch_are_kept_until_it_is_finished(broker: FullBroker) -> None:
    one, dead, other = job(batch="run"), job(batch="run"), job()
    await submit(broker, one, dead, other)
    claims = await claim(broker)
    await settle(broker, claims[0], DONE)
    await settle(broker, claims[1], Bury(BOOM))
    await settle(broker, claims[2], DONE)

    await eventually(lambda: _gone(broker, other.id, NOTHING_KEPT))
    kept = await broker.states([one.id, dead.id])
    results = await broker.finals([one.id], 0)
    await broker.finish_batch("run")
    await eventually(lambda: _gone(broker, one.id, NOTHING_KEPT))
    await eventually(lambda: _gone(broker, dead.id, NOTHING_KEPT))

    assert set(kept) == {one.id, dead.id}
    assert results[one.id] == (one.id, JobState.SUCCEEDED, b'"done"', None, True)


async def test_job_that_died_again_is_kept_for_its_time(broker: FullBroker) -> None:
    one = job()
    await submit(broker, one)
    await settle(broker, await claim_one(broker), Bury(BOOM))
    await broker.retry([one.id])

    await reclaim(broker, retention=NOTHING_KEPT)
    await settle(broker, await claim_one(broker), Bury(BOOM))
    await reclaim(broker)

    assert await state(broker, one.id) is JobState.DEAD


async def test_job_that_came_back_from_the_dead_does_not_keep_others_from_being_forgotten(broker: FullBroker) -> None:
    back, dead = job(), job()
    for one in (back, dead):
        await submit(broker, one)
        await settle(broker, await claim_one(broker), Bury(BOOM))

    await broker.retry([back.id])

    await eventually(lambda: _gone(broker, dead.id, NOTHING_KEPT))
    assert await state(broker, back.id) is JobState.READY
