"""Several worker processes under one parent, which starts them again when they die and passes signals on."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import deque
from typing import TYPE_CHECKING

from taskflow.cli.exits import Exit
from taskflow.cli.signals import AFTER_DRAIN_S, stops
from taskflow.telemetry.logs import announce

if TYPE_CHECKING:
    from taskflow.app import TaskFlow
    from taskflow.cli.signals import Stop

# A child that dies again and again is started again ever later, up to this.
_FIRST_S, _MOST_S = 0.5, 30.0
_HEALTHY_S = 60.0
_LOOK_S = 0.1
_LATE_S = 0.2  # children hear of it a look later
_EMPTIED = frozenset({Exit.DONE, Exit.HANDED_BACK})


class _Child:
    """One slot: the process in it, and when to start the next one."""

    def __init__(self, command: list[str], env: dict[str, str], pipe: int) -> None:
        self._command = command
        self._env = env
        self._pipe = pipe
        self._wait_s = _FIRST_S / 2
        self._start_at = 0.0
        self._started_at = 0.0
        self._starts = 0
        self._is_told = False
        self.process: subprocess.Popen[bytes] | None = None
        self.code: int | None = None

    def _start(self) -> None:
        self._started_at = time.monotonic()
        self._starts += 1
        self._is_told = False
        self.code = None
        # In a group of its own: a Ctrl-C reaches the parent only, which passes it on. Else it would count twice.
        self.process = subprocess.Popen(  # noqa: S603 - our own command
            self._command, env=self._env, pass_fds=(self._pipe,), process_group=0
        )

    def look(self, *, restart: bool) -> None:
        """Notice an end; start again when its time has come."""
        if self.process is not None:
            self.code = self.process.poll()
            if self.code is None:
                return
            lived_s = time.monotonic() - self._started_at
            self._wait_s = _FIRST_S if lived_s > _HEALTHY_S else min(_MOST_S, self._wait_s * 2)
            self._start_at = time.monotonic() + self._wait_s
            if restart and not self.is_hopeless:
                announce(
                    "worker.process_ended", pid=self.process.pid, exit_code=self.code, retry_in_s=round(self._wait_s, 3)
                )
            self.process = None
        if restart and time.monotonic() >= self._start_at:
            self._start()

    def tell(self, signum: int) -> None:
        """Pass a signal on."""
        if self.process is not None:
            self.process.send_signal(signum)

    def kill(self) -> None:
        """It should be gone: its handler holds the main thread, or the interpreter, which then hears no signal."""
        if self.process is not None:
            self.process.kill()

    def stop(self) -> None:
        """Tell it to drain, once. SIGTERM, whatever the parent was told: it also ends a child that has just begun."""
        if not self._is_told:
            self._is_told = True
            self.tell(signal.SIGTERM)
            self.tell(signal.SIGCONT)  # a child that was stopped, by SIGTSTP before it listened, cannot end

    @property
    def is_hopeless(self) -> bool:
        """It will not get better by trying again. A broker that was there once will be there again."""
        return self.code == Exit.USAGE or (self.code == Exit.BROKER and self._starts == 1)


class _Told:
    """What the signals said so far."""

    def __init__(self, drain_s: float) -> None:
        self._drain_s = drain_s
        self.end_at = float("inf")  # by then all children have gone
        self.news: deque[int] = deque()  # not acted on yet: the loop does that, between starts and ends of children
        self.stops = 0
        self.is_paused = False
        self.was_interrupted = False
        self._stops = stops()
        for signum in (*self._stops, signal.SIGTSTP, signal.SIGUSR1):
            signal.signal(signum, lambda signum, _frame: self.news.append(signum))

    def pass_on(self, children: list[_Child]) -> None:
        """To all children: the first word to stop as SIGTERM, everything else as it came."""
        while self.news:
            signum = self.news.popleft()
            if signum == signal.SIGHUP and self.stops:
                continue  # as for `Stop.hear`: no second word
            if signum in self._stops:
                self.stops += 1
                left_s = AFTER_DRAIN_S + _LATE_S + (self._drain_s if self.stops == 1 else 0.0)
                self.end_at = min(self.end_at, time.monotonic() + left_s)
            if signum in self._stops and self.stops == 1:
                for child in children:
                    child.stop()
                continue
            self.is_paused = self.is_paused or signum == signal.SIGTSTP
            self.was_interrupted = self.was_interrupted or signum == signal.SIGINT
            for child in children:
                child.tell(signum)


def supervise(
    flow: TaskFlow,
    stop: Stop,
    count: int,
    *,
    app: str | None,
    queues: tuple[str, ...],
    concurrency: int | None,
    until_empty: bool,
) -> Exit:
    """Run `count` worker processes until told to stop. Each serves HTTP on a port of its own, counted up from PORT."""
    flow.configure_logs()  # the children's lines and ours are read by the same machine
    pipe, held = os.pipe()  # nothing is ever written: it ends when this process does, also by kill -9
    command = [sys.executable, "-m", "taskflow", "worker", *([app] if app else []), "--processes", "1"]
    command += ["--parent", str(pipe)]
    for queue in queues:
        command += ["--queue", queue]
    if concurrency:
        command += ["--concurrency", str(concurrency)]
    if until_empty:
        command.append("--until-empty")
    told = _Told(flow.settings.worker.drain_s)
    if stop.times:  # while the app was imported, which did not let it through
        return stop.code
    try:
        return _look_after(
            [_Child(command, _environment(flow, slot), pipe) for slot in range(count)], told, until_empty
        )
    finally:
        os.close(held)
        os.close(pipe)


def _look_after(children: list[_Child], told: _Told, until_empty: bool) -> Exit:
    is_stopping = False
    while True:
        told.pass_on(children)
        is_stopping = is_stopping or told.stops > 0
        for child in children:
            # With --until-empty a child that is done stays away; one that was killed comes back.
            is_done = until_empty and child.process is None and child.code in _EMPTIED
            child.look(restart=not is_stopping and not told.is_paused and not is_done)
            if time.monotonic() > told.end_at:
                child.kill()
        if any(child.is_hopeless for child in children):
            is_stopping = True
        if is_stopping:
            for child in children:
                child.stop()
        is_over = is_stopping or (until_empty and all(child.code in _EMPTIED for child in children))
        if is_over and all(child.process is None for child in children):
            return Exit.INTERRUPTED if told.was_interrupted else max(_as_exit(child.code) for child in children)
        time.sleep(_LOOK_S)


def _environment(flow: TaskFlow, slot: int) -> dict[str, str]:
    port = flow.settings.http.port
    if port is None:
        from taskflow.settings import DEFAULT_HTTP_PORT  # noqa: PLC0415

        port = DEFAULT_HTTP_PORT
    return {**os.environ, "TASKFLOW_HTTP__PORT": str(port + slot if port else 0)}


def _as_exit(code: int | None) -> Exit:
    if code is None or code == -signal.SIGTERM:
        return Exit.DONE  # told to stop before it had begun, or before it listened
    with contextlib.suppress(ValueError):
        return Exit(code)
    return Exit.FAILED  # killed by a signal
