"""Changes of gates: read, computed by `core.gate`, stored if nobody was faster, else again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from taskflow.brokers.postgres.reading import GATE
from taskflow.brokers.postgres.submit import MOST, storable
from taskflow.core import gate as gating
from taskflow.core.gate import Declare, OverrideLimit, OverrideRate

if TYPE_CHECKING:
    from taskflow.brokers.postgres.connection import Pool
    from taskflow.core.gate import Gate, GateChange

_WHAT = {Declare: 1, OverrideLimit: 2, OverrideRate: 3}
_TYPES = (
    *("text", "bigint", "float8", "text", "bigint", "integer", "integer", "integer", "integer", "bigint"),
    *("bigint", "bigint", "float8", "bigint", "float8", "bigint", "bigint", "float8"),
)
_ROW = ", ".join(f"${number}::{kind}" for number, kind in enumerate(_TYPES, 5))
_PUT = f"SELECT ~.put_gate_v1($1, $2, $3, $4, ROW({_ROW})::~.gate, ${5 + len(_TYPES)})"
_GET = f"SELECT x.now, {GATE.replace('g.', '(x.g).')} FROM ~.gate_v1($1, $2) x"  # noqa: S608 - our own columns


async def change_gate(
    pool: Pool, name: str, change: GateChange, generation: int | None, fixed_at: float | None
) -> Gate:
    """As `Broker.gate`."""
    name = storable(name)
    while True:
        ((now, *row),) = await pool.fetch(_GET, name, fixed_at)
        old = gating.from_row(row)
        if generation is not None and generation != old.generation:
            return old
        row = [_storable(value) for value in gating.as_row(gating.change(old, change, now=now))]
        is_stored = await pool.value(
            _PUT, _WHAT.get(type(change), 0), old.generation, old.era, old.word, *row, fixed_at
        )
        if is_stored:
            return gating.from_row(row)


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        return storable(value)
    return min(value, MOST) if type(value) is int else value
