"""Jobs into the queue: one insert for all jobs of a batch that differ only in id and payload."""

# ruff: noqa: S608 - values are always parameters; what is pasted into SQL are our own constants

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from taskflow.brokers.base import Accepted, Receipt
from taskflow.brokers.sqlite import lanes
from taskflow.brokers.sqlite.schema import READY, SCHEDULED
from taskflow.brokers.texts import gates_text
from taskflow.core.window import retry_after_s

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from taskflow.brokers.sqlite.tx import Queue, Tx
    from taskflow.core.job import Job

MOST_S = 1e10  # three centuries: a longer wait is as good, and stays a number that JSON and SQL can hold

_NEW = Accepted.NEW
_MANY = 8  # jobs that are alike, from which one statement over JSON beats one a job
_PIECE_BYTES = 64 * 1024 * 1024
_JOB = "INSERT INTO job (seq, id, queue, lane, state, priority, due_at, expires_at, batch, unique_key)"
_BODY = "INSERT INTO body (seq, payload, task, lane, gates, submitted_at, expires_s, expire_reason)"


def unique_key(task: str, key: str) -> str:
    """Task and key as one text. No task's name holds the separator."""
    return f"{task}\x1f{key}"


def submit(tx: Tx, jobs: Sequence[Job], bounds: Mapping[str, int]) -> list[Receipt]:
    """As `Broker.submit`. A queue that `bounds` does not name has no bound."""
    ids = json.dumps([job.id for job in jobs])
    kept = {row[0] for row in tx.execute("SELECT id FROM job WHERE id IN (SELECT value FROM json_each(?))", (ids,))}
    keys: dict[str, str] = {}  # of this batch
    refused: dict[str, int] = {}
    receipts: list[Receipt] = []
    alike: dict[tuple[object, ...], list[tuple[int, Job]]] = {}
    for name in {job.batch for job in jobs} - {""}:
        tx.execute("UPDATE batch SET named_at = ? WHERE name = ?", (tx.now, name))
    (last,) = tx.execute("SELECT max(seq) FROM job").fetchone()
    seq = last or 0
    for job in jobs:
        if job.id in kept:
            receipts.append(Receipt(job.id, Accepted.SAME_ID))
            continue
        if job.key is not None and (holder := _holder(tx, unique_key(job.task, job.key), keys)) is not None:
            receipts.append(Receipt(holder, Accepted.SAME_KEY))
            continue
        queue = tx.queue_named(job.queue)
        bound = bounds.get(job.queue)
        if bound is not None and (job.gates or queue.bounded() >= bound):
            refusal = _refusal(tx, job, queue, bound, refused)
            if refusal is not None:
                receipts.append(refusal)
                continue
        kept.add(job.id)
        if job.key is not None:
            keys[unique_key(job.task, job.key)] = job.id
        queue.count[SCHEDULED if job.delay_s > 0 else READY] += 1
        for name in job.gates:
            tx.add_pending(queue.id, name, 1)
        seq += 1
        alike.setdefault((job.task, job.queue, *job[4:]), []).append((seq, job))
        receipts.append(Receipt(job.id, _NEW))
    _insert(tx, alike.values())
    return receipts


def _holder(tx: Tx, key: str, keys: Mapping[str, str]) -> str | None:
    """The job that has this key and is not final."""
    if key in keys:
        return keys[key]
    row = tx.execute(
        "SELECT id FROM job WHERE unique_key = ? AND unique_key IS NOT NULL AND state < 4", (key,)
    ).fetchone()
    return None if row is None else row[0]


