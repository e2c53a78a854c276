# ruff: noqa: ASYNC240 - a test may look at its files
"""What is special to SQLite: one file, many processes, group commit, full disks, other people's locks.

What every broker promises is in the folder `contract`.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from taskflow.brokers.base import Accepted, Settled, Settlement
from taskflow.brokers.sqlite import SqliteBroker, lines, schema, tx
from taskflow.core import gate as gating
from taskflow.core.decision import Bury, Complete, Release, Retry, Snooze
from taskflow.core.job import JobState
from taskflow.core.outcome import ErrorRecord
from taskflow.errors import BrokerError, BrokerUnavailable, ConfigError

from .words import (
    BOOM,
    LONG_S,
    NOTHING_KEPT,
    PATIENCE_S,
    ask,
    claim,
    claim_one,
    claimed_soon,
    eventually,
    ids,
    job,
    reclaim,
    settle,
    settle_all,
    shown,
    state,
    submit,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

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
async def other(path: Path) -> AsyncIterator[SqliteBroker]:
    """A second broker object on the same file, as in another process."""
    broker = SqliteBroker(path)
    await broker.open()
    yield broker
    await broker.close()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Somebody else holds the write lock."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


def python(script: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    """Another process of ours. It says a line when it is ready."""
    return subprocess.Popen(
        [sys.executable, "-c", _PRELUDE + script, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
        **options,
    )


_PRELUDE = """
import asyncio, json, os, sys, time
from taskflow.brokers.base import ClaimRequest, Settlement
from taskflow.brokers.sqlite import SqliteBroker
from taskflow.core.decision import Complete
from taskflow.core.job import Job
from taskflow.errors import BrokerUnavailable
def say(*words): print(*words, flush=True)
"""


def heard(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def check_recount(path: Path) -> None:
    """All that is counted, and all that lanes say, is what counting anew says. Empty when it is."""
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        counted = connection.execute(
            "SELECT id, ready, scheduled, running, dead FROM queue EXCEPT SELECT q.id,"
            " (SELECT count(*) FROM job WHERE queue = q.id AND state = 2),"
            " (SELECT count(*) FROM job WHERE queue = q.id AND state = 0),"
            " (SELECT count(*) FROM job WHERE queue = q.id AND state = 3),"
            " (SELECT count(*) FROM job WHERE queue = q.id AND state = 5) FROM queue q"
        ).fetchall()
        assert counted == [], "counters of queues"
        homeless = connection.execute(
            "SELECT j.id FROM job j LEFT JOIN lane l ON l.id = j.lane AND l.queue = j.queue AND l.top >= j.priority"
            " WHERE j.state = 2 AND l.id IS NULL"
        ).fetchall()
        assert homeless == [], "ready jobs that no claim would find"
        asleep = connection.execute(
            "SELECT l.id FROM lane l LEFT JOIN queue_gate g ON g.queue = l.queue AND g.gate = l.gate"
            " AND g.wake_at IS NOT NULL WHERE l.stand = 2 AND g.gate IS NULL"
        ).fetchall()
        assert asleep == [], "parked lanes that nobody wakes"
        gates = {name: live for name, live in connection.execute("SELECT name, live FROM gate") if live}
        pending = {
            (queue, gate): count
            for queue, gate, count in connection.execute("SELECT queue, gate, pending FROM queue_gate")
            if count
        }
        live: dict[str, int] = {}
        waits: dict[tuple[int, str], int] = {}
        for queue, number, names in connection.execute(
            "SELECT j.queue, j.state, b.gates FROM job j JOIN body b ON b.seq = j.seq WHERE b.gates <> ''"
        ):
            for name in json.loads(names):
                if number == schema.RUNNING:
                    live[name] = live.get(name, 0) + 1
                elif number in {schema.READY, schema.SCHEDULED}:
                    waits[queue, name] = waits.get((queue, name), 0) + 1
        assert (gates, pending) == (live, waits), "counters of gates"


# ---- group commit ----


async def test_verbs_that_wait_share_a_commit(broker: SqliteBroker, path: Path) -> None:
    with locked(path):
        asked = [asyncio.ensure_future(submit(broker, job())) for _ in range(50)]
        await asyncio.sleep(0)

    await asyncio.gather(*asked)

    with closing(sqlite3.connect(path)) as connection:
        (instants,) = connection.execute("SELECT count(DISTINCT submitted_at) FROM body").fetchone()
    assert instants <= 2, "the first may have gone alone, all others went together"


async def test_verb_that_fails_leaves_no_trace_and_its_neighbours_are_done(broker: SqliteBroker, path: Path) -> None:
    bad = [job(), job(payload=None)]
    good = [job() for _ in range(20)]
    with locked(path):
        asked = [asyncio.ensure_future(submit(broker, one)) for one in good[:10]]
        failing = asyncio.ensure_future(submit(broker, *bad))
        asked += [asyncio.ensure_future(submit(broker, one)) for one in good[10:]]
        await asyncio.sleep(0)

    with pytest.raises(TypeError):
        await failing
    answers = await asyncio.gather(*asked)

    assert [one.accepted for (one,) in answers] == [Accepted.NEW] * 20
    assert set(await broker.states([one.id for one in [*good, *bad]])) == {one.id for one in good}
    check_recount(path)


async def test_late_settlement_does_not_hurt_those_that_share_its_commit(
    broker: SqliteBroker, other: SqliteBroker, path: Path
) -> None:
    await submit(broker, *(job() for _ in range(30)))
    claims = await claim(broker)
    await settle_all(other, claims[10:20], Release())

    with locked(path):
        asked = [
            asyncio.ensure_future(settle_all(broker, claims[start : start + 10], Complete(b"1")))
            for start in (0, 10, 20)
        ]
        await asyncio.sleep(0)
    answers = [[reply.answer for reply in replies] for replies in await asyncio.gather(*asked)]

    assert answers == [[Settled.APPLIED] * 10, [Settled.ALREADY] * 10, [Settled.APPLIED] * 10]
    assert len(await claim(broker)) == 10
    check_recount(path)


async def test_cancelled_caller_breaks_no_group(broker: SqliteBroker, path: Path) -> None:
    with locked(path):
        asked = [asyncio.ensure_future(submit(broker, job())) for _ in range(20)]
        await asyncio.sleep(0)
        for one in asked[::2]:
            one.cancel()
    answers = await asyncio.gather(*asked, return_exceptions=True)

    assert [isinstance(one, asyncio.CancelledError) for one in answers] == [True, False] * 10
    assert len(await claim(broker)) in range(10, 21)
    check_recount(path)


async def test_claim_of_one_process_may_be_settled_by_another(broker: SqliteBroker, other: SqliteBroker) -> None:
    await submit(broker, job(), job(gates=("smtp",)), job())
    claims = await claim(broker)
    done = [Settlement(one.job_id, one.token, Complete(b"1")) for one in claims]

    first = await other.settle(done)
    again = await broker.settle(done)

    assert [reply.answer for reply in first] == [Settled.APPLIED] * 3
    assert [reply.answer for reply in again] == [Settled.ALREADY] * 3
    assert (await broker.gates())[0].live == 0


# ---- locks ----


async def test_file_locked_by_another_process_says_so_and_can_be_read(path: Path) -> None:
    broker = SqliteBroker(path, busy_timeout_s=0.05)
    await broker.open()
    one, two = job(), job()
    await submit(broker, one)
    script = """
