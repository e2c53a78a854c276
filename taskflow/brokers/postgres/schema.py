"""The tables and functions, and the ordered list of changes that made them.

A namespace is a schema. Functions carry a version in their names, so that old and new workers run side by side.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from taskflow.core.job import JobState
from taskflow.errors import ConfigError

if TYPE_CHECKING:
    from asyncpg.connection import Connection

STATES = tuple(JobState)  # a state's number in SQL is its place in here, final states last
STATE_NUMBER = {state: number for number, state in enumerate(STATES)}

LEAST_SERVER = 13
ISOLATION = "read committed"  # of every statement: each sees what was committed before it began
_ENCODING = "UTF8"
_MOST_NAME_BYTES = 63  # PostgreSQL cuts longer names, and two namespaces would be one

_SQL = Path(__file__).parent / "sql"
_V1 = (
    "tables",
    "gates",
    "submit",
    "claim",
    "claim_park",
    "claim_verb",
    "settle",
    "people",
    "upkeep",
    "presence",
    "gate_verb",
)

# Never change one that was released: add the next.
MIGRATIONS: tuple[tuple[str, ...], ...] = (_V1,)
VERSION = len(MIGRATIONS)


def quoted(namespace: str) -> str:
    """The schema's name as an SQL identifier. Raises `ConfigError` for one that PostgreSQL cannot hold."""
    size = len(namespace.encode())
    if not 0 < size <= _MOST_NAME_BYTES or "\0" in namespace or namespace.startswith("pg_"):
        raise ConfigError(
            f"TASKFLOW_BROKER__NAMESPACE: {namespace!r} cannot be a PostgreSQL schema: use 1 to {_MOST_NAME_BYTES} "
            "bytes that do not begin with pg_"
        )
    return '"' + namespace.replace('"', '""') + '"'


async def version_of(connection: Connection, namespace: str) -> int:
    """The version of the tables in this schema, 0 where there are none.

    Raises `ConfigError` for a newer one, for tables that are not ours, and for a server that cannot keep jobs.
    """
    server = connection.get_server_version()
    if server.major < LEAST_SERVER:
        raise ConfigError(f"the server is PostgreSQL {server.major}; taskflow needs {LEAST_SERVER} or newer")
    found = await connection.fetchrow(
        "SELECT to_regclass($1) IS NOT NULL AS is_ours, EXISTS (SELECT FROM pg_catalog.pg_class c"
        " JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $2 AND c.relkind = 'r')"
        " AS is_used, current_setting('server_encoding') AS encoding,"
        " current_setting('default_transaction_isolation') AS isolation,"
        " format('ALTER ROLE %I IN DATABASE %I SET default_transaction_isolation = %L',"
        " session_user, current_database(), $3::text) AS remedy",
        f"{quoted(namespace)}.meta",
        namespace,
        ISOLATION,
    )
    if found["encoding"] != _ENCODING:  # an error's text that it cannot hold would never be stored
        raise ConfigError(
            f"the database has the encoding {found['encoding']}, and taskflow needs {_ENCODING}: make one with CREATE "
            f"DATABASE NAME ENCODING '{_ENCODING}' TEMPLATE template0, and name it in TASKFLOW_BROKER__URL"
        )
    if found["isolation"] != ISOLATION:  # a direct connection has it by itself
        raise ConfigError(
            f"default_transaction_isolation is {found['isolation']!r} here, and with it jobs get lost; a pooler keeps "
            f"taskflow from setting it. Say {found['remedy']}; then let the pooler connect again (PgBouncer: RECONNECT)"
        )
    if not found["is_ours"]:
        if found["is_used"]:
            raise ConfigError(
                f"the schema {namespace!r} has tables of another program: name another one in "
                "TASKFLOW_BROKER__NAMESPACE"
            )
        return 0
    version = int(
        await connection.fetchval(f"SELECT version FROM {quoted(namespace)}.meta")  # noqa: S608 - no parameter takes a name
    )
    if version > VERSION:
        raise ConfigError(
            f"the schema {namespace!r} has version {version}, and this taskflow knows versions up to {VERSION}: "
            "upgrade taskflow here, or name another schema in TASKFLOW_BROKER__NAMESPACE"
        )
    return version


async def migrate(connection: Connection, namespace: str) -> None:
    """Bring the schema up to date. Of several at once, one does it and the others wait for it."""
    if await version_of(connection, namespace) == VERSION:
        return
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 7461736))", f"taskflow:{namespace}")
        version = await version_of(connection, namespace)
        name = quoted(namespace)
        if version == 0 and not await connection.fetchval(
            "SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = $1)", namespace
        ):
            await connection.execute(f"CREATE SCHEMA {name}")
        # Kept by each function. Unless it is named, temporary tables come first: one of the caller's own, `job` or
        # `result`, would be taken for ours in his transaction.
        await connection.execute(f"SET LOCAL search_path = {name}, pg_temp")
        await connection.execute("SET LOCAL check_function_bodies = off")  # they name each other
        for files in MIGRATIONS[version:]:
            for file in files:
                await connection.execute((_SQL / f"{file}.sql").read_text())
        if version == 0:
            await connection.execute("INSERT INTO meta (version) VALUES ($1)", VERSION)
        else:
            await connection.execute("UPDATE meta SET version = $1", VERSION)
