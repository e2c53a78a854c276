"""Decisions about claims, fenced by their tokens; and what a running job says of itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from taskflow.brokers.base import Settled, SettleReply
from taskflow.brokers.memory import rows
from taskflow.brokers.memory.gates import give_room
from taskflow.core.decision import Bury, Cancel, Complete, Expire, Release, Retry, Snooze
from taskflow.core.job import TRANSITIONS, JobState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from taskflow.brokers.base import Note, Settlement
    from taskflow.brokers.memory.lanes import Queue, Row
    from taskflow.brokers.memory.store import Store

_RUNNING = JobState.RUNNING
_APPLIED = Settled.APPLIED  # an enum's member costs as much as a call on Python 3.11
_COMPLETED = TRANSITIONS[_RUNNING]["complete"]
_DONE = SettleReply(_APPLIED, _COMPLETED)


def settle(store: Store, settlements: Sequence[Settlement], now: float) -> list[SettleReply]:
    """As `Broker.settle`."""
    find, awaited = store.rows.get, store.awaited.by_name
    results, finished = store.results, store.finished
    replies: list[SettleReply] = []
    completed: dict[Queue, int] = {}
    left: dict[Queue, int] = {}  # other jobs that left their queue for good
    freed: dict[str, list[int]] = {}  # gate → [claims that ended, of them unused]
    for job_id, token, decision in settlements:
        row = find(job_id)
        if row is None or row.token != token or row.state is not _RUNNING:
            replies.append(late(row, token))
            continue
        row.settled_token = token
        if isinstance(decision, Complete):  # what most claims come to: written out, every job passes here
            if row.gates:
                rows.end_claim(row, freed)
            else:
                del row.worker.claims[job_id]  # type: ignore[union-attr] # what runs has one; asserting it costs every job
                row.worker = None
            row.attempts += 1
            row.state, row.finished_at, row.result = _COMPLETED, now, decision.result
            finished.append(row)
            if row.result is not None:
                results.append(row)
            if row.key is not None or job_id in awaited:
                rows.tell_final(store, row)
            completed[row.queue] = completed.get(row.queue, 0) + 1
            replies.append(_DONE)
            continue
        rows.end_claim(row, freed, is_unused=type(decision) is Release)
        _apply(store, row, decision, now)
        if row.finished_at is not None:
            left[row.queue] = left.get(row.queue, 0) + 1
        replies.append(SettleReply(_APPLIED, row.state))
    for queue, count in completed.items():
        queue.count[_RUNNING] -= count
        queue.count[_COMPLETED] += count
        queue.drain.add(count, now=now)
    for queue, count in left.items():
        queue.drain.add(count, now=now)
    give_room(store, freed)
    return replies


def _apply(store: Store, row: Row, decision: Retry | Snooze | Release | Bury | Expire | Cancel, now: float) -> None:
    match decision:
        case Retry():
            row.add_error(decision.error, now)
            row.attempts += 1
            rows.requeue(store, row, "retry", now, decision.delay_s)
        case Snooze():
            if decision.error is not None:
                row.add_error(decision.error, now)
            row.snoozes += 1
            row.reason = decision.reason
            rows.requeue(store, row, "snooze", now, decision.delay_s)
        case Release():
            rows.requeue(store, row, "release", now)
        case Bury():
            row.add_error(decision.error, now)
            row.attempts += decision.spent
            rows.finish(store, row, "bury", now)
        case Expire():
            row.reason = decision.reason
            rows.finish(store, row, "expire", now)
        case Cancel():
            rows.finish(store, row, "cancel", now)
        case _:
            assert_never(decision)


def note(store: Store, notes: Sequence[Note]) -> list[Settled]:
    """As `Broker.note`."""
    answers: list[Settled] = []
    for job_id, token, progress, checkpoint in notes:
        row = store.rows.get(job_id)
        if row is None or row.token != token or row.state is not _RUNNING:
            answers.append(late(row, token).answer)
            continue
        if progress is not None:
            row.progress = progress
        if checkpoint is not None:
            row.checkpoint = checkpoint
        answers.append(_APPLIED)
    return answers


def late(row: Row | None, token: int) -> SettleReply:
    """The fence's answer to a word about a claim that has ended."""
    if row is not None and row.settled_token == token:
        return SettleReply(Settled.ALREADY, row.state)
    return SettleReply(Settled.STALE, None)