import sqlite3
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
say("locked")
sys.stdin.readline()
connection.execute("COMMIT")
"""
    with ended(python(script, path)) as process:
        assert heard(process) == "locked"
        with pytest.raises(BrokerUnavailable) as caught:
            await submit(broker, two)
        seen = await broker.states([one.id, two.id])
        counts = await broker.counts()
    after = await submit(broker, two)
    await broker.close()

    assert (caught.value.kind, str(path) in str(caught.value)) == ("locked", True)
    assert caught.value.retry_after_s is not None
    assert seen == {one.id: JobState.READY}
    assert counts[0].ready == 1
    assert after[0].accepted is Accepted.NEW


async def test_lock_that_is_soon_free_is_waited_for(broker: SqliteBroker, path: Path) -> None:
    with locked(path):
        asked = asyncio.ensure_future(submit(broker, job()))
        await asyncio.sleep(0.02)
        waited = not asked.done()

    (receipt,) = await asked

    assert waited
    assert receipt.accepted is Accepted.NEW


async def test_beat_from_a_thread_waits_no_longer_than_a_third_of_the_lease(broker: SqliteBroker, path: Path) -> None:
    beats = broker.sync_beat()
    assert beats is not None
    beats.beat("w1", {}, 60.0)

    def beat() -> float:
        begun = time.monotonic()
        with pytest.raises(BrokerUnavailable):
            beats.beat("w1", {}, 0.15)
        return time.monotonic() - begun

    with locked(path):
        took_s = await asyncio.to_thread(beat)
    beats.beat("w1", {}, 60.0)
    beats.close()

    assert took_s < 5, "the broker would have waited for 10 s"


async def test_many_processes_open_a_new_file_at_once(path: Path) -> None:
    brokers = [SqliteBroker(path) for _ in range(8)]

    await asyncio.gather(*(broker.open() for broker in brokers))
    await asyncio.gather(*(submit(broker, job()) for broker in brokers))

    assert len(await claim(brokers[0])) == 8
    for broker in brokers:
        await broker.close()


_WORK_UNTIL_EMPTY = """
async def main():
    broker = SqliteBroker(sys.argv[1], synchronous="NORMAL")
    await broker.open()
    say("ready")
    sys.stdin.readline()
    request = ClaimRequest(sys.argv[2], ("q",), 7, 7, 1, 60.0)
    done = []
    while claims := await broker.claim(request):
        await broker.settle([Settlement(one.job_id, one.token, Complete(sys.argv[2].encode())) for one in claims])
        done += [one.job_id for one in claims]
    await broker.close()
    say(json.dumps(done))
