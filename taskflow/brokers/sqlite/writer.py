"""The one writer of a broker object: a thread with its own connection, and group commit.

Everything that waits is one transaction: BEGIN IMMEDIATE once, every op, COMMIT once. If an op raises, all is rolled
back and each op of the group gets a transaction, and a fate, of its own.
"""

from __future__ import annotations

import os
import sqlite3
import time
from typing import TYPE_CHECKING

from taskflow.brokers.sqlite import connection as connecting
from taskflow.brokers.sqlite import upkeep
from taskflow.brokers.sqlite.settle import Settling, TooFast
from taskflow.brokers.sqlite.tx import Held, Tx
from taskflow.brokers.sqlite.wake import Bell
from taskflow.errors import BrokerUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from taskflow.brokers.sqlite.lines import Op
    from taskflow.brokers.sqlite.tx import Effects

_CHECK_S = 1.0  # between two looks whether the file is still there
HELD_KEPT = 200_000  # claims remembered; beyond, settling them reads their rows


class Writer:
    """Serves groups of ops whose `call` takes a `Tx`. All of it runs in the writer's thread."""

    def __init__(
        self,
        path: str,
        *,
        synchronous: str,
        busy_s: float,
        wall: Callable[[], float],
        committed: Callable[[Effects], None],
    ) -> None:
        self.bell = Bell()
        self._path, self._synchronous, self._busy_s, self._wall = path, synchronous, busy_s, wall
        self._committed = committed
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._checked_at = 0.0
        self._held: dict[str, Held] = {}

    def serve(self, ops: list[Op]) -> None:
        """Give each op its answer or its error."""
        try:
            self._commit_with_care(ops)
        except sqlite3.Error as error:
            if connecting.is_own_fault(error) and len(ops) > 1:
                self._serve_apart(ops)
                return
            if not connecting.is_busy(error):
                self.drop()  # a connection that met a full or broken disk is not trusted again
            for op in ops:
                op.error = connecting.translated(error, self._path)
                op.error.__cause__ = error
        except Exception as error:  # noqa: BLE001 - an op's own fault, raised to its caller
            if len(ops) > 1:
                self._serve_apart(ops)
            else:
                ops[0].error = error

    def _commit_with_care(self, ops: list[Op]) -> None:
        try:
            self._commit(ops)
        except TooFast:
            for op in ops:
                if isinstance(op.call, Settling):
                    op.call.is_careful = True
            self._commit(ops)
        except sqlite3.Error as error:
            if not connecting.is_full(error):
                raise
            # Most commits need no new page in the file, only room in the log: make some, and try once more.
            self.drop()
            self._connected().execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            self._commit(ops)

    def _serve_apart(self, ops: list[Op]) -> None:
        for op in ops:
            self.serve([op])

    def _commit(self, ops: list[Op]) -> None:
        deadline = time.monotonic() + self._busy_s
        connection = self._connected()
        try:
            connecting.begin(connection, deadline)
            tx = Tx(connection, self._wall(), self._held)
            for op in ops:
                op.answer = op.call(tx)
            tx.flush()
            listeners = self.bell.listeners(connection, tx.effects)
            connecting.commit(connection, deadline)
        finally:
            connecting.roll_back(connection)
        self._follow(tx.effects)
        self.bell.ring(listeners, tx.effects)
        if tx.effects.is_upkeep:
            upkeep.give_space_back(connection)

    def _connected(self) -> sqlite3.Connection:
        connection = self._connection
        if connection is not None and time.monotonic() - self._checked_at > _CHECK_S:
            self._checked_at = time.monotonic()
            if _identity(self._path) != self._identity:
                self.drop()
                raise BrokerUnavailable(
                    f"{self._path} was removed or replaced while taskflow had it open: put the file back, or accept "
                    "that its jobs are gone; a new file is made with the next call",
                    kind="unreachable",
                    retry_after_s=_CHECK_S,
                )
        if connection is None:
            connection = connecting.connect(self._path, synchronous=self._synchronous, busy_s=self._busy_s)
            self._connection, self._identity, self._checked_at = connection, _identity(self._path), time.monotonic()
        return connection

    def _follow(self, effects: Effects) -> None:
        for job_id in effects.ended:
            self._held.pop(job_id, None)
        if effects.held:
            if len(self._held) > HELD_KEPT:
                self._held.clear()
            self._held.update(effects.held)
        if effects.work or effects.finals:
            self._committed(effects)

    def end(self) -> None:
        """Nothing follows."""
        self.bell.close()
        self.drop()

    def drop(self) -> None:
        """Close the connection. The next group makes a new one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _identity(path: str) -> tuple[int, int] | None:
    """Which file stands under this path: SQLite would write on to one that was deleted, and all would be lost."""
    try:
        found = os.stat(path)  # noqa: PTH116 - the path is a string here
    except OSError:
        return None
    return found.st_dev, found.st_ino


class Reader:
    """Serves ops whose `call` takes a connection that only reads, each in a snapshot of its own."""

    def __init__(self, path: str, *, synchronous: str, busy_s: float) -> None:
        self._path, self._synchronous, self._busy_s = path, synchronous, busy_s
        self._connection: sqlite3.Connection | None = None

    def serve(self, ops: list[Op]) -> None:
        """Give each op its answer or its error."""
        for op in ops:
            try:
                op.answer = self._read(op)
            except sqlite3.Error as error:
                if not connecting.is_busy(error):
                    self.drop()
                op.error = connecting.translated(error, self._path)
                op.error.__cause__ = error
            except Exception as error:  # noqa: BLE001 - raised to its caller
                op.error = error

    def _read(self, op: Op) -> object:
        if self._connection is None:
            self._connection = connecting.connect(self._path, synchronous=self._synchronous, busy_s=self._busy_s)
            self._connection.execute("PRAGMA query_only = 1")
        connection = self._connection
        deadline = time.monotonic() + self._busy_s
        while True:
            try:
                connection.execute("BEGIN")
                return op.call(connection)
            except sqlite3.OperationalError as error:
                if not connecting.is_busy(error) or time.monotonic() >= deadline:
                    raise
            finally:
                connecting.roll_back(connection)
            time.sleep(connecting.LOCK_PAUSE_S)  # a crash is being cleaned up

    def drop(self) -> None:
        """Close the connection. The next op makes a new one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
