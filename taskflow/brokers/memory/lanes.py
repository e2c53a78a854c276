"""What the memory broker is made of: rows in lines, lines in lanes, lanes in the rings of queues and gates."""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from taskflow.brokers.base import (
    ERRORS_KEPT,
    ErrorInfo,
    Final,
    JobInfo,
    QueueCounts,
    Reclaimed,
)
from taskflow.brokers.waiting import resolve
from taskflow.clock import NEVER
from taskflow.core import gate as gating
from taskflow.core.job import SUSPECT_AFTER, JobState
from taskflow.core.window import DrainRate

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable

    from taskflow.core.outcome import ErrorRecord

_SWEEP_FROM = 64  # ended rows in a container, below which sweeping is not worth it

_READY, _SCHEDULED, _RUNNING, _DEAD = JobState.READY, JobState.SCHEDULED, JobState.RUNNING, JobState.DEAD


@dataclass(slots=True, eq=False)
class Row:
    """One job as it is kept: what was submitted, and what came of it."""

    # No `Job` within: one object more for each job that is kept, and for the garbage collector to look at.
    id: str
    task: str
    queue: Queue
    payload: bytes
    priority: int
    lane: str
    gates: tuple[str, ...]
    key: str | None
    expires_s: float
    expire_reason: str
    batch: str
    seq: int  # the order of submission
    state: JobState
    submitted_at: float
    due_at: float  # its place in the line
    first_due_at: float
    expires_at: float
    ready_at: float
    attempts: int = 0
    snoozes: int = 0
    lost: int = 0
    token: int = 0  # of the last claim
    settled_token: int | None = None  # the last token that settled
    worker: Holder | None = None
    vouched: int = 0  # the worker's last beat that named this claim
    started_at: float | None = None
    finished_at: float | None = None
    reason: str = ""
    cancel_requested: bool = False
    progress: bytes | None = None
    checkpoint: bytes | None = None
    result: bytes | None = None
    result_kept: bool = True
    errors: list[ErrorInfo] | None = None

    def add_error(self, error: ErrorRecord, now: float) -> None:
        if self.errors is None:
            self.errors = []
        self.errors.append(ErrorInfo(self.attempts + 1, now, error.type, error.message, error.kind, error.stack))
        del self.errors[:-ERRORS_KEPT]

    def final(self) -> Final:
        error = self.errors[-1] if self.errors else None
        return tuple.__new__(Final, (self.id, self.state, self.result, error, self.result_kept))

    def reclaimed(self, reason: str) -> Reclaimed:
        return Reclaimed(self.id, self.task, self.queue.name, self.state, self.lost, reason)

    def info(self) -> JobInfo:
        return JobInfo(
            id=self.id,
            task=self.task,
            queue=self.queue.name,
            state=self.state,
            priority=self.priority,
            lane=self.lane,
            gates=self.gates,
            key=self.key,
            attempts=self.attempts,
            snoozes=self.snoozes,
            lost=self.lost,
            submitted_at=self.submitted_at,
            due_at=self.due_at,
            expires_at=self.expires_at,
            started_at=self.started_at,
            finished_at=self.finished_at,
            worker=None if self.worker is None else self.worker.name,
            reason=self.reason,
            cancel_requested=self.cancel_requested,
            progress=self.progress,
            payload=self.payload,
            errors=tuple(self.errors or ()),
        )


class Lane:
    """The ready jobs of one queue that share lane key and gates: a line for each priority. Suspects have their own."""

    __slots__ = ("ended", "gates", "is_suspect", "key", "kind", "lines", "ring", "size", "top", "turn")

    def __init__(self, key: tuple[str, tuple[str, ...], bool], lane_gates: tuple[GateLine, ...]) -> None:
        self.key = key
        self.gates = lane_gates
        self.is_suspect = key[2]
        self.kind = (1 if lane_gates else 0) + (2 if self.is_suspect else 0)
        self.lines: dict[int, deque[Row]] = {}  # priority → rows, by due instant, then submission
        self.size = 0  # rows that are ready
        self.ended = 0  # rows that ended where they stood
        self.top = -1
        self.ring: Ring | None = None
        self.turn = 0

    def take(self, wanted: int) -> list[Row]:
        """The first `wanted` rows of the top priority, or as many as there are."""
        line = self.lines[self.top]
        rows: list[Row] = []
        while line and len(rows) < wanted:
            row = line.popleft()
            if row.state is _READY:
                rows.append(row)
            else:
                self.ended -= 1
        if not line:
            del self.lines[self.top]
        self.size -= len(rows)
        return rows

    def sweep(self) -> None:
        """Let go of rows that ended, once they are most of what stands here."""
        if self.ended <= _SWEEP_FROM or self.ended <= self.size:
            return
        for line in self.lines.values():  # an empty line at the top costs one turn, and is gone
            alive = [row for row in line if row.state is _READY]
            line.clear()
            line.extend(alive)
        self.ended = 0


class Ring:
    """Lanes by their top priority, in turn."""

    __slots__ = ("by_top",)

    def __init__(self) -> None:
        self.by_top: dict[int, OrderedDict[Lane, None]] = {}

    def __bool__(self) -> bool:
        return bool(self.by_top)

    def add(self, lane: Lane, turn: int) -> None:
        lane.ring, lane.turn = self, turn
        lanes = self.by_top.get(lane.top)
        if lanes is None:
            lanes = self.by_top[lane.top] = OrderedDict()
        lanes[lane] = None

    def remove(self, lane: Lane) -> None:
        lane.ring = None
        lanes = self.by_top[lane.top]
        del lanes[lane]
        if not lanes:
            del self.by_top[lane.top]

    def head(self) -> Lane:
        return next(iter(self.by_top[max(self.by_top)]))


