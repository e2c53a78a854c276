"""Durable no-op jobs on one SQLite file, beside huey's SQLite in the same run: submit rates and drain rates.

    python benchmarks/durable.py [--jobs 5000] [--rounds 3]

Both with an fsync for each commit (taskflow's default; huey's `fsync=True`) and without (huey's default). taskflow
claims with leases and fencing, keeps results and deletes nothing before the job is done; huey deletes a task when it
takes it: a crash then loses it. Median of the rounds; the order rotates. Read the ratios: machines differ.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from taskflow import Settings, TaskFlow

Rates = dict[str, float]


def run_taskflow(folder: Path, jobs: int, synchronous: str) -> Rates:
    return asyncio.run(_run_taskflow(folder, jobs, synchronous))


async def _run_taskflow(folder: Path, jobs: int, synchronous: str) -> Rates:
    flow = TaskFlow(
        settings=Settings.from_env(
            {
                "TASKFLOW_BROKER__URL": f"sqlite:///{folder / 'taskflow.db'}",
                "TASKFLOW_BROKER__SYNCHRONOUS": synchronous,
            }
        )
    )
    done = asyncio.Event()
    seen = 0

    @flow.task
    async def noop(number: int) -> int:
        nonlocal seen
        seen += 1
        if seen == jobs:
            done.set()
        return number

    singles = jobs // 5
    async with flow:
        began = time.perf_counter()
        for number in range(singles):
            await noop.submit(number)
        single_s = time.perf_counter() - began
        began = time.perf_counter()
        await noop.submit_many([noop.call(number) for number in range(jobs - singles)])
        bulk_s = time.perf_counter() - began
        began = time.perf_counter()
        async with flow.worker(concurrency=100):
            await done.wait()
            drain_s = time.perf_counter() - began
    return {"submit": singles / single_s, "submit_many": (jobs - singles) / bulk_s, "drain": jobs / drain_s}


def run_huey(folder: Path, jobs: int, *, fsync: bool) -> Rates:
    from huey import SqliteHuey

    huey = SqliteHuey(filename=str(folder / "huey.db"), fsync=fsync, results=True)
    seen: list[int] = []

    @huey.task()
    def noop(number: int) -> int:
        seen.append(number)
        return number

    began = time.perf_counter()
    for number in range(jobs):
        noop(number)
    submit_s = time.perf_counter() - began
    logging.getLogger("huey").setLevel(logging.ERROR)
    consumer = huey.create_consumer(workers=4, worker_type="thread", periodic=False)
    began = time.perf_counter()
    consumer.start()
    while len(seen) < jobs:
        time.sleep(0.005)
    drain_s = time.perf_counter() - began
    consumer.stop(graceful=True)
    return {"submit": jobs / submit_s, "submit_many": jobs / submit_s, "drain": jobs / drain_s}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=5_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    contestants: dict[str, Callable[[Path, int], Rates]] = {
        "taskflow FULL": lambda folder, jobs: run_taskflow(folder, jobs, "FULL"),
        "huey fsync": lambda folder, jobs: run_huey(folder, jobs, fsync=True),
        "taskflow NORMAL": lambda folder, jobs: run_taskflow(folder, jobs, "NORMAL"),
        "huey default (OFF)": lambda folder, jobs: run_huey(folder, jobs, fsync=False),
    }
    rates: dict[str, list[Rates]] = {name: [] for name in contestants}
    names = list(contestants)
    for number in range(options.rounds):
        for name in names[number % 4 :] + names[: number % 4]:
            with tempfile.TemporaryDirectory() as folder:
                rates[name].append(contestants[name](Path(folder), options.jobs))
    print(f"CPython {platform.python_version()}, {options.jobs:,} no-op jobs, {options.rounds} rounds, jobs/s")
    print(f"{'':20} {'submit 1 by 1':>14} {'submit_many':>12} {'drain':>9}")
    for name, found in rates.items():
        one, many, drain = (
            statistics.median(rate[key] for rate in found) for key in ("submit", "submit_many", "drain")
        )
        print(f"{name:20} {one:14,.0f} {many:12,.0f} {drain:9,.0f}")


if __name__ == "__main__":
    main()
