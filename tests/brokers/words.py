"""What the tests of brokers say to them, in short."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import TYPE_CHECKING, Any

import pytest

from taskflow.brokers.base import ClaimRequest, Presence, Retention, Settlement, WorkerState
from taskflow.core.decision import Bury, Cancel, Complete, Expire, Release, Retry, Snooze
from taskflow.core.job import Job, JobState
from taskflow.core.outcome import ErrorRecord
from taskflow.core.specs import CircuitBreaker

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from taskflow.brokers.base import FullBroker, JobInfo, Receipt, Reclaimed, SettleReply
    from taskflow.core.decision import Decision
    from taskflow.core.gate import Gate
    from taskflow.core.job import Claim

PATIENCE_S = 10.0  # of a test, for what should happen soon; a promise's own duration is far below it
LONG_S = 3_600.0  # a duration that no test lives to see
KEEP = Retention()
NOTHING_KEPT = Retention(result_s=0, finished_s=0, dead_s=0)
BOOM = ErrorRecord("ValueError", "boom", "permanent", "Traceback: boom")
QUICK = CircuitBreaker("smtp", open_for=0.2, max_open_for=0.2, close_after=1)

DONE = Complete(b'"done"')
AGAIN = Retry(0.0, BOOM)
RUNS_AGAIN = [Retry(0.0, BOOM), Retry(LONG_S, BOOM), Snooze(0.0, "busy"), Snooze(LONG_S, "busy"), Release()]
ENDS = [
    (DONE, JobState.SUCCEEDED),
    (Bury(BOOM), JobState.DEAD),
    (Expire("deadline"), JobState.EXPIRED),
    (Cancel(), JobState.CANCELLED),
]


def named(value: object) -> str:
    """A decision in the name of a test."""
    return type(value).__name__ + (f"-{value.delay_s:g}s" if isinstance(value, (Retry, Snooze)) else "")


each_that_runs_again = pytest.mark.parametrize("decision", RUNS_AGAIN, ids=named)
each_end = pytest.mark.parametrize(("decision", "end"), ENDS, ids=[end for _, end in ENDS])

_numbers = itertools.count(1)


def job(**fields: Any) -> Job:
    """A plain job with an id of its own."""
    return Job(**{"id": f"{next(_numbers):032x}", "task": "work", "queue": "q", "payload": b'{"v":1}', **fields})


def through(*gates: str, count: int = 1, **fields: Any) -> list[Job]:
    """Plain jobs that have to pass these gates."""
    return [job(gates=gates, **fields) for _ in range(count)]


def ask(worker: str = "w1", **fields: Any) -> ClaimRequest:
    """A request for all that there is in queue q."""
    asked = {"queues": ("q",), "limit": 100, "gated": 100, "suspects": 1, "lease_s": 60.0, **fields}
    return ClaimRequest(worker=worker, **asked)


def presence(**fields: Any) -> Presence:
    """What a worker says of itself."""
    said = {
        "host": "höst-1", "pid": 71, "version": "9.8.7", "up_s": 12.5, "queues": {"mail": 5, "bulk ü": 1},
        "concurrency": 100, "busy": 3, "state": WorkerState.CLAIMING,
    }  # fmt: skip
    return Presence(**{**said, **fields})


async def submit(broker: FullBroker, *jobs: Job, bound: int = 100_000) -> list[Receipt]:
    return await broker.submit(jobs, {job.queue: bound for job in jobs})


async def claim(broker: FullBroker, worker: str = "w1", **fields: Any) -> list[Claim]:
    return await broker.claim(ask(worker, **fields))


async def claim_one(broker: FullBroker, worker: str = "w1", **fields: Any) -> Claim:
    """The only job that there is to claim."""
    (only,) = await claim(broker, worker, **fields)
    return only


async def settle(broker: FullBroker, claim: Claim, decision: Decision) -> SettleReply:
    (reply,) = await broker.settle([Settlement(claim.job_id, claim.token, decision)])
    return reply


async def settle_all(broker: FullBroker, claims: Iterable[Claim], decision: Decision) -> list[SettleReply]:
    return await broker.settle([Settlement(claim.job_id, claim.token, decision) for claim in claims])


async def shown(broker: FullBroker, job_id: str) -> JobInfo:
    info = await broker.show(job_id)
    assert info is not None
    return info


async def state(broker: FullBroker, job_id: str) -> JobState:
    return (await broker.states([job_id]))[job_id]


async def gate_of(broker: FullBroker, name: str) -> Gate:
    (gate,) = [gate for gate in await broker.gates() if gate.name == name]
    return gate


async def reclaim(broker: FullBroker, *, max_lost: int = 3, retention: Retention = KEEP) -> list[Reclaimed]:
    return await broker.reclaim(max_lost=max_lost, retention=retention)


async def die(broker: FullBroker, worker: str, *, max_lost: int = 3) -> None:
    """The worker's lease is over, and its jobs are taken back."""
    await broker.leave(worker)
    await reclaim(broker, max_lost=max_lost)


async def make_suspect(broker: FullBroker, *jobs: Job) -> None:
    """These jobs were lost twice."""
    ids = {job.id for job in jobs}
    for worker in ("dies-first", "dies-then"):
        assert ids == {claim.job_id for claim in await claim(broker, worker)}
        await die(broker, worker)


async def eventually(probe: Callable[[], Awaitable[Any]]) -> Any:
    """The first answer of `probe` that is true."""
    deadline = time.monotonic() + PATIENCE_S
    while not (answer := await probe()):
        assert time.monotonic() < deadline, "it never came to be"
        await asyncio.sleep(0.005)
    return answer


async def claimed_soon(broker: FullBroker, worker: str = "w1", **fields: Any) -> list[Claim]:
    """What a worker gets that waits for it, as a worker does: claim, wait, claim."""
    request = ask(worker, **fields)
    async with asyncio.timeout(PATIENCE_S):
        while not (claims := await broker.claim(request)):
            await broker.wait(request, LONG_S)
    return claims


async def until_it_waits_for_work(broker: Any) -> None:
    """Somebody's `wait` has begun: what comes now has to wake it."""

    async def does() -> bool:
        match broker.name:
            case "memory":
                return any(queue.waiters for queue in broker._store.queues.values())
            case "redis":
                return len(broker._listening._by_queue) > 0
            case _:
                return len(broker._waiters.work) > 0

    await eventually(does)


async def until_it_waits_for_ends(broker: Any, count: int = 1) -> None:
    """So many calls of `finals` have begun: what ends now has to wake them."""

    async def do() -> bool:
        match broker.name:
            case "memory":
                awaited = broker._store.awaited
            case "redis":
                awaited = broker._listening._by_job
            case _:
                awaited = broker._waiters.finals
        return len({id(future) for futures in awaited.by_name.values() for future in futures}) >= count

    await eventually(do)


def ids(claims: Sequence[Claim]) -> list[str]:
    return [claim.job_id for claim in claims]
