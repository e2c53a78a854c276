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
from taskflow.brokers.base import Retention, Settled
from taskflow.settings import BrokerSettings
from tests.brokers.conftest import postgres
from tests.brokers.words import ask
from tests.runtime.test_transactions import DONE, Told, lose_its_worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.anyio

PATIENCE_S = 20.0
PROMPT_S = 5.0  # a lock that is held until a commit is waited for twice as long

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


async def test_open_transaction_keeps_nobody_else_waiting(flow: TaskFlow, orders: Orders) -> None:
    @flow.task(queue="brand_new", lane=lambda number: "tenant")
    async def work(number: int) -> int:
        return number

    async with flow, orders.connected() as first, orders.connected() as second:
        async with first.transaction():
            held = await work.options(connection=first).submit(1)
            async with asyncio.timeout(PROMPT_S):
                plain = await work.submit(2)
            async with asyncio.timeout(PROMPT_S), second.transaction():
                other = await work.options(connection=second).submit(3)
            async with flow.worker(queues=["brand_new"]):
                results = [await job.result(PATIENCE_S) for job in (plain, other)]
        async with flow.worker(queues=["brand_new"]):
            results.append(await held.result(PATIENCE_S))

    assert results == [2, 3, 1]


async def test_transaction_with_an_old_snapshot_may_submit(flow: TaskFlow, orders: Orders) -> None:
    @flow.task
    async def work(number: int) -> int:
        return number

    async with flow, orders.connected() as connection:
        before = await work.submit(0)
        async with connection.transaction():
            await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            await orders.add(connection)  # what it sees from here on has the lane of that job
            async with flow.worker():
                await before.result(PATIENCE_S)  # the last of the lane
            job = await work.options(connection=connection).submit(1)
        async with flow.worker():
            result = await job.result(PATIENCE_S)

    assert result == 1


async def test_connection_that_cannot_be_used_is_refused(flow: TaskFlow, orders: Orders) -> None:
    @flow.task
    async def work() -> None: ...

    async with flow, orders.connected() as connection:
        with pytest.raises(ConfigError, match="got a object"):
            await work.options(connection=object()).submit()
        with pytest.raises(ConfigError, match="no transaction is open"):
            await work.options(connection=connection).submit()
        assert await flow.broker.jobs() == []


async def test_connection_to_another_database_is_refused(flow: TaskFlow, orders: Orders) -> None:
    there = BrokerSettings(url=postgres().database(), namespace="elsewhere")  # type: ignore[arg-type]
    other = TaskFlow(settings=flow.settings.model_copy(update={"broker": there}))

    @other.task
    async def work() -> None: ...

    async with other, orders.connected() as connection:
        with pytest.raises(ConfigError, match="no schema 'elsewhere'"):
            async with connection.transaction():
                await work.options(connection=connection).submit()


async def test_plain_psycopg_connection_will_do_and_begins_by_itself(flow: TaskFlow) -> None:
    @flow.task
    async def work(number: int) -> int:
        return number

    async with flow.worker():
        with psycopg.connect(postgres().url) as connection:
            job = await work.options(connection=connection, key="k", delay=0).submit(3)
            again = await work.options(connection=connection, key="k").submit(4)
        result = await job.result(PATIENCE_S)

    assert again.id == job.id
    assert result == 3


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
    runs: list[int] = []
    raised: list[StaleClaim] = []

    @flow.task
    async def work() -> int:
        runs.append(here().token)
        if len(runs) == 1:
            await lose_its_worker(flow)
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
    assert (len(runs), len(raised)) == (2, 1)
    assert await orders.count() == 1
    assert told.summary()[1:] == (["succeeded"], 1)


async def test_job_whose_completion_is_not_committed_yet_is_nobody_elses(flow: TaskFlow, orders: Orders) -> None:
    @flow.task(queue="q")
    async def work() -> None: ...

    async with flow, orders.connected() as connection:
        job = await work.submit()
        (mine,) = await flow.broker.claim(ask("w1"))
        async with connection.transaction():
            answer = await flow.broker.complete_in(connection, mine.job_id, mine.token, b"1")  # type: ignore[attr-defined]
            await flow.broker.leave("w1")
            taken_back = await flow.broker.reclaim(max_lost=3, retention=Retention())
            others = await flow.broker.claim(ask("w2"))
        state = await job.status()

    assert answer is Settled.APPLIED
    assert (taken_back, others) == ([], [])
    assert state == "succeeded"


async def test_handler_that_leaves_its_transaction_open_holds_up_no_other_job(flow: TaskFlow, orders: Orders) -> None:
    left_open = asyncio.Event()

    @flow.task
    async def forget() -> int:
        await transaction.__aenter__()
        await here().complete_in(connection, 7)
        left_open.set()
        return 8

    @flow.task
    async def work() -> int:
        return 9

    told = Told(flow)
    async with orders.connected() as connection, flow.worker():
        transaction = connection.transaction()
        forgotten = await forget.submit()
        await left_open.wait()
        other = await (await work.submit()).result(PATIENCE_S)
        before = await forgotten.status()
        await transaction.__aexit__(None, None, None)
        late = await forgotten.result(PATIENCE_S)

    assert (other, before, late) == (9, "running", 7)
    assert told.summary() == (["succeeded"] * 2, ["succeeded"] * 2, 0)
