"""One connection to the file: its settings, how it waits for the lock, and what its errors mean."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from pathlib import Path
from urllib.parse import quote

from taskflow.brokers.sqlite import schema
from taskflow.errors import BrokerError, BrokerUnavailable, ConfigError

OLDEST_SQLITE = (3, 35, 0)  # UPDATE … FROM came with 3.33, RETURNING with 3.35

# SQLite's own busy handler backs off to 100 ms and starves the second process for a second; this shares fairly.
LOCK_PAUSE_S = 0.0005
_RETRY_AFTER_S = {"locked": 1.0, "full": 5.0}  # a disk seldom gets space within a second
_BUSY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL})
_GONE = frozenset({sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH})
_UNREAD = frozenset(
    {sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_SHORT_READ, sqlite3.SQLITE_IOERR_DATA, sqlite3.SQLITE_IOERR_LOCK}
)
_BROKEN = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


_CHECK_S = 1.0  # between two looks whether the file is still there


class Handle:
    """The connection of one thread: made when it is needed, made anew after `drop`."""

    def __init__(self, path: str, *, synchronous: str, busy_s: float) -> None:
        self.path, self.busy_s = path, busy_s
        self._synchronous = synchronous
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._checked_at = 0.0

    def connected(self) -> sqlite3.Connection:
        """The connection. Raises `BrokerUnavailable` when the file was taken away.

        SQLite would write on, to a file without a name, and all of that would be lost.
        """
        now = time.monotonic()
        if self._connection is not None and now - self._checked_at > _CHECK_S:
            self._checked_at = now
            if _file_at(self.path) != self._file:
                self.drop()
                raise _unavailable(
                    "unreachable",
                    f"{self.path} was removed or replaced while taskflow had it open: put the file back, or accept "
                    "that its jobs are gone; the next call makes a new one",
                )
        if self._connection is None:
            self._connection = connect(self.path, synchronous=self._synchronous, busy_s=self.busy_s)
            self._file, self._checked_at = _file_at(self.path), now
        return self._connection

    def deadline(self) -> float:
        """Until when (monotonic) a lock is waited for from now on."""
        return time.monotonic() + self.busy_s

    def failed(self, error: sqlite3.Error) -> BrokerError:
        """Our error for SQLite's. A connection that met a full or broken disk is not trusted again."""
        if not is_busy(error) and not is_own_fault(error):
            self.drop()
        failure = translated(error, self.path)
        failure.__cause__ = error
        return failure

    def drop(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _file_at(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - the path is a string here
    except OSError:
        return None
    return found.st_dev, found.st_ino


def connect(path: str, *, synchronous: str, busy_s: float) -> sqlite3.Connection:
    """A connection to the file, which is made, or brought up to date, if need be."""
    deadline = time.monotonic() + busy_s
    while True:
        try:
            return _connect(path, synchronous, deadline)
        except sqlite3.Error as error:
            if not is_busy(error) or time.monotonic() >= deadline:
                raise
        time.sleep(LOCK_PAUSE_S)


def look(path: str, busy_s: float) -> int:
    """The version of the file's schema, 0 where there is none; nothing is made or changed, not even a log beside it."""
    file = Path(path).absolute()
    if not file.parent.is_dir():
        raise BrokerError(f"there is no folder {file.parent}; make it, or change TASKFLOW_BROKER__URL")
    if not os.access(file.parent, os.W_OK):  # SQLite keeps its journal beside the file
        raise BrokerError(f"the folder {file.parent} cannot be written to by this user")
    if not file.exists():
        return 0
    if not os.access(file, os.R_OK | os.W_OK):
        raise BrokerError(f"{file} cannot be read and written by this user")
    # While nobody has the file open there is no log beside it, and a reader would leave one there: unless told that
    # nothing changes.
    mode = "ro" if file.with_name(f"{file.name}-wal").exists() else "ro&immutable=1"
    try:
        with contextlib.closing(
            sqlite3.connect(f"file:{quote(str(file))}?mode={mode}", uri=True, timeout=busy_s)
        ) as db:
            return schema.version_of(db, str(file))
    except sqlite3.Error as error:
        raise BrokerError(f"{file}: {error}") from error


def _connect(path: str, synchronous: str, deadline: float) -> sqlite3.Connection:
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        raise ConfigError(f"this Python has SQLite {sqlite3.sqlite_version}; taskflow needs 3.35 or newer")
    connection = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False, cached_statements=512)
    try:
        _prepare(connection, path, synchronous, deadline)
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection, path: str, synchronous: str, deadline: float) -> None:
    connection.execute("BEGIN")
    version = schema.version_of(connection, path)
    connection.execute("COMMIT")
    if version < schema.VERSION:  # nothing is written to a file that is up to date: it may be locked
        _bring_up_to_date(connection, path, version, deadline)
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    connection.execute("PRAGMA temp_store = MEMORY")
    # Pages, 16 MiB of log: a hot page is written back once instead of four times, a checkpoint takes 50 ms.
    connection.execute("PRAGMA wal_autocheckpoint = 4000")
    connection.execute("PRAGMA journal_size_limit = 67108864")  # a log that one burst made long is cut again
    connection.execute("PRAGMA cache_size = -32768")  # KiB: the hot pages of a million jobs


