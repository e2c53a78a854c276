"""Two transactions at once, held open by the test where it hurts: what one does is nothing to the other."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import asyncpg
import psycopg
import pytest

from taskflow.brokers.base import Settled
from taskflow.brokers.postgres import PostgresBroker
from taskflow.core.decision import Bury, Complete
from taskflow.core.job import JobState
from taskflow.errors import BrokerError, ConfigError

from .conftest import postgres
from .words import (
    BOOM,
    NOTHING_KEPT,
    PATIENCE_S,
    claim,
    claim_one,
    eventually,
    ids,
    job,
    reclaim,
    settle,
    settle_all,
    state,
    submit,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from taskflow.core.job import Job

pytestmark = pytest.mark.anyio

_numbers = itertools.count(1)
_CLAIM = "claim_v1('w1', '{q}', 10, 10, 1, 60, '{}', '{}', '{}', '{}', '{}', '{}', 4, 25, 1000, 100, NULL)"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def namespace() -> str:
    return f"races_{os.getpid()}_{next(_numbers)}"


@pytest.fixture
async def broker(namespace: str) -> AsyncIterator[PostgresBroker]:
    broker = PostgresBroker(postgres().url, namespace=namespace)
    await broker.open()
    yield broker
    await broker.close()


@contextmanager
def under_way(statement: str) -> Iterator[psycopg.Connection[Any]]:
    """A transaction that has run this statement, and is not committed."""
    with psycopg.connect(postgres().url) as other:
        other.execute(statement.encode())
        yield other


@asynccontextmanager
async def mine() -> AsyncIterator[asyncpg.Connection]:
    """A connection of the caller's own."""
    connection = await asyncpg.connect(postgres().url)
    try:
        yield connection
    finally:
        await connection.close()


async def is_blocked(namespace: str, waits_for: str = "wait_event_type = 'Lock'") -> None:
    """Wait until a call of this namespace's broker waits for a lock."""
    statement = f"SELECT count(*) FROM pg_stat_activity WHERE {waits_for} AND query LIKE '%{namespace}%'"

    async def waits() -> bool:
        return postgres().execute(statement) != [(0,)]

    await eventually(waits)


async def submit_in(broker: PostgresBroker, connection: object, *jobs: Job) -> None:
    await broker.submit_in(connection, jobs, {job.queue: 100_000 for job in jobs})


async def test_worker_that_leaves_while_its_last_claim_is_under_way_keeps_its_lease_for_it(
    broker: PostgresBroker, namespace: str
) -> None:
    await broker.beat("w1", {}, 60.0)
    one = job()
    await submit(broker, one)
    with under_way(f"SELECT * FROM {namespace}.{_CLAIM}") as claims:
        leaving = asyncio.create_task(broker.leave("w1"))
        await is_blocked(namespace)
        claims.commit()
        await leaving

    assert [(moved.job_id, moved.reason) for moved in await reclaim(broker)] == [(one.id, "lease_ended")]


async def test_job_that_is_retried_while_the_dead_are_purged_is_kept(broker: PostgresBroker, namespace: str) -> None:
    one = job()
    await submit(broker, one)
    await settle(broker, await claim_one(broker), Bury(BOOM, spent=True))
    with under_way(f"SELECT {namespace}.retry_v1('{{{one.id}}}', NULL)") as retry:
        purging = asyncio.create_task(broker.purge(state=JobState.DEAD))
        await is_blocked(namespace)
        retry.commit()
        purged = await purging

    assert purged == 0
    assert await state(broker, one.id) is JobState.READY
    assert ids(await claim(broker)) == [one.id]


async def test_claim_that_a_failover_forgot_cannot_settle_the_next(broker: PostgresBroker, namespace: str) -> None:
    """The new primary lacks the last moment of the old one: the claim, and how far its sequences were."""
    await submit(broker, job())
    with under_way(f"SELECT * FROM {namespace}.{_CLAIM}") as forgotten:
        ((token,),) = forgotten.execute(f"SELECT token FROM {namespace}.running".encode())
        forgotten.rollback()
    postgres().execute(f"ALTER SEQUENCE {namespace}.token_seq RESTART")

    again = await claim_one(broker, "w2")
    assert (await settle(broker, again._replace(token=token), Complete(b'"old"'))).answer is Settled.STALE
    assert (await settle(broker, again, Complete(b'"new"'))).answer is Settled.APPLIED


async def test_tokens_grow_though_the_servers_clock_is_set_back(broker: PostgresBroker, namespace: str) -> None:
    before = int((time.time() + 3_600) * 1_000) * 4_096  # of a claim when the clock was an hour ahead
    postgres().execute(f"SELECT setval('{namespace}.token_seq', {before})")
    await submit(broker, *(job() for _ in range(3)))

    tokens = [(await claim(broker, limit=1))[0].token for _ in range(3)]

    assert before < tokens[0] < tokens[1] < tokens[2] < 2**63


async def test_tokens_grow_within_a_millisecond(broker: PostgresBroker, namespace: str) -> None:
    with under_way(f"SET search_path = {namespace}") as mine:
        drawn = mine.execute("SELECT new_token() FROM generate_series(1, 20000)").fetchall()

    tokens = [token for (token,) in drawn]
    assert len(tokens) == 20_000
    assert tokens == sorted(set(tokens))


