"""Brokers against a model that is too simple to be wrong, driven by random verbs.

The model is one dict of jobs and one of gates; whatever it needs to know it counts anew. Where the contract leaves a
choice (which of two lanes goes first, whether an overdue job is still handed out) the broker's answer is checked
against what is allowed, and the model follows it. Time is the test's: a rule moves it, in steps that never land
exactly on an instant.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from taskflow.brokers.base import (
    ERRORS_KEPT,
    FORGOTTEN,
    Accepted,
    Cancelled,
    ClaimRequest,
    Note,
    Presence,
    Retention,
    Retried,
    Settled,
    Settlement,
    WorkerState,
)
from taskflow.clock import TimerHeap, sleep_on
from taskflow.core import gate as gating
from taskflow.core.decision import Bury, Cancel, Complete, Expire, Release, Retry, Snooze
from taskflow.core.job import FINAL, SUSPECT_AFTER, TRANSITIONS, Claim, Job, JobState, is_buried
from taskflow.core.specs import CircuitBreaker
from tests.servers.postgres import is_there as postgres_is_there
from tests.servers.valkey import forget_namespace, new_namespace, valkey_url

from .conftest import postgres
from .words import BOOM, LONG_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from taskflow.brokers.base import Final, FullBroker, JobInfo, QueueCounts, Reclaimed
    from taskflow.clock import Timer
    from taskflow.core.decision import Decision

READY, SCHEDULED, RUNNING = JobState.READY, JobState.SCHEDULED, JobState.RUNNING
WAITS = (READY, SCHEDULED)

QUEUES = ("mail", "web")
WORKERS = ("w1", "w2", "w3")
GATES = ("smtp", "http", "http/a", "http/b")
MAX_LOST = 1
RETENTION = Retention(result_s=15.0, finished_s=30.0, dead_s=60.0, batch_s=45.0)

a_job = st.fixed_dictionaries(
    {
        "task": st.sampled_from(("send", "fetch")),
        "queue": st.sampled_from(QUEUES),
        "priority": st.sampled_from((0, 4, 4, 9)),
        "lane": st.sampled_from(("", "", "a")),
        "gates": st.sampled_from(((), (), ("smtp",), ("smtp",), ("http/a",), ("http/b", "smtp"))),
        "key": st.sampled_from((None, None, None, None, None, "k1")),
        "delay_s": st.sampled_from((0.0, 0.0, 3.0)),
        "expires_s": st.sampled_from((10_000.0, 10_000.0, 20.0)),
        "batch": st.sampled_from(("", "", "run")),
    }
)
a_decision = st.sampled_from(
    (
        Complete(b"1"),
        Complete(None),
        Retry(0.0, BOOM),
        Retry(2.0, BOOM),
        Snooze(0.0, "busy"),
        Snooze(5.0, "busy", BOOM),
        Release(),
        Bury(BOOM),
        Bury(BOOM, spent=False),
        Expire("deadline"),
        Cancel(),
    )
)
a_rate = st.sampled_from((None, None, gating.Rate(2.0, burst=2)))
a_limit = st.sampled_from((None, 0, 1, 1, 2))
an_era = st.sampled_from((0, 0, 1, 1, 2))
a_word = st.integers(1, 9)
a_breaker = st.just(CircuitBreaker("smtp", open_for=4.0, max_open_for=9.0, close_after=1, consecutive=2))
a_change = st.one_of(
    st.builds(gating.Hold, st.sampled_from((4.0, 500.0)), st.just("down")),
    st.just(gating.Release()),
    st.builds(gating.Trip, an_era, a_word, a_breaker),
    st.builds(gating.Word, an_era, a_word, st.booleans(), a_breaker),
    st.builds(gating.Declare, a_limit, a_rate),
    st.builds(gating.OverrideLimit, a_limit),
    st.builds(gating.OverrideRate, a_rate),
)
a_pick = st.integers(0, 1_000)
a_request = st.builds(
    ClaimRequest,
    worker=st.sampled_from(WORKERS),
    queues=st.sampled_from((QUEUES, QUEUES[::-1], QUEUES[:1], QUEUES[1:])),
    limit=st.sampled_from((1, 3, 100)),
    gated=st.sampled_from((0, 1, 100, 100)),
    suspects=st.sampled_from((0, 1, 1)),
    lease_s=st.sampled_from((8.0, 1_000.0)),
)


class FakeClock:
    """Time that only a rule moves."""

    def __init__(self) -> None:
        self.at = 1_000.0
        self.timers = TimerHeap()

    def now(self) -> float:
        return self.at

    def wall(self) -> float:
        return 1_700_000_000.0 + self.at

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        return self.timers.push(when, callback)

    async def sleep(self, seconds: float) -> None:
        await sleep_on(self, seconds)

    def advance(self, seconds: float) -> None:
        self.at += seconds
        self.timers.fire(self.at)


@dataclass
class Kept:
    """A job, as the model knows it."""

    job: Job
    number: int
    state: JobState
    due_at: float
    expires_at: float
    attempts: int = 0
    snoozes: int = 0
    lost: int = 0
    errors: int = 0
    token: int = 0
    settled: list[int] = field(default_factory=list)
    worker: str | None = None
    missed: int = 0  # beats in a row
    cancel_requested: bool = False
    checkpoint: bytes | None = None
    result: bytes | None = None
    finished_at: float = 0.0

    @property
    def is_final(self) -> bool:
        return self.state in FINAL

    @property
    def lane(self) -> tuple[str, str, tuple[str, ...], bool]:
        return self.job.queue, self.job.lane, self.job.gates, self.lost >= SUSPECT_AFTER

    @property
    def place(self) -> tuple[int, float, int]:
        return -self.job.priority, self.due_at, self.number

    def move(self, event: str) -> None:
        self.state = TRANSITIONS[self.state][event]


class BrokerMachine(RuleBasedStateMachine):
    """Random verbs to one broker and to the model."""

    def make(self, clock: FakeClock, folder: Path) -> FullBroker:
        raise NotImplementedError

    @initialize(said=st.dictionaries(st.sampled_from(GATES), a_change))
    def open(self, said: dict[str, gating.GateChange]) -> None:
        self.clock = FakeClock()
        self.loop = asyncio.new_event_loop()
        self.folder = Path(tempfile.mkdtemp(prefix="taskflow-"))
        self.broker = self.make(self.clock, self.folder)
        self.jobs: dict[str, Kept] = {}
        self.gates: dict[str, gating.Gate] = {}
        self.leases: dict[str, float] = {}
        self.said: dict[str, tuple[float, float, Presence]] = {}  # by worker: when, its lease, and what
        self.paused: set[str] = set()
        self.seen: set[str] = set()  # queues that ever had a job
        self.offered: set[str] = set()  # queues for which one was submitted, and refused or known
        self.issued: list[tuple[str, int]] = [("f" * 32, 1)]  # every claim there ever was, and one that never was
        self.finished_batch = False
        self.named_at = self.now  # the batch, by a submit
        self.number = self.accepted = 0
        self.run(self.broker.open())
        for name, change in said.items():
            self.change_gate(name, change, None)

    def run(self, verb: Any) -> Any:
        return self.loop.run_until_complete(verb)

    def teardown(self) -> None:
        if not hasattr(self, "loop"):
            return
        try:
            self.drain()
        finally:
            self.run(self.broker.close())
            self.run(self.loop.shutdown_default_executor())
            self.loop.close()
            shutil.rmtree(self.folder)

    # ---- what the model knows ----

    @property
    def now(self) -> float:
        return self.clock.wall()

    def record(self, name: str) -> gating.Gate:
        """The gate, with its live claims counted anew."""
        live = sum(name in kept.job.gates for kept in self.jobs.values() if kept.state is RUNNING)
        return replace(self.gates.get(name, gating.Gate(name)), live=live)

    def parent(self, name: str) -> gating.Gate | None:
        family = gating.family(name)
        return None if family == name else self.record(family)

    def is_due(self, kept: Kept) -> bool:
        return kept.state is READY or (kept.state is SCHEDULED and kept.due_at <= self.now)

    def is_overdue(self, kept: Kept) -> bool:
        return kept.state in WAITS and kept.expires_at <= self.now

    def is_admitted(self, kept: Kept) -> bool:
        return all(
            gating.admit(self.record(name), self.parent(name), now=self.now).room != 0 for name in kept.job.gates
        )

    def holder(self, job: Job) -> str | None:
        """Who has the key of `job`."""
        for kept in self.jobs.values():
            if job.key is not None and not kept.is_final and (kept.job.task, kept.job.key) == (job.task, job.key):
                return kept.job.id
        return None

    def claimable(self, request: ClaimRequest) -> Iterator[Kept]:
        """What `request` must find sooner or later, if nothing else happens."""
        for kept in self.jobs.values():
            if (
                self.is_due(kept)
                and not self.is_overdue(kept)
                and kept.job.queue in request.queues
                and kept.job.queue not in self.paused
                and (request.gated > 0 or not kept.job.gates)
                and (request.suspects > 0 or kept.lost < SUSPECT_AFTER)
                and self.is_admitted(kept)
            ):
                yield kept

    def finish(self, kept: Kept, event: str) -> None:
        kept.move(event)
        kept.finished_at = self.now
        kept.worker = None

    def again(self, kept: Kept, event: str, delay_s: float | None = None) -> None:
        kept.worker = None
        if kept.cancel_requested:
            self.finish(kept, "cancel")
            return
        kept.move(event)
        if delay_s is not None:
            kept.due_at = self.now + delay_s
        if kept.state is SCHEDULED and kept.due_at <= self.now:
            kept.move("due")

    # ---- submit ----

    @rule(
        fields=st.lists(st.tuples(a_job, st.integers(1, 3)), min_size=1, max_size=4),
        bound=st.sampled_from((6, 1_000, 1_000)),
        repeat=a_pick,
    )
    def submit(self, fields: list[tuple[dict[str, Any], int]], bound: int, repeat: int) -> None:
        jobs = []
        for one, copies in fields:
            for _ in range(copies):
                self.number += 1
                jobs.append(Job(id=f"{self.number:032x}", payload=b"{}", **one))
        if repeat % 4 == 0 and self.jobs:
            jobs.append([*self.jobs.values()][repeat % len(self.jobs)].job)

        receipts = self.run(self.broker.submit(jobs, dict.fromkeys(QUEUES, bound)))

        assert len(receipts) == len(jobs)
        for job, receipt in zip(jobs, receipts, strict=True):
            assert (receipt.job_id, receipt.accepted) == self.submitted(job, bound)
            assert (receipt.retry_after_s > 0) == (receipt.accepted in {Accepted.QUEUE_FULL, Accepted.GATE_FULL})

    def submitted(self, job: Job, bound: int) -> tuple[str, Accepted]:
        self.offered.add(job.queue)
        if job.batch:
            self.named_at = self.now
        waiting = [kept.job for kept in self.jobs.values() if kept.state in WAITS and kept.job.queue == job.queue]
        if job.id in self.jobs:
            return job.id, Accepted.SAME_ID
        if (holder := self.holder(job)) is not None:
            return holder, Accepted.SAME_KEY
        if len(waiting) >= bound:
            return job.id, Accepted.QUEUE_FULL
        if any(sum(name in other.gates for other in waiting) >= bound // 2 for name in job.gates):
            return job.id, Accepted.GATE_FULL
        due_at = self.now + job.delay_s
        state = SCHEDULED if job.delay_s else READY
        self.accepted += 1
        self.jobs[job.id] = Kept(job, self.accepted, state, due_at, due_at + job.expires_s)
        self.seen.add(job.queue)
        if job.batch:
            self.finished_batch = False
        return job.id, Accepted.NEW

    # ---- claim ----

    @rule(request=a_request)
    def claim(self, request: ClaimRequest) -> None:
        must = [kept for kept in self.claimable(request) if not kept.job.gates and kept.lost < SUSPECT_AFTER]
        claims = self.claimed(request)
        if len(claims) < request.limit:
            got = {claim.job_id for claim in claims}
            assert {kept.job.id for kept in must} <= got, "jobs that nothing stops were left behind"

    @rule(request=a_request)
    def claim_as_a_worker_does(self, request: ClaimRequest) -> None:
        """Claim, wait, claim: whatever is admitted is found in the end."""
        for _ in range(200):
            if self.claimed(request):
                continue
            if not any(self.claimable(request)):
                return
            self.run(self.wait(request))
        raise AssertionError("what may be claimed was never found")

    async def wait(self, request: ClaimRequest) -> None:
        """There is something to claim, so a wait is over long before its own timeout."""
        async with asyncio.timeout(5):
            await self.broker.wait(request, LONG_S)

    def claimed(self, request: ClaimRequest) -> list[Claim]:
        """Claim, check that every job of the answer is allowed, and follow it."""
        before = {kept.job.id: kept for kept in self.jobs.values() if self.is_due(kept) and not self.is_overdue(kept)}
        claims: list[Claim] = self.run(self.broker.claim(request))
        self.leases[request.worker] = self.now + request.lease_s

        taken = [self.jobs[claim.job_id] for claim in claims]
        assert len({claim.job_id for claim in claims}) == len(claims) <= request.limit
        assert sum(bool(kept.job.gates) for kept in taken) <= request.gated
        assert sum(kept.lost >= SUSPECT_AFTER for kept in taken) <= request.suspects
        asked = [request.queues.index(kept.job.queue) for kept in taken]
        order = [(queue, -kept.job.priority) for queue, kept in zip(asked, taken, strict=True)]
        assert order == sorted(order), "queues as named, then priority"
        for lane in {kept.lane for kept in taken}:
            line = [kept for kept in taken if kept.lane == lane]
            in_time = [kept.job.id for kept in line if kept.job.id in before]
            stood = sorted((kept for kept in before.values() if kept.lane == lane), key=lambda kept: kept.place)
            assert in_time == [kept.job.id for kept in stood][: len(in_time)], "a lane is a line"
        for name in {name for kept in taken for name in kept.job.gates}:
            count = sum(name in kept.job.gates for kept in taken)
            admitted = gating.admit(self.record(name), self.parent(name), now=self.now).room
            assert admitted is None or count <= admitted, "a gate is never over its limit"
            self.gates[name] = gating.take(self.record(name), count, self.parent(name), now=self.now)
        for kept, claim in zip(taken, claims, strict=True):
            assert claim.recoveries == gating.recoveries_of(map(self.record, kept.job.gates))
            self.follow(kept, claim, request)
        if taken:
            self.check_priority(taken, before.values())
        return claims

    def check_priority(self, taken: list[Kept], before: Iterable[Kept]) -> None:
        lowest = {kept.job.queue: kept.job.priority for kept in taken}  # the last of each queue
        for kept in before:
            if kept.state is not RUNNING and not kept.job.gates and kept.lost < SUSPECT_AFTER:
                assert kept.job.priority <= lowest.get(kept.job.queue, 9), "priority is strict"

    def follow(self, kept: Kept, claim: Claim, request: ClaimRequest) -> None:
        job = kept.job
        assert self.is_due(kept), "only what is due, and nobody else's"
        assert job.queue not in self.paused
        assert claim.token > kept.token, "tokens grow"
        assert (claim.task, claim.queue, claim.payload, claim.lane) == (job.task, job.queue, job.payload, job.lane)
        assert (claim.gates, claim.priority) == (job.gates, job.priority)
        assert (claim.attempts, claim.snoozes, claim.lost) == (kept.attempts, kept.snoozes, kept.lost)
        assert claim.checkpoint == kept.checkpoint
        assert abs(claim.expires_in_s - (kept.expires_at - self.now)) < 0.01
        if kept.state is SCHEDULED:
            kept.move("due")
        kept.move("claim")
        kept.token, kept.worker, kept.missed = claim.token, request.worker, 0
        self.issued.append((job.id, claim.token))

    @rule(request=a_request, decisions=st.lists(a_decision, min_size=1, max_size=3))
    def work(self, request: ClaimRequest, decisions: list[Decision]) -> None:
        """Claim, and settle most of what was claimed: what a worker does all day."""
        claims = self.claimed(request)[: 2 * len(decisions)]
        if claims:
            words = [
                Settlement(claim.job_id, claim.token, decisions[number % len(decisions)])
                for number, claim in enumerate(claims)
            ]
            self.settled(words)

    # ---- settle, note, beat ----

    @rule(words=st.lists(st.tuples(a_pick, a_decision), min_size=1, max_size=6))
    def settle(self, words: list[tuple[int, Decision]]) -> None:
        """The latest claims first: most settlements are no late ones."""
        latest = min(len(self.issued), 12)
        self.settled([Settlement(*self.issued[-1 - pick % latest], decision) for pick, decision in words])

    def settled(self, settlements: list[Settlement]) -> None:
        replies = self.run(self.broker.settle(settlements))

        assert len(replies) == len(settlements)
        for settlement, reply in zip(settlements, replies, strict=True):
            kept = self.jobs.get(settlement.job_id)
            answers = self.fence(kept, settlement.token)
            assert reply.answer in answers
            if reply.answer is Settled.APPLIED:
                assert kept is not None
                self.apply(kept, settlement.decision)
            if reply.answer is Settled.STALE:
                assert reply.state is None
            else:
                assert kept is not None
                self.check_state(kept, reply.state)

    def fence(self, kept: Kept | None, token: int) -> set[Settled]:
        """What a broker may answer. It remembers at least the last token that settled."""
        if kept is None or token not in {kept.token, *kept.settled}:
            return {Settled.STALE}
        if kept.state is RUNNING and kept.token == token:
            return {Settled.APPLIED}
        return {Settled.ALREADY} if kept.settled[-1:] == [token] else {Settled.ALREADY, Settled.STALE}

    def check_state(self, kept: Kept, state: JobState | None) -> None:
        """A scheduled job that is due may be ready by now."""
        assert state is kept.state or (kept.state is SCHEDULED and self.is_due(kept) and state is READY)

    def apply(self, kept: Kept, decision: Decision) -> None:
        for name in kept.job.gates:
            if isinstance(decision, Release):
                self.gates[name] = gating.give_back(self.record(name), 1, 1, self.parent(name))
        kept.settled.append(kept.token)
        match decision:
            case Complete(result):
                kept.attempts += 1
                kept.result = result
                self.finish(kept, "complete")
            case Retry(delay_s):
                kept.attempts += 1
                kept.errors += 1
                self.again(kept, "retry", delay_s)
            case Snooze(delay_s, _, error):
                kept.snoozes += 1
                kept.errors += error is not None
                self.again(kept, "snooze", delay_s)
            case Release():
                self.again(kept, "release")
            case Bury(_, spent):
                kept.attempts += spent
                kept.errors += 1
                self.finish(kept, "bury")
            case Expire():
                self.finish(kept, "expire")
            case Cancel():
                self.finish(kept, "cancel")

    @rule(pick=a_pick, checkpoint=st.binary(min_size=1, max_size=3))
    def note(self, pick: int, checkpoint: bytes) -> None:
        job_id, token = self.issued[pick % len(self.issued)]
        kept = self.jobs.get(job_id)

        (answer,) = self.run(self.broker.note([Note(job_id, token, checkpoint=checkpoint)]))

        assert answer in self.fence(kept, token)
        if answer is Settled.APPLIED:
            assert kept is not None
            kept.checkpoint = checkpoint

    @rule(worker=st.sampled_from(WORKERS), forget=st.booleans(), pick=a_pick, lease_s=st.sampled_from((8.0, 1_000.0)))
    def beat(self, worker: str, forget: bool, pick: int, lease_s: float) -> None:
        mine = [kept for kept in self.jobs.values() if kept.worker == worker]
        named = mine[1:] if forget else mine
        tokens = {kept.job.id: kept.token for kept in named}
        job_id, token = self.issued[pick % len(self.issued)]
        tokens.setdefault(job_id, token)
        vouched = [kept for kept in mine if tokens.get(kept.job.id) == kept.token]

        presence = Presence("host", 7, "1", self.now, dict.fromkeys(QUEUES, 1), 10, len(mine), WorkerState.CLAIMING)
        reply = self.run(self.broker.beat(worker, tokens, lease_s, presence))

        assert {*reply.lost} == {*tokens} - {kept.job.id for kept in vouched}
        assert {*reply.cancel} == {kept.job.id for kept in vouched if kept.cancel_requested}
        self.leases[worker] = self.now + lease_s
        self.said[worker] = (self.now, lease_s, presence)
        self.check_workers()
        for kept in mine:
            kept.missed = 0 if kept in vouched else kept.missed + 1

    # ---- time, death, upkeep ----

    @rule(step_s=st.sampled_from((0.371_234_5, 1.139_871_1, 5.719_1, 31.913)))
    def advance(self, step_s: float) -> None:
        self.clock.advance(step_s)

    @rule(worker=st.sampled_from(WORKERS), lease_s=st.sampled_from((8.0, 50.0)))
    def live_on(self, worker: str, lease_s: float) -> None:
        """One worker beats, all the others may be dead by the next upkeep."""
        self.beat(worker, forget=False, pick=0, lease_s=lease_s)
        self.clock.advance(17.318_7)
        self.reclaim()

    @rule(worker=st.sampled_from(WORKERS))
    def leave(self, worker: str) -> None:
        self.run(self.broker.leave(worker))
        self.leases[worker] = 0.0
        self.said.pop(worker, None)
        self.reclaim()

    @rule(request=a_request)
    def die_twice(self, request: ClaimRequest) -> None:
        """What this worker holds becomes suspect, or is buried."""
        for _ in range(2):
            self.claimed(request)
            self.leave(request.worker)

    @rule()
    def reclaim(self) -> None:
        """Everything that the broker says it moved had to move, and everything that had to move did."""
        gone = {name for name, until in self.leases.items() if until <= self.now}
        dead = {kept.job.id: kept.worker for kept in self.jobs.values() if kept.worker in gone}
        missed = {kept.job.id: kept.worker for kept in self.jobs.values() if kept.worker and kept.missed >= 2}
        suspected = {kept.worker for kept in self.jobs.values() if kept.lost >= SUSPECT_AFTER}
        overdue = {kept.job.id for kept in self.jobs.values() if self.is_overdue(kept)}
        lost = missed | dead

        moved: list[Reclaimed] = self.run(self.broker.reclaim(max_lost=MAX_LOST, retention=RETENTION))

        for one in moved:
            kept = self.jobs[one.job_id]
            assert (one.task, one.queue) == (kept.job.task, kept.job.queue)
            if one.state is JobState.EXPIRED:
                assert self.is_overdue(kept)
                self.finish(kept, "expire")
                overdue.discard(one.job_id)
                continue
            worker = lost.pop(one.job_id)
            counts = kept.lost >= SUSPECT_AFTER or worker not in suspected
            if one.job_id in dead:
                assert one.lost == kept.lost + counts
            else:  # whether a suspect that is vouched for shields the others is the broker's to say
                assert one.lost - kept.lost in {counts, 1}
            kept.lost = one.lost
            if is_buried(kept.lost, max_lost=MAX_LOST):
                kept.errors += 1
                self.finish(kept, "bury")
            else:
                self.again(kept, "reclaim")
            assert one.state is kept.state
        assert not lost, "claims that nobody holds were left"
        assert not overdue, "jobs that waited too long were left"
        self.prune()
        self.said = {name: said for name, said in self.said.items() if self.now - said[0] < FORGOTTEN * said[1]}
        self.check_workers()

    def check_workers(self) -> None:
        """Who said so, neither left nor is forgotten, as it last said."""
        shown = self.run(self.broker.workers())
        said = {name: said for name, said in self.said.items() if self.now - said[0] < FORGOTTEN * said[1]}
        assert [info.worker for info in shown] == sorted(said)
        for info in shown:
            at, lease_s, presence = said[info.worker]
            assert abs(info.silent_s - max(0.0, self.now - at)) < 0.001
            assert (info.lease_s, info.said) == (lease_s, presence)

    def prune(self) -> None:
        self.finished_batch = self.finished_batch or self.named_at <= self.now - RETENTION.batch_s
        for kept in [*self.jobs.values()]:
            if not kept.is_final or (kept.job.batch and not self.finished_batch):
                continue
            if kept.finished_at <= self.now - RETENTION.result_s:
                kept.result = None
            keep_s = RETENTION.dead_s if kept.state is JobState.DEAD else RETENTION.finished_s
            if kept.finished_at <= self.now - keep_s:
                del self.jobs[kept.job.id]
        named = {gate.name for gate in self.run(self.broker.gates())}
        for name in {*self.gates} - named:  # it was forgotten, and had to be idle for that
            gate = self.record(name)
            words = (gate.limit, gate.limit_override, gate.rate, gate.rate_override, gate.ramp)
            assert (gate.live, *words) == (0, None, None, None, None, None)
            assert max(gate.held_until, gate.tat) <= self.now
            del self.gates[name]

    # ---- gates ----

    @rule(name=st.sampled_from(GATES), change=a_change, age=st.sampled_from((None, None, 0, 1)))
    def change_gate(self, name: str, change: gating.GateChange, age: int | None) -> None:
        generation = None if age is None else self.record(name).generation - age
        if age in {None, 0}:
            self.gates[name] = gating.change(self.record(name), change, now=self.now)

        gate = self.run(self.broker.gate(name, change, generation))

        self.check_gate(gate)

    def check_gate(self, gate: gating.Gate) -> None:
        known = self.record(gate.name)
        assert replace(gate, held_until=0, tat=0) == replace(known, held_until=0, tat=0)
        assert abs(max(gate.held_until, self.now) - max(known.held_until, self.now)) < 0.001
        if gating.rate_of(known, self.parent(gate.name)) is not None:
            assert abs(max(gate.tat, self.now) - max(known.tat, self.now)) < 0.001

    # ---- what a person does ----

    @rule(pick=a_pick)
    def cancel(self, pick: int) -> None:
        job_id = self.one_of_all(pick)
        kept = self.jobs.get(job_id)

        (answer,) = self.run(self.broker.cancel([job_id]))

        if kept is None:
            assert answer is Cancelled.MISSING
        elif kept.is_final:
            assert answer is Cancelled.FINAL
        elif kept.state is RUNNING:
            assert answer is Cancelled.REQUESTED
            kept.cancel_requested = True
        else:
            assert answer is Cancelled.CANCELLED
            self.finish(kept, "cancel")

    def one_of_all(self, pick: int) -> str:
        return [*self.jobs, "f" * 32][pick % (len(self.jobs) + 1)]

    @precondition(lambda self: any(kept.state is JobState.DEAD for kept in self.jobs.values()))
    @rule()
    def retry_dead(self) -> None:
        dead = [kept for kept in self.jobs.values() if kept.state is JobState.DEAD]

        answers = self.run(self.broker.retry([kept.job.id for kept in dead]))

        for kept, answer in zip(dead, answers, strict=True):
            if self.holder(kept.job) is not None:
                assert answer is Retried.KEY_TAKEN
                continue
            assert answer is Retried.READY
            kept.move("resurrect")
            kept.attempts = kept.snoozes = kept.lost = 0
            kept.due_at, kept.expires_at = self.now, self.now + kept.job.expires_s
            kept.cancel_requested = False

    @rule(pick=a_pick)
    def retry_any(self, pick: int) -> None:
        job_id = self.one_of_all(pick)
        kept = self.jobs.get(job_id)
        if kept is not None and kept.state is JobState.DEAD:
            return

        (answer,) = self.run(self.broker.retry([job_id]))

        assert answer is (Retried.MISSING if kept is None else Retried.NOT_DEAD)

    @rule(queue=st.sampled_from(QUEUES))
    def pause_or_resume(self, queue: str) -> None:
        if queue in self.paused:
            self.run(self.broker.resume(queue))
        else:
            self.run(self.broker.pause(queue))
        self.paused ^= {queue}

    @rule(state=st.sampled_from((*WAITS, *sorted(FINAL))), queue=st.sampled_from((None, *QUEUES)), pick=a_pick)
    def purge(self, state: JobState, queue: str | None, pick: int) -> None:
        limbo = any(kept.state is SCHEDULED and self.is_due(kept) for kept in self.jobs.values())
        if pick % 5 or (limbo and state in WAITS):
            return
        mine = [kept for kept in self.jobs.values() if kept.state is state and queue in {None, kept.job.queue}]

        count = self.run(self.broker.purge(state=state, queue=queue))

        assert count == len(mine)
        for kept in mine:
            if kept.is_final:
                del self.jobs[kept.job.id]
            else:
                self.finish(kept, "cancel")

    @rule()
    def finish_batch(self) -> None:
        self.run(self.broker.finish_batch("run"))
        self.finished_batch = True

    # ---- what must always be so ----

    @invariant()
    def all_is_as_the_model_says(self) -> None:
        infos, counts, gates, finals = self.run(self.look())
        self.check_jobs(infos)
        self.check_counts({one.queue: one for one in counts})
        self.check_finals(finals)
        for gate in gates:
            self.check_gate(gate)
        live = {name for kept in self.jobs.values() if kept.state is RUNNING for name in kept.job.gates}
        assert live <= {gate.name for gate in gates}

    async def look(self) -> tuple[list[JobInfo], list[QueueCounts], list[gating.Gate], dict[str, Final]]:
        broker = self.broker
        finals = await broker.finals([*self.jobs], 0.0) if self.jobs else {}
        return await broker.jobs(limit=10_000), await broker.counts(), await broker.gates(), finals

    def check_jobs(self, infos: list[JobInfo]) -> None:
        newest_first = sorted(self.jobs.values(), key=lambda kept: -kept.number)
        assert [info.id for info in infos] == [kept.job.id for kept in newest_first]
        for info, kept in zip(infos, newest_first, strict=True):
            self.check_state(kept, info.state)
            assert (info.attempts, info.snoozes, info.lost) == (kept.attempts, kept.snoozes, kept.lost)
            assert (len(info.errors), info.worker) == (min(ERRORS_KEPT, kept.errors), kept.worker)
            assert info.cancel_requested == kept.cancel_requested
            assert (info.finished_at is not None) == kept.is_final
            assert abs(info.due_at - kept.due_at) < 0.001
            assert abs(info.expires_at - kept.expires_at) < 0.001

    def check_counts(self, counts: dict[str, QueueCounts]) -> None:
        """The counters are kept as jobs move; here all is counted anew."""
        assert self.seen <= {*counts} <= self.seen | self.offered
        for queue, count in counts.items():
            mine = [kept for kept in self.jobs.values() if kept.job.queue == queue]
            due = sum(self.is_due(kept) for kept in mine)
            ready = sum(kept.state is READY for kept in mine)
            assert ready <= count.ready <= due
            assert count.ready + count.scheduled == sum(kept.state in WAITS for kept in mine)
            assert count.running == sum(kept.state is RUNNING for kept in mine)
            assert count.dead == sum(kept.state is JobState.DEAD for kept in mine)
            assert (count.waiting, count.paused) == (0, queue in self.paused)

    def check_finals(self, finals: dict[str, Final]) -> None:
        assert {*finals} == {kept.job.id for kept in self.jobs.values() if kept.is_final}
        for final in finals.values():
            kept = self.jobs[final.job_id]
            assert final.state is kept.state
            if not kept.job.batch:  # of a batch that is not finished, results may be pruned, or not
                assert final.result == kept.result

    def drain(self) -> None:
        """Nothing is lost: once all that stops them is gone, all jobs are claimed and reach a final state."""
        request = ClaimRequest("w1", QUEUES, 100, 100, 1, 1_000.0)
        for queue in [*self.paused]:
            self.pause_or_resume(queue)
        self.clock.advance(600.717)
        self.claim_as_a_worker_does(request)  # what only time had stopped
        for name in GATES:
            for change in self.words_against(self.record(name)):
                self.change_gate(name, change, None)
                self.claim_as_a_worker_does(request)
        for worker in WORKERS:
            self.leave(worker)
        self.clock.advance(6.283)
        self.reclaim()
        for _ in range(200):
            claims = self.claimed(request)
            self.run(self.broker.settle([Settlement(one.job_id, one.token, Complete()) for one in claims]))
            for one in claims:
                self.apply(self.jobs[one.job_id], Complete())
            if all(kept.is_final for kept in self.jobs.values()):
                return
            if not claims:
                self.run(self.wait(request))
        raise AssertionError("jobs were lost on the way")

    def words_against(self, gate: gating.Gate) -> Iterator[gating.GateChange]:
        """What takes back all that was said of the gate, and nothing more: each change wakes lanes."""
        if gate.held_until > self.now or gate.ramp is not None:
            yield gating.Release()
        if gate.limit is not None or gate.rate is not None:
            yield gating.Declare()
        if gate.limit_override is not None:
            yield gating.OverrideLimit(None)
        if gate.rate_override is not None:
            yield gating.OverrideRate(None)


class MemoryMachine(BrokerMachine):
    def make(self, clock: FakeClock, folder: Path) -> FullBroker:
        from taskflow.brokers.memory import MemoryBroker

        return MemoryBroker(clock)


class SqliteMachine(BrokerMachine):
    def make(self, clock: FakeClock, folder: Path) -> FullBroker:
        from taskflow.brokers.sqlite import SqliteBroker

        return SqliteBroker(folder / "taskflow.db", wall=clock.wall)


class RedisMachine(BrokerMachine):
    def make(self, clock: FakeClock, folder: Path) -> FullBroker:
        from taskflow.brokers.redis import RedisBroker

        self.namespace = new_namespace()
        return RedisBroker(valkey_url(), namespace=self.namespace, wall=clock.wall)

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "namespace"):
            forget_namespace(self.namespace)

    @rule()
    def flush_scripts(self) -> None:
        """As a restart or a failover does."""
        self.run(self.broker._link.ask("SCRIPT", "FLUSH"))

    @rule()
    def set_the_clock_back(self) -> None:
        """As a correction of the server's clock, or a failover to one that is behind. What was found due stays ready."""
        states = self.run(self.broker.states([*self.jobs]))
        for job_id, kept in self.jobs.items():
            if kept.state is SCHEDULED and states[job_id] is READY:
                kept.move("due")
        self.clock.at -= 2.713_9

    @rule()
    def lose_the_connection(self) -> None:
        """The client is gone in the middle of whatever it did; another one goes on."""
        from taskflow.brokers.redis import RedisBroker

        self.run(self.broker.close())
        self.broker = RedisBroker(valkey_url(), namespace=self.namespace, wall=self.clock.wall)
        self.run(self.broker.open())


