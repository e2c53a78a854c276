"""The reference broker: everything in this process, lost with it. Read it before the others.

One walk, top to bottom: the verbs of the runtime, the verbs of a person, then the parts. A job is a `Row`; ready rows
stand in the lines of a `Lane`; lanes with something to claim stand in the rings of their `Queue`; a lane that its
gate does not admit stands in a ring of that `GateLine` instead. No verb awaits between reading and changing: all are
atomic without a lock.

Whoever leaves a line or a heap from its middle (cancelled, expired) has ended for good: it stays where it is, is
skipped when its turn comes, and is swept once most of the container is such rows.
"""

from __future__ import annotations

import asyncio
import heapq
from bisect import insort
from collections import OrderedDict, deque
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, assert_never

from taskflow.brokers.base import (
    PARKS,
    PROMOTE,
    QUOTA,
    WAKE,
    Accepted,
    BeatReply,
    Cancelled,
    ClaimRequest,
    Final,
    JobInfo,
    Note,
    QueueCounts,
    Receipt,
    Reclaimed,
    Retention,
    Retried,
    Settled,
    Settlement,
    SettleReply,
    SyncBeat,
)
from taskflow.brokers.memory.expiries import Expiries
from taskflow.brokers.memory.lanes import GateLine, Holder, Lane, Left, Queue, Ring, Row, late, matching, order, resolve
from taskflow.clock import Clock, LoopClock
from taskflow.collector import no_collection
from taskflow.core import gate as gating
from taskflow.core.decision import Bury, Cancel, Complete, Expire, Release, Retry, Snooze
from taskflow.core.job import FINAL, SUSPECT_AFTER, TRANSITIONS, Claim, Job, JobState, is_buried
from taskflow.core.outcome import ErrorRecord
from taskflow.core.window import retry_after_s
from taskflow.errors import BrokerError, JobNotFound

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
_MANY = 100  # jobs in one submit, from which the garbage collector's looks cost more than to send it away
_STIRS = 1_000  # gates whose hold is over that one claim looks at: ten thousand holds may end in one instant

_READY, _SCHEDULED, _RUNNING, _DEAD = JobState.READY, JobState.SCHEDULED, JobState.RUNNING, JobState.DEAD
_NEW, _APPLIED = Accepted.NEW, Settled.APPLIED  # an enum's member costs as much as a call on Python 3.11
_BOUNDED = frozenset({_READY, _SCHEDULED})  # what the bound of a queue counts
_CLAIMED = TRANSITIONS[_READY]["claim"]
_COMPLETED = TRANSITIONS[_RUNNING]["complete"]
_DONE = SettleReply(_APPLIED, _COMPLETED)
_new = tuple.__new__  # the constructor of a NamedTuple is one more call
_NEVER = float("inf")
_SWEEP_FROM = 64  # forgotten rows in a container, below which sweeping is not worth it


