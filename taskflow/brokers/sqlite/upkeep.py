"""What must happen though nobody asks: take back what dead workers held, expire, prune, give space back."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from typing import TYPE_CHECKING

from taskflow.brokers.sqlite import lanes, rows
from taskflow.brokers.sqlite.schema import CANCELLED, DEAD, EXPIRED, SUCCEEDED
from taskflow.brokers.sqlite.tx import GATE_ROWS
from taskflow.core import gate as gating
from taskflow.core.job import is_buried
from taskflow.core.outcome import ErrorRecord

if TYPE_CHECKING:
    from taskflow.brokers.base import Reclaimed, Retention
    from taskflow.brokers.sqlite.rows import Row
    from taskflow.brokers.sqlite.tx import Tx

# Free pages are used again by the next jobs; only when they are most of the file do they go back to the disk.
_VACUUM_FROM_PAGES = 1_024  # 4 MiB
_VACUUM_PAGES = 512  # at once: about 10 ms

FINISH_BATCHES = "UPDATE batch SET is_finished = 1, results_until = 0, results_seq = 0 WHERE NOT is_finished AND id > 0"


class Upkeep:
    """One broker object's part in it. Remembers where its round over the gates stands."""

    def __init__(self) -> None:
        self._last_gate = ""

    def reclaim(self, tx: Tx, max_lost: int, retention: Retention) -> list[Reclaimed]:
        """As `Broker.reclaim`."""
        tx.effects.is_upkeep = True
        moved: list[Reclaimed] = []
        _take_back(tx, max_lost, retention.rows, moved)
        _expire(tx, retention.rows - len(moved), moved)
        tx.execute(f"{FINISH_BATCHES} AND named_at <= ?", (tx.now - retention.batch_s,))
        _prune_results(tx, retention)
        _prune_jobs(tx, retention)
        self._prune_gates(tx, retention.rows)
        tx.execute("DELETE FROM presence WHERE forget_at <= ?", (tx.now,))
        tx.execute(
            "DELETE FROM batch WHERE is_finished AND id > 0"
            " AND NOT EXISTS (SELECT 1 FROM job INDEXED BY job_batch WHERE job.batch = batch.id AND job.batch > 0)"
        )
        return moved

    def _prune_gates(self, tx: Tx, most: int) -> None:
        """Forget gates of which nothing is said, held or owed; each call looks at some, in rounds."""
        tx.execute(
            "DELETE FROM queue_gate WHERE (queue, gate) IN (SELECT queue, gate FROM queue_gate"
            " WHERE pending = 0 AND wake_at IS NULL LIMIT ?)",
            (most,),
        )
        tx.forget_gates()
        seen = tx.execute(f"{GATE_ROWS} WHERE name > ? ORDER BY name LIMIT ?", (self._last_gate, most)).fetchall()
        for row in seen:
            gate = gating.from_row(row)
            if (
                gating.is_idle(gate, now=tx.now)
                and not tx.execute("SELECT 1 FROM queue_gate WHERE gate = ? LIMIT 1", (gate.name,)).fetchone()
            ):
                tx.execute("DELETE FROM gate WHERE name = ?", (gate.name,))
        self._last_gate = seen[-1][0] if len(seen) == most else ""


def _take_back(tx: Tx, max_lost: int, most: int, moved: list[Reclaimed]) -> None:
    """Claims of workers whose lease ended, and claims that two beats in a row did not name."""
    found = tx.execute(
        "SELECT id, expires_at <= ?1 FROM worker WHERE expires_at <= ?1 OR has_missed ORDER BY expires_at", (tx.now,)
    ).fetchall()
    for worker, is_gone in found:
        if len(moved) >= most:
            return
        claims = rows.running(tx, worker)
        if is_gone:
            _lose(tx, claims, "lease_ended", max_lost, moved)
            tx.execute("DELETE FROM claim WHERE worker = ?", (worker,))
            tx.execute("DELETE FROM worker WHERE id = ?", (worker,))
        else:
            _lose(tx, [row for row in claims if row.missed > 1], "missed_beats", max_lost, moved)
            tx.execute("UPDATE worker SET has_missed = 0 WHERE id = ?", (worker,))


