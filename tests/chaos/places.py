"""Where the jobs of a chaos test live: a file, or a real server of its own behind a proxy, and how to break each."""

from __future__ import annotations

import itertools
import os
import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

from taskflow import Settings, TaskFlow
from tests.chaos import app

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.chaos.proxy import Proxy
    from tests.servers.postgres import PostgresServer
    from tests.servers.valkey import ValkeyServer

SERVERS = tuple(name for name in ("redis", "postgres") if find_spec(f"taskflow.brokers.{name}") is not None)
DURABLE = ("sqlite", *SERVERS)
KINDS = {"sqlite": "SqliteBroker", "redis": "RedisBroker", "postgres": "PostgresBroker"}
# Those that complete a job within its handler's own transaction.
COMPLETING = tuple(
    name for name in DURABLE if hasattr(getattr(import_module(f"taskflow.brokers.{name}"), KINDS[name]), "complete_in")
)
_numbers = itertools.count(1)


class Server(Protocol):
    """What `tests.servers` offers."""

    url: str
    port: int

    @property
    def pid(self) -> int: ...
    def start(self) -> object: ...
    def stop(self) -> None: ...
    def kill(self) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...


@dataclass
class Place:
    """`url` goes straight there, `worker_url` through the proxy, if there is one."""

    name: str
    folder: Path
    url: str
    worker_url: str
    namespace: str
    server: Server | None = None
    proxy: Proxy | None = None
    drop_clients: Callable[[], object] = lambda: None  # the server ends every connection
    forget_scripts: Callable[[], object] = lambda: None
    refuse_writes: Callable[[], object] = lambda: None  # as a replica does
    take_writes: Callable[[], object] = lambda: None

    def run(self, statement: str) -> list[tuple[Any, ...]]:
        """One statement in the database that the jobs live in."""
        if self.name == "sqlite":
            with closing(sqlite3.connect(self.folder / "jobs.db")) as connection, connection:
                return connection.execute(statement).fetchall()
        import psycopg

        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def settings(self, url: str | None = None) -> dict[str, str]:
        """The environment of whoever works here."""
        return {
            "TASKFLOW_BROKER__URL": self.worker_url if url is None else url,
            "TASKFLOW_BROKER__NAMESPACE": self.namespace,
            "TASKFLOW_QUEUE__MAX_SIZE": "1000000",
        }

    def flow(self, *, is_direct: bool = True) -> TaskFlow:
        """The same tasks, in this process, for submitting and looking."""
        flow = TaskFlow(settings=Settings.from_env(self.settings(self.url if is_direct else None)))
        for task in app.flow.tasks.values():
            flow.task(**task.definition.declared)(task.definition.fn)
        return flow

    def is_free(self) -> bool:
        """Whether no process holds the file's lock: a worker that is stopped within a commit stops all."""
        if self.name != "sqlite":
            return True
        try:
            with closing(sqlite3.connect(self.folder / "jobs.db", timeout=0.3, isolation_level=None)) as probe:
                probe.execute("BEGIN IMMEDIATE")
                probe.execute("ROLLBACK")
        except sqlite3.OperationalError:
            return False
        return True


def on_sqlite(folder: Path) -> Place:
    """One file."""
    url = f"sqlite:///{folder / 'jobs.db'}"
    return Place("sqlite", folder, url, url, "taskflow")


def on_redis(folder: Path, server: ValkeyServer, proxy: Proxy) -> Place:
    """A Valkey server that logs every write to its AOF."""
    return Place(
        "redis",
        folder,
        server.url,
        proxy.url(server.url),
        _namespace(),
        server,
        proxy,
        drop_clients=lambda: server.ask("CLIENT", "KILL", "TYPE", "normal"),
        forget_scripts=lambda: server.ask("SCRIPT", "FLUSH"),
        refuse_writes=lambda: server.ask("CONFIG", "SET", "min-replicas-to-write", "1"),
        take_writes=lambda: server.ask("CONFIG", "SET", "min-replicas-to-write", "0"),
    )


def on_postgres(folder: Path, server: PostgresServer, proxy: Proxy) -> Place:
    """A PostgreSQL server."""

    def read_only(is_on: str) -> None:
        server.execute(f"ALTER SYSTEM SET default_transaction_read_only = {is_on}")
        server.execute("SELECT pg_reload_conf()")

    return Place(
        "postgres",
        folder,
        server.url,
        proxy.url(server.url),
        _namespace(),
        server,
        proxy,
        drop_clients=lambda: server.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        ),
        refuse_writes=lambda: read_only("on"),
        take_writes=lambda: read_only("off"),
    )


def _namespace() -> str:
    return f"chaos_{os.getpid()}_{next(_numbers)}_{int(time.time())}"