class MemoryBroker:
    """Jobs in this process. Fast, complete, and gone when the process ends."""

    name = "memory"
    is_durable = False

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or LoopClock()
        self._rows: dict[str, Row] = {}  # in the order of submission
        self._keys: dict[tuple[str, str], str] = {}  # (task, key) → the job that is not final yet
        self._queues: dict[str, Queue] = {}
        self._gates: OrderedDict[str, GateLine] = OrderedDict()
        self._workers: dict[str, Holder] = {}
        self._submitted = 0
        self._is_open = True  # it needs no opening
        self._token = 0
        self._openings: list[tuple[float, int, GateLine]] = []  # heap: when gates with waiting lanes may open
        self._openings_made = 0
        self._expiries = Expiries()
        self._waiters: dict[str, set[asyncio.Future[Final | None]]] = {}  # job id → who waits for it to be final
        # What `reclaim` prunes, in the order in which it ended.
        self._results: deque[Row] = deque()
        self._finished: deque[Row] = deque()
        self._dead: dict[str, Row] = {}  # by job id: from here they may go on
        self._batches: dict[str, float] = {}  # that are not finished → when a submit named them last
        self._held_back: dict[str, list[tuple[deque[Row] | dict[str, Row], Row]]] = {}  # old enough, but of these

    async def open(self) -> None:
        """Nothing to connect to. A broker that was closed keeps its jobs."""
        self._is_open = True

    async def close(self) -> None:
        """Whoever waits for jobs returns; whoever waits for a job's end hears that nobody will tell."""
        self._is_open = False
        for queue in self._queues.values():
            queue.wake_waiters()
        for waiting in list(self._waiters.values()):
            for waiter in waiting:
                resolve(waiter)

    # ---- what the runtime asks ----

    async def submit(self, jobs: Sequence[Job], bounds: Mapping[str, int]) -> list[Receipt]:
        """As `Broker.submit`. A queue that `bounds` does not name has no bound."""
        if len(jobs) < _MANY:
            return self._submit(jobs, bounds)
        with no_collection():
            return self._submit(jobs, bounds)

    async def claim(self, request: ClaimRequest) -> list[Claim]:
        """As `Broker.claim`."""
        now = self._clock.wall()
        worker = self._workers.get(request.worker)
        if worker is None:
            worker = self._workers[request.worker] = Holder(request.worker)
        worker.lease_until = now + request.lease_s
        self._stir_due_gates(now)
        left = Left(request.limit, request.gated, request.suspects, WAKE, PROMOTE, PARKS)
        claims: list[Claim] = []
        for name in request.queues:
            queue = self._queues.get(name)
            if queue is None or queue.is_paused:
                continue
            self._promote(queue, left, now)
            if left.gated > 0:
                self._wake_lanes(queue, left, now)
            rows = self._claim_in_turn(queue, request.limit, left, now)
            claims += self._hand_over(queue, rows, worker, now)
            if left.limit <= 0:
                break
        return claims

    async def wait(self, request: ClaimRequest, timeout_s: float) -> None:
        """As `Broker.wait`."""
        now = self._clock.wall()
        queues = [self._queue(name) for name in request.queues]
        instants = [now + timeout_s]
        if request.gated > 0 and self._openings:
            instants.append(self._openings[0][0])
        for queue in queues:
            if queue.is_paused:
                continue
            if queue.first_in_turn(request.gated > 0, request.suspects > 0) or (request.gated > 0 and queue.stirred):
                return
            if queue.scheduled:
                instants.append(queue.scheduled[0][0])
        if (delay_s := min(instants) - now) <= 0:
            return
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
        now = self._clock.wall()
        rows, results, finished = self._rows, self._results, self._finished
        replies: list[SettleReply] = []
        completed: dict[Queue, int] = {}
        left: dict[Queue, int] = {}  # other jobs that left their queue for good
        freed: dict[str, list[int]] = {}  # gate → [claims that ended, of them unused]
        for job_id, token, decision in settlements:
            row = rows.get(job_id)
            if row is None or row.token != token or row.state is not _RUNNING:
                replies.append(late(row, token))
                continue
            row.settled_token = token
            if isinstance(decision, Complete):  # what most claims come to: written out, every job passes here
                if row.gates:
                    self._end_claim(row, freed)
                else:
                    del row.worker.claims[job_id]  # type: ignore[union-attr] # what runs has one; asserting it costs every job
                    row.worker = None
                row.attempts += 1
                row.state, row.finished_at, row.result = _COMPLETED, now, decision.result
                finished.append(row)
                if row.result is not None:
                    results.append(row)
                if row.key is not None or job_id in self._waiters:
                    self._tell_final(row)
                completed[row.queue] = completed.get(row.queue, 0) + 1
                replies.append(_DONE)
                continue
            self._end_claim(row, freed, is_unused=type(decision) is Release)
            self._apply(row, decision, now)
            if row.finished_at is not None:
                left[row.queue] = left.get(row.queue, 0) + 1
            replies.append(SettleReply(_APPLIED, row.state))
        for queue, count in completed.items():
            queue.count[_RUNNING] -= count
            queue.count[_COMPLETED] += count
            queue.drain.add(count, now=now)
        for queue, count in left.items():
            queue.drain.add(count, now=now)
        self._free(freed)
        return replies

    async def beat(self, worker: str, tokens: Mapping[str, int], lease_s: float) -> BeatReply:
        """As `Broker.beat`."""
        holder = self._workers.get(worker)
        if holder is None:
            holder = self._workers[worker] = Holder(worker)
        holder.lease_until = self._clock.wall() + lease_s
        holder.beats += 1
        lost: list[str] = []
        cancel: list[str] = []
        for job_id, token in tokens.items():
            row = holder.claims.get(job_id)
            if row is None or row.token != token:
                lost.append(job_id)
                continue
            row.vouched = holder.beats
            if row.cancel_requested:
                cancel.append(job_id)
        return BeatReply(tuple(lost), tuple(cancel))

    def sync_beat(self) -> SyncBeat | None:
        """None: this broker dies with the worker, so there is nobody to tell that it lives."""
        return None

    async def leave(self, worker: str) -> None:
        """As `Broker.leave`: the lease ends now, the next `reclaim` takes what is left."""
        holder = self._workers.get(worker)
        if holder is None:
            return
        holder.lease_until = -_NEVER
        if not holder.claims:
            del self._workers[worker]

    async def note(self, notes: Sequence[Note]) -> list[Settled]:
        """As `Broker.note`."""
        answers: list[Settled] = []
        for job_id, token, progress, checkpoint in notes:
            row = self._rows.get(job_id)
            if row is None or row.token != token or row.state is not _RUNNING:
                answers.append(late(row, token).answer)
                continue
            if progress is not None:
                row.progress = progress
            if checkpoint is not None:
                row.checkpoint = checkpoint
            answers.append(_APPLIED)
        return answers

    async def finals(self, job_ids: Sequence[str], timeout_s: float) -> dict[str, Final]:
        """As `Broker.finals`. Thousands may wait, each for its own job: a wake-up costs one look into a dict."""
        find = self._rows.get
        found: dict[str, Final] = {}
        for job_id in job_ids:
            row = find(job_id)
            if row is not None and row.finished_at is not None:
                found[job_id] = row.final()
        if found or not job_ids:
            return found
        kept = [row for job_id in job_ids if (row := find(job_id)) is not None]
        if not kept:
            raise JobNotFound(
                f"no such job is kept: {', '.join(islice(job_ids, 3))}; the id is wrong, or its retention is over"
            )
        if not self._is_open:
            raise BrokerError("the memory broker is closed: nobody will end the jobs that are waited for")
        if timeout_s <= 0:
            return {}
        first: asyncio.Future[Final | None] = asyncio.get_running_loop().create_future()
        timer = self._clock.call_at(self._clock.now() + timeout_s, partial(resolve, first))
        for row in kept:
            self._waiters.setdefault(row.id, set()).add(first)
        try:
            final = await first
        finally:
            timer.cancel()
            for row in kept:
                self._forget_waiter(row.id, first)
        if not self._is_open:
            raise BrokerError("the memory broker was closed while a job's end was waited for")
        found = {row.id: row.final() for row in kept if row.finished_at is not None}
        if final is not None:  # it may be pruned or retried by now
            found[final.job_id] = final
        return found

    async def gate(self, name: str, change: gating.GateChange, generation: int | None = None) -> gating.Gate:
        """As `Broker.gate`."""
        gate = self._gate(name)
        if generation is None or generation == gate.record.generation:
            gate.record = gating.change(gate.record, change, now=self._clock.wall())
            self._stir(gate)
            for child in gate.children:
                self._stir(child)
        return gate.record

    async def reclaim(self, *, max_lost: int, retention: Retention) -> list[Reclaimed]:
        """As `Broker.reclaim`."""
        now = self._clock.wall()
        moved: list[Reclaimed] = []
        for worker in list(self._workers.values()):
            if len(moved) >= retention.rows:
                return moved
            if worker.lease_until <= now:
                self._lose(list(worker.claims.values()), "lease_ended", max_lost, now, moved)
                del self._workers[worker.name]
            elif unvouched := [row for row in worker.claims.values() if worker.beats - row.vouched >= 2]:
                self._lose(unvouched, "missed_beats", max_lost, now, moved)
        self._expire_overdue(retention.rows, now, moved)
        self._prune(retention, now)
        return moved

    async def counts(self) -> list[QueueCounts]:
        """As `Broker.counts`."""
        now = self._clock.wall()
        return [
            queue.counts(now)
            for _, queue in sorted(self._queues.items())
            if queue.had_jobs  # a queue that was only asked for is not one yet
        ]

    # ---- what a person asks ----

    async def show(self, job_id: str) -> JobInfo | None:
        """As `Operator.show`."""
        row = self._rows.get(job_id)
        return None if row is None else row.info()

    async def states(self, job_ids: Sequence[str]) -> dict[str, JobState]:
        """As `Operator.states`."""
        return {job_id: row.state for job_id in job_ids if (row := self._rows.get(job_id)) is not None}

    async def jobs(
        self, *, state: JobState | None = None, queue: str | None = None, task: str | None = None, limit: int = 100
    ) -> list[JobInfo]:
        """As `Operator.jobs`."""
        return [row.info() for row in islice(matching(reversed(self._rows.values()), state, queue, task), limit)]

    async def cancel(self, job_ids: Sequence[str]) -> list[Cancelled]:
        """As `Operator.cancel`."""
        now = self._clock.wall()
        return [self._cancel(self._rows.get(job_id), now) for job_id in job_ids]

    async def retry(self, job_ids: Sequence[str]) -> list[Retried]:
        """As `Operator.retry`."""
        now = self._clock.wall()
        return [self._resurrect(self._rows.get(job_id), now) for job_id in job_ids]

    async def purge(self, *, state: JobState, queue: str | None = None, task: str | None = None) -> int:
        """As `Operator.purge`. What runs or is in no such state is not touched."""
        now = self._clock.wall()
        rows = list(matching(self._rows.values(), state, queue, task))
        if state is _RUNNING:
            return 0
        if state not in FINAL:
            for row in rows:
                self._cancel(row, now)
            return len(rows)
        for row in rows:
            self._forget(row)
        self._sweep()
        return len(rows)

    async def pause(self, queue: str) -> None:
        """As `Operator.pause`."""
        self._queue(queue).is_paused = True

    async def resume(self, queue: str) -> None:
        """As `Operator.resume`."""
        resumed = self._queue(queue)
        resumed.is_paused = False
        resumed.wake_waiters()

    async def gates(self) -> list[gating.Gate]:
        """As `Operator.gates`, by name."""
        return [gate.record for _, gate in sorted(self._gates.items())]

    async def finish_batch(self, batch: str) -> None:
        """As `Operator.finish_batch`."""
        self._finish_batch(batch)

    # ---- into the queue ----

    def _submit(self, jobs: Sequence[Job], bounds: Mapping[str, int]) -> list[Receipt]:
        now = self._clock.wall()
        rows, new = self._rows, tuple.__new__
        refused: dict[str, int] = {}
        receipts: list[Receipt] = []
        accepted: list[Row] = []
        queue: Queue | None = None
        row: Row | None = None
        lane: Lane | None = None
        where: tuple[str, tuple[str, ...], int] = ("", (), 0)  # in its queue, the job before
        for job in jobs:
            job_id, task, name, payload, priority, lane_key, gates, key, delay_s, expires_s, reason, batch = job
            if batch and batch in self._batches:
                self._batches[batch] = now
            if job_id in rows:
                receipts.append(Receipt(job_id, Accepted.SAME_ID))
                continue
            if key is not None and (holder := self._keys.get((task, key))) is not None:
                receipts.append(Receipt(holder, Accepted.SAME_KEY))
                continue
            if queue is None or queue.name != name:
                queue, bound, lane = self._queue(name), bounds.get(name), None
                count = queue.count
            if bound is not None and (gates or count[_READY] + count[_SCHEDULED] >= bound):
                refusal = self._refusal(job, queue, bound, refused, now)
                if refusal is not None:
                    receipts.append(refusal)
                    continue
            self._submitted = seq = self._submitted + 1
            due_at = now + delay_s if delay_s > 0 else now
            state = _READY if due_at <= now else _SCHEDULED
            before = row
            row = rows[job_id] = Row(
                job_id,
                task,
                queue,
                payload,
                priority,
                lane_key,
                gates,
                key,
                expires_s,
                reason,
                batch,
                seq,
                state,
                now,
                due_at,
                due_at,
                due_at + expires_s,
                due_at,
            )
            accepted.append(row)
            queue.had_jobs = True
            count[state] += 1
            if key is not None:
                self._keys[task, key] = job_id
            if batch:
                self._batches[batch] = now
            for gate in gates:
                self._gate(gate).add_queued(queue, 1)
            if (
                lane is not None
                and (lane_key, gates, priority) == where
                and state is _READY
                and (line := lane.lines[priority])[-1] is before
            ):  # right behind the one before, as most of a batch
                line.append(row)
                lane.size += 1
            else:
                lane, where = self._place(row), (lane_key, gates, priority)
            receipts.append(new(Receipt, (job_id, _NEW, 0.0)))
        self._expiries.add(accepted)
        return receipts

    def _refusal(self, job: Job, queue: Queue, bound: int, refused: dict[str, int], now: float) -> Receipt | None:
        """Why the queue, or half of it for a gate, has no place for `job`, and when it should have."""
        accepted, line, over = Accepted.QUEUE_FULL, job.queue, queue.bounded() - bound
        if over < 0:
            half = max(1, bound // 2)
            for name in job.gates:
                queued = self._gates[name].queued.get(queue, 0) if name in self._gates else 0
                accepted, line, over = Accepted.GATE_FULL, name, queued - half
                if over >= 0:
                    break
            else:
                return None
        ahead = refused[line] = refused.get(line, 0) + 1  # in this batch: they will come back too
        return Receipt(job.id, accepted, retry_after_s(over + ahead, drain_per_s=queue.drain.read(now=now)))

    def _place(self, row: Row) -> Lane | None:
        """Put a row that is ready or scheduled where a claim will find it. Returns its lane if it is ready."""
        queue, lane = row.queue, None
        if row.state is _SCHEDULED:
            heapq.heappush(queue.scheduled, (row.due_at, row.seq, row))
        else:
            key = (row.lane, row.gates, row.lost >= SUSPECT_AFTER)
            lane = queue.lanes.get(key)
            if lane is None:
                lane = queue.lanes[key] = Lane(key, tuple(self._gate(name) for name in row.gates))
            line = lane.lines.get(row.priority)
            if line is None:
                line = lane.lines[row.priority] = deque()
                if row.priority > lane.top:
                    self._raise_lane(queue, lane, row.priority)
            lane.size += 1
            if not line or (last := line[-1]).due_at < row.due_at or (last.due_at == row.due_at and last.seq < row.seq):
                line.append(row)
            else:
                insort(line, row, key=order)
            if lane.ring is not queue.open[lane.kind]:
                return lane  # nothing to claim before its gate opens
        if queue.waiters:
            queue.wake_waiters()
        return lane

    @staticmethod
    def _raise_lane(queue: Queue, lane: Lane, priority: int) -> None:
        """The lane's top priority is higher now: it stands elsewhere in its ring, or is new and open."""
        ring = queue.open[lane.kind]
        if lane.ring is not None:
            ring = lane.ring
            ring.remove(lane)
        lane.top = priority
        ring.add(lane, queue.next_turn())

    def _move(self, row: Row, event: str) -> None:
        """Change a row's state along the one table of transitions, and keep the counters."""
        before = row.state
        after = row.state = TRANSITIONS[before][event]
        queue = row.queue
        queue.count[before] -= 1
        queue.count[after] += 1
        if row.gates and (step := (after in _BOUNDED) - (before in _BOUNDED)):
            for name in row.gates:
                self._gate(name).add_queued(queue, step)

    # ---- out of the queue ----

    def _promote(self, queue: Queue, left: Left, now: float) -> None:
        """Scheduled jobs that are due become ready."""
        scheduled = queue.scheduled
        while scheduled and scheduled[0][0] <= now and left.promote > 0:
            row = heapq.heappop(scheduled)[2]
            if row.state is not _SCHEDULED:
                queue.scheduled_ended -= 1
                continue
            left.promote -= 1
            self._move(row, "due")
            row.ready_at = row.due_at
            self._place(row)

    def _claim_in_turn(self, queue: Queue, limit: int, left: Left, now: float) -> list[Row]:
        """Strict priority, then lanes in turn; each turn a quota, within what the lane's gates admit."""
        taken: list[Row] = []
        top, quota = -1, 0
        while left.limit > 0:
            lane = queue.first_in_turn(left.is_gated, left.suspects > 0)
            if lane is None:
                break
            if lane.top != top:
                top = lane.top
                quota = max(QUOTA, -(-limit // queue.lanes_at(top, left.is_gated, left.suspects > 0)))
            wanted = min(quota, left.limit)
            if lane.gates:
                room = self._room(lane, now)
                if room == 0:
                    self._park(queue, lane, now)
                    left.parks -= 1
                    continue
                wanted = min(wanted, room, left.gated)
            if lane.is_suspect:
                wanted = min(wanted, left.suspects)
            assert lane.ring is not None
            lane.ring.remove(lane)
            rows = lane.take(wanted)
            if lane.size > 0:
                lane.top = max(lane.lines)
                queue.open[lane.kind].add(lane, queue.next_turn())
            else:
                queue.drop(lane)
            if lane.gates:
                left.gated -= len(rows)
                for gate in lane.gates:
                    gate.record = gating.take(gate.record, len(rows), gate.parent_record, now=now)
            if lane.is_suspect:
                left.suspects -= len(rows)
            left.limit -= len(rows)
            taken += rows
        return taken

    def _hand_over(self, queue: Queue, rows: list[Row], worker: Holder, now: float) -> list[Claim]:
        """These rows of `queue` are the worker's now. Written out, for once: every job passes here."""
        queue.count[_READY] -= len(rows)
        queue.count[_CLAIMED] += len(rows)
        token, beats, held, name, new = self._token, worker.beats, worker.claims, queue.name, tuple.__new__
        claims: list[Claim] = []
        for row in rows:
            token += 1
            job_id = row.id
            row.state, row.token, row.worker, row.vouched, row.started_at = _CLAIMED, token, worker, beats, now
            held[job_id] = row
            recoveries: tuple[gating.Recovery, ...] = ()
            if row.gates:
                lines = [self._gate(gate) for gate in row.gates]
                for line in lines:
                    line.add_queued(queue, -1)
                recoveries = gating.recoveries_of(line.record for line in lines)
            waited_s, age_s = now - row.ready_at, now - row.first_due_at
            claim = (
                job_id,
                token,
                row.task,
                name,
                row.payload,
                row.lane,
                row.gates,
                row.priority,
                row.attempts,
                row.snoozes,
                row.lost,
                waited_s if waited_s > 0 else 0.0,
                age_s if age_s > 0 else 0.0,
                row.expires_at - now,
                row.expire_reason,
                row.checkpoint,
                recoveries,
            )
            claims.append(new(Claim, claim))
        self._token = token
        return claims

    # ---- gates ----

    def _room(self, lane: Lane, now: float) -> int:
        """How many of the lane's jobs all of its gates admit now."""
        rooms = [gating.admit(gate.record, gate.parent_record, now=now).room for gate in lane.gates]
        return min((room for room in rooms if room is not None), default=lane.size)

    def _park(self, queue: Queue, lane: Lane, now: float) -> None:
        """The lane leaves the open ones, and waits at the first gate that does not admit it."""
        for gate in lane.gates:
            admission = gating.admit(gate.record, gate.parent_record, now=now)
            if admission.room == 0:
                break
        assert lane.ring is not None
        lane.ring.remove(lane)
        ring = gate.waiting.get(queue)
        if ring is None:
            ring = gate.waiting[queue] = Ring()
        ring.add(lane, queue.next_turn())
        self._look_again(gate, admission.look_again_at)

    def _look_again(self, gate: GateLine, at: float | None) -> None:
        """Stir the gate at `at`, unless it is stirred earlier anyway."""
        if at is not None and at < gate.opens_at:
            gate.opens_at = at
            self._openings_made += 1
            heapq.heappush(self._openings, (at, self._openings_made, gate))

    def _stir_due_gates(self, now: float) -> None:
        openings = self._openings
        for _ in range(_STIRS):
            if not openings or openings[0][0] > now:
                return
            gate = heapq.heappop(openings)[2]
            gate.opens_at = _NEVER
            self._stir(gate)

    @staticmethod
    def _stir(gate: GateLine) -> None:
        """The gate may have opened: the next claim from each queue with lanes waiting at it looks."""
        for queue, ring in gate.waiting.items():
            if ring:
                queue.stirred[gate] = None
                queue.wake_waiters()

    def _wake_lanes(self, queue: Queue, left: Left, now: float) -> None:
        """Lanes whose gate has opened are open again: no more than it has room for, the highest priority first."""
        for gate in list(queue.stirred):
            if left.wake <= 0:
                return
            ring = gate.waiting.get(queue)
            admission = gating.admit(gate.record, gate.parent_record, now=now)
            room = left.wake if admission.room is None else min(left.wake, admission.room)
            while ring and room > 0:
                lane = ring.head()
                ring.remove(lane)
                queue.open[lane.kind].add(lane, queue.next_turn())
                room -= 1
                left.wake -= 1
            if not ring:
                gate.waiting.pop(queue, None)
                del queue.stirred[gate]
            elif admission.room == 0:
                del queue.stirred[gate]
                self._look_again(gate, admission.look_again_at)

    def _end_claim(self, row: Row, freed: dict[str, list[int]], *, is_unused: bool = False) -> None:
        assert row.worker is not None
        del row.worker.claims[row.id]
        row.worker = None
        for name in row.gates:
            ended = freed.setdefault(name, [0, 0])
            ended[0] += 1
            ended[1] += is_unused

    def _free(self, freed: dict[str, list[int]]) -> None:
        for name, (ended, unused) in freed.items():
            gate = self._gate(name)
            gate.record = gating.give_back(gate.record, ended, unused, gate.parent_record)
            self._stir(gate)

    # ---- what becomes of a claim ----

    def _apply(self, row: Row, decision: Retry | Snooze | Release | Bury | Expire | Cancel, now: float) -> None:
        match decision:
            case Retry():
                row.add_error(decision.error, now)
                row.attempts += 1
                self._requeue(row, "retry", now, decision.delay_s)
            case Snooze():
                if decision.error is not None:
                    row.add_error(decision.error, now)
                row.snoozes += 1
                row.reason = decision.reason
                self._requeue(row, "snooze", now, decision.delay_s)
            case Release():
                self._requeue(row, "release", now)
            case Bury():
                row.add_error(decision.error, now)
                row.attempts += decision.spent
                self._finish(row, "bury", now)
            case Expire():
                row.reason = decision.reason
                self._finish(row, "expire", now)
            case Cancel():
                self._finish(row, "cancel", now)
            case _:
                assert_never(decision)

    def _requeue(self, row: Row, event: str, now: float, delay_s: float | None = None) -> None:
        """Run it again: at its old place without a delay, else as due in `delay_s`. Unless a person said cancel."""
        if row.cancel_requested:
            self._finish(row, "cancel", now)
            return
        self._move(row, event)
        row.ready_at = now
        if delay_s is not None:
            row.due_at = now + max(0.0, delay_s)
            if delay_s <= 0:
                self._move(row, "due")
        if row.expires_at <= now:  # it passed while the job ran
            self._expiries.add([row])
        self._place(row)

    def _finish(self, row: Row, event: str, now: float) -> None:
        """Into a final state, along the table."""
        self._move(row, event)
        row.finished_at = now
        if row.state is _DEAD:
            self._dead[row.id] = row
        else:
            self._finished.append(row)
        self._tell_final(row)

    def _tell_final(self, row: Row) -> None:
        """The row is final: its key is free, whoever waits for it hears."""
        if row.key is not None:
            self._keys.pop((row.task, row.key), None)
        if (waiting := self._waiters.pop(row.id, None)) is not None:
            final = row.final()
            for waiter in waiting:
                if not waiter.done():
                    waiter.set_result(final)

    def _cancel(self, row: Row | None, now: float) -> Cancelled:
        if row is None:
            return Cancelled.MISSING
        if row.finished_at is not None:
            return Cancelled.FINAL
        if row.state is _RUNNING:
            row.cancel_requested = True
            return Cancelled.REQUESTED
        self._leave_line(row, "cancel", now)
        return Cancelled.CANCELLED

    def _leave_line(self, row: Row, event: str, now: float) -> None:
        """A row that waits ends where it stands."""
        queue, was = row.queue, row.state
        self._finish(row, event, now)
        queue.drain.add(1, now=now)
        if was is _SCHEDULED:
            queue.forget_scheduled()
        elif was is _READY:
            queue.forget_ready(row)

    def _resurrect(self, row: Row | None, now: float) -> Retried:
        if row is None:
            return Retried.MISSING
        if row.state is not _DEAD:
            return Retried.NOT_DEAD
        if row.key is not None:
            if (row.task, row.key) in self._keys:
                return Retried.KEY_TAKEN
            self._keys[row.task, row.key] = row.id
        self._move(row, "resurrect")
        self._dead.pop(row.id, None)
        row.attempts = row.snoozes = row.lost = 0
        row.due_at = row.first_due_at = row.ready_at = now
        row.expires_at = now + row.expires_s
        row.finished_at = None
        row.cancel_requested = False
        row.reason = ""
        self._expiries.add([row])
        self._place(row)
        return Retried.READY

    # ---- upkeep ----

    def _lose(self, rows: list[Row], reason: str, max_lost: int, now: float, moved: list[Reclaimed]) -> None:
        """Claims of one worker that are lost. If a suspect is among them, the loss is its own."""
        suspected = any(row.lost >= SUSPECT_AFTER for row in rows)
        freed: dict[str, list[int]] = {}
        for row in rows:
            self._end_claim(row, freed)
            if row.lost >= SUSPECT_AFTER or not suspected:
                row.lost += 1
            if is_buried(row.lost, max_lost=max_lost):
                row.add_error(ErrorRecord("WorkerLost", f"its worker was lost {row.lost} times", "lost"), now)
                row.reason = "lost"
                self._finish(row, "bury", now)
            else:
                self._requeue(row, "reclaim", now)
            moved.append(row.reclaimed(reason))
        self._free(freed)

    def _expire_overdue(self, most: int, now: float, moved: list[Reclaimed]) -> None:
        self._expiries.sweep(sum(queue.bounded() + queue.count[_RUNNING] for queue in self._queues.values()))
        for row in self._expiries.take_due(now, max(0, most - len(moved))):
            if row.finished_at is None and row.state is not _RUNNING and row.expires_at <= now:
                row.reason = row.expire_reason
                self._leave_line(row, "expire", now)
                moved.append(row.reclaimed(row.reason))

    def _prune(self, retention: Retention, now: float) -> None:
        """Forget results, jobs and gates that were kept long enough."""
        rows = retention.rows
        for batch in [batch for batch, named_at in self._batches.items() if named_at <= now - retention.batch_s]:
            self._finish_batch(batch)
        for row in self._older(self._results, now - retention.result_s, rows):
            row.result, row.result_kept = None, False
        for line, keep_s in ((self._finished, retention.finished_s), (self._dead, retention.dead_s)):
            for row in self._older(line, now - keep_s, rows):
                rows -= 1
                self._forget(row)
        self._sweep()
        for name in list(islice(self._gates, retention.rows)):
            gate = self._gates[name]
            if gate.is_idle(now):
                del self._gates[name]
                if gate.parent is not None:
                    gate.parent.children.discard(gate)
            else:
                self._gates.move_to_end(name)

    def _older(self, line: deque[Row] | dict[str, Row], before: float, most: int) -> list[Row]:
        """At most `most` rows that ended by `before`, taken out of `line`. Those of unfinished batches wait aside."""
        rows: list[Row] = []
        gone: list[Row] = []
        for row in line if isinstance(line, deque) else line.values():
            if row.finished_at is None or row.finished_at > before or len(rows) >= most:
                break
            gone.append(row)
            if self._rows.get(row.id) is not row:
                continue  # forgotten, and not swept yet
            if row.batch in self._batches:
                self._held_back.setdefault(row.batch, []).append((line, row))
            else:
                rows.append(row)
        for row in gone:
            if isinstance(line, deque):
                line.popleft()
            else:
                del line[row.id]
        return rows

    def _finish_batch(self, batch: str) -> None:
        """What was held back for it stands in line again, as the oldest."""
        self._batches.pop(batch, None)
        held_back = self._held_back.pop(batch, [])
        for line in (self._results, self._finished, self._dead):
            rows = [row for of, row in held_back if of is line and self._rows.get(row.id) is row]
            back = [row for row in rows if row.finished_at is not None]
            if isinstance(line, deque):
                line.extendleft(reversed(back))
            else:
                newer = line.copy()
                line.clear()
                line.update((row.id, row) for row in back)
                line.update(newer)

    def _forget(self, row: Row) -> None:
        del self._rows[row.id]
        row.queue.count[row.state] -= 1
        self._dead.pop(row.id, None)

    def _sweep(self) -> None:
        """Let go of rows that were forgotten, once they are most of what is here."""
        for line in (self._results, self._finished):
            if len(line) > 2 * len(self._rows) + _SWEEP_FROM:
                kept = [row for row in line if self._rows.get(row.id) is row]
                line.clear()
                line.extend(kept)

    def _forget_waiter(self, job_id: str, waiter: asyncio.Future[Final | None]) -> None:
        waiting = self._waiters.get(job_id)
        if waiting is not None:
            waiting.discard(waiter)
            if not waiting:
                del self._waiters[job_id]

    # ---- by name ----

    def _queue(self, name: str) -> Queue:
        queue = self._queues.get(name)
        if queue is None:
            queue = self._queues[name] = Queue(name)
        return queue

    def _gate(self, name: str) -> GateLine:
        gate = self._gates.get(name)
        if gate is None:
            family = gating.family(name)
            gate = self._gates[name] = GateLine(name, None if family == name else self._gate(family))
        return gate
