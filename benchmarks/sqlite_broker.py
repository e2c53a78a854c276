"""The SQLite broker by itself: submit, claim and settle, one lane and a thousand, against a bare FIFO in the same run.

    python benchmarks/sqlite_broker.py [--jobs N] [--folder DIR]

The bare FIFO is the least that a queue on SQLite can do: one table, one index, `executemany`, one thread, no lanes,
gates, fencing, leases, counters, keys or results kept apart. The ratio is what all of that costs.
"""

from __future__ import annotations

import argparse
import asyncio
import sqlite3
import statistics
import sys
import tempfile
import time
import uuid
from pathlib import Path

from taskflow.brokers.base import ClaimRequest, Retention, Settlement
from taskflow.brokers.sqlite import SqliteBroker
from taskflow.core.decision import Complete
from taskflow.core.job import Claim, Job

PAYLOAD = b'{"v":1,"args":{"to":"ada@example.org","body":"hello"},"correlation_id":"0123456789abcdef"}'
DONE = Complete(b'{"sent":true}')


class BareFifo:
    """A table, an index, and a loop."""

    def __init__(self, path: Path, synchronous: str) -> None:
        self.connection = sqlite3.connect(path, isolation_level=None)
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.connection.execute(f"PRAGMA synchronous = {synchronous}")
        self.connection.execute(
            "CREATE TABLE job (seq INTEGER PRIMARY KEY, id TEXT, state INTEGER, payload BLOB, result BLOB)"
        )
        self.connection.execute("CREATE INDEX ready ON job (seq) WHERE state = 0")

    def submit(self, ids: list[str]) -> None:
        self.connection.execute("BEGIN IMMEDIATE")
        self.connection.executemany(
            "INSERT INTO job (id, state, payload) VALUES (?, 0, ?)", [(one, PAYLOAD) for one in ids]
        )
        self.connection.execute("COMMIT")

    def claim(self, limit: int) -> list[tuple[int, str, bytes]]:
        self.connection.execute("BEGIN IMMEDIATE")
        rows = self.connection.execute(
            "SELECT seq, id, payload FROM job WHERE state = 0 ORDER BY seq LIMIT ?", (limit,)
        ).fetchall()
        self.connection.executemany("UPDATE job SET state = 1 WHERE seq = ?", [(row[0],) for row in rows])
        self.connection.execute("COMMIT")
        return rows

    def settle(self, rows: list[tuple[int, str, bytes]]) -> None:
        self.connection.execute("BEGIN IMMEDIATE")
        self.connection.executemany(
            "UPDATE job SET state = 2, result = ? WHERE seq = ? AND state = 1",
            [(DONE.result, row[0]) for row in rows],
        )
        self.connection.execute("COMMIT")


def bare(folder: Path, synchronous: str, jobs: int, batch: int) -> tuple[float, float]:
    """Jobs a second: submitted by 500, claimed and settled by `batch`."""
    fifo = BareFifo(folder / f"bare-{uuid.uuid4().hex}.db", synchronous)
    ids = [uuid.uuid4().hex for _ in range(jobs)]
    begun = time.perf_counter()
    for start in range(0, jobs, 500):
        fifo.submit(ids[start : start + 500])
    submitted = time.perf_counter()
    while rows := fifo.claim(batch):
        fifo.settle(rows)
    ended = time.perf_counter()
    fifo.connection.close()
    return jobs / (submitted - begun), jobs / (ended - submitted)


async def ours(
    folder: Path, synchronous: str, jobs: int, batch: int, *, lanes: int = 1, gates: tuple[str, ...] = ()
) -> tuple[float, float]:
    """As `bare`, by the broker."""
    broker = SqliteBroker(folder / f"ours-{uuid.uuid4().hex}.db", synchronous=synchronous)
    await broker.open()
    base = uuid.uuid4().hex[:20]
    made = [
        Job(
            f"{base}{n:012x}",
            "send_mail",
            "mail",
            PAYLOAD,
            lane=f"tenant-{n % lanes}" if lanes > 1 else "",
            gates=gates,
        )
        for n in range(jobs)
    ]
    begun = time.perf_counter()
    for start in range(0, jobs, 500):
        await broker.submit(made[start : start + 500], {"mail": jobs * 3})
    submitted = time.perf_counter()
    request = ClaimRequest("w", ("mail",), batch, batch, 1, 10.0)
    while claims := await broker.claim(request):
        await broker.settle([Settlement(one.job_id, one.token, DONE) for one in claims])
    ended = time.perf_counter()
    assert (await broker.counts())[0][1:6] == (0, 0, 0, 0, 0)
    await broker.close()
    return jobs / (submitted - begun), jobs / (ended - submitted)


async def overlapped(folder: Path, synchronous: str, jobs: int, batch: int) -> float:
    """Claim and settle as a worker does them: the settle of one batch shares a commit with the next claim."""
    broker = SqliteBroker(folder / f"over-{uuid.uuid4().hex}.db", synchronous=synchronous)
    await broker.open()
    made = [Job(f"{n:032x}", "send_mail", "mail", PAYLOAD) for n in range(jobs)]
    for start in range(0, jobs, 500):
        await broker.submit(made[start : start + 500], {})
    request = ClaimRequest("w", ("mail",), batch, batch, 1, 10.0)
    begun = time.perf_counter()
    claims = await broker.claim(request)
    while claims:
        settlements = [Settlement(one.job_id, one.token, DONE) for one in claims]
        _, claims = await asyncio.gather(broker.settle(settlements), broker.claim(request))
    ended = time.perf_counter()
    await broker.close()
    return jobs / (ended - begun)


