"""Through PgBouncer's transaction pooling: each transaction may meet another session of the server."""

from __future__ import annotations

import asyncio
import itertools
import os
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg
import psycopg
import pytest

from taskflow import ConfigError, JobCancelled, JobNotFound, Settings, TaskFlow, current_job
from taskflow.brokers.base import Settled, Settlement
from taskflow.brokers.postgres import PostgresBroker
from taskflow.core.decision import Complete
from taskflow.settings import BrokerSettings
from tests.servers.pgbouncer import PgBouncer

from .conftest import postgres
from .words import PATIENCE_S, claim, claim_one, claimed_soon, eventually, job, submit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

pytestmark = pytest.mark.anyio

SESSIONS = 3
JOBS = 300

_numbers = itertools.count(1)


@pytest.fixture
def namespace() -> str:
    return f"pooled_{os.getpid()}_{next(_numbers)}"


@pytest.fixture(scope="module")
def pooler() -> Iterator[PgBouncer]:
    with PgBouncer(postgres(), pool_size=SESSIONS) as pooler:
        yield pooler


async def test_many_clients_share_a_few_sessions_of_the_server(pooler: PgBouncer, namespace: str) -> None:
    async with AsyncExitStack() as stack:
        brokers = [PostgresBroker(f"{pooler.url}?listen=off", namespace=namespace) for _ in range(6)]
        await asyncio.gather(*(broker.open() for broker in brokers))
        for broker in brokers:
            stack.push_async_callback(broker.close)
        wanted = [job() for _ in range(JOBS)]
        done: list[str] = []

        async def feed(broker: PostgresBroker, first: int) -> None:
            for start in range(first, JOBS, 60):
                await submit(broker, *wanted[start : start + 10])

        async def work(number: int) -> None:
            broker, worker = brokers[number % 6], f"w{number}"
            beat = broker.sync_beat()
            assert beat is not None
            stack.callback(beat.close)
            while len(done) < len(wanted):
                claims = await claim(broker, worker, limit=7)
                tokens = {one.job_id: one.token for one in claims}
                heard = await asyncio.to_thread(beat.beat, worker, tokens, 60.0)
                assert heard.lost == ()
                replies = await broker.settle([Settlement(one.job_id, one.token, Complete(b"1")) for one in claims])
                assert all(reply.answer is Settled.APPLIED for reply in replies)
                done.extend(one.job_id for one in claims)

        async with asyncio.timeout(3 * PATIENCE_S):
            await asyncio.gather(
                *(feed(broker, 10 * n) for n, broker in enumerate(brokers)), *(work(number) for number in range(12))
            )

        async with AsyncExitStack() as held:
            sessions = [await asyncpg.connect(pooler.url, statement_cache_size=0) for _ in range(SESSIONS)]
            for session in sessions:
                held.push_async_callback(session.close)
                await held.enter_async_context(session.transaction())
            compiles = [await session.fetchval("SHOW jit") for session in sessions]

        assert compiles == ["on"] * SESSIONS  # the sessions are everybody's: none of our settings stays behind
        assert sorted(done) == sorted(one.id for one in wanted)
        assert len(await brokers[0].finals([one.id for one in wanted], 0)) == JOBS


async def test_beat_of_a_thread_needs_no_session_of_its_own(pooler: PgBouncer, namespace: str) -> None:
    broker = PostgresBroker(f"{pooler.url}?listen=off", namespace=namespace)
    await broker.open()
    await submit(broker, job())
    one = await claim_one(broker)
    beat = broker.sync_beat()
    assert beat is not None

    try:
        for _ in range(2):
            reply = await asyncio.to_thread(beat.beat, "w1", {one.job_id: one.token, "other": 1}, 60.0)
            assert reply.lost == ("other",)
            other = await asyncpg.connect(pooler.url, statement_cache_size=0)
            async with other.transaction():  # the session that has just been given back
                reply = await asyncio.to_thread(beat.beat, "w1", {one.job_id: one.token, "other": 1}, 60.0)
            await other.close()
            assert reply.lost == ("other",)
    finally:
        beat.close()
        await broker.close()


async def test_who_forgets_to_say_that_sessions_are_shared_is_told_what_to_do(
    pooler: PgBouncer, namespace: str
) -> None:
    with pytest.raises(ConfigError, match="Add listen=off"):
        await PostgresBroker(pooler.url, namespace=namespace).open()


async def test_pooler_that_keeps_sessions_needs_nothing_said(namespace: str) -> None:
    with PgBouncer(postgres(), mode="session", pool_size=8) as keeping:
        broker = PostgresBroker(keeping.url, namespace=namespace)
        await broker.open()
        soon = asyncio.create_task(claimed_soon(broker))

        async def is_heard() -> bool:
            return broker._listening.is_heard

        await eventually(is_heard)
        await submit(broker, job())
        claims = await soon
        await broker.close()

    assert len(claims) == 1


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_jobs_run_and_end_as_anywhere(pooler: PgBouncer, namespace: str, driver: str) -> None:
    @asynccontextmanager
    async def connected() -> AsyncIterator[Any]:
        if driver == "asyncpg":
            connection: Any = await asyncpg.connect(pooler.url, statement_cache_size=0)
        else:
            connection = await psycopg.AsyncConnection.connect(pooler.url, autocommit=True, prepare_threshold=None)
        try:
            yield connection
        finally:
            await connection.close()

    url = f"{pooler.url}?listen=off"
    flow = TaskFlow(settings=Settings(broker=BrokerSettings(url=url, namespace=namespace)))  # type: ignore[arg-type]

    @flow.task
    async def double(number: int) -> int:
        return 2 * number

    @flow.task
    async def last() -> None:
        await asyncio.Event().wait()

    @flow.task
    async def store(number: int) -> int:
        async with connected() as connection, connection.transaction():
            await current_job().complete_in(connection, -number)
        return number

    async with flow.worker(), connected() as connection:
        plain = await double.submit_many([double.call(n) for n in range(100)])
        with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the block is the transaction
            async with connection.transaction():
                gone = await double.options(connection=connection).submit(0)
                raise ZeroDivisionError
        async with connection.transaction():
            mine = await double.options(connection=connection).submit(500)
        stored, waits = await store.submit(7), await last.submit()
        await waits.cancel()
        results = [await one.result(PATIENCE_S) for one in (*plain, mine, stored)]
        with pytest.raises(JobCancelled):
            await waits.result(PATIENCE_S)
        with pytest.raises(JobNotFound):
            await gone.status()

    assert results == [*range(0, 200, 2), 1_000, -7]
