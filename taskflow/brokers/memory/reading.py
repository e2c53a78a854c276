"""What is asked, and changes nothing."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from taskflow.brokers.base import FORGOTTEN, WorkerInfo
from taskflow.clock import NEVER

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from taskflow.brokers.base import ClaimRequest, Final, JobInfo, QueueCounts
    from taskflow.brokers.memory.lanes import Row
    from taskflow.brokers.memory.store import Store
    from taskflow.core.gate import Gate
    from taskflow.core.job import JobState


def next_instant(store: Store, request: ClaimRequest, now: float) -> float:
    """When `claim(request)` may find something: `now`, or as soon as a job is due or a gate may open."""
    is_gated = request.gated > 0
    at = store.openings[0][0] if is_gated and store.openings else NEVER
    for name in request.queues:
        queue = store.queue(name)
        if queue.is_paused:
            continue
        if queue.first_in_turn(is_gated, request.suspects > 0) or (is_gated and queue.stirred):
            return now
        if queue.scheduled:
            at = min(at, queue.scheduled[0][0])
    return at


def finals(store: Store, job_ids: Sequence[str]) -> dict[str, Final]:
    """Those that are final."""
    find = store.rows.get
    found: dict[str, Final] = {}
    for job_id in job_ids:
        row = find(job_id)
        if row is not None and row.finished_at is not None:
            found[job_id] = row.final()
    return found


def kept(store: Store, job_ids: Sequence[str]) -> list[Row]:
    """The rows of those that are kept."""
    find = store.rows.get
    return [row for job_id in job_ids if (row := find(job_id)) is not None]


def counts(store: Store, now: float) -> list[QueueCounts]:
    """As `Broker.counts`. A queue that was only asked for is not one yet."""
    return [queue.counts(now) for _, queue in sorted(store.queues.items()) if queue.had_jobs]


def gates(store: Store) -> list[Gate]:
    """As `Operator.gates`, by name."""
    return [gate.record for _, gate in sorted(store.gates.items())]


def show(store: Store, job_id: str) -> JobInfo | None:
    """As `Operator.show`."""
    row = store.rows.get(job_id)
    return None if row is None else row.info()


def states(store: Store, job_ids: Sequence[str]) -> dict[str, JobState]:
    """As `Operator.states`."""
    return {row.id: row.state for row in kept(store, job_ids)}


def jobs(store: Store, state: JobState | None, queue: str | None, task: str | None, limit: int) -> list[JobInfo]:
    """As `Operator.jobs`."""
    return [row.info() for row in islice(matching(reversed(store.rows.values()), state, queue, task), limit)]


def matching(rows: Iterable[Row], state: JobState | None, queue: str | None, task: str | None) -> Iterable[Row]:
    """Those of this state, queue and task; None is any."""
    return (
        row
        for row in rows
        if (state is None or row.state is state)
        and (queue is None or row.queue.name == queue)
        and (task is None or row.task == task)
    )


def workers(store: Store, now: float) -> list[WorkerInfo]:
    """As `Operator.workers`, by name."""
    return [
        WorkerInfo(worker, max(0.0, now - at), lease_s, presence)
        for worker, (at, lease_s, presence) in sorted(store.presences.items())
        if at + FORGOTTEN * lease_s > now
    ]
