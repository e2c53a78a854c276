"""What a person changes: cancel, retry, purge, pause, gates, batches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskflow.brokers.base import Cancelled, Retried
from taskflow.brokers.sqlite import rows, upkeep
from taskflow.brokers.sqlite.schema import DEAD, RUNNING, STATE_NUMBER
from taskflow.core import gate as gating
from taskflow.core.job import FINAL, JobState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from taskflow.brokers.sqlite.tx import Tx
    from taskflow.core.gate import Gate, GateChange

PURGED_AT_ONCE = 1_000  # jobs of one transaction: others have their turn in between
_LOOKED_AT = 20_000  # rows, to find them


def change_gate(tx: Tx, name: str, change: GateChange, generation: int | None) -> Gate:
    """As `Broker.gate`."""
    gate = tx.gate(name)
    if generation is None or generation == gate.generation:
        gate = gating.change(gate, change, now=tx.now)
        tx.put_gate(gate)
        tx.stir(name)
        if gating.family(name) == name:
            tx.stir_family(name)
    return gate


def cancel(tx: Tx, job_ids: Sequence[str]) -> list[Cancelled]:
    """As `Operator.cancel`."""
    found = rows.by_id(tx, set(job_ids))
    changed: dict[str, rows.Row] = {}
    answers: list[Cancelled] = []
    for job_id in job_ids:
        row = found.get(job_id)
        if row is None:
            answers.append(Cancelled.MISSING)
        elif row.state in rows.FINAL_NUMBERS:
            answers.append(Cancelled.FINAL)
        elif row.state == RUNNING:
            row.cancel_requested = 1
            changed[job_id] = row
            answers.append(Cancelled.REQUESTED)
        else:
            rows.finish(tx, row, "cancel")
            changed[job_id] = row
            answers.append(Cancelled.CANCELLED)
    rows.store(tx, changed.values())
    return answers


def retry(tx: Tx, job_ids: Sequence[str]) -> list[Retried]:
    """As `Operator.retry`."""
    found = rows.by_id(tx, set(job_ids))
    taken: set[str] = set()
    answers: list[Retried] = []
    raised: list[rows.Row] = []
    for job_id in job_ids:
        row = found.get(job_id)
        if row is None:
            answers.append(Retried.MISSING)
        elif row.state != DEAD:
            answers.append(Retried.NOT_DEAD)
        elif row.unique_key is not None and (row.unique_key in taken or _is_taken(tx, row.unique_key)):
            answers.append(Retried.KEY_TAKEN)
        else:
            if row.unique_key is not None:
                taken.add(row.unique_key)
            rows.resurrect(tx, row)
            raised.append(row)
            answers.append(Retried.READY)
    rows.store(tx, raised)
    return answers


def _is_taken(tx: Tx, key: str) -> bool:
    found = tx.execute("SELECT 1 FROM job WHERE unique_key = ? AND unique_key IS NOT NULL AND state < 4", (key,))
    return found.fetchone() is not None


def purge_some(tx: Tx, state: JobState, queue: str | None, task: str | None, after: int) -> tuple[int, int | None]:
    """Purge some jobs whose row number is above `after`: how many, and where to go on (None: that was all)."""
    number = STATE_NUMBER[state]
    asked = None if queue is None else tx.queue(queue)
    if queue is not None and asked is None:
        return 0, None
    (last,) = tx.execute("SELECT max(seq) FROM job").fetchone()
    until = after + _LOOKED_AT
    found = tx.execute(
        "SELECT j.seq, j.queue, j.id FROM job j CROSS JOIN body b ON b.seq = j.seq WHERE j.seq > ?1 AND j.seq <= ?2"
        " AND j.state = ?3 AND (?4 IS NULL OR j.queue = ?4) AND (?5 IS NULL OR b.task = ?5) ORDER BY j.seq LIMIT ?6",
        (after, until, number, None if asked is None else asked.id, task, PURGED_AT_ONCE),
    ).fetchall()
    if state in FINAL:
        upkeep.forget(tx, [(seq, of, number) for seq, of, _ in found])
    else:
        cancel(tx, [job_id for _, _, job_id in found])
    reached = found[-1][0] if len(found) == PURGED_AT_ONCE else until
    return len(found), None if reached >= (last or 0) else reached


def pause(tx: Tx, name: str, *, is_paused: bool) -> None:
    """As `Operator.pause` and `Operator.resume`."""
    queue = tx.queue_named(name)
    queue.is_paused = is_paused
    tx.execute("UPDATE queue SET is_paused = ? WHERE id = ?", (is_paused, queue.id))
    if not is_paused:
        tx.effects.work.add(queue.id)


def finish_batch(tx: Tx, batch: str) -> None:
    """As `Operator.finish_batch`."""
    tx.execute(f"{upkeep.FINISH_BATCHES} AND name = ?", (batch,))