class PostgresMachine(BrokerMachine):
    def make(self, clock: FakeClock, folder: Path) -> FullBroker:
        from taskflow.brokers.postgres import PostgresBroker

        return PostgresBroker(postgres().url, namespace=folder.name, wall=clock.wall)


# A failure is shrunk before it is reported: that takes minutes.
pytestmark = pytest.mark.timeout(600)
QUIET = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]

TestMemory = MemoryMachine.TestCase
TestMemory.settings = settings(
    max_examples=200, stateful_step_count=50, deadline=None, suppress_health_check=QUIET, print_blob=True
)

if find_spec("taskflow.brokers.sqlite") is not None:
    TestSqlite = SqliteMachine.TestCase
    TestSqlite.settings = settings(
        max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=QUIET, print_blob=True
    )

if find_spec("taskflow.brokers.redis") is not None:
    TestRedis = RedisMachine.TestCase
    TestRedis.settings = settings(
        max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=QUIET, print_blob=True
    )

# Without a server it would not be in the report at all: in CI it is there, and fails.
if find_spec("taskflow.brokers.postgres") is not None and (postgres_is_there() or os.environ.get("CI")):
    TestPostgres = PostgresMachine.TestCase
    TestPostgres.settings = settings(
        max_examples=30, stateful_step_count=40, deadline=None, suppress_health_check=QUIET, print_blob=True
    )
