"""A bounded pool of daemon threads for sync handlers.

`concurrent.futures` joins its threads at interpreter exit: one handler that hangs would keep a drained worker alive
for ever. Here a thread that is given up on is counted, keeps its slot until it really ends, and never delays the exit.
"""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_Work = tuple["asyncio.Future[Any]", "asyncio.AbstractEventLoop", contextvars.Context, "Callable[[], Any]"]


class NoThread(Exception):
    """The system starts no more threads."""


class ThreadSlots:
    """At most `limit` handlers at once. Threads start when they are first needed and wait for more work."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.taken = 0
        self.abandoned = 0
        self._threads = 0
        self._work: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._waiters: deque[asyncio.Future[None]] = deque()

    @property
    def is_crowded(self) -> bool:
        """Whether one more need not wait: all threads were given up on, or the next of each is waiting already."""
        return self.abandoned >= self.limit or len(self._waiters) >= self.limit

    def try_take(self) -> bool:
        """Take a slot if one is free and nobody waits for it."""
        if self.taken < self.limit and not self._waiters:
            self.taken += 1
            return True
        return False

    async def take(self) -> None:
        """Wait for a slot, in order of arrival."""
        if self.try_take():
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self.give_back()  # the slot was handed over in the very moment in which we were cancelled
            else:
                with suppress(ValueError):  # `give_back` may have passed it over already
                    self._waiters.remove(waiter)
            raise

    def give_back(self) -> None:
        """Free a slot: hand it to the first who waits."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self.taken -= 1

    def start(self, work: Callable[[], Any]) -> asyncio.Future[Any]:
        """Run `work` in a thread, in a copy of this context. The caller holds a slot, and gives it back.

        Raises `NoThread`.
        """
        if self._threads < self.taken:  # one for each slot in use: never a job without a thread
            thread = threading.Thread(target=self._serve, name=f"taskflow-job-{self._threads + 1}", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                raise NoThread(str(error)) from error
            self._threads += 1
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._work.put((future, loop, contextvars.copy_context(), work))
        return future

    def close(self) -> None:
        """Let idle threads end. Those at work end when their handler does, or with the process."""
        for _ in range(self._threads):
            self._work.put(None)

    def _serve(self) -> None:
        while True:
            item = self._work.get()
            if item is None:
                return
            future, loop, context, work = item
            try:
                result, error = context.run(work), None
            except BaseException as caught:  # noqa: BLE001 - it is handed to whoever waits, whatever it is
                result, error = None, caught
            try:
                loop.call_soon_threadsafe(_resolve, future, result, error)
            except RuntimeError:
                return  # the loop is closed: nobody waits any more
            del item, future, context, work, result, error  # hold nothing of a job while waiting for the next


def _resolve(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    elif isinstance(error, Exception) and not isinstance(error, StopIteration):
        future.set_exception(error)
    else:  # a future carries no StopIteration, and in the loop the others would be more than this handler's end
        wrapped = RuntimeError(f"the handler raised {type(error).__name__}: {error}")
        wrapped.__cause__ = error
        future.set_exception(wrapped)
