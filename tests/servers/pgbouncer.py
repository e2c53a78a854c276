"""A PgBouncer of the test's own, in front of a PostgreSQL server: a few server connections for many clients.

Which one, in this order: the binary at `TASKFLOW_TEST_PGBOUNCER`, `pgbouncer` on PATH or where Debian keeps it. With
`TASKFLOW_TEST_THROUGH=pgbouncer` the contract of brokers runs through it, too.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit, urlunsplit

import pytest

from tests.servers.ports import free_port

if TYPE_CHECKING:
    from types import TracebackType

    from tests.servers.postgres import PostgresServer

_START_S, _END_S = 10.0, 10.0


def is_chosen() -> bool:
    """Whether the contract is to run through PgBouncer."""
    return os.environ.get("TASKFLOW_TEST_THROUGH") == "pgbouncer"


def binary() -> str:
    """The program. Without it the test is skipped; in CI it fails."""
    found = (
        os.environ.get("TASKFLOW_TEST_PGBOUNCER") or shutil.which("pgbouncer") or shutil.which("/usr/sbin/pgbouncer")
    )
    if found:
        return found
    message = "no PgBouncer: put pgbouncer on PATH, or name it in TASKFLOW_TEST_PGBOUNCER"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


class PgBouncer:
    """One pooler on a free port of loopback. `mode` is transaction, session or statement."""

    def __init__(self, server: PostgresServer, *, mode: str = "transaction", pool_size: int = 2) -> None:
        self._program = binary()
        self._server = urlsplit(server.url)
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="tf-pgb-"))
        (self.folder / "users").write_text(f'"{self._server.username}" "{self._server.password or ""}"\n')
        (self.folder / "ini").write_text(
            "[databases]\n"
            f"* = host={self._server.hostname} port={self._server.port or 5432}\n"
            "[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {self.port}\nunix_socket_dir =\n"
            f"auth_type = trust\nauth_file = {self.folder}/users\n"
            f"pool_mode = {mode}\ndefault_pool_size = {pool_size}\nmax_client_conn = 500\n"
            + ("user = nobody\n" if os.geteuid() == 0 else "")
        )
        for path in (self.folder, self.folder / "users", self.folder / "ini"):
            path.chmod(0o755)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The server's URL, but through here."""
        user, _, _ = self._server.netloc.rpartition("@")
        return urlunsplit(self._server._replace(netloc=f"{user}@127.0.0.1:{self.port}"))

    def start(self) -> Self:
        """Run, and accept. Raises `RuntimeError` if it ends."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, str(self.folder / "ini")], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + _START_S
        while not self._accepts():
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = (self.folder / "log").read_text(errors="replace")[-2_000:]
                self.close()
                raise RuntimeError(f"{self._program} did not start:\n{said}")
            time.sleep(0.01)
        return self

    def close(self) -> None:
        """End at once, and forget everything."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _accepts(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1.0).close()
        except OSError:
            return False
        return True
