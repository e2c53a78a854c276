"""What a person changes: cancel, retry, purge, pause."""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskflow.brokers.base import Cancelled, Retried
from taskflow.brokers.memory import rows
from taskflow.brokers.memory.reading import matching
from taskflow.core.job import FINAL, JobState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from taskflow.brokers.memory.lanes import Row
    from taskflow.brokers.memory.store import Store


def cancel(store: Store, job_ids: Sequence[str], now: float) -> list[Cancelled]:
    """As `Operator.cancel`."""
    return [_cancel(store, store.rows.get(job_id), now) for job_id in job_ids]


def _cancel(store: Store, row: Row | None, now: float) -> Cancelled:
    if row is None:
        return Cancelled.MISSING
    if row.finished_at is not None:
        return Cancelled.FINAL
    if row.state is JobState.RUNNING:
        row.cancel_requested = True
        return Cancelled.REQUESTED
    rows.leave_line(store, row, "cancel", now)
    return Cancelled.CANCELLED


def retry(store: Store, job_ids: Sequence[str], now: float) -> list[Retried]:
    """As `Operator.retry`."""
    return [_retry(store, store.rows.get(job_id), now) for job_id in job_ids]


def _retry(store: Store, row: Row | None, now: float) -> Retried:
    if row is None:
        return Retried.MISSING
    if row.state is not JobState.DEAD:
        return Retried.NOT_DEAD
    if row.key is not None:
        if (row.task, row.key) in store.keys:
            return Retried.KEY_TAKEN
        store.keys[row.task, row.key] = row.id
    rows.resurrect(store, row, now)
    return Retried.READY


def purge(store: Store, state: JobState, queue: str | None, task: str | None, now: float) -> int:
    """As `Operator.purge`. What runs or is in no such state is not touched."""
    if state is JobState.RUNNING:
        return 0
    found = list(matching(store.rows.values(), state, queue, task))
    if state in FINAL:
        for row in found:
            rows.forget(store, row)
        rows.sweep(store)
    else:
        for row in found:
            _cancel(store, row, now)
    return len(found)


def pause(store: Store, name: str, *, is_paused: bool) -> None:
    """As `Operator.pause` and `Operator.resume`."""
    queue = store.queue(name)
    queue.is_paused = is_paused
    if not is_paused:
        queue.wake_waiters()
