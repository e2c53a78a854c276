"""Jobs as rows: into their lines, along the table of transitions, to their end.

Whoever leaves a line or a heap from its middle (cancelled, expired) has ended for good: it stays where it is, is
skipped when its turn comes, and is swept once most of the container is such rows.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections import deque
from typing import TYPE_CHECKING

from taskflow.brokers.memory.lanes import Lane, order
from taskflow.core.job import SUSPECT_AFTER, TRANSITIONS, JobState

if TYPE_CHECKING:
    from taskflow.brokers.memory.lanes import Queue, Row
    from taskflow.brokers.memory.store import Store

_READY, _SCHEDULED, _DEAD = JobState.READY, JobState.SCHEDULED, JobState.DEAD
_BOUNDED = frozenset({_READY, _SCHEDULED})  # what the bound of a queue counts
_SWEEP_FROM = 64  # forgotten rows in a container, below which sweeping is not worth it


def place(store: Store, row: Row) -> Lane | None:
    """Put a row that is ready or scheduled where a claim will find it. Returns its lane if it is ready."""
    queue, lane = row.queue, None
    if row.state is _SCHEDULED:
        heapq.heappush(queue.scheduled, (row.due_at, row.seq, row))
    else:
        key = (row.lane, row.gates, row.lost >= SUSPECT_AFTER)
        lane = queue.lanes.get(key)
        if lane is None:
            lane = queue.lanes[key] = Lane(key, tuple(store.gate(name) for name in row.gates))
        line = lane.lines.get(row.priority)
        if line is None:
            line = lane.lines[row.priority] = deque()
            if row.priority > lane.top:
                _raise_lane(queue, lane, row.priority)
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


def _raise_lane(queue: Queue, lane: Lane, priority: int) -> None:
    """The lane's top priority is higher now: it stands elsewhere in its ring, or is new and open."""
    ring = queue.open[lane.kind]
    if lane.ring is not None:
        ring = lane.ring
        ring.remove(lane)
    lane.top = priority
    ring.add(lane, queue.next_turn())


def move(store: Store, row: Row, event: str) -> None:
    """Change a row's state along the one table of transitions, and keep the counters."""
    before = row.state
    after = row.state = TRANSITIONS[before][event]
    queue = row.queue
    queue.count[before] -= 1
    queue.count[after] += 1
    if row.gates and (step := (after in _BOUNDED) - (before in _BOUNDED)):
        for name in row.gates:
            store.gate(name).add_queued(queue, step)


def end_claim(row: Row, freed: dict[str, list[int]], *, is_unused: bool = False) -> None:
    """The claim is over; `freed` collects what `gates.give_room` needs."""
    assert row.worker is not None
    del row.worker.claims[row.id]
    row.worker = None
    for name in row.gates:
        ended = freed.setdefault(name, [0, 0])
        ended[0] += 1
        ended[1] += is_unused


def requeue(store: Store, row: Row, event: str, now: float, delay_s: float | None = None) -> None:
    """Run it again: at its old place without a delay, else as due in `delay_s`. Unless a person said cancel."""
    if row.cancel_requested:
        finish(store, row, "cancel", now)
        return
    move(store, row, event)
    row.ready_at = now
    if delay_s is not None:
        row.due_at = now + max(0.0, delay_s)
        if delay_s <= 0:
            move(store, row, "due")
    if row.expires_at <= now:  # it passed while the job ran
        store.expiries.add([row])
    place(store, row)


def finish(store: Store, row: Row, event: str, now: float) -> None:
    """Into a final state, along the table."""
    move(store, row, event)
    row.finished_at = now
    if row.state is _DEAD:
        store.dead[row.id] = row
    else:
        store.finished.append(row)
    tell_final(store, row)


def tell_final(store: Store, row: Row) -> None:
    """The row is final: its key is free, whoever waits for it hears."""
    if row.key is not None:
        store.keys.pop((row.task, row.key), None)
    if (waiting := store.awaited.by_name.pop(row.id, None)) is not None:
        final = row.final()
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(final)


def leave_line(store: Store, row: Row, event: str, now: float) -> None:
    """A row that waits ends where it stands."""
    queue, was = row.queue, row.state
    finish(store, row, event, now)
    queue.drain.add(1, now=now)
    if was is _SCHEDULED:
        queue.forget_scheduled()
    elif was is _READY:
        queue.forget_ready(row)


def resurrect(store: Store, row: Row, now: float) -> None:
    """A dead job is ready again, with fresh attempts and a fresh deadline."""
    move(store, row, "resurrect")
    store.dead.pop(row.id, None)
    row.attempts = row.snoozes = row.lost = 0
    row.due_at = row.first_due_at = row.ready_at = now
    row.expires_at = now + row.expires_s
    row.finished_at = None
    row.cancel_requested = False
    row.reason = ""
    store.expiries.add([row])
    place(store, row)


def forget(store: Store, row: Row) -> None:
    """A final job is kept no longer. What stands in a line of ended rows is swept some day."""
    del store.rows[row.id]
    row.queue.count[row.state] -= 1
    store.dead.pop(row.id, None)


def sweep(store: Store) -> None:
    """Let go of rows that were forgotten, once they are most of what is here."""
    for line in (store.results, store.finished):
        if len(line) > 2 * len(store.rows) + _SWEEP_FROM:
            kept = [row for row in line if store.rows.get(row.id) is row]
            line.clear()
            line.extend(kept)
