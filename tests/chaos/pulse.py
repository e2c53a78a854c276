"""Whether the machine itself stood still: a thread that only sleeps, and notes when it woke too late.

Whoever says that a worker lost its lease because the machine was busy has to show it.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple, Self

EVERY_S, SYNC_EVERY_S = 0.05, 0.2
STALL_S = 0.5  # a beat is due every third of a lease: with two seconds of it, this is most of what there is in between


class Still(NamedTuple):
    """A process (0: the test itself, and its disk) stood still from when to when."""

    pid: int
    began_at: float
    ended_at: float


class Pulse(AbstractContextManager["Pulse"]):
    """Notes in `file` each time this process stood still. With `syncs`, the disk under that file counts, too."""

    def __init__(self, file: Path, *, pid: int, syncs: bool = False) -> None:
        self._file, self._pid, self._syncs = file, pid, syncs
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="chaos-pulse", daemon=True)

    def start(self) -> Self:
        self._thread.start()
        return self

    def _beat(self) -> None:
        probe = self._file.with_name(f"{self._file.name}.probe")
        every_s = SYNC_EVERY_S if self._syncs else EVERY_S
        began_at = time.time()
        while not self._stop.wait(every_s):
            if self._syncs:
                with probe.open("wb") as one:
                    one.write(b"x")
                    os.fsync(one.fileno())
            ended_at = time.time()
            if ended_at - began_at > every_s + STALL_S:
                with self._file.open("a") as notes:
                    notes.write(f"{self._pid} {began_at:.6f} {ended_at:.6f}\n")
            began_at = ended_at

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()


def noted(file: Path) -> list[Still]:
    """Each time that any process stood still."""
    if not file.exists():
        return []
    words = (line.split() for line in file.read_text().splitlines())
    return [Still(int(pid), float(began_at), float(ended_at)) for pid, began_at, ended_at in words]
