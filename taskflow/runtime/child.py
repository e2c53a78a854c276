"""The program of a child process: runs the jobs that its worker sends, one at a time, until the pipe ends.

The handler has the main thread. Another reads the pipe: when the worker is gone, however it went, this process and all
that it started are gone too.
"""

from __future__ import annotations

import errno
import math
import os
import queue
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from taskflow.brokers.base import Note, Settled
from taskflow.clock import LoopClock
from taskflow.core.job import Claim
from taskflow.core.outcome import ErrorRecord, Failed, Invalid, Outcome, Rejected, Succeeded
from taskflow.errors import BrokerError, ConfigError, PayloadError
from taskflow.runtime import outcomes
from taskflow.runtime.control import Snooze
from taskflow.runtime.frames import Frame, receive_blocking
from taskflow.runtime.importing import Where, find
from taskflow.runtime.lineage import lineage
from taskflow.runtime.slot import Failure
from taskflow.runtime.task import TaskDef
from taskflow.runtime.walk import Notebook, Walk
from taskflow.telemetry import logs
from taskflow.telemetry.context import job_context

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

_END_S = 5.0  # for what a handler registered to run at exit, and the threads it left
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_CLOSED = frozenset({errno.EBADF, errno.ENOTSOCK})  # the number of our file stands for none, or for another one


def main(number: int) -> None:
    """Serve the worker at the other end of the socket with this file number."""
    pipe = Pipe(socket.socket(fileno=number))
    os.set_inheritable(number, False)
    try:
        hello = receive_blocking(pipe.socket).head
    except (EOFError, ConnectionError):
        return  # the worker is gone already
    if hello["log"] is not None:
        logs.configure(*hello["log"])
    _die_with(hello["worker"])
    for stop in (signal.SIGINT, signal.SIGTERM):
        # A service manager tells all processes of a service to stop, and the worker drains. Not SIG_IGN: programs
        # that a handler starts would inherit that.
        signal.signal(stop, _leave_it_to_the_worker)
    sys.argv[:] = hello["argv"]
    _limit("RLIMIT_AS", hello["memory_bytes"])
    threading.Thread(target=pipe.read_for_ever, name="taskflow pipe", daemon=True).start()
    jobs = Jobs(pipe, hello["cpu_s"])
    while (order := pipe.orders.get()) is not None:
        answer = jobs.load(order) if order.head["do"] == "load" else jobs.run(order)
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):  # closed, or none at all
                stream.flush()
        pipe.answer(answer)
        del order, answer  # hold nothing of a job while waiting for the next


class Pipe:
    """The pipe to the worker: orders in, answers out, and notes in between."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.orders: queue.SimpleQueue[Frame | None] = queue.SimpleQueue()
        self._kept: queue.SimpleQueue[Frame] = queue.SimpleQueue()
        self._is_busy = False
        self._noting = threading.Lock()

    def read_for_ever(self) -> None:
        """Read until the worker closes the pipe, or is gone."""
        try:
            while True:
                frame = receive_blocking(self.socket)
                if "do" in frame.head:
                    self._is_busy = True
                    self.orders.put(frame)
                else:
                    self._kept.put(frame)
                del frame
        except BaseException as error:  # noqa: BLE001 - the pipe has ended, or there is no memory left to read it
            if self._is_busy and isinstance(error, OSError) and error.errno in _CLOSED:
                return  # by the handler, whose answer will meet the same: the process ends with that
            if not self._is_busy:
                self.orders.put(None)
                time.sleep(_END_S)
            os.killpg(0, signal.SIGKILL)

    def answer(self, frame: Frame) -> None:
        """Tell what came of the order."""
        self._is_busy = False
        self.socket.sendall(frame.dump())

    async def keep(self, note: Note) -> Settled:
        """Have the worker keep a note. Waits without awaiting: the handler's thread is its own."""
        what, data = ("progress", note.progress) if note.checkpoint is None else ("checkpoint", note.checkpoint)
        with self._noting:
            self.socket.sendall(Frame({"is": "note", "what": what}, data or b"").dump())
            head = self._kept.get().head
        if "error" in head:
            raise BrokerError(head["error"])
        return Settled(head["answer"])


