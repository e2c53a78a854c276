"""Jobs that are submitted, and jobs that are done, in the caller's own transaction: the whole way, on SQLite."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from taskflow import ConfigError, JobFailed, JobNotFound, PayloadError, QueueFull, Retry, Settings, StaleClaim, TaskFlow
from taskflow import current_job as here
from taskflow.brokers.base import Retention
from taskflow.core import events
from taskflow.settings import BrokerSettings
from tests.runtime.made import heard, make_flow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.anyio

PATIENCE_S = 10.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "taskflow.db"


def sqlite_flow(path: Path, **settings: Any) -> TaskFlow:
    return TaskFlow(settings=Settings(broker=BrokerSettings(url=f"sqlite:///{path}"), **settings))  # type: ignore[arg-type]


class Orders:
    """The user's own table, in the file in which the jobs live."""

    def __init__(self, path: Path) -> None:
        self.connection = sqlite3.connect(path)

    def add(self) -> None:
        self.connection.execute("CREATE TABLE IF NOT EXISTS orders (number INTEGER)")
        self.connection.execute("INSERT INTO orders VALUES (1)")

    def count(self) -> int:
        (count,) = self.connection.execute("SELECT count(*) FROM orders").fetchone()
        return int(count)


@pytest.fixture
def orders(path: Path) -> Iterator[Callable[[], Orders]]:
    """Made once the file is there: the tables of taskflow are the first in it."""
    made: list[Orders] = []

    def make() -> Orders:
        made.append(Orders(path))
        return made[-1]

    yield make
    for one in made:
        one.connection.close()


# ---- submit ----


async def test_jobs_run_if_and_only_if_the_transaction_they_were_submitted_in_commits(
    path: Path, orders: Callable[[], Orders]
) -> None:
    flow = sqlite_flow(path)

    @flow.task
    async def work(number: int) -> int:
        return number

    async with flow.worker():
        with closing(orders().connection) as connection:
            gone = await work.options(connection=connection).submit(0)
            connection.rollback()
            one = await work.options(connection=connection, delay=0.01).submit(1)
            many = await work.options(connection=connection).submit_many([work.call(n) for n in range(2, 600)])
            with pytest.raises(JobNotFound):
                await one.status()
            connection.commit()
        results = [await job.result(PATIENCE_S) for job in (one, *many)]

        with pytest.raises(JobNotFound):
            await gone.status()
    assert results == list(range(1, 600))


async def test_full_queue_refuses_a_transaction_at_once(path: Path, orders: Callable[[], Orders]) -> None:
    flow = sqlite_flow(path, queue={"max_size": 2, "on_full": "wait", "wait_s": 600})

    @flow.task
    async def work(number: int) -> None: ...

    submitted, refused = heard(flow, events.JobsSubmitted), heard(flow, events.JobsRejected)
    async with flow:
        mine = orders()
        mine.add()
        with pytest.raises(QueueFull) as full:
            await work.options(connection=mine.connection).submit_many([work.call(n) for n in range(5)])
        mine.connection.commit()
        states = await flow.broker.states(full.value.accepted)

    assert full.value.retry_after_s is not None
    assert list(states.values()) == ["ready", "ready"]
    assert mine.count() == 1
    assert [event.count for event in submitted] == [2]
    assert [(event.reason, event.count) for event in refused] == [("queue_full", 3)]


async def test_key_that_is_taken_gives_the_job_that_has_it(path: Path, orders: Callable[[], Orders]) -> None:
    flow = sqlite_flow(path)

    @flow.task
    async def work() -> None: ...

    async with flow:
        connection = orders().connection
        first = await work.options(key="k").submit()
        again = await work.options(key="k", connection=connection).submit()
        connection.commit()

    assert again.id == first.id


async def test_broker_without_transactions_refuses_a_connection(orders: Callable[[], Orders]) -> None:
    flow = make_flow()

    @flow.task
    async def work() -> None: ...

    async with flow.test() as t:
        with pytest.raises(ConfigError, match="memory"):
            await work.options(connection=orders().connection).submit()
        jobs = await t.broker.jobs()

    assert jobs == []


