"""What held gates cost the jobs that do not need them, and what their mass release costs a claim, on each broker.

    python -m benchmarks.held_lanes [--held 100000] [--rest 20000] [--gates 10000] [--rounds 3] [--only PART]
                                    [--brokers memory,sqlite,redis,postgres]

First: `--rest` jobs are claimed and settled in batches of 100, alone, and beside `--held` jobs in 100 lanes whose gates
are held: in two processes that take turns, so that what else the machine does hits both; the median round counts.
Then: `--gates` gates with a lane of two jobs each, all held and parked, open at once: because their holds end in the
same instant, because an operator releases their family, or each of them. Claims go on meanwhile; the slowest one
counts. Read the ratios: machines differ.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import multiprocessing
import platform
import statistics
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from benchmarks.brokers import BROKERS, servers
from taskflow import Settings
from taskflow.app import make_broker
from taskflow.brokers.base import ClaimRequest, FullBroker, Settlement
from taskflow.clock import LoopClock
from taskflow.core.decision import Complete
from taskflow.core.gate import Hold, Release
from taskflow.core.job import Claim, Job

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


def made(url: str) -> FullBroker:
    """With nothing in it: a namespace of its own parts it from the others on one server."""
    names = {"TASKFLOW_BROKER__URL": url, "TASKFLOW_BROKER__NAMESPACE": f"n{uuid.uuid4().hex}"}
    return make_broker(Settings.from_env(names), LoopClock())


async def put(broker: FullBroker, jobs: list[Job]) -> None:
    for start in range(0, len(jobs), 500):
        await broker.submit(jobs[start : start + 500], {"q": 10**9})


def job(n: int, **fields: object) -> Job:
    return Job(**{"id": f"{uuid.uuid4().hex[:20]}{n:012x}", "task": "t", "queue": "q", "payload": PAYLOAD, **fields})


# ---- beside held lanes ----


def contestant(orders: Connection, url: str, shape: str, rest: int, held: int) -> None:
    """A process of its own with a broker: at each order it claims and settles some batches, and tells the seconds.

    Only one works at a time, and they take turns: what else the machine does hits both.
    """
    asyncio.run(contest(orders, made(url), shape, rest, held))


async def contest(orders: Connection, broker: FullBroker, shape: str, rest: int, held: int) -> None:
    await broker.open()
    for n in range(LANES if held else 0):
        await broker.gate(f"gate-{n}", Hold(LONG_S, "circuit_open"))
    await put(broker, [job(n, lane=f"held-{n % LANES}", gates=(f"gate-{n % LANES}",)) for n in range(held)])
    await put(broker, [job(n, **SHAPES[shape](n)) for n in range(rest)])
    gc.collect()
    orders.send(None)
    while batches := orders.recv():
        claim_s, seen, began = 0.0, 0, time.perf_counter()
        while seen < batches * BATCH:  # a claim that parks lanes may find fewer than it asked for
            asked = time.perf_counter()
            claims = await broker.claim(REQUEST._replace(limit=min(BATCH, batches * BATCH - seen)))
            claim_s += time.perf_counter() - asked
            seen += len(claims)
            assert all(one.gates in ((), ("open",)) for one in claims)
            await broker.settle([Settlement(one.job_id, one.token, DONE) for one in claims])
        orders.send((claim_s, time.perf_counter() - began))
    await broker.close()


def two(kind: str, url: Callable[[], str]) -> list[str]:
    """Where two brokers are at once. A Redis server is emptied for each URL, and namespaces part them."""
    return [url()] * 2 if kind == "redis" else [url(), url()]


def in_turn(urls: list[str], shape: str, options: argparse.Namespace) -> list[tuple[float, float]]:
    """Seconds of claims, and of claims and settlements: of those alone, and of those beside held ones."""
    spent = [(0.0, 0.0), (0.0, 0.0)]
    ours: list[Connection] = []
    processes = []
    for url, held in zip(urls, (0, options.held), strict=True):
        mine, theirs = multiprocessing.Pipe()
        process = multiprocessing.Process(target=contestant, args=(theirs, url, shape, options.rest, held), daemon=True)
        process.start()
        ours.append(mine)
        processes.append(process)
    for mine in ours:
        mine.recv()
    for number in range(options.rest // BATCH // TURN):
        for which in (0, 1) if number % 2 else (1, 0):
            ours[which].send(TURN)
            claim_s, both_s = ours[which].recv()
            spent[which] = (spent[which][0] + claim_s, spent[which][1] + both_s)
    for mine, process in zip(ours, processes, strict=True):
        mine.send(0)
        process.join()
    return spent


def beside_held(kind: str, url: Callable[[], str], shape: str, options: argparse.Namespace) -> None:
    rounds = [in_turn(two(kind, url), shape, options) for _ in range(options.rounds)]
    for index, what in enumerate(("claim", "claim + settle")):
        ratio = statistics.median(alone[index] / beside[index] for alone, beside in rounds)
        alone, beside = (options.rest / statistics.median(one[which][index] for one in rounds) for which in (0, 1))
        print(f"{kind:7} {shape:32} {what:14} {alone:9,.0f} -> {beside:9,.0f} jobs/s  {ratio:5.2f}x", flush=True)


# ---- mass release ----


class Took(NamedTuple):
    """What a claim took: on a machine that does other things as well, the processor's time is what it costs."""

    wall_s: float
    cpu_s: float


