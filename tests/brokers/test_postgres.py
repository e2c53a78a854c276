"""What only the PostgreSQL broker promises: its schema, its errors, its wake-ups, and what an outage leaves behind."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
import traceback
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import hypothesis.strategies as st
import psycopg
import pytest
from hypothesis import given, settings

from taskflow.brokers.base import Accepted, Doubtful, Retention, Settled, Settlement
from taskflow.brokers.postgres import PostgresBroker
from taskflow.brokers.postgres.listening import FINALS, WORK
from taskflow.brokers.postgres.schema import VERSION
from taskflow.core import gate as gating
from taskflow.core.decision import Complete, Retry
from taskflow.core.gate import Gate, Rate
from taskflow.core.job import JobState
from taskflow.errors import BrokerError, BrokerUnavailable, ConfigError, JobNotFound
from tests.chaos.proxy import Proxy
from tests.servers.postgres import PostgresServer, wheel_needed

from .conftest import postgres
from .words import (
    BOOM,
    LONG_S,
    NOTHING_KEPT,
    PATIENCE_S,
    ask,
    claim,
    claim_one,
    claimed_soon,
    die,
    eventually,
    job,
    reclaim,
    settle,
    settle_all,
    state,
    submit,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sized

pytestmark = pytest.mark.anyio

_numbers = itertools.count(1)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def namespace() -> str:
    return f"own_{os.getpid()}_{next(_numbers)}"


@pytest.fixture
async def broker(namespace: str) -> AsyncIterator[PostgresBroker]:
    broker = PostgresBroker(postgres().url, namespace=namespace)
    await broker.open()
    yield broker
    await broker.close()


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    """A server that the test may stop."""
    with PostgresServer() as server:
        yield server


def connections(server: PostgresServer) -> int:
    """How many connections brokers have."""
    ((count,),) = server.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'taskflow'")
    return int(count)


def cut(server: PostgresServer) -> None:
    """End all connections of brokers, as an administrator does."""
    server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'taskflow'")


# ---- the schema ----


async def test_opening_eight_at_once_makes_one_schema(namespace: str) -> None:
    brokers = [PostgresBroker(postgres().url, namespace=namespace) for _ in range(8)]
    await asyncio.gather(*(broker.open() for broker in brokers))
    await submit(brokers[0], job())
    assert len(await claim(brokers[1])) == 1
    await asyncio.gather(*(broker.close() for broker in brokers))


async def test_schema_of_a_newer_program_is_refused(broker: PostgresBroker, namespace: str) -> None:
    postgres().execute(f"UPDATE {namespace}.meta SET version = {VERSION + 1}")
    with pytest.raises(ConfigError, match="upgrade taskflow"):
        await PostgresBroker(postgres().url, namespace=namespace).open()


async def test_schema_of_another_program_is_refused(namespace: str) -> None:
    postgres().execute(f"CREATE SCHEMA {namespace} CREATE TABLE invoice (id int)")
    with pytest.raises(ConfigError, match="another program"):
        await PostgresBroker(postgres().url, namespace=namespace).open()


@pytest.mark.parametrize("name", ["", "x" * 64, "pg_x", "a\0b"])
async def test_namespace_that_cannot_be_a_schema_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="NAMESPACE"):
        PostgresBroker("postgresql://h/d", namespace=name)


async def test_namespace_may_need_quotes() -> None:
    broker = PostgresBroker(postgres().url, namespace=f'Über "{os.getpid()}" ~.x')
    await broker.open()
    await submit(broker, job())
    assert (await settle(broker, await claim_one(broker), Complete())).answer is Settled.APPLIED
    await broker.close()


async def test_two_namespaces_are_apart(broker: PostgresBroker, namespace: str) -> None:
    other = PostgresBroker(postgres().url, namespace=f"{namespace}_b")
    await other.open()
    await submit(broker, job(id="1" * 32))
    assert await claim(other) == []
    assert await other.counts() == []
    await other.close()


# ---- what is hostile ----


async def test_text_that_the_database_cannot_hold_is_kept_readable(broker: PostgresBroker) -> None:
    await submit(broker, job(lane="a\0b\ud800"))
    one = await claim_one(broker)
    await settle(broker, one, Retry(0.0, replace(BOOM, message="nul \0 half \ud800")))
    assert await state(broker, one.job_id) is JobState.READY


# ---- errors ----


async def test_server_that_is_not_there_is_unavailable() -> None:
    broker = PostgresBroker("postgresql://app:s3cret@127.0.0.1:1/db")
    with pytest.raises(BrokerUnavailable) as caught:
        await broker.open()
    assert caught.value.kind == "connection"
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://app:s3/cret@127.0.0.1:1/db",
        "postgresql://app:s3?cret@127.0.0.1:1/db",
        "postgresql://app:s3#cret@127.0.0.1:1/db",
        "postgresql://app:[s3cret@127.0.0.1:1/db",
        "postgresql:///db?host=app:s3cret@127.0.0.1",
    ],
)
async def test_password_that_is_not_escaped_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(ConfigError, match="%40 for @") as caught:
        await PostgresBroker(url).open()
    told = "".join(traceback.format_exception(caught.value, limit=0))
    assert "s3" not in told
    assert "cret" not in told


async def test_port_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="PORT"):
        await PostgresBroker("postgresql://app@127.0.0.1:any/db").open()


async def test_wrong_password_says_where_to_look(server: PostgresServer, namespace: str) -> None:
    server.execute(f"CREATE ROLE {namespace} LOGIN PASSWORD 'right'")
    with pytest.raises(ConfigError, match="TASKFLOW_BROKER__URL") as caught:
        await PostgresBroker(server.url_as(namespace, "wr0ng"), namespace=namespace).open()
    assert "wr0ng" not in str(caught.value)


async def test_user_without_rights_hears_which(server: PostgresServer, namespace: str) -> None:
    server.execute(f"CREATE ROLE {namespace} LOGIN PASSWORD 'right'")
    with pytest.raises(ConfigError, match="CREATE"):
        await PostgresBroker(server.url_as(namespace, "right"), namespace=namespace).open()


async def test_read_only_server_is_unavailable(broker: PostgresBroker, server: PostgresServer) -> None:
    mine = PostgresBroker(server.url)
    await mine.open()
    server.execute("ALTER SYSTEM SET default_transaction_read_only = on")
    server.execute("SELECT pg_reload_conf()")
    try:

        async def is_refused() -> bool:
            try:
                await submit(mine, job())
            except BrokerUnavailable as error:
                return error.kind == "refused"
            return False

        assert await eventually(is_refused)
    finally:
        await mine.close()


async def test_full_queue_of_notifications_is_an_outage_and_says_what_fills_it() -> None:
    # That the queue can be made short takes PostgreSQL 17 or newer.
    with PostgresServer(bin_folder=wheel_needed(), options=("max_notify_queue_pages=64",)) as server:
        broker = PostgresBroker(server.url)
        await broker.open()
        waiting = asyncio.create_task(broker.wait(ask(), LONG_S))
        await until_it_listens(broker, server)
        with psycopg.connect(server.url) as old:
            old.execute("LISTEN anything")
            old.commit()
            old.execute("SELECT 1")
            with pytest.raises(psycopg.errors.ProgramLimitExceeded):  # noqa: PT012 - one of them
                for _ in range(200):
                    server.execute("SELECT pg_notify('anything', n || repeat('x', 7000)) FROM generate_series(1, 20) n")
            with pytest.raises(BrokerUnavailable, match="NOTIFY queue full") as caught:  # noqa: PT012 - the
                for _ in range(500):  # word of a job is short: it may still find room on the last page
                    await submit(broker, job())

        async def is_accepted() -> bool:
            try:
                return (await submit(broker, job()))[0].accepted is Accepted.NEW
            except BrokerUnavailable:
                return False

        assert await eventually(is_accepted)
        await waiting  # there is a job now
        await broker.close()

    assert caught.value.kind == "full"


async def test_broker_that_is_not_open_says_so(namespace: str) -> None:
    broker = PostgresBroker(postgres().url, namespace=namespace)
    with pytest.raises(BrokerError, match="not open"):
        await submit(broker, job())


async def test_server_may_stop_and_start_again(server: PostgresServer) -> None:
    broker = PostgresBroker(server.url)
    await broker.open()
    await submit(broker, job())
    server.stop()
    with pytest.raises(BrokerUnavailable):
        await submit(broker, job())
    server.start()
    assert (await submit(broker, job()))[0].accepted is Accepted.NEW
    assert len(await claim(broker)) == 2
    await broker.close()


async def test_killed_server_has_all_that_was_accepted() -> None:
    with PostgresServer(fsync=True) as server:
        broker = PostgresBroker(server.url)
        await broker.open()
        assert broker.doubts == ()
        for _ in range(5):
            await submit(broker, *(job() for _ in range(20)))
        server.kill()
        server.start()
        await broker.close()
        again = PostgresBroker(server.url)
        await again.open()
        assert len(await claim(again, limit=200)) == 100
        await again.close()


async def test_open_tells_of_a_server_that_may_lose_jobs(server: PostgresServer) -> None:
    server.execute("ALTER ROLE postgres SET synchronous_commit = off")
    broker = PostgresBroker(server.url)

    await broker.open()
    await broker.close()
    unopened = PostgresBroker(server.url)
    await unopened.version()

    fsync, pages, commit = broker.doubts
    assert isinstance(broker, Doubtful)
    assert "Set fsync = on" in fsync
    assert "Set full_page_writes = on" in pages
    assert "Set synchronous_commit = on" in commit
    assert unopened.doubts == broker.doubts


async def test_beat_of_a_thread_survives_a_cut_connection(broker: PostgresBroker) -> None:
    await submit(broker, job())
    one = await claim_one(broker)
    beat = broker.sync_beat()
    assert beat is not None
    try:
        for _ in range(2):
            reply = await asyncio.to_thread(beat.beat, "w1", {one.job_id: one.token, "other": 1}, 60.0)
            assert reply.lost == ("other",)
        cut(postgres())
        with pytest.raises(BrokerUnavailable):
            await asyncio.to_thread(beat.beat, "w1", {one.job_id: one.token}, 60.0)
        assert (await asyncio.to_thread(beat.beat, "w1", {one.job_id: one.token}, 60.0)).lost == ()
    finally:
        beat.close()
        beat.close()


# ---- wake-ups ----


async def listening(server: PostgresServer) -> list[int]:
    """The processes of the server at which brokers listen."""
    rows = server.execute(
        "SELECT pid FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND application_name = 'taskflow'"
    )
    return [int(pid) for (pid,) in rows]


@pytest.fixture
async def waiting(
    broker: PostgresBroker, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[PostgresBroker]:
    """Another process's broker, which would wait for an hour before it looks by itself."""
    monkeypatch.setattr("taskflow.brokers.postgres.listening._POLL_S", LONG_S)
    other = PostgresBroker(postgres().url, namespace=namespace)
    await other.open()
    yield other
    await other.close()


