"""SIGTERM, SIGINT and SIGHUP drain, a second one hands back; SIGTSTP stops claiming; SIGUSR1 shows threads and tasks.

They are heard from the first line of a command on: a container's first process loses what it does not handle. What
comes before the worker has started ends the start. Python runs handlers in the main thread, between two instructions: a
call into C that holds this thread keeps all of them waiting, the one that sets the last deadline too.
"""

from __future__ import annotations

import asyncio
import faulthandler
import signal
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import click

from taskflow.cli.exits import Exit
from taskflow.runtime.worker import END_S
from taskflow.telemetry.logs import announce

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator
    from types import FrameType

    from taskflow.cli.leaving import Leaving
    from taskflow.running import RunningWorker
    from taskflow.runtime.worker import Worker

# From the end of the drain to the end of the process: what the worker needs to hand back and to tell, and a second
# for lifespans, connections and the interpreter.
AFTER_DRAIN_S = END_S + 1.0


def stops() -> tuple[signal.Signals, ...]:
    """The signals to stop. Not SIGHUP where it is ignored, as under nohup: the terminal is meant to go."""
    always = (signal.SIGTERM, signal.SIGINT)  # also where they are ignored: a shell's `&` ignores SIGINT
    return always if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (*always, signal.SIGHUP)


class StoppedEarly(BaseException):
    """A signal to stop, while nothing runs that could be stopped in order: the app is being imported."""


class Stop:
    """How often, and by what, this process was told to stop."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.times = 0
        self.is_left_over = False  # jobs that others have to do
        self._was_interrupted = False
        self._is_paused = False
        self._worker: Worker | None = None
        self._starting: asyncio.Task[Any] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._leaving: Leaving | None = None
        self._drain_s = 0.0
        self._handlers: dict[signal.Signals, Callable[[int, FrameType | None], None]] = {
            **dict.fromkeys(stops(), self.hear),
            signal.SIGTSTP: self.hear_pause,
            signal.SIGUSR1: self.hear_dump,
        }

    @property
    def code(self) -> Exit:
        """The exit code of a worker that has stopped."""
        if self._was_interrupted:
            return Exit.INTERRUPTED
        return Exit.HANDED_BACK if self.is_left_over else Exit.DONE

    @property
    def signals(self) -> tuple[signal.Signals, ...]:
        """Those that it hears."""
        return tuple(self._handlers)

    def listen(self) -> None:
        """Hear signals from here on: whatever the app has done with them, they are ours."""
        for signum, handler in self._handlers.items():
            if self._loop is not None:
                # Else it would be called too, and its removal, in a lifespan's end, would bring the default back.
                self._loop.remove_signal_handler(signum)
            signal.signal(signum, handler)

    # --- what signals do: between any two instructions of the main thread ---

    def hear(self, signum: int, _frame: FrameType | None = None) -> None:
        """One signal to stop."""
        if signum == signal.SIGHUP and self.times:
            return  # the shell and the kernel both send it when a terminal goes: that is one word
        self.times += 1
        if signum == signal.SIGINT and (self.times > 1 or self._worker is None):
            self._was_interrupted = True
        if self._leaving is None:
            raise StoppedEarly
        self._leaving.within(AFTER_DRAIN_S if self.times > 1 else self._drain_s + AFTER_DRAIN_S)
        self._in_loop(self._act, self.times)

    def hear_pause(self, _signum: int, _frame: FrameType | None) -> None:
        """Claim no more."""
        self._is_paused = True
        self._in_loop(self._pause)

    def hear_dump(self, _signum: int, _frame: FrameType | None) -> None:
        """Every thread's stack, also while something blocks the loop; and every asyncio task's."""
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        self._in_loop(_dump_tasks)

    def _in_loop(self, call: Callable[..., object], *args: object) -> None:
        if self._loop is not None:
            with suppress(RuntimeError):  # it is closed: the process ends
                self._loop.call_soon_threadsafe(call, *args)

    # --- in the loop -------------------------------------------------

    def attach(self, leaving: Leaving, drain_s: float) -> None:
        """From here on signals speak to the loop that is about to run, and the process has to end in time."""
        self._leaving, self._drain_s = leaving, drain_s
        if self.times:
            leaving.within(drain_s + AFTER_DRAIN_S)

    def follow(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """The loop that signals speak to."""
        self._loop = loop

    async def lets_start(self, running: RunningWorker, start: Callable[[], Awaitable[object]]) -> bool:
        """Whether `await start()`, which starts `running`, came to its end; told to stop, it is cancelled.

        In this very task: scopes that it opens belong to it. What it had opened, it has closed.
        """
        task = asyncio.current_task()
        assert task is not None
        before = task.cancelling()
        self._starting = task
        try:
            if self._is_told():
                task.cancel()
            await start()
        except asyncio.CancelledError:
            if not self._is_told() or before:
                raise
            announce("worker.unstarted")
            return False
        finally:
            self._starting = None
            while task.cancelling() > before:
                task.uncancel()
        self.listen()  # again: a lifespan may have taken signals
        self._worker = running.worker
        self.is_left_over = True  # until it is known
        if self._is_paused:
            self._pause()
        if self._is_told():  # and something in the start has swallowed the cancellation
            self.asked.set()
        return True

    def ended(self, running: RunningWorker) -> None:
        """The worker has stopped."""
        stopped = running.stopped
        self.is_left_over = stopped is not None and bool(stopped.handed_back or stopped.unsettled)

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

    def _is_told(self) -> bool:
        return self.times > 0

    def _act(self, times: int) -> None:
        if self._starting is not None:
            self._starting.cancel()
            _tell_person("stops before it has started")
        elif times == 1:
            self.asked.set()
            _tell_person("draining; a second signal cancels what runs and hands it back")
        elif self._worker is not None:
            self._worker.cut_off()

    def _pause(self) -> None:
        if self._worker is None:
            return
        self._worker.pause()
        announce("worker.paused", worker=self._worker.name, in_flight=self._worker.in_flight)
        _tell_person("paused: what runs goes on, nothing more is claimed; SIGTERM ends it")


@contextmanager
def heard(ctx: click.Context) -> Iterator[Stop]:
    """Signals are heard while the block runs. One to stop that comes before there is a loop ends the command.

    After whatever may have taken them, as the import of an app: `listen()` again.
    """
    stop = Stop()
    before = {signum: signal.getsignal(signum) for signum in stop.signals}
    try:
        stop.listen()
        yield stop
    except StoppedEarly:
        ctx.exit(stop.code)
    finally:
        for signum, earlier in before.items():
            signal.signal(signum, earlier)


def _tell_person(words: str) -> None:
    """At a terminal. Elsewhere a machine reads our lines, and the log has said it."""
    if sys.stderr.isatty():
        click.echo(f"taskflow: {words}", err=True)


def _dump_tasks() -> None:
    for task in sorted(asyncio.all_tasks(), key=lambda task: task.get_name()):
        task.print_stack(limit=8, file=sys.stderr)
