"""No-op jobs in one process: taskflow on memory, beside aiojobs and taskiq's InMemoryBroker, in the same run.

    python benchmarks/in_process.py [--jobs 20000] [--rounds 3]

100 slots each. taskflow runs with everything on: validated arguments, ids, timeout, retries, metrics, results kept
and awaited through their handles. aiojobs runs coroutines and keeps no results; taskiq keeps and awaits results.
The order of the contestants rotates; the median of the rounds counts. Read the ratios: machines differ.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import platform
import statistics
import time
import warnings
from collections.abc import Awaitable, Callable

from taskflow import Settings, TaskFlow
from taskflow.settings import BrokerSettings

SLOTS = 100


async def run_taskflow(jobs: int) -> float:
    flow = TaskFlow(settings=Settings(broker=BrokerSettings(url="memory://")))

    @flow.task
    async def noop(number: int) -> int:
        return number

    async with flow.worker(concurrency=SLOTS):
        await asyncio.gather(*(job.result() for job in await noop.submit_many([noop.call(1)] * 100)))
        began = time.perf_counter()
        handles = await noop.submit_many([noop.call(number) for number in range(jobs)])
        results = [await handle.result(timeout=60) for handle in handles]
        took_s = time.perf_counter() - began
    assert results == list(range(jobs))
    return jobs / took_s


async def run_aiojobs(jobs: int) -> float:
    import aiojobs

    results = []

    async def noop(number: int) -> None:
        results.append(number)

    async with aiojobs.Scheduler(limit=SLOTS, pending_limit=0) as scheduler:
        began = time.perf_counter()
        spawned = [await scheduler.spawn(noop(number)) for number in range(jobs)]
        for job in spawned:
            await job.wait()
        took_s = time.perf_counter() - began
    assert len(results) == jobs
    return jobs / took_s


async def run_taskiq(jobs: int) -> float:
    from taskiq import InMemoryBroker

    broker = InMemoryBroker(max_async_tasks=SLOTS, max_stored_results=jobs + 1)

    @broker.task
    async def noop(number: int) -> int:
        return number

    await broker.startup()
    began = time.perf_counter()
    results = []
    for start in range(0, jobs, SLOTS):
        tasks = [await noop.kiq(number) for number in range(start, min(jobs, start + SLOTS))]
        results += [(await task.wait_result(check_interval=0.0, timeout=60)).return_value for task in tasks]
    took_s = time.perf_counter() - began
    await broker.shutdown()
    assert results == list(range(jobs))
    return jobs / took_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    contestants: dict[str, Callable[[int], Awaitable[float]]] = {
        "taskflow memory": run_taskflow,
        "aiojobs": run_aiojobs,
        "taskiq InMemoryBroker": run_taskiq,
    }
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    for number in range(options.rounds):
        for name in names[number % 3 :] + names[: number % 3]:
            gc.collect()
            rates[name].append(asyncio.run(contestants[name](options.jobs)))
    print(f"CPython {platform.python_version()}, {options.jobs:,} no-op jobs, {SLOTS} slots, {options.rounds} rounds")
    base = statistics.median(rates["taskiq InMemoryBroker"])
    for name, found in rates.items():
        rate = statistics.median(found)
        print(f"{name:24} {rate:10,.0f} jobs/s  [{min(found):,.0f} to {max(found):,.0f}]  {rate / base:5.2f}x taskiq")


if __name__ == "__main__":
    main()
