"""What a server, a role or a database may have set: it makes no difference, or is refused with what to do."""

from __future__ import annotations

import asyncio
import itertools
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import psycopg
import pytest

from taskflow.brokers.base import Cancelled, Settled
from taskflow.brokers.postgres import PostgresBroker
from taskflow.brokers.postgres.beats import PostgresBeat
from taskflow.core.decision import Complete, Retry
from taskflow.core.gate import Hold, OverrideLimit
from taskflow.core.job import JobState
from taskflow.errors import BrokerUnavailable, ConfigError
from tests.servers.pgbouncer import PgBouncer
from tests.servers.postgres import PostgresServer

from .words import (
    BOOM,
    PATIENCE_S,
    ask,
    claim,
    claim_one,
    claimed_soon,
    die,
    eventually,
    ids,
    job,
    settle,
    shown,
    submit,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from taskflow.brokers.base import Receipt
    from taskflow.core.job import Job

pytestmark = pytest.mark.anyio

ISOLATIONS = ("read_committed", "repeatable_read", "serializable")
STRICTER = ("repeatable read", "serializable")

_numbers = itertools.count(1)


@pytest.fixture
def namespace() -> str:
    return f"set_{os.getpid()}_{next(_numbers)}"


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer(options=("wal_level=logical",)) as server:
        yield server


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Any]:
    """The caller's own connection."""
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


def role(server: PostgresServer, name: str, *settings: str) -> str:
    """The URL of a new user with these settings of its own."""
    server.execute(f"CREATE ROLE {name} SUPERUSER LOGIN PASSWORD 'secret'")
    for setting in settings:
        server.execute(f"ALTER ROLE {name} SET {setting}")
    return server.url_as(name, "secret")


