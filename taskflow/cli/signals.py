"""SIGTERM and SIGINT drain, a second one hands back; SIGTSTP stops claiming; SIGUSR1 shows threads and tasks."""

from __future__ import annotations

import asyncio
import faulthandler
import signal
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from taskflow.cli.exits import Exit
from taskflow.telemetry.logs import announce

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator

    from taskflow.runtime.worker import Worker


class Stop:
    """How often, and by what, this process was told to stop."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.times = 0
        self.was_interrupted = False

    def ask(self, worker: Worker | None, signum: int) -> None:
        """One signal to stop."""
        self.times += 1
        if self.times == 1:
            self.asked.set()
            _tell_person("draining; a second signal cancels what runs and hands it back")
            return
        self.was_interrupted = signum == signal.SIGINT
        if worker is not None:
            worker.cut_off()

    async def comes_after(self, work: Coroutine[Any, Any, None]) -> bool:
        """Whether `work` came to its end before anybody said stop; it is cancelled otherwise. Its error is raised."""
        working = asyncio.create_task(work)
        stopping = asyncio.create_task(self.asked.wait())
        try:
            await asyncio.wait([working, stopping], return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
                return True
            return False
        finally:
            working.cancel()
            stopping.cancel()
            await asyncio.gather(working, stopping, return_exceptions=True)


def exit_code(stop: Stop, *, left_over: bool) -> Exit:
    """The exit code of a worker that has stopped."""
    if stop.was_interrupted:
        return Exit.INTERRUPTED
    return Exit.HANDED_BACK if left_over else Exit.DONE


@contextmanager
def handle_signals(stop: Stop, worker: Worker) -> Iterator[None]:
    """Signals speak to `worker` while the block runs."""
    loop = asyncio.get_running_loop()
    handlers = {
        signal.SIGTERM: lambda: stop.ask(worker, signal.SIGTERM),
        signal.SIGINT: lambda: stop.ask(worker, signal.SIGINT),
        signal.SIGTSTP: lambda: _pause(worker),
        signal.SIGUSR1: dump,
    }
    for signum, handler in handlers.items():
        loop.add_signal_handler(signum, handler)
    try:
        yield
    finally:
        for signum in handlers:
            loop.remove_signal_handler(signum)


def _pause(worker: Worker) -> None:
    worker.pause()
    announce("worker.paused", worker=worker.name, in_flight=worker.in_flight)
    _tell_person("paused: what runs goes on, nothing more is claimed; SIGTERM ends it")


def _tell_person(words: str) -> None:
    """At a terminal. Elsewhere a machine reads our lines, and the log has said it."""
    if sys.stderr.isatty():
        click.echo(f"taskflow: {words}", err=True)


def dump() -> None:
    """Every thread's stack, and every asyncio task's, on stderr."""
    faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
    for task in sorted(asyncio.all_tasks(), key=lambda task: task.get_name()):
        task.print_stack(limit=8, file=sys.stderr)
