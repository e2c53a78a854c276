"""Several worker processes under one parent, which starts them again when they die and passes signals on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import click

from taskflow.cli.exits import Exit

if TYPE_CHECKING:
    from types import FrameType

    from taskflow.app import TaskFlow

# A child that dies again and again is started again ever later, up to this.
_FIRST_S, _MOST_S = 0.5, 30.0
_HEALTHY_S = 60.0
_LOOK_S = 0.2


class _Child:
    """One slot: the process in it, and when to start the next one."""

    def __init__(self, command: list[str], env: dict[str, str]) -> None:
        self._command = command
        self._env = env
        self._wait_s = _FIRST_S
        self._start_at = 0.0
        self._started_at = 0.0
        self.process: subprocess.Popen[bytes] | None = None
        self.code: int | None = None

    def start(self) -> None:
        self._started_at = time.monotonic()
        self.code = None
        self.process = subprocess.Popen(self._command, env=self._env)  # noqa: S603 - our own command

    def look(self, *, restart: bool) -> None:
        """Notice an end; start again when its time has come."""
        if self.process is not None:
            self.code = self.process.poll()
            if self.code is None:
                return
            lived_s = time.monotonic() - self._started_at
            self._wait_s = _FIRST_S if lived_s > _HEALTHY_S else min(_MOST_S, self._wait_s * 2)
            self._start_at = time.monotonic() + self._wait_s
            if restart:
                click.echo(
                    f"taskflow: worker process {self.process.pid} ended with {self.code}; next in {self._wait_s:g} s",
                    err=True,
                )
            self.process = None
        if restart and time.monotonic() >= self._start_at:
            self.start()


def supervise(
    flow: TaskFlow,
    count: int,
    *,
    app: str | None,
    queues: tuple[str, ...],
    concurrency: int | None,
    until_empty: bool,
) -> Exit:
    """Run `count` worker processes until told to stop. Each serves HTTP on a port of its own, counted up from PORT."""
    command = [sys.executable, "-m", "taskflow", "worker", *([app] if app else []), "--processes", "1"]
    for queue in queues:
        command += ["--queue", queue]
    if concurrency:
        command += ["--concurrency", str(concurrency)]
    if until_empty:
        command.append("--until-empty")
    children = [_Child(command, _environment(flow, slot)) for slot in range(count)]
    stopping = False

    def pass_on(signum: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = stopping or signum in (signal.SIGTERM, signal.SIGINT)
        for child in children:
            if child.process is not None:
                child.process.send_signal(signum)

    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGTSTP, signal.SIGUSR1):
        signal.signal(signum, pass_on)
    for child in children:
        child.start()
    while True:
        for child in children:
            # With --until-empty a child that is done stays away; one that was killed comes back.
            done = until_empty and child.process is None and child.code in (Exit.DONE, Exit.HANDED_BACK)
            child.look(restart=not stopping and not done)
        if all(child.process is None for child in children) and (
            stopping or (until_empty and all(child.code in (Exit.DONE, Exit.HANDED_BACK) for child in children))
        ):
            return max((_as_exit(child.code) for child in children), default=Exit.DONE)
        if any(child.code in (Exit.USAGE, Exit.BROKER) for child in children) and not stopping:
            stopping = True  # it will not get better by trying again
            for child in children:
                if child.process is not None:
                    child.process.terminate()
        time.sleep(_LOOK_S)


def _environment(flow: TaskFlow, slot: int) -> dict[str, str]:
    port = flow.settings.http.port
    if port is None:
        from taskflow.settings import DEFAULT_HTTP_PORT  # noqa: PLC0415

        port = DEFAULT_HTTP_PORT
    return {**os.environ, "TASKFLOW_HTTP__PORT": str(port + slot if port else 0)}


def _as_exit(code: int | None) -> Exit:
    try:
        return Exit(code or 0)
    except ValueError:
        return Exit.FAILED  # killed by a signal
