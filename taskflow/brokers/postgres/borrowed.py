"""A transaction that is the caller's own: statements on a connection of asyncpg or psycopg instead of one of the pool.

Nothing is begun, committed, rolled back or repeated. What a statement tells by NOTIFY goes out with the commit.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import asyncpg

from taskflow.brokers.postgres import errors, schema
from taskflow.errors import BrokerError, BrokerUnavailable, ConfigError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_NOT_OURS = frozenset({"3F000", "42883", "42P01"})  # no such schema, function or table
_ABORTED = "25P02"


class Borrowed:
    """As `Pool`, for the verbs that run in the caller's transaction.

    Raises `ConfigError` for what is no connection to use, or has no transaction open.
    """

    def __init__(self, connection: Any, namespace: str, where: str) -> None:
        self._namespace, self._where = namespace, where
        self._name = schema.quoted(namespace)
        self._fetch = _fetch_of(connection)

    async def fetch(self, statement: str, *values: Any) -> list[Any]:
        """As `Pool.fetch`."""
        try:
            return list(await self._fetch(statement.replace("~", self._name), values))
        except Exception as error:
            failure = self._translated(error)
            if failure is error:
                raise
            raise failure from error

    async def value(self, statement: str, *values: Any) -> Any:
        """As `Pool.value`."""
        ((value,),) = await self.fetch(statement, *values)
        return value

    def _translated(self, error: Exception) -> Exception:
        state = getattr(error, "sqlstate", None)
        if state in _NOT_OURS:
            return ConfigError(
                f"connection=: its database has no schema {self._namespace!r} of this taskflow: it must be the one "
                f"that TASKFLOW_BROKER__URL names, at {self._where}"
            )
        if state == _ABORTED:
            return ConfigError("connection=: its transaction has failed already: roll it back")
        if state in errors.STRAY:
            return ConfigError(
                "connection=: a pooler in front of the database lost a prepared statement of this connection: make it "
                "with statement_cache_size=0 (asyncpg) or prepare_threshold=None (psycopg)"
            )
        if errors.is_translated(error):
            return errors.translated(error, self._where)
        psycopg = sys.modules.get("psycopg")
        if psycopg is None or not isinstance(error, psycopg.Error):
            return error
        said = f"PostgreSQL at {self._where} refused a statement in your transaction ({state} {error}): roll it back"
        return BrokerUnavailable(said) if isinstance(error, psycopg.OperationalError) else BrokerError(said)


def _fetch_of(connection: Any) -> Callable[[str, tuple[Any, ...]], Awaitable[list[Any]]]:
    """How this connection answers a statement with `$1`, `$2`, ..."""
    if isinstance(connection, asyncpg.Connection | asyncpg.pool.PoolConnectionProxy):
        try:
            is_in_transaction = connection.is_in_transaction()
        except asyncpg.InterfaceError as error:
            raise ConfigError("connection=: it has been given back to its pool already") from error
        if not is_in_transaction:
            raise _no_transaction("async with connection.transaction():")
        return lambda statement, values: connection.fetch(statement, *values)
    psycopg = sys.modules.get("psycopg")  # whoever has a connection of it has imported it
    if psycopg is None or not isinstance(connection, psycopg.AsyncConnection | psycopg.Connection):
        raise ConfigError(
            "connection=: jobs live in PostgreSQL, so it takes a connection of asyncpg or psycopg to that database, "
            f"got a {type(connection).__name__}"
        )
    if connection.autocommit and connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE:
        raise _no_transaction("with connection.transaction():")

    async def fetch(statement: str, values: tuple[Any, ...]) -> list[Any]:
        said = [_plain(value) for value in values]
        if isinstance(connection, psycopg.Connection):
            with psycopg.RawCursor(connection, row_factory=psycopg.rows.tuple_row) as cursor:
                return list(cursor.execute(statement, said).fetchall())
        async with psycopg.AsyncRawCursor(connection, row_factory=psycopg.rows.tuple_row) as cursor:
            await cursor.execute(statement, said)
            return list(await cursor.fetchall())

    return fetch


def _no_transaction(how: str) -> ConfigError:
    return ConfigError(f"connection=: no transaction is open: say `{how}` around this call and what belongs to it")


def _plain(value: Any) -> Any:
    """An array as psycopg knows it: a list, of one type. A tuple it takes for a row."""
    if not isinstance(value, list | tuple):
        return value
    has_floats = any(isinstance(one, float) for one in value)
    return [float(one) if has_floats and isinstance(one, int) else one for one in value]