async def until_it_listens(broker: PostgresBroker, server: PostgresServer | None = None) -> None:
    async def does() -> bool:
        return broker._listening.is_heard and bool(await listening(server or postgres()))

    await eventually(does)
    await broker.counts()  # whatever it looks for, it has looked


async def until_it_waits(waiters: Sized) -> None:
    async def does() -> bool:
        return len(waiters) > 0

    await eventually(does)


async def test_submit_elsewhere_wakes_who_waits(broker: PostgresBroker, waiting: PostgresBroker) -> None:
    soon = asyncio.create_task(claimed_soon(waiting))
    await until_it_listens(waiting)
    await until_it_waits(waiting._waiters.work)
    one = job()
    await submit(broker, one)
    assert [claim.job_id for claim in await soon] == [one.id]


async def test_end_elsewhere_wakes_who_waits_for_it(broker: PostgresBroker, waiting: PostgresBroker) -> None:
    one = job()
    await submit(broker, one)
    claim = await claim_one(broker)
    soon = asyncio.create_task(waiting.finals([one.id], LONG_S))
    await until_it_listens(waiting)
    await until_it_waits(waiting._waiters.finals)
    await settle(broker, claim, Complete(b"1"))
    async with asyncio.timeout(PATIENCE_S):
        assert (await soon)[one.id].result == b"1"


