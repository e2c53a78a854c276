"""A key that somebody's open transaction holds, on PostgreSQL: whoever asks for it hears so, and nobody else pays."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from taskflow import BrokerUnavailable, Settings, TaskFlow
from taskflow.errors import KEY_HELD
from tests.brokers.conftest import postgres
from tests.brokers.words import eventually, job

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.anyio

HELD = ("a", "b", "c", "d")
SOON_S, FIRM_S = 1.5, 9.0  # less than one wait for a key; less than a call may take


async def charge(number: int) -> int:
    return number


@pytest.fixture
def flow() -> TaskFlow:
    namespace = f"held_{uuid.uuid4().hex}"
    flow = TaskFlow(
        settings=Settings.from_env({"TASKFLOW_BROKER__URL": postgres().url, "TASKFLOW_BROKER__NAMESPACE": namespace})
    )
    flow.task(name="charge")(charge)
    return flow


@asynccontextmanager
async def connected() -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(postgres().url)
    try:
        yield connection
    finally:
        await connection.close()


async def waits_for_a_lock() -> bool:
    """Whether a submit waits for a transaction to end, as the server sees it now: a transaction sees it as it was."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%submit_v1%'"
    async with connected() as connection:
        return bool(await connection.fetchval(waiting))


async def test_a_key_that_an_open_transaction_holds_is_told_in_seconds_and_holds_up_nobody_else(flow: TaskFlow) -> None:
    task: Any = flow.find("charge")
    async with flow:
        async with connected() as connection, connection.transaction():
            for key in HELD:
                await task.options(connection=connection, key=key).submit(1)
            asked = [asyncio.create_task(task.options(key=key).submit(2)) for key in HELD * 10]
            free = asyncio.create_task(task.options(key="free").submit(4))
            await eventually(waits_for_a_lock)
            async with asyncio.timeout(SOON_S):
                await task.submit(3)
                await flow.broker.counts()
            async with asyncio.timeout(FIRM_S):
                said = await asyncio.gather(*asked, return_exceptions=True)
                await free
            (before,) = await flow.broker.counts()
        await task.options(key="a").submit(5)
        (after,) = await flow.broker.counts()

    assert [type(answer) for answer in said] == [BrokerUnavailable] * 40
    assert {answer.kind for answer in said if isinstance(answer, BrokerUnavailable)} == {KEY_HELD}
    assert all(f"charge {key!r}" in str(answer) for key, answer in zip(HELD * 10, said, strict=True))
    assert before.ready + before.scheduled == 2  # 3 and 4
    assert after.ready + after.scheduled == 6  # and the four of the transaction, one of which 5 is


async def test_of_many_jobs_those_whose_keys_are_free_are_in_and_the_error_says_how_many(flow: TaskFlow) -> None:
    task: Any = flow.find("charge")
    async with flow, connected() as connection, connection.transaction():
        await task.options(connection=connection, key="b").submit(1)
        jobs = [job(task="charge", queue="default", key=key) for key in ("a", "b", None)]

        with pytest.raises(BrokerUnavailable) as held:
            await flow.client.submit(jobs)
        states = await flow.broker.states([one.id for one in jobs])

    assert list(states) == [jobs[0].id, jobs[2].id]
    assert held.value.__notes__ == ["of 3 jobs, 2 are in"]
