"""A bounded pool of daemon threads for sync handlers.

`concurrent.futures` joins its threads at interpreter exit: one handler that hangs would keep a drained worker alive
for ever. Here a thread that is given up on is counted, keeps its slot until it really ends, and never delays the exit.
"""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading
from typing import TYPE_CHECKING, Any

from taskflow.runtime.places import Places

if TYPE_CHECKING:
    from collections.abc import Callable

_Work = tuple["asyncio.Future[Any]", "asyncio.AbstractEventLoop", contextvars.Context, "Callable[[], Any]"]


class NoThread(Exception):
    """The system starts no more threads."""


class ThreadSlots:
    """At most `limit` handlers at once. Threads start when they are first needed and wait for more work."""

    def __init__(self, limit: int) -> None:
        self.places = Places(limit, "threads_busy")
        self._threads = 0
        self._work: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()

    def start(self, work: Callable[[], Any]) -> asyncio.Future[Any]:
        """Run `work` in a thread, in a copy of this context. The caller holds a place, and gives it back.

        Raises `NoThread`.
        """
        if self._threads < self.places.taken:  # one for each place in use: never a job without a thread
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