async def timed(broker: FullBroker, took: list[Took]) -> list[Claim]:
    """A claim, and what it took."""
    began, began_cpu = time.perf_counter(), time.process_time()
    claims = await broker.claim(REQUEST)
    took.append(Took(time.perf_counter() - began, time.process_time() - began_cpu))
    return claims


async def parked(broker: FullBroker, gates: int, hold_s: float) -> list[Took]:
    """`gates` held gates `http/N`, each with a parked lane of two jobs; what the claims took that parked them."""
    for start in range(0, gates, 1_000):
        names = range(start, min(gates, start + 1_000))
        await asyncio.gather(*(broker.gate(f"http/{n}", Hold(hold_s, "circuit_open")) for n in names))
    await put(broker, [job(n, lane=f"{n % gates}", gates=(f"http/{n % gates}",)) for n in range(2 * gates)])
    # Of an open gate, and last of all: once it is claimed, all others are parked.
    await put(broker, [job(0, priority=0, gates=("open",))])
    gc.collect()
    took: list[Took] = []
    while True:
        claims = await timed(broker, took)
        if claims:
            await broker.settle([Settlement(one.job_id, one.token, DONE) for one in claims])
            return took


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
}


async def released(url: str, opening: str, gates: int) -> tuple[list[Took], list[Took]]:
    """What each claim took while the gates were parked, and from the opening until all jobs were claimed."""
    broker = made(url)
    await broker.open()
    open_them, how = OPENINGS[opening]
    if how == "family":
        await broker.gate("http", Hold(LONG_S, "circuit_open"))
    hold_s = {"expiry": 20.0, "family": 0.0, "each": LONG_S}[how]
    began = time.time()
    parking = await parked(broker, gates, hold_s)
    left_s = began + hold_s - time.time()
    assert how != "expiry" or left_s > 0, "parked too slowly: the holds are over"
    if how == "expiry":
        await asyncio.sleep(left_s + 1)  # the last hold began a little later than the first
    gc.collect()
    opened = asyncio.create_task(open_them(broker, gates))
    took: list[Took] = []
    done = 0
    while done < 2 * gates:
        await asyncio.sleep(0)  # for the opening: the memory broker never waits
        claims = await timed(broker, took)
        done += len(claims)
        await broker.settle([Settlement(one.job_id, one.token, DONE) for one in claims])
    await opened
    await broker.close()
    return parking, took


def mass_release(kind: str, url: Callable[[], str], opening: str, options: argparse.Namespace) -> None:
    parking: list[Took] = []
    took: list[Took] = []
    for _ in range(max(1, options.rounds // 2)):
        before, after = asyncio.run(released(url(), opening, options.gates))
        parking += before
        took += after
    print(f"{kind:7} {opening:32} claims {shown(took)}   (claims that park: {shown(parking)})", flush=True)


def shown(took: list[Took]) -> str:
    ordered = sorted(one.wall_s * 1e3 for one in took)
    p50, p99 = (ordered[int(len(ordered) * share)] for share in (0.5, 0.99))
    cpu = max(one.cpu_s for one in took) * 1e3
    return f"p50 {p50:6.2f}, p99 {p99:6.2f}, max {ordered[-1]:6.2f} ms (CPU {cpu:6.2f}) of {len(took):,}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--held", type=int, default=100_000)
    parser.add_argument("--rest", type=int, default=20_000)
    parser.add_argument("--gates", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--only", choices=["beside", "release"])
    parser.add_argument("--brokers", default=",".join(BROKERS))
    options = parser.parse_args()
    print(f"CPython {platform.python_version()}, {options.rounds} rounds")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder, ExitStack() as stack:
        urls, _ = servers(options.brokers.split(","), Path(folder), stack, aof=False)
        if options.only != "release":
            print(f"{options.rest:,} jobs alone -> beside {options.held:,} held ones in {LANES} lanes")
            for kind, url in urls.items():
                for shape in SHAPES:
                    beside_held(kind, url, shape, options)
        if options.only != "beside":
            print(f"{options.gates:,} gates of two jobs each, all open at once")
            for kind, url in urls.items():
                for opening in OPENINGS:
                    mass_release(kind, url, opening, options)


if __name__ == "__main__":
    main()
