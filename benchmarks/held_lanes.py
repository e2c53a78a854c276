"""What held gates cost the jobs that do not need them, and what their mass release costs a claim: memory and SQLite.

    python benchmarks/held_lanes.py [--held 100000] [--rest 50000] [--gates 10000] [--rounds 3] [--only PART]

First: `--rest` jobs are claimed and settled in batches of 100, alone, and beside `--held` jobs in 100 lanes whose gates
are held: in two processes that take turns, so that what else the machine does hits both; the median round counts.
Then: `--gates` gates with a lane of two jobs each, all held and parked, open at once: because their holds end in the
same instant, because an operator releases their family, or each of them. Claims go on meanwhile; the slowest one
counts. Beside it: the processor's time of the dearest, and claims of as many lanes that nobody held: what is slow there
too is the disk or another program. Read the ratios: machines differ.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import multiprocessing
import platform
import sqlite3
import statistics
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from taskflow.brokers.base import ClaimRequest, FullBroker, Settlement
from taskflow.brokers.memory import MemoryBroker
from taskflow.brokers.sqlite import SqliteBroker
from taskflow.core.decision import Complete
from taskflow.core.gate import Hold, Release
from taskflow.core.job import Job

PAYLOAD = b'{"v":1,"args":{"to":"ada@example.org","body":"hello"},"correlation_id":"0123456789abcdef"}'
DONE = Complete(b'{"sent":true}')
BATCH = 100
LANES = 100
TURN = 20  # batches of a turn
LONG_S = 3_600.0
REQUEST = ClaimRequest("w", ("q",), BATCH, BATCH, 1, 60.0)
SHAPES = {
    "rest without gates, one lane": lambda _: {},
    "rest of an open gate, 100 lanes": lambda n: {"lane": f"tenant-{n % LANES}", "gates": ("open",)},
}


def made(kind: str, file: Path) -> FullBroker:
    return MemoryBroker() if kind == "memory" else SqliteBroker(file)


async def put(broker: FullBroker, jobs: list[Job]) -> None:
    for start in range(0, len(jobs), 500):
        await broker.submit(jobs[start : start + 500], {"q": 10**9})


def job(n: int, **fields: object) -> Job:
    return Job(**{"id": f"{uuid.uuid4().hex[:20]}{n:012x}", "task": "t", "queue": "q", "payload": PAYLOAD, **fields})


class Took(NamedTuple):
    """Seconds of the wall's clock, and of all the process's threads: what waits for the disk, or for a machine that
    does other things as well, is in the first alone.
    """

    wall_s: float
    cpu_s: float


def total(of: Iterable[Took]) -> Took:
    walls, cpus = zip(*of, strict=True)
    return Took(sum(walls), sum(cpus))


@contextmanager
def took(into: list[Took] | None = None) -> Iterator[list[Took]]:
    """Adds what the block took to the list."""
    into = [] if into is None else into
    began, began_cpu = time.perf_counter(), time.process_time()
    yield into
    into.append(Took(time.perf_counter() - began, time.process_time() - began_cpu))


# ---- beside held lanes ----


def contestant(orders: Connection, kind: str, folder: Path, shape: str, rest: int, held: int) -> None:
    """A process of its own with a broker: at each order it claims and settles some batches, and tells what that took.

    Only one works at a time, and they take turns: what else the machine does hits both.
    """
    asyncio.run(contest(orders, kind, folder, shape, rest, held))


async def contest(orders: Connection, kind: str, folder: Path, shape: str, rest: int, held: int) -> None:
    file = folder / f"{uuid.uuid4().hex}.db"
    broker = made(kind, file)
    await broker.open()
    for n in range(LANES if held else 0):
        await broker.gate(f"gate-{n}", Hold(LONG_S, "circuit_open"))
    await put(broker, [job(n, lane=f"held-{n % LANES}", gates=(f"gate-{n % LANES}",)) for n in range(held)])
    await put(broker, [job(n, **SHAPES[shape](n)) for n in range(rest + BATCH)])
    while not await one_batch(broker):  # the first claims only park the held lanes
        pass
    if kind == "sqlite":  # what the submissions left in the log is not for these claims to write
        connection = sqlite3.connect(file)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        connection.close()
    gc.collect()
    orders.send(None)
    while batches := orders.recv():
        claimed: list[Took] = []
        with took() as all_took:
            for _ in range(batches):
                assert await one_batch(broker, claimed) == BATCH
        orders.send((total(claimed), total(all_took)))
    await broker.close()


async def one_batch(broker: FullBroker, claimed: list[Took] | None = None) -> int:
    """Claim and settle; how many. `claimed` gets what the claim took."""
    with took(claimed):
        claims = await broker.claim(REQUEST)
    assert all(one.gates in ((), ("open",)) for one in claims)
    await broker.settle([Settlement(one.job_id, one.token, DONE) for one in claims])
    return len(claims)


def in_turn(kind: str, shape: str, options: argparse.Namespace, folder: Path) -> list[tuple[Took, Took]]:
    """What claims took, and claims with settlements: of those alone, and of those beside held ones."""
    spent: list[list[tuple[Took, Took]]] = [[], []]
    ours: list[Connection] = []
    processes = []
    for held in (0, options.held):
        mine, theirs = multiprocessing.Pipe()
        process = multiprocessing.Process(
            target=contestant, args=(theirs, kind, folder, shape, options.rest, held), daemon=True
        )
        process.start()
        theirs.close()  # should it die, `recv` raises
        ours.append(mine)
        processes.append(process)
    for mine in ours:
        mine.recv()
    for number in range(options.rest // BATCH // TURN):
        for which in (0, 1) if number % 2 else (1, 0):
            ours[which].send(TURN)
            spent[which].append(ours[which].recv())
    for mine, process in zip(ours, processes, strict=True):
        mine.send(0)
        process.join()
    return [(total(claim for claim, _ in turns), total(both for _, both in turns)) for turns in spent]


def beside_held(kind: str, shape: str, options: argparse.Namespace) -> None:
    rounds = []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            rounds.append(in_turn(kind, shape, options, Path(folder)))
    for index, what in enumerate(("claim", "claim + settle")):
        wall, cpu = (
            statistics.median(alone[index][clock] / beside[index][clock] for alone, beside in rounds)
            for clock in (0, 1)
        )
        alone, beside = (
            options.rest / statistics.median(one[which][index].wall_s for one in rounds) for which in (0, 1)
        )
        print(
            f"{kind:7} {shape:32} {what:14} {alone:9,.0f} -> {beside:9,.0f} jobs/s  {wall:5.2f}x  (CPU {cpu:5.2f}x)",
            flush=True,
        )


# ---- mass release ----


async def parked(broker: FullBroker, gates: int, hold_s: float) -> list[Took]:
    """`gates` held gates `http/N`, each with a parked lane of two jobs; what the claims took that parked them."""
    for start in range(0, gates, 1_000):
        names = range(start, min(gates, start + 1_000))
        await asyncio.gather(*(broker.gate(f"http/{n}", Hold(hold_s, "circuit_open")) for n in names))
    await submit_keyed(broker, gates)
    # Of an open gate, and last of all: once it is claimed, all others are parked.
    await put(broker, [job(0, priority=0, gates=("open",))])
    gc.collect()
    parking: list[Took] = []
    while True:
        with took(parking):
            claims = await broker.claim(REQUEST)
        if claims:
            await broker.settle([Settlement(one.job_id, one.token, DONE) for one in claims])
            return parking


async def submit_keyed(broker: FullBroker, gates: int) -> None:
    await put(broker, [job(n, lane=f"{n % gates}", gates=(f"http/{n % gates}",)) for n in range(2 * gates)])


async def until_over(_broker: FullBroker, _gates: int) -> None:
    """The holds end by themselves, all in one instant."""


async def release_family(broker: FullBroker, _gates: int) -> None:
    await broker.gate("http", Release())


async def release_each(broker: FullBroker, gates: int) -> None:
    for start in range(0, gates, 50):  # as `taskflow gate release --lanes` does it
        await asyncio.gather(*(broker.gate(f"http/{n}", Release()) for n in range(start, min(gates, start + 50))))


Opening = Callable[[FullBroker, int], Awaitable[None]]
OPENINGS: dict[str, tuple[Opening, str]] = {
    "holds end in one instant": (until_over, "expiry"),
    "an operator releases the family": (release_family, "family"),
    "an operator releases each gate": (release_each, "each"),
    "never held, to compare": (until_over, "never"),
}


async def released(kind: str, folder: Path, opening: str, gates: int) -> tuple[list[Took], list[Took]]:
    """What each claim took while the gates were parked, and from the opening until all jobs were claimed."""
    broker = made(kind, folder / "taskflow.db")
    await broker.open()
    open_them, how = OPENINGS[opening]
    if how == "family":
        await broker.gate("http", Hold(LONG_S, "circuit_open"))
    hold_s = {"expiry": 20.0, "family": 0.0, "each": LONG_S, "never": 0.0}[how]
    began = time.time()
    parking: list[Took] = []
    if how == "never":
        await submit_keyed(broker, gates)
    else:
        parking = await parked(broker, gates, hold_s)
    left_s = began + hold_s - time.time()
    assert how != "expiry" or left_s > 0, "parked too slowly: the holds are over"
    if how == "expiry":
        await asyncio.sleep(left_s + 1)  # the last hold began a little later than the first
    gc.collect()
    opened = asyncio.create_task(open_them(broker, gates))
    claimed: list[Took] = []
    done = 0
    while done < 2 * gates:
        await asyncio.sleep(0)  # for the opening: the memory broker never waits
        with took(claimed):
            claims = await broker.claim(REQUEST)
        done += len(claims)
        await broker.settle([Settlement(one.job_id, one.token, DONE) for one in claims])
    await opened
    await broker.close()
    return parking, claimed


def mass_release(kind: str, opening: str, options: argparse.Namespace) -> None:
    parking: list[Took] = []
    claimed: list[Took] = []
    for _ in range(max(1, options.rounds // 2)):
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            before, after = asyncio.run(released(kind, Path(folder), opening, options.gates))
        parking += before
        claimed += after
    parked = f"   (claims that park: {shown(parking)})" if parking else ""
    print(f"{kind:7} {opening:32} claims {shown(claimed)}{parked}", flush=True)


def shown(claims: list[Took]) -> str:
    ordered = sorted(one.wall_s * 1e3 for one in claims)
    p50, p99 = (ordered[int(len(ordered) * share)] for share in (0.5, 0.99))
    cpu = max(one.cpu_s for one in claims) * 1e3
    return f"p50 {p50:6.2f}, p99 {p99:6.2f}, max {ordered[-1]:6.2f} ms (CPU {cpu:6.2f}) of {len(claims):,}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--held", type=int, default=100_000)
    parser.add_argument("--rest", type=int, default=50_000)
    parser.add_argument("--gates", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--only", choices=["beside", "release"])
    options = parser.parse_args()
    print(f"CPython {platform.python_version()}, SQLite with synchronous=FULL, {options.rounds} rounds")
    if options.only != "release":
        print(f"{options.rest:,} jobs alone -> beside {options.held:,} held ones in {LANES} lanes")
        for kind in ("memory", "sqlite"):
            for shape in SHAPES:
                beside_held(kind, shape, options)
    if options.only != "beside":
        print(f"{options.gates:,} gates of two jobs each, all open at once")
        for kind in ("memory", "sqlite"):
            for opening in OPENINGS:
                mass_release(kind, opening, options)


if __name__ == "__main__":
    main()
