"""Promises 1 to 3 while a Redis server is restarted again and again under load, its disk loaded slowly.

TASKFLOW_SOAK_MINUTES=10 TASKFLOW_CHAOS_SEED=1 python -m pytest -m soak -s tests/chaos/test_restarts.py
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
import redis

from taskflow.brokers.base import ClaimRequest, Retention
from taskflow.core.job import JobState
from taskflow.errors import BrokerUnavailable
from tests.brokers.words import job as plain_job
from tests.chaos.fleet import Fleet, until
from tests.chaos.places import Place, on_redis
from tests.chaos.proxy import Proxy
from tests.servers.valkey import ValkeyServer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from taskflow import TaskFlow

pytestmark = pytest.mark.anyio

WORKERS, BATCH, EVERY_S = 2, 100, 0.05
KEYS = 20_000
RESTARTS = 4  # of one server
# What a server that is killed may forget: with `everysec` it answers for as long as this before it has written.
FORGETS_S = {"always": 0.0, "everysec": 2.5}
SOAK_S = 60 * float(os.environ.get("TASKFLOW_SOAK_MINUTES", "10"))
SLOW_TO_LOAD = (
    *("--key-load-delay", "-5", "--loading-process-events-interval-bytes", "1024"),
    *("--auto-aof-rewrite-min-size", "1mb", "--auto-aof-rewrite-percentage", "50"),
)


@dataclass
class Seen:
    """What was promised to submitters, and what those saw who asked all the while."""

    acknowledged: dict[int, tuple[str, float]] = field(default_factory=dict)  # number → id, when
    killed_at: list[float] = field(default_factory=list)
    refusals: Counter[str] = field(default_factory=Counter)
    answers: int = 0
    empty: int = 0  # answers of a database in which there has never been a queue
    restarts: Counter[str] = field(default_factory=Counter)
    is_over: bool = False


@contextmanager
def server_and_place(folder: Path, fsync: str) -> Iterator[tuple[ValkeyServer, Place]]:
    with ValkeyServer(aof=True, fsync=fsync, options=SLOW_TO_LOAD) as server, Proxy(server.port) as proxy:
        place = on_redis(folder, server, proxy)
        place.worker_url = place.url  # nothing in between: a proxy would refuse what the server does not
        yield server, place


async def submit(flow: TaskFlow, seen: Seen) -> None:
    work, number = flow.find("work"), 0
    while not seen.is_over:
        numbers = range(number, number + BATCH)
        number += BATCH
        try:
            jobs = await work.submit_many([work.call(one, 0.0) for one in numbers])
        except BrokerUnavailable as error:
            seen.refusals[error.kind] += 1
        else:
            at = time.time()
            seen.acknowledged.update((one, (job.id, at)) for one, job in zip(numbers, jobs, strict=True))
        await asyncio.sleep(EVERY_S)  # its rate


async def look(flow: TaskFlow, seen: Seen) -> None:
    """As whoever waits until all is done: an empty answer would be the end of the wait."""
    while not seen.is_over:
        try:
            counts = await flow.broker.counts()
        except BrokerUnavailable as error:
            seen.refusals[error.kind] += 1
        else:
            seen.answers += 1
            seen.empty += not counts
        await asyncio.sleep(0.002)


async def restart(server: ValkeyServer, seen: Seen, rng: random.Random, *, by: str) -> None:
    """End the server, at one moment or another, and start it; now and then it dies again before it has begun well."""

    async def end(by: str) -> None:
        if by == "kill":
            await asyncio.to_thread(server.kill)
            seen.killed_at.append(time.time())
        else:
            await asyncio.to_thread(server.stop)

    kind = rng.choice(("plain", "amid a rewrite of the AOF", "dies while it starts", "dies when it has started"))
    seen.restarts[f"{by}, {kind}"] += 1
    if kind == "amid a rewrite of the AOF":
        await asyncio.to_thread(rewrite, server)
        await asyncio.sleep(rng.choice((0.0, rng.uniform(0.0, 0.3))))
    await end(by)
    if kind == "dies while it starts":
        server.begin()
        await asyncio.sleep(rng.uniform(0.0, 0.6))
        await end("kill")
    await asyncio.to_thread(server.start)
    if kind == "dies when it has started":
        await asyncio.sleep(rng.choice((0.0, rng.uniform(0.0, 0.1))))
        await end(by)
        await asyncio.to_thread(server.start)


def rewrite(server: ValkeyServer) -> None:
    try:
        server.ask("BGREWRITEAOF")
    except redis.ResponseError as error:
        assert "already in progress" in str(error)  # noqa: PT017 - it began by itself: as good


async def restarted(folder: Path, *, fsync: str, by: str, seed: int) -> Seen:
    """Jobs are submitted and drained while the server is restarted. Checks what was promised."""
    rng, seen = random.Random(seed), Seen()
    with (
        server_and_place(folder, fsync) as (server, place),
        Fleet(place, WORKER__LEASE_S=2, WORKER__MAX_LOST=100) as fleet,
    ):
        for _ in range(WORKERS):
            fleet.start("-c", "50")
        async with place.flow() as flow, place.flow() as other:
            submitter = asyncio.create_task(submit(flow, seen))
            await until(lambda: len(fleet.events("worker.started")) == WORKERS, seconds=30, what="all have started")
            looker = asyncio.create_task(look(other, seen))
            await asyncio.sleep(FORGETS_S[fsync])  # a queue that was never written is no loss
            for _ in range(RESTARTS):
                await asyncio.sleep(rng.uniform(0.1, 1.2))
                await restart(server, seen, rng, by=by)
            known = len(seen.acknowledged)
            await until(lambda: len(seen.acknowledged) > known, seconds=20, what="jobs are taken again")
            seen.is_over = True
            await asyncio.gather(submitter, looker)

            async def all_done() -> bool:
                return not any(one.ready + one.scheduled + one.running for one in await flow.broker.counts())

            await until(all_done, seconds=60, what="all jobs are final")
            ids = [job_id for job_id, _ in seen.acknowledged.values()]
            states: dict[str, JobState] = {}
            for start in range(0, len(ids), 1_000):
                states |= await flow.broker.states(ids[start : start + 1_000])
        assert all(worker.poll() is None for worker in fleet.workers), "a worker ended by itself"
        lines = fleet.lines()
    executed = {line.number for line in lines if line.event == "end"}
    tokens = Counter(line.token for line in lines if line.event == "start")
    lost = {
        number: (states.get(job_id, "not there"), number in executed)
        for number, (job_id, at) in seen.acknowledged.items()
        if states.get(job_id) is not JobState.SUCCEEDED or number not in executed
    }
    forgotten = {number for number in lost if is_forgivable(seen, number, fsync)}
    print(
        f"{fsync}, {by}, seed {seed}: {len(seen.acknowledged):,} acknowledged, {len(lost)} lost, of them "
        f"{len(forgotten)} within what {fsync} may forget; {tokens.total() - len(executed):,} run again; "
        f"{seen.answers:,} looks, {seen.empty} empty; refusals {dict(seen.refusals)}; {dict(seen.restarts)}"
    )
    assert not lost.keys() - forgotten, {number: lost[number] for number in sorted(lost.keys() - forgotten)[:20]}
    assert max(tokens.values()) == 1, "a token was given out twice"
    assert not seen.empty, "somebody saw an empty database"
    return seen


def is_forgivable(seen: Seen, number: int, fsync: str) -> bool:
    at = seen.acknowledged[number][1]
    return any(killed_at - FORGETS_S[fsync] < at < killed_at for killed_at in seen.killed_at)


@contextmanager
def loading(folder: Path, delay_us: int) -> Iterator[tuple[ValkeyServer, Place, Callable[[], None]]]:
    """A server, and what has it die and read its data again, with a pause of so many microseconds at each of `KEYS`."""
    options = (*SLOW_TO_LOAD, "--key-load-delay", str(delay_us))
    with ValkeyServer(aof=True, options=options) as server, Proxy(server.port) as proxy:
        place = on_redis(folder, server, proxy)
        place.worker_url = place.url

        def load() -> None:
            with redis.Redis.from_url(server.url, socket_timeout=5.0) as client:
                client.execute_command("CONFIG", "SET", "auto-aof-rewrite-percentage", "0")
                with client.pipeline(transaction=False) as many:
                    for number in range(KEYS):
                        many.set(f"other:{number}", "")
                    many.execute()
            server.kill()
            server.begin()

        yield server, place, load


def is_loading(server: ValkeyServer) -> bool:
    """Asked without the driver, which would wait and repeat."""
    try:
        with socket.create_connection(("127.0.0.1", server.port), timeout=5.0) as one:
            one.sendall(b"PING\r\n")
            return one.recv(64).startswith(b"-LOADING")
    except OSError:
        return False  # it does not listen yet


async def test_a_server_that_reads_its_data_is_away_and_never_empty(tmp_path: Path) -> None:
    with loading(tmp_path, 1_000) as (server, place, load):
        async with place.flow() as flow:
            job = await flow.find("work").submit(1, 0.0)
            await asyncio.to_thread(load)
            await until(lambda: is_loading(server), seconds=10, what="it loads")

            asked: dict[str, Callable[[], Awaitable[object]]] = {
                "open": lambda: opened(place),
                "submit": lambda: flow.broker.submit([plain_job()], {}),
                "claim": lambda: flow.broker.claim(ClaimRequest("w", ("default",), 1, 1, 1, 5.0)),
                "counts": flow.broker.counts,
                "states": lambda: flow.broker.states([job.id]),
                "finals": lambda: flow.broker.finals([job.id], 0.0),
                "show": lambda: flow.broker.show(job.id),
                "reclaim": lambda: flow.broker.reclaim(max_lost=3, retention=Retention()),
            }
            for verb, ask in asked.items():
                with pytest.raises(BrokerUnavailable) as refused:
                    await ask()
                assert refused.value.kind == "loading", verb
                assert refused.value.retry_after_s
            assert is_loading(server), "it was over too soon to prove anything"


async def opened(place: Place) -> None:
    async with place.flow():
        pass


async def test_until_empty_does_not_end_while_the_server_reads_its_data(tmp_path: Path) -> None:
    with loading(tmp_path, 100) as (server, place, load), Fleet(place) as fleet:
        async with place.flow() as flow:
            await flow.find("work").submit(1, 0.0)
            await flow.broker.pause("default")
        worker = fleet.start("--until-empty")
        await until(lambda: fleet.events("worker.started"), seconds=20, what="it has started")
        await asyncio.to_thread(load)
        await until(lambda: is_loading(server), seconds=10, what="it loads")
        await until(lambda: fleet.events("broker.failed"), seconds=10, what="the worker has asked")
        await until(lambda: fleet.events("broker.recovered"), seconds=30, what="it has loaded")
        assert worker.poll() is None

        async with place.flow() as flow:
            await flow.broker.resume("default")
        await until(lambda: worker.poll() is not None, seconds=30, what="the worker has ended")
        assert worker.returncode == 0
        assert [line.event for line in fleet.lines()] == ["start", "end"]


@pytest.mark.parametrize(("fsync", "by"), [("always", "kill"), ("everysec", "stop")])
async def test_what_was_acknowledged_is_done_though_the_server_restarts_again_and_again(
    tmp_path: Path, fsync: str, by: str
) -> None:
    await restarted(tmp_path, fsync=fsync, by=by, seed=random.randrange(2**32))


@pytest.mark.soak
@pytest.mark.timeout(SOAK_S * 1.5 + 120)
async def test_what_was_acknowledged_is_done_over_hundreds_of_restarts(tmp_path: Path) -> None:
    rng = random.Random(int(os.environ.get("TASKFLOW_CHAOS_SEED", random.randrange(2**32))))
    until_at = time.monotonic() + SOAK_S
    restarts: Counter[str] = Counter()
    while time.monotonic() < until_at:
        for fsync, by in (("always", "kill"), ("everysec", "stop"), ("everysec", "kill"), ("always", "stop")):
            seed = rng.randrange(2**32)
            folder = tmp_path / str(seed)
            folder.mkdir()
            restarts += (await restarted(folder, fsync=fsync, by=by, seed=seed)).restarts
    print(dict(restarts))
