"""Futures by the name of what they wait for: a job that is to end, a queue that is to have work. All brokers use it."""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import TYPE_CHECKING, Any

from taskflow.errors import JobNotFound

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class Awaited:
    """What is waited for here. Used in one loop; another thread may look whether there is anything."""

    __slots__ = ("by_name",)

    def __init__(self) -> None:
        self.by_name: dict[str, set[asyncio.Future[Any]]] = {}  # none is empty

    def __len__(self) -> int:
        return len(self.by_name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_name)

    def add(self, names: Iterable[str], future: asyncio.Future[Any]) -> None:
        """`future` waits for any of these."""
        for name in names:
            self.by_name.setdefault(name, set()).add(future)

    def remove(self, names: Iterable[str], future: asyncio.Future[Any]) -> None:
        """It waits for these no more."""
        for name in names:
            waiting = self.by_name.get(name)
            if waiting is not None:
                waiting.discard(future)
                if not waiting:
                    del self.by_name[name]

    def tell(self, names: Iterable[str]) -> None:
        """It has come for these. Whoever waits removes itself."""
        if not self.by_name:
            return
        for name in names:
            for future in self.by_name.get(name, ()):
                resolve(future)

    def tell_all(self) -> None:
        """It may have come for all: nobody knows what was said meanwhile, or the broker closes."""
        for waiting in self.by_name.values():
            for future in waiting:
                resolve(future)


def resolve(future: asyncio.Future[Any]) -> None:
    """Its result is None, unless it has one."""
    if not future.done():
        future.set_result(None)


async def settled(future: asyncio.Future[Any], timeout_s: float) -> bool:
    """Whether `future` was resolved within `timeout_s`. It stays as it is otherwise."""
    done, _ = await asyncio.wait((future,), timeout=max(0.0, timeout_s))
    return bool(done)


def not_kept(job_ids: Iterable[str]) -> JobNotFound:
    """Nobody can wait for these to end."""
    asked = ", ".join(islice(job_ids, 3))
    return JobNotFound(f"no such job is kept: {asked}; the id is wrong, or its retention is over")
