"""Two Valkey servers, a primary and its replica, behind one address that moves: what a failover costs, and what not."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from taskflow.brokers.redis import RedisBroker
from taskflow.core.job import JobState
from taskflow.errors import BrokerUnavailable, ConfigError
from tests.chaos.fleet import Fleet, until
from tests.chaos.places import Place
from tests.chaos.proxy import Proxy
from tests.chaos.test_server_faults import cpu_s
from tests.servers.sentinel import SERVICE, Sentinel
from tests.servers.valkey import ValkeyServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from taskflow import TaskFlow
    from taskflow.handles import JobHandle

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

READ_ONLY_S = 2.0  # between the move of the address and the promotion
LAG_S = 1.0  # what a replica on loopback may be behind, on a busy machine
BACK_S = 15.0  # the longest pause between two tries is 5 s


class Pair:
    """A primary and its replica, and the one address that clients know."""

    def __init__(self, primary: ValkeyServer, replica: ValkeyServer, proxy: Proxy, place: Place) -> None:
        self.primary, self.replica, self.proxy, self.place = primary, replica, proxy, place

    def promote(self) -> None:
        self.replica.ask("REPLICAOF", "NO", "ONE")


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with (
        ValkeyServer(aof=True) as primary,
        ValkeyServer(aof=True, options=("--replicaof", "127.0.0.1", str(primary.port))) as replica,
        Proxy(primary.port) as proxy,
    ):
        replicated(replica)
        url = proxy.url(primary.url)
        yield Pair(primary, replica, proxy, Place("redis", tmp_path, url, url, f"failover_{os.getpid()}"))


def replicated(replica: ValkeyServer) -> None:
    """Wait until it has all that its primary has."""
    give_up_at = time.monotonic() + 15
    while replica.ask("INFO", "replication")["master_link_status"] != "up":
        assert time.monotonic() < give_up_at, "the replica never found its primary"
        time.sleep(0.02)


class Producer:
    """Submits all the while, and remembers what was acknowledged, when, and what was refused."""

    def __init__(self, flow: TaskFlow) -> None:
        self._work = flow.find("work")
        self.acknowledged: list[tuple[float, JobHandle]] = []
        self.refused: Counter[str] = Counter()
        self.retry_after_s: list[float | None] = []
        self._number = 0

    async def run(self) -> None:
        while True:
            numbers = range(self._number, self._number + 5)
            self._number += 5
            try:
                jobs = await self._work.submit_many([self._work.call(number, 0.02) for number in numbers])
            except BrokerUnavailable as error:
                self.refused[error.kind] += 1
                self.retry_after_s.append(error.retry_after_s)
            else:
                self.acknowledged += [(time.time(), job) for job in jobs]
            await asyncio.sleep(0.02)  # its rate


@contextmanager
def running(task: asyncio.Task[None]) -> Iterator[None]:
    try:
        yield
    finally:
        task.cancel()


async def all_final(flow: TaskFlow, jobs: list[JobHandle]) -> bool:
    with suppress(BrokerUnavailable):
        states = await flow.broker.states([job.id for job in jobs])
        return set(states.values()) <= {JobState.SUCCEEDED}
    return False


async def test_replica_that_is_promoted_takes_over_from_a_primary_that_died_under_load(pair: Pair) -> None:
    flow = pair.place.flow()
    with Fleet(pair.place, WORKER__LEASE_S=2) as fleet:
        workers = [fleet.start("-c", "20") for _ in range(2)]
        async with flow:
            producer = Producer(flow)
            with running(asyncio.create_task(producer.run())):
                await until(
                    lambda: len(fleet.starts()) > 200 and len({line.pid for line in fleet.lines()}) == 2,
                    seconds=30,
                    what="a load that both share",
                )
                await asyncio.to_thread(pair.primary.kill)
                killed_at, began = time.time(), time.monotonic()
                cpu = [cpu_s(worker.pid) for worker in workers]
                pair.proxy.point_at(pair.replica.port)
                await until(
                    lambda: producer.refused["read_only"] > 0 and time.monotonic() > began + READ_ONLY_S,
                    seconds=BACK_S,
                    what="the replica refuses to write",
                )
                told_of_replica = {
                    event["error"]["kind"] for event in fleet.events("broker.failed") if "error" in event
                }
                shares = [
                    (cpu_s(worker.pid) - before) / (time.monotonic() - began)
                    for worker, before in zip(workers, cpu, strict=True)
                ]
                await asyncio.to_thread(pair.promote)
                promoted_at = time.time()
                await until(
                    lambda: len(producer.acknowledged) > 0 and producer.acknowledged[-1][0] > promoted_at + 1,
                    seconds=BACK_S,
                    what="jobs are taken again",
                )
            jobs = [job for _, job in producer.acknowledged]
            await until(lambda: all_final(flow, jobs), seconds=BACK_S, what="all that was kept is done")
            kept = await flow.broker.states([job.id for job in jobs])
        ended = []
        for worker in workers:
            worker.send_signal(signal.SIGTERM)
            ended.append(await asyncio.to_thread(worker.wait, 30))
        starts, lines = fleet.starts(), fleet.lines()

    lost = [at for at, job in producer.acknowledged if job.id not in kept]
    print(f"{len(jobs)} jobs, {len(lost)} lost, refused {dict(producer.refused)}, {shares=}, {told_of_replica=}")
    assert all(producer.retry_after_s)
    assert told_of_replica >= {"read_only"}
    assert ended == [0, 0]
    assert max(shares) < 0.8, "a worker spins"
    assert all(killed_at - LAG_S < at <= killed_at + 0.1 for at in lost), "what had long been replicated was lost"
    # A token that the old primary gave out, and the new one never heard of, is not given out again.
    before = [line.token for line in lines if line.event == "start" and line.at < killed_at]
    after = [line.token for runs in starts.values() for line in runs if runs[0].at > promoted_at + 1]
    assert after
    assert min(after) > max(before)
    for runs in starts.values():
        assert [line.token for line in runs] == sorted({line.token for line in runs}), "a token was given out twice"
        assert len(runs) == 1 or killed_at - LAG_S - 2 < runs[-1].at, "it ran again though nothing had happened"


async def test_primary_that_was_demoted_and_keeps_its_connections_is_left_for_the_new_one(pair: Pair) -> None:
    """A planned failover: nobody hangs up, and each connection still leads to the server that is a replica now."""
    flow = pair.place.flow()
    with Fleet(pair.place, WORKER__LEASE_S=2) as fleet:
        worker = fleet.start("-c", "20")
        async with flow:
            work = flow.find("work")
            long = [await work.submit(number, 3.0) for number in range(3)]
            await until(lambda: len(fleet.starts()) == 3, seconds=20, what="they run")
            await asyncio.to_thread(hand_over, pair)
            short = await submitted_soon(flow, 3)
            for job in (*long, short):
                await job.result(timeout=BACK_S)
            worker.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(worker.wait, 30) == 0
        starts = fleet.starts()

    assert {number: len(runs) for number, runs in starts.items()} == dict.fromkeys(range(4), 1)


def hand_over(pair: Pair) -> None:
    """As `FAILOVER` does: the two change places once they agree, and the address follows."""
    pair.primary.ask("CLIENT", "PAUSE", "10000", "WRITE")
    give_up_at = time.monotonic() + 10
    while pair.replica.ask("INFO", "replication")["slave_repl_offset"] < offset(pair.primary):
        assert time.monotonic() < give_up_at, "the replica never caught up"
        time.sleep(0.01)
    pair.promote()
    pair.primary.ask("REPLICAOF", "127.0.0.1", str(pair.replica.port))
    pair.proxy.point_at(pair.replica.port)
    pair.primary.ask("CLIENT", "UNPAUSE")


def offset(server: ValkeyServer) -> int:
    found: int = server.ask("INFO", "replication")["master_repl_offset"]
    return found


async def submitted_soon(flow: TaskFlow, number: int) -> JobHandle:
    async def tries() -> AsyncIterator[JobHandle]:
        while True:
            try:
                yield await flow.find("work").submit(number, 0.0)
            except BrokerUnavailable:
                await asyncio.sleep(0.1)  # until it is there, within BACK_S

    async with asyncio.timeout(BACK_S):
        async for job in tries():
            return job
    raise AssertionError("not reached")


# ---- sentinels ----

SECRET, SENTINELS_SECRET = "correct-horse", "battery-staple"


async def test_primary_that_sentinels_name_is_found_and_found_again_once_it_died(tmp_path: Path) -> None:
    with (
        ValkeyServer(aof=True, password=SECRET, options=("--masterauth", SECRET)) as primary,
        ValkeyServer(
            aof=True,
            password=SECRET,
            options=("--masterauth", SECRET, "--replicaof", "127.0.0.1", str(primary.port)),
        ) as replica,
    ):
        replicated(replica)
        with Sentinel(primary.port, of_primary=SECRET, password=SENTINELS_SECRET) as sentinel:
            hosts = f"127.0.0.1:1,127.0.0.1:{sentinel.port}"  # one is down
            url = f"redis+sentinel://:{SECRET}@{hosts}/{SERVICE}?db=2&sentinel_password={SENTINELS_SECRET}"
            place = Place("redis", tmp_path, url, url, f"sentinel_{os.getpid()}")
            flow = place.flow()
            with Fleet(place, WORKER__LEASE_S=2) as fleet:
                worker = fleet.start("-c", "20")
                async with flow:
                    work = flow.find("work")
                    before = await work.submit(0, 0.0)
                    assert await before.result(timeout=BACK_S) == worker.pid
                    long = await work.submit(1, 4.0)
                    await until(lambda: len(fleet.starts()) == 2, seconds=15, what="it runs")
                    assert primary.ask("INFO", "keyspace")["db2"]["keys"] > 0
                    await asyncio.to_thread(primary.kill)
                    after = await submitted_soon(flow, 2)
                    for job in (long, after):
                        assert await job.result(timeout=30) == worker.pid
                    worker.send_signal(signal.SIGTERM)
                    assert await asyncio.to_thread(worker.wait, 30) == 0
                said = fleet.logs()
        assert replica.ask("INFO", "replication")["role"] == "master"

    assert SECRET not in said
    assert SENTINELS_SECRET not in said


async def test_sentinels_that_know_no_such_primary_are_an_outage_that_says_so(pair: Pair) -> None:
    with Sentinel(pair.primary.port, password=SENTINELS_SECRET) as sentinel:
        here = f"127.0.0.1:{sentinel.port}"
        for where, wanted, what in (
            (f"{here}/other?sentinel_password={SENTINELS_SECRET}", BrokerUnavailable, "knows a primary of other"),
            (f"127.0.0.1:1,127.0.0.1:2/{SERVICE}", BrokerUnavailable, "none of 2 sentinels"),
            (f"{here}/{SERVICE}?sentinel_password=wrong", ConfigError, "refuses user or password"),
            (f"{here}/{SERVICE}", ConfigError, "refuses user or password"),
            (f"{here},127.0.0.1:1/{SERVICE}", ConfigError, "refuses user or password"),
        ):
            with pytest.raises(wanted, match=what):
                await RedisBroker(f"redis+sentinel://{where}").open()
            beat = RedisBroker(f"redis+sentinel://{where}").sync_beat()
            assert beat is not None
            with pytest.raises(wanted, match=what):
                await asyncio.to_thread(beat.beat, "w", {}, 2.0)
            beat.close()
