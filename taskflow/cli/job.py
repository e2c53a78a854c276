"""`taskflow job`: look at jobs, cancel and retry them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from taskflow.brokers.base import Cancelled, Retried
from taskflow.cli.exits import Exit
from taskflow.cli.operating import open_for_operator
from taskflow.cli.running import print_json, run_async
from taskflow.cli.shown import count_of, job_json, last_error, print_job, print_jobs, span
from taskflow.cli.why import why
from taskflow.core.job import JobState
from taskflow.errors import JobNotFound

if TYPE_CHECKING:
    from collections.abc import Sequence

    from taskflow.brokers.base import FullBroker, JobInfo

_LEAST_PREFIX = 8  # hex digits; the first 12 of an id are its millisecond
_SEARCHED = 1_000  # newest jobs that a prefix is looked for in
_HEAD = ["ID", "TASK", "QUEUE", "STATE", "ATTEMPTS", "SUBMITTED", "WHAT"]


@click.group()
def job() -> None:
    """Look at jobs, cancel and retry them."""


@job.command("list")
@click.option("--state", type=click.Choice([str(state) for state in JobState], case_sensitive=False))
@click.option("-q", "--queue", help="Only jobs of this queue.")
@click.option("-t", "--task", help="Only jobs of this task.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="The newest so many.")
@click.option("--json", "as_json", is_flag=True, help="A JSON array.")
def list_(state: str | None, queue: str | None, task: str | None, limit: int, *, as_json: bool) -> None:
    """Jobs, the newest first."""
    run_async(_list(None if state is None else JobState(state), queue, task, limit, as_json=as_json))


async def _list(state: JobState | None, queue: str | None, task: str | None, limit: int, *, as_json: bool) -> None:
    async with open_for_operator() as broker:
        jobs = await broker.jobs(state=state, queue=queue, task=task, limit=limit)
    now = time.time()
    if not jobs:
        click.echo("taskflow: no such jobs", err=True)
    if as_json:
        print_json([job_json(job) for job in jobs])
        return
    rows = ([job.id, job.task, job.queue, job.state, job.attempts, _ago(job, now), _what(job, now)] for job in jobs)
    print_jobs(jobs, rows, _HEAD, limit=limit)


@job.command()
@click.argument("job_id", metavar="ID")
@click.option("--payload", is_flag=True, help="The arguments too: they may hold secrets.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object.")
def show(job_id: str, *, payload: bool, as_json: bool) -> None:
    """Everything that is kept of a job, and why it is not running.

    The beginning of an ID will do, if only one of the newest jobs has it.
    """
    run_async(show_job(job_id, payload=payload, as_json=as_json))


async def show_job(job_id: str, *, payload: bool, as_json: bool, state: JobState | None = None) -> None:
    """Print one job, which must be in `state`. Raises `JobNotFound`."""
    async with open_for_operator() as broker:
        job = await _find(broker, job_id, state)
        found = (await broker.counts(), await broker.gates(), await broker.workers())
        sentence = why(job, *found, now=time.time())
    if as_json:
        print_json({**job_json(job, payload=payload, history=True), "why": sentence})
    else:
        print_job(job, sentence, payload=payload, now=time.time())


@job.command()
@click.argument("job_ids", metavar="ID...", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="A JSON array.")
@click.pass_context
def cancel(ctx: click.Context, job_ids: tuple[str, ...], *, as_json: bool) -> None:
    """Cancel jobs: one that waits never runs, one that runs is cancelled with its worker's next beat.

    Exit 5 if one of them is final already, or not kept; the others are cancelled all the same.
    """
    ctx.exit(run_async(_cancel(list(dict.fromkeys(job_ids)), as_json=as_json)))


async def _cancel(job_ids: Sequence[str], *, as_json: bool) -> Exit:
    async with open_for_operator() as broker:
        outcomes = dict(zip(job_ids, await broker.cancel(job_ids), strict=True))
        states = await broker.states(job_ids)
    reasons = {
        Cancelled.FINAL: lambda job_id: f"job {job_id} is {states.get(job_id, 'final')} already",
        Cancelled.MISSING: _missing,
    }
    refused = [reasons[outcome](job_id) for job_id, outcome in outcomes.items() if outcome in reasons]
    done = {job_id: outcome for job_id, outcome in outcomes.items() if outcome not in reasons}
    if as_json:
        print_json([{"id": job_id, "outcome": outcome} for job_id, outcome in outcomes.items()])
    else:
        for job_id, outcome in done.items():
            click.echo(f"{job_id} {'cancelled' if outcome is Cancelled.CANCELLED else 'runs: asked to cancel'}")
    return _told(refused)


@job.command()
@click.argument("job_ids", metavar="ID...", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="A JSON array.")
@click.pass_context
def retry(ctx: click.Context, job_ids: tuple[str, ...], *, as_json: bool) -> None:
    """Make dead jobs ready again, with fresh attempts and a fresh deadline.

    Exit 5 if one of them is not dead, is not kept, or if its key is taken; the others are retried all the same.
    """
    ctx.exit(run_async(retry_jobs(list(dict.fromkeys(job_ids)), as_json=as_json)))


async def retry_jobs(job_ids: Sequence[str], *, as_json: bool) -> Exit:
    """Retry these, tell of each, and give the exit code."""
    async with open_for_operator() as broker:
        outcomes = dict(zip(job_ids, await broker.retry(job_ids), strict=True))
        states = await broker.states(job_ids)
    if as_json:
        print_json([{"id": job_id, "outcome": outcome} for job_id, outcome in outcomes.items()])
    else:
        for job_id, outcome in outcomes.items():
            if outcome is Retried.READY:
                click.echo(f"{job_id} ready")
    return _told([reason for job_id, outcome in outcomes.items() if (reason := refusal(job_id, outcome, states))])


def refusal(job_id: str, outcome: Retried, states: dict[str, JobState]) -> str:
    """Why a job was not retried, or nothing."""
    match outcome:
        case Retried.NOT_DEAD:
            return f"job {job_id} is {states.get(job_id, 'not dead')}: only dead jobs can be retried"
        case Retried.KEY_TAKEN:
            return (
                f"job {job_id} stays dead: another job of its task and key is not final yet; "
                "cancel that one, or wait for its end"
            )
        case Retried.MISSING:
            return _missing(job_id)
        case _:
            return ""


async def _find(broker: FullBroker, job_id: str, state: JobState | None) -> JobInfo:
    found = await broker.show(job_id)
    if found is None and len(job_id) >= _LEAST_PREFIX:
        newest = await broker.jobs(state=state, limit=_SEARCHED)
        matching = [job for job in newest if job.id.startswith(job_id)]
        if len(matching) > 1:
            shown = ", ".join(job.id for job in matching[:5])
            raise JobNotFound(f"{count_of(len(matching), 'job')} begin with {job_id!r}: {shown}; say more of the id")
        found = matching[0] if matching else None
    if found is None and len(job_id) < _LEAST_PREFIX:
        raise JobNotFound(f"no job has the id {job_id!r}; the beginning of one will do from {_LEAST_PREFIX} digits on")
    if found is None:
        raise JobNotFound(_missing(job_id))
    if state is not None and found.state is not state:
        raise JobNotFound(f"job {found.id} is not {state}, it is {found.state}: `taskflow job show {found.id}`")
    return found


def _missing(job_id: str) -> str:
    return f"no job {job_id} is kept: the id is wrong, or its retention is over"


def _told(refused: Sequence[str]) -> Exit:
    for reason in refused:
        click.echo(f"taskflow: {reason}", err=True)
    return Exit.NOT_FOUND if refused else Exit.DONE


def _ago(job: JobInfo, now: float) -> str:
    return f"{span(now - job.submitted_at)} ago"


def _what(job: JobInfo, now: float) -> str:
    """The one thing worth knowing of a job in this state."""
    match job.state:
        case JobState.SCHEDULED if job.due_at > now:
            return f"in {span(job.due_at - now)}{_after(job)}"
        case JobState.SCHEDULED | JobState.READY | JobState.WAITING:
            return f"due for {span(max(0.0, now - job.due_at))}{_after(job)}"
        case JobState.RUNNING:
            since = "" if job.started_at is None else f"for {span(now - job.started_at)} "
            return f"{since}in {job.worker}"
        case JobState.DEAD:
            return last_error(job)
        case _:
            ago = "" if job.finished_at is None else f"{span(now - job.finished_at)} ago"
            return f"{ago} {job.reason}".strip()


def _after(job: JobInfo) -> str:
    error = last_error(job)
    return f", after {error}" if error else ""
