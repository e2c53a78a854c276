"""No two calls of PostgreSQL's broker wait for each other: each takes what it has to wait for in one order.

Each test lets calls meet, many times, that name the same things in orders of their own; the server tells of a deadlock.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from taskflow.brokers.base import Note
from taskflow.brokers.postgres import PostgresBroker
from taskflow.core import gate as gating
from taskflow.core.decision import Bury, Complete, Release, Retry
from taskflow.core.job import JobState
from tests.servers.postgres import PostgresServer

from .words import BOOM, LONG_S, claim, job, reclaim, settle_all, submit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from taskflow.core.job import Claim, Job

pytestmark = pytest.mark.anyio

T = TypeVar("T")

ROUNDS = 12
LANES = 40
draw = random.Random(20)  # the orders of a run are those of the next


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer(options=("deadlock_timeout=20ms",)) as server:
        yield server


async def opened(url: str) -> AsyncIterator[list[PostgresBroker]]:
    brokers = [PostgresBroker(url) for _ in range(4)]
    for broker in brokers:
        await broker.open()
    yield brokers
    for broker in brokers:
        await broker.close()


@pytest.fixture
async def brokers(server: PostgresServer) -> AsyncIterator[list[PostgresBroker]]:
    async for brokers in opened(server.database()):
        yield brokers


@pytest.fixture(autouse=True)
def no_deadlock(server: PostgresServer) -> Iterator[None]:
    before = server.log().count("deadlock detected")
    yield
    assert server.log().count("deadlock detected") == before


def shuffled(all_of: Sequence[T]) -> list[T]:
    return draw.sample(all_of, len(all_of))


def of_lanes(**fields: Any) -> list[Job]:
    """A job of each lane."""
    return [job(lane=f"l{lane}", **fields) for lane in range(LANES)]


async def held_by(brokers: Sequence[PostgresBroker], jobs: int) -> list[list[Claim]]:
    """What each worker has claimed. Nothing is ready, and there is no line any more."""
    held = [await claim(one, f"w{n}", limit=jobs) for n, one in enumerate(brokers)]
    for n, one in enumerate(brokers):
        assert await claim(one, f"w{n}") == []
    return held


async def test_releases_of_many_lanes(brokers: list[PostgresBroker]) -> None:
    """A fleet drains: each worker gives back what it had claimed ahead, in its own order."""
    await submit(brokers[0], *(one for _ in range(8) for one in of_lanes()))
    for _ in range(ROUNDS):
        held = await held_by(brokers, 2 * LANES)
        await asyncio.gather(
            *(settle_all(one, shuffled(claims), Release()) for one, claims in zip(brokers, held, strict=True))
        )


async def test_lost_jobs_of_many_lanes_beside_submits_and_releases(brokers: list[PostgresBroker]) -> None:
    a, b, c, _ = brokers
    for _ in range(ROUNDS):
        await submit(a, *(one for _ in range(4) for one in shuffled(of_lanes())))
        _, held = await held_by([a, b], 2 * LANES)
        await a.leave("w0")
        await asyncio.gather(reclaim(c), settle_all(b, shuffled(held), Release()), submit(a, *shuffled(of_lanes())))
        await settle_all(a, await claim(a, limit=1_000), Complete(None))


async def test_cancel_of_jobs_that_are_settled_or_noted(brokers: list[PostgresBroker]) -> None:
    a, b, c, d = brokers
    for _ in range(ROUNDS):
        await submit(a, *(job() for _ in range(200)))
        held = await claim(a, limit=200)
        some = [one.job_id for one in held]
        await asyncio.gather(
            b.cancel(shuffled(some)),
            settle_all(a, shuffled(held[:100]), Complete(None)),
            settle_all(c, shuffled(held[50:]), Retry(0.0, BOOM)),
            d.note([Note(one.job_id, one.token, b"1", None) for one in shuffled(held)]),
        )


async def test_cancel_of_jobs_that_wait_too_long_and_that_another_cancels(brokers: list[PostgresBroker]) -> None:
    a, b, c, d = brokers
    for _ in range(ROUNDS):
        jobs = [job(expires_s=0.001, delay_s=LONG_S * (n % 2)) for n in range(200)]
        await submit(a, *jobs)
        some = [one.id for one in jobs]
        await asyncio.gather(b.cancel(shuffled(some)), c.cancel(shuffled(some)), reclaim(a), claim(d, limit=50))


async def test_dead_jobs_that_two_retry_and_a_third_submits_again_or_purges(brokers: list[PostgresBroker]) -> None:
    a, b, c, d = brokers
    for _ in range(ROUNDS):
        jobs = [job(key=f"Key{n}" if n % 2 else f"key{n}", lane=f"l{n % LANES}") for n in range(100)]
        await submit(a, *jobs)
        await settle_all(a, await claim(a), Bury(BOOM))
        some = [one.id for one in jobs]
        await asyncio.gather(
            a.retry(shuffled(some)),
            b.retry(shuffled(some)),
            submit(c, *(one._replace(id=job().id) for one in shuffled(jobs))),
            d.purge(state=JobState.DEAD),
        )
        await settle_all(a, await claim(a, limit=1_000), Complete(None))


async def test_submits_of_the_same_jobs(brokers: list[PostgresBroker]) -> None:
    for number in range(ROUNDS):
        jobs = [job(key=f"{number}-{n}") for n in range(200)]
        await asyncio.gather(*(submit(one, *shuffled(jobs)) for one in brokers))


async def test_gates_whose_names_the_database_sorts_in_another_way(server: PostgresServer) -> None:
    """A change of the family beside the end of jobs of its members, in a database that does not tell A from a."""
    if server.execute("SHOW server_version_num") < [("150000",)]:
        pytest.skip("no ICU for a database before PostgreSQL 15")
    try:
        server.execute("CREATE DATABASE sorted TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'en'")
    except psycopg.errors.FeatureNotSupported:  # the wheel's
        pytest.skip("this PostgreSQL was built without ICU")
    url = urlunsplit(urlsplit(server.url)._replace(path="/sorted"))
    gates = [f"http/{letter}" for letter in "abcdefghijklmnopqrstUVWXYZ"]  # in "C" the last come first
    async for a, b, *_ in opened(url):
        for gate in gates:
            await a.gate(gate, gating.Declare(limit=1))
        for number in range(ROUNDS):
            await submit(a, *(job(gates=(gate,), lane=lane) for gate in shuffled(gates) for lane in "xy"))
            held = await claim(a, limit=1_000)
            assert len(held) == len(gates)  # and as many wait
            await asyncio.gather(
                settle_all(a, held, Complete(None)),
                *(b.gate("http", gating.Declare(limit=100 + number + n)) for n in range(8)),
            )
            while rest := await claim(a, limit=1_000):
                await settle_all(a, rest, Complete(None))
