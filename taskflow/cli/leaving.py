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
        self._news: SimpleQueue[float | None] = SimpleQueue()  # the one queue that a signal handler may put into
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
        self._news.put(time.monotonic() + seconds)

    def call_off(self) -> None:
        """It lives on."""
        self._news.put(None)

    def _watch(self) -> None:
        end_at: float | None = None
        while True:
            try:
                news = self._news.get(timeout=None if end_at is None else max(0.0, end_at - time.monotonic()))
            except Empty:
                break
            if news is None:
                self._is_called_off = True
                self._is_over.set()
                return
            end_at = news if end_at is None else min(end_at, news)
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