def _refusal(tx: Tx, job: Job, queue: Queue, bound: int, refused: dict[str, int]) -> Receipt | None:
    """Why the queue, or half of it for a gate, has no place for `job`, and when it should have."""
    accepted, line, over = Accepted.QUEUE_FULL, job.queue, queue.bounded() - bound
    if over < 0:
        half = max(1, bound // 2)
        for name in job.gates:
            accepted, line, over = Accepted.GATE_FULL, name, tx.pending(queue.id, name) - half
            if over >= 0:
                break
        else:
            return None
    ahead = refused[line] = refused.get(line, 0) + 1  # in this batch: they will come back too
    return Receipt(job.id, accepted, retry_after_s(over + ahead, drain_per_s=queue.drain.read(now=tx.now)))


def _insert(tx: Tx, batch: Iterable[list[tuple[int, Job]]]) -> None:
    """Store lists of jobs that differ only in id and payload."""
    few_jobs: list[tuple[object, ...]] = []
    few_bodies: list[tuple[object, ...]] = []
    for same in pieces(batch):
        job = same[0][1]
        hot, cold = _alike(tx, job)
        if len(same) < _MANY:
            few_jobs += [(seq, job.id, *hot) for seq, job in same]
            few_bodies += [(seq, job.payload, *cold) for seq, job in same]
            continue
        ids = json.dumps({seq: job.id for seq, job in same})
        tx.execute(f"{_JOB} SELECT CAST(key AS INTEGER), value, ?, ?, ?, ?, ?, ?, ?, ? FROM json_each(?)", (*hot, ids))
        slices, blob = packed((seq, job.payload) for seq, job in same)
        tx.execute(
            f"{_BODY} SELECT CAST(key AS INTEGER), {SLICE}, ?, ?, ?, ?, ?, ? FROM json_each(?)",
            (blob, *cold, slices),
        )
    if few_jobs:
        tx.connection.executemany(f"{_JOB} VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", few_jobs)
        tx.connection.executemany(f"{_BODY} VALUES (?, ?, ?, ?, ?, ?, ?, ?)", few_bodies)


def pieces(batch: Iterable[list[tuple[int, Job]]]) -> Iterator[list[tuple[int, Job]]]:
    """Lists whose payloads fit into one parameter: SQLite's longest value is a gigabyte."""
    for same in batch:
        piece: list[tuple[int, Job]] = []
        size = 0
        for one in same:
            piece.append(one)
            size += len(one[1].payload)
            if size > _PIECE_BYTES:
                yield piece
                piece, size = [], 0
        if piece:
            yield piece


def _alike(tx: Tx, job: Job) -> tuple[tuple[object, ...], tuple[object, ...]]:
    """The columns, of `job` and of `body`, that jobs like this one share."""
    queue = tx.queue_named(job.queue)
    queue.had_jobs = True
    gates = gates_text(job.gates)
    expires_s = min(job.expires_s, MOST_S)
    if job.delay_s > 0:
        state, lane, due_at = SCHEDULED, 0, tx.now + min(job.delay_s, MOST_S)
        tx.effects.work.add(queue.id)  # it may be due before all others
    else:
        name = lanes.LaneName(queue.id, job.lane, gates, lanes.kind_of(gates, is_suspect=False))
        state, lane, due_at = READY, lanes.add_ready(tx, name, job.priority), tx.now
    batch = _batch(tx, job.batch) if job.batch else 0
    key = None if job.key is None else unique_key(job.task, job.key)
    return (
        (queue.id, lane, state, job.priority, due_at, due_at + expires_s, batch, key),
        (job.task, job.lane, gates, tx.now, expires_s, job.expire_reason),
    )


def _batch(tx: Tx, name: str) -> int:
    """The batch of this name. A job that joins it makes it unfinished."""
    (number,) = tx.execute(
        "INSERT INTO batch (name, is_finished, named_at) VALUES (?, 0, ?)"
        " ON CONFLICT (name) DO UPDATE SET is_finished = 0 RETURNING id",
        (name, tx.now),
    ).fetchone()
    return int(number)


# In SQL, one of the values that `packed` packed. Of no bytes SQLite makes NULL.
SLICE = "coalesce(substr(?, (value >> 32) + 1, value & 4294967295), x'')"


def packed(values: Iterable[tuple[int, bytes]]) -> tuple[str, bytes]:
    """Bytes by row number, as two parameters of one statement: {row: place << 32 | length} in JSON, and all bytes.

    JSON holds no bytes, and one statement for a hundred rows costs a third of a hundred statements.
    """
    slices: dict[int, int] = {}
    parts: list[bytes] = []
    place = 0
    for number, value in values:
        slices[number] = place << 32 | len(value)
        parts.append(value)
        place += len(value)
    return json.dumps(slices), b"".join(parts)
