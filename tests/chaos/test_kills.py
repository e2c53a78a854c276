"""Promises 1 to 4 under kill -9, SIGSTOP and SIGTERM: real processes, real brokers, a ledger outside the broker."""

from __future__ import annotations

import asyncio
import random
import re
import signal
import time
from collections import Counter
from typing import TYPE_CHECKING

import aiohttp
import pytest

from taskflow.core.job import JobState
from tests.chaos.fleet import Fleet, Line, until

if TYPE_CHECKING:
    from taskflow import TaskFlow
    from tests.chaos.places import Place

pytestmark = pytest.mark.anyio

# A job that a killed worker had finished this long before may not have been settled: it was in flight.
IN_FLIGHT_S = 0.5


async def counts_of(flow: TaskFlow) -> Counter[str]:
    found: Counter[str] = Counter()
    for queue in await flow.broker.counts():
        found.update(ready=queue.ready, scheduled=queue.scheduled, running=queue.running, dead=queue.dead)
    return found


async def survive_kills(flow: TaskFlow, fleet: Fleet, *, jobs: int, every_s: float, seconds: float) -> int:
    """Submit, and kill a random one of two workers every `every_s` until all is done. Returns the number of kills.

    Not before both are at work: on a busy machine a worker may take longer than that to start, and none would come to it.
    """
    rng = random.Random(seed := random.randrange(2**32))
    print(f"seed {seed}")
    kills = 0
    async with flow:
        work = flow.find("work")
        handles = await work.submit_many([work.call(number, rng.uniform(0.02, 0.1)) for number in range(jobs)])
        fleet.start("-c", "10")
        fleet.start("-c", "10")
        next_kill_at = time.monotonic() + every_s

        def at_work() -> set[int]:
            return {line.pid for line in fleet.lines()}

        async def all_done() -> bool:
            nonlocal next_kill_at, kills
            if time.monotonic() > next_kill_at and {worker.pid for worker in fleet.workers} <= at_work():
                fleet.kill(rng.choice(fleet.workers))
                fleet.start("-c", "10")
                kills += 1
                next_kill_at = time.monotonic() + every_s
            counts = await counts_of(flow)
            return not counts["ready"] + counts["scheduled"] + counts["running"]

        await until(all_done, seconds=seconds, what=f"{jobs} jobs are final")
        states = await flow.broker.states([handle.id for handle in handles])
    assert Counter(states.values()) == {JobState.SUCCEEDED: jobs}
    return kills


def check_ledger(fleet: Fleet, *, jobs: int) -> int:
    """Every job ran; a second run only of what was in flight at a kill. Returns the number of second runs."""
    lines = fleet.lines()
    ends = {(line.number, line.token): line.at for line in lines if line.event == "end"}
    starts = fleet.starts()
    assert {number for number, _ in ends} == set(range(jobs)), "a job was lost"
    again = 0
    for number, runs in starts.items():
        for run in runs[:-1]:
            again += 1
            killed_at = fleet.killed.get(run.pid)
            assert killed_at is not None, f"job {number} ran again although its worker {run.pid} was never killed"
            ended_at = ends.get((number, run.token))
            assert ended_at is None or killed_at - ended_at < IN_FLIGHT_S, f"job {number} ran again after its end"
    return again


@pytest.mark.timeout(120)  # a quiet machine needs 15 s
async def test_no_job_is_lost_and_only_jobs_in_flight_run_again_under_random_kills(file: Place) -> None:
    flow = file.flow()
    with Fleet(file) as fleet:
        kills = await survive_kills(flow, fleet, jobs=3_000, every_s=2.0, seconds=110)

        again = check_ledger(fleet, jobs=3_000)

    print(f"3,000 jobs, {kills} kills, {again} second runs of jobs in flight")
    assert kills >= 2


