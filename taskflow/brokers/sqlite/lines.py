"""Threads that do the work of verbs, in order: `Line`. Each verb is an `Op`, answered through its loop.

All ops that wait are taken at once, so that one commit, and one wake-up of the loop, serve the whole group.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

GROUP_ROWS = 5_000  # of one group: a bound for how long other processes wait for the lock


@dataclass(slots=True, eq=False)
class Op:
    """One verb: `call` gets whatever the line works with. `rows` tells how much work it is."""

    call: Callable[[Any], Any]
    future: asyncio.Future[Any]
    rows: int = 1
    answer: Any = None
    error: BaseException | None = None


class Line:
    """One thread that serves ops in groups: `serve` sets each op's answer or error.

    `serve_late` is called after the seconds that `late_s` names (None: nothing is due). `end` is called last, in the
    thread.
    """

    def __init__(
        self,
        name: str,
        serve: Callable[[list[Op]], None],
        end: Callable[[], None],
        *,
        late_s: Callable[[], float | None] = lambda: None,
        serve_late: Callable[[], None] = lambda: None,
    ) -> None:
        self._serve, self._end, self._late_s, self._serve_late = serve, end, late_s, serve_late
        self._ops: SimpleQueue[Op | None] = SimpleQueue()
        self._last: Op | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, op: Op) -> None:
        self._ops.put(op)

    def stop(self) -> asyncio.Future[None]:
        """Serve what waits, then end. The answer comes when all is done, and need not be waited for."""
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._last = Op(nothing, ended)
        self._ops.put(None)
        return ended

    def join(self) -> None:
        """After `stop` was answered: the thread is about to be gone."""
        self._thread.join()

    def _run(self) -> None:
        is_last = False
        while not is_last:
            late_s = self._late_s()
            try:
                op = self._ops.get(timeout=late_s)
            except Empty:
                self._serve_late()
                continue
            is_last = self._serve_group(op)
            if late_s is not None:  # even when ops keep coming
                self._serve_late()
        self._end()
        if self._last is not None:
            answer([self._last])

    def _serve_group(self, op: Op | None) -> bool:
        """Serve `op` and all that waits behind it; True when the line is told to end."""
        ops: list[Op] = []
        rows = 0
        with contextlib.suppress(Empty):
            while op is not None:
                if not op.future.cancelled():  # nobody waits for it any more, and nothing was done yet
                    ops.append(op)
                    rows += op.rows
                if rows >= GROUP_ROWS:
                    break
                op = self._ops.get_nowait()
        if ops:
            try:
                self._serve(ops)
            except Exception as error:  # noqa: BLE001 - a bug of ours: its callers hear of it, and the line goes on
                for op in ops:
                    op.error = op.error or error
            answer(ops)
        return op is None


def nothing(_: object) -> None:
    """What an op calls that only wants an answer."""


def answer(ops: list[Op]) -> None:
    """Hand the answers to the loops that asked: one wake-up for each. A handler in a thread may have one of its own."""
    asked: dict[asyncio.AbstractEventLoop, list[Op]] = {}
    for op in ops:
        asked.setdefault(op.future.get_loop(), []).append(op)
    for loop, theirs in asked.items():
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to hear
            loop.call_soon_threadsafe(_resolve, theirs)


def _resolve(ops: list[Op]) -> None:
    for op in ops:
        if op.future.done():  # its caller was cancelled
            continue
        if op.error is None:
            op.future.set_result(op.answer)
        else:
            op.future.set_exception(op.error)
