"""Live workers on a server whose clock is stepped forward: nothing runs twice, and who is dead is still noticed."""

from __future__ import annotations

import asyncio
import itertools
import os
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest

from taskflow import Settings, TaskFlow
from taskflow.brokers.postgres import PostgresBroker
from taskflow.brokers.redis import RedisBroker
from taskflow.core.job import JobState
from taskflow.settings import WorkerSettings
from tests.brokers.conftest import TravelClock, postgres
from tests.brokers.words import claim_one, eventually, job
from tests.servers.valkey import forget_namespace, new_namespace, valkey_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from taskflow.brokers.base import FullBroker

pytestmark = pytest.mark.anyio

LEASE_S = 2.5
JOBS = 20

_numbers = itertools.count(1)


@pytest.fixture(params=["redis", "postgres"])
def made(request: pytest.FixtureRequest, clock: TravelClock) -> Iterator[Callable[[], FullBroker]]:
    """Brokers of one server and namespace, by this clock."""
    if request.param == "redis":
        name = new_namespace()
        yield lambda: RedisBroker(valkey_url(), namespace=name, wall=clock.wall, steady=clock.steady)
        forget_namespace(name)
    else:
        name = f"stepped_{os.getpid()}_{next(_numbers)}"
        yield lambda: PostgresBroker(postgres().url, namespace=name, wall=clock.wall, steady=clock.steady)


@pytest.fixture
def clock() -> TravelClock:
    return TravelClock()


async def test_a_step_of_the_servers_clock_runs_nothing_twice(
    made: Callable[[], FullBroker], clock: TravelClock
) -> None:
    starts: list[int] = []
    cut: list[int] = []
    done = asyncio.Event()

    def make_flow() -> TaskFlow:
        flow = TaskFlow(broker=made(), settings=Settings(worker=WorkerSettings(lease_s=LEASE_S)))

        @flow.task
        async def work(number: int) -> int:
            starts.append(number)
            try:
                await done.wait()
            except asyncio.CancelledError:
                cut.append(number)
                raise
            return number

        return flow

    async with AsyncExitStack() as stack:
        flows = [await stack.enter_async_context(make_flow()) for _ in range(2)]
        for flow in flows:
            await stack.enter_async_context(flow.worker(concurrency=JOBS))
        work, broker = flows[0].find("work"), flows[0].broker
        jobs = await work.submit_many([work.call(number) for number in range(JOBS)])
        await eventually(lambda: _is(len(starts) == JOBS))

        async def lost_by(worker: str) -> None:
            """Its job is taken back: the workers judge."""
            await broker.submit([lone := job(queue="lone")], {})
            await claim_one(broker, worker, queues=("lone",), lease_s=LEASE_S)
            await eventually(lambda: _is_ready(broker, lone.id))
            await broker.cancel([lone.id])

        await lost_by("before")
        clock.step(3_600)
        await lost_by("after")
        infos = [await broker.show(handle.id) for handle in jobs]
        done.set()

        assert [await handle.result(timeout=10) for handle in jobs] == list(range(JOBS))
    assert sorted(starts) == list(range(JOBS))
    assert cut == []
    assert {info.lost for info in infos if info} == {0}


async def _is(found: bool) -> bool:
    return found


async def _is_ready(broker: FullBroker, job_id: str) -> bool:
    return (await broker.states([job_id]))[job_id] is JobState.READY