async def test_connection_belongs_to_the_batch_and_not_to_one_of_its_calls(orders: Callable[[], Orders]) -> None:
    flow = make_flow()

    @flow.task
    async def work() -> None: ...

    with pytest.raises(ConfigError, match="submit_many"):
        work.options(connection=orders().connection).call()


# ---- complete_in ----


async def lose_its_worker(flow: TaskFlow) -> None:
    """As if the lease of the only job's worker had ended. A claim in between renews it."""
    (row,) = await flow.broker.jobs()
    assert row.worker is not None
    is_lost = False
    while not is_lost:
        await flow.broker.leave(row.worker)
        is_lost = bool(await flow.broker.reclaim(max_lost=3, retention=Retention()))


class Told:
    """What the listeners hear of a job."""

    def __init__(self, flow: TaskFlow) -> None:
        self.ended = heard(flow, events.AttemptEnded)
        self.settled = heard(flow, events.JobSettled)
        self.stale = heard(flow, events.SettlementStale)

    def summary(self) -> tuple[list[str], list[str], int]:
        """Outcomes of attempts, states of the job after each, late words."""
        return [one.outcome for one in self.ended], [str(one.state) for one in self.settled], len(self.stale)


DONE = (["succeeded"], ["succeeded"], 0)


async def test_completed_job_has_the_result_that_was_completed(path: Path, orders: Callable[[], Orders]) -> None:
    flow = sqlite_flow(path)

    @flow.task
    async def work() -> Any:
        mine = orders()
        mine.add()
        await here().complete_in(mine.connection, {"order": 1})
        mine.connection.commit()
        return object()  # no JSON, and nobody asks

    told = Told(flow)
    async with flow.worker():
        job = await work.submit()
        result = await job.result(PATIENCE_S)

    assert result == {"order": 1}
    assert orders().count() == 1
    assert told.summary() == DONE


@pytest.mark.parametrize("end", ["raises", "gives up", "times out"])
async def test_nothing_that_comes_after_the_commit_changes_that_the_job_has_succeeded(
    path: Path, orders: Callable[[], Orders], end: str
) -> None:
    flow = sqlite_flow(path)

    @flow.task(timeout=0.2, retry=Retry(attempts=1 if end == "gives up" else 3))
    async def work() -> int:
        mine = orders()
        mine.add()
        await here().complete_in(mine.connection, 7)
        mine.connection.commit()
        if end == "times out":
            await asyncio.sleep(PATIENCE_S)
        raise ValueError("too late")

    told = Told(flow)
    async with flow.worker():
        result = await (await work.submit()).result(PATIENCE_S)

    assert result == 7
    assert told.summary() == DONE
    assert orders().count() == 1


async def test_job_that_is_handed_back_after_it_was_completed_has_succeeded(
    path: Path, orders: Callable[[], Orders]
) -> None:
    flow = sqlite_flow(path)
    completed = asyncio.Event()

    @flow.task
    async def work() -> int:
        mine = orders()
        await here().complete_in(mine.connection, 7)
        mine.connection.commit()
        completed.set()
        await asyncio.sleep(PATIENCE_S)
        return 8

    told = Told(flow)
    async with flow:
        async with flow.worker(drain=0):
            job = await work.submit()
            await completed.wait()

        assert await job.result(PATIENCE_S) == 7
    assert told.summary() == DONE


async def test_transaction_that_is_rolled_back_leaves_the_job_to_its_retries(
    path: Path, orders: Callable[[], Orders]
) -> None:
    flow = sqlite_flow(path)

    @flow.task(retry=Retry(attempts=3, base=0.01))
    async def work() -> int:
        mine, attempt = orders(), here().attempt
        mine.add()
        await here().complete_in(mine.connection, attempt)
        if attempt < 2:
            mine.connection.rollback()
            raise OSError("the commit failed")
        mine.connection.commit()
        return 0

    told = Told(flow)
    async with flow.worker():
        result = await (await work.submit()).result(PATIENCE_S)

    assert result == 2
    assert told.summary() == (["failed", "succeeded"], ["scheduled", "succeeded"], 0)
    assert orders().count() == 1


