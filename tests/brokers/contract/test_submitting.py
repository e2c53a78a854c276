"""What `submit` promises: each job once, by its id and by its key; and no queue beyond its bound."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from taskflow.brokers.base import Accepted, Settled
from taskflow.core.job import JobState
from tests.brokers.words import (
    DONE,
    LONG_S,
    claim,
    claim_one,
    die,
    each_end,
    each_that_runs_again,
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


async def test_submit_answers_each_job_in_order(broker: FullBroker) -> None:
    first, second = job(), job()

    receipts = await submit(broker, first, second)

    assert receipts == [(first.id, Accepted.NEW, 0.0), (second.id, Accepted.NEW, 0.0)]


async def test_submit_of_nothing_answers_nothing(broker: FullBroker) -> None:
    assert await broker.submit([], {}) == []


async def test_submit_is_idempotent_by_id_whatever_became_of_the_job(broker: FullBroker) -> None:
    one = job()
    same = (one.id, Accepted.SAME_ID)

    receipts = await submit(broker, one, one)
    while_ready = await submit(broker, one)
    running = await claim_one(broker)
    while_running = await submit(broker, one)
    await settle(broker, running, DONE)
    when_final = await submit(broker, one)

    assert [receipt[:2] for receipt in receipts] == [(one.id, Accepted.NEW), same]
    assert [receipt[:2] for receipt in (*while_ready, *while_running, *when_final)] == [same, same, same]
    assert await claim(broker) == []


async def test_key_of_a_job_that_is_not_final_names_that_job(broker: FullBroker) -> None:
    holder = job(key="ada")
    await submit(broker, holder)

    receipts = await submit(broker, job(key="ada"), job(key="bob"), job(key="ada", task="other"))

    assert [receipt.accepted for receipt in receipts] == [Accepted.SAME_KEY, Accepted.NEW, Accepted.NEW]
    assert receipts[0].job_id == holder.id


async def test_key_is_unique_within_one_submit(broker: FullBroker) -> None:
    first, second = job(key="ada"), job(key="ada")

    receipts = await submit(broker, first, second)

    assert [receipt[:2] for receipt in receipts] == [(first.id, Accepted.NEW), (first.id, Accepted.SAME_KEY)]


@each_that_runs_again
async def test_key_is_kept_while_the_job_may_run_again(broker: FullBroker, decision: Decision) -> None:
    holder = job(key="ada")
    await submit(broker, holder)
    running = await claim_one(broker)

    while_running = await submit(broker, job(key="ada"))
    await settle(broker, running, decision)
    while_waiting = await submit(broker, job(key="ada"))

    assert [receipt[:2] for receipt in (*while_running, *while_waiting)] == [(holder.id, Accepted.SAME_KEY)] * 2


@each_end
async def test_key_is_free_once_the_job_is_final(broker: FullBroker, decision: Decision, end: JobState) -> None:
    holder = job(key="ada")
    await submit(broker, holder)
    await settle(broker, await claim_one(broker), decision)

    (receipt,) = await submit(broker, job(key="ada"))

    assert await state(broker, holder.id) is end
    assert receipt.accepted is Accepted.NEW


async def test_full_queue_refuses_and_says_when_to_come_back(broker: FullBroker) -> None:
    jobs = [job(), job(delay_s=LONG_S), job()]

    receipts = await submit(broker, *jobs, bound=2)

    assert [receipt.accepted for receipt in receipts] == [Accepted.NEW, Accepted.NEW, Accepted.QUEUE_FULL]
    assert receipts[2].job_id == jobs[2].id
    assert receipts[2].retry_after_s > 0


async def test_refused_job_leaves_no_trace(broker: FullBroker) -> None:
    refused = job(key="ada")
    await submit(broker, job(), bound=1)
    await submit(broker, refused, bound=1)

    (receipt,) = await submit(broker, refused)

    assert receipt.accepted is Accepted.NEW


async def test_running_jobs_do_not_count_for_the_bound(broker: FullBroker) -> None:
    await submit(broker, job(), bound=1)
    await claim_one(broker)

    (receipt,) = await submit(broker, job(), bound=1)

    assert receipt.accepted is Accepted.NEW


async def test_bound_is_of_each_queue(broker: FullBroker) -> None:
    receipts = await broker.submit([job(queue="a"), job(queue="b"), job(queue="a")], {"a": 1, "b": 1})

    assert [receipt.accepted for receipt in receipts] == [Accepted.NEW, Accepted.NEW, Accepted.QUEUE_FULL]


@each_that_runs_again
async def test_full_queue_takes_back_what_runs_again(broker: FullBroker, decision: Decision) -> None:
    one = job()
    await submit(broker, one)
    running = await claim_one(broker)
    await submit(broker, job(), bound=1)

    reply = await settle(broker, running, decision)

    assert reply.answer is Settled.APPLIED
    assert not (await shown(broker, one.id)).finished_at


async def test_full_queue_takes_back_what_a_dead_worker_held(broker: FullBroker) -> None:
    one = job()
    await submit(broker, one)
    await claim_one(broker)
    await submit(broker, job(), bound=1)

    await die(broker, "w1")

    assert await state(broker, one.id) is JobState.READY


async def test_jobs_of_one_gate_fill_at_most_half_of_a_queue(broker: FullBroker) -> None:
    through_smtp = [job(gates=("smtp",)) for _ in range(6)]

    receipts = await submit(broker, *through_smtp, bound=10)
    others = await submit(broker, job(gates=("http",)), job(), bound=10)

    assert [receipt.accepted for receipt in receipts] == [Accepted.NEW] * 5 + [Accepted.GATE_FULL]
    assert receipts[5].retry_after_s > 0
    assert [receipt.accepted for receipt in others] == [Accepted.NEW, Accepted.NEW]


async def test_gate_is_not_full_for_what_runs_or_ended(broker: FullBroker) -> None:
    await submit(broker, job(gates=("smtp",)), bound=2)
    running = await claim_one(broker)

    while_running = await submit(broker, job(gates=("smtp",)), bound=2)
    after_that = await submit(broker, job(gates=("smtp",)), bound=2)
    await settle(broker, running, DONE)
    await settle(broker, await claim_one(broker), DONE)
    after_all = await submit(broker, job(gates=("smtp",)), bound=2)

    answers = [receipt.accepted for receipt in (*while_running, *after_that, *after_all)]
    assert answers == [Accepted.NEW, Accepted.GATE_FULL, Accepted.NEW]


async def test_full_queue_that_drains_asks_to_come_back_sooner(broker: FullBroker) -> None:
    await submit(broker, job(queue="idle"), bound=1)
    await submit(broker, *(job() for _ in range(100)))
    await settle_all(broker, await claim(broker), DONE)
    await submit(broker, job(), bound=1)

    (idle,) = await submit(broker, job(queue="idle"), bound=1)
    (draining,) = await submit(broker, job(), bound=1)

    assert 0 < draining.retry_after_s < idle.retry_after_s
