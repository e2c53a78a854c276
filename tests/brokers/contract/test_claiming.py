"""What `claim` promises: the job as it was submitted, to one worker alone, when it is due; and no more than was asked."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from taskflow.brokers.base import Accepted, Settled
from taskflow.core.job import JobState
from tests.brokers.words import DONE, claim, claim_one, claimed_soon, ids, job, settle, state, submit

if TYPE_CHECKING:
    from taskflow.brokers.base import FullBroker

pytestmark = pytest.mark.anyio


async def test_claim_carries_the_job_as_it_was_submitted(broker: FullBroker) -> None:
    one = job(
        payload='{"v":1,"name":"Ådne \U0001f40b"}'.encode(),
        priority=7,
        lane="example.org/ø",
        gates=("smtp", "http/api.example.org"),
        expires_s=500.0,
        expire_reason="deadline",
    )
    await submit(broker, one)

    got = await claim_one(broker)

    assert (got.job_id, got.task, got.queue, got.payload) == (one.id, "work", "q", one.payload)
    assert (got.lane, got.gates, got.priority) == (one.lane, one.gates, 7)
    assert (got.attempts, got.snoozes, got.lost, got.checkpoint) == (0, 0, 0, None)
    assert got.expire_reason == "deadline"
    assert 400 < got.expires_in_s <= 500
    assert 0 <= got.waited_s < 100
    assert 0 <= got.age_s < 100


async def test_claim_hides_the_job_from_others(broker: FullBroker) -> None:
    await submit(broker, job())

    first = await claim(broker, "w1")
    second = await claim(broker, "w2")
    third = await claim(broker, "w1")

    assert (len(first), second, third) == (1, [], [])


async def test_claimers_at_once_never_share_a_job(broker: FullBroker) -> None:
    jobs = [job(lane=str(number % 7), gates=("smtp",) * (number % 2)) for number in range(120)]
    await submit(broker, *jobs)

    async def claimer(worker: str) -> list[str]:
        mine: list[str] = []
        while claims := await claim(broker, worker, limit=5):
            mine += ids(claims)
            await asyncio.sleep(0)  # the others' turn, on a broker that never waits
        return mine

    taken = await asyncio.gather(*(claimer(f"w{number}") for number in range(4)))

    assert sorted(job_id for mine in taken for job_id in mine) == sorted(one.id for one in jobs)


async def test_claim_gives_at_most_the_limit(broker: FullBroker) -> None:
    await submit(broker, *(job() for _ in range(5)))

    assert len(await claim(broker, limit=3)) == 3
    assert await claim(broker, limit=0) == []


async def test_claim_from_a_queue_that_does_not_exist_finds_nothing(broker: FullBroker) -> None:
    assert await claim(broker, queues=("nowhere",)) == []


async def test_only_named_queues_are_claimed_from(broker: FullBroker) -> None:
    await submit(broker, job(queue="a"), job(queue="b"))

    assert [got.queue for got in await claim(broker, queues=("b",))] == ["b"]


async def test_scheduled_job_is_claimed_when_it_is_due_and_not_before(broker: FullBroker) -> None:
    one = job(delay_s=0.6)  # longer than a commit takes on a busy machine
    submitted_at = time.monotonic()
    await submit(broker, one)

    before = await state(broker, one.id)
    (got,) = await claimed_soon(broker)

    assert before is JobState.SCHEDULED
    assert got.job_id == one.id
    assert time.monotonic() - submitted_at >= 0.599
    assert got.waited_s < 0.2 + (time.monotonic() - submitted_at)
    assert got.age_s < time.monotonic() - submitted_at


async def test_paused_queue_is_not_claimed_from(broker: FullBroker) -> None:
    await submit(broker, job())
    await broker.pause("q")

    while_paused = await claim(broker)
    await broker.resume("q")

    assert while_paused == []
    assert len(await claim(broker)) == 1


async def test_paused_queue_takes_jobs_and_settlements(broker: FullBroker) -> None:
    await submit(broker, job())
    running = await claim_one(broker)
    await broker.pause("q")

    (receipt,) = await submit(broker, job())
    reply = await settle(broker, running, DONE)

    assert (receipt.accepted, reply.answer) == (Accepted.NEW, Settled.APPLIED)


async def test_jobs_with_gates_are_claimed_only_as_far_as_asked(broker: FullBroker) -> None:
    await submit(broker, *(job(gates=("smtp",), priority=9) for _ in range(5)), *(job() for _ in range(5)))

    none = await claim(broker, gated=0, limit=3)
    two = await claim(broker, gated=2)

    assert [got.gates for got in none] == [(), (), ()]
    assert Counter(got.gates for got in two) == {("smtp",): 2, (): 2}
