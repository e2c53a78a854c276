"""What only a database gives, on SQLite: jobs that are there, or done, if and only if the caller's transaction commits."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from taskflow.brokers.base import Accepted, Completing, Settled, Transactional
from taskflow.brokers.memory import MemoryBroker
from taskflow.brokers.sqlite import SqliteBroker, listening
from taskflow.core.decision import Complete, Retry
from taskflow.core.job import Job, JobState
from taskflow.errors import BrokerUnavailable, ConfigError

from .words import (
    BOOM,
    LONG_S,
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
    state,
    submit,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from taskflow.brokers.base import Receipt

pytestmark = pytest.mark.anyio


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "taskflow.db"


@pytest.fixture
async def broker(path: Path) -> AsyncIterator[SqliteBroker]:
    broker = SqliteBroker(path)
    await broker.open()
    yield broker
    await broker.close()


@pytest.fixture
def mine(broker: SqliteBroker, path: Path) -> Iterator[sqlite3.Connection]:
    """The caller's connection, to the same file, with a table of its own in it."""
    with closing(sqlite3.connect(path, timeout=0.2)) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS orders (number INTEGER)")
        connection.commit()
        yield connection


def orders(connection: sqlite3.Connection) -> int:
    (count,) = connection.execute("SELECT count(*) FROM orders").fetchone()
    return int(count)


async def submit_in(broker: SqliteBroker, connection: object, *jobs: Job, bound: int = 100_000) -> list[Receipt]:
    return await broker.submit_in(connection, jobs, {job.queue: bound for job in jobs})


def test_sqlite_has_both_and_memory_neither(tmp_path: Path) -> None:
    broker = SqliteBroker(tmp_path / "taskflow.db")

    assert isinstance(broker, Transactional)
    assert isinstance(broker, Completing)
    assert not isinstance(MemoryBroker(), Transactional | Completing)


# ---- submit_in ----


async def test_job_is_there_once_the_callers_transaction_commits(
    broker: SqliteBroker, mine: sqlite3.Connection
) -> None:
    mine.execute("INSERT INTO orders VALUES (1)")
    one, later = job(gates=("smtp",), lane="a"), job(delay_s=LONG_S)

    receipts = await submit_in(broker, mine, one, later)
    before = await broker.states([one.id, later.id])
    mine.commit()

    assert [receipt.accepted for receipt in receipts] == [Accepted.NEW, Accepted.NEW]
    assert before == {}
    assert ids(await claimed_soon(broker)) == [one.id]
    assert await state(broker, later.id) is JobState.SCHEDULED
    ((counts),) = await broker.counts()
    assert (counts.running, counts.scheduled) == (1, 1)


async def test_job_is_not_there_once_the_callers_transaction_is_rolled_back(
    broker: SqliteBroker, mine: sqlite3.Connection
) -> None:
    mine.execute("INSERT INTO orders VALUES (1)")
    await submit_in(broker, mine, one := job(key="k"))
    mine.rollback()

    assert await broker.states([one.id]) == {}
    assert await claim(broker) == []
    assert orders(mine) == 0
    assert (await submit(broker, job(key="k")))[0].accepted is Accepted.NEW


async def test_transaction_is_begun_where_the_module_does_it_by_itself(
    broker: SqliteBroker, mine: sqlite3.Connection
) -> None:
    await submit_in(broker, mine, one := job())
    assert mine.in_transaction
    assert await broker.states([one.id]) == {}

    with mine:
        mine.execute("INSERT INTO orders VALUES (1)")

    assert ids(await claimed_soon(broker)) == [one.id]