asyncio.run(main())
"""


async def test_processes_share_the_work_and_never_a_job(broker: SqliteBroker, path: Path) -> None:
    jobs = [job(lane=str(number % 5)) for number in range(300)]
    await submit(broker, *jobs)
    with ended(python(_WORK_UNTIL_EMPTY, path, "a")) as a, ended(python(_WORK_UNTIL_EMPTY, path, "b")) as b:
        for process in (a, b):
            assert heard(process) == "ready"
        for process in (a, b):
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()

        done = [json.loads(await asyncio.to_thread(heard, process)) for process in (a, b)]

    assert sorted(done[0] + done[1]) == sorted(one.id for one in jobs)
    check_recount(path)


# ---- the disk ----

_FILL = """
import resource
async def main():
    broker = SqliteBroker(sys.argv[1])
    await broker.open()
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
    accepted, kind, number = [], None, 0
    while kind is None:
        number += 20
        jobs = [Job(f"{number + k:032x}", "work", "q", b"x" * 500) for k in range(20)]
        try:
            await broker.submit(jobs, {})
        except BrokerUnavailable as error:
            kind = error.kind
        else:
            accepted += [job.id for job in jobs]
    refused = [job.id for job in jobs]
    while_full = await broker.states(accepted + refused)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    receipts = await broker.submit(jobs, {})
    await broker.close()
    say(json.dumps([kind, accepted, refused, sorted(while_full), [one.accepted for one in receipts]]))