async def one_by_one(folder: Path, synchronous: str, jobs: int, callers: int) -> float:
    """Single submits from many tasks at once: group commit."""
    broker = SqliteBroker(folder / f"one-{uuid.uuid4().hex}.db", synchronous=synchronous)
    await broker.open()

    async def caller(first: int) -> None:
        for n in range(first, jobs, callers):
            await broker.submit([Job(f"{n:032x}", "send_mail", "mail", PAYLOAD)], {})

    begun = time.perf_counter()
    await asyncio.gather(*(caller(first) for first in range(callers)))
    ended = time.perf_counter()
    await broker.close()
    return jobs / (ended - begun)


_OTHER = """
import asyncio, sys, time
from taskflow.brokers.sqlite import SqliteBroker
from taskflow.core.job import Job
async def main():
    broker = SqliteBroker(sys.argv[1], synchronous=sys.argv[2])
    await broker.open()
    for n, _ in enumerate(sys.stdin):
        at = time.time()
        await broker.submit([Job(f"{n:032x}", "work", "q", str(at).encode())], {})
    await broker.close()
asyncio.run(main())
"""


async def woken(folder: Path, synchronous: str, times: int) -> list[float]:
    """Milliseconds from the call of `submit` in another process to the answer of `claim` in this one, idle before."""
    path = folder / f"wake-{uuid.uuid4().hex}.db"
    broker = SqliteBroker(path, synchronous=synchronous)
    await broker.open()
    other = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _OTHER, str(path), synchronous, stdin=asyncio.subprocess.PIPE
    )
    assert other.stdin is not None
    request = ClaimRequest("w", ("q",), 10, 10, 1, 30.0)
    took_ms: list[float] = []
    for _ in range(times):
        other.stdin.write(b"go\n")
        claims: list[Claim] = []
        while not claims:
            await broker.wait(request, 5.0)
            claims = await broker.claim(request)
        took_ms.append((time.time() - float(claims[0].payload)) * 1_000)
        await broker.settle([Settlement(one.job_id, one.token, DONE) for one in claims])
        await asyncio.sleep(0.02)  # idle again
    other.stdin.close()
    await other.wait()
    await broker.close()
    return sorted(took_ms)


async def idle(folder: Path, seconds: float) -> float:
    """Percent of a core that a worker costs that waits, beats and looks after the file, and finds nothing to do."""
    broker = SqliteBroker(folder / f"idle-{uuid.uuid4().hex}.db")
    await broker.open()
    beats = broker.sync_beat()
    request = ClaimRequest("w", ("q",), 10, 10, 1, 10.0)
    end = time.perf_counter() + seconds
    before = time.process_time()
    while time.perf_counter() < end:
        await broker.claim(request)
        await asyncio.to_thread(beats.beat, "w", {}, 10.0)
        await broker.reclaim(max_lost=3, retention=Retention())
        await broker.wait(request, min(3.3, end - time.perf_counter()))
    spent = time.process_time() - before
    beats.close()
    await broker.close()
    return spent / seconds * 100


def show(name: str, rate: float, against: float | None = None) -> None:
    print(f"{name:<58}{rate:>10,.0f}/s" + ("" if against is None else f"   {rate / against:5.2f} of bare"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=30_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--synchronous", nargs="+", default=["NORMAL", "FULL"])
    parser.add_argument("--folder", type=Path, default=None)
    asked = parser.parse_args()
    jobs = asked.jobs

    def median(run: object) -> tuple[float, ...]:
        assert callable(run)
        return tuple(statistics.median(column) for column in zip(*(run() for _ in range(asked.runs)), strict=True))

    with tempfile.TemporaryDirectory(dir=asked.folder) as name:
        folder = Path(name)
        for synchronous in asked.synchronous:
            print(f"\nsynchronous={synchronous}, {jobs:,} jobs, batch 100, results kept, median of {asked.runs}")
            submit, work = median(lambda s=synchronous: bare(folder, s, jobs, 100))
            show("bare FIFO: submit by 500", submit)
            show("bare FIFO: claim + settle", work)
            got = median(lambda s=synchronous: asyncio.run(ours(folder, s, jobs, 100)))
            show("one lane: submit by 500", got[0], submit)
            show("one lane: claim + settle", got[1], work)
            (rate,) = median(lambda s=synchronous: (asyncio.run(overlapped(folder, s, jobs, 100)),))
            show("one lane: claim and settle overlapped", rate, work)
            got = median(lambda s=synchronous: asyncio.run(ours(folder, s, jobs, 100, lanes=1_000)))
            show("1,000 lanes: submit by 500", got[0], submit)
            show("1,000 lanes: claim + settle", got[1], work)
            got = median(lambda s=synchronous: asyncio.run(ours(folder, s, jobs, 100, gates=("smtp",))))
            show("one lane behind one gate: submit by 500", got[0], submit)
            show("one lane behind one gate: claim + settle", got[1], work)
            got = median(lambda s=synchronous: asyncio.run(ours(folder, s, jobs // 5, 10)))
            show("one lane, batch 10: claim + settle", got[1])
            (rate,) = median(lambda s=synchronous: (asyncio.run(one_by_one(folder, s, jobs // 5, 100)),))
            show("single submits from 100 tasks", rate)
            took_ms = asyncio.run(woken(folder, synchronous, 200))
            print(f"submit in one process to claim in another: p50 {took_ms[100]:.1f} ms, p99 {took_ms[198]:.1f} ms")
        print(f"\nidle worker: {asyncio.run(idle(folder, 15.0)):.2f} % of a core")


if __name__ == "__main__":
    main()
