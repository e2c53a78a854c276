"""`taskflow queue`: look at queues, pause, resume and purge them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from taskflow.cli.loading import did_you_mean
from taskflow.cli.operating import open_for_operator
from taskflow.cli.purging import ask, how_many
from taskflow.cli.running import print_json, print_table, run_async
from taskflow.cli.shown import count_of, drains, per_second, span
from taskflow.core.job import FINAL, JobState
from taskflow.errors import JobNotFound

if TYPE_CHECKING:
    from collections.abc import Sequence

    from taskflow.brokers.base import QueueCounts

_PURGED = [str(state) for state in JobState if state not in (JobState.RUNNING, JobState.WAITING)]
_HEAD = ["QUEUE", "READY", "SCHEDULED", "RUNNING", "DEAD", "OLDEST READY", "LEAVING", "PAUSED"]


@click.group()
def queue() -> None:
    """Look at queues, pause, resume and purge them."""


@queue.command("list")
@click.option("--json", "as_json", is_flag=True, help="A JSON array.")
def list_(*, as_json: bool) -> None:
    """All queues that have ever had a job."""
    run_async(_list(as_json=as_json))


async def _list(*, as_json: bool) -> None:
    async with open_for_operator() as broker:
        counts = await broker.counts()
    if not counts:
        click.echo("taskflow: no queue has had a job yet", err=True)
    if as_json:
        print_json([count._asdict() for count in counts])
    elif counts:
        print_queues(counts)


def print_queues(counts: Sequence[QueueCounts]) -> None:
    """A table of queues on stdout."""
    print_table(
        _HEAD,
        [
            [
                count.queue,
                count.ready,
                count.scheduled,
                count.running,
                count.dead,
                span(count.oldest_ready_age_s) if count.ready else "",
                f"{per_second(count.drain_per_s)}/s" if drains(count) else "",
                "paused" if count.paused else "",
            ]
            for count in counts
        ],
    )


@queue.command()
@click.argument("name", metavar="QUEUE")
@click.option("--json", "as_json", is_flag=True, help="A JSON object.")
def pause(name: str, *, as_json: bool) -> None:
    """Claim no more jobs of a queue, in any worker. What runs goes on; submitting goes on."""
    run_async(_set_paused(name, as_json=as_json, paused=True))


@queue.command()
@click.argument("name", metavar="QUEUE")
@click.option("--json", "as_json", is_flag=True, help="A JSON object.")
def resume(name: str, *, as_json: bool) -> None:
    """Claim jobs of a queue again."""
    run_async(_set_paused(name, as_json=as_json, paused=False))


async def _set_paused(name: str, *, as_json: bool, paused: bool) -> None:
    async with open_for_operator(creates=True) as broker:
        known = [count.queue for count in await broker.counts()]
        await (broker.pause(name) if paused else broker.resume(name))
    if name not in known:
        click.echo(
            f"taskflow: warning: queue {name!r} has never had a job{did_you_mean(name, known)}; it is "
            f"{'paused' if paused else 'not paused'} now",
            err=True,
        )
    if as_json:
        print_json({"queue": name, "paused": paused})
    else:
        click.echo(f"queue {name!r} is {'paused' if paused else 'not paused'}")


@queue.command()
@click.argument("name", metavar="QUEUE")
@click.option(
    "--state", type=click.Choice(_PURGED, case_sensitive=False), default="ready", show_default=True, help="Which jobs."
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object.")
def purge(name: str, state: str, *, yes: bool, as_json: bool) -> None:
    """Cancel the jobs of a queue that wait, or delete those that have ended.

    Asks first. Where nobody can be asked it refuses, exit 2, unless told --yes.
    """
    run_async(_purge(name, JobState(state), yes=yes, as_json=as_json))


async def _purge(name: str, state: JobState, *, yes: bool, as_json: bool) -> None:
    async with open_for_operator() as broker:
        known = [count.queue for count in await broker.counts()]
        if name not in known:
            raise JobNotFound(f"queue {name!r} has never had a job{did_you_mean(name, known)}")
        if not yes:
            jobs = await how_many(broker, state, f"{state} job", queue=name)
            ask(f"{'Delete' if state in FINAL else 'Cancel'} {jobs} of queue {name!r}?")
        purged = await broker.purge(state=state, queue=name)
    if as_json:
        print_json({"queue": name, "state": state, "purged": purged})
    else:
        done = "deleted" if state in FINAL else "cancelled"
        click.echo(f"{count_of(purged, f'{state} job')} of queue {name!r} {done}")