asyncio.run(main())
"""


async def test_full_disk_loses_nothing_and_is_over_when_there_is_space(path: Path) -> None:
    with ended(python(_FILL, path)) as process:
        kind, accepted, refused, while_full, receipts = json.loads(heard(process))

    broker = SqliteBroker(path)
    await broker.open()
    after = await broker.states(accepted + refused)
    await broker.close()

    assert kind == "full"
    assert len(accepted) > 0
    assert while_full == sorted(accepted)
    assert receipts == ["new"] * 20
    assert sorted(after) == sorted(accepted + refused)
    check_recount(path)


async def test_log_that_cannot_grow_is_written_back_instead_of_refusing(path: Path) -> None:
    """A disk that is full for new pages still has room for the log's old ones."""
    script = """
import resource
async def main():
    broker = SqliteBroker(sys.argv[1], synchronous="NORMAL")
    await broker.open()
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
    for number in range(60):  # each of them writes some pages of the same few
        await broker.submit([Job(f"{number:032x}", "work", "q", b"{}")], {})
        (claim,) = await broker.claim(ClaimRequest("w", ("q",), 1, 1, 1, 60.0))
        await broker.settle([Settlement(claim.job_id, claim.token, Complete())])
    await broker.close()
    say("done")
asyncio.run(main())
"""
    with ended(python(script, path)) as process:
        assert heard(process) == "done"


async def test_file_does_not_grow_for_ever(path: Path) -> None:
    broker = SqliteBroker(path, synchronous="NORMAL")
    await broker.open()
    sizes = []

    for _ in range(6):
        await submit(broker, *(job(payload=b"x" * 300) for _ in range(500)))
        await settle_all(broker, await claim(broker, limit=500), Complete(b"y" * 100))
        await reclaim(broker, retention=NOTHING_KEPT)
        with closing(sqlite3.connect(path)) as connection:
            (pages,) = connection.execute("PRAGMA page_count").fetchone()
        sizes.append(pages)

    await broker.close()
    assert max(sizes[2:]) <= sizes[1] * 1.2, sizes
    assert [file.name for file in path.parent.iterdir()] == [path.name], "the log is gone"


async def test_space_of_a_burst_goes_back_to_the_disk(path: Path) -> None:
    broker = SqliteBroker(path, synchronous="NORMAL")
    await broker.open()
    for _ in range(4):
        await submit(broker, *(job(payload=b"x" * 4_000) for _ in range(500)))
    await settle_all(broker, await claim(broker, limit=2_000), Complete())
    with closing(sqlite3.connect(path)) as connection:
        (before,) = connection.execute("PRAGMA page_count").fetchone()

    async def is_small() -> bool:
        await reclaim(broker, retention=NOTHING_KEPT)
        with closing(sqlite3.connect(path)) as connection:
            (pages,) = connection.execute("PRAGMA page_count").fetchone()
        return pages < before / 2

    await eventually(is_small)
    await broker.close()
    check_recount(path)


