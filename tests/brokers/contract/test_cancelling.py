"""What `cancel` and `purge` promise: what waits never starts, what runs does not run again, what ended is deleted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from taskflow.brokers.base import Accepted, BeatReply, Cancelled, Settled
from taskflow.core.decision import Bury
from taskflow.core.job import JobState
from tests.brokers.words import (
    BOOM,
    DONE,
    LONG_S,
    claim,
    claim_one,
    claimed_soon,
    die,
    each_end,
    each_that_runs_again,
    ids,
    job,
    settle,
    settle_all,
    shown,
    state,
    submit,
)

if TYPE_CHECKING:
    from taskflow.brokers.base import FullBroker
    from taskflow.core.decision import Decision

pytestmark = pytest.mark.anyio


async def test_waiting_job_that_is_cancelled_never_starts(broker: FullBroker) -> None:
    ready, scheduled, key = job(), job(delay_s=0.01), job(key="ada")
    due_later, again = job(delay_s=0.02), job(key="ada")
    waiting = [ready.id, scheduled.id, key.id]
    await submit(broker, ready, scheduled, key, due_later)

    answers = await broker.cancel(waiting)

    assert answers == [Cancelled.CANCELLED] * 3
    assert await broker.states(waiting) == dict.fromkeys(waiting, JobState.CANCELLED)
    (receipt,) = await submit(broker, again)
    assert receipt.accepted is Accepted.NEW
    started = ids(await claim(broker))
    while due_later.id not in started:
        started += ids(await claimed_soon(broker))
    assert sorted(started) == sorted([again.id, due_later.id])


async def test_running_job_hears_of_its_cancellation_with_the_next_beat(broker: FullBroker) -> None:
    await submit(broker, job())
    running = await claim_one(broker, "w1")

    answers = await broker.cancel([running.job_id])

    assert answers == [Cancelled.REQUESTED]
    info = await shown(broker, running.job_id)
    assert (info.state, info.cancel_requested) == (JobState.RUNNING, True)
    for _ in range(2):
        reply = await broker.beat("w1", {running.job_id: running.token}, 60)
        assert reply == BeatReply(cancel=(running.job_id,))


@each_that_runs_again
async def test_cancelled_running_job_does_not_run_again(broker: FullBroker, decision: Decision) -> None:
    await submit(broker, job())
    running = await claim_one(broker)
    await broker.cancel([running.job_id])

    reply = await settle(broker, running, decision)

    assert reply == (Settled.APPLIED, JobState.CANCELLED)
    assert await state(broker, running.job_id) is JobState.CANCELLED
    assert await claim(broker) == []


@each_end
async def test_cancelled_running_job_may_end_otherwise(broker: FullBroker, decision: Decision, end: JobState) -> None:
    await submit(broker, job())
    running = await claim_one(broker)
    await broker.cancel([running.job_id])

    assert (await settle(broker, running, decision)).state is end


async def test_cancelled_job_of_a_dead_worker_does_not_run_again(broker: FullBroker) -> None:
    await submit(broker, job())
    running = await claim_one(broker, "w1")
    await broker.cancel([running.job_id])

    await die(broker, "w1")

    assert await state(broker, running.job_id) is JobState.CANCELLED


@each_end
async def test_final_job_cannot_be_cancelled(broker: FullBroker, decision: Decision, end: JobState) -> None:
    await submit(broker, job())
    running = await claim_one(broker)
    await settle(broker, running, decision)

    assert await broker.cancel([running.job_id, "0" * 32]) == [Cancelled.FINAL, Cancelled.MISSING]
    assert await state(broker, running.job_id) is end


async def test_cancelled_jobs_leave_the_rest_of_their_line_alone(broker: FullBroker) -> None:
    jobs = [job(lane=str(number % 2), priority=number % 3) for number in range(60)]
    await submit(broker, *jobs)
    gone = {one.id for number, one in enumerate(jobs) if number % 5}

    await broker.cancel([*gone])

    claims = await claim(broker)
    for lane in "01":
        left = [one for one in jobs if one.lane == lane and one.id not in gone]
        in_line = sorted(left, key=lambda one: one.priority, reverse=True)
        assert [got.job_id for got in claims if got.lane == lane] == [one.id for one in in_line]
    assert (await broker.counts())[0].ready == 0


async def test_purge_deletes_final_jobs(broker: FullBroker) -> None:
    jobs = [job(), job(), job(task="other"), job(queue="other")]
    await submit(broker, *jobs)
    await settle_all(broker, await claim(broker, queues=("q", "other")), Bury(BOOM))

    by_task = await broker.purge(state=JobState.DEAD, queue="q", task="work")
    none = await broker.purge(state=JobState.SUCCEEDED)

    assert (by_task, none) == (2, 0)
    assert set(await broker.states([one.id for one in jobs])) == {jobs[2].id, jobs[3].id}
    assert sum(counts.dead for counts in await broker.counts()) == 2
    (receipt,) = await submit(broker, jobs[0])
    assert receipt.accepted is Accepted.NEW


@pytest.mark.parametrize("waiting", [JobState.READY, JobState.SCHEDULED])
async def test_purge_cancels_jobs_that_wait(broker: FullBroker, waiting: JobState) -> None:
    ready, scheduled = job(key="ready"), job(key="scheduled", delay_s=LONG_S)
    await submit(broker, ready, scheduled)
    purged, other = (ready, scheduled) if waiting is JobState.READY else (scheduled, ready)

    count = await broker.purge(state=waiting)

    assert count == 1
    assert await broker.states([purged.id, other.id]) == {
        purged.id: JobState.CANCELLED,
        other.id: JobState.SCHEDULED if other is scheduled else JobState.READY,
    }
    (receipt,) = await submit(broker, job(key=purged.key))
    assert receipt.accepted is Accepted.NEW


async def test_purge_leaves_running_jobs_alone(broker: FullBroker) -> None:
    await submit(broker, job(), job())
    running = await claim_one(broker, limit=1)

    purged = [await broker.purge(state=JobState.READY), await broker.purge(state=JobState.RUNNING)]

    assert purged == [1, 0]
    assert not (await shown(broker, running.job_id)).cancel_requested
    assert (await settle(broker, running, DONE)).answer is Settled.APPLIED
