"""The contract of `taskflow.brokers.base`, promise by promise, over every broker.

Brokers with a server or a file have a real clock, so nothing here sleeps for a guess: tests poll with a deadline.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from taskflow.brokers.base import (
    ERRORS_KEPT,
    QUOTA,
    WAKE,
    Accepted,
    BeatReply,
    Cancelled,
    Note,
    Retention,
    Retried,
    Settled,
    Settlement,
)
from taskflow.core import gate as gating
from taskflow.core.decision import Bury, Cancel, Complete, Expire, Release, Retry, Snooze
from taskflow.core.job import JobState
from taskflow.core.outcome import ErrorRecord
from taskflow.core.specs import CircuitBreaker
from taskflow.errors import BrokerError, JobNotFound

from .words import (
    BOOM,
    KEEP,
    LONG_S,
    NOTHING_KEPT,
    PATIENCE_S,
    ask,
    claim,
    claim_one,
    claimed_soon,
    die,
    eventually,
    ids,
    job,
    make_suspect,
    reclaim,
    settle,
    settle_all,
    shown,
    state,
    submit,
)

if TYPE_CHECKING:
    from taskflow.brokers.base import FullBroker
    from taskflow.core.decision import Decision
    from taskflow.core.job import Claim

pytestmark = pytest.mark.anyio

DONE = Complete(b'"done"')
AGAIN = Retry(0.0, BOOM)
RUNS_AGAIN = [Retry(0.0, BOOM), Retry(LONG_S, BOOM), Snooze(0.0, "busy"), Snooze(LONG_S, "busy"), Release()]
ENDS = [
    (DONE, JobState.SUCCEEDED),
    (Bury(BOOM), JobState.DEAD),
    (Expire("deadline"), JobState.EXPIRED),
    (Cancel(), JobState.CANCELLED),
]


def named(value: object) -> str:
    return type(value).__name__ + (f"-{value.delay_s:g}s" if isinstance(value, (Retry, Snooze)) else "")


each_that_runs_again = pytest.mark.parametrize("decision", RUNS_AGAIN, ids=named)
each_end = pytest.mark.parametrize(("decision", "end"), ENDS, ids=[end for _, end in ENDS])


# ---- open and close ----


async def test_close_is_idempotent(broker: FullBroker) -> None:
    await broker.close()
    await broker.close()


@pytest.mark.parametrize("turns", [1, 2, 5, 15, 40])
async def test_close_lets_what_was_asked_be_done_and_ends_all_waits(broker: FullBroker, turns: int) -> None:
    running = job(queue="other")
    await submit(broker, running)
    calls = [asyncio.create_task(submit(broker, job(queue="calls"))) for _ in range(12)]  # more than connections
    for_work = asyncio.create_task(broker.wait(ask(queues=("empty",)), LONG_S))
    for_end = asyncio.create_task(broker.finals([running.id], LONG_S))
    for _ in range(turns):  # of the loop: how far they are when it closes
        await asyncio.sleep(0)

    await broker.close()

    async with asyncio.timeout(PATIENCE_S):
        accepted = [receipt.accepted for (receipt,) in await asyncio.gather(*calls)]
        assert accepted == [Accepted.NEW] * 12
        (told,) = await asyncio.gather(for_work, return_exceptions=True)
        assert told is None or type(told) is BrokerError  # no outage, which its subclass would be
        with pytest.raises(BrokerError) as closed:  # that no end is known is not the same as none within the time
            await for_end
        assert type(closed.value) is BrokerError


async def test_jobs_are_there_after_close_and_open(broker: FullBroker) -> None:
    one = job()
    await submit(broker, one)

    await broker.close()
    await broker.open()

    assert ids(await claim(broker)) == [one.id]


# ---- submit ----


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


# ---- claim ----


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
            await asyncio.sleep(0)
        return mine

    taken = await asyncio.gather(*(claimer(f"w{number}") for number in range(4)))

    assert sorted(job_id for mine in taken for job_id in mine) == sorted(one.id for one in jobs)


async def test_claim_gives_at_most_the_limit(broker: FullBroker) -> None:
    await submit(broker, *(job() for _ in range(5)))

    assert len(await claim(broker, limit=3)) == 3
    assert await claim(broker, limit=0) == []


async def test_claim_from_a_queue_that_does_not_exist_finds_nothing(broker: FullBroker) -> None:
    assert await claim(broker, queues=("nowhere",)) == []


async def test_token_grows_with_every_claim(broker: FullBroker) -> None:
    await submit(broker, job())
    tokens = []

    for _ in range(5):
        one = await claim_one(broker)
        tokens.append(one.token)
        await settle(broker, one, AGAIN)

    assert tokens == sorted(set(tokens))


async def test_higher_priority_goes_first(broker: FullBroker) -> None:
    low, high, middle = job(priority=0), job(priority=9, lane="b"), job(priority=5, lane="c")
    await submit(broker, low, high, middle)

    assert ids(await claim(broker)) == [high.id, middle.id, low.id]


async def test_higher_priority_goes_first_when_it_came_later(broker: FullBroker) -> None:
    await submit(broker, *(job(lane="a") for _ in range(5)))
    urgent = job(lane="a", priority=9)
    await claim(broker, limit=1)
    await submit(broker, urgent)

    assert ids(await claim(broker, limit=1)) == [urgent.id]


async def test_within_a_lane_the_order_of_submission_decides(broker: FullBroker) -> None:
    jobs = [job() for _ in range(20)]
    await submit(broker, *jobs[:7])
    await submit(broker, *jobs[7:])

    in_two = ids(await claim(broker, limit=8)) + ids(await claim(broker))

    assert in_two == [one.id for one in jobs]


async def test_within_a_lane_the_one_due_earlier_goes_first(broker: FullBroker) -> None:
    delayed, later = job(delay_s=0.05), job()
    await submit(broker, delayed)
    await submit(broker, later)

    claims = await eventually(lambda: _two_at_once(broker))

    assert ids(claims) == [later.id, delayed.id]


async def _two_at_once(broker: FullBroker) -> list:
    """Both jobs in one claim, or none: what was claimed alone goes back to its place."""
    claims = await claim(broker)
    if len(claims) == 2:
        return claims
    await settle_all(broker, claims, Release())
    return []


async def test_released_job_is_at_the_front_of_the_line_again(broker: FullBroker) -> None:
    first, second = job(), job()
    await submit(broker, first, second)

    await settle(broker, await claim_one(broker, limit=1), Release())

    assert ids(await claim(broker)) == [first.id, second.id]


async def test_retried_job_goes_behind_those_that_are_due_already(broker: FullBroker) -> None:
    first, second = job(), job()
    await submit(broker, first, second)

    await settle(broker, await claim_one(broker, limit=1), AGAIN)

    assert ids(await claim(broker)) == [second.id, first.id]


async def test_lanes_have_their_turns(broker: FullBroker) -> None:
    await submit(broker, *(job(lane=lane) for lane in "aaaaaaaaaaaabbbbbbbbbbbbcccccccccccc"))

    claims = await claim(broker, limit=3 * QUOTA)

    assert Counter(got.lane for got in claims) == {"a": QUOTA, "b": QUOTA, "c": QUOTA}


async def test_few_lanes_share_a_large_claim(broker: FullBroker) -> None:
    await submit(broker, *(job(lane=lane) for lane in "a" * 30 + "b" * 30))

    claims = await claim(broker, limit=20)

    assert Counter(got.lane for got in claims) == {"a": 10, "b": 10}


async def test_lane_with_a_long_line_does_not_hold_up_the_next_one(broker: FullBroker) -> None:
    await submit(broker, *(job(lane="long") for _ in range(50)))
    await submit(broker, job(lane="short"))

    lanes = [(await claim_one(broker, limit=1)).lane for _ in range(QUOTA + 1)]

    assert "short" in lanes


async def test_lanes_with_and_without_gates_have_their_turns(broker: FullBroker) -> None:
    await submit(broker, *(job(gates=("smtp",), lane=lane) for lane in "aaaaaaaaabbbbbbbbb"))
    await submit(broker, *(job(lane=lane) for lane in "ccccccccc"))

    claims = await claim(broker, limit=3 * QUOTA)
    small = [(await claim_one(broker, limit=1)).lane for _ in range(2 * QUOTA + 1)]

    assert Counter(got.lane for got in claims) == {"a": QUOTA, "b": QUOTA, "c": QUOTA}
    assert {*small} == {"a", "b", "c"}


async def test_lane_alone_gets_the_whole_claim(broker: FullBroker) -> None:
    await submit(broker, *(job(lane="only") for _ in range(30)))

    assert len(await claim(broker, limit=30)) == 30


async def test_claim_takes_second_turns_until_its_limit(broker: FullBroker) -> None:
    await submit(broker, *(job(lane="long") for _ in range(50)), *(job(lane=str(number)) for number in range(9)))

    claims = await claim(broker, limit=50)

    assert Counter(got.lane for got in claims)["long"] == 41


async def test_priority_decides_before_the_turn(broker: FullBroker) -> None:
    await submit(broker, *(job(lane="urgent", priority=9) for _ in range(12)), *(job(lane="calm") for _ in range(12)))

    assert {got.lane for got in await claim(broker, limit=12)} == {"urgent"}


async def test_queues_are_asked_in_the_order_named(broker: FullBroker) -> None:
    await submit(broker, job(queue="a", priority=9), job(queue="b", priority=0))

    assert [got.queue for got in await claim(broker, queues=("b", "a"))] == ["b", "a"]


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


# ---- wait ----


async def within_patience(broker: FullBroker, **fields: object) -> None:
    """`wait` returns long before its own timeout."""
    async with asyncio.timeout(10):
        await broker.wait(ask(**fields), LONG_S)


async def test_wait_returns_at_once_when_there_is_something(broker: FullBroker) -> None:
    await submit(broker, job())

    await within_patience(broker)


async def test_wait_returns_after_its_timeout(broker: FullBroker) -> None:
    async with asyncio.timeout(10):
        await broker.wait(ask(), 0.05)


async def test_submit_wakes_a_waiting_worker(broker: FullBroker) -> None:
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(claimed_soon(broker))
        await asyncio.sleep(0)
        await submit(broker, job())

    assert len(waiting.result()) == 1


async def test_resume_wakes_a_waiting_worker(broker: FullBroker) -> None:
    await submit(broker, job())
    await broker.pause("q")

    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(claimed_soon(broker))
        await asyncio.sleep(0.01)
        await broker.resume("q")

    assert len(waiting.result()) == 1


async def test_settled_claim_wakes_a_worker_that_waits_for_the_gate(broker: FullBroker) -> None:
    await broker.gate("smtp", gating.Declare(limit=1))
    await submit(broker, job(gates=("smtp",)), job(gates=("smtp",)))
    running = await claim_one(broker)

    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(claimed_soon(broker, "w2"))
        await asyncio.sleep(0.01)
        await settle(broker, running, DONE)

    assert len(waiting.result()) == 1


async def test_change_of_a_gate_wakes_a_worker_that_waits_for_it(broker: FullBroker) -> None:
    await broker.gate("smtp", gating.Hold(LONG_S))
    await submit(broker, job(gates=("smtp",)))

    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(claimed_soon(broker))
        await asyncio.sleep(0.01)
        await broker.gate("smtp", gating.Release())

    assert len(waiting.result()) == 1


async def test_hold_that_is_over_wakes_a_worker(broker: FullBroker) -> None:
    await broker.gate("smtp", gating.Hold(0.1))
    await submit(broker, job(gates=("smtp",)))

    assert len(await claimed_soon(broker)) == 1


async def test_hold_that_was_prolonged_wakes_a_worker_when_it_is_over(broker: FullBroker) -> None:
    await broker.gate("smtp", gating.Hold(0.3))
    await submit(broker, job(gates=("smtp",)))
    assert await claim(broker) == []

    await broker.gate("smtp", gating.Hold(0.5))

    assert len(await claimed_soon(broker)) == 1


async def test_next_token_of_a_rate_wakes_a_worker(broker: FullBroker) -> None:
    await broker.gate("smtp", gating.Declare(rate=gating.Rate(0.05)))
    await submit(broker, *(job(gates=("smtp",)) for _ in range(4)))

    taken = [await claimed_soon(broker) for _ in range(4)]

    assert [len(claims) for claims in taken] == [1, 1, 1, 1]


async def test_reclaim_wakes_a_waiting_worker(broker: FullBroker) -> None:
    await submit(broker, job())
    await claim_one(broker, "dies")

    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(claimed_soon(broker))
        await asyncio.sleep(0.01)
        await die(broker, "dies")

    assert len(waiting.result()) == 1


async def test_retried_job_wakes_a_worker_when_it_is_due(broker: FullBroker) -> None:
    await submit(broker, job())
    await settle(broker, await claim_one(broker), Retry(0.05, BOOM))

    assert len(await claimed_soon(broker)) == 1


async def test_cancelled_wait_leaves_the_broker_as_it_was(broker: FullBroker) -> None:
    waiting = asyncio.create_task(broker.wait(ask(), LONG_S))
    await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await submit(broker, job())

    assert len(await claim(broker)) == 1


# ---- settle ----


async def test_completed_job_has_succeeded_and_keeps_its_result(broker: FullBroker) -> None:
    one = job()
    await submit(broker, one)

    reply = await settle(broker, await claim_one(broker), Complete(b"[1,2]"))

    assert reply == (Settled.APPLIED, JobState.SUCCEEDED)
    info = await shown(broker, one.id)
    assert (info.state, info.attempts, info.worker) == (JobState.SUCCEEDED, 1, None)
    assert info.finished_at is not None
    assert (await broker.finals([one.id], 0))[one.id].result == b"[1,2]"
    assert await claim(broker) == []


async def test_retry_spends_an_attempt_and_keeps_the_error(broker: FullBroker) -> None:
    one = job()
    await submit(broker, one)

    reply = await settle(broker, await claim_one(broker), Retry(LONG_S, BOOM))

    assert reply == (Settled.APPLIED, JobState.SCHEDULED)
    info = await shown(broker, one.id)
    assert (info.state, info.attempts, info.snoozes, info.lost) == (JobState.SCHEDULED, 1, 0, 0)
    (error,) = info.errors
    assert error[2:] == (BOOM.type, BOOM.message, BOOM.kind, BOOM.stack)
    assert error.attempt == 1
    assert abs(error.at - time.time()) < 60


@pytest.mark.parametrize("decision", [Retry(0.6, BOOM), Snooze(0.6, "busy")], ids=named)
async def test_delayed_job_is_not_claimed_before_it_is_due(broker: FullBroker, decision: Decision) -> None:
    await submit(broker, job())
    running = await claim_one(broker)
    settled_at = time.monotonic()
    await settle(broker, running, decision)

    before = await claim(broker)
    (got,) = await claimed_soon(broker)

    assert before == []
    assert time.monotonic() - settled_at >= 0.599
    assert got.job_id == running.job_id


@pytest.mark.parametrize("decision", [Retry(0.0, BOOM), Snooze(0.0, "busy"), Release()], ids=named)
async def test_job_without_delay_is_ready_at_once(broker: FullBroker, decision: Decision) -> None:
    await submit(broker, job())

    reply = await settle(broker, await claim_one(broker), decision)

    assert reply == (Settled.APPLIED, JobState.READY)
    assert len(await claim(broker)) == 1


async def test_next_claim_tells_the_attempts_that_were_spent(broker: FullBroker) -> None:
    await submit(broker, job())
    await settle(broker, await claim_one(broker), AGAIN)
    await settle(broker, await claim_one(broker), Snooze(0.0, "busy"))
    await settle(broker, await claim_one(broker), AGAIN)

    got = await claim_one(broker)

    assert (got.attempts, got.snoozes, got.lost) == (2, 1, 0)


async def test_snooze_spends_no_attempt_and_says_why(broker: FullBroker) -> None:
    one = job()
    await submit(broker, one)

    reply = await settle(broker, await claim_one(broker), Snooze(LONG_S, "circuit open"))

    assert reply == (Settled.APPLIED, JobState.SCHEDULED)
    info = await shown(broker, one.id)
    assert (info.attempts, info.snoozes, info.reason, info.errors) == (0, 1, "circuit open", ())


async def test_snooze_keeps_the_error_of_a_failed_probe(broker: FullBroker) -> None:
    one = job()
    await submit(broker, one)

    await settle(broker, await claim_one(broker), Snooze(LONG_S, "probe failed", BOOM))

    info = await shown(broker, one.id)
    assert (info.attempts, [error.message for error in info.errors]) == (0, ["boom"])


async def test_release_spends_nothing(broker: FullBroker) -> None:
    one = job()
    await submit(broker, one)
    due_at = (await shown(broker, one.id)).due_at

    await settle(broker, await claim_one(broker), Release())

    info = await shown(broker, one.id)
    assert (info.attempts, info.snoozes, info.lost, info.errors) == (0, 0, 0, ())
    assert info.due_at == pytest.approx(due_at, abs=1e-3)


@pytest.mark.parametrize("spent", [True, False])
async def test_buried_job_is_dead_with_its_error(broker: FullBroker, spent: bool) -> None:
    one = job()
    await submit(broker, one)
    await settle(broker, await claim_one(broker), AGAIN)

    reply = await settle(broker, await claim_one(broker), Bury(ErrorRecord("TypeError", "bad", "permanent"), spent))

    assert reply == (Settled.APPLIED, JobState.DEAD)
    info = await shown(broker, one.id)
    assert (info.state, info.attempts) == (JobState.DEAD, 1 + spent)
    assert [error.message for error in info.errors] == ["boom", "bad"]
    final = (await broker.finals([one.id], 0))[one.id]
    assert final.error is not None
    assert (final.state, final.error.type, final.result) == (JobState.DEAD, "TypeError", None)


async def test_expired_job_says_why(broker: FullBroker) -> None:
    one = job()
    await submit(broker, one)

    reply = await settle(broker, await claim_one(broker), Expire("deadline"))

    assert reply == (Settled.APPLIED, JobState.EXPIRED)
    info = await shown(broker, one.id)
    assert (info.state, info.reason, info.attempts) == (JobState.EXPIRED, "deadline", 0)


@each_end
async def test_final_job_is_never_claimed_again(broker: FullBroker, decision: Decision, end: JobState) -> None:
    one = job()
    await submit(broker, one)

    reply = await settle(broker, await claim_one(broker), decision)

    assert reply == (Settled.APPLIED, end)
    assert await claim(broker) == []
    await die(broker, "w1")
    assert await state(broker, one.id) is end


async def test_error_history_keeps_the_last_ones(broker: FullBroker) -> None:
    one = job()
    await submit(broker, one)

    for number in range(ERRORS_KEPT + 3):
        await settle(broker, await claim_one(broker), Retry(0.0, ErrorRecord("ValueError", str(number), "transient")))

    info = await shown(broker, one.id)
    assert [error.message for error in info.errors] == [str(number) for number in range(3, ERRORS_KEPT + 3)]
    assert [error.attempt for error in info.errors] == list(range(4, ERRORS_KEPT + 4))


@pytest.mark.parametrize("decision", [*RUNS_AGAIN, *(decision for decision, _ in ENDS)], ids=named)
async def test_same_settlement_again_is_already_done(broker: FullBroker, decision: Decision) -> None:
    one = job()
    await submit(broker, one)
    running = await claim_one(broker)
    first = await settle(broker, running, decision)
    before = await shown(broker, one.id)

    again = await settle(broker, running, decision)

    assert again == (Settled.ALREADY, first.state)
    assert await shown(broker, one.id) == before


async def test_token_that_settled_is_already_done_whatever_it_says_later(broker: FullBroker) -> None:
    one = job()
    await submit(broker, one)
    running = await claim_one(broker)
    await settle(broker, running, DONE)

    again = await settle(broker, running, Bury(BOOM))

    assert again == (Settled.ALREADY, JobState.SUCCEEDED)
    assert (await shown(broker, one.id)).errors == ()


async def test_settlement_is_already_done_when_the_job_runs_anew(broker: FullBroker) -> None:
    await submit(broker, job())
    first = await claim_one(broker)
    await settle(broker, first, AGAIN)
    second = await claim_one(broker)

    late = await settle(broker, first, DONE)

    assert late == (Settled.ALREADY, JobState.RUNNING)
    assert (await settle(broker, second, DONE)).answer is Settled.APPLIED


async def test_settlement_after_the_claim_was_lost_is_stale_and_changes_nothing(broker: FullBroker) -> None:
    one = job()
    await submit(broker, one)
    zombie = await claim_one(broker, "w1")
    await die(broker, "w1")
    before = await shown(broker, one.id)

    while_ready = await settle(broker, zombie, Complete(b"1"))
    unchanged = await shown(broker, one.id)
    running = await claim_one(broker, "w2")
    while_running = await settle(broker, zombie, Bury(BOOM))
    await settle(broker, running, DONE)
    when_final = await settle(broker, zombie, Bury(BOOM))

    assert [while_ready, while_running, when_final] == [(Settled.STALE, None)] * 3
    assert unchanged == before
    assert (await shown(broker, one.id)).state is JobState.SUCCEEDED
    assert (await shown(broker, one.id)).errors == ()


async def test_settlement_with_a_made_up_token_or_id_is_stale(broker: FullBroker) -> None:
    one = job()
    await submit(broker, one)
    running = await claim_one(broker)

    replies = await broker.settle(
        [Settlement(one.id, running.token + 1, DONE), Settlement("0" * 32, running.token, DONE)]
    )

    assert replies == [(Settled.STALE, None)] * 2
    assert await state(broker, one.id) is JobState.RUNNING


async def test_settlement_of_a_job_that_was_never_claimed_is_stale(broker: FullBroker) -> None:
    one = job()
    await submit(broker, one)

    replies = await broker.settle([Settlement(one.id, token, DONE) for token in (0, 1, -1)])

    assert replies == [(Settled.STALE, None)] * 3
    assert await state(broker, one.id) is JobState.READY


async def test_settle_answers_each_in_order(broker: FullBroker) -> None:
    await submit(broker, *(job() for _ in range(6)))
    claims = await claim(broker)
    decisions = [DONE, AGAIN, Snooze(LONG_S, "busy"), Release(), Bury(BOOM), Cancel()]
    words = [Settlement(got.job_id, got.token, word) for got, word in zip(claims, decisions, strict=True)]

    replies = await broker.settle([*words, words[0], Settlement(claims[1].job_id, claims[1].token - 1, DONE)])

    assert [reply.state for reply in replies] == [
        JobState.SUCCEEDED,
        JobState.READY,
        JobState.SCHEDULED,
        JobState.READY,
        JobState.DEAD,
        JobState.CANCELLED,
        JobState.SUCCEEDED,
        None,
    ]
    assert [reply.answer for reply in replies] == [Settled.APPLIED] * 6 + [Settled.ALREADY, Settled.STALE]


async def test_settle_of_nothing_answers_nothing(broker: FullBroker) -> None:
    assert await broker.settle([]) == []


# ---- leases: beat, leave, reclaim ----


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
    tokens = {got.job_id: got.token for got in await claim(broker, "w1", lease_s=0.15)}
    others = await _lost_to_a_short_lease(broker)

    async def beaten() -> bool:
        assert await broker.beat("w1", tokens, 0.15) == BeatReply()
        return bool({moved.job_id for moved in await reclaim(broker)} & {others})

    await eventually(beaten)

    assert set((await broker.states([*tokens])).values()) == {JobState.RUNNING}


async def _lost_to_a_short_lease(broker: FullBroker) -> str:
    """A job of another worker whose lease, three times as long, will end: something to wait for."""
    await submit(broker, job(queue="other"))
    return (await claim_one(broker, "w2", queues=("other",), lease_s=0.45)).job_id


async def test_claim_renews_the_lease(broker: FullBroker) -> None:
    await submit(broker, job())
    one = await claim_one(broker, "w1", lease_s=0.15)
    other = await _lost_to_a_short_lease(broker)
    moved: set[str] = set()

    async def claimed() -> bool:
        await claim(broker, "w1", lease_s=0.15, queues=("nothing here",))
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
    await submit(broker, job(), job())
    mine, cancelled = await claim(broker, "w1")
    await broker.cancel([cancelled.job_id])

    def beat() -> BeatReply:
        return sync.beat("w1", {mine.job_id: mine.token, cancelled.job_id: cancelled.token, "0" * 32: 1}, 60)

    try:
        reply = await asyncio.to_thread(beat)
    finally:
        await asyncio.to_thread(sync.close)

    assert reply == BeatReply(lost=("0" * 32,), cancel=(cancelled.job_id,))


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

    assert set((await broker.states(ids(lost))).values()) == {JobState.READY}
    assert set((await broker.states(ids(kept))).values()) == {JobState.RUNNING}


async def test_reclaimed_job_keeps_its_place_in_the_line(broker: FullBroker) -> None:
    first, second = job(), job()
    await submit(broker, first, second)
    await claim_one(broker, "w1", limit=1)

    await die(broker, "w1")

    assert ids(await claim(broker, "w2")) == [first.id, second.id]


# ---- suspects ----


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


# ---- notes ----


async def test_progress_is_shown_and_checkpoint_is_handed_to_the_next_attempt(broker: FullBroker) -> None:
    await submit(broker, job())
    running = await claim_one(broker)

    answers = await broker.note(
        [
            Note(running.job_id, running.token, progress=b"0.5", checkpoint=b'{"page":3}'),
            Note(running.job_id, running.token, progress=b"0.6"),
            Note(running.job_id, running.token),
        ]
    )
    await settle(broker, running, AGAIN)

    assert answers == [Settled.APPLIED] * 3
    assert (await shown(broker, running.job_id)).progress == b"0.6"
    assert (await claim_one(broker)).checkpoint == b'{"page":3}'


async def test_checkpoint_survives_the_worker(broker: FullBroker) -> None:
    await submit(broker, job())
    running = await claim_one(broker, "w1")
    await broker.note([Note(running.job_id, running.token, checkpoint=b"7")])

    await die(broker, "w1")

    assert (await claim_one(broker, "w2")).checkpoint == b"7"


async def test_late_note_changes_nothing(broker: FullBroker) -> None:
    await submit(broker, job(), job())
    lost, settled = await claim(broker, "w1")
    await settle(broker, settled, AGAIN)
    await die(broker, "w1")

    answers = await broker.note(
        [
            Note(lost.job_id, lost.token, b"1", b"1"),
            Note(settled.job_id, settled.token, b"1", b"1"),
            Note("0" * 32, 1, b"1"),
        ]
    )

    assert answers == [Settled.STALE, Settled.ALREADY, Settled.STALE]
    assert {got.checkpoint for got in await claim(broker)} == {None}
    assert (await shown(broker, lost.job_id)).progress is None


# ---- finals ----


async def test_finals_tells_at_once_what_is_final_already(broker: FullBroker) -> None:
    done, open_ = job(), job(queue="other")
    await submit(broker, done, open_)
    await settle(broker, await claim_one(broker), DONE)

    finals = await broker.finals([open_.id, done.id, "0" * 32], LONG_S)

    assert finals == {done.id: (done.id, JobState.SUCCEEDED, b'"done"', None, True)}


async def test_finals_waits_for_the_first_to_end(broker: FullBroker) -> None:
    one, other = job(), job()
    await submit(broker, one, other)
    running = await claim_one(broker, limit=1)

    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        waiting = group.create_task(broker.finals([other.id, one.id], LONG_S))
        await asyncio.sleep(0.01)
        await settle(broker, running, DONE)

    assert [*waiting.result()] == [one.id]


@pytest.mark.parametrize("how", ["buried", "cancelled", "expired", "lost"])
async def test_finals_hears_of_every_end(broker: FullBroker, how: str) -> None:
    one = job(expires_s=0.05 if how == "expired" else LONG_S)
    await submit(broker, one)
    if how == "lost":
        await make_suspect(broker, one)

    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        waiting = group.create_task(broker.finals([one.id], LONG_S))
        await asyncio.sleep(0.01)
        if how == "buried":
            await settle(broker, await claim_one(broker), Bury(BOOM))
        elif how == "cancelled":
            await broker.cancel([one.id])
        elif how == "expired":
            await eventually(lambda: reclaim(broker))
        else:
            await claim_one(broker, "w1")
            await die(broker, "w1", max_lost=1)

    state = {"buried": JobState.DEAD, "lost": JobState.DEAD}.get(how) or JobState(how)
    assert waiting.result()[one.id].state is state


async def test_finals_is_empty_after_its_timeout(broker: FullBroker) -> None:
    one = job()
    await submit(broker, one)

    assert await broker.finals([one.id], 0) == {}
    assert await broker.finals([one.id], 0.02) == {}


async def test_finals_of_unknown_jobs_is_an_error(broker: FullBroker) -> None:
    with pytest.raises(JobNotFound):
        await broker.finals(["0" * 32, "1" * 32], LONG_S)


async def test_many_wait_each_for_its_own_job(broker: FullBroker) -> None:
    jobs = [job() for _ in range(200)]
    await submit(broker, *jobs)

    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        waiting = [group.create_task(broker.finals([one.id], LONG_S)) for one in jobs for _ in range(2)]
        await asyncio.sleep(0.01)
        while claims := await claim(broker):
            await settle_all(broker, claims, DONE)

    assert [[*task.result()] for task in waiting] == [[one.id] for one in jobs for _ in range(2)]


async def test_cancelled_waiter_leaves_the_others_waiting(broker: FullBroker) -> None:
    one = job()
    await submit(broker, one)
    impatient = asyncio.create_task(broker.finals([one.id], LONG_S))
    patient = asyncio.create_task(broker.finals([one.id], LONG_S))
    await asyncio.sleep(0.01)

    impatient.cancel()
    with pytest.raises(asyncio.CancelledError):
        await impatient
    await settle(broker, await claim_one(broker), DONE)

    async with asyncio.timeout(10):
        assert [*await patient] == [one.id]


# ---- gates ----


def through(*gates: str, count: int = 1, **fields: object) -> list:
    return [job(gates=gates, **fields) for _ in range(count)]


QUICK = CircuitBreaker("smtp", open_for=0.2, max_open_for=0.2, close_after=1)


async def gate_of(broker: FullBroker, name: str) -> gating.Gate:
    (gate,) = [gate for gate in await broker.gates() if gate.name == name]
    return gate


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
    await broker.gate("smtp", gating.Declare(rate=gating.Rate(0.6, burst=3)))
    await submit(broker, *through("smtp", count=5))

    burst = await claim(broker)
    started_at = time.monotonic()
    nothing = await claim(broker)
    fourth = await claimed_soon(broker)

    assert (len(burst), nothing, len(fourth)) == (3, [], 1)
    assert time.monotonic() - started_at >= 0.05


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


async def test_tripped_gate_is_probed_by_one_claim_of_the_whole_fleet(broker: FullBroker) -> None:
    await submit(broker, *through("smtp", count=25), *through("smtp", count=25, queue="other"))
    await broker.gate("smtp", gating.Trip(0, 1, QUICK))
    held = await claim(broker, "w1", queues=("q", "other"))

    claims = list(await claimed_soon(broker, "w1", queues=("q", "other")))
    for number in range(50):
        claims += await claim(broker, f"w{number % 4}", queues=("q", "other") if number % 2 else ("other", "q"))

    assert held == []
    assert len(claims) == 1
    assert (await gate_of(broker, "smtp")).live == 1


async def test_claim_knows_what_its_tripped_gates_were(broker: FullBroker) -> None:
    await submit(broker, *through("smtp", "db"))
    assert (await claim_one(broker)).recoveries == ()
    await broker.gate("smtp", gating.Trip(0, 1, QUICK))
    await submit(broker, *through("db", "http"), *through("db", "smtp", priority=9), job())
    await broker.gate("smtp", gating.OverrideLimit(5))
    await broker.gate("smtp", gating.Word(1, 2, is_good=True, spec=QUICK))

    got: list[Claim] = []
    while len(got) < 3:
        got += await claimed_soon(broker)

    assert {one.gates: one.recoveries for one in got} == {
        (): (),
        ("db", "http"): (),
        ("db", "smtp"): (gating.Recovery("smtp", 1, 2, 1),),
    }


async def test_late_word_of_an_earlier_era_changes_nothing(broker: FullBroker) -> None:
    await broker.gate("smtp", gating.Trip(0, 1, QUICK))
    failed = await broker.gate("smtp", gating.Word(1, 2, is_good=False, spec=QUICK))

    late = [
        await broker.gate("smtp", gating.Word(1, 3, is_good=True, spec=QUICK)),
        await broker.gate("smtp", gating.Word(1, 4, is_good=False, spec=QUICK)),
        await broker.gate("smtp", gating.Trip(0, 5, QUICK)),
    ]

    assert (failed.era, failed.ramp, failed.failed, failed.word) == (2, 1, 2, 2)
    assert late == [failed] * 3
    assert await broker.gates() == [failed]


async def test_word_that_is_told_twice_counts_once(broker: FullBroker) -> None:
    spec = CircuitBreaker("smtp", close_after=2)
    await broker.gate("smtp", gating.Trip(0, 1, spec))

    once = await broker.gate("smtp", gating.Word(1, 7, is_good=True, spec=spec))
    twice = await broker.gate("smtp", gating.Word(1, 7, is_good=True, spec=spec))

    assert (once.good, once.ramp) == (1, 1)
    assert twice == once


async def test_good_words_widen_the_gate_until_it_is_open(broker: FullBroker) -> None:
    await submit(broker, *through("smtp", count=200))
    await broker.gate("smtp", gating.Trip(0, 1, QUICK))
    widths, word = [], 1

    while (gate := await gate_of(broker, "smtp")).ramp is not None:
        claims = await claimed_soon(broker, limit=200, gated=200)
        widths.append(len(claims))
        assert await claim(broker, limit=200, gated=200) == []
        for _ in claims:
            word += 1
            await broker.gate("smtp", gating.Word(gate.era, word, is_good=True, spec=QUICK))
        await settle_all(broker, claims, DONE)

    assert widths == [1, 2, 4, 8, 16, 32]
    assert len(await claimed_soon(broker, limit=200, gated=200)) == 200 - sum(widths)


async def test_one_failure_in_a_ramp_is_remembered_and_the_second_in_a_row_trips_the_gate(broker: FullBroker) -> None:
    await broker.gate("smtp", gating.Trip(0, 1, QUICK))
    await broker.gate("smtp", gating.Word(1, 2, is_good=True, spec=QUICK))

    once = await broker.gate("smtp", gating.Word(1, 3, is_good=False, spec=QUICK))
    twice = await broker.gate("smtp", gating.Word(1, 4, is_good=False, spec=QUICK))

    assert (once.era, once.ramp, once.good, once.bad) == (1, 2, 0, 1)
    assert (twice.era, twice.ramp, twice.bad, twice.failed, twice.generation) == (2, 1, 0, 2, 4)
    assert await broker.gates() == [twice]


async def test_lost_probe_gives_way_to_the_next(broker: FullBroker) -> None:
    await submit(broker, *through("smtp", count=2))
    await broker.gate("smtp", gating.Trip(0, 1, QUICK))
    probe = (await claimed_soon(broker, "w1"))[0]
    assert await claim(broker, "w2") == []

    await die(broker, "w1")
    (next_probe,) = await claimed_soon(broker, "w2")

    assert (probe.recoveries, next_probe.recoveries) == ((gating.Recovery("smtp", 1, 1, 1),),) * 2
    assert await claim(broker, "w2") == []


@pytest.mark.parametrize("decision", [Release(), Snooze(0.0, "cancelled")], ids=named)
async def test_probe_that_says_nothing_gives_way_to_the_next(broker: FullBroker, decision: Decision) -> None:
    await submit(broker, *through("smtp", count=2))
    await broker.gate("smtp", gating.Trip(0, 1, QUICK))
    (probe,) = await claimed_soon(broker)
    before = await gate_of(broker, "smtp")

    await settle(broker, probe, decision)
    next_probe = await claimed_soon(broker)

    assert len(next_probe) == 1
    assert await gate_of(broker, "smtp") == before


async def test_operators_release_opens_a_tripped_gate_fully(broker: FullBroker) -> None:
    await submit(broker, *through("smtp", count=5))
    await broker.gate("smtp", gating.Trip(0, 1, CircuitBreaker("smtp")))
    assert await claim(broker) == []

    gate = await broker.gate("smtp", gating.Release())

    assert (gate.ramp, gate.failed, gate.era) == (None, 0, 2)
    assert {one.recoveries for one in await claimed_soon(broker)} == {(gating.Recovery("smtp", 2, None, 0),)}
    assert await broker.gate("smtp", gating.Word(1, 9, is_good=False, spec=QUICK)) == await gate_of(broker, "smtp")


async def test_operators_hold_is_not_ended_by_good_words(broker: FullBroker) -> None:
    await submit(broker, *through("smtp", count=5))
    await broker.gate("smtp", gating.Trip(0, 1, QUICK))
    await broker.gate("smtp", gating.OverrideLimit(1))
    await broker.gate("smtp", gating.Hold(LONG_S, "by hand"))

    gate = await broker.gate("smtp", gating.Word(1, 2, is_good=True, spec=QUICK))

    assert (gate.ramp, gate.reason) == (None, "by hand")
    assert await claim(broker) == []


async def test_keyed_gate_trips_alone(broker: FullBroker) -> None:
    await submit(broker, *through("http/a", count=3), *through("http/b", count=3))

    await broker.gate("http/a", gating.Trip(0, 1, CircuitBreaker("http")))

    assert [(got.gates, got.recoveries) for got in await claim(broker)] == [(("http/b",), ())] * 3


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


# ---- expiry ----


async def test_waiting_job_expires(broker: FullBroker) -> None:
    ready = job(expires_s=0.05, expire_reason="deadline", key="ada")
    scheduled = job(expires_s=0.05, expire_reason="max_wait", delay_s=0.05)
    await submit(broker, ready, scheduled)
    moved = {}

    async def both() -> bool:
        moved.update({one.job_id: one for one in await reclaim(broker)})
        return len(moved) == 2

    await eventually(both)

    assert (moved[ready.id].state, moved[ready.id].reason) == (JobState.EXPIRED, "deadline")
    assert (moved[scheduled.id].state, moved[scheduled.id].reason) == (JobState.EXPIRED, "max_wait")
    assert (await shown(broker, ready.id)).reason == "deadline"
    assert await claim(broker) == []
    assert (await submit(broker, job(key="ada")))[0].accepted is Accepted.NEW


async def test_expiry_counts_from_when_the_job_was_first_due(broker: FullBroker) -> None:
    one = job(delay_s=LONG_S, expires_s=0.0)
    await submit(broker, one)

    assert await reclaim(broker) == []
    info = await shown(broker, one.id)
    assert info.expires_at == pytest.approx(info.due_at, abs=1e-3)


async def test_running_job_does_not_expire_and_expires_when_it_waits_again(broker: FullBroker) -> None:
    one, other = job(expires_s=0.05), job(expires_s=0.1, queue="other")
    await submit(broker, one, other)
    running = await claim_one(broker)
    moved = await eventually(lambda: reclaim(broker))
    while other.id not in {found.job_id for found in moved}:
        moved += await eventually(lambda: reclaim(broker))

    while_running = await state(broker, one.id)
    await settle(broker, running, Retry(LONG_S, BOOM))

    assert while_running is JobState.RUNNING
    assert [found.job_id for found in await eventually(lambda: reclaim(broker))] == [one.id]
    assert await state(broker, one.id) is JobState.EXPIRED


async def test_job_behind_a_held_gate_expires(broker: FullBroker) -> None:
    await broker.gate("smtp", gating.Hold(LONG_S))
    await submit(broker, *through("smtp", expires_s=0.02))
    await claim(broker)

    (moved,) = await eventually(lambda: reclaim(broker))

    assert moved.state is JobState.EXPIRED


# ---- retention ----


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
    assert results[one.id].state is JobState.SUCCEEDED


# ---- counts ----


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


# ---- what a person asks: show, list ----


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


# ---- cancel ----


async def test_waiting_job_that_is_cancelled_never_starts(broker: FullBroker) -> None:
    ready, scheduled, key = job(), job(delay_s=0.01), job(key="ada")
    await submit(broker, ready, scheduled, key)

    answers = await broker.cancel([ready.id, scheduled.id, key.id])

    assert answers == [Cancelled.CANCELLED] * 3
    assert set((await broker.states([ready.id, scheduled.id, key.id])).values()) == {JobState.CANCELLED}
    (receipt,) = await submit(broker, job(key="ada"))
    assert receipt.accepted is Accepted.NEW
    assert len(await claim(broker)) == 1


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

    assert {*ids(await claim(broker))} == {one.id for one in jobs} - gone
    assert (await broker.counts())[0].ready == 0


# ---- retry of dead letters ----


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


async def test_job_that_died_again_is_kept_for_its_time(broker: FullBroker) -> None:
    one = job()
    await submit(broker, one)
    await settle(broker, await claim_one(broker), Bury(BOOM))
    await broker.retry([one.id])

    await reclaim(broker, retention=NOTHING_KEPT)
    await settle(broker, await claim_one(broker), Bury(BOOM))
    await reclaim(broker)

    assert await state(broker, one.id) is JobState.DEAD


# ---- purge ----


async def test_job_that_came_back_from_the_dead_does_not_keep_others_from_being_forgotten(broker: FullBroker) -> None:
    back, dead = job(), job()
    for one in (back, dead):
        await submit(broker, one)
        await settle(broker, await claim_one(broker), Bury(BOOM))

    await broker.retry([back.id])

    await eventually(lambda: _gone(broker, dead.id, NOTHING_KEPT))
    assert await state(broker, back.id) is JobState.READY


async def test_retried_dead_job_has_a_fresh_deadline(broker: FullBroker) -> None:
    dead, other = job(expires_s=0.1), job(expires_s=0.15, queue="other")
    await submit(broker, dead, other)
    await settle(broker, await claim_one(broker), Bury(BOOM))
    await eventually(lambda: reclaim(broker))  # the other's deadline, and so the first one's, has passed

    await broker.retry([dead.id])

    assert await reclaim(broker) == []
    assert [moved.job_id for moved in await eventually(lambda: reclaim(broker))] == [dead.id]


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

    await broker.purge(state=JobState.READY)

    assert (await settle(broker, running, DONE)).answer is Settled.APPLIED
