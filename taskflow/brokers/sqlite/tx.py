"""One write transaction: what it has read of queues and gates, what it must write before the commit, what follows it.

Queues and gates are read once, changed in here, and written once by `flush`, however many verbs share the commit.
"""

# ruff: noqa: S608 - values are always parameters; what is pasted into SQL are our own constants

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from taskflow.brokers.sqlite.schema import DEAD, READY, RUNNING, SCHEDULED, WAITING
from taskflow.core import gate as gating
from taskflow.core.gate import Gate, Rate
from taskflow.core.window import DrainRate

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable

# A claim of this broker object, remembered so that settling it reads nothing: (token, seq, queue, gates).
Held = tuple[int, int, int, tuple[str, ...]]

NEVER = 1e12  # an instant that does not come: only a settle can open such a gate


@dataclass(slots=True)
class Queue:
    """A queue's row. `count` is by state number, for the five states that are counted."""

    id: int
    name: str
    is_paused: bool
    had_jobs: bool
    count: list[int]
    drain: DrainRate
    stored: tuple[int, ...]  # had_jobs and the counts, as they are in the file
    left: int = 0  # jobs that reached their end in this transaction

    def bounded(self) -> int:
        """How many jobs its bound counts."""
        return self.count[READY] + self.count[SCHEDULED]

    def counted(self) -> tuple[int, ...]:
        count = self.count
        return (self.had_jobs, count[READY], count[SCHEDULED], count[WAITING], count[RUNNING], count[DEAD])


@dataclass(slots=True)
class Effects:
    """What follows once the transaction is committed."""

    work: set[int] = field(default_factory=set)  # queues with something new to claim or to wait for
    finals: list[str] = field(default_factory=list)  # jobs that ended
    held: dict[str, Held] = field(default_factory=dict)  # claims that were made
    ended: list[str] = field(default_factory=list)  # claims that were settled
    is_upkeep: bool = False  # a moment to give space back


