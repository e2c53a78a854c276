"""Why is this job not running? One sentence, as far as its record, its queue, its gates and the workers tell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskflow.cli.fleet import fullness, lack, silence
from taskflow.cli.shown import count_of, drains, instant, last_error, one_line, per_second, span
from taskflow.cli.standing import (
    by_name,
    held,
    is_held,
    is_operators,
    limit_in_force,
    limit_text,
    parent_of,
    rate_in_force,
    rate_in_words,
)
from taskflow.core.gate import Gate, admit, limit_of
from taskflow.core.job import SUSPECT_AFTER, JobState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from taskflow.brokers.base import JobInfo, QueueCounts, WorkerInfo

_EXPIRY = {"deadline": "its deadline passed", "max_wait": "it waited for longer than its max_wait"}
_TURNED_AWAY = {  # the reasons of snoozes, as workers give them
    "circuit_open": "its breaker was open",
    "bulkhead_full": "a bulkhead was full",
    "rate_limited": "a rate limit turned it away",
    "throttled": "its dependency asked it to wait",
    "threads_busy": "all threads of its worker were busy",
    "processes_busy": "all child processes of its worker were busy",
    "retry_budget": "its retry budget was empty",
    "queue_full": "a queue that it submits to was full",
    "broker_unavailable": "the broker did not answer it",
}


def why(
    job: JobInfo,
    counts: Sequence[QueueCounts],
    gates: Sequence[Gate],
    workers: Sequence[WorkerInfo],
    *,
    now: float,
) -> str:
    """The sentence. For a job that is final: how it ended."""
    queue = next((queue for queue in counts if queue.queue == job.queue), None)
    match job.state:
        case JobState.RUNNING:
            return _running(job, workers, now)
        case JobState.WAITING:
            return "it waits for other jobs"
        case JobState.SCHEDULED | JobState.READY:
            return "; ".join(_waiting(job, queue, by_name(gates), workers, now))
        case _:
            return _ended(job, now)


def _running(job: JobInfo, workers: Sequence[WorkerInfo], now: float) -> str:
    since = "" if job.started_at is None else f" for {span(now - job.started_at)}"
    # When it was asked is not kept: these words are true before that beat, and after it.
    asked = (
        ", and was asked to cancel: its worker tells the handler with its next beat, and the handler has to heed it"
        if job.cancel_requested
        else ""
    )
    lost = "".join(
        f"; that worker is {silence(info)}: another takes the job once its lease of {span(info.lease_s)} has ended"
        for info in workers
        if info.worker == job.worker and info.is_silent
    )
    return f"it is running{since} in worker {job.worker} (attempt {job.attempts + 1}){asked}{lost}"


def _ended(job: JobInfo, now: float) -> str:
    ago = "" if job.finished_at is None else f" {span(now - job.finished_at)} ago"
    match job.state:
        case JobState.DEAD:
            error = last_error(job)
            return f"it died{ago}{f' of {error}' if error else ''}; run it again with `taskflow dead retry {job.id}`"
        case JobState.EXPIRED:
            return f"it expired{ago}: {_EXPIRY.get(job.reason, job.reason or 'it waited for too long')}"
        case JobState.CANCELLED:
            return f"it was cancelled{ago}"
        case _:
            return f"it succeeded{ago}"


def _waiting(
    job: JobInfo, queue: QueueCounts | None, gates: Mapping[str, Gate], workers: Sequence[WorkerInfo], now: float
) -> list[str]:
    is_later = job.state is JobState.SCHEDULED and job.due_at > now
    first = (
        f"it is scheduled until {instant(job.due_at, now)}" if is_later else f"it is due for {span(now - job.due_at)}"
    )
    if before := _before(job):
        first += f", {before}"
    obstacles = [word for name in job.gates if (word := _gate(name, gates, now))]
    if queue is not None and queue.paused:
        obstacles.insert(0, f"queue {job.queue!r} is paused (`taskflow queue resume {job.queue}`)")
    if job.lost >= SUSPECT_AFTER:
        obstacles.append(f"{count_of(job.lost, 'worker')} died with it, so it only runs as a worker's single suspect")
    if is_later:
        return [first, *obstacles]
    nobody = lack(job.queue, workers)
    if obstacles:
        return [first, *obstacles, *([nobody] if nobody else [])]
    return [first, *_in_line(queue, nobody, workers)]


def _before(job: JobInfo) -> str:
    """What became of it when a worker last had it, or nothing if none has."""
    if job.errors and job.attempts and not _was_turned_away(job):
        tried = job.errors[-1].attempt
        spared = f", attempt {tried} not spent, as nothing but failures was seen" if tried > job.attempts else ""
        return f"after {count_of(job.attempts, 'failed attempt')}, the last of {last_error(job)}{spared}"
    if not job.snoozes or not job.reason:
        return ""
    times = "" if job.snoozes == 1 else f" (sent back {job.snoozes:,} times)"
    if is_of_unknown_task(job):
        return f"as no worker that took it knows task {job.task!r}{times}: start workers whose code has it"
    return f"snoozed: {_TURNED_AWAY.get(job.reason) or one_line(job.reason)}{times}"


def is_of_unknown_task(job: JobInfo) -> bool:
    """Whether a job that waits was sent back by the last worker that had it, as it did not know the task."""
    return bool(job.snoozes) and job.reason == "unknown_task"


def _was_turned_away(job: JobInfo) -> bool:
    """Whether its last claim ended without a failure: then its last error is an older one's."""
    error = job.errors[-1]
    return bool(job.snoozes) and (error.kind == "throttled" or (job.started_at or 0.0) > error.at)


def _in_line(queue: QueueCounts | None, nobody: str, workers: Sequence[WorkerInfo]) -> list[str]:
    """Nothing stands in its way but others: how many, and how busy its workers are, if there are any."""
    if queue is None:
        return []
    words: list[str] = []
    ahead = max(0, queue.ready - 1)
    if ahead:
        words.append(f"it is behind at most {count_of(ahead, 'ready job')} of queue {queue.queue!r}")
    if nobody:
        return [nobody, *words]
    if full := fullness(queue.queue, workers):
        words.append(full)
    if queue.running == 0 and not drains(queue):
        words.append(f"nothing of queue {queue.queue!r} runs or has ended lately, though a worker serves it")
    elif ahead and drains(queue):
        words.append(f"{per_second(queue.drain_per_s)} a second leave it")
    return words or ["the next worker with a free slot takes it"]


def _gate(name: str, gates: Mapping[str, Gate], now: float) -> str:
    """Why this gate does not admit a job now, or nothing."""
    gate = gates.get(name) or Gate(name)
    parent = parent_of(gate, gates)
    for record in (gate, parent):
        if record is not None and is_held(record, now):
            shown = one_line(record.name)
            opens = f" (`taskflow gate release {shown}`)" if is_operators(record) else ""
            return f"gate {shown!r} is {held(record, now)}{opens}"
    admission = admit(gate, parent, now=now)
    if admission.room is None or admission.room > 0:
        return ""
    shown = one_line(name)
    if admission.look_again_at is not None:
        rate = rate_in_words(rate_in_force(gate, parent))
        return f"gate {shown!r} is rate limited to {rate}: the next start is in {span(admission.look_again_at - now)}"
    if gate.ramp is not None:
        return f"gate {shown!r} recovers: {gate.live} of {limit_of(gate, parent)} slots are taken"
    limit = limit_in_force(gate, parent)
    if limit.value == 0:
        return f"gate {shown!r} admits no job: its limit is {limit_text(limit)}"
    return f"gate {shown!r} is full: {gate.live} of {limit_text(limit)} slots are taken"
