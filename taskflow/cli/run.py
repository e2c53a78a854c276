"""`taskflow run`: submit a file of jobs and work until all are final, in one process."""

from __future__ import annotations

import asyncio
import io
import itertools
import sys
import time
from collections import Counter
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING

import click

from taskflow.brokers.base import Final
from taskflow.cli.exits import Exit
from taskflow.cli.lines import JobFile, open_job_file
from taskflow.cli.loading import load_app, split_app, warn_about
from taskflow.cli.running import find_task, print_json, reader_may_leave, run_to_exit
from taskflow.cli.signals import heard
from taskflow.core.job import JobState
from taskflow.errors import JobNotFound, QueueFull
from taskflow.options import Options
from taskflow.runtime.calls import BrokerCalls
from taskflow.runtime.client import BATCH
from taskflow.settings import Settings

if TYPE_CHECKING:
    from taskflow.app import TaskFlow
    from taskflow.cli.signals import Stop
    from taskflow.tasks import AnyTask

_LOOK_S = 0.5  # how long one look for final jobs waits; also how often the bar moves
_FULL_S = 0.5  # how long one wait for room lasts at most: this very process makes it, and must not run dry
_SHOWN_DEAD = 10


@click.command()
@click.argument("words", nargs=-1, metavar="APP TASK")
@click.option(
    "--jsonl", required=True, metavar="FILE|-", help="One job a line: an object of named arguments, or an array."
)
@click.option("-c", "--concurrency", type=click.IntRange(1), help="Jobs at once. [TASKFLOW_WORKER__CONCURRENCY]")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@click.pass_context
def run(ctx: click.Context, words: tuple[str, ...], jsonl: str, concurrency: int | None, as_json: bool) -> None:
    """Submit one job of TASK a line, and work until all of them are final.

    Stopped or killed and started again with the same file, it goes on where it was and submits nothing twice. A file
    that was changed is another one: all its lines are submitted. Exit 1 if any job is dead, cancelled or expired.
    """
    with heard(ctx) as stop:
        app, rest = split_app(words, wants=1, app=Settings.from_env().app)
        if len(rest) != 1:
            raise click.UsageError("takes APP and TASK")
        flow = load_app(app)
        stop.listen()  # again: the app may have taken signals
        warn_about(flow)
        task = find_task(flow, rest[0])
        flow.configure_logs()
        with open_job_file(jsonl) as file:
            file.check(task, Options())
            work = _Run(flow, task, file).go(stop, concurrency, as_json=as_json)
            ctx.exit(run_to_exit(stop, work, drain_s=flow.settings.worker.drain_s))


