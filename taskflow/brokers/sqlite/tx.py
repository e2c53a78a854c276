"""One write transaction: what it has read of queues and gates, what it must write before the commit, what follows it.

Queues and gates are read once, changed in here, and written once by `flush`, however many verbs share the commit.
"""

# ruff: noqa: S608 - values are always parameters; what is pasted into SQL are our own constants

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from taskflow.brokers.sqlite.schema import DEAD, READY, RUNNING, SCHEDULED, WAITING
from taskflow.core import gate as gating
from taskflow.core.gate import Gate
from taskflow.core.window import DrainRate

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable

# A claim of this broker object, remembered so that settling it reads nothing: (token, seq, queue, gates).
Held = tuple[int, int, int, tuple[str, ...]]

STIRS = 1_000  # gates that one claim stirs once their family has changed
_STIR_KEYS = -1.0  # instead of an instant: before all of them
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

    def add_hints(self, others: Effects) -> None:
        """Tell those, too, who wait for what came of another transaction."""
        self.work |= others.work
        self.finals += others.finals


class Tx:
    """A write transaction at the instant `now`."""

    __slots__ = (
        "_ended",
        "_gates",
        "_gates_changed",
        "_pending_steps",
        "_pending_stored",
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
        self._pending_steps: dict[tuple[int, str], int] = {}  # (queue, gate) → more of its jobs than are stored
        self._pending_stored: dict[tuple[int, str], int] = {}

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
            gate = self._gates[name] = Gate(name) if row is None else gating.from_row(row)
        return gate

    def read_gates(self, names: Iterable[str]) -> None:
        """Get the records of these and of their families at once: they are about to be asked for."""
        known = self._gates
        new = {name for name in names if name not in known}
        new.update([family for name in new if (family := gating.family(name)) not in known])
        if len(new) > 1:
            asked = json.dumps(list(new))
            found = self.execute(f"{GATE_ROWS} WHERE name IN (SELECT value FROM json_each(?))", (asked,))
            known.update({row[0]: gating.from_row(row) for row in found})
            known.update({name: Gate(name) for name in new if name not in known})

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
        """As `stir`, for all gates that are keyed by this family: maybe tens of thousands, so the next claims do it.

        Until `stir_keyed` has done it, the row of an empty key, which no gate has, stands for "stir all keys".
        """
        asked = self.execute(
            "INSERT INTO queue_gate (queue, gate, wake_at) SELECT id, ?1, ?2 FROM queue WHERE EXISTS (SELECT 1 FROM"
            " queue_gate WHERE queue = queue.id AND gate > ?1 AND gate < ?3 AND wake_at IS NOT NULL)"
            " ON CONFLICT (queue, gate) DO UPDATE SET wake_at = excluded.wake_at RETURNING queue",
            (name + "/", _STIR_KEYS, name + "0"),  # "0" is the character after "/"
        )
        self.effects.work.update([queue for (queue,) in asked.fetchall()])

    def stir_keyed(self, queue: int) -> None:
        """Go on with what `stir_family` began, for some of the gates."""
        asked = self.execute("SELECT gate FROM queue_gate WHERE queue = ? AND wake_at = ?", (queue, _STIR_KEYS))
        for (empty_key,) in asked.fetchall():
            stirred = self.execute(
                "UPDATE queue_gate SET wake_at = ?1 WHERE queue = ?2 AND gate IN (SELECT gate FROM queue_gate"
                " WHERE queue = ?2 AND gate > ?3 AND gate < ?4 AND wake_at > ?1 LIMIT ?5)",
                (self.now, queue, empty_key, empty_key[:-1] + "0", STIRS),
            )
            if stirred.rowcount < STIRS:
                self.set_wakes([(queue, empty_key, None)])

    def _stir(self, rows: Iterable[tuple[int, str, float]]) -> None:
        found = list(rows)
        self.set_wakes([(queue, gate, self.now) for queue, gate, wake_at in found if wake_at > self.now])
        self.effects.work.update([queue for queue, _, _ in found])

    def set_wakes(self, wakes: list[tuple[int, str, float | None]]) -> None:
        """When lanes of a queue that are parked at a gate may go on; None once none is."""
        if wakes:
            self.connection.executemany(
                "INSERT INTO queue_gate (queue, gate, wake_at) VALUES (?, ?, ?)"
                " ON CONFLICT (queue, gate) DO UPDATE SET wake_at = excluded.wake_at",
                wakes,
            )

    def wake_no_later(self, wakes: list[tuple[int, str, float]]) -> None:
        """As `set_wakes`, for gates that may have an earlier instant already."""
        self.connection.executemany(
            "INSERT INTO queue_gate (queue, gate, wake_at) VALUES (?, ?, ?) ON CONFLICT (queue, gate) DO UPDATE"
            " SET wake_at = min(excluded.wake_at, coalesce(wake_at, excluded.wake_at))",
            wakes,
        )

    def pending(self, queue: int, gate: str) -> int:
        """Ready and scheduled jobs of `queue` with this gate."""
        stored = self._pending_stored.get((queue, gate))
        if stored is None:
            row = self.execute("SELECT pending FROM queue_gate WHERE queue = ? AND gate = ?", (queue, gate)).fetchone()
            stored = self._pending_stored[queue, gate] = 0 if row is None else row[0]
        return stored + self._pending_steps.get((queue, gate), 0)

    def add_pending(self, queue: int, gate: str, step: int) -> None:
        self._pending_steps[queue, gate] = self._pending_steps.get((queue, gate), 0) + step

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
        self._flush_pending()

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
        if self._gates_changed:
            self.connection.executemany(
                f"INSERT OR REPLACE INTO gate VALUES (?{', ?' * 17})",
                [gating.as_row(self._gates[name]) for name in self._gates_changed],
            )
            self._gates_changed.clear()

    def _flush_pending(self) -> None:
        steps = [(queue, gate, step) for (queue, gate), step in self._pending_steps.items() if step]
        if steps:
            self.connection.executemany(
                "INSERT INTO queue_gate (queue, gate, pending) VALUES (?, ?, ?)"
                " ON CONFLICT (queue, gate) DO UPDATE SET pending = pending + excluded.pending",
                steps,
            )


GATE_ROWS = (
    "SELECT name, generation, held_until, reason, era, ramp, good, bad, failed, word, max_live, max_live_override,"
    " rate_interval_s, rate_burst, rate_override_interval_s, rate_override_burst, live, tat FROM gate"
)
