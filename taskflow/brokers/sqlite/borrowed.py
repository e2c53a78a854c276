"""A write transaction that is the caller's own: what is done here is there if and only if the caller commits.

It runs in the caller's thread, as an `sqlite3.Connection` must. Nothing is committed or rolled back but what a failed
verb left half done.
"""

from __future__ import annotations

import sqlite3
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from taskflow.brokers.sqlite import connection as connecting
from taskflow.brokers.sqlite import schema
from taskflow.brokers.sqlite.tx import Tx
from taskflow.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

_MARK = "taskflow"


@contextmanager
def borrowed(connection: object, path: str, now: float) -> Iterator[Tx]:
    """The caller's transaction on the file at `path`. All of what the block does is undone if it raises.

    Raises `ConfigError` for a connection that cannot be used, `BrokerUnavailable` when another process has the lock.
    """
    if not isinstance(connection, sqlite3.Connection):
        raise ConfigError(
            f"connection=: jobs live in the SQLite file {path}, so it takes an sqlite3.Connection to that file, "
            f"got a {type(connection).__name__}"
        )
    try:
        with _as_ours(connection), _in_transaction(connection, path, _file_of(connection)):
            tx = Tx(connection, now, {})
            yield tx
            tx.flush()
    except sqlite3.Error as error:
        failure = connecting.translated(error, path)
        if connecting.is_busy(error):
            failure.add_note(
                "A transaction that has read already never waits for the lock: start it by BEGIN IMMEDIATE"
            )
        raise failure from error


@contextmanager
def _as_ours(connection: sqlite3.Connection) -> Iterator[None]:
    """Rows as tuples and texts as strings, whatever the caller is used to."""
    factories = connection.row_factory, connection.text_factory
    connection.row_factory, connection.text_factory = None, str
    try:
        yield
    finally:
        connection.row_factory, connection.text_factory = factories


def _file_of(connection: sqlite3.Connection) -> str:
    """Empty for a database in memory."""
    try:
        found = connection.execute("PRAGMA database_list").fetchall()
    except sqlite3.ProgrammingError as error:  # it is closed, or another thread made it
        raise ConfigError(f"connection=: it cannot be used here: {error}") from error
    (file,) = [file for _, name, file in found if name == "main"]
    return str(file)


def _is_same(file: str, path: str) -> bool:
    try:
        return Path(file).samefile(path)
    except OSError:  # one of them was taken away
        return False


def _begins_by_itself(connection: sqlite3.Connection) -> bool:
    """Whether the sqlite3 module begins transactions, and `commit` ends them. `autocommit` came with Python 3.12."""
    return connection.isolation_level is not None and getattr(connection, "autocommit", None) is not True


@contextmanager
def _in_transaction(connection: sqlite3.Connection, path: str, file: str) -> Iterator[None]:
    if not file or not _is_same(file, path):
        raise ConfigError(
            f"connection=: it is to {file or 'a database in memory'}, and the jobs live in {path}: one transaction "
            "can only be in one file, so keep your tables in that one"
        )
    if not connection.in_transaction:
        if not _begins_by_itself(connection):
            raise ConfigError(
                "connection=: no transaction is open: say BEGIN IMMEDIATE before this call, and COMMIT after it and "
                "what belongs to it"
            )
        connection.execute("BEGIN IMMEDIATE")  # as the sqlite3 module does it before the first change
    connection.execute(f"SAVEPOINT {_MARK}")
    try:
        connection.execute("DELETE FROM meta WHERE 0")  # the lock first: what is read from here on stays true
        schema.check_current(connection, path)
        yield
    except BaseException:  # cancelled, too: the caller's transaction goes on without us
        if connection.in_transaction:  # a full disk ends it by itself
            connection.execute(f"ROLLBACK TO {_MARK}")
            connection.execute(f"RELEASE {_MARK}")
        raise
    connection.execute(f"RELEASE {_MARK}")
