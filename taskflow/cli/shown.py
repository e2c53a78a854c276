"""Jobs, errors and instants as people read them on a terminal, and as JSON."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from taskflow.cli.running import print_table
from taskflow.core.window import NOTHING_PER_S

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from taskflow.brokers.base import ErrorInfo, JobInfo, QueueCounts

_UNITS = (("day", 86_400), ("h", 3_600), ("min", 60), ("s", 1))
_WIDTH = 80  # of a message in a table


def span(seconds: float) -> str:
    """A duration in words, two units at most: 0.4 s, 12 s, 5 min 3 s, 3 days 4 h."""
    if seconds < 10:
        return f"{max(0.0, seconds):.2g} s"
    left = round(seconds)
    words: list[str] = []
    for unit, size in _UNITS:
        count, left = divmod(left, size)
        if count:
            words.append(f"{count} {'days' if unit == 'day' and count > 1 else unit}")
        elif words:
            break
    return " ".join(words[:2])


def drains(queue: QueueCounts) -> bool:
    """Whether jobs have left it lately."""
    return queue.drain_per_s >= NOTHING_PER_S


def per_second(count: float) -> str:
    """How many a second: two digits, or all before the point."""
    return f"{count:.2g}" if count < 10 else f"{count:,.0f}"


def instant(at: float, now: float) -> str:
    """An instant, and how far away it is."""
    try:
        text = f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (OverflowError, ValueError, OSError):  # past the year 9999
        return "never"
    return f"{text} ({span(now - at)} ago)" if at <= now else f"{text} (in {span(at - now)})"


def plain(text: str) -> str:
    """Text of others, several lines, with nothing in it that would steer a terminal."""
    return "".join(char if char.isprintable() or char in "\n\t" else "�" for char in text)


def one_line(text: str, width: int = _WIDTH) -> str:
    """Text of others on one line of at most `width` characters."""
    line = " ".join(plain(text).split())
    return line if len(line) <= width else f"{line[: width - 1]}…"


def last_error(job: JobInfo, width: int = _WIDTH) -> str:
    """The job's last error on one line, or nothing."""
    if not job.errors:
        return ""
    error = job.errors[-1]
    return one_line(f"{error.type}: {error.message}" if error.message else error.type, width)


def count_of(count: int, what: str) -> str:
    """`1 job`, `1,200 jobs`."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def job_json(job: JobInfo, *, payload: bool = False, history: bool = False) -> dict[str, Any]:
    """All that is kept of a job, without its arguments unless `payload` asks for them.

    With `history` all errors with their stacks, else only the last one. Instants are seconds since 1970.
    """
    shown = job._asdict()
    for name in ("payload", "errors", "progress"):
        del shown[name]
    shown["progress"] = _parsed(job.progress)
    shown["correlation_id"] = correlation_id(job)
    if history:
        shown["errors"] = [error._asdict() for error in job.errors]
    else:
        shown["last_error"] = _without_stack(job.errors[-1]) if job.errors else None
    if payload:
        shown["payload"] = _parsed(job.payload)
    return shown


def correlation_id(job: JobInfo) -> str | None:
    """The id of the request that caused the job."""
    envelope = _parsed(job.payload)
    found = envelope.get("cid") if isinstance(envelope, dict) else None
    return found if isinstance(found, str) else None


def print_job(job: JobInfo, why: str, *, payload: bool, now: float) -> None:
    """Everything that is kept of a job, its errors last, the oldest first."""
    for name, value in _facts(job, why, payload=payload, now=now):
        click.echo(f"{name:<14}  {value}")
    for error in job.errors:
        message = plain(error.message).strip()
        click.echo(f"\nattempt {error.attempt} failed {instant(error.at, now)}, kind {error.kind}")
        click.echo(_indented(f"{plain(error.type)}: {message}" if message else plain(error.type)))
        if error.stack:
            click.echo(_indented(plain(error.stack).rstrip()))


def print_jobs(jobs: Sequence[JobInfo], rows: Iterable[list[object]], head: list[str], *, limit: int) -> None:
    """A table of jobs, and a word on stderr if there may be more, or none."""
    if jobs:
        print_table(head, list(rows))
    if len(jobs) == limit:
        click.echo(f"taskflow: the newest {limit:,}; there may be more: --limit", err=True)


def _facts(job: JobInfo, why: str, *, payload: bool, now: float) -> list[tuple[str, str]]:
    instants = {
        "submitted": job.submitted_at,
        "due": job.due_at,
        "started": job.started_at,
        "finished": job.finished_at,
        "expires": job.expires_at if job.finished_at is None else None,
    }
    facts = {
        "job": job.id,
        "task": job.task,
        "queue": job.queue,
        "state": str(job.state),
        "why": why,
        "attempts": f"{job.attempts} spent, {job.snoozes} snoozes, {job.lost} lost",
        "priority": str(job.priority),
        "lane": one_line(job.lane),
        "gates": ", ".join(one_line(gate, 300) for gate in job.gates),
        "key": one_line(job.key or "", 300),
        **{name: "" if at is None else instant(at, now) for name, at in instants.items()},
        "worker": job.worker or "",
        "cancel": "asked for" if job.cancel_requested else "",
        "reason": one_line(job.reason),
        "correlation id": one_line(correlation_id(job) or ""),
        "progress": "" if job.progress is None else plain(job.progress.decode(errors="replace")),
    }
    if payload:
        facts["payload"] = plain(job.payload.decode(errors="replace"))
    return [(name, value) for name, value in facts.items() if value]


def _without_stack(error: ErrorInfo) -> dict[str, Any]:
    shown = error._asdict()
    del shown["stack"]
    return shown


def _parsed(data: bytes | None) -> Any:
    """JSON as data; what is no JSON as text: an operator looks at what is broken, too."""
    if data is None:
        return None
    try:
        return json.loads(data)
    except ValueError:
        return data.decode(errors="replace")


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
