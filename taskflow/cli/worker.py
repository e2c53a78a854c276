"""`taskflow worker`: run jobs until told to stop."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING

import click

from taskflow.cli.loading import load_app, refuse_memory, warn_about
from taskflow.cli.running import run_to_exit
from taskflow.cli.signals import heard
from taskflow.cli.supervise import supervise
from taskflow.running import queue_weights
from taskflow.runtime.calls import BrokerCalls

if TYPE_CHECKING:
    from taskflow.app import TaskFlow
    from taskflow.cli.exits import Exit
    from taskflow.cli.signals import Stop
    from taskflow.running import RunningWorker

_LOOK_S = 0.1


@click.command()
@click.argument("app", required=False)
@click.option("-q", "--queue", "queues", multiple=True, metavar="QUEUE[:WEIGHT]", help="A queue to work; may repeat.")
@click.option("-c", "--concurrency", type=click.IntRange(1), help="Jobs at once. [TASKFLOW_WORKER__CONCURRENCY]")
@click.option("--processes", type=click.IntRange(1), help="Worker processes. [TASKFLOW_WORKER__PROCESSES]")
@click.option("--until-empty", is_flag=True, help="Stop when the queues are empty.")
@click.option("--parent", type=int, hidden=True, help="A pipe that ends with the parent process.")
@click.pass_context
def worker(
    ctx: click.Context,
    app: str | None,
    queues: tuple[str, ...],
    concurrency: int | None,
    processes: int | None,
    until_empty: bool,
    parent: int | None,
) -> None:
    """Run the jobs of APP until told to stop.

    SIGTERM, SIGINT and SIGHUP (unless ignored, as by nohup) drain; a second one cancels what runs and hands it back.
    The process is gone TASKFLOW_WORKER__DRAIN_S + 4.5 s later at the latest. SIGTSTP stops claiming. SIGUSR1 prints
    threads and tasks. A call into C that holds the main thread puts all of this off until it is back; with --processes
    the parent kills such a process in time.
    """
    with heard(ctx) as stop:
        flow = load_app(app)
        stop.listen()  # again: the app may have taken signals
        refuse_memory(flow, "worker")
        weights = parse_queues(queues)
        count = processes or flow.settings.worker.processes
        if count > 1:
            ctx.exit(
                supervise(flow, stop, count, app=app, queues=queues, concurrency=concurrency, until_empty=until_empty)
            )
        warn_about(flow, queues=queue_weights(flow, weights))
        flow.configure_logs()
        work = _work(flow, stop, weights, concurrency, until_empty=until_empty, parent=parent)
        ctx.exit(run_to_exit(stop, work, drain_s=flow.settings.worker.drain_s))


def parse_queues(words: tuple[str, ...]) -> dict[str, int] | None:
    """Weights by queue, from `-q mail:5 -q default` or `-q mail:5,default`; None where nothing is asked for."""
    weights: dict[str, int] = {}
    for word in ",".join(words).split(","):
        name, colon, weight = (part.strip() for part in word.partition(":"))
        if not name:
            continue
        if colon and not (weight.isdecimal() and 1 <= int(weight) <= 100):
            raise click.UsageError(f"--queue {word!r}: a weight is a whole number from 1 to 100, as in mail:5")
        weights[name] = int(weight or 1)
    return weights or None


async def _work(
    flow: TaskFlow,
    stop: Stop,
    queues: dict[str, int] | None,
    concurrency: int | None,
    *,
    until_empty: bool,
    parent: int | None,
) -> Exit:
    if parent is not None:
        _end_with(parent, stop)
    running = flow.worker(concurrency=concurrency, queues=queues, http=True)
    async with AsyncExitStack() as stack:
        if not await stop.lets_start(running, partial(stack.enter_async_context, running)):
            return stop.code
        try:
            if until_empty:
                await stop.comes_after(_emptied(flow, running))
            else:
                await stop.asked.wait()
        finally:
            await running.stop()
            stop.ended(running)
    return stop.code


async def _emptied(flow: TaskFlow, running: RunningWorker) -> None:
    """Return when nothing is ready, scheduled or running in this worker's queues. An outage is waited out."""
    calls = BrokerCalls(flow.clock, flow.rng, flow.bus.emit)
    while True:
        counts = await calls.until_heard("counts", flow.broker.counts)
        mine = [queue for queue in counts if queue.queue in running.queues]
        if running.worker.is_idle and not any(queue.ready + queue.scheduled + queue.running for queue in mine):
            return
        await asyncio.sleep(_LOOK_S)


def _end_with(parent: int, stop: Stop) -> None:
    """Drain when the parent process is gone, however it went: nobody else holds the other end of this pipe."""
    loop = asyncio.get_running_loop()
    os.set_inheritable(parent, False)

    def is_gone() -> None:
        loop.remove_reader(parent)
        if not stop.times:  # else it told us to stop, and that was all
            stop.hear(signal.SIGTERM)

    loop.add_reader(parent, is_gone)
