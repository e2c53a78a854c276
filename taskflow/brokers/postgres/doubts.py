"""What the server's settings may cost: jobs that were accepted, when it or its machine crashes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncpg.connection import Connection

_COSTS = {
    "fsync": "a crash of its machine loses jobs, or the whole database",
    "full_page_writes": "a crash of its machine may leave pages half written",
    "synchronous_commit": "a crash of the server loses what it accepted in the second before",
}
# As they hold for this connection: a role or a database may have settings of its own. Everybody may read them.
_ASK = "SELECT name FROM unnest($1::text[]) a(name) WHERE current_setting(name) = 'off'"


async def doubts_about(connection: Connection, where: str) -> tuple[str, ...]:
    """A sentence each, with what to do."""
    off = await connection.fetch(_ASK, list(_COSTS))
    return tuple(f"PostgreSQL at {where} has {name} off: {_COSTS[name]}. Set {name} = on" for (name,) in off)
