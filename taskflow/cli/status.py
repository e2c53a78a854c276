"""`taskflow status`: everything at a glance."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from taskflow.brokers.base import Doubtful
from taskflow.cli.exits import Exit
from taskflow.cli.fleet import how_many, print_workers, unserved, worker_json
from taskflow.cli.operating import open_for_operator, sqlite_file
from taskflow.cli.queue import print_queues
from taskflow.cli.running import print_json, run_async
from taskflow.cli.shown import count_of, one_line
from taskflow.cli.standing import by_name, gate_json, held, is_held, parent_of
from taskflow.cli.why import is_of_unknown_task
from taskflow.core.gate import limit_of
from taskflow.core.job import JobState
from taskflow.errors import BrokerError
from taskflow.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from taskflow.brokers.base import FullBroker, QueueCounts, WorkerInfo
    from taskflow.core.gate import Gate

_SCHEDULED = 50  # of them, the newest, are looked at: a job brings its arguments, which may be large
_ASK_S = 1.0  # Redis walks all jobs, 2.4 s for a million; nobody waits for a word more


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_context
def status(ctx: click.Context, *, as_json: bool) -> None:
    """The broker, its workers and queues, held gates, dead letters. Exit 3 if the broker cannot be reached."""
    settings = Settings.from_env()
    broker: dict[str, Any] = {"url": settings.broker.shown_url, "reachable": True}
    try:
        counts, gates, workers, doubts, unknown = run_async(_look())
    except BrokerError as error:
        if as_json:
            print_json({"broker": {**broker, "reachable": False, "error": str(error)}})
        else:
            click.echo(f"broker        {broker['url']}, not reachable")
        click.echo(f"taskflow: {error}", err=True)
        ctx.exit(Exit.BROKER)
    broker["doubts"] = doubts
    file = sqlite_file(settings)
    if file is not None:
        broker["file_bytes"] = _size(file)
    now = time.time()
    closed = [gate for gate in gates.values() if is_held(gate, now)]
    dead = sum(count.dead for count in counts)
    lacks = unserved(counts, workers)
    if as_json:
        queues = [count._asdict() for count in counts]
        shown = [gate_json(gate, gates, now) for gate in closed]
        print_json(
            {
                "broker": broker,
                "queues": queues,
                "workers": [worker_json(info) for info in workers],
                "unserved_queues": [{"queue": count.queue, "reason": words} for count, words in lacks],
                "unknown_tasks": [
                    {"queue": queue, "task": task, "jobs_seen": jobs} for (queue, task), jobs in unknown.items()
                ],
                "gates_held": shown,
                "dead_letters": dead,
            }
        )
        return
    where = "" if file is None or file.is_absolute() else f" ({file.absolute()})"
    click.echo(f"broker        {broker['url']}{where}, reachable{_sized(broker.get('file_bytes'))}")
    for doubt in doubts:
        click.echo(f"taskflow: warning: {doubt}", err=True)
    click.echo(f"dead letters  {f'{dead:,}: taskflow dead list' if dead else 0}")
    click.echo(f"gates held    {len(closed)} of {len(gates)}")
    for gate in closed:
        click.echo(f"  {one_line(gate.name)} {held(gate, now)}; {_live(gate, gates)}")
    click.echo(f"workers       {how_many(workers)}")
    for count, words in lacks:
        click.echo(f"  {words}; {_waiting(count)}")
    for (queue, task), jobs in unknown.items():
        click.echo(
            f"  no worker that took it knows task {task!r}, as of {count_of(jobs, 'job')} in queue {queue!r}: start "
            "workers whose code has it"
        )
    if workers:
        click.echo()
        print_workers(workers)
    if counts:
        click.echo()
        print_queues(counts)
    else:
        click.echo("taskflow: no queue has had a job yet", err=True)


async def _look() -> tuple[list[QueueCounts], dict[str, Gate], list[WorkerInfo], list[str], Counter[tuple[str, str]]]:
    async with open_for_operator() as broker:
        doubts = list(broker.doubts) if isinstance(broker, Doubtful) else []
        counts = await broker.counts()
        unknown = await _unknown(broker) if any(count.scheduled for count in counts) else Counter()
        return counts, by_name(await broker.gates()), await broker.workers(), doubts, unknown


async def _unknown(broker: FullBroker) -> Counter[tuple[str, str]]:
    """By queue and task, how many of the newest scheduled jobs wait as no worker that took them knew their task."""
    try:
        async with asyncio.timeout(_ASK_S):
            newest = await broker.jobs(state=JobState.SCHEDULED, limit=_SCHEDULED)
    except TimeoutError:
        click.echo(f"taskflow: which tasks no worker knows is not shown: no answer within {_ASK_S:g} s", err=True)
        return Counter()
    return Counter((job.queue, job.task) for job in newest if is_of_unknown_task(job))


def _size(file: Path) -> int:
    """Bytes on disk, the write-ahead log included: it is a part of the database until the next checkpoint."""
    found = 0
    for path in (file, file.with_name(f"{file.name}-wal")):
        try:
            found += path.stat().st_size
        except OSError:
            continue
    return found


def _sized(size: int | None) -> str:
    if size is None:
        return ""
    return f", {size / 1e6:,.1f} MB" if size else ", no file yet"


def _waiting(count: QueueCounts) -> str:
    words = [
        f"{number:,} {state}" for state, number in (("ready", count.ready), ("scheduled", count.scheduled)) if number
    ]
    return f"{' and '.join(words)} {'job waits' if count.ready + count.scheduled == 1 else 'jobs wait'}"


def _live(gate: Gate, gates: Mapping[str, Gate]) -> str:
    limit = limit_of(gate, parent_of(gate, gates))
    return f"{gate.live} running" if limit is None else f"{gate.live} of {limit} running"
