"""What people are shown: the counts of queues, all that is kept of a job, and lists of jobs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from taskflow.brokers.base import Accepted, Cancelled, Retried
from taskflow.core.decision import Bury, Retry
from taskflow.core.job import JobState
from taskflow.errors import JobNotFound
from tests.brokers.words import (
    AGAIN,
    BOOM,
    DONE,
    LONG_S,
    claim,
    claim_one,
    eventually,
    job,
    settle,
    shown,
    submit,
)

if TYPE_CHECKING:
    from taskflow.brokers.base import FullBroker

pytestmark = pytest.mark.anyio


async def test_counts_tell_where_jobs_stand(broker: FullBroker) -> None:
    await submit(broker, *(job(queue="b") for _ in range(6)), job(queue="b", delay_s=LONG_S), job(queue="a"))
    done, dead, retried, snoozed = await claim(broker, queues=("b",), limit=4)
    await settle(broker, done, DONE)
    await settle(broker, dead, Bury(BOOM))
    await settle(broker, retried, Retry(LONG_S, BOOM))
    await settle(broker, snoozed, AGAIN)
    await claim(broker, queues=("b",), limit=1)
    await broker.pause("a")

    a, b = await broker.counts()

    assert (a.queue, a.ready, a.scheduled, a.waiting, a.running, a.dead, a.paused) == ("a", 1, 0, 0, 0, 0, True)
    assert (b.queue, b.ready, b.scheduled, b.waiting, b.running, b.dead, b.paused) == ("b", 2, 2, 0, 1, 1, False)
    assert (a.drain_per_s, b.drain_per_s > 0) == (0, True)


async def test_a_queue_that_was_only_offered_a_job_has_nothing_in_it(broker: FullBroker) -> None:
    await submit(broker, job(queue="web", key="k1"))
    (receipt,) = await broker.submit([job(queue="mail", key="k1")], {})

    found = {one.queue: one for one in await broker.counts()}

    assert receipt.accepted is Accepted.SAME_KEY
    assert found["web"].ready == 1
    assert {*found} <= {"web", "mail"}
    assert all(one.ready + one.scheduled + one.running == 0 for name, one in found.items() if name == "mail")


async def test_counts_tell_the_age_of_the_oldest_ready_job(broker: FullBroker) -> None:
    await submit(broker, job(), job(queue="empty"))
    await claim(broker, queues=("empty",))

    async def older() -> bool:
        await submit(broker, job(priority=9))
        return (await broker.counts())[1].oldest_ready_age_s >= 0.05

    await eventually(older)

    assert (await broker.counts())[0].oldest_ready_age_s == 0


async def test_queue_that_is_empty_now_is_still_counted(broker: FullBroker) -> None:
    await submit(broker, job())
    await settle(broker, await claim_one(broker), DONE)

    (counts,) = await broker.counts()

    assert counts[:6] == ("q", 0, 0, 0, 0, 0)


async def test_show_tells_all_that_is_kept(broker: FullBroker) -> None:
    one = job(
        lane="a", gates=("smtp",), key="ada", priority=6, delay_s=LONG_S, expires_s=50.0, payload=b'{"v":1,"x":2}'
    )
    await submit(broker, one)

    info = await shown(broker, one.id)

    assert (info.id, info.task, info.queue, info.state) == (one.id, "work", "q", JobState.SCHEDULED)
    assert (info.priority, info.lane, info.gates, info.key) == (6, "a", ("smtp",), "ada")
    assert (info.attempts, info.snoozes, info.lost, info.errors) == (0, 0, 0, ())
    assert (info.started_at, info.finished_at, info.worker, info.progress) == (None, None, None, None)
    assert info.due_at - info.submitted_at == pytest.approx(LONG_S, abs=1)
    assert info.expires_at - info.due_at == pytest.approx(50.0, abs=1e-3)
    assert (info.payload, info.cancel_requested) == (one.payload, False)
    assert abs(info.submitted_at - time.time()) < 60


async def test_show_names_the_worker_of_a_running_job(broker: FullBroker) -> None:
    one = job()
    await submit(broker, one)
    await claim(broker, "w7")

    info = await shown(broker, one.id)

    assert (info.state, info.worker) == (JobState.RUNNING, "w7")
    assert info.started_at is not None
    assert info.started_at >= info.submitted_at


async def test_show_of_an_unknown_job_is_nothing(broker: FullBroker) -> None:
    assert await broker.show("0" * 32) is None
    assert await broker.states(["0" * 32]) == {}


async def test_jobs_are_listed_newest_first(broker: FullBroker) -> None:
    jobs = [job(priority=number % 3) for number in range(6)]
    for one in jobs:
        await submit(broker, one)

    listed = await broker.jobs(limit=4)

    assert [info.id for info in listed] == [one.id for one in reversed(jobs)][:4]


async def test_jobs_are_listed_by_state_queue_and_task(broker: FullBroker) -> None:
    mail, other_queue, other_task = job(task="mail"), job(task="mail", queue="other"), job()
    await submit(broker, mail, other_queue, other_task)
    await claim(broker, queues=("other",))

    async def listed(**wanted: object) -> set[str]:
        return {info.id for info in await broker.jobs(**wanted)}

    assert await listed(queue="q") == {mail.id, other_task.id}
    assert await listed(task="mail") == {mail.id, other_queue.id}
    assert await listed(state=JobState.RUNNING) == {other_queue.id}
    assert await listed(state=JobState.READY, queue="q", task="mail") == {mail.id}
    assert await listed(state=JobState.DEAD) == set()


async def test_text_with_nul_is_of_no_job(broker: FullBroker) -> None:
    await submit(broker, job())
    text = "a\0b"

    assert await broker.show(text) is None
    assert await broker.states([text]) == {}
    assert await broker.cancel([text]) == [Cancelled.MISSING]
    assert await broker.retry([text]) == [Retried.MISSING]
    assert await broker.jobs(queue=text) == []
    assert await broker.jobs(task=text) == []
    assert await broker.purge(state=JobState.READY, queue=text) == 0
    assert await broker.purge(state=JobState.READY, task=text) == 0
    await broker.finish_batch(text)
    with pytest.raises(JobNotFound):
        await broker.finals([text], 0)
