"""What becomes of a job by each decision, and what is kept of its attempts: errors, progress, checkpoints."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from taskflow.brokers.base import ERRORS_KEPT, Note, Settled, Settlement
from taskflow.core.decision import Bury, Cancel, Complete, Expire, Release, Retry, Snooze
from taskflow.core.job import JobState
from taskflow.core.outcome import ErrorRecord
from tests.brokers.words import (
    AGAIN,
    BOOM,
    DONE,
    LONG_S,
    claim,
    claim_one,
    claimed_soon,
    die,
    each_end,
    job,
    named,
    settle,
    shown,
    state,
    submit,
)

if TYPE_CHECKING:
    from taskflow.brokers.base import FullBroker
    from taskflow.core.decision import Decision

pytestmark = pytest.mark.anyio


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
