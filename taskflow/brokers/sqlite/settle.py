"""Decisions about claims, fenced by their tokens.

A batch of nothing but `Complete` for claims that this broker object handed out is one statement: if it changes as many
rows as were asked, nothing was stale. Everything else is loaded, decided row by row, and stored.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, assert_never

from taskflow.brokers.base import Settled, SettleReply
from taskflow.brokers.sqlite import lanes, rows
from taskflow.brokers.sqlite.schema import RUNNING, STATES
from taskflow.brokers.sqlite.submit import SLICE, packed
from taskflow.brokers.texts import storable
from taskflow.core.decision import Bury, Cancel, Complete, Expire, Release, Retry, Snooze
from taskflow.core.job import JobState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from taskflow.brokers.base import Note, Settlement
    from taskflow.brokers.sqlite.rows import Row
    from taskflow.brokers.sqlite.tx import Held, Tx
    from taskflow.core.decision import Decision

_DONE = SettleReply(Settled.APPLIED, JobState.SUCCEEDED)


class TooFast(Exception):
    """The one statement did not match every row: roll back, and do it again with care."""


class Settling:
    """One call of `settle`. `is_careful` once the short way was wrong."""

    __slots__ = ("_settlements", "is_careful")

    def __init__(self, settlements: Sequence[Settlement]) -> None:
        self._settlements = settlements
        self.is_careful = len({one[0] for one in settlements}) < len(settlements)  # the order matters

    def __call__(self, tx: Tx) -> list[SettleReply]:
        """As `Broker.settle`. Raises `TooFast` only while it is not careful."""
        if self.is_careful:
            return settle_each(tx, self._settlements)
        quick: list[tuple[Held, bytes | None]] = []
        slow: list[Settlement] = []
        known = tx.held
        for one in self._settlements:
            job_id, token, decision = one
            held = known.get(job_id)
            if held is not None and held[0] == token and type(decision) is Complete:
                quick.append((held, decision.result))
            else:
                slow.append(one)
        if quick and not _complete(tx, quick):
            raise TooFast
        job_ids = [one[0] for one in self._settlements]
        tx.effects.ended += job_ids
        if not slow:
            tx.effects.finals += job_ids
            return [_DONE] * len(quick)
        replies = dict(zip((one[0] for one in slow), settle_each(tx, slow), strict=True))
        if quick:
            tx.effects.finals += [job_id for job_id in job_ids if job_id not in replies]
        return [replies.get(one[0], _DONE) for one in self._settlements]


def _complete(tx: Tx, done: list[tuple[Held, bytes | None]]) -> bool:
    """Complete all of these, or answer False when one of the claims is not running any more."""
    rows_done: dict[int, int] = {}
    results: list[tuple[int, bytes]] = []
    by_queue: dict[int, int] = {}
    by_token: dict[int, int] = {}
    freed: dict[str, list[int]] = {}
    for (token, seq, queue_id, gates), result in done:
        rows_done[seq] = token << 1
        if result is not None:
            rows_done[seq] += 1
            results.append((seq, result))
        by_queue[queue_id] = by_queue.get(queue_id, 0) + 1
        by_token[token] = by_token.get(token, 0) + 1
        for name in gates:
            freed.setdefault(name, [0, 0])[0] += 1
    changed = tx.execute(
        "UPDATE job SET state = 4, attempts = attempts + 1, finished_at = ?, settled = token,"
        " has_result = s.value & 1 FROM json_each(?) s"
        " WHERE job.seq = CAST(s.key AS INTEGER) AND job.token = s.value >> 1 AND job.state = 3",
        (tx.now, json.dumps(rows_done)),
    )
    if changed.rowcount != len(done):
        return False
    put_results(tx, results)
    for token, count in by_token.items():
        tx.end_claims(token, count)
    for queue_id, count in by_queue.items():
        queue = tx.queue_of(queue_id)
        queue.count[RUNNING] -= count
        queue.left += count
    lanes.give_room(tx, freed)
    return True


def put_results(tx: Tx, results: list[tuple[int, bytes]]) -> None:
    if results:
        slices, blob = packed(results)
        tx.execute(
            f"INSERT OR REPLACE INTO result (seq, data) SELECT CAST(key AS INTEGER), {SLICE} FROM json_each(?)",  # noqa: S608
            (blob, slices),
        )


def settle_each(tx: Tx, settlements: Sequence[Settlement]) -> list[SettleReply]:
    """As `Broker.settle`, row by row."""
    found = rows.by_id(tx, {one[0] for one in settlements})
    replies: list[SettleReply] = []
    changed: dict[int, Row] = {}
    results: list[tuple[int, bytes]] = []
    freed: dict[str, list[int]] = {}
    for job_id, token, decision in settlements:
        row = found.get(job_id)
        if row is None or row.token != token or row.state != RUNNING:
            replies.append(late(row, token))
            continue
        row.settled = token
        rows.end_claim(tx, row, freed, is_unused=isinstance(decision, Release))
        if isinstance(decision, Complete) and decision.result is not None:
            results.append((row.seq, decision.result))
        apply(tx, row, decision)
        changed[row.seq] = row
        replies.append(SettleReply(Settled.APPLIED, STATES[row.state]))
    put_results(tx, results)
    rows.store(tx, changed.values())
    lanes.give_room(tx, freed)
    return replies


def apply(tx: Tx, row: Row, decision: Decision) -> None:
    """What becomes of a claim that has ended."""
    match decision:
        case Complete(result):
            row.attempts += 1
            row.has_result = result is not None
            rows.finish(tx, row, "complete")
        case Retry(delay_s, error):
            rows.add_error(tx, row, error)
            row.attempts += 1
            rows.requeue(tx, row, "retry", delay_s)
        case Snooze(delay_s, reason, error):
            if error is not None:
                rows.add_error(tx, row, error)
            row.snoozes += 1
            row.reason = storable(reason)
            rows.requeue(tx, row, "snooze", delay_s)
        case Release():
            rows.requeue(tx, row, "release")
        case Bury(error, spent):
            rows.add_error(tx, row, error)
            row.attempts += spent
            rows.finish(tx, row, "bury")
        case Expire(reason):
            row.reason = storable(reason)
            rows.finish(tx, row, "expire")
        case Cancel():
            rows.finish(tx, row, "cancel")
        case _:
            assert_never(decision)


def late(row: Row | None, token: int) -> SettleReply:
    """The fence's answer to a word about a claim that has ended."""
    if row is not None and row.settled == token and token:
        return SettleReply(Settled.ALREADY, STATES[row.state])
    return SettleReply(Settled.STALE, None)


def note(tx: Tx, notes: Sequence[Note]) -> list[Settled]:
    """As `Broker.note`."""
    found = rows.by_id(tx, {one.job_id for one in notes})
    answers: list[Settled] = []
    for one in notes:
        row = found.get(one.job_id)
        if row is None or row.token != one.token or row.state != RUNNING:
            answers.append(late(row, one.token).answer)
            continue
        tx.execute(
            "INSERT INTO note (seq, progress, checkpoint) VALUES (?, ?, ?) ON CONFLICT (seq) DO UPDATE SET"
            " progress = coalesce(excluded.progress, progress), checkpoint = coalesce(excluded.checkpoint, checkpoint)",
            (row.seq, one.progress, one.checkpoint),
        )
        answers.append(Settled.APPLIED)
    return answers
