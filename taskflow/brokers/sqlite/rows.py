"""Jobs as rows, for all that is not the hot path: load them, change them along the table of transitions, store them.

`submit`, `claim` and a batch of nothing but `Complete` work on whole sets in SQL instead.
"""

# ruff: noqa: S608 - values are always parameters; what is pasted into SQL are our own constants

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from taskflow.brokers.base import ERRORS_KEPT, Reclaimed
from taskflow.brokers.sqlite import lanes
from taskflow.brokers.sqlite.schema import READY, SCHEDULED, STATE_NUMBER, STATES
from taskflow.brokers.texts import gates_from, storable
from taskflow.core.job import FINAL, SUSPECT_AFTER, TRANSITIONS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from taskflow.brokers.sqlite.tx import Tx
    from taskflow.core.outcome import ErrorRecord

FINAL_NUMBERS = frozenset(STATE_NUMBER[state] for state in FINAL)
_BOUNDED = frozenset({READY, SCHEDULED})  # what the bound of a queue counts
_AFTER = {
    STATE_NUMBER[state]: {event: STATE_NUMBER[after] for event, after in events.items()}
    for state, events in TRANSITIONS.items()
}


@dataclass(slots=True, eq=False)
class Row:
    """One job. From `state` on, what may change."""

    seq: int
    id: str
    queue: int
    priority: int
    batch: int
    unique_key: str | None
    task: str
    lane_key: str
    gates_text: str
    expires_s: float
    expire_reason: str
    state: int
    lane: int
    due_at: float
    ready_at: float | None
    expires_at: float
    attempts: int
    snoozes: int
    lost: int
    token: int
    settled: int
    missed: int
    started_at: float | None
    finished_at: float | None
    cancel_requested: int
    has_result: int
    reason: str | None

    @property
    def gates(self) -> tuple[str, ...]:
        return gates_from(self.gates_text)

    @property
    def is_suspect(self) -> bool:
        return self.lost >= SUSPECT_AFTER

    def reclaimed(self, queue: str, reason: str) -> Reclaimed:
        return Reclaimed(self.id, self.task, queue, STATES[self.state], self.lost, reason)


_ROWS = (
    "SELECT j.seq, j.id, j.queue, j.priority, j.batch, j.unique_key, b.task, b.lane, b.gates, b.expires_s,"
    " b.expire_reason, j.state, j.lane, j.due_at, j.ready_at, j.expires_at, j.attempts, j.snoozes, j.lost, j.token,"
    " j.settled, j.missed, j.started_at, j.finished_at, j.cancel_requested, j.has_result, j.reason"
)
_STORE = (
    "UPDATE job SET state = ?, lane = ?, due_at = ?, ready_at = ?, expires_at = ?, attempts = ?, snoozes = ?, lost = ?,"
    " token = ?, settled = ?, missed = ?, started_at = ?, finished_at = ?, cancel_requested = ?,"
    " has_result = ?, reason = ? WHERE seq = ?"
)


def by_id(tx: Tx, job_ids: Iterable[str]) -> dict[str, Row]:
    """The rows of those that are kept."""
    asked = json.dumps(list(job_ids))
    found = tx.execute(
        f"{_ROWS} FROM json_each(?) s CROSS JOIN job j ON j.id = s.value CROSS JOIN body b ON b.seq = j.seq", (asked,)
    )
    return {row[1]: Row(*row) for row in found}


def where(tx: Tx, condition: str, values: Sequence[Any]) -> list[Row]:
    """The rows that meet `condition` on `j`, in its order and limit."""
    found = tx.execute(f"{_ROWS} FROM job j CROSS JOIN body b ON b.seq = j.seq WHERE {condition}", values)
    return [Row(*row) for row in found]


