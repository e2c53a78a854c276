"""The reference broker: everything in this process, lost with it. Read it before the others.

The verbs, of the runtime and of a person; each is a call into the room that its siblings have too, by the same name:
`submit`, `claim`, `settle`, `leases`, `upkeep`, `operate`, `reading`. What they work on is the `store`. A job is a
`Row`; ready rows stand in the lines of a `Lane`; lanes with something to claim stand in the rings of their `Queue`; a
lane that its gate does not admit stands in a ring of that `GateLine` instead. No verb awaits between reading and
changing: all are atomic without a lock.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from taskflow.brokers.memory import claim as claiming
from taskflow.brokers.memory import gates, leases, operate, reading, settle, submit, upkeep
from taskflow.brokers.memory.store import Store
from taskflow.brokers.waiting import closed_meanwhile, not_kept, resolve
from taskflow.clock import Clock, LoopClock
from taskflow.collector import no_collection
from taskflow.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from taskflow.brokers.base import (
        BeatReply,
        Cancelled,
        ClaimRequest,
        Final,
        JobInfo,
        Note,
        Presence,
        QueueCounts,
        Receipt,
        Reclaimed,
        Retention,
        Retried,
        Settled,
        Settlement,
        SettleReply,
        SyncBeat,
        WorkerInfo,
    )
    from taskflow.core.gate import Gate, GateChange
    from taskflow.core.job import Claim, Job, JobState

_MANY = 100  # jobs in one submit, from which the garbage collector's looks cost more than to send it away


class MemoryBroker:
    """Jobs in this process. Fast, complete, and gone when the process ends."""

    name = "memory"
    is_durable = False

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or LoopClock()
        self._wall = self._clock.wall
        self._store = Store()
        self._is_open = True  # it needs no opening

    async def open(self) -> None:
        """Nothing to connect to. A broker that was closed keeps its jobs."""
        self._is_open = True

    async def close(self) -> None:
        """Whoever waits for jobs returns; whoever waits for a job's end hears that nobody will tell."""
        self._is_open = False
        for queue in self._store.queues.values():
            queue.wake_waiters()
        self._store.awaited.tell_all()

    # ---- what the runtime asks ----

    async def submit(self, jobs: Sequence[Job], bounds: Mapping[str, int]) -> list[Receipt]:
        """As `Broker.submit`. A queue that `bounds` does not name has no bound."""
        if len(jobs) < _MANY:
            return submit.submit(self._store, jobs, bounds, self._wall())
        with no_collection():
            return submit.submit(self._store, jobs, bounds, self._wall())

    async def claim(self, request: ClaimRequest) -> list[Claim]:
        """As `Broker.claim`."""
        return claiming.claim(self._store, request, self._wall())

    async def wait(self, request: ClaimRequest, timeout_s: float) -> None:
        """As `Broker.wait`."""
        now = self._wall()
        delay_s = min(timeout_s, reading.next_instant(self._store, request, now) - now)
        if delay_s <= 0:
            return
        queues = [self._store.queue(name) for name in request.queues]
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        timer = self._clock.call_at(self._clock.now() + delay_s, partial(resolve, woken))
        for queue in queues:
            queue.waiters[woken] = None
        try:
            await woken
        finally:
            timer.cancel()
            for queue in queues:
                queue.waiters.pop(woken, None)

    async def settle(self, settlements: Sequence[Settlement]) -> list[SettleReply]:
        """As `Broker.settle`."""
        return settle.settle(self._store, settlements, self._wall())

    async def beat(
        self, worker: str, tokens: Mapping[str, int], lease_s: float, presence: Presence | None = None
    ) -> BeatReply:
        """As `Broker.beat`."""
        return leases.beat(self._store, worker, tokens, lease_s, presence, self._wall())

    def sync_beat(self) -> SyncBeat | None:
        """None: this broker dies with the worker, so there is nobody to tell that it lives."""
        return None

    async def leave(self, worker: str) -> None:
        """As `Broker.leave`: the lease ends now, the next `reclaim` takes what is left."""
        leases.leave(self._store, worker)

    async def note(self, notes: Sequence[Note]) -> list[Settled]:
        """As `Broker.note`."""
        return settle.note(self._store, notes)

    async def finals(self, job_ids: Sequence[str], timeout_s: float) -> dict[str, Final]:
        """As `Broker.finals`. Thousands may wait, each for its own job: a wake-up costs one look into a dict."""
        found = reading.finals(self._store, job_ids)
        if found or not job_ids:
            return found
        kept = reading.kept(self._store, job_ids)
        if not kept:
            raise not_kept(job_ids)
        if not self._is_open:
            raise BrokerError("the memory broker is closed: nobody will end the jobs that are waited for")
        if timeout_s <= 0:
            return {}
        first: asyncio.Future[Final | None] = asyncio.get_running_loop().create_future()
        timer = self._clock.call_at(self._clock.now() + timeout_s, partial(resolve, first))
        ids = [row.id for row in kept]
        self._store.awaited.add(ids, first)
        try:
            final = await first
        finally:
            timer.cancel()
            self._store.awaited.remove(ids, first)
        if not self._is_open:
            raise closed_meanwhile("the memory broker")
        found = {row.id: row.final() for row in kept if row.finished_at is not None}
        if final is not None:  # it may be pruned or retried by now
            found[final.job_id] = final
        return found

    async def gate(self, name: str, change: GateChange, generation: int | None = None) -> Gate:
        """As `Broker.gate`."""
        return gates.change_gate(self._store, name, change, generation, self._wall())

    async def reclaim(self, *, max_lost: int, retention: Retention) -> list[Reclaimed]:
        """As `Broker.reclaim`."""
        return upkeep.reclaim(self._store, max_lost, retention, self._wall())

    async def counts(self) -> list[QueueCounts]:
        """As `Broker.counts`."""
        return reading.counts(self._store, self._wall())

    # ---- what a person asks ----

    async def show(self, job_id: str) -> JobInfo | None:
        """As `Operator.show`."""
        return reading.show(self._store, job_id)

    async def states(self, job_ids: Sequence[str]) -> dict[str, JobState]:
        """As `Operator.states`."""
        return reading.states(self._store, job_ids)

    async def jobs(
        self, *, state: JobState | None = None, queue: str | None = None, task: str | None = None, limit: int = 100
    ) -> list[JobInfo]:
        """As `Operator.jobs`."""
        return reading.jobs(self._store, state, queue, task, limit)

    async def cancel(self, job_ids: Sequence[str]) -> list[Cancelled]:
        """As `Operator.cancel`."""
        return operate.cancel(self._store, job_ids, self._wall())

    async def retry(self, job_ids: Sequence[str]) -> list[Retried]:
        """As `Operator.retry`."""
        return operate.retry(self._store, job_ids, self._wall())

    async def purge(self, *, state: JobState, queue: str | None = None, task: str | None = None) -> int:
        """As `Operator.purge`. What runs or is in no such state is not touched."""
        return operate.purge(self._store, state, queue, task, self._wall())

    async def pause(self, queue: str) -> None:
        """As `Operator.pause`."""
        operate.pause(self._store, queue, is_paused=True)

    async def resume(self, queue: str) -> None:
        """As `Operator.resume`."""
        operate.pause(self._store, queue, is_paused=False)

    async def gates(self) -> list[Gate]:
        """As `Operator.gates`, by name."""
        return reading.gates(self._store)

    async def workers(self) -> list[WorkerInfo]:
        """As `Operator.workers`, by name."""
        return reading.workers(self._store, self._wall())

    async def finish_batch(self, batch: str) -> None:
        """As `Operator.finish_batch`."""
        upkeep.finish_batch(self._store, batch)