async def test_lost_claim_raises_so_that_what_the_handler_did_is_rolled_back(
    path: Path, orders: Callable[[], Orders]
) -> None:
    flow = sqlite_flow(path)
    raised: list[Exception] = []

    @flow.task
    async def work() -> int:
        if here().token == 1:
            await lose_its_worker(flow)
        mine = orders()
        try:
            with mine.connection:
                mine.add()
                await here().complete_in(mine.connection, here().token)
        except StaleClaim as error:
            raised.append(error)
            raise
        return 0

    told = Told(flow)
    async with flow.worker():
        result = await (await work.submit()).result(PATIENCE_S)

    assert result > 1
    assert [type(error) for error in raised] == [StaleClaim]
    assert orders().count() == 1
    assert told.summary()[1:] == (["succeeded"], 1)


async def test_handler_that_goes_on_after_it_has_completed_its_job_is_not_stopped(
    path: Path, orders: Callable[[], Orders]
) -> None:
    flow = sqlite_flow(path, worker={"lease_s": 1.0})
    lost = heard(flow, events.LeaseLost)
    committed, told_so, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()
    beats: list[events.BrokerAnswered] = []

    def count(answered: events.BrokerAnswered) -> None:
        if committed.is_set() and answered.operation == "beat":
            beats.append(answered)
            if len(beats) == 3:  # the second was sent after the commit: its answer names the job
                told_so.set()

    flow.listen(count, events.BrokerAnswered)

    @flow.task
    async def work() -> None:
        mine = orders()
        await here().complete_in(mine.connection)
        mine.connection.commit()
        committed.set()
        await told_so.wait()
        ended.set()

    told = Told(flow)
    async with flow.worker():
        await (await work.submit()).result(PATIENCE_S)
        async with asyncio.timeout(PATIENCE_S):
            await ended.wait()

    assert told.summary() == DONE
    assert lost == []


async def test_handler_in_a_thread_completes_its_job_in_a_loop_of_its_own(path: Path) -> None:
    flow = sqlite_flow(path)

    @flow.task
    def work() -> int:
        with closing(sqlite3.connect(path)) as connection, connection:
            asyncio.run(here().complete_in(connection, 7))
        return 8

    told = Told(flow)
    async with flow.worker():
        result = await (await work.submit()).result(PATIENCE_S)

    assert result == 7
    assert told.summary() == DONE


async def test_result_that_does_not_fit_completes_nothing(path: Path, orders: Callable[[], Orders]) -> None:
    flow = sqlite_flow(path)

    @flow.task(retry=Retry(attempts=1))
    async def work() -> Any:
        await here().complete_in(orders().connection, object())

    async with flow.worker():
        with pytest.raises(JobFailed, match=PayloadError.__name__):
            await (await work.submit()).result(PATIENCE_S)


async def test_broker_without_transactions_refuses_to_complete(orders: Callable[[], Orders]) -> None:
    flow = make_flow()

    @flow.task(retry=Retry(attempts=1))
    async def work() -> None:
        await here().complete_in(orders().connection)

    async with flow.test() as t:
        job = await work.submit()
        await t.run_until_idle()
        with pytest.raises(JobFailed, match="memory, which knows no transactions"):
            await job.result()


async def test_completing_outside_a_transaction_tells_how_to_open_one(path: Path) -> None:
    flow = sqlite_flow(path)

    @flow.task(retry=Retry(attempts=1))
    async def work() -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            await here().complete_in(connection)

    async with flow.worker():
        job = await work.submit()
        with pytest.raises(JobFailed, match="no transaction is open: say BEGIN IMMEDIATE") as caught:
            await job.result(PATIENCE_S)

    assert "submit" not in str(caught.value)
