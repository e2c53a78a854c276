"""What the servers of the tests share: a process of our own, ended by its pid, and a folder that goes with it."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

_END_S = 30.0


class OwnServer(ABC):
    """One server on loopback, its data in `folder`. `with` starts it, and closes it at the end."""

    folder: Path
    _process: subprocess.Popen[bytes] | None = None
    _is_paused = False

    @abstractmethod
    def start(self) -> Self:
        """Run, and answer. Raises `RuntimeError` if it ends; the data stays."""

    @abstractmethod
    def kill(self) -> None:
        """End as in a crash."""

    def resume(self) -> None:
        """Go on after a pause. For those that can be paused."""
        raise NotImplementedError

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server does not run"
        return self._process.pid

    def close(self) -> None:
        """End, and forget the data."""
        if self._process is not None:
            self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _end(self, by: signal.Signals) -> None:
        process = self._process
        assert process is not None, "the server does not run"
        if self._is_paused:
            self.resume()
        self._process = None
        process.send_signal(by)
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port