def _lose(tx: Tx, lost: list[Row], reason: str, max_lost: int, moved: list[Reclaimed]) -> None:
    """Claims of one worker that are lost. If a suspect is among them, the loss is its own."""
    suspected = any(row.is_suspect for row in lost)
    freed: dict[str, list[int]] = {}
    for row in lost:
        rows.end_claim(tx, row, freed)
        if row.is_suspect or not suspected:
            row.lost += 1
        if is_buried(row.lost, max_lost=max_lost):
            rows.add_error(tx, row, ErrorRecord("WorkerLost", f"its worker was lost {row.lost} times", "lost"))
            row.reason = "lost"
            rows.finish(tx, row, "bury")
        else:
            rows.requeue(tx, row, "reclaim")
        moved.append(row.reclaimed(tx.queue_of(row.queue).name, reason))
    rows.store(tx, lost)
    lanes.give_room(tx, freed)


def _expire(tx: Tx, most: int, moved: list[Reclaimed]) -> None:
    """Jobs that waited too long."""
    if most <= 0:
        return
    overdue = rows.where(tx, "j.state < 3 AND j.expires_at <= ? ORDER BY j.expires_at LIMIT ?", (tx.now, most))
    for row in overdue:
        row.reason = row.expire_reason
        rows.finish(tx, row, "expire")
        moved.append(row.reclaimed(tx.queue_of(row.queue).name, row.reason))
    rows.store(tx, overdue)


def _prune_results(tx: Tx, retention: Retention) -> None:
    """Forget results that were kept long enough, in the order in which their jobs ended."""
    until = tx.now - retention.result_s
    most = retention.rows
    batches = tx.execute(
        "SELECT id, results_until, results_seq FROM batch WHERE is_finished AND results_until < ?", (until,)
    ).fetchall()
    for batch, since, after in batches:
        ended = tx.execute(
            "SELECT seq, finished_at FROM job INDEXED BY job_final WHERE state = 4 AND state > 3 AND batch = ?"
            " AND (finished_at, seq) > (?, ?) AND finished_at <= ? ORDER BY finished_at, seq LIMIT ?",
            (batch, since, after, until, most),
        ).fetchall()
        if ended:
            last, last_at = ended[-1]
            tx.execute(
                "DELETE FROM result WHERE seq IN (SELECT value FROM json_each(?))",
                (json.dumps([seq for seq, _ in ended]),),
            )
            tx.execute("UPDATE batch SET results_until = ?, results_seq = ? WHERE id = ?", (last_at, last, batch))
            most -= len(ended)
            if most <= 0:
                return


def _prune_jobs(tx: Tx, retention: Retention) -> None:
    """Forget jobs that were kept long enough. Those of unfinished batches stay."""
    most = retention.rows
    batches = [number for (number,) in tx.execute("SELECT id FROM batch WHERE is_finished").fetchall()]
    for state in (SUCCEEDED, CANCELLED, EXPIRED, DEAD):
        until = tx.now - (retention.dead_s if state == DEAD else retention.finished_s)
        for batch in batches:
            if most <= 0:
                return
            old = tx.execute(
                "SELECT seq, queue, state FROM job INDEXED BY job_final WHERE state = ? AND state > 3 AND batch = ?"
                " AND finished_at <= ? ORDER BY finished_at LIMIT ?",
                (state, batch, until, most),
            ).fetchall()
            forget(tx, old)
            most -= len(old)


def forget(tx: Tx, old: list[tuple[int, int, int]]) -> None:
    """Delete final jobs: (row number, queue, state)."""
    if not old:
        return
    for _, queue, state in old:
        tx.queue_of(queue).count[state] -= 1
    rows.forget(tx, [seq for seq, _, _ in old])


def give_space_back(connection: sqlite3.Connection) -> None:
    """Some free pages at the end of the file, when most of it is free. Outside of a transaction; may do nothing."""
    with contextlib.suppress(sqlite3.OperationalError):  # locked or full: next time
        (free,) = connection.execute("PRAGMA freelist_count").fetchone()
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        if free > _VACUUM_FROM_PAGES and free * 2 > pages:
            # By a script: `execute` takes one step of this statement, and each step gives back one page.
            connection.executescript(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})")
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()  # the file shrinks only now
