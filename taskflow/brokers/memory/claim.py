"""Out of the queue: what is due becomes ready, lanes have their turn, rows become claims."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

from taskflow.brokers.base import PARKS, PROMOTE, QUOTA, WAKE
from taskflow.brokers.memory import gates, rows
from taskflow.brokers.memory.lanes import Left
from taskflow.core import gate as gating
from taskflow.core.job import TRANSITIONS, Claim, JobState

if TYPE_CHECKING:
    from taskflow.brokers.base import ClaimRequest
    from taskflow.brokers.memory.lanes import Holder, Queue, Row
    from taskflow.brokers.memory.store import Store

_READY, _SCHEDULED = JobState.READY, JobState.SCHEDULED
_CLAIMED = TRANSITIONS[_READY]["claim"]


def claim(store: Store, request: ClaimRequest, now: float) -> list[Claim]:
    """As `Broker.claim`."""
    worker = store.worker(request.worker)
    worker.lease_until = now + request.lease_s
    gates.stir_due(store, now)
    left = Left(request.limit, request.gated, request.suspects, WAKE, PROMOTE, PARKS)
    claims: list[Claim] = []
    for name in request.queues:
        queue = store.queues.get(name)
        if queue is None or queue.is_paused:
            continue
        _promote(store, queue, left, now)
        if left.gated > 0:
            gates.wake_lanes(store, queue, left, now)
        taken = _claim_in_turn(store, queue, request.limit, left, now)
        claims += _hand_over(store, queue, taken, worker, now)
        if left.limit <= 0:
            break
    return claims


def _promote(store: Store, queue: Queue, left: Left, now: float) -> None:
    """Scheduled jobs that are due become ready."""
    scheduled = queue.scheduled
    while scheduled and scheduled[0][0] <= now and left.promote > 0:
        row = heapq.heappop(scheduled)[2]
        if row.state is not _SCHEDULED:
            queue.scheduled_ended -= 1
            continue
        left.promote -= 1
        rows.move(store, row, "due")
        row.ready_at = row.due_at
        rows.place(store, row)


def _claim_in_turn(store: Store, queue: Queue, limit: int, left: Left, now: float) -> list[Row]:
    """Strict priority, then lanes in turn; each turn a quota, within what the lane's gates admit."""
    taken: list[Row] = []
    top, quota = -1, 0
    while left.limit > 0:
        lane = queue.first_in_turn(left.is_gated, left.suspects > 0)
        if lane is None:
            break
        if lane.top != top:
            top = lane.top
            quota = max(QUOTA, -(-limit // queue.lanes_at(top, left.is_gated, left.suspects > 0)))
        wanted = min(quota, left.limit)
        if lane.gates:
            room = gates.room_of(lane, now)
            if room == 0:
                gates.park(store, queue, lane, now)
                left.parks -= 1
                continue
            wanted = min(wanted, room, left.gated)
        if lane.is_suspect:
            wanted = min(wanted, left.suspects)
        assert lane.ring is not None
        lane.ring.remove(lane)
        turn = lane.take(wanted)
        if lane.size > 0:
            lane.top = max(lane.lines)
            queue.open[lane.kind].add(lane, queue.next_turn())
        else:
            queue.drop(lane)
        if lane.gates:
            left.gated -= len(turn)
            for gate in lane.gates:
                gate.record = gating.take(gate.record, len(turn), gate.parent_record, now=now)
        if lane.is_suspect:
            left.suspects -= len(turn)
        left.limit -= len(turn)
        taken += turn
    return taken


def _hand_over(store: Store, queue: Queue, taken: list[Row], worker: Holder, now: float) -> list[Claim]:
    """These rows of `queue` are the worker's now. Written out, for once: every job passes here."""
    queue.count[_READY] -= len(taken)
    queue.count[_CLAIMED] += len(taken)
    token, beats, held, name, new = store.token, worker.beats, worker.claims, queue.name, tuple.__new__
    claims: list[Claim] = []
    for row in taken:
        token += 1
        job_id = row.id
        row.state, row.token, row.worker, row.vouched, row.started_at = _CLAIMED, token, worker, beats, now
        held[job_id] = row
        recoveries: tuple[gating.Recovery, ...] = ()
        if row.gates:
            lines = [store.gate(gate) for gate in row.gates]
            for line in lines:
                line.add_queued(queue, -1)
            recoveries = gating.recoveries_of(line.record for line in lines)
        waited_s, age_s = now - row.ready_at, now - row.first_due_at
        claim = (
            job_id,
            token,
            row.task,
            name,
            row.payload,
            row.lane,
            row.gates,
            row.priority,
            row.attempts,
            row.snoozes,
            row.lost,
            waited_s if waited_s > 0 else 0.0,
            age_s if age_s > 0 else 0.0,
            row.expires_at - now,
            row.expire_reason,
            row.checkpoint,
            recoveries,
        )
        claims.append(new(Claim, claim))
    store.token = token
    return claims