async def test_two_claims_behind_the_clock_do_not_set_the_tokens_back(broker: PostgresBroker, namespace: str) -> None:
    """A failover forgot how far the sequence was. Another claim is about to raise it, and its clock is ahead of ours."""
    await submit(broker, job())
    postgres().execute(f"ALTER SEQUENCE {namespace}.token_seq RESTART")
    before = int((time.time() + 3_600) * 1_000) * 4_096
    with under_way(f"SELECT pg_advisory_xact_lock('{namespace}.token_seq'::regclass::oid::integer, 0)") as first:
        claiming = asyncio.create_task(claim_one(broker))
        await is_blocked(namespace, "wait_event = 'PgSleep'")
        first.execute(f"SELECT setval('{namespace}.token_seq', {before})".encode())
        first.commit()
        one = await claiming

    assert one.token > before


async def test_claim_does_not_wait_for_another_that_has_just_raised_the_tokens(
    broker: PostgresBroker, namespace: str
) -> None:
    """It may take long to commit, on a slow disk or with a standby that must answer."""
    one = job()
    await submit(broker, job(), one)
    with under_way(f"SELECT * FROM {namespace}.{_CLAIM.replace('10, 10, 1', '1, 1, 1')}") as first:
        ((before,),) = first.execute(f"SELECT token FROM {namespace}.running".encode())
        await asyncio.sleep(0.02)  # of the server's clock, too: the tokens are behind it again
        async with asyncio.timeout(PATIENCE_S):
            two = await claim_one(broker, "w2")

    assert two.job_id == one.id
    assert two.token > before


async def test_claim_does_not_wait_for_another_that_has_just_made_its_gate(
    broker: PostgresBroker, namespace: str
) -> None:
    """Each would have gates that the other waits for."""
    await submit(broker, *(job(lane=lane, gates=("smtp",)) for lane in "ab"))
    with under_way(f"SELECT * FROM {namespace}.{_CLAIM.replace('10, 10, 1', '1, 1, 1')}") as first:
        async with asyncio.timeout(PATIENCE_S):
            assert await claim(broker, "w2") == []
        first.commit()

    assert len(await claim(broker, "w2")) == 1


async def test_claim_that_waits_for_a_line_holds_nothing_that_others_need(
    broker: PostgresBroker, namespace: str
) -> None:
    """Jobs are due in a line that another claim has just closed. Of its other queue it has taken nothing yet."""
    other = job(queue="other", gates=("smtp",))
    await submit(broker, job(), other)
    with under_way(f"SELECT * FROM {namespace}.{_CLAIM}") as closes:
        due = job(delay_s=0.001)
        await submit(broker, due)
        await asyncio.sleep(0.002)  # by the server's clock
        waits = asyncio.create_task(claim(broker, "w2", queues=("other", "q")))
        await is_blocked(namespace)
        assert ids(await claim(broker, "w3", queues=("other",))) == [other.id]
        closes.commit()
        assert ids(await waits) == [due.id]


# ---- the caller's own transaction ----


async def test_temporary_tables_of_the_caller_are_not_taken_for_ours(broker: PostgresBroker) -> None:
    one = job(batch="b", gates=("g",))
    async with mine() as connection, connection.transaction():
        for name in ("job", "batch", "line", "ready", "queue", "result"):
            await connection.execute(f"CREATE TEMP TABLE {name} (mine integer)")
        await submit_in(broker, connection, one)

    assert ids(await claim(broker)) == [one.id]


async def test_connection_that_its_pool_has_back_is_refused(broker: PostgresBroker) -> None:
    async with asyncpg.create_pool(postgres().url, min_size=0, max_size=1) as pool:
        connection = await pool.acquire()
        await pool.release(connection)
        with pytest.raises(ConfigError, match="given back"):
            await submit_in(broker, connection, job())


async def test_open_transaction_that_names_a_finished_batch_keeps_no_upkeep_waiting(broker: PostgresBroker) -> None:
    one, late = job(batch="import"), job(batch="import")
    await submit(broker, one)
    await settle(broker, await claim_one(broker), Complete(None))
    await broker.finish_batch("import")
    await submit(broker, job(gates=("smtp",)), job(gates=("smtp",)))
    await claim_one(broker, "dies", limit=1)
    gated = await claim_one(broker, "lives", limit=1)
    await broker.leave("dies")
    async with mine() as connection, connection.transaction():
        await submit_in(broker, connection, late)
        async with asyncio.timeout(PATIENCE_S):
            (back,) = await reclaim(broker, retention=NOTHING_KEPT)
            settled = await settle(broker, gated, Complete(None))

    assert back.reason == "lease_ended"
    assert settled.answer is Settled.APPLIED
    await settle_all(broker, await claim(broker), Complete(None))
    await reclaim(broker, retention=NOTHING_KEPT)
    assert await state(broker, late.id) is JobState.SUCCEEDED  # its batch is not finished any more


async def test_what_was_taken_back_is_told_though_nothing_can_be_forgotten(
    broker: PostgresBroker, namespace: str
) -> None:
    one = job()
    await submit(broker, one)
    await claim_one(broker, "dies")
    await broker.leave("dies")
    postgres().execute(f"DROP FUNCTION {namespace}.prune_v1")

    assert [moved.job_id for moved in await reclaim(broker)] == [one.id]
    with pytest.raises(BrokerError):
        await reclaim(broker)