async def test_a_poison_job_is_buried_alone(place: Place) -> None:
    jobs = 500
    flow = place.flow()
    with Fleet(place, WORKER__LEASE_S=0.5) as fleet:
        async with flow:
            work, poison = flow.find("work"), flow.find("poison")
            calls = [work.call(number, 0.02) for number in range(jobs)]
            handles = await work.submit_many(calls[: jobs // 2])
            bad = await poison.submit(-1)
            handles += await work.submit_many(calls[jobs // 2 :])
            fleet.start("-c", "10")
            fleet.start("-c", "10")

            async def all_done() -> bool:
                fleet.restart_dead()
                counts = await counts_of(flow)
                return not counts["ready"] + counts["scheduled"] + counts["running"]

            await until(all_done, seconds=55, what="all are final")
            states = await flow.broker.states([handle.id for handle in handles])
            buried = await flow.broker.show(bad.id)

        assert Counter(states.values()) == {JobState.SUCCEEDED: jobs}
        assert buried is not None
        assert buried.state is JobState.DEAD
        assert buried.attempts == 0
        assert buried.lost == len(fleet.starts()[-1]) == 5  # twice among others, then MAX_LOST times alone
        assert buried.errors[-1].kind == "lost"


async def test_a_worker_that_was_stopped_past_its_lease_changes_nothing(place: Place) -> None:
    flow = place.flow()
    with Fleet(place, WORKER__LEASE_S=0.5) as fleet:
        async with flow:
            zombie = fleet.start()
            job = await flow.find("work").submit(1, 1.0)
            await until(lambda: fleet.starts()[1], seconds=15, what="the first worker runs it")
            fleet.stop(zombie)
            heir = fleet.start()
            assert await job.result(timeout=20) == heir.pid
            before = await flow.broker.show(job.id)

            zombie.send_signal(signal.SIGCONT)
            port = int(re.findall(r'"port": ?(\d+)', (place.folder / "worker-1.log").read_text())[-1])
            await until(lambda: stale_settlements(port), seconds=15, what="the zombie's word is refused")

            assert await flow.broker.show(job.id) == before


async def test_a_zombie_cannot_complete_its_job_and_its_transaction_rolls_back(database: Place) -> None:
    flow = database.flow()
    with Fleet(database, WORKER__LEASE_S=0.5) as fleet:
        async with flow:
            database.run("CREATE TABLE IF NOT EXISTS chaos_effects (number bigint, token bigint)")
            database.run("DELETE FROM chaos_effects")
            zombie = fleet.start()
            job = await flow.find("transfer").submit(1, 1.0)
            await until(lambda: fleet.starts()[1], seconds=15, what="the first worker runs it")
            fleet.stop(zombie)
            fleet.start()
            await job.result(timeout=20)
            before = await flow.broker.show(job.id)

            zombie.send_signal(signal.SIGCONT)
            await until(lambda: said(fleet, "stale"), seconds=15, what="the zombie's complete_in raises")
            port = int(re.findall(r'"port": ?(\d+)', (database.folder / "worker-1.log").read_text())[-1])
            await until(lambda: stale_settlements(port), seconds=15, what="it is counted")

            assert await flow.broker.show(job.id) == before
    (ended,) = said(fleet, "end")
    assert [line.pid for line in said(fleet, "stale")] == [zombie.pid]
    assert database.run("SELECT number, token FROM chaos_effects") == [(1, ended.token)]


def said(fleet: Fleet, event: str) -> list[Line]:
    return [line for line in fleet.lines() if line.event == event]


async def stale_settlements(port: int) -> float:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/metrics") as answer:
        text = await answer.text()
    return sum(
        float(value) for value in re.findall(r"^taskflow_stale_settlements_total\{.*\} (\S+)$", text, re.MULTILINE)
    )


async def test_sigterm_hands_back_what_outlives_the_drain_and_spends_no_attempt(file: Place) -> None:
    flow = file.flow()
    with Fleet(file, WORKER__DRAIN_S=0.3) as fleet:
        async with flow:
            worker = fleet.start()
            jobs = [await flow.find("work").submit(number, 60.0) for number in range(5)]
            await until(lambda: len(fleet.starts()) == 5, seconds=15, what="all run")

            worker.terminate()
            code = await asyncio.to_thread(worker.wait, 15)

            assert code == 4
            for job in jobs:
                info = await flow.broker.show(job.id)
                assert info is not None
                assert (info.state, info.attempts, info.lost) == (JobState.READY, 0, 0)


async def test_sigterm_lets_short_jobs_end_and_exits_0(file: Place) -> None:
    flow = file.flow()
    with Fleet(file) as fleet:
        async with flow:
            worker = fleet.start()
            job = await flow.find("work").submit(1, 0.5)
            await until(lambda: fleet.starts()[1], seconds=15, what="it runs")

            worker.terminate()
            code = await asyncio.to_thread(worker.wait, 15)

            assert code == 0
            assert await job.status() is JobState.SUCCEEDED


async def test_a_second_signal_hands_back_at_once(file: Place) -> None:
    flow = file.flow()
    with Fleet(file, WORKER__DRAIN_S=60) as fleet:
        async with flow:
            worker = fleet.start()
            job = await flow.find("work").submit(1, 60.0)
            await until(lambda: fleet.starts()[1], seconds=15, what="it runs")

            worker.send_signal(signal.SIGINT)
            await until(lambda: "draining" in fleet.logs(), seconds=15, what="it drains")
            worker.send_signal(signal.SIGINT)
            code = await asyncio.to_thread(worker.wait, 15)

            assert code == 130
            assert await job.status() is JobState.READY