@pytest.mark.parametrize(
    "options",
    [
        {"isolation_level": None},
        pytest.param({"autocommit": True}, marks=pytest.mark.skipif(sys.version_info < (3, 12), reason="Python 3.12")),
    ],
)
async def test_no_transaction_is_begun_for_whoever_begins_his_own(
    broker: SqliteBroker, path: Path, options: dict[str, Any]
) -> None:
    with closing(sqlite3.connect(path, **options)) as connection:
        with pytest.raises(ConfigError, match="BEGIN IMMEDIATE"):
            await submit_in(broker, connection, job())
        assert not connection.in_transaction

        connection.execute("BEGIN IMMEDIATE")
        await submit_in(broker, connection, one := job())
        connection.execute("COMMIT")

    assert ids(await claimed_soon(broker)) == [one.id]


async def test_worker_that_waits_is_woken_by_the_commit(
    broker: SqliteBroker, mine: sqlite3.Connection, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "_POLL_S", LONG_S)  # nobody finds it by looking
    there = SqliteBroker(path)  # as in another process
    await there.open()
    waiting = [asyncio.create_task(claimed_soon(one, limit=1)) for one in (broker, there)]

    async def both_listen() -> bool:
        return mine.execute("SELECT count(*) FROM listener").fetchone() == (2,)

    await eventually(both_listen)

    for _ in waiting:
        await submit_in(broker, mine, job())
        mine.commit()
    claims = await asyncio.gather(*waiting)
    await there.close()

    assert [len(each) for each in claims] == [1, 1]


