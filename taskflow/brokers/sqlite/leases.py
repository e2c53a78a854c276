"""A worker's lease and its beats: the claims that it vouches for."""

# ruff: noqa: S608 - values are always parameters; what is pasted into SQL are our own constants

from __future__ import annotations

import json
import sqlite3
import threading
from typing import TYPE_CHECKING

from taskflow.brokers.base import FORGOTTEN, BeatReply
from taskflow.brokers.presence import presence_text
from taskflow.brokers.sqlite import connection as connecting
from taskflow.brokers.sqlite.tx import Tx

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from taskflow.brokers.base import Presence


def renew(tx: Tx, worker: str, lease_s: float) -> int:
    """The worker lives for another `lease_s`; returns its number."""
    (number,) = tx.execute(
        "INSERT INTO worker (name, expires_at) VALUES (?, ?)"
        " ON CONFLICT (name) DO UPDATE SET expires_at = excluded.expires_at RETURNING id",
        (worker, tx.now + lease_s),
    ).fetchone()
    return int(number)


def beat(tx: Tx, worker: str, tokens: Mapping[str, int], lease_s: float, presence: Presence | None) -> BeatReply:
    """As `Broker.beat`. Of claims only what changed is written: one that was missing, or is back."""
    number = renew(tx, worker, lease_s)
    if presence is not None:
        say(tx, worker, presence, lease_s)
    (answer,) = tx.execute(
        "SELECT json_group_array(json_array(j.seq, j.id, j.token, j.missed, j.cancel_requested)) FROM claim c"
        " CROSS JOIN json_each(c.jobs) s CROSS JOIN job j ON j.seq = s.value AND j.token = c.token AND j.state = 3"
        " WHERE c.worker = ?",
        (number,),
    ).fetchone()
    held: set[str] = set()
    missing: list[int] = []
    is_late = False
    back: list[int] = []
    cancel: list[str] = []
    for seq, job_id, token, missed, cancel_requested in json.loads(answer):
        if tokens.get(job_id) != token:
            missing.append(seq)
            is_late = is_late or missed > 0
            continue
        held.add(job_id)
        if missed:
            back.append(seq)
        if cancel_requested:
            cancel.append(job_id)
    for seqs, change in ((missing, "missed + 1"), (back, "0")):
        if seqs:
            tx.execute(
                f"UPDATE job SET missed = {change} WHERE seq IN (SELECT value FROM json_each(?))",
                (json.dumps(seqs),),
            )
    if is_late:
        tx.execute("UPDATE worker SET has_missed = 1 WHERE id = ?", (number,))
    return BeatReply(tuple(job_id for job_id in tokens if job_id not in held), tuple(cancel))


def say(tx: Tx, worker: str, presence: Presence, lease_s: float) -> None:
    """What it says of itself takes the place of what it said before."""
    tx.execute(
        "INSERT OR REPLACE INTO presence (worker, said_at, lease_s, forget_at, said) VALUES (?, ?, ?, ?, ?)",
        (worker, tx.now, lease_s, tx.now + FORGOTTEN * lease_s, presence_text(presence)),
    )


def leave(tx: Tx, worker: str) -> None:
    """As `Broker.leave`: the lease ends now, the next `reclaim` takes what is left."""
    tx.execute("DELETE FROM presence WHERE worker = ?", (worker,))
    tx.execute("UPDATE worker SET expires_at = -1 WHERE name = ?", (worker,))
    tx.execute(
        "DELETE FROM worker WHERE name = ? AND NOT EXISTS (SELECT 1 FROM claim WHERE worker = worker.id)",
        (worker,),
    )


class SqliteBeat:
    """Beats over a connection of its own, from a thread that no handler can block. See `SyncBeat`."""

    def __init__(self, handle: connecting.Handle, wall: Callable[[], float]) -> None:
        self._handle, self._wall = handle, wall
        self._most_busy_s = handle.busy_s
        self._lock = threading.Lock()

    def beat(
        self, worker: str, tokens: Mapping[str, int], lease_s: float, presence: Presence | None = None
    ) -> BeatReply:
        """As `Broker.beat`; waits no longer for the lock than a third of the lease, when the next beat is due."""
        with self._lock:
            self._handle.busy_s = min(self._most_busy_s, lease_s / 3)
            try:
                return self._beat(worker, tokens, lease_s, presence)
            except sqlite3.Error as error:
                raise self._handle.failed(error) from error

    def _beat(self, worker: str, tokens: Mapping[str, int], lease_s: float, presence: Presence | None) -> BeatReply:
        deadline = self._handle.deadline()
        connection = self._handle.connected()
        try:
            connecting.begin(connection, deadline)
            reply = beat(Tx(connection, self._wall(), {}), worker, tokens, lease_s, presence)
            connecting.commit(connection, deadline)
        finally:
            connecting.roll_back(connection)
        return reply

    def close(self) -> None:
        """Give the connection back. Idempotent."""
        with self._lock:
            self._handle.drop()