async def test_file_that_was_deleted_is_told_and_not_written_to(
    broker: SqliteBroker, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskflow.brokers.sqlite.connection._CHECK_S", 0.0)
    for file in path.parent.iterdir():
        file.unlink()

    with pytest.raises(BrokerUnavailable, match="removed or replaced"):
        await submit(broker, job())
    (receipt,) = await submit(broker, job())

    assert receipt.accepted is Accepted.NEW
    assert path.exists()


# ---- the schema ----


async def test_newer_schema_is_refused_and_left_alone(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE job (from_the_future)")
        connection.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    before = path.read_bytes()

    with pytest.raises(ConfigError, match="upgrade taskflow"):
        await SqliteBroker(path).open()

    assert path.read_bytes() == before


async def test_database_of_another_program_is_refused_and_left_alone(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE their (own)")
    before = path.read_bytes()

    with pytest.raises(ConfigError, match="another program"):
        await SqliteBroker(path).open()

    assert path.read_bytes() == before


async def test_file_that_is_no_database_is_told(path: Path) -> None:
    path.write_text("These are the notes of a meeting, and no database at all. " * 20)

    with pytest.raises(BrokerError, match="no SQLite database"):
        await SqliteBroker(path).open()


async def test_folder_that_is_missing_is_told(tmp_path: Path) -> None:
    broker = SqliteBroker(tmp_path / "missing" / "taskflow.db")

    with pytest.raises(BrokerUnavailable, match="folder must exist") as caught:
        await broker.open()

    assert caught.value.kind == "unreachable"
    with pytest.raises(BrokerError, match="not open"):
        await broker.counts()


def test_jobs_in_memory_are_refused() -> None:
    with pytest.raises(ConfigError, match="memory://"):
        SqliteBroker(":memory:")


async def test_close_gives_back_threads_and_sockets(path: Path) -> None:
    before = {thread.name for thread in threading.enumerate()}
    broker = SqliteBroker(path)
    await broker.open()
    await broker.counts()
    await broker.wait(ask(), 0.0)

    await broker.close()

    assert {thread.name for thread in threading.enumerate()} == before
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM listener").fetchone() == (0,)


# ---- other processes ----

_SUBMIT_ON_WORD = """
async def main():
    broker = SqliteBroker(sys.argv[1])
    await broker.open()
    say("ready")
    for number, line in enumerate(sys.stdin):
        await broker.submit([Job(f"{number:032x}", "work", "q", b"{}")], {})
        say(time.monotonic())
    await broker.close()
asyncio.run(main())
"""


async def test_submit_of_another_process_wakes_a_worker_before_it_would_look(broker: SqliteBroker, path: Path) -> None:
    took_s = []
    with ended(python(_SUBMIT_ON_WORD, path)) as process:
        assert heard(process) == "ready"
        assert process.stdin is not None
        for _ in range(5):
            waiting = asyncio.ensure_future(claimed_soon(broker))
            await asyncio.to_thread(process.stdin.write, "go\n")
            await asyncio.to_thread(process.stdin.flush)
            submitted_at = float(await asyncio.to_thread(heard, process))
            await waiting
            took_s.append(time.monotonic() - submitted_at)

    assert min(took_s) < 0.3, "it looks by itself once a second"


async def test_job_that_ends_in_another_process_wakes_who_waits_for_it(
    broker: SqliteBroker, other: SqliteBroker
) -> None:
    took_s = []
    for _ in range(5):
        one = job()
        await submit(broker, one)
        waiting = asyncio.ensure_future(broker.finals([one.id], LONG_S))
        claimed = await claim_one(other)
        await asyncio.sleep(0.01)
        begun = time.monotonic()
        await settle(other, claimed, Complete(b"42"))
        finals = await waiting
        took_s.append(time.monotonic() - begun)
        assert finals[one.id].result == b"42"

    assert min(took_s) < 0.3, "it looks by itself once a second"


async def until_it_is_told_of_ends(path: Path) -> None:
    async def is_told() -> bool:
        with closing(sqlite3.connect(path)) as connection:
            return bool(connection.execute("SELECT 1 FROM listener WHERE kinds & 2").fetchall())

    await eventually(is_told)


@pytest.mark.parametrize("count", [1, 700, 3_000])
async def test_settle_of_thousands_elsewhere_wakes_those_who_wait_for_them_and_nobody_else(
    broker: SqliteBroker, other: SqliteBroker, path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr("taskflow.brokers.sqlite.listening._POLL_S", LONG_S)
    theirs, *jobs = [job() for _ in range(count + 1)]
    await submit(broker, theirs, *jobs)
    claims = await claim(other, limit=count + 1)
    for_theirs = asyncio.create_task(broker.finals([theirs.id], LONG_S))
    for_last = asyncio.create_task(broker.finals([jobs[-1].id], LONG_S))
    await until_it_is_told_of_ends(path)
    before = set(broker._waiters.finals.by_name[theirs.id])

    await settle_all(other, [one for one in claims if one.job_id != theirs.id], Complete())
    async with asyncio.timeout(PATIENCE_S):
        assert list(await for_last) == [jobs[-1].id]

    assert set(broker._waiters.finals.by_name[theirs.id]) == before  # who was woken and found nothing waits anew
    assert not any(one.done() for one in before)
    for_theirs.cancel()


async def test_end_that_nobody_was_told_of_is_seen_at_the_deadline(
    broker: SqliteBroker, other: SqliteBroker, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskflow.brokers.sqlite.listening._POLL_S", LONG_S)
    one = job()
    await submit(broker, one)
    claimed = await claim_one(other)
    waiting = asyncio.create_task(broker.finals([one.id], 1.0))
    await until_it_is_told_of_ends(path)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DELETE FROM listener")

    await settle(other, claimed, Complete(b"42"))

    assert (await waiting)[one.id].result == b"42"


async def test_stranger_on_the_port_wakes_nobody_and_breaks_nothing(broker: SqliteBroker, path: Path) -> None:
    waiting = asyncio.ensure_future(broker.wait(ask(), LONG_S))

    async def port() -> int:
        with closing(sqlite3.connect(path)) as connection:
            row = connection.execute("SELECT port FROM listener").fetchone()
        return row[0] if row else 0

    at = await eventually(port)
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        for noise in (b"", b"hello", b"w" * 60_000):
            stranger.sendto(noise, ("127.0.0.1", at))
        await asyncio.sleep(0.05)
        still = not waiting.done()
        await submit(broker, job())
        async with asyncio.timeout(PATIENCE_S):
            await waiting

    assert still


_COMMIT_UNTIL_KILLED = """
async def main():
    broker = SqliteBroker(sys.argv[1], synchronous="NORMAL")
    await broker.open()
    number = 0
    async def submits():
        nonlocal number
        while True:
            jobs = []
            for _ in range(10):
                number += 1
                gates = ("smtp",) if number % 3 == 0 else ()
                jobs.append(Job(f"{number:032x}", "work", "q", b"{}", lane=str(number % 4), gates=gates))
            await broker.submit(jobs, {})
            say(json.dumps([job.id for job in jobs]))
    async def works():
        while True:
            claims = await broker.claim(ClaimRequest("w", ("q",), 8, 8, 1, 60.0))
            await broker.settle([Settlement(one.job_id, one.token, Complete(b"1")) for one in claims[:6]])
            await asyncio.sleep(0)
    await asyncio.gather(submits(), works())
asyncio.run(main())
"""


async def test_kill_during_commits_leaves_a_file_that_adds_up_and_has_all_that_was_accepted(path: Path) -> None:
    with ended(python(_COMMIT_UNTIL_KILLED, path)) as process:
        accepted = json.loads(heard(process))
        for _ in range(30):
            accepted += json.loads(heard(process))
        process.send_signal(signal.SIGKILL)
        rest, _ = process.communicate()
    accepted += [one for line in rest.splitlines() if line.endswith("]") for one in json.loads(line)]

    check_recount(path)
    broker = SqliteBroker(path)
    await broker.open()
    kept = await broker.states(accepted)
    await broker.leave("w")
    await reclaim(broker)
    await settle_all(broker, await claim(broker, limit=100_000, gated=100_000), Complete())
    after = await broker.states(accepted)
    await broker.close()

    assert set(kept) == set(accepted)
    assert set(after.values()) == {JobState.SUCCEEDED}
    check_recount(path)


# ---- bytes and texts ----


@pytest.mark.parametrize("payload", [b"", b"\x00", b"a\x00b", b"\xff\xfe\x00\x80", "ø🐋".encode(), b"x" * 300_000])
async def test_bytes_come_back_as_they_went(broker: SqliteBroker, payload: bytes) -> None:
    one, two = job(payload=payload), job(payload=b"next")
    await submit(broker, *(job(payload=payload) for _ in range(9)), one, two)

    claims = await claim(broker)
    await settle_all(broker, claims, Complete(payload))

    assert [got.payload for got in claims] == [payload] * 10 + [b"next"]
    assert (await broker.finals([one.id], 0))[one.id].result == payload


async def test_texts_come_back_as_they_went(broker: SqliteBroker) -> None:
    lane, key = 'a"b\\c\x00d\x1f/ø🐋', "k\x1f'\";\x00--"
    one = job(lane=lane, key=key, gates=('http/"x"',), task="t")
    await submit(broker, one)

    got = await claim_one(broker)
    info = await shown(broker, one.id)

    assert (got.lane, got.gates) == (lane, one.gates)
    assert (info.lane, info.key, info.gates) == (lane, key, one.gates)


async def test_error_that_utf8_cannot_hold_is_kept_all_the_same(broker: SqliteBroker) -> None:
    broken = ErrorRecord("OSError", "no file \udcff here", "transient", "File '\udcff'\x00")
    first, second, third = job(), job(), job()
    await submit(broker, first, second, third)
    claims = await claim(broker)

    for got, decision in zip(claims, (Retry(LONG_S, broken), Bury(broken), Snooze(0.0, "\ud800")), strict=True):
        assert (await settle(broker, got, decision)).answer is Settled.APPLIED

    assert "\\udcff" in (await shown(broker, first.id)).errors[0].message


# ---- size ----


async def test_held_dependency_of_many_lanes_does_not_stop_the_others(broker: SqliteBroker, path: Path) -> None:
    await broker.gate("http", gating.Hold(LONG_S))
    held = [job(lane=str(number), gates=("http",)) for number in range(1_500)]
    await submit(broker, *held, *(job(lane=f"free-{number}") for number in range(20)))
    found: list[str] = []

    for _ in range(3):
        found += [got.lane for got in await claim(broker, limit=100, gated=100)]

    assert sorted(found) == sorted(f"free-{number}" for number in range(20))
    check_recount(path)


async def test_lanes_leave_nothing_behind(broker: SqliteBroker, path: Path) -> None:
    await submit(broker, *(job(lane=str(number), gates=(f"http/{number}",)) for number in range(300)))
    await settle_all(broker, await claim(broker, limit=300, gated=300), Complete())
    assert await claim(broker) == []

    await reclaim(broker, retention=NOTHING_KEPT)

    with closing(sqlite3.connect(path)) as connection:
        left = [
            connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            for table in ("lane", "gate", "queue_gate", "job", "body", "result", "note", "error")
        ]
    assert left == [0] * 8


async def test_purge_of_many_jobs_leaves_the_others(broker: SqliteBroker, path: Path) -> None:
    mine = [job(task="mine") for _ in range(1_500)]
    others = [job(task="other") for _ in range(10)]
    await submit(broker, *mine[:800], *others, *mine[800:])

    cancelled = await broker.purge(state=JobState.READY, task="mine")
    deleted = await broker.purge(state=JobState.CANCELLED)

    assert (cancelled, deleted) == (1_500, 1_500)
    assert sorted(ids(await claim(broker))) == sorted(one.id for one in others)
    check_recount(path)


async def test_dead_letters_and_errors_survive_a_restart(path: Path) -> None:
    first = SqliteBroker(path)
    await first.open()
    one = job()
    await submit(first, one)
    await settle(first, await claim_one(first), Bury(BOOM))
    await first.close()

    second = SqliteBroker(path)
    await second.open()
    info = await shown(second, one.id)
    await second.retry([one.id])
    now = await state(second, one.id)
    await second.close()

    assert [error.message for error in info.errors] == ["boom"]
    assert (info.state, now) == (JobState.DEAD, JobState.READY)


# ---- loops ----


async def test_answers_of_one_commit_go_to_the_loops_that_asked() -> None:
    mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    gone = asyncio.new_event_loop()  # of a handler in a thread that has ended since
    theirs: asyncio.Future[None] = gone.create_future()
    gone.close()

    await asyncio.to_thread(lines.answer, [lines.Op(lines.nothing, theirs), lines.Op(lines.nothing, mine)])

    async with asyncio.timeout(PATIENCE_S):
        assert await mine is None


# ---- lanes and gates ----


async def test_release_of_a_family_opens_more_keys_than_one_claim_looks_at(broker: SqliteBroker, path: Path) -> None:
    await broker.gate("http", gating.Hold(LONG_S))
    jobs = [job(lane=str(number), gates=(f"http/{number}",)) for number in range(tx.STIRS + 100)]
    await submit(broker, *jobs)
    with closing(sqlite3.connect(path)) as connection:
        waiting = "SELECT count(*) FROM lane WHERE stand = 1"
        while connection.execute(waiting).fetchone() != (0,):
            assert await claim(broker) == []

    await broker.gate("http", gating.Release())
    taken: set[str] = set()
    while len(taken) < len(jobs):
        taken.update(ids(await claimed_soon(broker, limit=1_000, gated=1_000)))

    assert taken == {one.id for one in jobs}
