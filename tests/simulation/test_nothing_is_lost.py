"""Whatever happens to workers, lines and handlers: every job ends, none is tried too often, none succeeds in secret.

Several workers on one memory broker and a virtual clock; a seed decides what breaks and when (so no handler here runs
in a thread: those keep their own time). An outside ledger notes what handlers really did. A seed that fails is printed:
`SIMULATION_SEEDS=7 pytest tests/simulation` plays it again, `SIMULATION_SEEDS=1000-2000` plays a thousand others.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

import pytest

from taskflow import Bulkhead, CircuitBreaker, GiveUp, Retry, Snooze, TaskFlow, current_job
from taskflow.core.job import FINAL, JobState
from tests.runtime.fleet import Fleet, Member

if TYPE_CHECKING:
    from taskflow.brokers.base import JobInfo

pytestmark = pytest.mark.anyio

_FIRST, _, _LAST = os.environ.get("SIMULATION_SEEDS", "0-11").partition("-")
SEEDS = range(int(_FIRST), int(_LAST or _FIRST) + 1)
ATTEMPTS = {"steady": 3, "flaky": 4, "stubborn": 2, "gated": 5}
JOBS = 120
LEASE_S = 6.0


class Ledger:
    """What handlers really did, by job id."""

    def __init__(self) -> None:
        self.started: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)  # (token, attempt)
        self.failed: Counter[str] = Counter()
        self.done: Counter[str] = Counter()

    def start(self) -> str:
        job = current_job()
        self.started[job.id].append((job.token, job.attempt))
        return job.id


def tasks(ledger: Ledger, chance: random.Random) -> Any:
    """Handlers that are slow, fail, do not stop when told to, snooze and give up."""

    def register(flow: TaskFlow) -> None:
        async def spend(most_s: float) -> None:
            await flow.clock.sleep(chance.random() * most_s)

        @flow.task(timeout=60, retry=Retry(attempts=ATTEMPTS["steady"]))
        async def steady(number: int) -> int:
            job_id = ledger.start()
            await spend(3)
            ledger.done[job_id] += 1
            return number

        @flow.task(timeout=5, retry=Retry(attempts=ATTEMPTS["flaky"], base=1, max_delay=4))
        async def flaky(number: int) -> int:
            job_id = ledger.start()
            await spend(7)
            what = chance.random()
            if what < 0.3:
                ledger.failed[job_id] += 1
                raise OSError("no route")
            if what < 0.4:
                raise Snooze(2)
            if what < 0.45:
                ledger.failed[job_id] += 1
                raise GiveUp
            ledger.done[job_id] += 1
            return number

        @flow.task(timeout=4, retry=Retry(attempts=ATTEMPTS["stubborn"], base=1))
        async def stubborn(number: int) -> int:
            job_id = ledger.start()
            for _ in range(3):
                try:
                    await spend(4)
                except asyncio.CancelledError:
                    if chance.random() < 0.5:
                        raise
            ledger.done[job_id] += 1
            return number

        @flow.task(
            timeout=10,
            breaker=CircuitBreaker("smtp", consecutive=3, open_for=2, max_open_for=8),
            bulkhead=Bulkhead("smtp", 4),
            retry=Retry(attempts=ATTEMPTS["gated"], base=1),
        )
        async def gated(number: int) -> int:
            job_id = ledger.start()
            await spend(2)
            if chance.random() < 0.4:
                ledger.failed[job_id] += 1
                raise ConnectionError
            ledger.done[job_id] += 1
            return number

    return register


class World:
    """The fleet, and what befalls it."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.ledger = Ledger()
        self.fleet = Fleet(
            tasks(self.ledger, random.Random(seed + 1)),
            seed=seed,
            worker={"lease_s": LEASE_S, "max_lost": 3},
        )
        self.alive: list[Member] = []

    async def start_worker(self) -> None:
        self.alive.append(await self.fleet.start(concurrency=self.rng.randint(1, 6), drain=self.rng.choice([0, 1, 5])))

    async def misfortune(self) -> None:
        """Something happens to somebody."""
        member = self.rng.choice(self.alive)
        match self.rng.choice(["crash", "leave", "cut", "cut", "lose", "lose", "lose", "lapse", "mend", "mend"]):
            case "crash":
                self.alive.remove(member)
                member.crash()
                await self.start_worker()
            case "leave":
                self.alive.remove(member)
                await member.stop()
                await self.start_worker()
            case "cut":
                operations = ["claim", "settle", "beat", "reclaim", "wait", "gate", "counts"]
                member.faults.cut(*self.rng.sample(operations, self.rng.randint(1, 7)))
            case "lose":
                member.faults.lose_reply(self.rng.choice(["claim", "settle", "beat", "reclaim", "gate"]))
            case "lapse":  # somebody is sure that this worker is dead
                await self.fleet.broker.leave(member.running.worker.name)
            case _:
                member.faults.mend()

    async def submit(self, client: TaskFlow) -> list[str]:
        ids: list[str] = []
        for name in self.rng.choices(list(ATTEMPTS), k=JOBS):
            job = await client.find(name).submit(len(ids))
            ids.append(job.id)
        return ids


@pytest.mark.parametrize("seed", SEEDS)
async def test_every_job_ends_whatever_happens(seed: int) -> None:
    print(f"seed {seed}")
    world = World(seed)
    fleet, broker = world.fleet, world.fleet.broker
    client = fleet.make_flow(broker)

    async with client:
        for _ in range(3):
            await world.start_worker()
        ids = await world.submit(client)
        for _ in range(60):
            await fleet.clock.advance(world.rng.random() * 2)
            await world.misfortune()
        for member in world.alive:
            member.faults.mend()
        for _ in range(200):
            await fleet.clock.advance(5)
            if set((await broker.states(ids)).values()) <= FINAL:
                break
        found = [job for job_id in ids if (job := await broker.show(job_id)) is not None]
        await fleet.stop()
        gates = await broker.gates()
        counts = await broker.counts()

    assert len(found) == JOBS
    assert {job.state for job in found} <= FINAL, f"seed {seed}: {[job for job in found if job.state not in FINAL]}"
    for job in found:
        check(job, world.ledger, seed)
    assert [gate.live for gate in gates] == [0]
    assert {(queue.ready, queue.scheduled, queue.running) for queue in counts} == {(0, 0, 0)}
    assert Counter(job.state for job in found)[JobState.SUCCEEDED] > JOBS / 2


def check(job: JobInfo, ledger: Ledger, seed: int) -> None:
    """What must hold for each job, whatever happened to it."""
    where = f"seed {seed}: {job}"
    limit = ATTEMPTS[job.task]
    starts = ledger.started[job.id]
    tokens = [token for token, _ in starts]
    assert job.attempts <= limit, where
    assert all(attempt <= limit for _, attempt in starts), where
    assert tokens == sorted(set(tokens)), where  # no claim starts twice, and tokens only grow
    assert len(job.errors) >= job.attempts - (job.state is JobState.SUCCEEDED), where
    if job.task == "steady":  # it never fails: whatever befell it spends no attempt
        assert {error.kind for error in job.errors} <= {"lost"}, where
    match job.state:
        case JobState.SUCCEEDED:
            assert ledger.done[job.id] >= 1, where
        case JobState.DEAD:
            last = job.errors[-1]
            assert job.attempts == limit or last.kind in ("given_up", "lost"), where
        case _:
            pytest.fail(where)
