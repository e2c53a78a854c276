"""Waiting inside a broker: for a job to end, a queue to have work, the calls under way to be over. All use it."""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import TYPE_CHECKING, Any

from taskflow.errors import BrokerError, JobNotFound

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


class UnderWay:
    """Calls that are under way, each within a `with`: whoever closes lets them end. Used in one loop."""

    __slots__ = ("_calls", "_quiet")

    def __init__(self) -> None:
        self._calls = 0
        self._quiet: asyncio.Future[None] | None = None

    def __enter__(self) -> None:
        self._calls += 1

    def __exit__(self, *exc: object) -> None:
        self._calls -= 1
        if not self._calls and self._quiet is not None:
            resolve(self._quiet)

    async def ended(self, within_s: float) -> None:
        """Wait until there is none, at most `within_s`. One that follows another in the same task counts, too."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + within_s
        while self._calls and loop.time() < give_up_at:
            if self._quiet is None or self._quiet.done():
                self._quiet = loop.create_future()
            await settled(self._quiet, give_up_at - loop.time())


def resolve(future: asyncio.Future[Any]) -> None:
    """Its result is None, unless it has one."""
    if not future.done():
        future.set_result(None)


def fail(future: asyncio.Future[Any], error: Exception) -> None:
    """It raises `error`."""
    future.set_exception(error)
    future.exception()  # whoever waited for it may be gone: asyncio need not tell


async def settled(future: asyncio.Future[Any], timeout_s: float) -> bool:
    """Whether `future` was resolved within `timeout_s`. It stays as it is otherwise."""
    done, _ = await asyncio.wait((future,), timeout=max(0.0, timeout_s))
    return bool(done)


def closed_meanwhile(where: str) -> BrokerError:
    """Whether the jobs have ended is not known: that is not the same as an end that did not come in time."""
    return BrokerError(f"{where} was closed while a job's end was waited for")


def not_kept(job_ids: Iterable[str]) -> JobNotFound:
    """Nobody can wait for these to end."""
    asked = ", ".join(islice(job_ids, 3))
    return JobNotFound(f"no such job is kept: {asked}; the id is wrong, or its retention is over")
