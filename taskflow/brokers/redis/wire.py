"""What goes over the wire, and what comes back: JSON for words and numbers, bytes in one piece behind it."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from typing import TYPE_CHECKING, Any, assert_never

from taskflow.brokers.base import (
    Accepted,
    Cancelled,
    ErrorInfo,
    Final,
    JobInfo,
    QueueCounts,
    Receipt,
    Reclaimed,
    Retried,
    Settled,
    SettleReply,
)
from taskflow.core import gate as gating
from taskflow.core.decision import Bury, Cancel, Complete, Decision, Expire, Release, Retry, Snooze
from taskflow.core.job import Claim, Job, JobState

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from taskflow.brokers.base import Note, Settlement
    from taskflow.core.outcome import ErrorRecord

STATES = (
    None,
    JobState.SCHEDULED,
    JobState.WAITING,
    JobState.READY,
    JobState.RUNNING,
    JobState.SUCCEEDED,
    JobState.DEAD,
    JobState.CANCELLED,
    JobState.EXPIRED,
)
NUMBERS = {state: number for number, state in enumerate(STATES) if state is not None}
ACCEPTED = (Accepted.NEW, Accepted.SAME_ID, Accepted.SAME_KEY, Accepted.QUEUE_FULL, Accepted.GATE_FULL)
SETTLED = {"A": Settled.APPLIED, "D": Settled.ALREADY, "S": Settled.STALE}
CANCELLED = {
    "C": Cancelled.CANCELLED,
    "R": Cancelled.REQUESTED,
    "F": Cancelled.FINAL,
    "M": Cancelled.MISSING,
}
RETRIED = {"R": Retried.READY, "N": Retried.NOT_DEAD, "K": Retried.KEY_TAKEN, "M": Retried.MISSING}
_LAST_S = 1e15  # what expires, or is due, later never is; and what JSON can tell
_REPLIES = {
    f"{letter}{number}": SettleReply(answer, STATES[number])
    for letter, answer in SETTLED.items()
    for number in range(len(STATES))
}
_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_HALVES = re.compile("[\ud800-\udfff]")


def text(value: Any) -> str:
    """Compact JSON. A half of a surrogate pair is spelt out: no UTF-8 can hold it, and the server's JSON refuses it."""
    made = _json(value)
    return made if made.isascii() else _HALVES.sub(lambda half: f"\\\\u{ord(half[0]):04x}", made)


# ---- jobs ----


def submission(jobs: Sequence[Job], bounds: Mapping[str, int]) -> tuple[str, str, str, bytes]:
    """The arguments of `submit`."""
    words: list[tuple[Any, ...]] = []
    bodies: list[bytes] = []
    lanes: dict[tuple[str, str, tuple[str, ...]], int] = {}
    for job in jobs:
        job_id, task, queue, payload, priority, lane, gates, key, delay_s, expires_s, why, batch = job
        number = lanes.setdefault((queue, lane, gates), len(lanes))
        expires_s = min(expires_s, _LAST_S)
        body = text((job_id, task, queue, lane, gates, expires_s, priority, why, key)).encode() + b"\n" + payload
        bodies.append(body)
        unique = False if key is None else text((task, key))
        words.append(
            (job_id, number, priority, min(delay_s, _LAST_S), expires_s, unique, batch or False, why, len(body))
        )
    named = {queue: bounds[queue] for queue, _, _ in lanes if queue in bounds}
    return text(words), text([text(lane) for lane in lanes]), text(named), b"".join(bodies)


def receipts(jobs: Sequence[Job], answer: bytes) -> list[Receipt]:
    made: list[Receipt] = []
    for job, said in zip(jobs, json.loads(answer), strict=True):
        if said == 0:
            made.append(Receipt(job.id, Accepted.NEW))
        else:
            number, holder, retry_after_s = said
            made.append(Receipt(holder or job.id, ACCEPTED[number], float(retry_after_s)))
    return made


def pieces(sizes: Iterable[int], joined: bytes) -> list[bytes]:
    """What was joined, in parts of these sizes."""
    parts: list[bytes] = []
    at = 0
    for size in sizes:
        parts.append(joined[at : at + size])
        at += size
    return parts


