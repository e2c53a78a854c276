"""Into the queue: jobs become rows, unless they are known already, or there is no place for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskflow.brokers.base import Accepted, Receipt
from taskflow.brokers.memory.lanes import Row
from taskflow.brokers.memory.rows import place
from taskflow.core.job import JobState
from taskflow.core.window import retry_after_s

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from taskflow.brokers.memory.lanes import Lane, Queue
    from taskflow.brokers.memory.store import Store
    from taskflow.core.job import Job

_READY, _SCHEDULED = JobState.READY, JobState.SCHEDULED
_NEW = Accepted.NEW  # an enum's member costs as much as a call on Python 3.11


def submit(store: Store, jobs: Sequence[Job], bounds: Mapping[str, int], now: float) -> list[Receipt]:
    """As `Broker.submit`. A queue that `bounds` does not name has no bound."""
    rows, new = store.rows, tuple.__new__
    refused: dict[str, int] = {}
    receipts: list[Receipt] = []
    accepted: list[Row] = []
    queue: Queue | None = None
    row: Row | None = None
    lane: Lane | None = None
    where: tuple[str, tuple[str, ...], int] = ("", (), 0)  # in its queue, the job before
    for job in jobs:
        job_id, task, name, payload, priority, lane_key, gates, key, delay_s, expires_s, reason, batch = job
        if batch and batch in store.batches:
            store.batches[batch] = now
        if job_id in rows:
            receipts.append(Receipt(job_id, Accepted.SAME_ID))
            continue
        if key is not None and (holder := store.keys.get((task, key))) is not None:
            receipts.append(Receipt(holder, Accepted.SAME_KEY))
            continue
        if queue is None or queue.name != name:
            queue, bound, lane = store.queue(name), bounds.get(name), None
            count = queue.count
        if bound is not None and (gates or count[_READY] + count[_SCHEDULED] >= bound):
            refusal = _refusal(store, job, queue, bound, refused, now)
            if refusal is not None:
                receipts.append(refusal)
                continue
        store.submitted = seq = store.submitted + 1
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
            store.keys[task, key] = job_id
        if batch:
            store.batches[batch] = now
        for gate in gates:
            store.gate(gate).add_queued(queue, 1)
        if (
            lane is not None
            and (lane_key, gates, priority) == where
            and state is _READY
            and (line := lane.lines[priority])[-1] is before
        ):  # right behind the one before, as most of a batch
            line.append(row)
            lane.size += 1
        else:
            lane, where = place(store, row), (lane_key, gates, priority)
        receipts.append(new(Receipt, (job_id, _NEW, 0.0)))
    store.expiries.add(accepted)
    return receipts


def _refusal(store: Store, job: Job, queue: Queue, bound: int, refused: dict[str, int], now: float) -> Receipt | None:
    """Why the queue, or half of it for a gate, has no place for `job`, and when it should have."""
    accepted, line, over = Accepted.QUEUE_FULL, job.queue, queue.bounded() - bound
    if over < 0:
        half = max(1, bound // 2)
        for name in job.gates:
            queued = store.gates[name].queued.get(queue, 0) if name in store.gates else 0
            accepted, line, over = Accepted.GATE_FULL, name, queued - half
            if over >= 0:
                break
        else:
            return None
    ahead = refused[line] = refused.get(line, 0) + 1  # in this batch: they will come back too
    return Receipt(job.id, accepted, retry_after_s(over + ahead, drain_per_s=queue.drain.read(now=now)))
