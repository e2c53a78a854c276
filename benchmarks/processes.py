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
from contextlib import contextmanager
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

COLUMNS = "drain, jobs/s | worker CPU, us a job | submit, jobs/s | start, ms p50 / p99 | result, ms p50 / p99"


@dataclass
class Rates:
    """What the rounds gave: jobs a second, microseconds of the worker's CPU a job, and seconds of each round trip."""

    drain: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)
    submit: list[float] = field(default_factory=list)
    start_s: list[float] = field(default_factory=list)
    result_s: list[float] = field(default_factory=list)

    def row(self) -> str:
        """The cells of `COLUMNS`: medians, of the rates with minimum and maximum."""
        cpu = f"{statistics.median(self.cpu_us):,.0f}"
        return " | ".join((_span(self.drain), cpu, _span(self.submit), _trip(self.start_s), _trip(self.result_s)))


class Processes:
    """Starts them, and keeps what they say on stderr."""

    def __init__(self, folder: Path) -> None:
        self._stamps = folder / "stamps"
        self._log = folder / "log"

    def round(self, python: Path, module: str, url: str, jobs: int, trips: int, rates: Rates) -> None:
        """Submit `jobs`, drain them, make `trips` round trips, and add what was measured to `rates`."""
        stamps = Stamps.make(self._stamps, jobs + 2 * trips)
        command = [str(python), str(_SIDE), module, url, str(self._stamps)]
        self._ask(command, "prepare")
        submit = self._ask(command, "submit", jobs)["submit"]
        with self._working(command) as worker:
            drain, cpu_us = self._drain(stamps, jobs, worker)
            time.sleep(_SETTLED_S)
            took = self._ask(command, "latency", trips)
        rates.submit.append(submit)
        rates.drain.append(drain)
        rates.cpu_us.append(cpu_us)
        rates.start_s += took["start"]
        rates.result_s += took["result"]

    def _drain(self, stamps: Stamps, jobs: int, worker: subprocess.Popen[bytes]) -> tuple[float, float]:
        warm = jobs // _WARM
        deadline = time.monotonic() + _LONGEST_S
        seen, spent_s = 0, 0.0
        while stamps.count < jobs:
            if time.monotonic() > deadline or worker.poll() is not None:
                raise RuntimeError(f"the worker stopped at {stamps.count} of {jobs} jobs\n{self._said}")
            time.sleep(0.005)
            if not seen and stamps.count >= warm:
                seen, spent_s = stamps.count, cpu_s(worker.pid)
        cpu_us = (cpu_s(worker.pid) - spent_s) / max(1, jobs - seen) * 1e6
        return (jobs - warm - 1) / (stamps[jobs - 1] - stamps[warm]), cpu_us

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


def cpu_s(pid: int) -> float:
    """Seconds that a process has spent, its threads included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def _span(values: list[float]) -> str:
    return f"{statistics.median(values):,.0f} [{min(values):,.0f}-{max(values):,.0f}]"


def _trip(values: list[float]) -> str:
    if not values:
        return "-"
    ordered = sorted(value * 1e3 for value in values)
    return f"{ordered[len(ordered) // 2]:.1f} / {ordered[int(len(ordered) * 0.99)]:.1f}"