def split_bodies(bodies: Sequence[bytes]) -> tuple[list[list[Any]], list[bytes]]:
    """Of each, the words and the payload."""
    words: list[bytes] = []
    payloads: list[bytes] = []
    for body in bodies:
        head, _, payload = body.partition(b"\n")
        words.append(head)
        payloads.append(payload)
    return json.loads(b"[" + b",".join(words) + b"]"), payloads


def claims(answer: Sequence[bytes]) -> list[Claim]:
    numbers = json.loads(answer[0])
    bodies, payloads = split_bodies(pieces((one[7] for one in numbers), answer[1]))
    made: list[Claim] = []
    at = 0
    for one, body, payload in zip(numbers, bodies, payloads, strict=True):
        token, attempts, snoozes, lost, waited_s, age_s, expires_in_s, _, kept, told = one
        job_id, task, queue, lane, gates, _, priority, why, _ = body
        checkpoint = None
        if kept >= 0:
            checkpoint = answer[2][at : at + kept]
            at += kept
        recoveries = tuple(gating.Recovery(*each) for each in told) if told else ()
        made.append(
            tuple.__new__(  # the constructor of a NamedTuple is one more call
                Claim,
                (
                    job_id,
                    token,
                    task,
                    queue,
                    payload,
                    lane,
                    tuple(gates),
                    priority,
                    attempts,
                    snoozes,
                    lost,
                    waited_s,
                    age_s,
                    expires_in_s,
                    why,
                    checkpoint,
                    recoveries,
                ),
            )
        )
    return made


# ---- settlements and notes ----


def settlements(asked: Sequence[Settlement]) -> tuple[str, bytes]:
    """The arguments of `settle`."""
    words: list[tuple[Any, ...]] = []
    results: list[bytes] = []
    for job_id, token, decision in asked:
        if type(decision) is Complete:
            result = decision.result
            if result is None:
                words.append((job_id, token, 0, -1))
            else:
                words.append((job_id, token, 0, len(result)))
                results.append(result)
        else:
            words.append((job_id, token, *_decision(decision)))
    return text(words), b"".join(results)


def _decision(decision: Decision) -> tuple[Any, ...]:
    match decision:
        case Retry(delay_s, error):
            return 1, min(delay_s, _LAST_S), _error(error)
        case Snooze(delay_s, reason, error):
            return 2, min(delay_s, _LAST_S), reason, False if error is None else _error(error)
        case Release():
            return (3,)
        case Bury(error, spent):
            return 4, _error(error), int(spent)
        case Expire(reason):
            return 5, reason
        case Cancel():
            return (6,)
        case Complete():
            raise AssertionError("settled without a detour")
        case _:
            assert_never(decision)


def _error(error: ErrorRecord) -> str:
    """The end of a JSON array, whose beginning the server knows. ASCII: a message may hold half a character."""
    return json.dumps((error.type, error.message, error.kind, error.stack))[1:]


def settle_replies(answer: bytes) -> list[SettleReply]:
    said = answer.decode()
    return [_REPLIES[said[at : at + 2]] for at in range(0, len(said), 2)]


def notes(asked: Sequence[Note]) -> tuple[str, bytes]:
    """The arguments of `note`."""
    words: list[tuple[Any, ...]] = []
    values: list[bytes] = []
    for job_id, token, progress, checkpoint in asked:
        sizes = [-1 if value is None else len(value) for value in (progress, checkpoint)]
        words.append((job_id, token, *sizes))
        values += [value for value in (progress, checkpoint) if value is not None]
    return text(words), b"".join(values)


# ---- what is told of jobs ----


def finals(job_ids: Sequence[str], answer: Sequence[Any]) -> dict[str, Final | None]:
    """Of those that are kept: how they ended, None for those that have not."""
    known = json.loads(answer[0])
    found: dict[str, Final | None] = {}
    at = 0
    for job_id, said, error in zip(job_ids, known, answer[2], strict=True):
        if said == 1:
            found[job_id] = None
        elif said != 0:
            number, kept, size = said
            result = None
            if size >= 0:
                result = answer[1][at : at + size]
                at += size
            state = STATES[number]
            assert state is not None
            found[job_id] = Final(job_id, state, result, _error_info(error) if error else None, bool(kept))
    return found


