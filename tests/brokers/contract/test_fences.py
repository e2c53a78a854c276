"""What a token promises: it only grows, and every later word about its claim is *applied*, *already* or *stale*."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from taskflow.brokers.base import Note, Settled, Settlement
from taskflow.core.decision import Bury, Complete
from taskflow.core.job import JobState
from tests.brokers.words import (
    AGAIN,
    BOOM,
    DONE,
    ENDS,
    RUNS_AGAIN,
    claim,
    claim_one,
    die,
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


async def test_token_grows_with_every_claim(broker: FullBroker) -> None:
    await submit(broker, job())
    tokens = []

    for _ in range(5):
        one = await claim_one(broker)
        tokens.append(one.token)
        await settle(broker, one, AGAIN)

    assert tokens == sorted(set(tokens))


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
    assert [(await shown(broker, one.job_id)).progress for one in (lost, settled)] == [None, None]
