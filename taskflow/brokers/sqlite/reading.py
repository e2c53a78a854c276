"""What is read without a lock, through a connection that never writes: readers never wait for writers."""

# ruff: noqa: S608 - values are always parameters; what is pasted into SQL are our own constants

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from taskflow.brokers.base import ClaimRequest, ErrorInfo, Final, JobInfo, QueueCounts
from taskflow.brokers.presence import worker_infos
from taskflow.brokers.sqlite.schema import GATED, STATE_NUMBER, STATES, SUSPECT
from taskflow.brokers.sqlite.tx import GATE_ROWS, NEVER
from taskflow.brokers.texts import gates_from
from taskflow.core import gate as gating
from taskflow.core.job import JobState
from taskflow.core.window import DrainRate

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Sequence

    from taskflow.brokers.base import WorkerInfo
    from taskflow.core.gate import Gate

_FINAL_FROM = 4  # the state numbers of final states start here
_ENDED_BADLY = frozenset({JobState.DEAD, JobState.CANCELLED, JobState.EXPIRED})
_ERROR = "attempt, at, type, message, kind, stack"


def next_instant(connection: sqlite3.Connection, request: ClaimRequest, now: float) -> tuple[float, list[int]]:
    """When `claim(request)` may find something (`now`: it may already), and the numbers of the queues it names."""
    kinds = [kind for kind in range(4) if request.gated > 0 or not kind & GATED]
    if request.suspects <= 0:
        kinds = [kind for kind in kinds if not kind & SUSPECT]
    is_open = " OR ".join(
        f"EXISTS (SELECT 1 FROM lane WHERE queue = q.id AND kind = {kind} AND stand = 1)" for kind in kinds
    )
    wake = "(SELECT min(wake_at) FROM queue_gate WHERE queue = q.id AND wake_at IS NOT NULL)"
    found = connection.execute(
        f"SELECT q.id, q.is_paused, {is_open}, (SELECT min(due_at) FROM job WHERE queue = q.id AND state = 0),"
        f" {wake if request.gated > 0 else 'NULL'} FROM queue q WHERE q.name IN (SELECT value FROM json_each(?))",
        (json.dumps(request.queues),),
    ).fetchall()
    earliest = NEVER
    for _, is_paused, has_open, *instants in found:
        if not is_paused:
            earliest = min([earliest, now if has_open else NEVER, *(at for at in instants if at is not None)])
    return earliest, [row[0] for row in found]


def finals(connection: sqlite3.Connection, job_ids: Iterable[str]) -> tuple[int, dict[str, Final]]:
    """How many of these jobs are kept, and how those ended that are final."""
    found = connection.execute(
        "SELECT j.seq, j.id, j.state, j.has_result, r.data FROM json_each(?) s"
        " CROSS JOIN job j ON j.id = s.value LEFT JOIN result r ON r.seq = j.seq AND j.state >= 4",
        (json.dumps(list(job_ids)),),
    ).fetchall()
    ended: dict[str, Final] = {}
    for seq, job_id, state, has_result, data in found:
        if state >= _FINAL_FROM:
            error = _last_error(connection, seq)
            ended[job_id] = Final(job_id, STATES[state], data, error, not has_result or data is not None)
    return len(found), ended


def _last_error(connection: sqlite3.Connection, seq: int) -> ErrorInfo | None:
    row = connection.execute(f"SELECT {_ERROR} FROM error WHERE seq = ? ORDER BY n DESC LIMIT 1", (seq,)).fetchone()
    return None if row is None else ErrorInfo(*row)


def final_ids(connection: sqlite3.Connection, job_ids: Sequence[str]) -> list[str]:
    """Those of `job_ids` that do not wait any more: final, or not kept."""
    found = connection.execute(
        "SELECT s.value FROM json_each(?) s LEFT JOIN job j ON j.id = s.value WHERE j.state IS NULL OR j.state >= 4",
        (json.dumps(job_ids),),
    )
    return [row[0] for row in found]


def states(connection: sqlite3.Connection, job_ids: Sequence[str]) -> dict[str, JobState]:
    """As `Operator.states`."""
    found = connection.execute(
        "SELECT j.id, j.state FROM json_each(?) s CROSS JOIN job j ON j.id = s.value", (json.dumps(list(job_ids)),)
    )
    return {job_id: STATES[state] for job_id, state in found}


