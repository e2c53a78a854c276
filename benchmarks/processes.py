"""Measures one queue from outside: its worker in one process, its producer in a second, its server in a third.

The processes run `peers/side.py` with a module of `peers/contestants`, in any interpreter. Rates come from instants
that the job bodies write, so that neither the start of a worker nor its last acknowledgements are in them.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.peers.side import Stamps

_SIDE = Path(__file__).parent / "peers" / "side.py"
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_LONGEST_S = 120.0
_END_S = 10.0
_WARM = 20  # the first twentieth of the jobs is not counted
_SETTLED_S = 0.5  # the last acknowledgements, and whatever else a worker does once it has nothing to do

COLUMNS = "drain, jobs/s | CPU, us a job: worker | server | submit, jobs/s | start, ms p50 / p99 | result, ms p50 / p99"


@dataclass
class Rates:
    """What the rounds gave: jobs a second, microseconds of CPU a job, and seconds of each round trip."""

    drain: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)
    server_us: list[float] = field(default_factory=list)
    submit: list[float] = field(default_factory=list)
    start_s: list[float] = field(default_factory=list)
    result_s: list[float] = field(default_factory=list)

    @property
    def last(self) -> str:
        """The last round in short."""
        return f"{self.drain[-1]:,.0f} jobs/s, CPU {self.cpu_us[-1]:.0f} + {self.server_us[-1]:.0f} us"

    def row(self) -> str:
        """The cells of `COLUMNS`: medians, of the rates with minimum and maximum."""
        worker, server = (f"{statistics.median(spent):,.0f}" for spent in (self.cpu_us, self.server_us))
        return " | ".join(
            (_span(self.drain), worker, server, _span(self.submit), _trip(self.start_s), _trip(self.result_s))
        )


class Processes:
    """Starts them, and keeps what they say on stderr."""

    def __init__(self, folder: Path) -> None:
        self._stamps = folder / "stamps"
        self._log = folder / "log"

    def round(
        self, python: Path, module: str, url: str, jobs: int, trips: int, rates: Rates, server: int | None = None
    ) -> None:
        """Submit `jobs`, drain them, make `trips` round trips, and add what was measured to `rates`.

        `server` is the server's process, where it has one.
        """
        stamps = Stamps.make(self._stamps, jobs + 2 * trips)
        command = [str(python), str(_SIDE), module, url, str(self._stamps)]
        self._ask(command, "prepare")
        submit = self._ask(command, "submit", jobs)["submit"]
        with self._working(command) as worker:
            drain, cpu_us, server_us = self._drain(stamps, jobs, worker, server)
            time.sleep(_SETTLED_S)
            took = self._ask(command, "latency", trips)
        rates.submit.append(submit)
        rates.drain.append(drain)
        rates.cpu_us.append(cpu_us)
        rates.server_us.append(server_us)
        rates.start_s += took["start"]
        rates.result_s += took["result"]

    def _drain(
        self, stamps: Stamps, jobs: int, worker: subprocess.Popen[bytes], server: int | None
    ) -> tuple[float, float, float]:
        warm = jobs // _WARM
        deadline = time.monotonic() + _LONGEST_S
        seen, spent_s = 0, (0.0, 0.0)
        while stamps.count < jobs:
            if time.monotonic() > deadline or worker.poll() is not None:
                raise RuntimeError(f"the worker stopped at {stamps.count} of {jobs} jobs\n{self._said}")
            time.sleep(0.005)
            if not seen and stamps.count >= warm:
                seen, spent_s = stamps.count, (cpu_s(worker.pid), cpu_s(server))
        worker_us, server_us = (
            (now_s - then_s) / max(1, jobs - seen) * 1e6
            for now_s, then_s in zip((cpu_s(worker.pid), cpu_s(server)), spent_s, strict=True)
        )
        return (jobs - warm - 1) / (stamps[jobs - 1] - stamps[warm]), worker_us, server_us

    @contextmanager
    def _working(self, command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
        with self._log.open("ab") as log:
            process = subprocess.Popen([*command, "work"], stdout=subprocess.DEVNULL, stderr=log)
        try:
            yield process
        finally:
            end(process)

    def _ask(self, command: list[str], verb: str, *rest: object) -> Any:
        with self._log.open("ab") as log:
            words = [*command, verb, *map(str, rest)]
            done = subprocess.run(words, stdout=subprocess.PIPE, stderr=log, timeout=_LONGEST_S, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)}\n{self._said}")
        return json.loads(done.stdout.splitlines()[-1])

    @property
    def _said(self) -> str:
        return self._log.read_text(errors="replace")[-2_000:]


def end(process: subprocess.Popen[bytes]) -> None:
    """In order, or else by force."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def cpu_s(pid: int | None) -> float:
    """Seconds that a process has spent, its threads and the children that it has now included."""
    if pid is None:
        return 0.0
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    ticks = 0
    for one in (pid, *children):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks * _TICK_S


def _span(values: list[float]) -> str:
    return f"{statistics.median(values):,.0f} [{min(values):,.0f}-{max(values):,.0f}]"


def _trip(values: list[float]) -> str:
    if not values:
        return "-"
    ordered = sorted(value * 1e3 for value in values)
    return f"{ordered[len(ordered) // 2]:.1f} / {ordered[int(len(ordered) * 0.99)]:.1f}"