@pytest.mark.parametrize(("count", "digits", "notifications"), [(1, 32, 1), (700, 32, 3), (1_500, 200, 1)])
async def test_settle_of_thousands_wakes_those_who_wait_for_them_and_nobody_else(
    broker: PostgresBroker, waiting: PostgresBroker, count: int, digits: int, notifications: int
) -> None:
    theirs, *jobs = [job(id=f"{n:0{digits}x}") for n in range(count + 1)]
    await submit(broker, theirs, *jobs)
    claims = await claim(broker, limit=count + 1)
    for_theirs = asyncio.create_task(waiting.finals([theirs.id], LONG_S))
    for_last = asyncio.create_task(waiting.finals([jobs[-1].id], LONG_S))
    await until_it_listens(waiting)

    async def both_wait() -> bool:
        return len(waiting._waiters.finals) == 2

    assert await eventually(both_wait)
    before = set(waiting._waiters.finals.by_name[theirs.id])
    with psycopg.connect(postgres().url, autocommit=True) as hearing:
        channel = await broker._pool.value("SELECT ~.listen_v1('test', 0, 0.0, NULL)")
        hearing.execute(f"LISTEN {channel}")
        await settle_all(broker, [one for one in claims if one.job_id != theirs.id], Complete())
        async with asyncio.timeout(PATIENCE_S):
            assert list(await for_last) == [jobs[-1].id]
        heard = [said.payload for said in hearing.notifies(timeout=PATIENCE_S, stop_after=notifications)]

    assert set(waiting._waiters.finals.by_name[theirs.id]) == before  # who was woken and found nothing waits anew
    named = sorted("\n".join(one[1:] for one in heard).split("\n"))
    assert named == ([""] if count == 1_500 else sorted(one.id for one in jobs))
    for_theirs.cancel()


