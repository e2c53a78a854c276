"""What `retry` promises: a dead job starts afresh, and nothing but a dead job does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from taskflow.brokers.base import Accepted, Retried, Settled
from taskflow.core.decision import Bury, Snooze
from taskflow.core.job import JobState
from tests.brokers.words import (
    AGAIN,
    BOOM,
    DONE,
    claim,
    claim_one,
    die,
    eventually,
    job,
    make_suspect,
    reclaim,
    settle,
    shown,
    state,
    submit,
)

if TYPE_CHECKING:
    from taskflow.brokers.base import FullBroker

pytestmark = pytest.mark.anyio


async def test_retried_dead_job_starts_afresh(broker: FullBroker) -> None:
    one = job(expires_s=500.0)
    await submit(broker, one)
    await settle(broker, await claim_one(broker), AGAIN)
    await settle(broker, await claim_one(broker), Snooze(0, "busy"))
    last = await claim_one(broker)
    await broker.cancel([one.id])
    await settle(broker, last, Bury(BOOM))

    answers = await broker.retry([one.id])

    assert answers == [Retried.READY]
    info = await shown(broker, one.id)
    assert (info.state, info.attempts, info.snoozes, info.lost) == (JobState.READY, 0, 0, 0)
    assert (info.finished_at, info.cancel_requested, len(info.errors)) == (None, False, 2)
    assert info.expires_at - info.due_at == pytest.approx(500.0, abs=1e-3)
    got = await claim_one(broker)
    assert got.token > last.token
    assert got.attempts == 0
    assert (await settle(broker, last, DONE)).answer is Settled.ALREADY


async def test_retried_poison_job_is_no_suspect(broker: FullBroker) -> None:
    one = job()
    await submit(broker, one)
    await make_suspect(broker, one)
    await claim(broker, "w1")
    await die(broker, "w1", max_lost=1)
    assert await state(broker, one.id) is JobState.DEAD

    await broker.retry([one.id])

    assert (await claim_one(broker, suspects=0)).lost == 0


async def test_only_dead_jobs_are_retried(broker: FullBroker) -> None:
    ready, running, done = job(priority=0), job(), job()
    await submit(broker, ready, running, done)
    claims = await claim(broker, limit=2)
    await settle(broker, claims[1], DONE)

    answers = await broker.retry([ready.id, running.id, done.id, "0" * 32])

    assert answers == [Retried.NOT_DEAD, Retried.NOT_DEAD, Retried.NOT_DEAD, Retried.MISSING]


async def test_retry_is_refused_while_another_job_has_the_key(broker: FullBroker) -> None:
    dead, holder = job(key="ada"), job(key="ada")
    await submit(broker, dead)
    await settle(broker, await claim_one(broker), Bury(BOOM))
    await submit(broker, holder)

    refused = await broker.retry([dead.id])
    await settle(broker, await claim_one(broker), DONE)
    accepted = await broker.retry([dead.id])
    (receipt,) = await submit(broker, job(key="ada"))

    assert (refused, accepted) == ([Retried.KEY_TAKEN], [Retried.READY])
    assert receipt[:2] == (dead.id, Accepted.SAME_KEY)


async def test_of_two_dead_jobs_with_one_key_one_is_retried(broker: FullBroker) -> None:
    dead = [job(key="ada"), job(key="ada")]
    for one in dead:
        await submit(broker, one)
        await settle(broker, await claim_one(broker), Bury(BOOM))

    answers = await broker.retry([one.id for one in dead])

    assert answers == [Retried.READY, Retried.KEY_TAKEN]


async def test_retry_is_never_refused_by_a_full_queue(broker: FullBroker) -> None:
    one = job()
    await submit(broker, one)
    await settle(broker, await claim_one(broker), Bury(BOOM))
    await submit(broker, job(), bound=1)

    assert await broker.retry([one.id]) == [Retried.READY]


async def test_retried_dead_job_has_a_fresh_deadline(broker: FullBroker) -> None:
    dead, other = job(expires_s=0.1), job(expires_s=0.15, queue="other")
    await submit(broker, dead, other)
    await settle(broker, await claim_one(broker), Bury(BOOM))
    await eventually(lambda: reclaim(broker))  # the other's deadline, and so the first one's, has passed

    await broker.retry([dead.id])

    assert await reclaim(broker) == []
    assert [moved.job_id for moved in await eventually(lambda: reclaim(broker))] == [dead.id]
