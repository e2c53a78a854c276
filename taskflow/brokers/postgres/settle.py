"""Decisions about claims, notes of running jobs, and what is taken back.

Plain completions go in one set; the rest, and what did not match, one by one in their order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from taskflow.brokers.base import ERRORS_KEPT, Reclaimed, Settled, SettleReply
from taskflow.brokers.postgres.connection import UPKEEP_S
from taskflow.brokers.postgres.schema import STATES
from taskflow.brokers.postgres.submit import MOST_S, storable
from taskflow.core.decision import Bury, Cancel, Complete, Expire, Release, Retry, Snooze
from taskflow.core.job import JobState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from taskflow.brokers.base import Note, Retention, Settlement
    from taskflow.brokers.postgres.borrowed import Borrowed
    from taskflow.brokers.postgres.connection import Pool
    from taskflow.brokers.server_clock import ServerClock

_DONE = SettleReply(Settled.APPLIED, JobState.SUCCEEDED)
_ANSWERS = tuple(Settled)
_KINDS = {Complete: 0, Retry: 1, Snooze: 2, Release: 3, Bury: 4, Expire: 5, Cancel: 6}
_SETTLE = "SELECT * FROM ~.settle_v1($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)"
# Each row begins with the server's clock and the longest lease; without a job there is one row of these alone.
_RECLAIM = (
    "SELECT clock.now, (SELECT coalesce(max(p.lease_s), 0) FROM ~.presence p), moved.* FROM ~.now_s($4) AS clock(now)"
    " LEFT JOIN LATERAL ~.reclaim_v1($1, $2, $3, clock.now, $5) AS moved ON true"
)


async def settle(
    pool: Pool | Borrowed, settlements: Sequence[Settlement], fixed_at: float | None, *, is_borrowed: bool
) -> list[SettleReply]:
    """As `Broker.settle`."""
    if len({one[0] for one in settlements}) < len(settlements):  # the order matters
        return await _one_by_one(pool, settlements, fixed_at)
    quick: list[Settlement] = []
    slow: list[Settlement] = []
    for one in settlements:
        (quick if type(one[2]) is Complete else slow).append(one)
    if quick:
        left = await pool.value(
            "SELECT ~.complete_v1($1, $2, $3, $4, $5)",
            [one[0] for one in quick],
            [one[1] for one in quick],
            [one[2].result for one in quick],  # type: ignore[union-attr] # all of them are Complete
            is_borrowed,
            fixed_at,
        )
        if not left and not slow:
            return [_DONE] * len(settlements)
        slow += [quick[place - 1] for place in left]
    replies = await _one_by_one(pool, slow, fixed_at) if slow else []
    answered = dict(zip((one[0] for one in slow), replies, strict=True))
    return [answered.get(one[0], _DONE) for one in settlements]


async def _one_by_one(
    pool: Pool | Borrowed, settlements: Sequence[Settlement], fixed_at: float | None
) -> list[SettleReply]:
    said: list[list[Any]] = [[] for _ in range(9)]
    for _, _, decision in settlements:
        error = getattr(decision, "error", None)
        texts = (error.type, error.message, error.kind, error.stack) if error else None
        row = (
            _KINDS[type(decision)],
            min(getattr(decision, "delay_s", 0.0), MOST_S),
            storable(getattr(decision, "reason", "")),
            getattr(decision, "spent", False),
            getattr(decision, "result", None),
            *(map(storable, texts) if texts else (None,) * 4),
        )
        for column, value in zip(said, row, strict=True):
            column.append(value)
    rows = await pool.fetch(
        _SETTLE, [one[0] for one in settlements], [one[1] for one in settlements], *said, ERRORS_KEPT, fixed_at
    )
    return [SettleReply(_ANSWERS[answer], None if state is None else STATES[state]) for answer, state in rows]


async def note(pool: Pool, notes: Sequence[Note]) -> list[Settled]:
    """As `Broker.note`."""
    job_ids, tokens, progresses, checkpoints = zip(*notes, strict=True)
    answers = await pool.value("SELECT ~.note_v1($1, $2, $3, $4)", job_ids, tokens, progresses, checkpoints)
    return [_ANSWERS[answer] for answer in answers]


async def reclaim(
    pool: Pool, clock: ServerClock, max_lost: int, retention: Retention, fixed_at: float | None
) -> list[Reclaimed]:
    """As `Broker.reclaim`, but for what is not kept."""
    sent_at = clock.steady()
    rows = await pool.fetch(
        _RECLAIM, max_lost, retention.rows, ERRORS_KEPT, fixed_at, clock.judged_at(sent_at), within_s=UPKEEP_S
    )
    clock.heard(rows[0][0], sent_at, rows[0][1])
    return [
        Reclaimed(job_id, task, queue, STATES[state], lost, reason)
        for _, _, job_id, task, queue, state, lost, reason in rows
        if job_id is not None
    ]


async def prune(pool: Pool, retention: Retention, fixed_at: float | None) -> None:
    """Forget what was kept long enough: a transaction of its own, so that nobody waits for it at a gate."""
    await pool.fetch(
        "SELECT ~.prune_v1($1, $2, $3, $4, $5, $6)",
        retention.result_s,
        retention.finished_s,
        retention.dead_s,
        retention.batch_s,
        retention.rows,
        fixed_at,
        within_s=UPKEEP_S,
    )
