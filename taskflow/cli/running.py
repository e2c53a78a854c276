"""What commands share that talk to a broker: an event loop, an open broker, the task that a word names, output."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from taskflow.app import make_broker
from taskflow.cli.exits import OWN_PROCESS, Exit, code_of
from taskflow.cli.leaving import Leaving
from taskflow.cli.loading import did_you_mean
from taskflow.clock import LoopClock
from taskflow.errors import TaskflowError, UnknownTask
from taskflow.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Iterator

    from taskflow.app import TaskFlow
    from taskflow.brokers.base import FullBroker
    from taskflow.cli.signals import Stop
    from taskflow.tasks import AnyTask

T = TypeVar("T")
_LEFT_BEHIND_S = 2.0  # for what handlers left behind, after they had the time of the drain and of the worker's end


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` in a loop of its own: uvloop's where it is installed."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(work)


def run_to_exit(stop: Stop, work: Coroutine[Any, Any, Exit], *, drain_s: float) -> Exit:
    """As `run_async`, for a command that runs handlers: what they leave behind does not keep the process.

    Told to stop, the process is gone `drain_s` and `AFTER_DRAIN_S` later at the latest.
    """
    leaving = Leaving(lambda: stop.code)

    async def watched() -> Exit:
        stop.follow(asyncio.get_running_loop())
        ended_with = Exit.FAILED
        try:
            ended_with = await work
        except TaskflowError as error:
            ended_with, leaving.words = code_of(error), f"taskflow: {error}"
            raise
        finally:
            leaving.code = ended_with
            stop.follow(None)
            leaving.loop_ends_within(_LEFT_BEHIND_S)
        return ended_with

    stop.attach(leaving, drain_s)
    try:
        return run_async(watched())
    finally:
        leaving.loop_ended()
        leaving.words = ""  # whoever hears of the error says it
        if click.get_current_context().find_root().obj is not OWN_PROCESS:
            leaving.call_off()


def _loop_factory() -> Any:
    try:
        import uvloop  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415 - an extra
    except ImportError:
        return None
    return uvloop.new_event_loop


@asynccontextmanager
async def open_broker(settings: Settings | None = None) -> AsyncIterator[FullBroker]:
    """The broker of TASKFLOW_BROKER__URL, for commands that need no app. Raises `BrokerUnavailable`, `ConfigError`."""
    broker = make_broker(settings or Settings.from_env(), LoopClock())
    await broker.open()
    try:
        yield broker
    finally:
        await broker.close()


def find_task(flow: TaskFlow, name: str) -> AnyTask:
    """The task that `name` means. Raises `UnknownTask` with the nearest one, and all that there are."""
    known = sorted(flow.tasks)
    if name not in flow.tasks:
        near = did_you_mean(name, known) or ";"
        raise UnknownTask(f"no task named {name!r}{near} known: {', '.join(known) or 'none'}")
    return flow.find(name)


@contextmanager
def reader_may_leave() -> Iterator[None]:
    """Whoever reads stdout may have gone: what was done is done, and the exit code tells it."""
    try:
        yield
    except BrokenPipeError:
        with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - what is buffered must not fail again at the end
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


def print_json(data: Any) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(data, indent=2, default=str, ensure_ascii=False))


def print_table(head: list[str], rows: list[list[object]]) -> None:
    """Columns on stdout, aligned; numbers to the right."""
    texts = [head, *([("" if cell is None else str(cell)) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in texts) for column in range(len(head))]
    right = [bool(rows) and all(isinstance(row[column], int | float) for row in rows) for column in range(len(head))]
    for line in texts:
        cells = [
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(line, widths, right, strict=True)
        ]
        click.echo("  ".join(cells).rstrip())
