"""Child processes for sync handlers that may have to be killed: bounded, warm, and none left behind.

A child runs one job at a time, and many one after the other (`taskflow.runtime.child` is its program). It is started
anew, not forked; the pipe to it carries JSON. Told to stop, a job's child is killed, with all that the handler started
in its process group; the next job that needs one starts another. Starting a child, and importing the function there,
is no part of an attempt and counts against no timeout.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskflow.brokers.base import Note
from taskflow.core import events
from taskflow.core.outcome import ErrorRecord, Failed, Outcome, Rejected, Succeeded
from taskflow.errors import TaskflowError
from taskflow.runtime.control import Snooze
from taskflow.runtime.frames import Frame
from taskflow.runtime.lineage import covers
from taskflow.runtime.places import Places
from taskflow.runtime.process import Child, NoProcess, ProcessDied
from taskflow.telemetry import logs

if TYPE_CHECKING:
    from collections.abc import Callable

    from taskflow.clock import Clock
    from taskflow.core.specs import Retry
    from taskflow.runtime.importing import Where
    from taskflow.runtime.walk import Walk
    from taskflow.settings import Settings

_START_S = 60.0  # for a child to start and import the function; large libraries on a busy machine take ten
_IDLE_S = 60.0  # a child that had nothing to do for so long ends: its memory is worth more than the next start
_END_S = 2.0  # for a child to end by itself
_REAP_S = 5.0  # real seconds for what was killed to be gone
_PROGRAM = (
    "import json, sys; number, sys.path[:] = int(sys.argv[1]), json.loads(sys.argv[2]); "
    "from taskflow.runtime.child import main; main(number)"
)


class Processes:
    """The children of one worker."""

    def __init__(self, limit: int, settings: Settings, clock: Clock, emit: Callable[[events.Event], None]) -> None:
        self.places = Places(limit, "processes_busy")
        self._worker = settings.worker
        self._max_result_bytes = settings.retention.result_max_bytes
        self._clock = clock
        self._emit = emit
        self._idle: list[Child] = []  # the last to have worked comes last, and works next: the others may end
        self._children: set[Child] = set()
        self._preparing: set[asyncio.Task[Child]] = set()
        self._is_closed = False

    # --- taking a child ----------------------------------------------

    def try_take(self, where: Where) -> Child | None:
        """An idle child that has the function, if there is one and nobody waits."""
        child = next((child for child in reversed(self._idle) if where in child.loaded), None)
        if child is None or not self.places.try_take():
            return None
        return self._wake(child)

    async def prepare(self, where: Where) -> Child:
        """Wait for a child that has the function imported, or cannot have it: `run` tells. Takes a minute at most.

        The caller holds a place, which comes back with the child. A start goes on though whoever waited for it is
        cancelled, and the next who comes finds the child warm. Raises `NoProcess`; then the place is free.
        """
        preparing = asyncio.create_task(self._prepare(where), name="taskflow child start")
        self._preparing.add(preparing)
        preparing.add_done_callback(self._preparing.discard)
        try:
            await asyncio.wait([preparing])
        except asyncio.CancelledError:
            preparing.add_done_callback(self._put_by)
            raise
        if preparing.exception() is not None:
            self.places.give_back()
        return preparing.result()

    def put_back(self, child: Child) -> None:
        """It was taken, and is not needed."""
        if child.verdict is None:
            self._rest(child)
        else:
            self._discard(child)

    async def _prepare(self, where: Where) -> Child:
        known = next((child for child in reversed(self._idle) if where in child.loaded), None)
        if known is not None:
            return self._wake(known)
        child = self._wake(self._idle[-1]) if self._idle else await self._start()
        why = f"did not import {where.module} within {_START_S:g} s, and was killed"
        timer = self._clock.call_at(self._clock.now() + _START_S, partial(child.kill, why))
        answer = await child.ask(Frame({"do": "load", "where": where}), _no_note)
        timer.cancel()
        if isinstance(answer, Frame) and answer.head["is"] == "loaded":
            child.loaded.add(where)
        else:
            child.verdict = answer
        return child

    async def _start(self) -> Child:
        ours, theirs = socket.socketpair()
        try:
            process = await asyncio.create_subprocess_exec(
                *_command(theirs.fileno()),
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                # A session of its own: a Ctrl-C is for the worker, and all of a child's group can be killed at once.
                start_new_session=True,
            )
            reader, writer = await asyncio.open_connection(sock=ours)
        except OSError as error:
            ours.close()
            raise NoProcess(str(error)) from error
        finally:
            theirs.close()
        child = Child(process, (reader, writer))
        self._children.add(child)
        child.gone.add_done_callback(lambda _: self._forget(child))
        if self._is_closed:
            child.kill()
        hello = {
            "worker": os.getpid(),
            "argv": sys.argv,
            "memory_bytes": self._worker.child_memory_bytes,
            "cpu_s": self._worker.child_cpu_s,
            "log": logs.in_force(),
        }
        writer.write(Frame(hello).dump())
        return child

    def _put_by(self, prepared: asyncio.Task[Child]) -> None:
        """Nobody waits any more for a child that was being made ready."""
        if prepared.cancelled() or prepared.exception() is not None:
            self.places.give_back()
        else:
            self.put_back(prepared.result())

    def _wake(self, child: Child) -> Child:
        self._idle.remove(child)
        if child.timer is not None:
            child.timer.cancel()
        return child

    # --- a job -------------------------------------------------------

    async def run(self, child: Child, walk: Walk, *, retry: Retry) -> Outcome:
        """What came of the job in `child`, which is taken, and given back here. Cancelled, the child is killed.

        Raises `Snooze` where the handler did.
        """
        claim = walk.claim
        try:
            answer = child.verdict or await child.ask(self._order(walk), partial(_note, walk))
        except BaseException:
            self._discard(child)
            raise
        if isinstance(answer, ProcessDied):
            self._emit(events.ProcessDied(claim.job_id, claim.task, claim.queue, str(answer)))
            self._discard(child)
            return Failed(ErrorRecord("ProcessDied", str(answer), "died"), retryable=retry.covers(answer))
        child.verdict = None
        child.jobs += 1
        self._rest(child, is_spent=answer.head.get("is_spent", False))
        return _outcome(answer, retry)

    def _order(self, walk: Walk) -> Frame:
        claim = walk.claim
        head = {
            "do": "run",
            "where": walk.definition.where,
            "claim": claim._replace(payload=b"", checkpoint=None, recoveries=()),  # the first two come as they stand
            "checkpoint": None if claim.checkpoint is None else claim.checkpoint.decode(),
            "remaining_s": walk.deadline_at - self._clock.now(),
            "correlation_id": walk.correlation_id,
            "traceparent": walk.traceparent,
            "max_result_bytes": self._max_result_bytes,
        }
        return Frame(head, claim.payload)

    # --- the end of a child ------------------------------------------

    def _rest(self, child: Child, *, is_spent: bool = False) -> None:
        """It has nothing to do, for now or for good."""
        most = self._worker.child_jobs
        if is_spent or self._is_closed or (most is not None and child.jobs >= most):
            self._end(child)
            child.gone.add_done_callback(lambda _: self.places.give_back())
            return
        self._idle.append(child)
        child.timer = self._clock.call_at(self._clock.now() + _IDLE_S, partial(self._expire, child))
        self.places.give_back()

    def _expire(self, child: Child) -> None:
        self._idle.remove(child)
        self._end(child)

    def _end(self, child: Child) -> None:
        child.end()
        child.timer = self._clock.call_at(self._clock.now() + _END_S, child.kill)

    def _discard(self, child: Child) -> None:
        """Kill it. Its place is free when it is really gone; whoever ran a job in it does not wait for that."""
        child.kill()
        child.gone.add_done_callback(lambda _: self.places.give_back())

    def _forget(self, child: Child) -> None:
        self._children.discard(child)
        if child.timer is not None:
            child.timer.cancel()
        if child in self._idle:
            self._idle.remove(child)

    async def close(self, within_s: float = _END_S + _REAP_S) -> None:
        """End all children, and wait until they are gone: `within_s` at most, for a killed process owes nothing to any
        clock but the real one. What runs in them is cut off.
        """
        self._is_closed = True
        for child in self._children:
            child.end()
        try:
            await self._all_gone(min(_END_S, within_s / 2))
        finally:
            self._kill_all()
        await self._all_gone(min(_REAP_S, within_s / 2))

    async def _all_gone(self, within_s: float) -> None:
        if ending := [child.gone for child in self._children] + list(self._preparing):
            await asyncio.wait(ending, timeout=within_s)

    def _kill_all(self) -> None:
        for child in self._children:
            child.kill()


def _command(number: int) -> list[str]:
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # noqa: SLF001 - as multiprocessing does
    path = [str(Path(entry).absolute()) for entry in sys.path]
    return [sys.executable, *flags, "-c", _PROGRAM, str(number), json.dumps(path)]


async def _no_note(_frame: Frame) -> Frame:
    raise ValueError("a note without a job")


async def _note(walk: Walk, told: Frame) -> Frame:
    """Keep a checkpoint or progress for the child."""
    what: Any = {told.head["what"]: told.body}
    try:
        note = Note(walk.claim.job_id, walk.claim.token, **what)
        return Frame({"answer": await walk.notebook.keep(note)})
    except TaskflowError as error:
        return Frame({"error": str(error)})


def _outcome(answer: Frame, retry: Retry) -> Outcome:
    head, body = answer
    error = None if head.get("error") is None else ErrorRecord(*head["error"])
    match head["is"]:
        case "succeeded":
            return Succeeded(body if head["has_result"] else None)
        case "snooze":
            raise Snooze(head["seconds"], head["reason"], hold=head["hold"])
        case "rejected":
            if head["lineage"] is not None and not covers(retry, head["lineage"]):
                assert error is not None
                return Failed(error, retryable=False)
            return Rejected(head["reason"], head["retry_after_s"], error)
        case _:
            assert error is not None
            retryable = head["retryable"] if head["lineage"] is None else covers(retry, head["lineage"])
            return Failed(error, retryable, head["retry_after_s"])
