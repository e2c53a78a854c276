"""The one writer of a broker object: a thread with its own connection, and group commit.

Everything that waits is one transaction: BEGIN IMMEDIATE once, every op, COMMIT once. If an op raises, all is rolled
back and each op of the group gets a transaction, and a fate, of its own.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

from taskflow.brokers.sqlite import connection as connecting
from taskflow.brokers.sqlite import upkeep
from taskflow.brokers.sqlite.settle import Settling, TooFast
from taskflow.brokers.sqlite.tx import Held, Tx
from taskflow.brokers.sqlite.wake import Bell

if TYPE_CHECKING:
    from collections.abc import Callable

    from taskflow.brokers.sqlite.lines import Op
    from taskflow.brokers.sqlite.tx import Effects

    Committed = tuple[Effects, list[tuple[int, int]]]  # what follows the commit, and who is to hear of it

HELD_KEPT = 200_000  # claims remembered; beyond, settling them reads their rows


class Writer:
    """Serves groups of ops whose `call` takes a `Tx`. All of it runs in the writer's thread."""

    def __init__(
        self, handle: connecting.Handle, *, wall: Callable[[], float], committed: Callable[[Effects], None]
    ) -> None:
        self.bell = Bell()
        self._handle = handle
        self._wall = wall
        self._committed = committed
        self._held: dict[str, Held] = {}

    def serve(self, ops: list[Op]) -> None:
        """Give each op its answer or its error."""
        try:
            effects, listeners = self._commit_with_care(ops)
        except sqlite3.Error as error:
            if connecting.is_own_fault(error) and len(ops) > 1:
                self._serve_apart(ops)
            else:
                for op in ops:
                    op.error = self._handle.failed(error)
        except Exception as error:  # noqa: BLE001 - an op's own fault, raised to its caller
            if len(ops) > 1:
                self._serve_apart(ops)
            else:
                ops[0].error = error
        else:
            self._follow(effects)
            self.bell.ring(listeners, effects)

    def _serve_apart(self, ops: list[Op]) -> None:
        for op in ops:
            self.serve([op])

    def _commit_with_care(self, ops: list[Op]) -> Committed:
        try:
            return self._commit(ops)
        except TooFast:
            for op in ops:
                if isinstance(op.call, Settling):
                    op.call.is_careful = True
        except sqlite3.Error as error:
            if not connecting.is_full(error):
                raise
            # Most commits need no new page in the file, only room in the log: make some, and try once more.
            self._handle.drop()
            self._handle.connected().execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        return self._commit(ops)

    def _commit(self, ops: list[Op]) -> Committed:
        deadline = self._handle.deadline()
        connection = self._handle.connected()
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
        return tx.effects, listeners

    def _follow(self, effects: Effects) -> None:
        for job_id in effects.ended:
            self._held.pop(job_id, None)
        if effects.held:
            if len(self._held) > HELD_KEPT:
                self._held.clear()
            self._held.update(effects.held)
        if effects.work or effects.finals:
            self._committed(effects)
        if effects.is_upkeep:
            upkeep.give_space_back(self._handle.connected())

    def end(self) -> None:
        """Nothing follows."""
        self.bell.close()
        self._handle.drop()