class Queue:
    """One queue: its lanes, its scheduled jobs, its counters."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_paused = False
        self.had_jobs = False
        self.count = dict.fromkeys(JobState, 0)
        self.drain = DrainRate()
        self.lanes: dict[tuple[str, tuple[str, ...], bool], Lane] = {}  # none is empty
        self.open = (Ring(), Ring(), Ring(), Ring())  # by `Lane.kind`: plain, gated, suspects, gated suspects
        self.turns = 0
        self.scheduled: list[tuple[float, int, Row]] = []  # heap
        self.scheduled_ended = 0
        self.stirred: dict[GateLine, None] = {}  # gates that may have opened, with lanes of this queue waiting
        self.waiters: dict[asyncio.Future[None], None] = {}  # in order: a seed replays the same

    def bounded(self) -> int:
        """How many jobs its bound counts."""
        return self.count[_READY] + self.count[_SCHEDULED]

    def next_turn(self) -> int:
        self.turns += 1
        return self.turns

    def first_in_turn(self, gated: bool, suspects: bool) -> Lane | None:
        """Of the open lanes that may be claimed from, at the highest priority, the one whose turn is longest ago."""
        first: Lane | None = None
        for ring in self.open[: 4 if suspects else 2 : 1 if gated else 2]:
            if ring.by_top:
                lane = ring.head()
                if first is None or (lane.top, first.turn) > (first.top, lane.turn):
                    first = lane
        return first

    def lanes_at(self, top: int, gated: bool, suspects: bool) -> int:
        """How many open lanes share the top priority."""
        rings = self.open[: 4 if suspects else 2 : 1 if gated else 2]
        return sum(len(ring.by_top.get(top, ())) for ring in rings)

    def drop(self, lane: Lane) -> None:
        """An empty lane is no lane."""
        if lane.ring is not None:
            lane.ring.remove(lane)
        del self.lanes[lane.key]

    def forget_ready(self, row: Row) -> None:
        """A row that was ready ended where it stands."""
        lane = self.lanes[row.lane, row.gates, row.lost >= SUSPECT_AFTER]
        lane.size -= 1
        lane.ended += 1
        if lane.size == 0:
            self.drop(lane)
        else:
            lane.sweep()

    def forget_scheduled(self) -> None:
        """A row that was scheduled ended where it stands."""
        self.scheduled_ended += 1
        if self.scheduled_ended > _SWEEP_FROM and self.scheduled_ended * 2 > len(self.scheduled):
            self.scheduled = [entry for entry in self.scheduled if entry[2].state is _SCHEDULED]
            heapq.heapify(self.scheduled)
            self.scheduled_ended = 0

    def wake_waiters(self) -> None:
        for waiter in self.waiters:
            resolve(waiter)
        self.waiters.clear()

    def counts(self, now: float) -> QueueCounts:
        oldest = min(
            (row.due_at for lane in self.lanes.values() for line in lane.lines.values() if (row := first(line))),
            default=now,
        )
        return QueueCounts(
            queue=self.name,
            ready=self.count[_READY],
            scheduled=self.count[_SCHEDULED],
            waiting=self.count[JobState.WAITING],
            running=self.count[_RUNNING],
            dead=self.count[_DEAD],
            oldest_ready_age_s=max(0.0, now - oldest),
            drain_per_s=self.drain.read(now=now),
            paused=self.is_paused,
        )


class GateLine:
    """A gate's record, and the lanes that wait at it."""

    def __init__(self, name: str, parent: GateLine | None) -> None:
        self.record = gating.Gate(name)
        self.parent = parent
        self.children: set[GateLine] = set()
        self.queued: dict[Queue, int] = {}  # its ready and scheduled jobs
        self.waiting: dict[Queue, Ring] = {}
        self.opens_at = NEVER  # its next instant among the broker's openings
        if parent is not None:
            parent.children.add(self)

    @property
    def parent_record(self) -> gating.Gate | None:
        return None if self.parent is None else self.parent.record

    def add_queued(self, queue: Queue, step: int) -> None:
        count = self.queued.get(queue, 0) + step
        if count:
            self.queued[queue] = count
        else:
            del self.queued[queue]

    def is_idle(self, now: float) -> bool:
        """Whether nothing would change if it were forgotten."""
        return not self.queued and not self.children and gating.is_idle(self.record, now=now)


class Holder:
    """A worker's lease, and its claims."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lease_until = 0.0
        self.beats = 0
        self.claims: dict[str, Row] = {}


@dataclass(slots=True)
class Left:
    """What one claim may still take and do."""

    limit: int
    gated: int
    suspects: int
    wake: int
    promote: int
    parks: int

    @property
    def is_gated(self) -> bool:
        """Whether jobs with gates may still be claimed."""
        return self.gated > 0 and self.parks > 0


def order(row: Row) -> tuple[float, int]:
    return row.due_at, row.seq


def first(line: Iterable[Row]) -> Row | None:
    return next((row for row in line if row.state is _READY), None)
