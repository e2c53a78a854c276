"""Bodies that do as they are told."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taskflow.clock import Clock


class Body:
    """`await body()`: what it was told, in turn; the last for ever. Exceptions are raised. Counts and times its runs."""

    def __init__(self, *told: Any, clock: Clock | None = None, takes_s: float = 0.0) -> None:
        self.told = list(told) or ["done"]
        self.clock = clock
        self.takes_s = takes_s
        self.runs = 0
        self.at: list[float] = []

    async def __call__(self) -> Any:
        self.runs += 1
        if self.clock is not None:
            self.at.append(self.clock.now())
            if self.takes_s:
                await self.clock.sleep(self.takes_s)
        say = self.told[min(self.runs, len(self.told)) - 1]
        if isinstance(say, BaseException):
            raise say
        return say


class Hung:
    """`await body()` for ever, until `let_go()` or a cancellation."""

    def __init__(self) -> None:
        self.running = 0
        self.most = 0
        self._ended = asyncio.Event()

    async def __call__(self) -> str:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self._ended.wait()
        finally:
            self.running -= 1
        return "done"

    def let_go(self) -> None:
        self._ended.set()


def errors(results: Iterable[Any], kind: type[BaseException]) -> int:
    return sum(isinstance(result, kind) for result in results)
