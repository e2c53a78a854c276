"""What must happen though nobody asks: take back what dead workers held, expire, prune."""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import TYPE_CHECKING

from taskflow.brokers.base import FORGOTTEN
from taskflow.brokers.memory import gates, rows
from taskflow.core.job import SUSPECT_AFTER, JobState, is_buried
from taskflow.core.outcome import ErrorRecord

if TYPE_CHECKING:
    from taskflow.brokers.base import Reclaimed, Retention
    from taskflow.brokers.memory.lanes import Row
    from taskflow.brokers.memory.store import Line, Store

_RUNNING = JobState.RUNNING


def reclaim(store: Store, max_lost: int, retention: Retention, now: float) -> list[Reclaimed]:
    """As `Broker.reclaim`."""
    _forget_workers(store, now)
    moved: list[Reclaimed] = []
    for worker in list(store.workers.values()):
        if len(moved) >= retention.rows:
            return moved
        if worker.lease_until <= now:
            _lose(store, list(worker.claims.values()), "lease_ended", max_lost, now, moved)
            del store.workers[worker.name]
        elif unvouched := [row for row in worker.claims.values() if worker.beats - row.vouched >= 2]:
            _lose(store, unvouched, "missed_beats", max_lost, now, moved)
    _expire(store, retention.rows, now, moved)
    _prune(store, retention, now)
    return moved


def _forget_workers(store: Store, now: float) -> None:
    """Those that were silent for too long."""
    for worker, (at, lease_s, _) in list(store.presences.items()):
        if at + FORGOTTEN * lease_s <= now:
            del store.presences[worker]


def _lose(store: Store, lost: list[Row], reason: str, max_lost: int, now: float, moved: list[Reclaimed]) -> None:
    """Claims of one worker that are lost. If a suspect is among them, the loss is its own."""
    suspected = any(row.lost >= SUSPECT_AFTER for row in lost)
    freed: dict[str, list[int]] = {}
    for row in lost:
        rows.end_claim(row, freed)
        if row.lost >= SUSPECT_AFTER or not suspected:
            row.lost += 1
        if is_buried(row.lost, max_lost=max_lost):
            row.add_error(ErrorRecord("WorkerLost", f"its worker was lost {row.lost} times", "lost"), now)
            row.reason = "lost"
            rows.finish(store, row, "bury", now)
        else:
            rows.requeue(store, row, "reclaim", now)
        moved.append(row.reclaimed(reason))
    gates.give_room(store, freed)


def _expire(store: Store, most: int, now: float, moved: list[Reclaimed]) -> None:
    """Jobs that waited too long."""
    store.expiries.sweep(sum(queue.bounded() + queue.count[_RUNNING] for queue in store.queues.values()))
    for row in store.expiries.take_due(now, max(0, most - len(moved))):
        if row.finished_at is None and row.state is not _RUNNING and row.expires_at <= now:
            row.reason = row.expire_reason
            rows.leave_line(store, row, "expire", now)
            moved.append(row.reclaimed(row.reason))


def _prune(store: Store, retention: Retention, now: float) -> None:
    """Forget results, jobs and gates that were kept long enough."""
    most = retention.rows
    for batch in [batch for batch, named_at in store.batches.items() if named_at <= now - retention.batch_s]:
        finish_batch(store, batch)
    for row in _older(store, store.results, now - retention.result_s, most):
        row.result, row.result_kept = None, False
    for line, keep_s in ((store.finished, retention.finished_s), (store.dead, retention.dead_s)):
        for row in _older(store, line, now - keep_s, most):
            most -= 1
            rows.forget(store, row)
    rows.sweep(store)
    for name in list(islice(store.gates, retention.rows)):
        gate = store.gates[name]
        if gate.is_idle(now):
            del store.gates[name]
            if gate.parent is not None:
                gate.parent.children.discard(gate)
        else:
            store.gates.move_to_end(name)


def _older(store: Store, line: Line, before: float, most: int) -> list[Row]:
    """At most `most` rows that ended by `before`, taken out of `line`. Those of unfinished batches wait aside."""
    old: list[Row] = []
    gone: list[Row] = []
    for row in line if isinstance(line, deque) else line.values():
        if row.finished_at is None or row.finished_at > before or len(old) >= most:
            break
        gone.append(row)
        if store.rows.get(row.id) is not row:
            continue  # forgotten, and not swept yet
        if row.batch in store.batches:
            store.held_back.setdefault(row.batch, []).append((line, row))
        else:
            old.append(row)
    for row in gone:
        if isinstance(line, deque):
            line.popleft()
        else:
            del line[row.id]
    return old


def finish_batch(store: Store, batch: str) -> None:
    """As `Operator.finish_batch`: what was held back for it stands in its line again, as the oldest."""
    store.batches.pop(batch, None)
    held_back = store.held_back.pop(batch, [])
    for line in (store.results, store.finished, store.dead):
        kept = [row for of, row in held_back if of is line and store.rows.get(row.id) is row]
        back = [row for row in kept if row.finished_at is not None]
        if isinstance(line, deque):
            line.extendleft(reversed(back))
        else:
            newer = line.copy()
            line.clear()
            line.update((row.id, row) for row in back)
            line.update(newer)
