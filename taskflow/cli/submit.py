"""`taskflow submit`: one job, or a file of them."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import click

from taskflow.cli.exits import Exit
from taskflow.cli.lines import arguments, open_job_file
from taskflow.cli.loading import load_app, refuse_memory, split_app, warn_about
from taskflow.cli.running import find_task, print_json, run_async
from taskflow.errors import BrokerError, JobCancelled, JobExpired, JobFailed, QueueFull
from taskflow.options import Options
from taskflow.runtime.client import BATCH
from taskflow.settings import Settings

if TYPE_CHECKING:
    from taskflow.app import TaskFlow
    from taskflow.tasks import AnyTask


@click.command()
@click.argument("words", nargs=-1, metavar="APP TASK [JSON-ARGS]")
@click.option("--jsonl", metavar="FILE|-", help="One job a line: an object of named arguments, or an array.")
@click.option("--delay", type=click.FloatRange(0), default=0.0, help="Seconds until it is due.")
@click.option("--priority", type=click.IntRange(0, 9), help="Higher first.")
@click.option("--key", help="Unique until the job is final; a second one gets the first one's id.")
@click.option("--wait", is_flag=True, help="Wait for the result and print it; exit 1 if the job failed.")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), help="Seconds that --wait waits at most.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def submit(
    ctx: click.Context,
    words: tuple[str, ...],
    jsonl: str | None,
    delay: float,
    priority: int | None,
    key: str | None,
    wait: bool,
    timeout: float | None,
    as_json: bool,
) -> None:
    """Put a job of TASK in the queue, and print its id.

    JSON-ARGS is an object of named arguments, or an array of positional ones. A file that is submitted again meets its
    own jobs: nothing is submitted twice while they are kept.
    """
    app, rest = split_app(words, wants=1, app=Settings.from_env().app)
    if not rest or len(rest) > 2 or (jsonl is not None and len(rest) > 1):
        raise click.UsageError("takes APP TASK and JSON-ARGS, or APP TASK and --jsonl FILE")
    if jsonl is not None and (key is not None or wait):
        raise click.UsageError("--key and --wait are for one job, not for --jsonl")
    flow = load_app(app)
    refuse_memory(flow, "submit")
    warn_about(flow)
    task = find_task(flow, rest[0])
    options = Options(delay=delay, priority=priority, key=key)
    if jsonl is not None:
        ctx.exit(run_async(_submit_file(flow, task, jsonl, options, as_json=as_json)))
    args, kwargs = arguments(rest[1] if len(rest) > 1 else "{}", "JSON-ARGS")
    ctx.exit(run_async(_submit_one(flow, task, args, kwargs, options, wait=wait, timeout=timeout, as_json=as_json)))


async def _submit_one(
    flow: TaskFlow,
    task: AnyTask,
    args: tuple[object, ...],
    kwargs: dict[str, object],
    options: Options,
    *,
    wait: bool,
    timeout: float | None,
    as_json: bool,
) -> Exit:
    job = task.prepare(task.definition.codec.bind(args, kwargs), options)
    async with flow:
        (job_id,) = await flow.client.submit([job])
        if not wait:
            print_json({"id": job_id}) if as_json else click.echo(job_id)
            return Exit.DONE
        click.echo(f"taskflow: waiting for job {job_id}", err=True)
        try:
            result = await flow.job(job_id).result(timeout)  # as it is stored: this is JSON, not Python
        except (JobFailed, JobCancelled, JobExpired) as error:
            click.echo(f"taskflow: {error}", err=True)
            if as_json:
                print_json({"id": job_id, "error": {"code": error.code, "message": str(error)}})
            return Exit.FAILED
    print_json({"id": job_id, "result": result} if as_json else result)
    return Exit.DONE


async def _submit_file(flow: TaskFlow, task: AnyTask, path: str, options: Options, *, as_json: bool) -> Exit:
    with open_job_file(path) as file:
        file.check(task, options)
        submitted = 0
        async with flow:
            jobs = file.jobs(task, options)
            try:
                while chunk := list(itertools.islice(jobs, BATCH)):
                    submitted += len(await flow.client.submit([job for _, job in chunk]))
            except (QueueFull, BrokerError) as error:
                submitted += len(error.accepted) if isinstance(error, QueueFull) else 0
                click.echo(
                    f"taskflow: at least {submitted:,} of {file.lines:,} lines are submitted; the same command submits "
                    "the rest",
                    err=True,
                )
                raise
    if as_json:
        print_json({"submitted": submitted, "file": file.name})
    else:
        click.echo(f"{submitted}")
    return Exit.DONE
