"""`taskflow dead`: dead letters, the jobs that ended badly; retry or purge them."""

from __future__ import annotations

import time

import click

from taskflow.brokers.base import Retried
from taskflow.cli.exits import Exit
from taskflow.cli.job import refusal, retry_jobs, show_job
from taskflow.cli.operating import open_for_operator
from taskflow.cli.purging import ask, how_many
from taskflow.cli.running import print_json, run_async
from taskflow.cli.shown import count_of, job_json, last_error, print_jobs, span
from taskflow.core.job import JobState

_PAGE = 500
_SHOWN_REFUSALS = 10
_HEAD = ["ID", "TASK", "QUEUE", "DIED", "ATTEMPTS", "KIND", "LAST ERROR"]


@click.group()
def dead() -> None:
    """Look at dead letters, retry and purge them."""


@dead.command("list")
@click.option("-q", "--queue", help="Only those of this queue.")
@click.option("-t", "--task", help="Only those of this task.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="The newest so many.")
@click.option("--json", "as_json", is_flag=True, help="A JSON array.")
def list_(queue: str | None, task: str | None, limit: int, *, as_json: bool) -> None:
    """Dead letters with their last error, the newest job first."""
    run_async(_list(queue, task, limit, as_json=as_json))


async def _list(queue: str | None, task: str | None, limit: int, *, as_json: bool) -> None:
    async with open_for_operator() as broker:
        jobs = await broker.jobs(state=JobState.DEAD, queue=queue, task=task, limit=limit)
    now = time.time()
    if not jobs:
        click.echo("taskflow: no dead letters", err=True)
    if as_json:
        print_json([job_json(job) for job in jobs])
        return
    rows: list[list[object]] = [
        [
            job.id,
            job.task,
            job.queue,
            "" if job.finished_at is None else f"{span(now - job.finished_at)} ago",
            job.attempts,
            job.errors[-1].kind if job.errors else "",
            last_error(job),
        ]
        for job in jobs
    ]
    print_jobs(jobs, rows, _HEAD, limit=limit)


@dead.command()
@click.argument("job_id", metavar="ID")
@click.option("--payload", is_flag=True, help="The arguments too: they may hold secrets.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object.")
def show(job_id: str, *, payload: bool, as_json: bool) -> None:
    """A dead letter with its whole error history, stacks included. Exit 5 if the job is not dead."""
    run_async(show_job(job_id, payload=payload, as_json=as_json, state=JobState.DEAD))


@dead.command()
@click.argument("job_ids", metavar="ID...", nargs=-1)
@click.option("--all", "all_", is_flag=True, help="All of them, or all of --queue and --task.")
@click.option("-q", "--queue", help="With --all: only those of this queue.")
@click.option("-t", "--task", help="With --all: only those of this task.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def retry(
    ctx: click.Context, job_ids: tuple[str, ...], queue: str | None, task: str | None, *, all_: bool, as_json: bool
) -> None:
    """Make dead letters ready again, with fresh attempts and a fresh deadline; their error history stays.

    Exit 5 if one of them cannot be retried: not dead, not kept, or its key is taken; the others are retried all the
    same.
    """
    if all_ == bool(job_ids):
        raise click.UsageError("takes either IDs or --all")
    if (queue or task) and not all_:
        raise click.UsageError("--queue and --task say which ones --all means; they do not go with IDs")
    if all_:
        ctx.exit(run_async(_retry_all(queue, task, as_json=as_json)))
    ctx.exit(run_async(retry_jobs(list(dict.fromkeys(job_ids)), as_json=as_json)))


async def _retry_all(queue: str | None, task: str | None, *, as_json: bool) -> Exit:
    """Page by page. Each once: one that dies again meanwhile, or that is refused, is not tried again."""
    seen: set[str] = set()
    refused: dict[str, Retried] = {}
    limit = _PAGE
    async with open_for_operator() as broker:
        while True:
            page = await broker.jobs(state=JobState.DEAD, queue=queue, task=task, limit=limit)
            new = [job.id for job in page if job.id not in seen]
            if not new and len(page) < limit:
                break
            if not new:
                limit += _PAGE  # all of the page stayed dead: look behind it
                continue
            outcomes = zip(new, await broker.retry(new), strict=True)
            # One that is not dead any more was retried or purged by somebody else: that is no conflict.
            refused.update({job_id: outcome for job_id, outcome in outcomes if outcome is Retried.KEY_TAKEN})
            seen.update(new)
    for job_id in list(refused)[:_SHOWN_REFUSALS]:
        click.echo(f"taskflow: {refusal(job_id, refused[job_id], {})}", err=True)
    if len(refused) > _SHOWN_REFUSALS:
        click.echo(f"taskflow: … and {len(refused) - _SHOWN_REFUSALS:,} more for the same reason", err=True)
    if not seen:
        click.echo("taskflow: no dead letters", err=True)
    if as_json:
        print_json({"ready": len(seen) - len(refused), "refused": list(refused)})
    else:
        click.echo(f"{count_of(len(seen) - len(refused), 'job')} ready")
    return Exit.NOT_FOUND if refused else Exit.DONE


@dead.command()
@click.option("-q", "--queue", help="Only those of this queue.")
@click.option("-t", "--task", help="Only those of this task.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object.")
def purge(queue: str | None, task: str | None, *, yes: bool, as_json: bool) -> None:
    """Delete dead letters for good.

    Asks first. Where nobody can be asked it refuses, exit 2, unless told --yes.
    """
    run_async(_purge(queue, task, yes=yes, as_json=as_json))


async def _purge(queue: str | None, task: str | None, *, yes: bool, as_json: bool) -> None:
    async with open_for_operator() as broker:
        if not yes:
            letters = await how_many(broker, JobState.DEAD, "dead letter", queue=queue, task=task)
            of = "".join(f" of {kind} {name!r}" for kind, name in (("queue", queue), ("task", task)) if name)
            ask(f"Delete {letters}{of}, with all errors that led to them?")
        purged = await broker.purge(state=JobState.DEAD, queue=queue, task=task)
    if as_json:
        print_json({"purged": purged})
    else:
        click.echo(f"{count_of(purged, 'dead letter')} deleted")