def in_database(url: str, name: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


# ---- isolation ----


async def isolations(url: str, namespace: str) -> list[str]:
    """What each kind of connection that a broker makes begins its transactions with."""
    show = "SHOW default_transaction_isolation"
    broker = PostgresBroker(url, namespace=namespace)
    await broker.open()
    await broker.version()
    beat = broker.sync_beat()
    assert isinstance(beat, PostgresBeat)
    waiting = asyncio.create_task(broker.wait(ask(), PATIENCE_S))

    async def is_heard() -> bool:
        return broker._listening.is_heard

    def of_beat() -> Any:
        beat.beat("w1", {}, 60.0)
        assert beat._loop is not None
        assert beat._connection is not None
        return beat._loop.run_until_complete(beat._connection.fetchval(show))

    try:
        assert await eventually(is_heard)
        assert broker._listening._connection is not None
        return [
            await broker._pool.value(show),
            await broker._listening._connection.fetchval(show),
            await asyncio.to_thread(of_beat),
        ]
    finally:
        await submit(broker, job())
        await waiting
        beat.close()
        await broker.close()


@pytest.mark.parametrize("isolation", STRICTER)
@pytest.mark.parametrize("option", ["", "?options=-c%20statement_timeout%3D7s", "?options=-c%20{}"])
async def test_a_stricter_isolation_of_the_role_is_not_ours(
    server: PostgresServer, namespace: str, isolation: str, option: str
) -> None:
    setting = f"default_transaction_isolation = '{isolation}'"
    said = f"default_transaction_isolation%3D{isolation.replace(' ', '%5C%20')}"
    url = role(server, namespace, setting) + option.format(said)

    assert await isolations(url, namespace) == ["read committed"] * 3


@pytest.mark.parametrize("isolation", STRICTER)
async def test_workers_that_start_at_once_make_one_schema_at_any_isolation(
    server: PostgresServer, namespace: str, isolation: str
) -> None:
    url = role(server, namespace, f"default_transaction_isolation = '{isolation}'")
    brokers = [PostgresBroker(url, namespace=namespace) for _ in range(6)]

    await asyncio.gather(*(broker.open() for broker in brokers))

    await submit(brokers[0], one := job())
    assert ids(await claim(brokers[5])) == [one.id]
    for broker in brokers:
        await broker.close()


async def test_no_job_is_lost_between_a_submit_and_a_claim_at_any_isolation(
    server: PostgresServer, namespace: str
) -> None:
    url = role(server, namespace, "default_transaction_isolation = 'repeatable read'")
    brokers = [PostgresBroker(url, namespace=namespace) for _ in range(3)]
    for broker in brokers:
        await broker.open()
    is_over = False
    claimed: set[str] = set()

    async def work(broker: PostgresBroker) -> None:
        while not is_over:
            for one in await claim(broker):
                await settle(broker, one, Complete())
                claimed.add(one.job_id)

    workers = [asyncio.create_task(work(broker)) for broker in brokers[1:]]
    sent = [job() for _ in range(600)]
    for one in sent:
        await submit(brokers[0], one)

    async def are_done() -> bool:
        return len(claimed) == len(sent)

    assert await eventually(are_done)
    is_over = True
    await asyncio.gather(*workers)
    for broker in brokers:
        await broker.close()


async def submit_in(broker: PostgresBroker, connection: object, *jobs: Job) -> list[Receipt]:
    return await broker.submit_in(connection, jobs, {job.queue: 100_000 for job in jobs})


@pytest.mark.parametrize("isolation", ISOLATIONS)
async def test_callers_transaction_may_see_lines_that_are_closed(
    server: PostgresServer, namespace: str, isolation: str
) -> None:
    broker = PostgresBroker(server.url, namespace=namespace)
    await broker.open()
    await submit(broker, job())

    async with connected(server.url) as mine, mine.transaction(isolation=isolation):
        await mine.execute(f"SELECT FROM {namespace}.line")  # its snapshot has the line
        await settle(broker, await claim_one(broker), Complete())
        assert await claim(broker) == []
        assert server.execute(f"SELECT count(*) FROM {namespace}.line") == [(0,)]
        await submit_in(broker, mine, one := job(), two := job(gates=("g",), lane="a"))

    assert sorted(ids(await claimed_soon(broker))) == sorted([one.id, two.id])
    await broker.close()


@pytest.mark.parametrize("isolation", ISOLATIONS)
async def test_no_job_of_a_callers_transaction_is_lost(server: PostgresServer, namespace: str, isolation: str) -> None:
    broker = PostgresBroker(server.url, namespace=namespace)
    await broker.open()
    await submit(broker, job())
    await settle(broker, await claim_one(broker), Complete())
    sent: list[str] = []
    done: set[str] = set()
    is_over = False

    async def send() -> None:
        async with connected(server.url) as mine:
            for _ in range(100):
                one = job()
                while True:
                    try:
                        async with mine.transaction(isolation=isolation):
                            await mine.execute("SELECT 1")
                            await submit_in(broker, mine, one)
                    except (BrokerUnavailable, asyncpg.SerializationError):
                        continue  # as who asks for this isolation must do
                    sent.append(one.id)
                    break

    async def work(worker: str) -> None:
        async with connected(server.url) as mine:
            while not is_over:
                for one in await claim(broker, worker, limit=3):
                    try:
                        async with mine.transaction(isolation=isolation):
                            answer = await broker.complete_in(mine, one.job_id, one.token, None)
                        assert answer is Settled.APPLIED
                    except (BrokerUnavailable, asyncpg.SerializationError):
                        await settle(broker, one, Complete())
                    done.add(one.job_id)

    workers = [asyncio.create_task(work(worker)) for worker in ("w1", "w2")]
    await asyncio.gather(send(), send())

    async def are_done() -> bool:
        return done == set(sent)

    assert await eventually(are_done)
    is_over = True
    await asyncio.gather(*workers)
    (counts,) = await broker.counts()
    assert (counts.ready, counts.scheduled, counts.running) == (0, 0, 0)
    await broker.close()


@pytest.mark.parametrize("isolation", STRICTER)
async def test_what_an_older_snapshot_does_not_see_is_an_outage_that_undoes_all(
    server: PostgresServer, namespace: str, isolation: str
) -> None:
    broker = PostgresBroker(server.url, namespace=namespace)
    await broker.open()
    await submit(broker, job())

    for fields in ({"queue": "new"}, {"key": "k"}):

        async def send(one: Job, meanwhile: Job | None) -> None:
            async with connected(server.url) as mine, mine.transaction(isolation=isolation.replace(" ", "_")):
                await mine.execute("SELECT 1")
                if meanwhile is not None:
                    await submit(broker, meanwhile)
                await submit_in(broker, mine, one)

        one = job(**fields)
        with pytest.raises(BrokerUnavailable, match="nothing was changed"):
            await send(one, job(**fields))
        assert await broker.states([one.id]) == {}
        again = job(queue="new")
        await send(again, None)
        assert await broker.states([again.id]) == {again.id: JobState.SCHEDULED}
    await broker.close()


async def test_where_a_pooler_keeps_it_from_us_a_stricter_isolation_is_refused(
    server: PostgresServer, namespace: str
) -> None:
    server.execute("CREATE DATABASE pooled")
    server.execute("ALTER DATABASE pooled SET default_transaction_isolation = 'repeatable read'")
    with PgBouncer(server) as shared, PgBouncer(server, mode="session") as keeping:
        for url in (f"{shared.url}?listen=off", keeping.url):
            pooled = in_database(url, "pooled")
            words = "ALTER ROLE postgres IN DATABASE pooled SET default_transaction_isolation = 'read committed'"
            with pytest.raises(ConfigError, match=words):
                await PostgresBroker(pooled, namespace=namespace).open()
            with pytest.raises(ConfigError, match=words):
                await PostgresBroker(pooled, namespace=namespace).version()
    server.execute("ALTER ROLE postgres IN DATABASE pooled SET default_transaction_isolation = 'read committed'")
    with PgBouncer(server) as shared, PgBouncer(server, mode="session") as keeping:
        for url in (f"{shared.url}?listen=off", keeping.url):
            broker = PostgresBroker(in_database(url, "pooled"), namespace=namespace)
            await broker.open()
            await submit(broker, one := job())
            assert ids(await claim(broker)) == [one.id]
            await broker.close()


async def test_job_that_has_no_line_can_be_cancelled(server: PostgresServer, namespace: str) -> None:
    broker = PostgresBroker(server.url, namespace=namespace)
    await broker.open()
    await submit(broker, one := job(), two := job())
    server.execute(f"DELETE FROM {namespace}.line")
    server.execute(f"DELETE FROM {namespace}.ready WHERE seq = (SELECT seq FROM {namespace}.job WHERE id = '{two.id}')")

    async with asyncio.timeout(PATIENCE_S / 2):
        answers = await broker.cancel([one.id, two.id])

    assert answers == [Cancelled.CANCELLED, Cancelled.CANCELLED]
    assert await broker.states([one.id, two.id]) == dict.fromkeys([one.id, two.id], JobState.CANCELLED)
    assert server.execute(f"SELECT count(*) FROM {namespace}.ready") == [(0,)]
    ((counts),) = await broker.counts()
    assert (counts.ready, counts.scheduled, counts.running) == (0, 0, 0)
    await broker.close()


# ---- text ----


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
async def test_a_database_that_cannot_hold_all_text_is_refused(
    server: PostgresServer, namespace: str, encoding: str
) -> None:
    server.execute(f"CREATE DATABASE {namespace} TEMPLATE template0 ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'")
    broker = PostgresBroker(in_database(server.url, namespace))

    with pytest.raises(ConfigError, match=f"the encoding {encoding}, .* CREATE DATABASE NAME ENCODING 'UTF8'"):
        await broker.open()
    with pytest.raises(ConfigError, match="the encoding"):
        await broker.version()


async def test_text_that_no_database_can_hold_is_of_no_job(server: PostgresServer, namespace: str) -> None:
    broker = PostgresBroker(server.url, namespace=namespace)
    await broker.open()
    await submit(broker, job())

    for text in ("a\0b", "\ud800"):
        assert await broker.show(text) is None
        assert await broker.states([text]) == {}
        assert await broker.cancel([text]) == [Cancelled.MISSING]
        assert await broker.purge(state=JobState.READY, queue=text) == 0
        gate = await broker.gate(text, Hold(60.0, text))
        assert await broker.gates() == [gate]
        server.execute(f"DELETE FROM {namespace}.gate")
    await broker.close()


# ---- numbers ----


async def test_a_limit_may_be_any_number(server: PostgresServer, namespace: str) -> None:
    broker = PostgresBroker(server.url, namespace=namespace)
    await broker.open()

    await submit(broker, *(job(gates=("g",)) for _ in range(3)), bound=10**20)
    gate = await broker.gate("g", OverrideLimit(10**20))

    assert await broker.gates() == [gate]
    assert len(await broker.jobs(limit=10**20)) == 3
    assert len(await claim(broker)) == 3
    await broker.close()


async def test_instants_are_whole_however_the_server_writes_numbers(server: PostgresServer, namespace: str) -> None:
    broker = PostgresBroker(role(server, namespace, "extra_float_digits = -15"), namespace=namespace)
    await broker.open()
    await submit(broker, one := job())
    for _ in range(2):
        await settle(broker, await claim_one(broker), Retry(0.0, BOOM))

    info = await shown(broker, one.id)

    kept = server.execute(f"SELECT at FROM {namespace}.error ORDER BY n")
    assert [(error.at,) for error in info.errors] == kept
    assert [error.attempt for error in info.errors] == [1, 2]
    await broker.close()


# ---- logical replication ----


async def test_a_publication_of_all_tables_stops_nothing(server: PostgresServer, namespace: str) -> None:
    url = server.database()
    broker = PostgresBroker(url, namespace=namespace)
    await broker.open()
    with psycopg.connect(url, autocommit=True) as administrator:
        administrator.execute("CREATE PUBLICATION everything FOR ALL TABLES")
        for _ in range(60):  # so many changes of counts are folded
            await submit(broker, job(gates=("g",)))
        claims = await claim(broker, "w1")
        async with connected(url) as mine, mine.transaction():  # it owes the gate its room
            assert await broker.complete_in(mine, claims[0].job_id, claims[0].token, None) is Settled.APPLIED
        await settle(broker, claims[1], Complete())

        await die(broker, "w1")

        assert len(await claim(broker, "w2")) == 58
        administrator.execute("DROP PUBLICATION everything")
    await broker.close()


async def test_every_table_has_a_replica_identity(server: PostgresServer, namespace: str) -> None:
    broker = PostgresBroker(server.url, namespace=namespace)
    await broker.open()
    await broker.close()

    without = server.execute(
        "SELECT relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = '"
        f"{namespace}' AND relkind = 'r' AND relpersistence = 'p' AND relreplident <> 'f'"
        " AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary)"
    )

    assert without == []