async def test_ends_are_listened_for_at_once_though_work_was_just_before(waiting: PostgresBroker) -> None:
    heard = [await waiting._listening.listen(kind, None) for kind in (WORK, FINALS)]

    assert heard == [LONG_S, LONG_S]


async def test_lost_listener_is_found_again(broker: PostgresBroker, waiting: PostgresBroker) -> None:
    soon = asyncio.create_task(claimed_soon(waiting))
    await until_it_listens(waiting)
    for pid in await listening(postgres()):
        postgres().execute(f"SELECT pg_terminate_backend({pid})")
    one = job()
    await submit(broker, one)
    assert [claim.job_id for claim in await soon] == [one.id]


async def test_end_that_nobody_was_told_of_is_seen_at_the_deadline(
    broker: PostgresBroker, waiting: PostgresBroker, namespace: str
) -> None:
    one = job()
    await submit(broker, one)
    claim = await claim_one(broker)
    final = asyncio.create_task(waiting.finals([one.id], 1.0))
    await until_it_listens(waiting)
    await until_it_waits(waiting._waiters.finals)
    postgres().execute(f"DELETE FROM {namespace}.listener")
    await settle(broker, claim, Complete(b"1"))
    assert (await final)[one.id].result == b"1"


async def test_thousands_who_wait_share_what_is_asked() -> None:
    with PostgresServer(options=("log_statement=all",)) as server:
        broker = PostgresBroker(server.url)
        await broker.open()
        jobs = [job() for _ in range(2_000)]
        await submit(broker, *jobs)
        claims = await claim(broker, limit=2_000)
        waits = [asyncio.create_task(broker.finals([one.id], LONG_S)) for one in jobs]
        await until_it_listens(broker, server)
        await settle_all(broker, claims, Complete())
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*waits)
        await broker.close()
        asked = server.log().count("FROM unnest($1::text[]) a(id)")
    assert 1 <= asked <= 30


async def test_id_that_the_database_cannot_hold_is_waited_for_by_nobody_else(broker: PostgresBroker) -> None:
    one = job()
    await submit(broker, one)
    claim = await claim_one(broker)
    ids = (["a\0b", one.id], ["a\ud800b", one.id], [one.id])
    waits = [asyncio.create_task(broker.finals(some, LONG_S)) for some in ids]
    await until_it_waits(broker._waiters.finals)
    await settle(broker, claim, Complete())
    async with asyncio.timeout(PATIENCE_S):
        assert [list(found) for found in await asyncio.gather(*waits)] == [[one.id]] * 3
    with pytest.raises(JobNotFound):
        await broker.finals(["a\0b"], LONG_S)