class _Run:
    """One file on its way through one worker."""

    def __init__(self, flow: TaskFlow, task: AnyTask, file: JobFile) -> None:
        self._flow = flow
        self._task = task
        self._file = file
        self._calls = BrokerCalls(flow.clock, flow.rng, flow.bus.emit)
        self._left: dict[str, int] = {}  # id → line, of those that are in and not known to be final
        self._states: Counter[JobState] = Counter()
        self._dead: list[tuple[int, str, str]] = []

    async def go(self, stop: Stop, concurrency: int | None, *, as_json: bool) -> Exit:
        """Submit, work, watch; then tell."""
        began = time.monotonic()
        running = self._flow.worker(concurrency=concurrency, queues=self._queues())
        async with AsyncExitStack() as stack:
            if not await stop.lets_start(running, partial(stack.enter_async_context, running)):
                return stop.code
            try:
                is_done = await stop.comes_after(self._work())
            finally:
                await running.stop()
        with reader_may_leave():
            self._tell(time.monotonic() - began, as_json=as_json)
        if not is_done:
            self._tell_unfinished()
            return stop.code
        return Exit.DONE if set(self._states) <= {JobState.SUCCEEDED} else Exit.FAILED

    @property
    def _batch(self) -> str:
        return f"run-{self._file.digest[:32]}-{self._task.name}"

    def _queues(self) -> list[str]:
        return [self._task.definition.policy(self._flow.settings).queue]

    async def _work(self) -> None:
        """Until all are final. Outages are waited out; any other error of either half ends both."""
        submitting = asyncio.create_task(self._submit())
        try:
            await self._watch(submitting)
            await self._calls.until_heard("finish_batch", partial(self._flow.broker.finish_batch, self._batch))
        finally:
            submitting.cancel()
            await asyncio.gather(submitting, return_exceptions=True)

    async def _submit(self) -> None:
        lines = self._file.jobs(self._task, Options(batch=self._batch))
        while chunk := list(itertools.islice(lines, BATCH)):
            numbers = {job.id: number for number, job in chunk}
            jobs = [job for _, job in chunk]
            while jobs:
                pause_s = 0.0
                try:
                    accepted = await self._calls.until_heard("submit", partial(self._flow.client.submit, jobs))
                except QueueFull as full:
                    accepted, pause_s = list(full.accepted), min(_FULL_S, full.retry_after_s or _FULL_S)
                self._left.update((job_id, numbers.pop(job_id)) for job_id in accepted)
                jobs = [job for job in jobs if job.id in numbers]
                await asyncio.sleep(pause_s)

    async def _watch(self, submitting: asyncio.Task[None]) -> None:
        with click.progressbar(
            length=self._file.lines,
            label=self._task.name,
            file=sys.stderr if sys.stderr.isatty() else io.StringIO(),  # a bar is for people
            show_pos=True,
            item_show_func=self._shown,
        ) as bar:
            while self._left or not submitting.done():
                if submitting.done():
                    submitting.result()
                if not self._left:
                    await asyncio.wait([submitting], timeout=_LOOK_S / 10)
                    continue
                asked = list(itertools.islice(self._left, 1_000))
                look = partial(self._flow.broker.finals, asked, _LOOK_S)
                try:
                    finals = await self._calls.until_heard("finals", look)
                except JobNotFound:
                    finals = {job_id: Final(job_id, JobState.EXPIRED, None, None) for job_id in asked}
                for job_id, final in finals.items():
                    self._count(self._left.pop(job_id), final)
                for job_id in asked:  # the rest goes to the back: a slow job must not hide those behind it
                    if job_id in self._left:
                        self._left[job_id] = self._left.pop(job_id)
                bar.update(len(finals), current_item=finals)
        await submitting  # what ended it early is raised

    def _shown(self, _item: object) -> str:
        return ", ".join(f"{count} {state}" for state, count in sorted(self._states.items()))

    def _count(self, line: int, final: Final) -> None:
        self._states[final.state] += 1
        if final.state is not JobState.SUCCEEDED:
            why = f"{final.error.type}: {final.error.message}" if final.error else str(final.state)
            self._dead.append((line, final.job_id, why))

    def _tell(self, took_s: float, *, as_json: bool) -> None:
        left = self._file.lines - sum(self._states.values())
        dead = sorted(self._dead)
        if as_json:
            print_json(
                {
                    "lines": self._file.lines,
                    "outcomes": {str(state): count for state, count in sorted(self._states.items())},
                    "left": left,
                    "took_s": round(took_s, 3),
                    "failed": [{"line": line, "id": job_id, "error": why} for line, job_id, why in dead],
                }
            )
            return
        outcomes = ", ".join(f"{count} {state}" for state, count in sorted(self._states.items())) or "nothing done"
        click.echo(f"{self._file.lines} lines in {took_s:.1f} s: {outcomes}" + (f", {left} left" if left else ""))
        for line, job_id, why in dead[:_SHOWN_DEAD]:
            click.echo(f"  line {line}, job {job_id}: {why}")
        if len(dead) > _SHOWN_DEAD:
            click.echo(f"  … and {len(dead) - _SHOWN_DEAD} more: taskflow dead list")

    def _tell_unfinished(self) -> None:
        if self._flow.settings.broker.scheme == "memory":
            click.echo("taskflow: what was left is gone: memory:// dies with its process", err=True)
        else:
            click.echo("taskflow: not all are done; the same command goes on where this one stopped", err=True)
