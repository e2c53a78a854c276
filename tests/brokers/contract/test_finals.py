"""What `finals` promises: whoever waits for a job hears of its end, whatever the end is."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from taskflow.core.decision import Bury
from taskflow.core.job import JobState
from taskflow.errors import JobNotFound
from tests.brokers.words import (
    BOOM,
    DONE,
    LONG_S,
    claim,
    claim_one,
    die,
    eventually,
    job,
    make_suspect,
    reclaim,
    settle,
    settle_all,
    submit,
    until_it_waits_for_ends,
)

if TYPE_CHECKING:
    from taskflow.brokers.base import FullBroker

pytestmark = pytest.mark.anyio


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
        await until_it_waits_for_ends(broker)
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
        await until_it_waits_for_ends(broker)
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
        await until_it_waits_for_ends(broker, len(waiting))
        while claims := await claim(broker):
            await settle_all(broker, claims, DONE)

    assert [[*task.result()] for task in waiting] == [[one.id] for one in jobs for _ in range(2)]


async def test_cancelled_waiter_leaves_the_others_waiting(broker: FullBroker) -> None:
    one = job()
    await submit(broker, one)
    impatient = asyncio.create_task(broker.finals([one.id], LONG_S))
    patient = asyncio.create_task(broker.finals([one.id], LONG_S))
    await until_it_waits_for_ends(broker, 2)

    impatient.cancel()
    with pytest.raises(asyncio.CancelledError):
        await impatient
    await settle(broker, await claim_one(broker), DONE)

    async with asyncio.timeout(10):
        assert [*await patient] == [one.id]
