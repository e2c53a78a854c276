"""What an old snapshot, and a long line, cost a claim.

    python -m benchmarks.snapshot [--minutes 3] [--ready 1000000] [--only snapshot|ready] [--brokers redis,postgres,...]

*snapshot*: PostgreSQL under full drain (a producer keeps the queue filled, a worker runs no-op jobs), before, while
and after another session holds one REPEATABLE READ transaction open: no dead row that it might see can be removed
meanwhile. Told for each phase: jobs a second, what the worker's claims and settles took, dead rows and table sizes.

*ready*: a claim of 100 jobs with 1,000 ready ones and with many more, on the same broker; what is claimed is settled,
and as many are submitted again, so that the line stays as long as it is; both lines take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

from benchmarks.brokers import done, made, opened, put, servers
from benchmarks.peers.side import Stamps
from benchmarks.processes import end
from taskflow import Settings, TaskFlow
from taskflow.brokers.base import ClaimRequest
from taskflow.core import events
from tests.servers.postgres import PostgresServer

if TYPE_CHECKING:
    from taskflow.brokers.base import FullBroker

BACKLOG = 20_000  # jobs that the producer keeps ready
ROOM = 30_000_000  # jobs that may run in all
TAKES = 300  # claims of each line; the first tenth is not counted
ALL = "sqlite,redis,postgres"
Took = dict[str, list[tuple[float, float]]]  # by verb: when it was answered, and what it took, in seconds


def flow_of(url: str, stamps: Stamps) -> TaskFlow:
    flow = TaskFlow(settings=Settings.from_env({"TASKFLOW_BROKER__URL": url, "TASKFLOW_QUEUE__MAX_SIZE": str(BACKLOG)}))

    @flow.task
    async def noop(number: int) -> int:
        stamps.stamp()
        return number

    return flow


async def work(url: str, stamps: Stamps) -> None:
    """Run jobs until stdin ends; then print what claims and settles took."""
    flow = flow_of(url, stamps)
    took: Took = {"claim": [], "settle": []}

    def heard(event: events.BrokerAnswered) -> None:
        if event.operation in took:
            took[event.operation].append((time.perf_counter(), event.took_s))

    flow.listen(heard, events.BrokerAnswered)
    async with flow.worker(concurrency=100):
        await asyncio.to_thread(sys.stdin.read)
    print(json.dumps(took), flush=True)


async def produce(url: str, stamps: Stamps) -> None:
    """Keep the queue full: a submit waits for room."""
    flow = flow_of(url, stamps)
    noop = flow.find("noop")
    async with flow:
        while True:
            await noop.submit_many([noop.call(n) for n in range(500)])


@contextmanager
def side(verb: str, url: str, stamps: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "benchmarks.snapshot", "--side", verb, url, str(stamps)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        end(process)


def dead_rows(url: str) -> str:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SELECT pg_stat_force_next_flush()") if connection.info.server_version >= 150_000 else None
        rows = connection.execute(
            "SELECT relname, n_live_tup, n_dead_tup, pg_total_relation_size(relid) / 1048576 FROM pg_stat_user_tables"
            " WHERE n_dead_tup > 1000 OR n_live_tup > 1000 ORDER BY n_dead_tup DESC"
        ).fetchall()
    return "; ".join(f"{name} {live:,} live, {dead:,} dead, {mib:,} MiB" for name, live, dead, mib in rows)


def snapshot(minutes: float, folder: Path) -> None:
    file = folder / "stamps"
    stamps = Stamps.make(file, ROOM)
    phases: list[tuple[str, float, float, int, str]] = []

    def phase(name: str, lasts_s: float) -> None:
        began, seen = time.perf_counter(), stamps.count
        time.sleep(lasts_s)
        phases.append((name, began, time.perf_counter(), stamps.count - seen, dead_rows(url)))
        print(f"{name}: {stamps.count - seen:,} jobs", file=sys.stderr)

    options = ("shared_buffers=256MB", "autovacuum_naptime=10s")
    with PostgresServer(fsync=True, options=options) as server:
        url = server.database()
        asyncio.run(_prepare(url, stamps))
        with side("produce", url, file), side("work", url, file) as worker:
            while stamps.count < BACKLOG:
                time.sleep(0.05)
            phase("before", minutes * 20)
            with psycopg.connect(url) as holder:
                holder.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                holder.execute("SELECT count(*) FROM pg_class").fetchall()
                for part in ("first", "second", "last"):
                    phase(f"open, {part} third", minutes * 20)
                holder.rollback()
            phase("after, first", minutes * 20)
            phase("after, then", minutes * 20)
            took: Took = json.loads(worker.communicate()[0])
    print("| phase | jobs/s | claim, ms p50 / p99 | settle, ms p50 / p99 | at its end |\n|---|---:|---:|---:|---|")
    for name, began, ended, count, dead in phases:
        cells = (_quantiles([s for at, s in took[verb] if began <= at < ended]) for verb in ("claim", "settle"))
        print(f"| {name} | {count / (ended - began):,.0f} | {' | '.join(cells)} | {dead} |")


async def _prepare(url: str, stamps: Stamps) -> None:
    async with flow_of(url, stamps):
        pass


def _quantiles(took_s: Sequence[float]) -> str:
    ordered = sorted(one * 1e3 for one in took_s) or [0.0]
    return f"{ordered[len(ordered) // 2]:.2f} / {ordered[int(len(ordered) * 0.99)]:.2f}"


async def filled(broker: FullBroker, ready: int) -> None:
    for start in range(0, ready, 50_000):
        await put(broker, made(min(50_000, ready - start)), 1_000)


async def claim_took(broker: FullBroker) -> float:
    """Seconds of a claim of 100. The line is as long afterwards as it was."""
    request = ClaimRequest("w", ("mail",), 100, 100, 1, 60.0)
    began = time.perf_counter()
    claimed = await broker.claim(request)
    took_s = time.perf_counter() - began
    assert len(claimed) == 100, len(claimed)
    await broker.settle(done(claimed))
    await put(broker, made(100))
    return took_s


async def long_line(name: str, url: Callable[[], str], ready: int) -> None:
    """Claims from a short line and from a long one, in turn."""
    where = url()
    other = where if name == "redis" else url()  # a Redis server is emptied for each URL; the namespaces part them
    async with opened(where, "short") as short, opened(other, "long") as long:
        await filled(short, 1_000)
        await filled(long, ready)
        took = [(await claim_took(short), await claim_took(long)) for _ in range(TAKES)]
    shorts, longs = zip(*took[TAKES // 10 :], strict=True)
    ratio = statistics.median(longs) / statistics.median(shorts)
    print(f"| {name} | {_quantiles(shorts)} | {_quantiles(longs)} | {ratio:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=3.0, help="that the transaction stays open")
    parser.add_argument("--ready", type=int, default=1_000_000)
    parser.add_argument("--only", choices=["snapshot", "ready"])
    parser.add_argument("--brokers", default=ALL)
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side is not None:
        verb, url, file = options.side
        asyncio.run({"work": work, "produce": produce}[verb](url, Stamps(Path(file))))
        return
    print(f"CPython {platform.python_version()}, {os.cpu_count()} CPUs")
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        if options.only != "ready":
            snapshot(options.minutes, folder)
        if options.only != "snapshot":
            print(f"\n| claim of 100, ms p50 / p99 | 1,000 ready | {options.ready:,} ready | ratio |")
            print("|---|---:|---:|---:|")
            urls, _ = servers(options.brokers.split(","), folder, stack, aof=False)
            for kind, where in urls.items():
                asyncio.run(long_line(kind, where, options.ready))


if __name__ == "__main__":
    main()