class Jobs:
    """Runs what the worker orders, and tells what came of it."""

    def __init__(self, pipe: Pipe, cpu_s: float | None) -> None:
        self._pipe = pipe
        self._cpu_s = cpu_s
        self._clock = LoopClock()
        self._functions: dict[Where, Callable[..., Any]] = {}
        self._tasks: dict[tuple[Where, str], TaskDef] = {}

    def load(self, order: Frame) -> Frame:
        """Import the function."""
        where = Where(*order.head["where"])
        try:
            self._functions[where] = find(where)
        except BaseException as error:  # noqa: BLE001 - whatever a module raises, SystemExit too
            return _raised(error, where)
        return Frame({"is": "loaded"})

    def run(self, order: Frame) -> Frame:
        """Run one job in a context of its own."""
        where, claim = Where(*order.head["where"]), Claim(*order.head["claim"])
        try:
            task = self._task(where, claim.task)  # made once, and no part of what the job may use
            _limit_cpu(self._cpu_s)
            try:
                outcome = copy_context().run(self._call, task, claim, order)
            finally:
                _limit_cpu(None)
        except BaseException as error:  # noqa: BLE001 - whatever a handler raises is an outcome
            return _raised(error, where)
        return _told(outcome)

    def _task(self, where: Where, name: str) -> TaskDef:
        task = self._tasks.get((where, name))
        if task is None:
            task = self._tasks[where, name] = TaskDef(name, self._functions[where], {})
        return task

    def _call(self, task: TaskDef, claim: Claim, order: Frame) -> Outcome:
        head = order.head
        claim = claim._replace(
            payload=order.body,
            gates=tuple(claim.gates),
            checkpoint=None if head["checkpoint"] is None else head["checkpoint"].encode(),
        )
        try:
            args, *_ = task.codec.load(order.body)
        except PayloadError as error:
            return outcomes.invalid(error)
        now = self._clock.now()
        walk = Walk(claim, now)
        walk.correlation_id, walk.traceparent = head["correlation_id"], head["traceparent"]
        walk.deadline_at = now + head["remaining_s"]
        walk.notebook = Notebook(self._pipe.keep, self._clock, _complete_in)
        job_context.set(walk)
        return outcomes.succeeded(task, task.start(**args), max_bytes=head["max_result_bytes"])


async def _complete_in(_walk: Walk, _connection: object, _result: object) -> Settled:
    raise ConfigError(
        "complete_in() needs the worker's own broker, and this is a child process: leave isolation='process' out, or "
        "return the result"
    )


def _raised(error: BaseException, where: Where) -> Frame:
    if isinstance(error, Snooze):
        return Frame({"is": "snooze", "seconds": error.seconds, "reason": error.reason, "hold": error.hold})
    shown = error
    if isinstance(error, SystemExit):
        shown = Failure(f"the handler called sys.exit({error.code!r})")
    elif not isinstance(error, Exception | BaseExceptionGroup):
        shown = Failure(f"the handler raised {type(error).__name__}, which is no Exception")
    if shown is not error:
        shown.__cause__ = error
    asked: list[BaseException] = []

    def ask_the_worker(error: BaseException, _classify: object) -> bool:
        asked.append(error)  # it knows the task's `Retry`; this process may not
        return True

    outcome = outcomes.failed(shown, covers=ask_the_worker, wall=time.time())
    main = where.module if where.is_main else None
    told = _told(outcome, lineage(asked[0], main) if asked else None)
    told.head["is_spent"] = isinstance(error, MemoryError)
    return told


def _told(outcome: Outcome, kin: Any = None) -> Frame:
    match outcome:
        case Succeeded(result):
            return Frame({"is": "succeeded", "has_result": result is not None}, result or b"")
        case Rejected(reason, retry_after_s, error):
            told = {"is": "rejected", "reason": reason, "retry_after_s": retry_after_s, "error": _fields(error)}
            return Frame({**told, "lineage": kin})
        case Failed(error, retryable, retry_after_s):
            told = {"is": "failed", "error": _fields(error), "retryable": retryable, "retry_after_s": retry_after_s}
            return Frame({**told, "lineage": kin})
        case Invalid(error):
            return Frame(
                {"is": "failed", "error": _fields(error), "retryable": False, "retry_after_s": None, "lineage": None}
            )
    raise AssertionError(outcome)


def _fields(error: ErrorRecord | None) -> list[str] | None:
    return None if error is None else [error.type, error.message, error.kind, error.stack]


# --- limits ----------------------------------------------------------


def _limit(name: str, most: int | None, *, is_final: bool = True) -> None:
    """Limit what this process may use, and with `is_final` for good. A limit that is there already is never raised."""
    import resource  # noqa: PLC0415 - not on Windows

    number = getattr(resource, name)
    hard = resource.getrlimit(number)[1]
    soft = resource.RLIM_INFINITY if most is None else most
    if hard != resource.RLIM_INFINITY and (most is None or most > hard):
        soft = hard
    if most is not None or not is_final:
        resource.setrlimit(number, (soft, soft if is_final else hard))


def _limit_cpu(seconds: float | None) -> None:
    """From now on: the kernel counts from the start of the process, in whole seconds."""
    _limit("RLIMIT_CPU", None if seconds is None else math.ceil(time.process_time() + seconds), is_final=False)


def _die_with(worker: int) -> None:
    """Be killed when the worker's thread is gone, even in a handler that never lets go of the interpreter."""
    if sys.platform == "linux":
        import ctypes  # noqa: PLC0415 - as above

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != worker:
        logs.announce("worker.gone", worker_pid=worker)
        sys.exit(1)


def _leave_it_to_the_worker(_number: int, _frame: FrameType | None) -> None:
    pass
