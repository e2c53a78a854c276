"""The brokers that the contract runs over: a new one joins by a name and a line in `made`."""

from __future__ import annotations

import atexit
import itertools
import os
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

from tests.servers import pgbouncer
from tests.servers.pgbouncer import PgBouncer
from tests.servers.postgres import PostgresServer
from tests.servers.valkey import forget_namespace, new_namespace, valkey_url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from taskflow.brokers.base import FullBroker

_numbers = itertools.count(1)
_NAMES = ("memory", "sqlite", "redis", "postgres")

BROKERS = [name for name in _NAMES if find_spec(f"taskflow.brokers.{name}") is not None]


def made(name: str, folder: Path) -> FullBroker:
    """A broker of this name with nothing in it, not open yet."""
    if name == "memory":
        from taskflow.brokers.memory import MemoryBroker

        return MemoryBroker()
    if name == "sqlite":
        from taskflow.brokers.sqlite import SqliteBroker

        return SqliteBroker(folder / "taskflow.db")
    if name == "redis":
        from taskflow.brokers.redis import RedisBroker

        return RedisBroker(valkey_url(), namespace=new_namespace())
    if name == "postgres":
        from taskflow.brokers.postgres import PostgresBroker

        url = f"{pooler().url}?listen=off" if pgbouncer.is_chosen() else postgres().url
        return PostgresBroker(url, namespace=f"test_{os.getpid()}_{next(_numbers)}")
    raise AssertionError(name)


@cache
def postgres() -> PostgresServer:
    """The server of this process's tests: each test has a schema of its own in it."""
    server = PostgresServer(outside=True).start()
    atexit.register(server.close)
    return server


@cache
def pooler() -> PgBouncer:
    """A PgBouncer in front of it: two server connections for whoever comes."""
    pooler = PgBouncer(postgres()).start()
    atexit.register(pooler.close)
    return pooler


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=BROKERS)
async def broker(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[FullBroker]:
    broker = made(request.param, tmp_path)
    await broker.open()
    yield broker
    await broker.close()
    if request.param == "redis":
        forget_namespace(broker._link.namespace)
