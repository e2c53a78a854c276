"""Real worker processes on one real broker, and the ledger that they write outside it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from tests.chaos.places import Place

REPO = Path(__file__).parents[2]


class Line(NamedTuple):
    """One line of the ledger."""

    event: str
    number: int
    pid: int
    token: int
    at: float


_LET_GO_S = 0.02


class Fleet(AbstractContextManager["Fleet"]):
    """Worker processes that end with the block, whatever happens."""

    def __init__(self, place: Place, **settings: object) -> None:
        self.place = place
        self.folder = place.folder
        self.ledger = place.folder / "ledger"
        self.ledger.touch()
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("TASKFLOW_")},
            **place.settings(),
            "TASKFLOW_HTTP__PORT": "0",
            "TASKFLOW_LOG__FORMAT": "json",
            "TASKFLOW_WORKER__LEASE_S": "1",
            "CHAOS_LEDGER": str(self.ledger),
            "CHAOS_DATABASE": place.url,
            **{f"TASKFLOW_{name}": str(value) for name, value in settings.items()},
        }
        self.workers: list[subprocess.Popen[bytes]] = []
        self.killed: dict[int, float] = {}  # pid → when
        self._started = 0

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        """One more worker."""
        self._started += 1
        log = (self.folder / f"worker-{self._started}.log").open("wb")
        command = [sys.executable, "-m", "taskflow", "worker", "tests.chaos.app", *options]
        worker = subprocess.Popen(command, env=self.env, cwd=REPO, stdout=log, stderr=log)
        log.close()
        self.workers.append(worker)
        return worker

    def kill(self, worker: subprocess.Popen[bytes]) -> None:
        """kill -9, and remember when."""
        self.killed[worker.pid] = time.time()
        worker.kill()
        worker.wait()
        self.workers.remove(worker)

    def stop(self, worker: subprocess.Popen[bytes]) -> None:
        """SIGSTOP, at a moment at which it keeps nobody else from the broker."""
        threads = Path(f"/proc/{worker.pid}/task")
        while True:
            worker.send_signal(signal.SIGSTOP)
            while any(stat.read_text().rpartition(")")[2].split()[0] != "T" for stat in threads.glob("*/stat")):
                """One thread after the other comes to a stop."""
            if self.place.is_free():
                return
            # It holds what the others wait for. It must get the time to let go: stopped again at once, it never would.
            worker.send_signal(signal.SIGCONT)
            time.sleep(_LET_GO_S)

    def restart_dead(self) -> int:
        """Start a new worker for each that died by itself. Returns how many."""
        dead = [worker for worker in self.workers if worker.poll() is not None]
        for worker in dead:
            self.killed[worker.pid] = time.time()
            self.workers.remove(worker)
            self.start()
        return len(dead)

    def lines(self) -> list[Line]:
        """The ledger so far."""
        return [
            Line(event, int(number), int(pid), int(token), float(at))
            for event, number, pid, token, at in (line.split() for line in self.ledger.read_text().splitlines())
        ]

    def starts(self) -> dict[int, list[Line]]:
        """Who started each job, in order."""
        found: dict[int, list[Line]] = defaultdict(list)
        for line in self.lines():
            if line.event == "start":
                found[line.number].append(line)
        return found

    def told(self) -> dict[str, set[int]]:
        """The claims of each job, by id, of whose success the broker has told their workers."""
        found: dict[str, set[int]] = defaultdict(set)
        path = Path(f"{self.ledger}.told")
        for line in path.read_text().splitlines() if path.exists() else ():
            job_id, token = line.split()
            found[job_id].add(int(token))
        return found

    def logs(self) -> str:
        """What all workers said."""
        return "\n".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("worker-*.log")))

    def events(self, *names: str) -> list[dict[str, Any]]:
        """The log's lines of these events, of all workers."""
        wanted = [f'"{name}"' for name in names]
        return [json.loads(line) for line in self.logs().splitlines() if any(name in line for name in wanted)]

    def __exit__(self, *exc: object) -> None:
        for worker in self.workers:
            worker.send_signal(signal.SIGCONT)  # one that is stopped cannot die
            worker.kill()
            worker.wait()


async def until(condition: object, *, seconds: float, what: str) -> None:
    """Poll an (async) condition until it holds; fail after `seconds`."""
    give_up_at = time.monotonic() + seconds
    while True:
        answer = condition()  # type: ignore[operator]
        if asyncio.iscoroutine(answer):
            answer = await answer
        if answer:
            return
        assert time.monotonic() < give_up_at, f"not within {seconds:g} s: {what}"
        await asyncio.sleep(0.02)
