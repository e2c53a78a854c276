"""One process of a contestant, run in the contestant's own virtual environment: its worker, or its producer.

    python side.py CONTESTANT URL STAMPS prepare|work|submit|latency [COUNT]

Knows nothing of taskflow and needs the standard library alone. What it measures it prints as one line of JSON.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import mmap
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Protocol

CONCURRENCY = 100
BULK = 1_000  # jobs of one bulk submit, where there is one
AT_ONCE = 32  # single submits in flight, where there is none
_LOOK_S = 0.0005


class Stamps:
    """Instants at which job bodies ran, shared between processes: a count, then as many doubles."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._cells = memoryview(mmap.mmap(file.fileno(), 0)).cast("d")

    @staticmethod
    def make(path: Path, room: int) -> Stamps:
        with path.open("wb") as file:
            file.truncate(8 * (room + 1))
        return Stamps(path)

    def stamp(self) -> None:
        """A job runs. About a microsecond, and the same clock in every process (CLOCK_MONOTONIC)."""
        count = int(self._cells[0]) + 1
        self._cells[count] = time.perf_counter()
        self._cells[0] = count

    @property
    def count(self) -> int:
        return int(self._cells[0])

    def __getitem__(self, number: int) -> float:
        """The instant of the run with that number, from 0."""
        return self._cells[number + 1]


class Contestant(Protocol):
    """What each module in `contestants` has as `Queue`."""

    has_bulk: bool

    def __init__(self, url: str, stamps: Stamps) -> None: ...

    async def prepare(self) -> None:
        """Make the schema, on an empty server."""

    async def open(self) -> None:
        """Connect, to submit."""

    async def one(self, number: int) -> Any:
        """Submit one job. Returns what `result` takes."""

    async def bulk(self, numbers: range) -> None:
        """Submit many, in the contestant's own way for that."""

    async def result(self, submitted: Any) -> bool:
        """Wait for the result. False at once, where none is kept."""

    async def work(self) -> None:
        """Run jobs until the process is told to stop."""


async def submit(queue: Contestant, count: int) -> dict[str, float]:
    await queue.open()
    began = time.perf_counter()
    if queue.has_bulk:
        for start in range(0, count, BULK):
            await queue.bulk(range(start, min(count, start + BULK)))
    else:
        await asyncio.gather(*(_one_by_one(queue, range(first, count, AT_ONCE)) for first in range(AT_ONCE)))
    return {"submit": count / (time.perf_counter() - began)}


async def _one_by_one(queue: Contestant, numbers: range) -> None:
    for number in numbers:
        await queue.one(number)


async def latency(queue: Contestant, stamps: Stamps, count: int) -> dict[str, list[float]]:
    """One job at a time, the worker idle before each: seconds to the start of its body, and to its result."""
    await queue.open()
    start_s: list[float] = []
    result_s: list[float] = []
    for number in range(count + count // 10):
        seen = stamps.count
        began = time.perf_counter()
        submitted = await queue.one(number)
        if await queue.result(submitted):
            result_s.append(time.perf_counter() - began)
        while stamps.count == seen:  # noqa: ASYNC110 - another process writes them
            await asyncio.sleep(_LOOK_S)
        start_s.append(stamps[seen] - began)
        await asyncio.sleep(0.005)
    warm = count // 10
    return {"start": start_s[warm:], "result": result_s[warm:]}


def main() -> None:
    name, url, stamps_path, verb, *rest = sys.argv[1:]
    stamps = Stamps(Path(stamps_path))
    queue: Contestant = importlib.import_module(f"contestants.{name}").Queue(url, stamps)
    count = int(rest[0]) if rest else 0
    works: dict[str, Coroutine[Any, Any, Any]] = {}
    match verb:
        case "prepare":
            works[verb] = queue.prepare()
        case "work":
            works[verb] = queue.work()
        case "submit":
            works[verb] = submit(queue, count)
        case _:
            works[verb] = latency(queue, stamps, count)
    print(json.dumps(run(works[verb])), flush=True)


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """On uvloop where it is: it is in the environment of every peer."""
    factory = importlib.import_module("uvloop").new_event_loop if importlib.util.find_spec("uvloop") else None
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(work)


if __name__ == "__main__":
    main()
