"""As `test_transactions`, on PostgreSQL: jobs submitted and done in a transaction of asyncpg, and of psycopg."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg
import psycopg
import pytest

from taskflow import ConfigError, JobNotFound, Retry, Settings, StaleClaim, TaskFlow
from taskflow import current_job as here
from taskflow.brokers.base import Retention, Transactional
from taskflow.brokers.postgres import PostgresBroker
from taskflow.settings import BrokerSettings
from tests.brokers.conftest import postgres
from tests.runtime.test_transactions import DONE, Told

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(
        not issubclass(PostgresBroker, Transactional), reason="the broker on PostgreSQL has no transactional verbs yet"
    ),
]

PATIENCE_S = 20.0

_numbers = itertools.count(1)


class Orders:
    """The user's own table, and connections of one driver to it."""

    def __init__(self, driver: str, number: int) -> None:
        self.driver = driver
        self.table = f"orders_{number}"

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Any]:
        if self.driver == "asyncpg":
            connection: Any = await asyncpg.connect(postgres().url)
        else:
            connection = await psycopg.AsyncConnection.connect(postgres().url, autocommit=True)
        try:
            yield connection
        finally:
            await connection.close()

    async def add(self, connection: Any) -> None:
        await connection.execute(f"INSERT INTO {self.table} VALUES (1)")

    async def count(self) -> int:
        connection = await asyncpg.connect(postgres().url)
        try:
            return int(await connection.fetchval(f"SELECT count(*) FROM {self.table}"))
        finally:
            await connection.close()


@pytest.fixture(params=["asyncpg", "psycopg"])
async def orders(request: pytest.FixtureRequest) -> AsyncIterator[Orders]:
    orders = Orders(request.param, next(_numbers))
    async with orders.connected() as connection:
        await connection.execute(f"CREATE TABLE {orders.table} (number int)")
        yield orders
        await connection.execute(f"DROP TABLE {orders.table}")


@pytest.fixture
def flow(orders: Orders) -> TaskFlow:
    broker = BrokerSettings(url=postgres().url, namespace=f"in_{orders.table}")  # type: ignore[arg-type]
    return TaskFlow(settings=Settings(broker=broker))


async def test_jobs_run_if_and_only_if_the_transaction_they_were_submitted_in_commits(
    flow: TaskFlow, orders: Orders
) -> None:
    @flow.task
    async def work(number: int) -> int:
        return number

    async with flow.worker(), orders.connected() as connection:
        with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the block is the transaction
            async with connection.transaction():
                gone = await work.options(connection=connection).submit(0)
                raise ZeroDivisionError
        async with connection.transaction():
            await orders.add(connection)
            one = await work.options(connection=connection).submit(1)
            many = await work.options(connection=connection).submit_many([work.call(n) for n in range(2, 600)])
            with pytest.raises(JobNotFound):
                await one.status()
        results = [await job.result(PATIENCE_S) for job in (one, *many)]

        with pytest.raises(JobNotFound):
            await gone.status()
    assert results == list(range(1, 600))


async def test_connection_of_another_kind_is_refused(flow: TaskFlow) -> None:
    @flow.task
    async def work() -> None: ...

    async with flow:
        with pytest.raises(ConfigError):
            await work.options(connection=object()).submit()


@pytest.mark.parametrize("end", ["returns", "raises", "times out"])
async def test_nothing_that_comes_after_the_commit_changes_that_the_job_has_succeeded(
    flow: TaskFlow, orders: Orders, end: str
) -> None:
    @flow.task(timeout=2)
    async def work() -> int:
        async with orders.connected() as connection, connection.transaction():
            await orders.add(connection)
            await here().complete_in(connection, 7)
        if end == "times out":
            await asyncio.sleep(PATIENCE_S)
        if end == "raises":
            raise ValueError("too late")
        return 8

    told = Told(flow)
    async with flow.worker():
        result = await (await work.submit()).result(PATIENCE_S)

    assert result == 7
    assert told.summary() == DONE
    assert await orders.count() == 1


async def test_transaction_that_is_rolled_back_leaves_the_job_to_its_retries(flow: TaskFlow, orders: Orders) -> None:
    @flow.task(retry=Retry(attempts=3, base=0.01))
    async def work() -> int:
        async with orders.connected() as connection, connection.transaction():
            await orders.add(connection)
            await here().complete_in(connection, here().attempt)
            if here().attempt < 2:
                raise OSError("before the commit")
        return 0

    told = Told(flow)
    async with flow.worker():
        result = await (await work.submit()).result(PATIENCE_S)

    assert result == 2
    assert told.summary() == (["failed", "succeeded"], ["scheduled", "succeeded"], 0)
    assert await orders.count() == 1


async def test_lost_claim_raises_so_that_what_the_handler_did_is_rolled_back(flow: TaskFlow, orders: Orders) -> None:
    raised: list[StaleClaim] = []

    @flow.task
    async def work() -> int:
        if not raised:
            (row,) = await flow.broker.jobs()
            assert row.worker is not None
            await flow.broker.leave(row.worker)  # as if its lease had ended
            await flow.broker.reclaim(max_lost=3, retention=Retention())
        try:
            async with orders.connected() as connection, connection.transaction():
                await orders.add(connection)
                await here().complete_in(connection, 7)
        except StaleClaim as error:
            raised.append(error)
            raise
        return 8

    told = Told(flow)
    async with flow.worker():
        result = await (await work.submit()).result(PATIENCE_S)

    assert result == 7
    assert len(raised) == 1
    assert await orders.count() == 1
    assert told.summary()[1:] == (["succeeded"], 1)
