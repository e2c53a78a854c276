"""One server of each kind a session, which every test leaves running and mended; a namespace for each test."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.chaos.places import COMPLETING, DURABLE, SERVERS, Place, on_postgres, on_redis, on_sqlite
from tests.chaos.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.servers.postgres import PostgresServer
    from tests.servers.valkey import ValkeyServer


@pytest.fixture(scope="session")
def valkey() -> Iterator[ValkeyServer]:
    """With `everysec`, a server that is killed while a sync is under way has answered what it has not written yet."""
    from tests.servers.valkey import ValkeyServer

    with ValkeyServer(aof=True, fsync=os.environ.get("CHAOS_AOF", "always")) as server:
        yield server


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgresServer]:
    from tests.servers.postgres import PostgresServer, binaries, needed

    needed()
    with PostgresServer(bin_folder=binaries()) as server:
        yield server


def _place(name: str, request: pytest.FixtureRequest, folder: Path) -> Iterator[Place]:
    if name == "sqlite":
        yield on_sqlite(folder)
        return
    server = request.getfixturevalue("valkey" if name == "redis" else "postgresql")
    with Proxy(server.port) as proxy:
        yield (on_redis if name == "redis" else on_postgres)(folder, server, proxy)


@pytest.fixture(params=DURABLE)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Each durable broker."""
    yield from _place(request.param, request, tmp_path)


@pytest.fixture(params=SERVERS)
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Each broker that is a server."""
    yield from _place(request.param, request, tmp_path)


@pytest.fixture(params=COMPLETING)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Each broker that completes a job within a transaction."""
    yield from _place(request.param, request, tmp_path)


@pytest.fixture
def file(tmp_path: Path) -> Place:
    """One SQLite file."""
    return on_sqlite(tmp_path)
