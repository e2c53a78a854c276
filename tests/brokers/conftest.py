"""The brokers that the contract runs over: a new one joins by a name and a line in `made`."""

from __future__ import annotations

import atexit
import itertools
import os
import time
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

from taskflow.clock import LoopClock
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


class TravelClock(LoopClock):
    """The real time, and as far ahead of it as a test has travelled. `stepped_s` of that, no time has passed."""

    def __init__(self) -> None:
        super().__init__()
        self.ahead_s = 0.0
        self.stepped_s = 0.0

    def wall(self) -> float:
        return time.time() + self.ahead_s

    def steady(self) -> float:
        return time.monotonic() + self.ahead_s - self.stepped_s

    def step(self, by_s: float) -> None:
        """As a clock that is corrected, or a failover to one that shows another time."""
        self.ahead_s += by_s
        self.stepped_s += by_s


def made(name: str, folder: Path, clock: TravelClock | None = None) -> FullBroker:
    """A broker of this name with nothing in it, not open yet. `clock` stands for the server's own."""
    wall, steady = (None, None) if clock is None else (clock.wall, clock.steady)
    if name == "memory":
        from taskflow.brokers.memory import MemoryBroker

        return MemoryBroker(clock)
    if name == "sqlite":
        from taskflow.brokers.sqlite import SqliteBroker

        return SqliteBroker(folder / "taskflow.db", **({} if wall is None else {"wall": wall}))
    if name == "redis":
        from taskflow.brokers.redis import RedisBroker

        return RedisBroker(valkey_url(), namespace=new_namespace(), wall=wall, steady=steady)
    if name == "postgres":
        from taskflow.brokers.postgres import PostgresBroker

        url = f"{pooler().url}?listen=off" if pgbouncer.is_chosen() else postgres().url
        return PostgresBroker(url, namespace=f"test_{os.getpid()}_{next(_numbers)}", wall=wall, steady=steady)
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


@pytest.fixture
def clock() -> TravelClock | None:
    """None, the server's own, unless a module's tests travel."""
    return None


@pytest.fixture(params=BROKERS)
async def broker(
    request: pytest.FixtureRequest, tmp_path: Path, clock: TravelClock | None
) -> AsyncIterator[FullBroker]:
    broker = made(request.param, tmp_path, clock)
    await broker.open()
    yield broker
    await broker.close()
    if request.param == "redis":
        forget_namespace(broker._link.namespace)
