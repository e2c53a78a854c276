"""The last resort: the process ends at its deadline, whatever in it does not.

The event loop waits at its end for tasks that go on although they were cancelled, and for the threads of
`asyncio.to_thread`, however long, and the interpreter then waits for the app's own threads; a handler that blocks the
loop keeps it from hearing of any deadline. A supervisor would kill the process then, a little later, and nobody would
know why.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import suppress
from math import inf
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

import click

from taskflow.telemetry.logs import announce

if TYPE_CHECKING:
    from collections.abc import Callable

    from taskflow.cli.exits import Exit

_SAY_S = 0.3  # to say so: whoever reads our lines may have stopped reading


class Leaving:
    """A thread that ends the process with `code`, else `stop_code()`, unless it ended by itself.

    May be told from a signal handler.
    """

    def __init__(self, stop_code: Callable[[], Exit]) -> None:
        self._stop_code = stop_code
        # Whether a deadline is the loop's, and when it is. Of all queues a signal handler may put into this one alone.
        self._news: SimpleQueue[tuple[bool, float] | None] = SimpleQueue()
        self._is_called_off = False
        self._is_over = threading.Event()
        self.code: Exit | None = None  # what the process ends with, once that is known
        self.words = ""  # what the process would have said at its end
        # Both now: an interpreter that waits at its end for the app's threads starts none.
        self._saying = threading.Thread(target=self._say, name="taskflow last words", daemon=True)
        self._saying.start()
        threading.Thread(target=self._watch, name="taskflow exit", daemon=True).start()

    def within(self, seconds: float) -> None:
        """The process has to be gone in so many seconds. The earliest deadline counts."""
        self._news.put((False, time.monotonic() + seconds))

    def loop_ends_within(self, seconds: float) -> None:
        """Nor may the loop need longer than this to end."""
        self._news.put((True, time.monotonic() + seconds))

    def loop_ended(self) -> None:
        """What is left is the app's: its threads, and what it does at exit. `within` goes on to hold."""
        self._news.put((True, inf))

    def call_off(self) -> None:
        """It lives on."""
        self._news.put(None)

    def _watch(self) -> None:
        end_at = loop_end_at = inf
        while True:
            due_at = min(end_at, loop_end_at)
            try:
                news = self._news.get(timeout=None if due_at == inf else max(0.0, due_at - time.monotonic()))
            except Empty:
                break
            if news is None:
                self._is_called_off = True
                self._is_over.set()
                return
            is_of_loop, at = news
            if is_of_loop:
                loop_end_at = at
            else:
                end_at = min(end_at, at)
        code = self.code if self.code is not None else self._stop_code()
        self._is_over.set()
        self._saying.join(_SAY_S)
        os._exit(code)

    def _say(self) -> None:
        self._is_over.wait()
        if self._is_called_off:
            return
        announce("worker.left")
        with suppress(OSError, ValueError):  # whoever reads our output has gone
            if self.words:
                click.echo(self.words, err=True)
            sys.stdout.flush()