async def test_wait_for_an_end_is_over_in_time_while_the_server_does_not_answer(server: PostgresServer) -> None:
    with Proxy(server.port) as proxy:
        broker = PostgresBroker(proxy.url(server.url))
        await broker.open()
        one = job()
        await submit(broker, one)
        proxy.drop()
        began = time.monotonic()
        with pytest.raises(BrokerUnavailable):
            await broker.finals([one.id], 0.5)
        assert time.monotonic() - began < 4.0
        proxy.mend()
        await broker.close()


@pytest.fixture
def app_url(server: PostgresServer) -> str:
    """The URL of a user whom the server may come to refuse."""
    server.execute("CREATE ROLE app LOGIN PASSWORD 'secret'")
    server.execute("GRANT CREATE ON DATABASE postgres TO app")
    return server.url_as("app", "secret")


@pytest.fixture
async def known(server: PostgresServer, app_url: str) -> AsyncIterator[PostgresBroker]:
    """The broker of one whom the server does not refuse."""
    other = PostgresBroker(app_url)  # the schema is the user's own
    await other.open()
    await other.close()
    broker = PostgresBroker(server.url)
    await broker.open()
    yield broker
    await broker.close()


async def test_look_for_ends_does_not_spin_while_the_server_has_no_connection_for_us(
    server: PostgresServer, app_url: str, known: PostgresBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.execute("ALTER SYSTEM SET log_connections = on")
    server.execute("SELECT pg_reload_conf()")
    broker = PostgresBroker(app_url)
    await broker.open()
    one = job()
    await submit(broker, one)
    claim = await claim_one(known)
    final = asyncio.create_task(broker.finals([one.id], LONG_S))
    await until_it_listens(broker, server)
    await until_it_waits(broker._waiters.finals)

    pids = await listening(server)
    monkeypatch.setattr("taskflow.brokers.postgres.listening._RENEW_S", 0.0)  # always due, as after a while
    server.execute("ALTER ROLE app CONNECTION LIMIT 0")
    for pid in pids:
        server.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app' AND pid <> {pid}")
    before = server.log().count("connection received")
    began = time.process_time()
    await asyncio.sleep(3.0)  # that is what is measured: how often it tries meanwhile
    tries = server.log().count("connection received") - before
    spent_s = time.process_time() - began
    await settle(known, claim, Complete(b"1"))
    server.execute("ALTER ROLE app CONNECTION LIMIT -1")
    async with asyncio.timeout(PATIENCE_S):
        assert (await final)[one.id].result == b"1"
    await broker.close()

    assert 1 <= tries <= 20
    assert spent_s < 0.5


async def test_end_is_heard_of_after_a_password_was_wrong_for_a_while(
    server: PostgresServer, app_url: str, known: PostgresBroker
) -> None:
    with Proxy(server.port) as proxy:
        broker = PostgresBroker(proxy.url(app_url))
        await broker.open()
        one = job()
        await submit(broker, one)
        claim = await claim_one(known)
        final = asyncio.create_task(broker.finals([one.id], LONG_S))
        await until_it_listens(broker, server)
        await until_it_waits(broker._waiters.finals)

        server.execute("ALTER ROLE app PASSWORD 'other'")
        accepted = proxy.accepted
        proxy.reset()

        async def was_refused() -> bool:
            return proxy.accepted > accepted + 2

        assert await eventually(was_refused)
        server.execute("ALTER ROLE app PASSWORD 'secret'")
        await settle(known, claim, Complete(b"1"))
        async with asyncio.timeout(PATIENCE_S):
            assert (await final)[one.id].result == b"1"
        await broker.close()


async def test_listener_whose_connection_leads_nowhere_is_found_out_and_listens_anew(
    server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in (("_RENEW_S", 0.2), ("_ANSWER_S", 0.5), ("_POLL_S", 0.1)):
        monkeypatch.setattr(f"taskflow.brokers.postgres.listening.{name}", seconds)
    other = PostgresBroker(server.url)
    await other.open()
    with Proxy(server.port) as proxy:
        broker = PostgresBroker(proxy.url(server.url))
        await broker.open()
        soon = asyncio.create_task(claimed_soon(broker))
        await until_it_listens(broker, server)
        stranded = broker._listening._connection
        proxy.strand()
        assert broker._pool._pool is not None
        await broker._pool._pool.expire_connections()  # the pool's own are found out by their calls

        async def listens_anew() -> bool:
            return broker._listening.is_heard and broker._listening._connection is not stranded

        assert await eventually(listens_anew)
        await submit(other, job())
        assert len(await soon) == 1
        await broker.close()
    await other.close()


async def test_poll_alone_will_do_where_nobody_can_listen(broker: PostgresBroker, namespace: str) -> None:
    deaf = PostgresBroker(f"{postgres().url}?listen=off", namespace=namespace)
    await deaf.open()
    soon = asyncio.create_task(claimed_soon(deaf))
    await until_it_waits(deaf._waiters.work)
    await submit(broker, job())
    (one,) = await soon
    final = asyncio.create_task(deaf.finals([one.job_id], LONG_S))
    await settle(broker, one, Complete())
    async with asyncio.timeout(PATIENCE_S):
        assert (await final)[one.job_id].state is JobState.SUCCEEDED
    assert not deaf._listening.is_heard
    await deaf.close()


@pytest.mark.parametrize(
    "end", ["pass@word@host/d", "pass#word@host/d", "pass/word@host/d", "pass?word@host/d", "word"]
)
async def test_password_that_is_not_encoded_is_a_setting_to_correct_and_never_shown(end: str) -> None:
    with pytest.raises(ConfigError, match="%40 for @") as caught:
        PostgresBroker(f"postgresql://ada:{end}")

    assert "word" not in str(caught.value).replace("password", "")


async def test_url_that_says_listen_in_no_known_way_is_refused() -> None:
    with pytest.raises(ConfigError, match="listen"):
        PostgresBroker("postgresql://h/d?listen=perhaps")


# ---- what is left behind ----


async def test_zombie_writes_nothing(broker: PostgresBroker) -> None:
    await submit(broker, job())
    old = await claim_one(broker, "w1")
    await die(broker, "w1")
    new = await claim_one(broker, "w2")
    assert new.token > old.token
    replies = await broker.settle([Settlement(old.job_id, old.token, Complete(b'"zombie"'))])
    assert replies[0].answer is Settled.STALE
    assert (await settle(broker, new, Complete(b'"alive"'))).answer is Settled.APPLIED
    assert (await broker.finals([new.job_id], 0))[new.job_id].result == b'"alive"'


async def test_retention_leaves_no_row(broker: PostgresBroker, namespace: str) -> None:
    await submit(broker, *(job(key=f"k{n}", gates=("smtp",), batch="b") for n in range(5)))
    await broker.finish_batch("b")
    for one in await claim(broker):
        await settle(broker, one, Complete(b"1"))
    await broker.leave("w1")
    await reclaim(broker, retention=NOTHING_KEPT)
    await reclaim(broker, retention=NOTHING_KEPT)
    tables = ("job", "job_key", "ready", "scheduled", "running", "finished", "result", "note", "error", "worker")
    for table in (*tables, "batch", "gate", "gate_delta"):
        assert postgres().execute(f"SELECT count(*) FROM {namespace}.{table}") == [(0,)], table


async def test_pruning_is_bounded(broker: PostgresBroker, namespace: str) -> None:
    await submit(broker, *(job() for _ in range(10)))
    for one in await claim(broker):
        await settle(broker, one, Complete(b"1"))
    await reclaim(broker, retention=Retention(0, 0, 0, rows=4))
    assert postgres().execute(f"SELECT count(*) FROM {namespace}.job") == [(6,)]


def keep_finished(namespace: str, first: int, last: int, batch: str) -> None:
    """Jobs that have just succeeded, by their numbers; `batch` is an expression of n."""
    columns = "queue, priority, submitted_at, due_at, expires_at, expires_s, task, lane, gates, expire_reason, payload"
    postgres().execute(
        f"INSERT INTO {namespace}.job (seq, id, batch, {columns}) "
        f"SELECT n, 'x' || n, {batch}, 1, 5, 0, 0, 1e12, 1e12, 'work', '', '', '', '' "
        f"FROM generate_series({first}, {last}) n"
    )
    postgres().execute(
        f"INSERT INTO {namespace}.finished SELECT seq, batch, 4, extract(epoch FROM now()), 0, 1, 1, false, false "
        f"FROM {namespace}.job WHERE seq BETWEEN {first} AND {last}"
    )


async def test_thousands_of_finished_batches_do_not_keep_the_dead_waiting(
    broker: PostgresBroker, namespace: str
) -> None:
    """Their jobs are kept for a day: a look at all of them, a second, would leave no time for anything else."""
    await submit(broker, job(batch="first"))
    keep_finished(namespace, 10_000, 60_000, "0")
    postgres().execute("ANALYZE")
    await reclaim(broker)  # its plans are made while no batch is finished
    postgres().execute(
        f"INSERT INTO {namespace}.batch (name, is_finished, named_at) SELECT 'b' || n, true, 0 FROM generate_series(1, 3000) n"
    )
    keep_finished(namespace, 1_001, 4_000, "n - 999")
    await claim(broker, "dies")
    await broker.leave("dies")

    began = time.monotonic()
    (back,) = await reclaim(broker)

    assert back.reason == "lease_ended"
    assert time.monotonic() - began < PATIENCE_S / 5


async def test_close_leaves_no_connection(server: PostgresServer) -> None:
    for _ in range(3):
        broker = PostgresBroker(server.url)
        await broker.open()
        await asyncio.gather(*(submit(broker, job()) for _ in range(30)))
        await claimed_soon(broker)
        await broker.wait(ask(), 0.01)
        assert 1 <= connections(server) <= 5
        await broker.close()

    async def is_left() -> bool:
        return connections(server) == 0

    await eventually(is_left)


async def test_close_while_the_listener_connects_leaves_no_connection(server: PostgresServer) -> None:
    closed = []  # nothing ends with an object that is forgotten
    for turns in range(0, 240, 15):  # of the loop: the listener connects in one of them
        broker = PostgresBroker(server.url)
        await broker.open()
        waiting = asyncio.create_task(broker.wait(ask(), LONG_S))
        for _ in range(turns):
            await asyncio.sleep(0)
        await broker.close()
        await waiting
        closed.append(broker)

    async def is_left() -> bool:
        return connections(server) == 0

    await eventually(is_left)


async def test_caller_who_gives_up_leaves_the_broker_as_it_was(broker: PostgresBroker) -> None:
    give_up = [asyncio.create_task(broker.submit([job()], {})) for _ in range(8)]  # more than there are connections
    await asyncio.sleep(0)  # each has its first turn: it has a connection, or waits for one
    for one in give_up:
        one.cancel()
    await asyncio.gather(*give_up, return_exceptions=True)
    assert (await submit(broker, job()))[0].accepted is Accepted.NEW


async def test_old_snapshot_hides_no_job_that_comes_back(broker: PostgresBroker) -> None:
    with psycopg.connect(postgres().url) as old:
        old.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        old.execute("SELECT 1")
        await submit(broker, *(job() for _ in range(30)))
        first = await claim(broker, limit=10)
        other = [one.job_id for one in first]
        await claim(broker, limit=10)
        await settle(broker, first[0], Retry(0.0, BOOM))
        await die(broker, "w1")
        left = await claim(broker, "w2", limit=100)
        assert {*other} <= {one.job_id for one in left}
        assert len(left) == 30


# ---- gates in SQL are gates in Python ----

an_instant = st.floats(0, 1_000, allow_nan=False).map(lambda at: 1_700_000_000.0 + at)
a_rate = st.none() | st.builds(Rate, st.floats(0.01, 100), st.integers(1, 20))
a_limit = st.none() | st.integers(0, 9)


def a_gate(name: str) -> Any:
    return st.builds(
        Gate,
        name=st.just(name),
        held_until=st.just(0.0) | an_instant,
        ramp=st.none() | st.integers(1, 8),
        limit=a_limit,
        limit_override=a_limit,
        rate=a_rate,
        rate_override=a_rate,
        live=st.integers(0, 9),
        tat=st.just(0.0) | an_instant,
    )


def in_sql(gate: Gate | None) -> str:
    if gate is None:
        return "NULL::gate"

    def said(value: Any) -> str:
        return "NULL" if value is None else repr(value)

    def rate(value: Rate | None) -> str:
        return "NULL, NULL" if value is None else f"{value.interval_s!r}::float8, {value.burst}"

    return (
        f"ROW('{gate.name}', 0, {gate.held_until!r}::float8, '', 0, {said(gate.ramp)}, 0, 0, 0, 0, {said(gate.limit)},"
        f" {said(gate.limit_override)}, {rate(gate.rate)}, {rate(gate.rate_override)}, {gate.live},"
        f" {gate.tat!r}::float8)::gate"
    )


async def test_admission_in_sql_is_that_of_the_core(broker: PostgresBroker, namespace: str) -> None:
    with psycopg.connect(postgres().url, autocommit=True) as connection:
        connection.execute(f"SET search_path = {namespace}".encode())

        @settings(max_examples=150, deadline=None)
        @given(a_gate("http/a"), st.none() | a_gate("http"), an_instant)
        def check(gate: Gate, parent: Gate | None, now: float) -> None:
            row = connection.execute(
                f"SELECT * FROM admit({in_sql(gate)}, {in_sql(parent)}, {now!r}::float8)".encode()
            ).fetchone()
            expected = gating.admit(gate, parent, now=now)
            assert row is not None
            assert row[0] == expected.room
            assert row[1] == (pytest.approx(expected.look_again_at, abs=1e-6) if expected.look_again_at else None)

        check()


# ---- many at once ----


async def test_many_workers_share_gates_and_keep_their_limits(broker: PostgresBroker, namespace: str) -> None:
    """Claims, settles, submits and upkeep of eight processes: nothing is lost, run twice or over a limit."""
    brokers = [PostgresBroker(postgres().url, namespace=namespace) for _ in range(4)]
    await asyncio.gather(*(one.open() for one in brokers))
    names = ("a", "b", "c")
    for name in names:
        await broker.gate(name, gating.Declare(limit=3))
    gates = [(), ("a",), ("b", "a"), ("a", "b", "c"), ("c",)]
    wanted = [job(gates=gates[n % 5], lane=f"l{n % 7}", priority=n % 2) for n in range(200)]
    live = dict.fromkeys(names, 0)
    most = dict.fromkeys(names, 0)
    done: list[str] = []

    async def work(number: int) -> None:
        mine = brokers[number % 4]
        request = ask(f"w{number}", limit=10)
        while len(done) < len(wanted):
            claims = await mine.claim(request)
            for one in claims:
                for name in one.gates:
                    live[name] += 1
                    most[name] = max(most[name], live[name])
            await asyncio.sleep(0)  # the other workers' turn, between a claim and its end
            for one in claims:
                for name in one.gates:
                    live[name] -= 1
            replies = await mine.settle([Settlement(one.job_id, one.token, Complete()) for one in claims])
            assert all(reply.answer is Settled.APPLIED for reply in replies)
            done.extend(one.job_id for one in claims)
            if not claims:
                await mine.wait(request, 0.2)

    async def feed() -> None:
        for start in range(0, len(wanted), 20):
            await submit(broker, *wanted[start : start + 20])
            await reclaim(broker)

    async with asyncio.timeout(6 * PATIENCE_S):
        await asyncio.gather(feed(), *(work(number) for number in range(8)))
    assert sorted(done) == sorted(one.id for one in wanted)
    assert all(count <= 3 for count in most.values())
    assert [gate.live for gate in await broker.gates()] == [0, 0, 0]
    (count,) = await broker.counts()
    assert (count.ready, count.scheduled, count.running) == (0, 0, 0)
    await asyncio.gather(*(one.close() for one in brokers))


@pytest.mark.parametrize("word", ["the late settle", "a reclaim"])
async def test_open_transaction_that_completed_a_job_keeps_its_gate_going(broker: PostgresBroker, word: str) -> None:
    async def live() -> int:
        ((gate),) = await broker.gates()
        return gate.live

    await submit(broker, *(job(gates=("smtp",)) for _ in range(3)))
    mine, other = await claim(broker, limit=2)
    async with await psycopg.AsyncConnection.connect(postgres().url) as connection:
        await broker.complete_in(connection, mine.job_id, mine.token, None)
        async with asyncio.timeout(PATIENCE_S):
            settled = await settle(broker, other, Complete(None))
            third = await claim_one(broker)
        assert await live() == 2
        await connection.commit()
    if word == "the late settle":
        late = await settle(broker, mine, Complete(None))
        assert late.answer is Settled.ALREADY
    else:
        await reclaim(broker)

    assert settled.answer is Settled.APPLIED
    assert await live() == 1
    await settle(broker, third, Complete(None))
    assert await live() == 0