def counts(connection: sqlite3.Connection, now: float) -> list[QueueCounts]:
    """As `Broker.counts`. The oldest ready job is the first of a line in one of the lanes: each is looked at once."""
    found = connection.execute(
        "SELECT q.name, q.ready, q.scheduled, q.waiting, q.running, q.dead, (SELECT min((SELECT due_at FROM job"
        " WHERE lane = l.id AND state = 2 AND priority = p.value ORDER BY due_at LIMIT 1)) FROM lane l"
        " CROSS JOIN json_each('[0,1,2,3,4,5,6,7,8,9]') p WHERE l.queue = q.id AND p.value <= l.top),"
        " q.drain_per_s, q.drain_at, q.is_paused FROM queue q WHERE q.had_jobs ORDER BY q.name"
    )
    return [
        QueueCounts(
            name,
            ready,
            scheduled,
            waiting,
            running,
            dead,
            oldest_ready_age_s=0.0 if oldest is None else max(0.0, now - oldest),
            drain_per_s=DrainRate(per_s, at).read(now=now),
            paused=bool(paused),
        )
        for name, ready, scheduled, waiting, running, dead, oldest, per_s, at, paused in found.fetchall()
    ]


def gates(connection: sqlite3.Connection) -> list[Gate]:
    """As `Operator.gates`, by name."""
    return [gating.from_row(row) for row in connection.execute(f"{GATE_ROWS} ORDER BY name")]


def workers(connection: sqlite3.Connection, now: float) -> list[WorkerInfo]:
    """As `Operator.workers`."""
    found = connection.execute("SELECT worker, ?1 - said_at, lease_s, said FROM presence WHERE forget_at > ?1", (now,))
    return worker_infos(found.fetchall())


_INFO = (
    "SELECT j.seq, j.id, b.task, q.name, j.state, j.priority, b.lane, b.gates, j.unique_key, j.attempts, j.snoozes,"
    " j.lost, b.submitted_at, j.due_at, j.expires_at, j.started_at, j.finished_at, w.name, j.reason,"
    " j.cancel_requested, n.progress, b.payload FROM job j CROSS JOIN body b ON b.seq = j.seq"
    " CROSS JOIN queue q ON q.id = j.queue LEFT JOIN claim c ON c.token = j.token AND j.state = 3"
    " LEFT JOIN worker w ON w.id = c.worker LEFT JOIN note n ON n.seq = j.seq"
)


def show(connection: sqlite3.Connection, job_id: str) -> JobInfo | None:
    """As `Operator.show`."""
    row = connection.execute(f"{_INFO} WHERE j.id = ?", (job_id,)).fetchone()
    return None if row is None else _info(connection, row)


def jobs(
    connection: sqlite3.Connection, state: JobState | None, queue: str | None, task: str | None, limit: int
) -> list[JobInfo]:
    """As `Operator.jobs`."""
    source, conditions, values = "job j", ["1"], list[Any]()
    if state in _ENDED_BADLY:
        source = "job j INDEXED BY job_final"  # few among many that succeeded
        conditions.append("j.state > 3")
    elif state is JobState.RUNNING:
        conditions.append("j.seq IN (SELECT s.value FROM claim c CROSS JOIN json_each(c.jobs) s)")
    if state is not None:
        conditions.append(f"j.state = {STATE_NUMBER[state]}")
    if queue is not None:
        conditions.append("j.queue = (SELECT id FROM queue WHERE name = ?)")
        values.append(queue)
    if task is not None:
        source += " CROSS JOIN body b ON b.seq = j.seq"
        conditions.append("b.task = ?")
        values.append(task)
    found = connection.execute(
        f"{_INFO} WHERE j.seq IN (SELECT j.seq FROM {source} WHERE {' AND '.join(conditions)}"
        " ORDER BY j.seq DESC LIMIT ?) ORDER BY j.seq DESC",
        (*values, limit),
    ).fetchall()
    return [_info(connection, row) for row in found]


def _info(connection: sqlite3.Connection, row: tuple[Any, ...]) -> JobInfo:
    seq, job_id, task, queue, state, priority, lane, gates_text, key, *rest = row
    attempts, snoozes, lost, submitted_at, due_at, expires_at, started_at, finished_at, worker, reason, *tail = rest
    cancel_requested, progress, payload = tail
    errors = connection.execute(f"SELECT {_ERROR} FROM error WHERE seq = ? ORDER BY n", (seq,))
    return JobInfo(
        id=job_id,
        task=task,
        queue=queue,
        state=STATES[state],
        priority=priority,
        lane=lane,
        gates=gates_from(gates_text),
        key=None if key is None else key[len(task) + 1 :],
        attempts=attempts,
        snoozes=snoozes,
        lost=lost,
        submitted_at=submitted_at,
        due_at=due_at,
        expires_at=expires_at,
        started_at=started_at,
        finished_at=finished_at,
        worker=worker,
        reason=reason or "",
        cancel_requested=bool(cancel_requested),
        progress=progress,
        payload=payload,
        errors=tuple(ErrorInfo(*error) for error in errors),
    )
