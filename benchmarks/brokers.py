"""All four brokers in one run: what submit, claim and settle take by batch, and whole jobs through a worker process.

    python -m benchmarks.brokers [--rounds 3] [--scale 1.0] [--only BROKER]... [--aof] [--skip verbs|whole]

Verbs: one caller, jobs a second, claims with leases, results kept. *overlapped*: the settle of one batch beside the
claim of the next, as a worker does it; *lanes*: the same jobs in a thousand lanes; *gate*: all behind one; *callers*:
single submits by a hundred tasks at once. *idle*: percent of a core that a worker costs that finds nothing to do.

Whole jobs: `benchmarks.processes` tells what is measured. The memory broker has no second process: there, producer and
worker share one. SQLite commits with synchronous=FULL, PostgreSQL with fsync and synchronous commit; Valkey keeps
nothing on disk, or with `--aof` a log that is synced every second. Medians; brokers take turns, and the order rotates.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.processes import COLUMNS, Processes, Rates
from taskflow import Settings, TaskFlow
from taskflow.app import make_broker
from taskflow.brokers.base import ClaimRequest, Retention, Settlement
from taskflow.clock import LoopClock
from taskflow.core.decision import Complete
from taskflow.core.job import Claim, Job
from tests.servers.postgres import PostgresServer
from tests.servers.valkey import ValkeyServer

if TYPE_CHECKING:
    from taskflow.brokers.base import FullBroker

BROKERS = ("memory", "sqlite", "redis", "postgres")
PAYLOAD = b'{"v":1,"args":{"to":"ada@example.org","body":"hello"},"correlation_id":"0123456789abcdef"}'
DONE = Complete(b'{"sent":true}')
BATCHES = {1: 300, 10: 3_000, 100: 15_000, 500: 30_000}  # jobs of one measurement, by batch: some tenths of a second
IDLE_S = 5.0
WHOLE = {"memory": 40_000, "sqlite": 40_000, "redis": 60_000, "postgres": 50_000}
Urls = dict[str, Callable[[], str]]  # for each broker, where an empty one is
Table = dict[str, dict[str, list[float]]]  # rates by row and broker


@asynccontextmanager
async def opened(url: str, namespace: str = "taskflow") -> AsyncIterator[FullBroker]:
    settings = Settings.from_env({"TASKFLOW_BROKER__URL": url, "TASKFLOW_BROKER__NAMESPACE": namespace})
    broker = make_broker(settings, LoopClock())
    await broker.open()
    try:
        yield broker
    finally:
        await broker.close()


def made(count: int, *, lanes: int = 1, gates: tuple[str, ...] = ()) -> list[Job]:
    base = uuid.uuid4().hex[:20]
    return [
        Job(f"{base}{n:012x}", "noop", "mail", PAYLOAD, lane=f"tenant-{n % lanes}" if lanes > 1 else "", gates=gates)
        for n in range(count)
    ]


def done(claims: list[Claim]) -> list[Settlement]:
    return [Settlement(one.job_id, one.token, DONE) for one in claims]


async def put(broker: FullBroker, jobs: list[Job], batch: int = 500) -> None:
    for start in range(0, len(jobs), batch):
        await broker.submit(jobs[start : start + batch], {"mail": 10_000_000})


async def verbs(url: str, batch: int, jobs: int) -> dict[str, float]:
    async with opened(url) as broker:
        ready = made(jobs)
        spent = {"submit": 0.0, "claim": 0.0, "settle": 0.0}
        began = time.perf_counter()
        await put(broker, ready, batch)
        spent["submit"] = time.perf_counter() - began
        request = ClaimRequest("w", ("mail",), batch, batch, 1, 10.0)
        seen = 0
        while seen < jobs:
            began = time.perf_counter()
            claims = await broker.claim(request)
            claimed = time.perf_counter()
            await broker.settle(done(claims))
            spent["claim"] += claimed - began
            spent["settle"] += time.perf_counter() - claimed
            seen += len(claims)
        return {verb: jobs / took for verb, took in spent.items()}


async def overlapped(url: str, jobs: list[Job]) -> float:
    """Jobs a second, by batches of 100."""
    async with opened(url) as broker:
        await put(broker, jobs)
        request = ClaimRequest("w", ("mail",), 100, 100, 1, 10.0)
        began = time.perf_counter()
        claims = await broker.claim(request)
        while claims:
            _, claims = await asyncio.gather(broker.settle(done(claims)), broker.claim(request))
        return len(jobs) / (time.perf_counter() - began)


async def callers(url: str, jobs: list[Job]) -> float:
    """Single submits a second, by a hundred tasks at once."""
    async with opened(url) as broker:

        async def caller(mine: list[Job]) -> None:
            for job in mine:
                await broker.submit([job], {})

        began = time.perf_counter()
        await asyncio.gather(*(caller(jobs[first::100]) for first in range(100)))
        return len(jobs) / (time.perf_counter() - began)


async def idle(url: str) -> float:
    """Percent of a core, of the client alone."""
    async with opened(url) as broker:
        beats = broker.sync_beat()
        request = ClaimRequest("w", ("mail",), 10, 10, 1, 10.0)
        end = time.perf_counter() + IDLE_S
        before = time.process_time()
        while (left_s := end - time.perf_counter()) > 0:
            await broker.claim(request)
            if beats is not None:
                await asyncio.to_thread(beats.beat, "w", {}, 10.0)
            await broker.reclaim(max_lost=3, retention=Retention())
            await broker.wait(request, min(3.3, left_s))
        spent = time.process_time() - before
        if beats is not None:
            beats.close()
        return spent / IDLE_S * 100


async def measure_verbs(url: Callable[[], str], scale: float) -> dict[str, float]:
    found: dict[str, float] = {}
    for batch, jobs in BATCHES.items():
        for verb, rate in (await verbs(url(), batch, max(batch, int(jobs * scale)))).items():
            found[f"{verb} by {batch}"] = rate
    jobs = int(BATCHES[100] * scale)
    found["overlapped by 100"] = await overlapped(url(), made(jobs))
    found["lanes: overlapped by 100"] = await overlapped(url(), made(jobs, lanes=1_000))
    found["gate: overlapped by 100"] = await overlapped(url(), made(jobs, gates=("smtp",)))
    found["callers: submit by 1"] = await callers(url(), made(jobs // 3))
    found["idle, % of a core"] = await idle(url())
    return found


async def whole_in_memory(jobs: int, trips: int, rates: Rates) -> None:
    """As `Processes.round`, in this process."""
    flow = TaskFlow(settings=Settings.from_env({"TASKFLOW_BROKER__URL": "memory://"}))
    stamps: list[float] = []
    drained = asyncio.Event()

    @flow.task
    async def noop(number: int) -> int:
        stamps.append(time.perf_counter())
        if len(stamps) == jobs:
            drained.set()
        return number

    async with flow:
        began = time.perf_counter()
        for start in range(0, jobs, 1_000):
            await noop.submit_many([noop.call(n) for n in range(start, min(jobs, start + 1_000))])
        rates.submit.append(jobs / (time.perf_counter() - began))
        spent_s = time.process_time()
        async with flow.worker(concurrency=100):
            await drained.wait()
            rates.cpu_us.append((time.process_time() - spent_s) / jobs * 1e6)
            rates.server_us.append(0.0)
            rates.drain.append(jobs * 0.95 / (stamps[jobs - 1] - stamps[jobs // 20]))
            for _ in range(trips):
                began = time.perf_counter()
                job = await noop.submit(1)
                await job.result(timeout=10)
                rates.result_s.append(time.perf_counter() - began)
                rates.start_s.append(stamps[-1] - began)


def servers(names: list[str], folder: Path, stack: ExitStack, *, aof: bool) -> tuple[Urls, dict[str, int]]:
    """Start what the brokers need: where they are, and the processes of those that are servers."""
    pids: dict[str, int] = {}
    urls: Urls = {
        "memory": lambda: "memory://",
        "sqlite": lambda: f"sqlite:///{folder / uuid.uuid4().hex}.db",
    }
    if "redis" in names:
        valkey = stack.enter_context(ValkeyServer(aof=aof))

        def emptied() -> str:
            valkey.ask("FLUSHALL")
            return valkey.url

        urls["redis"] = emptied
        pids["redis"] = valkey.pid
    if "postgres" in names:
        postgres = stack.enter_context(PostgresServer(fsync=True, options=("shared_buffers=256MB",)))
        urls["postgres"] = postgres.database
        pids["postgres"] = postgres.pid
    return {name: urls[name] for name in names}, pids


def rotated(urls: Urls, number: int) -> list[str]:
    names = list(urls)
    turn = number % len(names)
    return names[turn:] + names[:turn]


def show_verbs(urls: Urls, rounds: int, scale: float) -> None:
    table: Table = {}
    for number in range(rounds):
        for name in rotated(urls, number):
            for row, rate in asyncio.run(measure_verbs(urls[name], scale)).items():
                table.setdefault(row, {}).setdefault(name, []).append(rate)
            print(f"round {number + 1}: verbs on {name}", file=sys.stderr)
    print(f"| jobs/s | {' | '.join(urls)} |")
    print("|---|" + "---:|" * len(urls))
    for row, found in table.items():
        digits = 1 if "%" in row else 0
        cells = (f"{statistics.median(found[name]):,.{digits}f}" for name in urls)
        print(f"| {row} | {' | '.join(cells)} |")


def show_whole(urls: Urls, pids: dict[str, int], rounds: int, scale: float, trips: int, folder: Path) -> None:
    rates = {name: Rates() for name in urls}
    processes = Processes(folder)
    for number in range(rounds):
        for name in rotated(urls, number):
            jobs = int(WHOLE[name] * scale)
            if name == "memory":
                asyncio.run(whole_in_memory(jobs, trips, rates[name]))
            else:
                url, python, server = urls[name](), Path(sys.executable), pids.get(name)
                processes.round(python, "with_taskflow", url, jobs, trips, rates[name], server)
            last = (
                f"{rates[name].drain[-1]:,.0f}/s, CPU {rates[name].cpu_us[-1]:.0f} + {rates[name].server_us[-1]:.0f} us"
            )
            print(f"round {number + 1}: whole jobs on {name}: {last}", file=sys.stderr)
    print(f"\n| | {COLUMNS} |\n|---|---:|---:|---:|---:|---:|---:|")
    for name, found in rates.items():
        print(f"| {name} | {found.row()} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of jobs")
    parser.add_argument("--trips", type=int, default=200, help="round trips in each round")
    parser.add_argument("--only", action="append", choices=BROKERS, help="one broker; may repeat")
    parser.add_argument("--aof", action="store_true", help="Valkey logs every write")
    parser.add_argument("--skip", choices=["verbs", "whole"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        urls, pids = servers(list(options.only or BROKERS), folder, stack, aof=options.aof)
        print(f"CPython {platform.python_version()}, {os.cpu_count()} CPUs, {options.rounds} rounds")
        if options.skip != "verbs":
            show_verbs(urls, options.rounds, options.scale)
        if options.skip != "whole":
            show_whole(urls, pids, options.rounds, options.scale, options.trips, folder)


if __name__ == "__main__":
    main()
