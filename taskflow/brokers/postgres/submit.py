"""Jobs into the queue: a batch is a handful of arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskflow.brokers import texts
from taskflow.brokers.base import Accepted, Receipt
from taskflow.core.window import retry_after_s

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from taskflow.brokers.postgres.borrowed import Borrowed
    from taskflow.brokers.postgres.connection import Pool
    from taskflow.core.job import Job

MOST_S = 1e10  # three centuries: a longer wait is as good, and stays a number that SQL can add
MOST = 2**63 - 1  # that a whole number can be in SQL: no limit is reached there
_REFUSED = (
    Accepted.NEW,
    Accepted.SAME_ID,
    Accepted.SAME_KEY,
    Accepted.QUEUE_FULL,
    Accepted.GATE_FULL,
    Accepted.KEY_HELD,
)
_HELD = _REFUSED.index(Accepted.KEY_HELD)
_SUBMIT = "SELECT * FROM ~.submit_v1($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)"
_new = tuple.__new__  # the constructor of a NamedTuple is one more call
_NEW = Accepted.NEW


def storable(text: str) -> str:
    """Text that PostgreSQL can hold: no half of a surrogate pair, and no NUL."""
    return texts.storable(text.replace("\0", "\\x00"))


async def submit(
    pool: Pool | Borrowed, jobs: Sequence[Job], bounds: Mapping[str, int], fixed_at: float | None, *, is_borrowed: bool
) -> list[Receipt]:
    """As `Broker.submit`."""
    ids, tasks, queues, payloads, priorities, lanes, gates, keys, delays_s, expires_s, reasons, batches = zip(
        *jobs, strict=True
    )
    refused = await pool.fetch(
        _SUBMIT,
        ids,
        tasks,
        queues,
        payloads,
        priorities,
        [storable(lane) if lane else "" for lane in lanes],
        [texts.gates_text(names) if names else "" for names in gates],
        [None if key is None else storable(key) for key in keys],
        [min(delay_s, MOST_S) for delay_s in delays_s],
        [min(expire_s, MOST_S) for expire_s in expires_s],
        reasons,
        batches,
        list(bounds),
        [min(bound, MOST) for bound in bounds.values()],
        is_borrowed,
        fixed_at,
    )
    receipts: list[Receipt] = [_new(Receipt, (job_id, _NEW, 0.0)) for job_id in ids]
    held = {ids[place - 1] for place, refusal, *_ in refused if refusal == _HELD}
    for place, refusal, holder, over, drain_per_s in refused:
        accepted = _REFUSED[_HELD if holder in held else refusal]  # of its own batch, and not in either
        if accepted is Accepted.SAME_ID or accepted is Accepted.SAME_KEY:
            receipts[place - 1] = Receipt(holder or ids[place - 1], accepted)
        else:
            wait_s = retry_after_s(over, drain_per_s=drain_per_s or 0.0)
            receipts[place - 1] = Receipt(ids[place - 1], accepted, wait_s)
    return receipts
