"""Jobs to a worker: strict priority, then lanes in turn, each turn a quota, within what the lane's gates admit.

Whose turn it is lives in the broker object (`Turns`): a turn writes nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from taskflow.brokers.base import PARKS, PROMOTE, QUOTA, WAKE, ClaimRequest
from taskflow.brokers.sqlite import lanes, leases, rows
from taskflow.brokers.sqlite.schema import GATED, READY, RUNNING, SUSPECT
from taskflow.brokers.texts import gates_from
from taskflow.core import gate as gating
from taskflow.core.job import Claim

if TYPE_CHECKING:
    from collections.abc import Sequence

    from taskflow.brokers.sqlite.tx import Queue, Tx

_FETCH = 100  # jobs whose payloads come in one answer: SQLite's longest value is a gigabyte
_new = tuple.__new__  # a third of what `Claim(…)` costs, once for every job

Turns = dict[tuple[int, int], int]  # (queue, priority) → the lane that had the last turn


@dataclass(slots=True)
class Left:
    """What one claim may still take and do."""

    limit: int
    gated: int
    suspects: int
    wake: int = WAKE
    promote: int = PROMOTE
    parks: int = PARKS

    def kinds(self) -> tuple[int, ...]:
        """The kinds of lanes that may still be claimed from."""
        gated = (0, GATED) if self.gated > 0 and self.parks > 0 else (0,)
        return gated if self.suspects <= 0 else (*gated, *(kind | SUSPECT for kind in gated))


def claim(tx: Tx, request: ClaimRequest, turns: Turns) -> list[Claim]:
    """As `Broker.claim`."""
    worker = leases.renew(tx, request.worker, request.lease_s)
    left = Left(request.limit, request.gated, request.suspects)
    token = 0
    seqs: list[int] = []
    claims: list[Claim] = []
    for name in request.queues:
        if left.limit <= 0:
            break
        queue = tx.queue(name)
        if queue is None or queue.is_paused:
            continue
        left.promote -= promote(tx, queue, left.promote)
        if left.gated > 0:
            left.wake = lanes.wake(tx, queue, left.wake)
        taken: list[int] = []
        while left.limit > 0 and (kinds := left.kinds()):
            top = lanes.top_of(tx, queue.id, kinds)
            if top is None:
                break
            token = token or tx.next_token()
            taken += _take_top(tx, queue, top, kinds, left, turns, token)
        if taken:
            queue.count[READY] -= len(taken)
            queue.count[RUNNING] += len(taken)
            claims += _hand_over(tx, queue, taken, token)
            seqs += taken
    if seqs:
        tx.execute(
            "INSERT INTO claim (token, worker, jobs, open) VALUES (?, ?, ?, ?)",
            (token, worker, json.dumps(seqs), len(seqs)),
        )
    return claims


def promote(tx: Tx, queue: Queue, most: int) -> int:
    """Scheduled jobs that are due become ready, at most `most`; returns how many."""
    due = rows.where(
        tx, "j.queue = ? AND j.state = 0 AND j.due_at <= ? ORDER BY j.due_at, j.seq LIMIT ?", (queue.id, tx.now, most)
    )
    for row in due:
        rows.move(tx, row, "due")
    rows.store(tx, due)
    return len(due)


def _take_top(tx: Tx, queue: Queue, top: int, kinds: Sequence[int], left: Left, turns: Turns, token: int) -> list[int]:
    """One round over the open lanes whose top priority is `top`: the jobs that were claimed, by row number."""
    most = -(-left.limit // QUOTA)
    ring = lanes.in_turn(tx, queue.id, kinds, top, after=turns.get((queue.id, top), 0), most=most)
    quota = max(QUOTA, -(-left.limit // max(1, len(ring))))
    tx.read_gates([name for lane in ring for name in lane.gates])
    admitted = [lane.id for lane in ring if lanes.room_of(tx, lane.gates) != 0]
    lines = _first_jobs(tx, admitted, top, quota)
    parked: list[lanes.Lane] = []
    taken: list[int] = []
    short: list[int] = []
    for lane in ring:
        if left.limit <= 0:
            break
        wanted = min(quota, left.limit)
        if lane.gates:
            room = lanes.room_of(tx, lane.gates)
            if room == 0:
                parked.append(lane)
                left.parks -= 1
                continue
            wanted = min(wanted, left.gated, wanted if room is None else room)
        if lane.is_suspect:
            wanted = min(wanted, left.suspects)
        line = lines.get(lane.id, [])
        got = line[:wanted]
        if len(line) <= wanted and len(line) < quota:
            short.append(lane.id)
        if lane.gates and got:
            left.gated -= len(got)
            lanes.take_room(tx, lane.gates, len(got))
            for name in lane.gates:
                tx.add_pending(queue.id, name, -len(got))
        if lane.is_suspect:
            left.suspects -= len(got)
        left.limit -= len(got)
        taken += got
        turns[queue.id, top] = lane.id
    if taken:
        _mark(tx, taken, token)
    if parked:
        lanes.park(tx, queue, parked)
    if short:
        lanes.settle_tops(tx, short)
    return taken


def _first_jobs(tx: Tx, ring: list[int], top: int, quota: int) -> dict[int, list[int]]:
    """For each of these lanes the first `quota` jobs of priority `top`, by row number."""
    (answer,) = tx.execute(
        "SELECT json_group_array(json_array(l.value, json((SELECT json_group_array(seq) FROM ("
        "SELECT seq FROM job INDEXED BY job_ready WHERE lane = l.value AND state = 2 AND priority = ?"
        " ORDER BY due_at, seq LIMIT ?))))) FROM json_each(?) l",
        (top, quota, json.dumps(ring)),
    ).fetchone()
    return dict(json.loads(answer))


def _mark(tx: Tx, taken: list[int], token: int) -> None:
    tx.execute(
        "UPDATE job SET state = 3, token = ?, started_at = ?, missed = 0 WHERE seq IN (SELECT value FROM json_each(?))",
        (token, tx.now, json.dumps(taken)),
    )


def _hand_over(tx: Tx, queue: Queue, taken: list[int], token: int) -> list[Claim]:
    """The claims for these rows, in their order; the whole answer in one value, and the bytes in another."""
    claims: list[Claim] = []
    held = tx.effects.held
    for start in range(0, len(taken), _FETCH):
        answer, blob = tx.execute(
            "SELECT json_group_array(json_array(j.seq, length(b.payload), length(n.checkpoint), j.id, b.task, b.lane,"
            " b.gates, j.priority, j.attempts, j.snoozes, j.lost, max(0.0, ?1 - coalesce(j.ready_at, j.due_at)),"
            " max(0.0, ?1 - (j.expires_at - b.expires_s)), j.expires_at - ?1, b.expire_reason)),"
            " CAST(group_concat(b.payload || coalesce(n.checkpoint, ''), '') AS BLOB)"
            " FROM json_each(?2) s CROSS JOIN job j ON j.seq = s.value CROSS JOIN body b ON b.seq = j.seq"
            " LEFT JOIN note n ON n.seq = j.seq",
            (tx.now, json.dumps(taken[start : start + _FETCH])),
        ).fetchone()
        place = 0
        for seq, length, noted, job_id, task, lane, gates_text, *rest in json.loads(answer):
            payload = blob[place : place + length]
            place += length
            checkpoint = None
            if noted is not None:
                checkpoint = blob[place : place + noted]
                place += noted
            gates = gates_from(gates_text) if gates_text else ()
            held[job_id] = (token, seq, queue.id, gates)
            rest.append(checkpoint)
            rest.append(gating.recoveries_of(map(tx.gate, gates)) if gates else ())
            claims.append(_new(Claim, (job_id, token, task, queue.name, payload, lane, gates, *rest)))
    return claims
