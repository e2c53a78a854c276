"""Jobs to a worker. Whose turn it is, and where a line's claimed rows end, is remembered here: neither is written."""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from taskflow.brokers.base import PARKS, PROMOTE, QUOTA, WAKE, ClaimRequest
from taskflow.brokers.texts import gates_from
from taskflow.core.gate import Recovery
from taskflow.core.job import Claim

if TYPE_CHECKING:
    from collections.abc import Mapping

    from taskflow.brokers.postgres.connection import Pool

_LAG_S = 1.0  # a job that became due so long ago has been committed, but for what the full look finds
_LOOK_S = 1.0  # between two looks at whole lines,
_LOOK_SHARE = 20.0  # which take at most one part in so many of the time
_MARKS, _CURSORS = 64, 1_000
_CLAIM = "SELECT * FROM ~.claim_v1($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)"
_new = tuple.__new__  # a third of what `Claim(…)` costs, once for every job


class Turns:
    """What one broker object remembers of its claims.

    A transaction that is open for long keeps claimed rows in the index, and each claim would step over all of them. So
    a claim begins at the line's mark. A job may get below it (released, taken back, committed late): a look at the
    whole line finds it, every second, and whenever a claim finds less than it asked for.
    """

    def __init__(self) -> None:
        self.cursors: OrderedDict[tuple[str, int], int] = OrderedDict()
        self.marks: OrderedDict[int, tuple[float, int]] = OrderedDict()
        self._look_at = 0.0

    def forget_marks(self) -> None:
        self.marks.clear()

    def is_full_look(self) -> bool:
        return time.monotonic() >= self._look_at

    def looked(self, took_s: float) -> None:
        self._look_at = time.monotonic() + max(_LOOK_S, took_s * _LOOK_SHARE)

    def remember(self, rows: list[Any], *, is_short: bool) -> None:
        """The rows of one claim."""
        if rows and rows[0][1]:  # it began at no mark
            self.marks.clear()
        last = {row[2]: row for row in rows}
        for line, row in last.items():
            at, _, _, due_at, seq = row[:5]
            self.cursors[row[8], row[12]] = line
            mark = (due_at, seq) if due_at < at - _LAG_S else (at - _LAG_S, 0)
            if mark > self.marks.get(line, (0.0, 0)):
                self.marks[line] = mark
                self.marks.move_to_end(line)
        if is_short:
            self.marks.clear()
        while len(self.marks) > _MARKS:
            self.marks.popitem(last=False)
        while len(self.cursors) > _CURSORS:
            self.cursors.popitem(last=False)


async def claim(pool: Pool, request: ClaimRequest, turns: Turns, fixed_at: float | None) -> list[Claim]:
    """As `Broker.claim`."""
    is_full_look = turns.is_full_look()
    began = time.monotonic()
    marks: Mapping[int, tuple[float, int]] = {} if is_full_look else turns.marks
    rows = await pool.fetch(
        _CLAIM,
        request.worker,
        request.queues,
        request.limit,
        request.gated,
        request.suspects,
        request.lease_s,
        [queue for queue, _ in turns.cursors],
        [priority for _, priority in turns.cursors],
        list(turns.cursors.values()),
        list(marks),
        [due_at for due_at, _ in marks.values()],
        [seq for _, seq in marks.values()],
        QUOTA,
        WAKE,
        PROMOTE,
        PARKS,
        fixed_at,
    )
    if is_full_look:
        turns.looked(time.monotonic() - began)
    turns.remember(rows, is_short=len(rows) < request.limit)
    claims: list[Claim] = []
    for row in rows:
        (_, _, _, _, _, token, job_id, task, queue, payload, lane, gates, *rest, recoveries) = row
        names = gates_from(gates) if gates else ()
        eras = tuple(Recovery(*one) for one in json.loads(recoveries)) if recoveries else ()
        claims.append(_new(Claim, (job_id, token, task, queue, payload, lane, names, *rest, eras)))
    return claims
