"""No-op jobs in one process: taskflow on memory, beside aiojobs and taskiq's InMemoryBroker, in the same run.

    python benchmarks/in_process.py [--jobs 20000] [--rounds 3]

100 slots each. taskflow runs with everything on: validated arguments, ids, timeout, retries, metrics, results kept
and awaited through their handles. aiojobs runs coroutines and keeps no results; taskiq keeps and awaits results.
A round runs them one after the other, in an order that rotates, after a round that does not count. The ratio to taskiq
is taken within each round, by the clock and by the CPU time of the process (which neighbours disturb less); the medians
of the rounds count. Read the ratios: machines differ.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

from taskflow import Settings, TaskFlow
from taskflow.settings import BrokerSettings

SLOTS = 100


class Took(NamedTuple):
    """Seconds that the jobs of one contestant took."""

    wall_s: float
    cpu_s: float

    @classmethod
    def since(cls, began: Took) -> Took:
        now = cls.now()
        return cls(now.wall_s - began.wall_s, now.cpu_s - began.cpu_s)

    @classmethod
    def now(cls) -> Took:
        return cls(time.perf_counter(), time.process_time())


async def run_taskflow(jobs: int) -> Took:
    flow = TaskFlow(settings=Settings(broker=BrokerSettings(url="memory://")))

    @flow.task
    async def noop(number: int) -> int:
        return number

    async with flow.worker(concurrency=SLOTS):
        await asyncio.gather(*(job.result() for job in await noop.submit_many([noop.call(1)] * 100)))
        began = Took.now()
        handles = await noop.submit_many([noop.call(number) for number in range(jobs)])
        results = [await handle.result(timeout=60) for handle in handles]
        took = Took.since(began)
    assert results == list(range(jobs))
    return took


async def run_aiojobs(jobs: int) -> Took:
    import aiojobs

    results = []

    async def noop(number: int) -> None:
        results.append(number)

    async with aiojobs.Scheduler(limit=SLOTS, pending_limit=0) as scheduler:
        began = Took.now()
        spawned = [await scheduler.spawn(noop(number)) for number in range(jobs)]
        for job in spawned:
            await job.wait()
        took = Took.since(began)
    assert len(results) == jobs
    return took


async def run_taskiq(jobs: int) -> Took:
    from taskiq import InMemoryBroker

    broker = InMemoryBroker(max_async_tasks=SLOTS, max_stored_results=jobs + 1)

    @broker.task
    async def noop(number: int) -> int:
        return number

    await broker.startup()
    began = Took.now()
    results = []
    for start in range(0, jobs, SLOTS):
        tasks = [await noop.kiq(number) for number in range(start, min(jobs, start + SLOTS))]
        results += [(await task.wait_result(check_interval=0.0, timeout=60)).return_value for task in tasks]
    took = Took.since(began)
    await broker.shutdown()
    assert results == list(range(jobs))
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    contestants: dict[str, Callable[[int], Coroutine[Any, Any, Took]]] = {
        "taskflow memory": run_taskflow,
        "aiojobs": run_aiojobs,
        "taskiq InMemoryBroker": run_taskiq,
    }
    rounds: list[dict[str, Took]] = []
    names = list(contestants)
    for number in range(options.rounds + 1):
        found: dict[str, Took] = {}
        rounds.append(found)
        for name in names[number % 3 :] + names[: number % 3]:
            gc.collect()
            found[name] = asyncio.run(contestants[name](options.jobs))
    del rounds[0]  # imports, and a heap that still grows
    print(f"CPython {platform.python_version()}, {options.jobs:,} no-op jobs, {SLOTS} slots, {options.rounds} rounds")
    for name in names:
        rates = [options.jobs / found[name].wall_s for found in rounds]
        cpu_us = [found[name].cpu_s / options.jobs * 1e6 for found in rounds]
        wall, cpu = ([found["taskiq InMemoryBroker"][of] / found[name][of] for found in rounds] for of in (0, 1))
        print(
            f"{name:22} {statistics.median(rates):9,.0f} jobs/s [{min(rates):,.0f} to {max(rates):,.0f}] "
            f"{statistics.median(cpu_us):6.1f} µs of CPU a job; as fast as taskiq: "
            f"{statistics.median(wall):.2f}x by the clock [{min(wall):.2f} to {max(wall):.2f}], "
            f"{statistics.median(cpu):.2f}x in CPU [{min(cpu):.2f} to {max(cpu):.2f}]"
        )


if __name__ == "__main__":
    main()