def _error_info(kept: bytes) -> ErrorInfo:
    return ErrorInfo(*json.loads(kept))


def infos(answer: Sequence[Any]) -> list[JobInfo]:
    """What `list` answers, behind where to go on."""
    return [_info(*answer[at : at + 4]) for at in range(1, len(answer), 4)]


def _info(row: bytes, body: bytes, progress: bytes, errors: Sequence[bytes]) -> JobInfo:
    (
        _, state, _, priority, due_at, _, expires_at, _, submitted_at,
        attempts, snoozes, lost, _, _, worker, started_at, finished_at,
        reason, cancel_requested, _, _, _, _, _, _, has_progress,
    ) = json.loads(row)  # fmt: skip
    head, _, payload = body.partition(b"\n")
    job_id, task, queue, lane, gates, _, _, _, key = json.loads(head)
    now_state = STATES[int(state)]
    assert now_state is not None
    return JobInfo(
        id=job_id,
        task=task,
        queue=queue,
        state=now_state,
        priority=int(priority),
        lane=lane,
        gates=tuple(gates),
        key=key,
        attempts=attempts,
        snoozes=snoozes,
        lost=lost,
        submitted_at=float(submitted_at),
        due_at=float(due_at),
        expires_at=float(expires_at),
        started_at=started_at,
        finished_at=finished_at,
        worker=worker,
        reason=reason,
        cancel_requested=bool(cancel_requested),
        progress=progress if has_progress else None,
        payload=payload,
        errors=tuple(_error_info(error) for error in errors),
    )


def reclaimed(answer: Sequence[Any]) -> list[Reclaimed]:
    words, _ = split_bodies(answer[1])
    moved: list[Reclaimed] = []
    for (number, lost, reason), body in zip(json.loads(answer[0]), words, strict=True):
        state = STATES[number]
        assert state is not None
        moved.append(Reclaimed(body[0], body[1], body[2], state, lost, reason))
    return moved


def queue_counts(answer: bytes) -> list[QueueCounts]:
    return [
        QueueCounts(name, ready, scheduled, waiting, running, dead, float(age_s), float(per_s), bool(paused))
        for name, scheduled, waiting, ready, running, dead, age_s, per_s, paused in sorted(json.loads(answer))
    ]


# ---- gates ----

_RATES = {"rate": ("interval", "burst"), "rate_override": ("interval_override", "burst_override")}
_KINDS = {"reason": str, "held_until": float, "tat": float}
_PLAIN = tuple(field.name for field in fields(gating.Gate) if field.name not in {"name", *_RATES})


def gate(name: str, record: Sequence[bytes]) -> gating.Gate:
    """The gate of this record: names and values in turn; what is not there is as in a new gate."""
    kept = {record[at].decode(): record[at + 1].decode() for at in range(0, len(record), 2)}
    values: dict[str, Any] = {}
    for field in _PLAIN:
        if field in kept:
            values[field] = _KINDS.get(field, int)(kept[field])
    for field, (interval, burst) in _RATES.items():
        if interval in kept:
            values[field] = gating.Rate(float(kept[interval]), int(kept[burst]))
    return gating.Gate(name, **values)


def gate_change(before: gating.Gate, after: gating.Gate) -> dict[str, str | bool]:
    """What the change is about: neither the live claims nor the rate's tokens, which others take meanwhile."""
    values: dict[str, str | bool] = {}
    for field in _PLAIN:
        was, value = getattr(before, field), getattr(after, field)
        if was != value and field not in {"live", "tat"}:
            values[field] = False if value is None else repr(value) if isinstance(value, float) else str(value)
    for field, (interval, burst) in _RATES.items():
        rate = getattr(after, field)
        if getattr(before, field) != rate:
            values[interval] = False if rate is None else repr(rate.interval_s)
            values[burst] = False if rate is None else str(rate.burst)
    return values
