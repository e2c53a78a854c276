"""One child process, as the worker sees it: asked, answered, ended or killed (`runtime.child` is its inside)."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

from taskflow.runtime.frames import Frame, receive

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from taskflow.clock import Timer
    from taskflow.runtime.importing import Where

_DYING_S = 1.0  # real seconds from the end of its pipe to the end of the process


class NoProcess(Exception):
    """The system starts no more processes."""


class ProcessDied(Exception):
    """The child ended in the middle of its work: by a signal, out of memory, or by `os._exit`."""


class Child:
    """One child process, as the worker sees it."""

    def __init__(
        self, process: asyncio.subprocess.Process, pipe: tuple[asyncio.StreamReader, asyncio.StreamWriter]
    ) -> None:
        self._process = process
        self._reader, self._writer = pipe
        self._why_killed: str | None = None
        self._is_asked = False
        self.loaded: set[Where] = set()
        self.verdict: Frame | ProcessDied | None = None  # why it cannot run what it was taken for
        self.jobs = 0
        self.timer: Timer | None = None  # until it has been idle for too long
        self.gone = asyncio.create_task(self._be_gone(), name=f"taskflow child {process.pid}")

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ask(self, order: Frame, on_note: Callable[[Frame], Awaitable[Frame]]) -> Frame | ProcessDied:
        """Its answer to `order`. Whoever cancels this has to kill it: the answer would come later."""
        self._is_asked = True
        self._writer.write(order.dump())
        try:
            while True:
                with suppress(ConnectionError):  # it is dead, and may have said something before
                    await self._writer.drain()
                answer = await receive(self._reader)
                if answer.head["is"] != "note":
                    return answer
                self._writer.write((await on_note(answer)).dump())
        except (EOFError, ConnectionError):
            await asyncio.wait([self.gone], timeout=_DYING_S)
            self.kill("closed its pipe to the worker, and was killed")
        except (ValueError, KeyError) as error:
            self.kill(f"sent the worker what is no frame ({error}), and was killed")
        finally:
            self._is_asked = False
        await asyncio.wait([self.gone])
        self._writer.close()
        return ProcessDied(f"the process {self._how_it_went()}")

    def end(self) -> None:
        """Let it end by itself: it has nothing to do."""
        self._writer.close()

    def kill(self, why: str | None = None) -> None:
        """End it at once, with all that runs in its process group. `why` is for what was not asked of it."""
        if self._process.returncode is None:
            self._why_killed = self._why_killed or why
            self._kill_group()

    def _kill_group(self) -> None:
        with suppress(ProcessLookupError, PermissionError):  # the latter is what macOS says of a zombie
            os.killpg(self._process.pid, signal.SIGKILL)

    async def _be_gone(self) -> None:
        await self._process.wait()
        self._kill_group()  # what the handler started, and did not wait for: it may hold the pipe open
        if not self._is_asked:  # else there may be an answer to read before the end
            self._writer.close()

    def _how_it_went(self) -> str:
        code = self._process.returncode
        if code is None or (self._why_killed is not None and code == -signal.SIGKILL):
            return self._why_killed or "was killed"
        if code >= 0:
            return f"died with exit code {code}"
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = str(-code)
        hint = _HINTS.get(name, "")
        return f"died with signal {name}{hint}"


_HINTS = {
    "SIGXCPU": ": it used up TASKFLOW_WORKER__CHILD_CPU_S",
    "SIGKILL": ": the system may be out of memory",
}
