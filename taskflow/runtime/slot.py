"""A slot: a long-lived loop's place for one job at a time, and the way to stop what runs in it.

Stopping a job (its time is up, a person cancelled it, the lease is lost, the worker shuts down) cancels the slot's
task once and remembers why; `asyncio` delivers that inside the handler, and the slot takes the cancellation back
(`uncancel`) when the handler has ended. That is what `asyncio.timeout` does, at a fraction of its price: no object
and no timer for each job.

Jobs that share a task must not hear of each other. A task that a job left otherwise than it found it (a cancellation
that nobody took back, a changed context variable) is spent: it ends, and another takes the slot.
"""

from __future__ import annotations

import asyncio
import asyncio.runners
import signal
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from taskflow.clock import NEVER

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from taskflow.clock import Clock, Timer

TIMEOUT, CANCELLED, SHUTDOWN, LEASE_LOST = "timeout", "cancelled", "shutdown", "lease_lost"

# A handler that goes on although it was cancelled is cancelled again after this many seconds: time to clean up.
_AGAIN_S = 10.0


def _never() -> bool:
    return False


class Slot:
    """Runs one job at a time in the task that `bind` was called in."""

    __slots__ = (
        "_cancels",
        "_clock",
        "_context",
        "_is_ending",
        "_is_running",
        "_is_spent",
        "_task",
        "_timer",
        "_timer_at",
        "deadline_at",
        "stopped",
    )

    def __init__(self, clock: Clock, is_ending: Callable[[], bool] = _never) -> None:
        """`is_ending` tells whether a cancellation that this slot did not ask for is the end of the worker."""
        self._clock = clock
        self._is_ending = is_ending
        self._task: asyncio.Task[Any] | None = None
        self._context = copy_context()
        self._timer: Timer | None = None
        self._timer_at = NEVER
        self._is_running = False
        self._is_spent = False
        self._cancels = 0
        self.deadline_at = NEVER
        self.stopped: str | None = None  # why the running job, or the last one, was told to stop

    def bind(self) -> None:
        """This task is the slot's from now on."""
        self._task = asyncio.current_task()
        self._context = copy_context()

    def unbind(self) -> None:
        """The task ends."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self._timer_at = None, NEVER

    @property
    def is_spent(self) -> bool:
        """Whether the last job left marks on this task that the next one would feel. To be asked in this task."""
        task = self._task
        if self._is_spent or task is None or task.cancelling():
            return True
        try:
            return copy_context() != self._context
        except Exception:  # noqa: BLE001 - it compares values of context variables, which may be anyone's
            return True

    def stop(self, why: str) -> None:
        """Cancel what runs here. The first reason stands, and the handler has time to clean up: more of them, or more
        of the same with every beat, change nothing.
        """
        if self._is_running and self.stopped is None:
            self.stopped = why
            self._cancel()
            self._set_deadline(self._clock.now() + _AGAIN_S)

    def _set_deadline(self, deadline_at: float) -> None:
        """One timer serves the slot for life: it is moved only to ring earlier."""
        self.deadline_at = deadline_at
        if deadline_at < self._timer_at:
            self._move_timer(deadline_at)

    def _move_timer(self, deadline_at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = deadline_at
        self._timer = self._clock.call_at(deadline_at, self._ring)

    def _ring(self) -> None:
        self._timer, self._timer_at = None, NEVER
        if not self._is_running:
            return
        if self._clock.now() < self.deadline_at:  # of an earlier job
            self._set_deadline(self.deadline_at)
        elif self.stopped is None:
            self.stop(TIMEOUT)
        else:
            self._cancel()
            self._set_deadline(self._clock.now() + _AGAIN_S)

    def _cancel(self) -> None:
        task = self._task
        assert task is not None
        self._cancels += 1
        task.cancel()
        if asyncio.current_task() is task:
            # The handler told itself to stop. Before Python 3.13 that cannot be taken back until its next await, and
            # there may be none.
            self._is_spent = True

    async def run(self, work: Awaitable[Any], deadline_at: float) -> Any:
        """What `await work` gives. Raises what `caught` makes of its exception."""
        self.begin(deadline_at)
        try:
            return await work
        except BaseException as error:
            made = self.caught(error)
            if made is error:
                raise
            raise made from error
        finally:
            self.end()

    # The three parts of `run`, for whoever awaits the work in a coroutine of its own and saves one more.

    def begin(self, deadline_at: float) -> None:
        """The job may run until `deadline_at`. To be followed by `end`, whatever happens."""
        self.stopped = None
        self._is_running = True
        self.deadline_at = deadline_at
        if deadline_at < self._timer_at:
            self._move_timer(deadline_at)

    def caught(self, error: BaseException) -> Exception:
        """What the exception that the work raised comes to.

        `Stopped` if it was told to stop and did, `Failure` for what is no `Exception`, or `error` itself; `stopped`
        tells whether that was after it was told to stop. Raises a person's Ctrl-C, and the loop's end, as they are.
        """
        if isinstance(error, Exception):
            return error
        made: Exception
        if isinstance(error, asyncio.CancelledError):
            task = self._task
            assert task is not None
            self._take_back(task)
            why = self.stopped or (SHUTDOWN if task.cancelling() and self._is_ending() else None)
            made = Failure("the handler raised CancelledError, though nobody cancelled its job")
            if why is not None:
                made = Stopped(why)
        elif _is_of_nobody_here(error, self._task):
            raise error
        elif isinstance(error, SystemExit):
            made = Failure(f"the handler called sys.exit({error.code!r})")
        else:
            made = Failure(f"the handler raised {type(error).__name__}, which is no Exception")
        made.__cause__ = error
        return made

    def end(self) -> None:
        """The work has ended."""
        self._is_running = False
        self.deadline_at = NEVER
        if self._cancels:
            assert self._task is not None
            self._take_back(self._task)

    def _take_back(self, task: asyncio.Task[Any]) -> None:
        """Undo our own cancellations."""
        while self._cancels:
            self._cancels -= 1
            task.uncancel()


def _is_of_nobody_here(error: BaseException, task: asyncio.Task[Any] | None) -> bool:
    """Whether no handler raised it: a person's Ctrl-C, or the end of a loop whose tasks are thrown away.

    A handler that raises as much has failed, as with any other exception: passed on, each of its attempts would end a
    worker, which another one takes up the job of.
    """
    if isinstance(error, KeyboardInterrupt):
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            return True  # nobody can tell: it may come from anywhere
        last = error.__traceback__
        while last is not None and last.tb_next is not None:
            last = last.tb_next
        return last is not None and last.tb_frame.f_globals.get("__name__") == asyncio.runners.__name__
    if isinstance(error, GeneratorExit):
        try:
            return asyncio.current_task() is not task
        except RuntimeError:  # no loop runs
            return True
    return False


class Stopped(Exception):
    """The handler stopped because it was told to. Its cause shows where it was."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class Failure(Exception):
    """A failure whose own exception is no `Exception`: that is the cause."""