def _bring_up_to_date(connection: sqlite3.Connection, path: str, version: int, deadline: float) -> None:
    if version == 0:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # heard only before the first table
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise ConfigError(f"{path} cannot have a write-ahead log (journal mode {mode}): use a local file system")
    begin(connection, deadline)
    schema.migrate(connection, schema.version_of(connection, path))
    commit(connection, deadline)


def begin(connection: sqlite3.Connection, deadline: float) -> None:
    """Take the write lock; `sqlite3.OperationalError` when another process still has it at `deadline` (monotonic)."""
    _when_free(connection, "BEGIN IMMEDIATE", deadline)


def commit(connection: sqlite3.Connection, deadline: float) -> None:
    """End the transaction; waits as `begin` does, should another process be in the way even now."""
    _when_free(connection, "COMMIT", deadline)


def _when_free(connection: sqlite3.Connection, statement: str, deadline: float) -> None:
    while True:
        try:
            connection.execute(statement)
        except sqlite3.OperationalError as error:
            if not is_busy(error) or time.monotonic() >= deadline:
                raise
        else:
            return
        time.sleep(LOCK_PAUSE_S)  # in the threads of the broker and of the beats: never on the loop


def roll_back(connection: sqlite3.Connection) -> None:
    """End the transaction, if SQLite has not ended it itself."""
    if connection.in_transaction:
        with contextlib.suppress(sqlite3.Error):  # the error that brought us here is the one to tell
            connection.execute("ROLLBACK")


def is_busy(error: sqlite3.Error) -> bool:
    return _code(error) in _BUSY


def is_full(error: sqlite3.Error) -> bool:
    """Whether the disk has no space, or takes no more of this file."""
    return _code(error) in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}


def is_own_fault(error: sqlite3.Error) -> bool:
    """Whether the statement is to blame, and not the file, the disk or another process."""
    code = _code(error)
    return code not in _BUSY | _GONE | _BROKEN | {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM}


def translated(error: sqlite3.Error, path: str) -> BrokerError:
    """Our error for one of SQLite's: what happened, where, what to do."""
    code = _code(error)
    if code in _BUSY:
        return _unavailable(
            "locked",
            f"{path} is locked by another process: nothing was changed. Retry; if it lasts, look for a process that "
            "holds a transaction open (an sqlite3 shell, a backup)",
        )
    if getattr(error, "sqlite_errorcode", 0) in _UNREAD:
        return _unavailable(
            "disk",
            f"the disk of {path} failed ({error}): nothing was changed. Look at the system's log; keep a copy of the "
            "file and of those beside it (-wal, -shm)",
        )
    if is_full(error):
        return _unavailable(
            "full",
            f"{path} cannot be written ({error}): nothing was changed. Free space on its disk, or raise the limit of "
            "its size; taskflow goes on by itself then",
        )
    if code in _GONE:
        return _unavailable(
            "unreachable",
            f"{path} cannot be opened for writing ({error}): its folder must exist, and this user must be allowed to "
            "write the file and the folder",
        )
    if code in _BROKEN:
        return BrokerError(
            f"{path} is damaged or no SQLite database ({error}): stop all workers, keep a copy, and restore a backup "
            f"or try `sqlite3 {path} .recover`"
        )
    return BrokerError(f"SQLite refused a statement on {path} ({error}): this is a bug of taskflow, please report it")


def _unavailable(kind: str, message: str) -> BrokerUnavailable:
    return BrokerUnavailable(message, kind=kind, retry_after_s=_RETRY_AFTER_S.get(kind, 5.0))


def _code(error: sqlite3.Error) -> int:
    """The primary result code; 0 for errors of Python's module itself."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
