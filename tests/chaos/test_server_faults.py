"""Promise 8 on real servers: whatever happens to the server or the network, the worker stays, waits, and goes on."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from taskflow.core.job import JobState
from taskflow.errors import BrokerUnavailable
from tests.chaos.fleet import Fleet, until
from tests.chaos.storm import kinds_of_fault

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from taskflow import TaskFlow
    from tests.chaos.places import Place

pytestmark = pytest.mark.anyio

JOBS = 30
STRANDED_LEASE_S = 4
SLOW_S = 0.2  # for a round trip: to connect and prepare takes PostgreSQL's driver eight of them
BACK_S = 10.0  # of real time, on a busy machine: the longest pause is 5 s, and the first beat cuts it short


def cpu_s(pid: int) -> float:
    """Seconds of a processor that this process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def test_the_worker_outlives_every_fault_spins_in_none_and_works_on(remote: Place) -> None:
    flow = remote.flow()
    spent: dict[str, float] = {}
    with Fleet(remote, WORKER__LEASE_S=2) as fleet:
        worker = fleet.start("-c", "10")
        async with flow:
            for kind, fault in kinds_of_fault(remote).items():
                spent[kind] = await share_spent(flow, fleet, kind, fault)
                assert worker.poll() is None, f"the worker ended with: {kind}"

    print({kind: f"{share:.0%}" for kind, share in spent.items()})
    assert max(spent.values()) < 0.8, f"it spins: {spent}"


async def share_spent(flow: TaskFlow, fleet: Fleet, kind: str, fault: Callable[[float], Awaitable[None]]) -> float:
    """Break while jobs run, mend, see all of them done. Returns the share of a processor that the worker took."""
    work, before = flow.find("work"), len(fleet.starts())
    jobs = await work.submit_many([work.call(before + one, 0.05) for one in range(JOBS)])
    await until(lambda: len(fleet.starts()) > before, seconds=20, what=f"it works before: {kind}")
    (worker,) = fleet.workers
    began, cpu = time.monotonic(), cpu_s(worker.pid)
    await fault(1.0)
    spent = (cpu_s(worker.pid) - cpu) / (time.monotonic() - began)

    async def all_done() -> bool:
        states = await flow.broker.states([job.id for job in jobs])
        return set(states.values()) == {JobState.SUCCEEDED}

    await until(all_done, seconds=BACK_S, what=f"all is done after: {kind}")
    return spent


async def test_a_failover_that_strands_every_connection_costs_no_job_its_run(remote: Place) -> None:
    """The address moves, no connection is told: each has to find out by itself, the beats within the lease."""
    flow = remote.flow()
    assert remote.proxy is not None
    with Fleet(remote, WORKER__LEASE_S=STRANDED_LEASE_S) as fleet:
        fleet.start("-c", "10")
        async with flow:
            jobs = [await flow.find("work").submit(number, 1.5 * STRANDED_LEASE_S) for number in range(5)]
            await until(lambda: len(fleet.starts()) == 5, seconds=15, what="all run")
            has_beaten_at = time.time() + STRANDED_LEASE_S / 2
            await until(lambda: time.time() > has_beaten_at, seconds=15, what="a beat went out")
            remote.proxy.strand()
            for job in jobs:
                await job.result(timeout=30)
        starts = fleet.starts()

    assert {number: len(runs) for number, runs in starts.items()} == dict.fromkeys(range(5), 1)


async def test_whoever_submits_hears_within_seconds_that_the_server_is_away(remote: Place) -> None:
    assert remote.server is not None
    flow = remote.flow()
    async with flow:
        work = flow.find("work")
        await asyncio.to_thread(remote.server.stop)
        try:
            began = time.monotonic()
            with pytest.raises(BrokerUnavailable) as caught:
                await work.submit(1, 0.0)
            took_s = time.monotonic() - began
        finally:
            await asyncio.to_thread(remote.server.start)
        job = await work.submit(1, 0.0)

    assert took_s < 10
    assert (caught.value.retry_after_s or 0) > 0
    assert job.id


async def test_a_server_that_is_slow_to_answer_costs_time_and_nothing_else(remote: Place) -> None:
    flow = remote.flow()
    assert remote.proxy is not None
    remote.proxy.delay(SLOW_S / 2)  # each way
    with Fleet(remote, WORKER__LEASE_S=10 * SLOW_S) as fleet:
        fleet.start("-c", "10")
        async with flow:
            work = flow.find("work")
            jobs = await work.submit_many([work.call(number, 0.05) for number in range(30)])
            long = await work.submit(30, 15 * SLOW_S)
            for job in (*jobs, long):
                await job.result(timeout=30)
        starts, lost = fleet.starts(), fleet.events("worker.lease_lost")

    assert {number: len(runs) for number, runs in starts.items()} == dict.fromkeys(range(31), 1)
    assert not lost


async def test_a_worker_that_finds_no_server_says_so_and_exits_3(remote: Place) -> None:
    assert remote.server is not None
    await asyncio.to_thread(remote.server.stop)
    try:
        with Fleet(remote) as fleet:
            worker = fleet.start()
            code = await asyncio.to_thread(worker.wait, 20)
            said = fleet.logs()
    finally:
        await asyncio.to_thread(remote.server.start)

    assert code == 3
    assert "Traceback" not in said
    assert "cannot be reached" in said