class Tx:
    """A write transaction at the instant `now`."""

    __slots__ = (
        "_ended",
        "_gates",
        "_gates_changed",
        "_pending",
        "_queues",
        "connection",
        "effects",
        "execute",
        "held",
        "now",
    )

    def __init__(self, connection: sqlite3.Connection, now: float, held: dict[str, Held]) -> None:
        self.connection = connection
        self.execute = connection.execute
        self.now = now
        self.held = held  # of transactions before this one
        self.effects = Effects()
        self._queues: dict[int | str, Queue] = {}  # by id and by name
        self._gates: dict[str, Gate] = {}
        self._gates_changed: set[str] = set()
        self._ended: dict[int, int] = {}  # token → claims that ended
        self._pending: dict[tuple[int, str], list[int]] = {}  # (queue, gate) → [before, now]

    # ---- queues ----

    def queue(self, key: int | str) -> Queue | None:
        """By id or by name."""
        queue = self._queues.get(key)
        if queue is None:
            column = "name" if isinstance(key, str) else "id"
            row = self.execute(
                "SELECT id, name, is_paused, had_jobs, ready, scheduled, waiting, running, dead, drain_per_s, drain_at"
                f" FROM queue WHERE {column} = ?",
                (key,),
            ).fetchone()
            if row is None:
                return None
            count = [0] * 8
            count[READY], count[SCHEDULED], count[WAITING], count[RUNNING], count[DEAD] = row[4:9]
            queue = Queue(row[0], row[1], bool(row[2]), bool(row[3]), count, DrainRate(row[9], row[10]), row[3:9])
            self._queues[queue.id] = self._queues[queue.name] = queue
        return queue

    def queue_of(self, number: int) -> Queue:
        """By the id that a job's row names."""
        queue = self.queue(number)
        assert queue is not None
        return queue

    def queue_named(self, name: str) -> Queue:
        """By name; made if there is none."""
        queue = self.queue(name)
        if queue is None:
            self.execute("INSERT INTO queue (name) VALUES (?)", (name,))
            queue = self.queue(name)
            assert queue is not None
        return queue

    # ---- gates ----

    def gate(self, name: str) -> Gate:
        """The record of a gate; one of which nothing is kept admits all."""
        gate = self._gates.get(name)
        if gate is None:
            row = self.execute(f"{GATE_ROWS} WHERE name = ?", (name,)).fetchone()
            gate = self._gates[name] = Gate(name) if row is None else gate_of(row)
        return gate

    def parent(self, name: str) -> Gate | None:
        """The record of a keyed gate's family."""
        family = gating.family(name)
        return None if family == name else self.gate(family)

    def put_gate(self, gate: Gate) -> None:
        self._gates[gate.name] = gate
        self._gates_changed.add(gate.name)

    def forget_gates(self) -> None:
        """Write what changed, and read gates anew from now on."""
        self._flush_gates()
        self._gates.clear()

    def stir(self, name: str) -> None:
        """The gate may have opened: the next claims from the queues with lanes parked at it look."""
        self._stir(
            self.execute("SELECT queue, gate, wake_at FROM queue_gate WHERE gate = ? AND wake_at IS NOT NULL", (name,))
        )

    def stir_family(self, name: str) -> None:
        """As `stir`, for all gates that are keyed by this family: maybe tens of thousands, so in one statement."""
        keyed = (name + "/", name + "0")  # "0" is the character after "/"
        found = self.execute(
            "SELECT DISTINCT queue FROM queue_gate WHERE gate >= ? AND gate < ? AND wake_at IS NOT NULL", keyed
        )
        self.effects.work.update(queue for (queue,) in found.fetchall())
        self.execute(
            "UPDATE queue_gate SET wake_at = ?1 WHERE gate >= ?2 AND gate < ?3 AND wake_at > ?1", (self.now, *keyed)
        )

    def _stir(self, rows: Iterable[tuple[int, str, float]]) -> None:
        for queue, gate, wake_at in list(rows):
            if wake_at > self.now:
                self.set_wake(queue, gate, self.now)
            self.effects.work.add(queue)

    def set_wake(self, queue: int, gate: str, at: float | None) -> None:
        """When lanes of `queue` that are parked at `gate` may go on; None once none is."""
        self.execute(
            "INSERT INTO queue_gate (queue, gate, wake_at) VALUES (?, ?, ?)"
            " ON CONFLICT (queue, gate) DO UPDATE SET wake_at = excluded.wake_at",
            (queue, gate, at),
        )

    def pending(self, queue: int, gate: str) -> int:
        """Ready and scheduled jobs of `queue` with this gate."""
        return self._pending_of(queue, gate)[1]

    def add_pending(self, queue: int, gate: str, step: int) -> None:
        self._pending_of(queue, gate)[1] += step

    def _pending_of(self, queue: int, gate: str) -> list[int]:
        found = self._pending.get((queue, gate))
        if found is None:
            row = self.execute("SELECT pending FROM queue_gate WHERE queue = ? AND gate = ?", (queue, gate)).fetchone()
            count = 0 if row is None else row[0]
            found = self._pending[queue, gate] = [count, count]
        return found

    # ---- the end ----

    def next_token(self) -> int:
        (token,) = self.execute("UPDATE meta SET value = value + 1 WHERE name = 'token' RETURNING value").fetchone()
        return int(token)

    def end_claims(self, token: int, count: int) -> None:
        """`count` of the jobs that were claimed with `token` run no more."""
        self._ended[token] = self._ended.get(token, 0) + count

    def flush(self) -> None:
        """Write what was changed in here. Once, before the commit."""
        for token, ended in self._ended.items():
            if not self.execute("DELETE FROM claim WHERE token = ? AND open <= ?", (token, ended)).rowcount:
                self.execute("UPDATE claim SET open = open - ? WHERE token = ?", (ended, token))
        for key, queue in self._queues.items():
            if isinstance(key, int):
                self._flush_queue(queue)
        self._flush_gates()
        for (number, gate), (before, now) in self._pending.items():
            if before != now:
                self._flush_pending(number, gate, now)

    def _flush_queue(self, queue: Queue) -> None:
        if queue.left:
            queue.drain.add(queue.left, now=self.now)
        counted = queue.counted()
        if queue.left or counted != queue.stored:
            self.execute(
                "UPDATE queue SET had_jobs = ?, ready = ?, scheduled = ?, waiting = ?, running = ?, dead = ?,"
                " drain_per_s = ?, drain_at = ? WHERE id = ?",
                (*counted, queue.drain.per_s, queue.drain.at, queue.id),
            )

    def _flush_gates(self) -> None:
        for name in self._gates_changed:
            self.execute(f"INSERT OR REPLACE INTO gate VALUES (?{', ?' * 17})", row_of(self._gates[name]))
        self._gates_changed.clear()

    def _flush_pending(self, queue: int, gate: str, count: int) -> None:
        self.execute(
            "INSERT INTO queue_gate (queue, gate, pending) VALUES (?, ?, ?)"
            " ON CONFLICT (queue, gate) DO UPDATE SET pending = excluded.pending",
            (queue, gate, count),
        )


GATE_ROWS = (
    "SELECT name, generation, held_until, reason, era, ramp, good, bad, failed, word, max_live, max_live_override,"
    " rate_interval_s, rate_burst, rate_override_interval_s, rate_override_burst, live, tat FROM gate"
)


def gate_of(row: tuple[Any, ...]) -> Gate:
    """The record of a row of `GATE_ROWS`."""
    name, generation, held_until, reason, era, ramp, good, bad, failed, word, limit, override, *rates, live, tat = row
    interval_s, burst, interval2_s, burst2 = rates
    return Gate(
        name,
        generation,
        held_until,
        reason,
        era,
        ramp,
        good,
        bad,
        failed,
        word,
        limit,
        override,
        None if interval_s is None else Rate(interval_s, burst),
        None if interval2_s is None else Rate(interval2_s, burst2),
        live,
        tat,
    )


def row_of(gate: Gate) -> tuple[Any, ...]:
    """The record as a row."""
    return (
        gate.name,
        gate.generation,
        gate.held_until,
        gate.reason,
        gate.era,
        gate.ramp,
        gate.good,
        gate.bad,
        gate.failed,
        gate.word,
        gate.limit,
        gate.limit_override,
        *((None, None) if gate.rate is None else (gate.rate.interval_s, gate.rate.burst)),
        *((None, None) if gate.rate_override is None else (gate.rate_override.interval_s, gate.rate_override.burst)),
        gate.live,
        gate.tat,
    )