async def test_job_of_another_process_is_there_once_that_commits(broker: SqliteBroker, path: Path) -> None:
    code = f"""
import asyncio, sqlite3, sys
from taskflow.brokers.sqlite import SqliteBroker, listening
from taskflow.core.job import Job

async def main():
    broker = SqliteBroker({str(path)!r})
    await broker.open()
    connection = sqlite3.connect({str(path)!r})
    await broker.submit_in(connection, [Job("a" * 32, "work", "q", b"{{}}")], {{}})
    print("submitted", flush=True)
    sys.stdin.readline()
    connection.commit()
    await broker.close()

asyncio.run(main())
"""
    with subprocess.Popen(  # noqa: ASYNC220 - its pipes are read in a thread
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        said = await asyncio.to_thread(process.stdout.readline)
        before = await broker.states(["a" * 32])
        process.stdin.write("commit\n")
        process.stdin.close()
        claims = await claimed_soon(broker)

    assert said == "submitted\n"
    assert before == {}
    assert ids(claims) == ["a" * 32]


async def test_full_queue_refuses_and_leaves_the_transaction_to_its_owner(
    broker: SqliteBroker, mine: sqlite3.Connection
) -> None:
    mine.execute("INSERT INTO orders VALUES (1)")

    receipts = await submit_in(broker, mine, first := job(), job(), bound=1)
    mine.commit()

    assert [receipt.accepted for receipt in receipts] == [Accepted.NEW, Accepted.QUEUE_FULL]
    assert receipts[1].retry_after_s > 0
    assert orders(mine) == 1
    assert ids(await claimed_soon(broker)) == [first.id]


async def test_failed_submit_undoes_its_own_part_and_no_more(broker: SqliteBroker, mine: sqlite3.Connection) -> None:
    mine.execute("INSERT INTO orders VALUES (1)")
    broken = job(priority=2**64)  # no number that SQLite can hold

    with pytest.raises(OverflowError):
        await submit_in(broker, mine, whole := job(), broken)
    mine.commit()

    assert orders(mine) == 1
    assert await broker.states([whole.id]) == {}
    assert await broker.counts() == []


async def test_connection_that_cannot_be_used_is_refused(
    broker: SqliteBroker, mine: sqlite3.Connection, tmp_path: Path
) -> None:
    elsewhere = sqlite3.connect(tmp_path / "elsewhere.db")
    in_memory = sqlite3.connect(":memory:")
    closed = sqlite3.connect(tmp_path / "taskflow.db")
    closed.close()
    thread = ThreadPoolExecutor(1)
    of_a_thread = thread.submit(sqlite3.connect, tmp_path / "taskflow.db").result()

    for connection, why in (
        (elsewhere, "elsewhere.db"),
        (in_memory, "a database in memory"),
        (closed, "closed"),
        (of_a_thread, "thread"),
        ("taskflow.db", "sqlite3.Connection"),
    ):
        with pytest.raises(ConfigError, match=why):
            await submit_in(broker, connection, job())
    assert not elsewhere.in_transaction
    elsewhere.close()
    in_memory.close()
    thread.submit(of_a_thread.close).result()
    thread.shutdown()
    assert await broker.counts() == []


async def test_rows_and_texts_may_be_made_as_the_caller_likes(broker: SqliteBroker, mine: sqlite3.Connection) -> None:
    def as_dict(cursor: sqlite3.Cursor, row: tuple[object, ...]) -> dict[str, object]:
        return {column[0]: value for column, value in zip(cursor.description, row, strict=True)}

    mine.row_factory, mine.text_factory = as_dict, bytes
    await submit(broker, job(gates=("smtp",)))
    await submit_in(broker, mine, one := job(gates=("smtp",), key="k"))
    mine.commit()

    assert (mine.row_factory, mine.text_factory) == (as_dict, bytes)
    assert one.id in ids(await claimed_soon(broker))


async def test_transaction_that_has_read_already_and_cannot_have_the_lock_says_what_to_do(
    broker: SqliteBroker, path: Path
) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN")
        connection.execute("SELECT count(*) FROM job").fetchone()
        await submit(broker, job())

        with pytest.raises(BrokerUnavailable) as locked:
            await submit_in(broker, connection, job())
        connection.execute("ROLLBACK")

    assert locked.value.kind == "locked"
    assert any("BEGIN IMMEDIATE" in note for note in locked.value.__notes__)


# ---- complete_in ----


async def test_job_is_done_once_the_callers_transaction_commits(broker: SqliteBroker, mine: sqlite3.Connection) -> None:
    await submit(broker, job(gates=("smtp",)))
    got = await claim_one(broker)
    finals = asyncio.create_task(broker.finals([got.job_id], PATIENCE_S))

    mine.execute("INSERT INTO orders VALUES (1)")
    answer = await broker.complete_in(mine, got.job_id, got.token, b'"done"')
    before = await state(broker, got.job_id)
    mine.commit()
    final = (await finals)[got.job_id]
    later = await settle(broker, got, Retry(1.0, BOOM))

    assert (answer, before) == (Settled.APPLIED, JobState.RUNNING)
    assert (final.state, final.result) == (JobState.SUCCEEDED, b'"done"')
    assert (later.answer, later.state) == (Settled.ALREADY, JobState.SUCCEEDED)
    (gate,) = await broker.gates()
    assert gate.live == 0


async def test_job_goes_on_once_the_callers_transaction_is_rolled_back(
    broker: SqliteBroker, mine: sqlite3.Connection
) -> None:
    await submit(broker, job())
    got = await claim_one(broker)

    await broker.complete_in(mine, got.job_id, got.token, b"1")
    mine.rollback()
    reply = await settle(broker, got, Complete(b"2"))

    assert (reply.answer, reply.state) == (Settled.APPLIED, JobState.SUCCEEDED)
    assert (await broker.finals([got.job_id], 0))[got.job_id].result == b"2"


async def test_stale_completion_changes_nothing(broker: SqliteBroker, mine: sqlite3.Connection) -> None:
    await submit(broker, job())
    old = await claim_one(broker, "w1")
    await die(broker, "w1")
    new = await claim_one(broker, "w2")

    answer = await broker.complete_in(mine, old.job_id, old.token, b"1")
    mine.commit()

    assert answer is Settled.STALE
    assert (await settle(broker, new, Complete(b"2"))).answer is Settled.APPLIED


async def test_completed_job_is_not_vouched_for_any_more(broker: SqliteBroker, mine: sqlite3.Connection) -> None:
    await submit(broker, job())
    got = await claim_one(broker)
    await broker.complete_in(mine, got.job_id, got.token, None)
    mine.commit()

    reply = await broker.beat("w1", {got.job_id: got.token}, ask().lease_s)

    assert reply.lost == (got.job_id,)
