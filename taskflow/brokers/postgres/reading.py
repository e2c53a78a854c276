"""What is read for people and for those who wait."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from taskflow.brokers.base import ErrorInfo, Final, JobInfo, QueueCounts
from taskflow.brokers.postgres.schema import STATE_NUMBER, STATES
from taskflow.brokers.postgres.submit import MOST, storable
from taskflow.brokers.texts import gates_from

if TYPE_CHECKING:
    from collections.abc import Sequence

    from taskflow.brokers.postgres.connection import Pool
    from taskflow.core.job import JobState

_ENDED = 4  # the state numbers of final states start here


FINALS = (
    "SELECT j.id, f.state, f.has_result, r.data, e.attempt, e.at, e.type, e.message, e.kind, e.stack"
    " FROM unnest($1::text[]) a(id) JOIN ~.job j ON j.id = a.id LEFT JOIN ~.finished f ON f.seq = j.seq"
    " LEFT JOIN ~.result r ON f.has_result AND r.batch = f.batch AND r.finished_at = f.finished_at AND r.seq = f.seq"
    " LEFT JOIN LATERAL (SELECT * FROM ~.error e WHERE e.seq = f.seq ORDER BY e.n DESC LIMIT 1) e ON true"
)


async def finals(pool: Pool, job_ids: Sequence[str]) -> dict[str, Final | None]:
    """How those of these jobs ended that are kept; None for one that is not final."""
    rows = await pool.fetch(FINALS, [*map(storable, job_ids)])
    found: dict[str, Final | None] = {}
    for job_id, state, has_result, data, *error in rows:
        last = None if error[0] is None else ErrorInfo(*error)
        is_kept = not has_result or data is not None
        found[job_id] = None if state is None else Final(job_id, STATES[state], data, last, is_kept)
    return found


async def ended(pool: Pool, job_ids: Sequence[str]) -> list[str]:
    """Those of these jobs for which there is nothing to wait any more: they are final, or not kept."""
    rows = await pool.fetch(
        "SELECT a.id FROM unnest($1::text[]) a(id) LEFT JOIN ~.job j ON j.id = a.id"
        " LEFT JOIN ~.finished f ON f.seq = j.seq WHERE j.seq IS NULL OR f.seq IS NOT NULL",
        [*map(storable, job_ids)],
    )
    return [row[0] for row in rows]


async def counts(pool: Pool, fixed_at: float | None) -> list[QueueCounts]:
    """As `Broker.counts`. The oldest ready job is the first of one of the lines: each is looked at once."""
    rows = await pool.fetch(
        "SELECT q.name, d.ready, d.scheduled, d.running, d.dead, ~.now_s($1::float8) - o.oldest, d.per_s, q.is_paused"
        " FROM ~.queue q LEFT JOIN (SELECT queue, sum(ready)::bigint AS ready, sum(scheduled)::bigint AS scheduled,"
        " sum(running)::bigint AS running, sum(dead)::bigint AS dead,"
        " sum(~.decay(per_s, at, ~.now_s($1::float8))) AS per_s FROM ~.count_delta GROUP BY queue) d ON d.queue = q.id"
        " LEFT JOIN LATERAL (SELECT min((SELECT r.due_at FROM ~.ready r WHERE r.line = l.id"
        " ORDER BY r.due_at LIMIT 1)) AS oldest FROM ~.line l WHERE l.queue = q.id) o ON true"
        " WHERE q.had_jobs ORDER BY q.name",
        fixed_at,
    )
    return [
        QueueCounts(
            name,
            ready or 0,
            scheduled or 0,
            0,
            running or 0,
            dead or 0,
            oldest_ready_age_s=max(0.0, age or 0.0),
            drain_per_s=per_s or 0.0,
            paused=paused,
        )
        for name, ready, scheduled, running, dead, age, per_s, paused in rows
    ]


_INFO = (
    "SELECT j.id, j.task, q.name, CASE WHEN f.seq IS NOT NULL THEN f.state WHEN r.seq IS NOT NULL THEN 3"
    " WHEN s.seq IS NOT NULL THEN 0 ELSE 2 END AS state, j.priority, j.lane, j.gates, j.key,"
    " coalesce(f.attempts, j.attempts), j.snoozes, j.lost, j.submitted_at, j.due_at, j.expires_at,"
    " CASE WHEN r.seq IS NOT NULL THEN r.started_at ELSE coalesce(f.started_at, j.started_at) END, f.finished_at,"
    " w.name, j.reason, coalesce(f.was_cancelled, r.is_cancelled, false), n.progress, j.payload,"
    " x.attempts, x.ats, x.types, x.messages, x.kinds, x.stacks FROM ~.job j JOIN ~.queue q ON q.id = j.queue"
    " LEFT JOIN ~.finished f ON f.seq = j.seq LEFT JOIN ~.running r ON r.seq = j.seq"
    " LEFT JOIN ~.scheduled s ON s.seq = j.seq"
    " LEFT JOIN ~.worker w ON w.id = r.worker LEFT JOIN ~.note n ON n.seq = j.seq"
    # Arrays and not JSON, in which extra_float_digits may cut an instant.
    " CROSS JOIN LATERAL (SELECT array_agg(e.attempt ORDER BY e.n) AS attempts, array_agg(e.at ORDER BY e.n) AS ats,"
    " array_agg(e.type ORDER BY e.n) AS types, array_agg(e.message ORDER BY e.n) AS messages,"
    " array_agg(e.kind ORDER BY e.n) AS kinds, array_agg(e.stack ORDER BY e.n) AS stacks"
    " FROM ~.error e WHERE e.seq = j.seq) x"
)


async def show(pool: Pool, job_id: str) -> JobInfo | None:
    """As `Operator.show`."""
    rows = await pool.fetch(f"{_INFO} WHERE j.id = $1", storable(job_id))
    return _info(rows[0]) if rows else None


async def jobs(pool: Pool, state: JobState | None, queue: str | None, task: str | None, limit: int) -> list[JobInfo]:
    """As `Operator.jobs`."""
    conditions = ["true"]
    values: list[Any] = [min(limit, MOST)]
    if state is not None:
        number = STATE_NUMBER[state]
        if number >= _ENDED:
            conditions.append(f"f.state = {number}")
        elif number == STATE_NUMBER[state.RUNNING]:
            conditions.append("r.seq IS NOT NULL")
        elif number == STATE_NUMBER[state.SCHEDULED]:
            conditions.append("s.seq IS NOT NULL")
        elif number == STATE_NUMBER[state.READY]:
            conditions.append("f.seq IS NULL AND r.seq IS NULL AND s.seq IS NULL")
        else:
            return []
    for column, value in (("q.name", queue), ("j.task", task)):
        if value is not None:
            values.append(storable(value))
            conditions.append(f"{column} = ${len(values)}")
    rows = await pool.fetch(f"{_INFO} WHERE {' AND '.join(conditions)} ORDER BY j.seq DESC LIMIT $1", *values)
    return [_info(row) for row in rows]


def _info(row: Any) -> JobInfo:
    (job_id, task, queue, state, priority, lane, gates, key, attempts, snoozes, lost, submitted_at, *rest) = row
    due_at, expires_at, started_at, finished_at, worker, reason, cancel_requested, progress, payload, *errors = rest
    return JobInfo(
        id=job_id,
        task=task,
        queue=queue,
        state=STATES[state],
        priority=priority,
        lane=lane,
        gates=gates_from(gates),
        key=key,
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
        cancel_requested=cancel_requested,
        progress=progress,
        payload=payload,
        errors=tuple(ErrorInfo(*error) for error in zip(*errors, strict=True)) if errors[0] else (),
    )


GATE = (
    "g.name, g.generation, g.held_until, g.reason, g.era, g.ramp, g.good, g.bad, g.failed, g.word, g.max_live,"
    " g.max_live_override, g.rate_interval_s, g.rate_burst, g.rate_override_interval_s, g.rate_override_burst, g.live,"
    " g.tat"
)


async def states(pool: Pool, job_ids: Sequence[str]) -> dict[str, JobState]:
    """As `Operator.states`."""
    rows = await pool.fetch(
        "SELECT j.id, CASE WHEN f.seq IS NOT NULL THEN f.state WHEN r.seq IS NOT NULL THEN 3 WHEN s.seq IS NOT NULL"
        " THEN 0 ELSE 2 END FROM unnest($1::text[]) a(id) JOIN ~.job j ON j.id = a.id"
        " LEFT JOIN ~.finished f ON f.seq = j.seq LEFT JOIN ~.running r ON r.seq = j.seq"
        " LEFT JOIN ~.scheduled s ON s.seq = j.seq",
        list(map(storable, job_ids)),
    )
    return {job_id: STATES[state] for job_id, state in rows}
