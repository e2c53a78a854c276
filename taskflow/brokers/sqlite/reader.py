"""A reader: a thread with its own connection that never writes, so that it never waits for writers."""

from __future__ import annotations

import sqlite3
import time
from typing import TYPE_CHECKING

from taskflow.brokers.sqlite import connection as connecting

if TYPE_CHECKING:
    from taskflow.brokers.sqlite.lines import Op


class Reader:
    """Serves ops whose `call` takes a connection, each in a snapshot of its own."""

    def __init__(self, handle: connecting.Handle) -> None:
        self._handle = handle

    def serve(self, ops: list[Op]) -> None:
        """Give each op its answer or its error."""
        for op in ops:
            try:
                op.answer = self._read(op)
            except sqlite3.Error as error:
                op.error = self._handle.failed(error)
            except Exception as error:  # noqa: BLE001 - raised to its caller
                op.error = error

    def _read(self, op: Op) -> object:
        deadline = self._handle.deadline()
        connection = self._handle.connected()
        while True:
            try:
                connection.execute("BEGIN")
                return op.call(connection)
            except sqlite3.OperationalError as error:
                if not connecting.is_busy(error) or time.monotonic() >= deadline:
                    raise
            finally:
                connecting.roll_back(connection)
            time.sleep(connecting.LOCK_PAUSE_S)  # another process cleans up after a crash

    def end(self) -> None:
        """Nothing follows."""
        self._handle.drop()
