"""The tables, and the ordered list of changes that made them.

Hot and cold are apart: `job` is narrow and rewritten by every change of state, `body` is written once. A lane has a row
only while it has ready jobs; `job.lane` means something only while the job is ready.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskflow.core.job import JobState
from taskflow.errors import ConfigError

if TYPE_CHECKING:
    import sqlite3

STATES = tuple(JobState)  # a state is kept as its place in here: the order of its definition, final states last
STATE_NUMBER = {state: number for number, state in enumerate(STATES)}
SCHEDULED, WAITING, READY, RUNNING, SUCCEEDED, DEAD, CANCELLED, EXPIRED = range(8)

# What a lane's row says of where it stands.
OPEN, PARKED = 1, 2
# Kinds of lanes: bit 0 = has gates, bit 1 = of suspects.
GATED, SUSPECT = 1, 2

APPLICATION_ID = 0x7461736B  # "task": tells our file from another program's

_V1 = (
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID",
    "INSERT INTO meta VALUES ('token', 0), ('magic', random())",
    """CREATE TABLE queue (
        id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE,
        is_paused INTEGER NOT NULL DEFAULT 0, had_jobs INTEGER NOT NULL DEFAULT 0,
        ready INTEGER NOT NULL DEFAULT 0, scheduled INTEGER NOT NULL DEFAULT 0, waiting INTEGER NOT NULL DEFAULT 0,
        running INTEGER NOT NULL DEFAULT 0, dead INTEGER NOT NULL DEFAULT 0,
        drain_per_s REAL NOT NULL DEFAULT 0, drain_at REAL NOT NULL DEFAULT 0)""",
    # `gate` and `parked_at`: where a parked lane waits, and since when.
    """CREATE TABLE lane (
        id INTEGER PRIMARY KEY, queue INTEGER NOT NULL, key TEXT NOT NULL, gates TEXT NOT NULL, kind INTEGER NOT NULL,
        top INTEGER NOT NULL, stand INTEGER NOT NULL, gate TEXT, parked_at REAL)""",
    "CREATE UNIQUE INDEX lane_name ON lane (queue, key, gates, kind)",
    "CREATE INDEX lane_open ON lane (queue, kind, top, id) WHERE stand = 1",
    "CREATE INDEX lane_parked ON lane (queue, gate, top DESC, parked_at, id) WHERE stand = 2",
    """CREATE TABLE gate (
        name TEXT PRIMARY KEY, generation INTEGER NOT NULL, held_until REAL NOT NULL, reason TEXT NOT NULL,
        era INTEGER NOT NULL, ramp INTEGER, good INTEGER NOT NULL, bad INTEGER NOT NULL, failed INTEGER NOT NULL,
        word INTEGER NOT NULL, max_live INTEGER, max_live_override INTEGER, rate_interval_s REAL, rate_burst INTEGER,
        rate_override_interval_s REAL, rate_override_burst INTEGER, live INTEGER NOT NULL, tat REAL NOT NULL)
        WITHOUT ROWID""",
    # `pending`: ready + scheduled jobs of one queue with this gate. `wake_at`: when the lanes that are parked at it may
    # go on; NULL when none is.
    """CREATE TABLE queue_gate (
        queue INTEGER NOT NULL, gate TEXT NOT NULL, pending INTEGER NOT NULL DEFAULT 0, wake_at REAL,
        PRIMARY KEY (queue, gate)) WITHOUT ROWID""",
    "CREATE INDEX queue_gate_wake ON queue_gate (queue, wake_at) WHERE wake_at IS NOT NULL",
    "CREATE INDEX queue_gate_name ON queue_gate (gate)",
    "CREATE INDEX queue_gate_idle ON queue_gate (gate) WHERE pending = 0 AND wake_at IS NULL",
    # `settled`: the last token that settled. `ready_at`: NULL means due_at. `unique_key`: task and key.
    """CREATE TABLE job (
        seq INTEGER PRIMARY KEY, id TEXT NOT NULL, queue INTEGER NOT NULL, lane INTEGER NOT NULL,
        state INTEGER NOT NULL, priority INTEGER NOT NULL, due_at REAL NOT NULL, ready_at REAL,
        expires_at REAL NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, snoozes INTEGER NOT NULL DEFAULT 0,
        lost INTEGER NOT NULL DEFAULT 0, token INTEGER NOT NULL DEFAULT 0, settled INTEGER NOT NULL DEFAULT 0,
        missed INTEGER NOT NULL DEFAULT 0, started_at REAL, finished_at REAL,
        cancel_requested INTEGER NOT NULL DEFAULT 0, has_result INTEGER NOT NULL DEFAULT 0,
        batch INTEGER NOT NULL DEFAULT 0, unique_key TEXT, reason TEXT)""",
    "CREATE UNIQUE INDEX job_id ON job (id)",
    "CREATE INDEX job_ready ON job (lane, priority, due_at, seq) WHERE state = 2",
    "CREATE INDEX job_due ON job (queue, due_at, seq) WHERE state = 0",
    "CREATE INDEX job_expires ON job (expires_at) WHERE state < 3",
    "CREATE UNIQUE INDEX job_key ON job (unique_key) WHERE unique_key IS NOT NULL AND state < 4",
    "CREATE INDEX job_final ON job (state, batch, finished_at, seq) WHERE state > 3",
    "CREATE INDEX job_batch ON job (batch) WHERE batch > 0",
    # One answer to `claim`: its jobs, and how many of them have not ended. Who runs what is found through it: an index
    # over running jobs would be written twice for every job.
    """CREATE TABLE claim (
        token INTEGER PRIMARY KEY, worker INTEGER NOT NULL, jobs TEXT NOT NULL, open INTEGER NOT NULL)""",
    "CREATE INDEX claim_worker ON claim (worker)",
    """CREATE TABLE body (
        seq INTEGER PRIMARY KEY, task TEXT NOT NULL, lane TEXT NOT NULL, gates TEXT NOT NULL, payload BLOB NOT NULL,
        submitted_at REAL NOT NULL, expires_s REAL NOT NULL, expire_reason TEXT NOT NULL)""",
    "CREATE TABLE result (seq INTEGER PRIMARY KEY, data BLOB NOT NULL)",
    "CREATE TABLE note (seq INTEGER PRIMARY KEY, progress BLOB, checkpoint BLOB)",
    """CREATE TABLE error (
        seq INTEGER NOT NULL, n INTEGER NOT NULL, attempt INTEGER NOT NULL, at REAL NOT NULL, type TEXT NOT NULL,
        message TEXT NOT NULL, kind TEXT NOT NULL, stack TEXT NOT NULL, PRIMARY KEY (seq, n)) WITHOUT ROWID""",
    # `has_missed`: a beat did not name one of its claims, for the second time in a row.
    """CREATE TABLE worker (
        id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, expires_at REAL NOT NULL,
        has_missed INTEGER NOT NULL DEFAULT 0)""",
    # What the workers last said of themselves, and when.
    """CREATE TABLE presence (
        worker TEXT PRIMARY KEY, said_at REAL NOT NULL, lease_s REAL NOT NULL, forget_at REAL NOT NULL,
        said TEXT NOT NULL) WITHOUT ROWID""",
    # Row 0 stands for jobs without a batch. `named_at`: when a submit named it last. Results are pruned up to
    # (finished_at, seq) = (results_until, results_seq).
    """CREATE TABLE batch (
        id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, is_finished INTEGER NOT NULL, named_at REAL NOT NULL,
        results_until REAL NOT NULL DEFAULT 0, results_seq INTEGER NOT NULL DEFAULT 0)""",
    "INSERT INTO batch (id, name, is_finished, named_at) VALUES (0, '', 1, 0)",
    # Who wants a datagram after a commit: `kinds` bit 0 = new work, bit 1 = finals.
    "CREATE TABLE listener (port INTEGER PRIMARY KEY, kinds INTEGER NOT NULL, expires_at REAL NOT NULL)",
)

# Never change one that was released: add the next.
MIGRATIONS: tuple[tuple[str, ...], ...] = (_V1,)
VERSION = len(MIGRATIONS)


def version_of(connection: sqlite3.Connection, path: str) -> int:
    """The schema version of the file; `ConfigError` when it is not ours, or newer than this program.

    To be called inside a transaction: another process may be making the tables just now.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if tables and application != APPLICATION_ID:
        raise ConfigError(f"{path} is another program's database: name another file in TASKFLOW_BROKER__URL")
    if version > VERSION:
        raise ConfigError(
            f"{path} has schema version {version}, and this taskflow knows versions up to {VERSION}: "
            "upgrade taskflow here, or name another file in TASKFLOW_BROKER__URL"
        )
    return int(version)


def check_current(connection: sqlite3.Connection, path: str) -> None:
    """Raise `ConfigError` unless the file has the tables that this program works with."""
    if version_of(connection, path) != VERSION:
        raise ConfigError(
            f"{path} has an older schema than this taskflow's {VERSION}: open the flow first, it migrates"
        )


def migrate(connection: sqlite3.Connection, version: int) -> None:
    """Bring the file from `version` to `VERSION`, inside a write transaction of the caller's."""
    for statements in MIGRATIONS[version:]:
        for statement in statements:
            connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {VERSION}")