def store(tx: Tx, changed: Iterable[Row]) -> None:
    """Write the rows. Those that became ready find their lane."""
    tops: dict[lanes.LaneName, int] = {}
    ready: list[tuple[lanes.LaneName, Row]] = []
    changed = list(changed)
    if not changed:
        return
    for row in changed:
        if row.state == READY and row.lane == 0:
            kind = lanes.kind_of(row.gates_text, is_suspect=row.is_suspect)
            name = lanes.LaneName(row.queue, row.lane_key, row.gates_text, kind)
            tops[name] = max(tops.get(name, 0), row.priority)
            ready.append((name, row))
        elif row.state == SCHEDULED:
            tx.effects.work.add(row.queue)  # whoever waits must know of the new instant
    ids = {name: lanes.add_ready(tx, name, top) for name, top in tops.items()}
    for name, row in ready:
        row.lane = ids[name]
    tx.connection.executemany(
        _STORE,
        [
            (
                row.state,
                row.lane,
                row.due_at,
                row.ready_at,
                row.expires_at,
                row.attempts,
                row.snoozes,
                row.lost,
                row.token,
                row.settled,
                row.missed,
                row.started_at,
                row.finished_at,
                row.cancel_requested,
                row.has_result,
                row.reason,
                row.seq,
            )
            for row in changed
        ],
    )


def move(tx: Tx, row: Row, event: str) -> None:
    """Change a row's state along the one table of transitions, and keep the counters."""
    before = row.state
    after = row.state = _AFTER[before][event]
    count = tx.queue_of(row.queue).count
    count[before] -= 1
    count[after] += 1
    row.lane = 0
    if row.gates_text and (step := (after in _BOUNDED) - (before in _BOUNDED)):
        for name in row.gates:
            tx.add_pending(row.queue, name, step)


def running(tx: Tx, worker: int) -> list[Row]:
    """What this worker runs."""
    return where(
        tx,
        "j.state = 3 AND j.token IN (SELECT token FROM claim WHERE worker = ?1) AND j.seq IN"
        " (SELECT s.value FROM claim c CROSS JOIN json_each(c.jobs) s WHERE c.worker = ?1)",
        (worker,),
    )


def end_claim(tx: Tx, row: Row, freed: dict[str, list[int]], *, is_unused: bool = False) -> None:
    """The claim is over; `freed` collects what `lanes.give_room` needs."""
    tx.end_claims(row.token, 1)
    row.missed = 0
    for name in row.gates:
        ended = freed.setdefault(name, [0, 0])
        ended[0] += 1
        ended[1] += is_unused


def requeue(tx: Tx, row: Row, event: str, delay_s: float | None = None) -> None:
    """Run it again: at its old place without a delay, else as due in `delay_s`. Unless a person said cancel."""
    if row.cancel_requested:
        finish(tx, row, "cancel")
        return
    move(tx, row, event)
    row.ready_at = tx.now
    if delay_s is not None:
        row.due_at = tx.now + max(0.0, delay_s)
        row.ready_at = None
        if delay_s <= 0:
            move(tx, row, "due")


def finish(tx: Tx, row: Row, event: str) -> None:
    """Into a final state: its key is free, whoever waits for it hears."""
    move(tx, row, event)
    row.finished_at = tx.now
    tx.queue_of(row.queue).left += 1
    tx.effects.finals.append(row.id)


def resurrect(tx: Tx, row: Row) -> None:
    """A dead job is ready again, with fresh attempts and a fresh deadline."""
    move(tx, row, "resurrect")
    row.attempts = row.snoozes = row.lost = 0
    row.due_at = tx.now
    row.ready_at = row.finished_at = None
    row.expires_at = tx.now + row.expires_s
    row.cancel_requested = 0
    row.reason = None


def add_error(tx: Tx, row: Row, error: ErrorRecord) -> None:
    """Keep the error of the attempt that just ended; of many, the last `ERRORS_KEPT`."""
    (last,) = tx.execute("SELECT max(n) FROM error WHERE seq = ?", (row.seq,)).fetchone()
    number = (last or 0) + 1
    tx.execute(
        "INSERT INTO error (seq, n, attempt, at, type, message, kind, stack) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            row.seq,
            number,
            row.attempts + 1,
            tx.now,
            *map(storable, (error.type, error.message, error.kind, error.stack)),
        ),
    )
    if number > ERRORS_KEPT:
        tx.execute("DELETE FROM error WHERE seq = ? AND n <= ?", (row.seq, number - ERRORS_KEPT))


def forget(tx: Tx, seqs: Sequence[int]) -> None:
    """Delete these jobs and all that is kept of them."""
    asked = json.dumps(seqs)
    for table in ("job", "body", "result", "note", "error"):
        tx.execute(f"DELETE FROM {table} WHERE seq IN (SELECT value FROM json_each(?))", (asked,))
