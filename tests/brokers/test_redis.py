"""What is special to Redis and Valkey: a server that restarts, hangs, forgets scripts, evicts; keys; wake-ups.

What every broker promises is in the folder `contract`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import sys
import time
from collections import Counter
from functools import partial
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import hypothesis.strategies as st
import pytest
import redis
import redis.exceptions
from hypothesis import HealthCheck, given, settings

from taskflow.brokers.base import Accepted, Doubtful, Note, Settled, Settlement
from taskflow.brokers.redis import RedisBroker
from taskflow.brokers.redis.link import heeding_cancellation
from taskflow.brokers.redis.scripts import script
from taskflow.core import bucket
from taskflow.core import gate as gating
from taskflow.core.decision import Bury, Complete, Retry, Snooze
from taskflow.core.job import JobState
from taskflow.core.specs import CircuitBreaker
from taskflow.errors import BrokerError, BrokerUnavailable, ConfigError
from tests.chaos.proxy import Proxy
from tests.servers.valkey import ValkeyServer, forget_namespace, new_namespace, outside_url, valkey_url

from .words import (
    BOOM,
    DONE,
    LONG_S,
    NOTHING_KEPT,
    PATIENCE_S,
    ask,
    claim,
    claim_one,
    claimed_soon,
    die,
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
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from taskflow.core.job import Job

pytestmark = pytest.mark.anyio
SECRET = "correct-horse"


@pytest.fixture
def namespace() -> Iterator[str]:
    name = new_namespace()
    yield name
    forget_namespace(name)


@pytest.fixture
async def broker(namespace: str) -> AsyncIterator[RedisBroker]:
    async with opened(valkey_url(), namespace=namespace) as broker:
        yield broker


@pytest.fixture
def server() -> Iterator[ValkeyServer]:
    """One that a test may break."""
    with ValkeyServer() as server:
        yield server


class opened:  # noqa: N801 - reads as a verb
    """A broker that is open in the block."""

    def __init__(self, url: str, **options: Any) -> None:
        self.broker = RedisBroker(url, **options)

    async def __aenter__(self) -> RedisBroker:
        await self.broker.open()
        return self.broker

    async def __aexit__(self, *exc: object) -> None:
        await self.broker.close()


async def keys(broker: RedisBroker) -> list[str]:
    """All keys of the server that have to do with the broker's namespace."""
    return [key.decode() for key in await broker._link.ask("KEYS", f"*{broker._link.namespace}*")]


async def commands(broker: RedisBroker) -> int:
    """How many the server has run so far, within scripts too."""
    stats = await broker._link.ask("INFO", "commandstats")
    return sum(one["calls"] for one in stats.values())


async def test_close_amid_calls_lets_them_end_and_leaves_no_connection(server: ValkeyServer) -> None:
    closed = []  # nothing ends with an object that is forgotten
    for turns in range(16):
        broker = RedisBroker(server.url)
        await broker.open()
        waiting = asyncio.create_task(broker.wait(ask(), LONG_S))
        calls = [asyncio.create_task(submit(broker, job())) for _ in range(3)]
        for _ in range(turns + 1):  # of the loop: how far they are when it closes
            await asyncio.sleep(0)
        await broker.close()
        await asyncio.gather(waiting, return_exceptions=True)
        receipts = await asyncio.gather(*calls)
        assert {receipt.accepted for (receipt,) in receipts} == {Accepted.NEW}
        closed.append(broker)

    async def is_left() -> bool:
        clients = server.ask("CLIENT", "LIST")
        ours = clients.count(b"cmd=client|list") + clients.count(b"cmd=client ")  # the latter of Redis 6.2
        return clients.count(b" addr=") == ours

    await eventually(is_left)


async def test_text_that_no_utf8_can_hold_is_kept_readable(broker: RedisBroker) -> None:
    one = job(key="half \ud83d", lane="half \ud83d")
    await submit(broker, one)
    assert (await submit(broker, job(key="half \ud83d")))[0].accepted is Accepted.SAME_KEY
    await settle(broker, await claim_one(broker), Snooze(LONG_S, "half \ud83d"))
    info = await broker.show(one.id)
    assert info is not None
    assert info.reason == r"half \ud83d"


async def test_wait_without_end_can_be_shown(broker: RedisBroker) -> None:
    one = job()
    await submit(broker, one, job(delay_s=float("inf")))
    await settle(broker, await claim_one(broker), Snooze(float("inf"), "for ever"))
    assert {info.state for info in await broker.jobs()} == {JobState.SCHEDULED}
    assert await state(broker, one.id) is JobState.SCHEDULED


# ---- scripts ----


async def test_script_that_the_server_forgot_is_sent_again(broker: RedisBroker) -> None:
    await submit(broker, job())
    await broker._link.ask("SCRIPT", "FLUSH")

    await submit(broker, job())
    running = await claim(broker)
    await broker._link.ask("SCRIPT", "FLUSH")
    replies = await settle_all(broker, running, DONE)

    assert [reply.answer for reply in replies] == [Settled.APPLIED] * 2


async def test_beat_of_a_thread_survives_forgotten_scripts_too(broker: RedisBroker) -> None:
    await submit(broker, job())
    running = await claim_one(broker)
    beat = broker.sync_beat()
    assert beat is not None
    await broker._link.ask("SCRIPT", "FLUSH")

    reply = await asyncio.to_thread(beat.beat, "w1", {running.job_id: running.token, "gone": 1}, 60.0)
    beat.close()

    assert (reply.lost, reply.cancel) == (("gone",), ())


async def test_batch_of_thousands_is_taken(broker: RedisBroker) -> None:
    jobs = [job(lane=str(number % 3)) for number in range(2_500)]

    receipts = await submit(broker, *jobs)
    claims = await claim(broker, limit=2_500)
    replies = await settle_all(broker, claims, DONE)

    assert {receipt.accepted for receipt in receipts} == {Accepted.NEW}
    assert {*ids(claims)} == {one.id for one in jobs}
    assert {reply.answer for reply in replies} == {Settled.APPLIED}


async def test_batch_of_a_hundred_is_one_round_trip_a_verb(broker: RedisBroker) -> None:
    jobs = [job(gates=("smtp",) * (number % 2)) for number in range(100)]
    await submit(broker, job(queue="warm"))

    async def scripts() -> int:
        stats = await broker._link.ask("INFO", "commandstats")
        return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("eval", "evalsha"))

    before = await scripts()
    await submit(broker, *jobs)
    await settle_all(broker, await claim(broker), DONE)

    assert await scripts() - before <= 3 + 2  # and a script may have to be sent first


# ---- the server's set-up ----


async def test_password_database_and_socket_are_the_urls_to_say() -> None:
    with ValkeyServer(password=SECRET) as server:
        one = job()
        async with opened(server.url) as broker:
            await submit(broker, one)
        async with opened(server.socket_url) as by_socket:
            assert await state(by_socket, one.id) is JobState.READY
        async with opened(server.url.removesuffix("/0") + "/3") as elsewhere:
            assert await elsewhere.states([one.id]) == {}


@pytest.mark.parametrize("secret", ["", ":wrong-and-secret@", "ada:wrong-and-secret@"])
async def test_wrong_password_is_a_setting_to_correct_and_never_shown(secret: str) -> None:
    with ValkeyServer(password=SECRET) as server:
        broker = RedisBroker(f"redis://{secret}127.0.0.1:{server.port}/0")

        with pytest.raises(ConfigError, match="refuses user or password") as caught:
            await broker.open()

        assert "wrong-and-secret" not in str(caught.value)


@pytest.mark.parametrize("allowed", [("~other:*", "&*"), ("~*", "resetchannels")])
async def test_user_who_may_not_is_told_what_a_broker_needs(server: ValkeyServer, allowed: tuple[str, str]) -> None:
    server.ask("ACL", "SETUSER", "ada", "on", f">{SECRET}", *allowed, "+@all")
    broker = RedisBroker(f"redis://ada:{SECRET}@127.0.0.1:{server.port}")

    with pytest.raises(ConfigError, match="keys and channels") as caught:
        await broker.open()

    assert SECRET not in str(caught.value)


async def test_user_of_the_namespace_alone_is_enough(server: ValkeyServer) -> None:
    server.ask(
        "ACL",
        "SETUSER",
        "ada",
        "on",
        f">{SECRET}",
        "~{mine}:*",
        "resetchannels",
        "&{mine}:*",
        "+@all",
        "-@dangerous",
        "-@admin",
        "+info",
    )
    async with opened(f"redis://ada:{SECRET}@127.0.0.1:{server.port}", namespace="mine") as broker:
        await submit(broker, job(gates=("smtp",)))
        running = await claimed_soon(broker)
        waiting = asyncio.create_task(broker.finals(ids(running), PATIENCE_S))
        await settle(broker, running[0], DONE)
        assert await waiting
        assert await reclaim(broker) == []


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost", "redis://ada:pass-word/x@host:6379", "redis://ada:pass-word#x@host", "redis://ada:pass-word",
        "redis://ada:pass-word?x@host", "redis://host?pass-word=1", "redis://ada:x@pass-word/@host",
        "redis://host/pass-word", "redis+sentinel://:pass-word@host", "redis+sentinel://host:pass-word/main",
        "redis+sentinel://host/main?pass-word=1", "redis+sentinel://:x@a,b/main/pass-word",
    ],
)  # fmt: skip
async def test_no_address_is_a_setting_to_correct_and_never_shown(url: str) -> None:
    with pytest.raises(ConfigError, match="no address") as caught:
        RedisBroker(url)

    assert "pass-word" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://host?socket_timeout=abc", "its ?option socket_timeout must be a number"),
        ("redis://host/2?db=zero", "its ?option db must be a whole number"),
        (
            "redis://host?db=1&sockettimeout=3",
            "it has an ?option that is not known: did you mean socket_timeout?",
        ),
        ("redis://host?ssl_ca_certs=/ca.pem", "ssl_ca_certs is for TLS: say rediss://"),
        ("rediss://host?ssl_cert_reqs=perhaps", "its ?option ssl_cert_reqs must be another value"),
        ("redis://host/abc", "the database, must be a number: redis://"),
        ("redis://host:port", "PORT from 1 to 65535"),
        ("redis://:a/b@host", "write %40 for @, %2F for /"),
        ("redis+sentinel://host", "the service that the sentinels watch: redis+sentinel://"),
        ("redis+sentinel://:pw@a,b:26379/?db=1", "the service that the sentinels watch"),
        ("redis+sentinel://a,b/main/3", "the database too, as ?db=N"),
        ("redis+sentinel://a,:1/main", "its sentinels must be HOST[:PORT]"),
        ("redis+sentinel://a/main?db", "its ?options must be name=value"),
        ("redis://host?protocol=3", "its ?option protocol is not for the URL to say"),
        ("redis://host?encoding=latin-1", "its ?option encoding is not for the URL to say"),
        ("redis://host?decode_responses=true", "decode_responses is not for the URL to say"),
        ("redis://host?retry_on_timeout=x", "retry_on_timeout is not for the URL to say"),
        ("redis+sentinel://a/main?protocol=3", "its ?option protocol is not for the URL to say"),
        ("redis://host?redis_connect_func=x", "it has an ?option that is not known"),
        ("redis+sentinel://a/main?socket_timeot=3", "did you mean socket_timeout?"),
        ("unix://tmp/x.sock", "write unix:///tmp/x.sock"),
        ("unix://:pw@tmp/x.sock", "write unix:///SOCKET"),
        ("unix://?db=1", "must name a socket"),
    ],
)
async def test_address_that_is_wrong_is_told_by_the_part_that_is_wrong(url: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RedisBroker(url)

    assert said in str(caught.value)


async def test_database_that_the_server_does_not_have_is_a_setting_to_correct() -> None:
    with ValkeyServer() as server, pytest.raises(ConfigError, match="no such database"):
        async with opened(f"redis://127.0.0.1:{server.port}/99") as broker:
            await broker.counts()


async def test_password_with_every_character_works_when_it_is_encoded() -> None:
    secret = "a@b/c:d#e?f%g&h i"
    with ValkeyServer(password="plain") as server:
        server.ask("CONFIG", "SET", "requirepass", secret)
        async with opened(f"redis://:{quote(secret, safe='')}@127.0.0.1:{server.port}/0") as broker:
            assert await broker.counts() == []


async def test_password_is_not_in_the_error_of_a_server_that_is_not_there() -> None:
    with pytest.raises(BrokerUnavailable, match="cannot be reached") as caught:
        await RedisBroker(f"redis://ada:{SECRET}@127.0.0.1:1/0").open()

    assert caught.value.kind == "connection"
    assert caught.value.retry_after_s
    assert SECRET not in str(caught.value)


async def test_tls_is_what_rediss_asks_for(server: ValkeyServer) -> None:
    with pytest.raises(BrokerUnavailable):  # this server speaks none
        await RedisBroker(f"rediss://127.0.0.1:{server.port}/0?socket_connect_timeout=0.5").open()


async def test_open_tells_of_a_server_that_may_lose_jobs(server: ValkeyServer) -> None:
    async with opened(server.url) as without_log:
        (no_log,) = without_log.doubts
    server.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    async with opened(server.url) as evicting:
        evicts, _ = evicting.doubts

    assert isinstance(without_log, Doubtful)
    assert "appendonly yes" in no_log
    assert "noeviction" in evicts


async def test_open_has_nothing_to_tell_of_a_server_that_keeps_all() -> None:
    with ValkeyServer(aof=True, options=("--maxmemory-policy", "volatile-ttl")) as server:
        async with opened(server.url) as broker:
            assert broker.doubts == ()  # nothing of a job has a time to live


async def test_server_that_may_not_be_asked_is_no_obstacle(server: ValkeyServer) -> None:
    server.ask("ACL", "SETUSER", "ada", "on", f">{SECRET}", "~*", "&*", "+@all", "-info", "-config")

    async with opened(f"redis://ada:{SECRET}@127.0.0.1:{server.port}") as broker:
        (doubt,) = broker.doubts
        await submit(broker, job())

    assert "INFO" in doubt


# ---- what the server forbids ----


def commands_of_scripts() -> list[str]:
    """Whatever the text of any script calls."""
    scripts = files("taskflow.brokers.redis") / "scripts"
    return sorted({*re.findall(r"\('([A-Z]{3,})'", "".join(each.read_text() for each in scripts.iterdir()))})


def allow(server: ValkeyServer, *rules: str) -> str:
    """The address for a user who may do everything but what `rules` say."""
    server.ask("ACL", "SETUSER", "ada", "reset", "on", f">{SECRET}", "~*", "&*", "+@all", *rules)
    return f"redis://ada:{SECRET}@127.0.0.1:{server.port}"


async def test_each_command_of_the_scripts_that_is_denied_is_named_at_open(server: ValkeyServer) -> None:
    for command in commands_of_scripts():
        url = allow(server, f"-{command.lower()}")
        with pytest.raises(ConfigError, match=rf"forbids this user {command},.*SETUSER.* \+{command.lower()}$"):
            await RedisBroker(url).open()
    async with opened(allow(server)) as broker:
        assert await broker.counts() == []
    assert server.ask("KEYS", "*") == []


async def test_command_that_the_server_renamed_is_named_at_open() -> None:
    with (
        ValkeyServer(options=("--rename-command", "ZPOPMIN", "hidden")) as server,
        pytest.raises(ConfigError, match=r"ZPOPMIN, or has renamed"),
    ):
        await RedisBroker(server.url).open()


async def test_user_who_may_neither_is_told_of_all_commands_at_once(server: ValkeyServer) -> None:
    with pytest.raises(ConfigError, match=r"\+sadd \+smembers \+srem$"):
        await RedisBroker(allow(server, "-@set")).open()


async def test_script_that_is_denied_a_command_changes_nothing_and_goes_on_once_it_is_allowed(
    server: ValkeyServer,
) -> None:
    denied: Counter[str] = Counter()
    for command in commands_of_scripts():
        server.ask("FLUSHALL")
        async with opened(allow(server)) as broker:
            refused = await _a_night(
                server, broker, partial(allow, server, f"-{command.lower()}"), partial(allow, server)
            )
            denied[command] += len(refused)
    # Each but those of an operator's own verbs was met on the way.
    assert {*commands_of_scripts()} - {*+denied} <= {
        "HKEYS",
        "LRANGE",
        "LINDEX",
        "PEXPIRE",
        "PTTL",
        "SET",
        "ZREVRANGEBYSCORE",
    }


@pytest.mark.parametrize("mode", ["full", "replica"])
async def test_script_that_the_server_refuses_changes_nothing_and_goes_on_once_it_may(
    server: ValkeyServer, mode: str
) -> None:
    refuse, mend = {
        "full": (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0")),
        "replica": (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE")),
    }[mode]
    async with opened(server.url) as broker:
        refused = await _a_night(server, broker, partial(server.ask, *refuse), partial(server.ask, *mend))

    assert refused >= {"submit", "retry", "note"}
    assert mode != "full" or refused == {"submit", "retry", "note"}  # what frees memory, or leads to it, goes on


async def _a_night(
    server: ValkeyServer, broker: RedisBroker, refuse: Callable[[], Any], mend: Callable[[], Any]
) -> set[str]:
    """All jobs end, of which some were ready, some ran, and some were lost meanwhile. Returns what was refused."""
    jobs = [
        job(lane=f"tenant{number % 5}", gates=("smtp",) * (number % 3 == 0), priority=number % 2, key=f"k{number}")
        for number in range(30)
    ]
    await broker.gate("smtp", gating.Declare(limit=2))
    await submit(broker, *jobs[:20])
    running = await claim(broker, limit=6)
    await claim(broker, "lost", limit=3)
    await broker.leave("lost")
    again = [Settlement(one.job_id, one.token, Retry(0.0, BOOM)) for one in running]
    *running, buried = running
    await settle(broker, buried, Bury(BOOM))
    again = [Settlement(one.job_id, one.token, Retry(0.0, BOOM)) for one in running[1:]]
    verbs: dict[str, Callable[[], Awaitable[Any]]] = {
        "claim": lambda: claim(broker, limit=7),
        "submit": lambda: submit(broker, *jobs),
        "note": lambda: broker.note([Note(running[0].job_id, running[0].token, b"50", b"7")]),
        "settle": lambda: broker.settle(again),
        "beat": lambda: broker.beat("w1", {}, 60.0),
        "reclaim": lambda: reclaim(broker),
        "wait": lambda: broker.wait(ask(queues=("nothing",)), 0.001),
        "finals": lambda: broker.finals([running[0].job_id], 0.001),
        "gate": lambda: broker.gate("smtp", gating.OverrideLimit(3)),
        "pause": lambda: broker.pause("other"),
        "cancel": lambda: broker.cancel([running[0].job_id, "unknown"]),
        "retry": lambda: broker.retry([buried.job_id]),
    }
    refused: set[str] = set()
    refuse()
    for name, verb in [*verbs.items()] * 2:
        before = _kept(server)
        try:
            await verb()
        except (ConfigError, BrokerUnavailable):
            refused.add(name)
            assert _kept(server) == before
    mend()
    await submit(broker, *jobs)
    await broker.retry([buried.job_id])
    await broker.gate("smtp", gating.OverrideLimit(100))
    for _ in range(20):
        await broker.beat("w1", {}, 60.0)
        await broker.beat("w1", {}, 60.0)  # what was claimed on the way is given back
        await reclaim(broker, max_lost=1_000)
        await settle_all(broker, await claim(broker, "w2"), DONE)
    ends = await broker.states([one.id for one in jobs])
    (counts,) = [one for one in await broker.counts() if one.queue == "q"]
    (gate,) = await broker.gates()
    assert (counts.ready, counts.running, counts.scheduled, gate.live) == (0, 0, 0, 0)
    assert len(ends) == len(jobs)
    assert {*ends.values()} <= {JobState.SUCCEEDED, JobState.CANCELLED}
    return refused


def _kept(server: ValkeyServer) -> dict[bytes, Any]:
    """All that there is, but for what scripts try on servers of before 7: it stays where DEL is denied."""
    reads = {
        b"hash": ("HGETALL",),
        b"zset": ("ZRANGE", 0, -1, "WITHSCORES"),
        b"set": ("SMEMBERS",),
        b"list": ("LRANGE", 0, -1),
    }
    with redis.Redis.from_url(server.url) as client, client.pipeline(transaction=False) as pipe:
        skipped = (b":nothing", b":idle:", b":awaited")  # the latter end by themselves
        names = [name for name in client.scan_iter() if not any(word in name for word in skipped)]
        for name in names:
            pipe.type(name)
        for name, kind in zip(names, pipe.execute(), strict=True):
            read, *rest = reads[kind]
            pipe.execute_command(read, name, *rest)
        return dict(zip(names, pipe.execute(), strict=True))


# ---- outages ----


async def test_read_only_replica_is_an_outage_that_changes_nothing(server: ValkeyServer) -> None:
    async with opened(server.url) as broker:
        await submit(broker, job())
        server.ask("REPLICAOF", "127.0.0.1", "1")
        refused = job()

        for verb in (lambda: submit(broker, refused), lambda: claim(broker)):
            with pytest.raises(BrokerUnavailable, match="replica") as caught:
                await verb()
            assert (caught.value.kind, caught.value.retry_after_s) == ("read_only", 1.0)

        server.ask("REPLICAOF", "NO", "ONE")
        assert await broker.states([refused.id]) == {}
        assert len(await claim(broker)) == 1


async def test_full_memory_refuses_new_jobs_and_lets_the_others_drain(server: ValkeyServer) -> None:
    async with opened(server.url) as broker:
        await submit(broker, job())
        server.ask("CONFIG", "SET", "maxmemory", "1000")
        refused = job()

        with pytest.raises(BrokerUnavailable, match="memory") as caught:
            await submit(broker, refused)

        assert caught.value.kind == "full"
        running = await claim_one(broker)  # else nothing would ever get free
        await broker.beat("w1", {running.job_id: running.token}, 60.0)
        assert (await settle(broker, running, DONE)).answer is Settled.APPLIED
        await eventually(lambda: _pruned(broker, running.job_id))
        server.ask("CONFIG", "SET", "maxmemory", "0")
        assert await broker.states([refused.id]) == {}
        assert (await submit(broker, refused))[0].accepted is Accepted.NEW


async def _pruned(broker: RedisBroker, job_id: str) -> bool:
    await reclaim(broker, retention=NOTHING_KEPT)
    return await broker.states([job_id]) == {}


async def test_jobs_survive_a_crash_of_a_server_with_an_aof() -> None:
    with ValkeyServer(aof=True, fsync="always") as server:
        async with opened(server.url) as broker:
            jobs = [job(gates=("smtp",) * (number % 2), lane=str(number)) for number in range(6)]
            await submit(broker, *jobs)
            running = await claim(broker, limit=2)

            server.kill()
            with pytest.raises(BrokerUnavailable) as caught:
                await claim(broker)
            server.start()
            answers = await settle_all(broker, running, DONE)
            rest = await claim(broker)

    assert caught.value.kind == "connection"
    assert [reply.answer for reply in answers] == [Settled.APPLIED] * 2
    assert {*ids(running), *ids(rest)} == {one.id for one in jobs}


async def test_server_that_hangs_is_given_up_in_time_and_goes_on(server: ValkeyServer) -> None:
    async with opened(f"{server.url}?socket_timeout=0.2") as broker:
        await submit(broker, job())
        server.pause()
        began = time.monotonic()

        with pytest.raises(BrokerUnavailable) as caught:
            await claim(broker)

        assert time.monotonic() - began < 5
        assert caught.value.kind == "timeout"
        server.resume()
        assert await eventually(lambda: _lost_claim_is_back(broker))


async def _lost_claim_is_back(broker: RedisBroker) -> bool:
    """The claim whose reply was lost, or the job if the claim never happened."""
    for _ in range(2):
        await broker.beat("w1", {}, 60)
    await reclaim(broker)
    return len(await claim(broker, "w2")) == 1


@pytest.mark.parametrize("patience", ["", "?socket_timeout=30&socket_connect_timeout=30"])
async def test_beat_of_a_thread_gives_a_hanging_server_up_before_the_next_one_is_due(
    server: ValkeyServer, patience: str
) -> None:
    async with opened(server.url + patience) as broker:
        beat = broker.sync_beat()
        assert beat is not None
        await asyncio.to_thread(beat.beat, "w1", {}, 0.6)
        server.pause()
        began = time.monotonic()

        with pytest.raises(BrokerUnavailable):
            await asyncio.to_thread(beat.beat, "w1", {}, 0.6)

        assert time.monotonic() - began < 2
        server.resume()
        await asyncio.to_thread(beat.beat, "w1", {}, 0.6)
        beat.close()
        beat.close()


async def test_connection_that_was_cut_is_made_anew_at_the_next_call(server: ValkeyServer) -> None:
    async with opened(server.url) as broker:
        await submit(broker, job())
        server.ask("CLIENT", "KILL", "TYPE", "normal")

        async def claimed() -> list:
            try:
                return await claim(broker)
            except BrokerUnavailable:
                return []

        assert len(await eventually(claimed)) == 1


async def test_connection_that_the_server_closed_while_the_loop_was_blocked_is_no_outage(server: ValkeyServer) -> None:
    async with opened(server.url) as broker:
        for verb in (lambda: submit(broker, job()), lambda: claim(broker), broker.counts):
            await asyncio.gather(broker.counts(), broker.counts())
            for client in server.ask("CLIENT", "LIST", "TYPE", "normal").splitlines():
                address = re.search(rb" addr=(\S+)", client)
                assert address is not None
                with contextlib.suppress(redis.exceptions.ResponseError):  # our own of a moment ago
                    server.ask("CLIENT", "KILL", address[1].decode())
            # No turn of the loop in between: it has not heard of the end, as after a handler that blocked it.
            assert await verb()


async def test_wait_that_is_cancelled_ends_at_whatever_moment_that_was(broker: RedisBroker) -> None:
    nothing = ask()
    await broker.wait(nothing, 0.01)  # the connections are made
    for turns in range(120):
        waiting = asyncio.ensure_future(broker.wait(nothing, LONG_S))
        for _ in range(turns % 12):  # of the loop: how far it is when it is cancelled
            await asyncio.sleep(0)
        waiting.cancel()
        done, _ = await asyncio.wait([waiting], timeout=PATIENCE_S)

        assert done, f"cancelled after {turns % 12} turns of the loop, it waits on"
        assert waiting.cancelled()


async def test_cancelled_call_leaves_its_answer_to_nobody(broker: RedisBroker) -> None:
    jobs = [job() for _ in range(3)]
    await submit(broker, *jobs)

    async def shown(one: Job) -> None:
        info = await broker.show(one.id)
        assert info is not None
        assert info.id == one.id

    for number in range(120):
        calls = [asyncio.create_task(shown(one)) for one in jobs * 2]
        for _ in range(number % 23):  # of the loop: how far they are when half of them are cancelled
            await asyncio.sleep(0)
        for call in calls[::2]:
            call.cancel()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert all(result is None or isinstance(result, asyncio.CancelledError) for result in results), results
        assert results[1::2] == [None] * 3


async def test_whoever_waits_looks_again_when_the_connection_that_listens_is_cut(server: ValkeyServer) -> None:
    async with opened(server.url) as broker, opened(server.url) as other:
        waiting = asyncio.create_task(broker.wait(ask(), LONG_S))
        await idle(broker)

        server.ask("CLIENT", "KILL", "TYPE", "pubsub")
        async with asyncio.timeout(PATIENCE_S):
            await waiting

        got = asyncio.create_task(claimed_soon(broker))
        await idle(broker)
        await submit(other, job())
        assert len(await got) == 1


async def test_end_of_a_job_is_heard_though_the_connection_that_listens_was_cut(server: ValkeyServer) -> None:
    async with opened(server.url) as broker, opened(server.url) as other:
        await submit(other, job())
        running = await claim_one(other)
        waiting = asyncio.create_task(broker.finals([running.job_id], LONG_S))
        await awaited(broker)

        server.ask("CLIENT", "KILL", "TYPE", "pubsub")
        await settle(other, running, DONE)

        async with asyncio.timeout(PATIENCE_S):
            assert (await waiting)[running.job_id].result == DONE.result


async def test_end_that_nobody_was_told_of_is_seen_at_the_deadline(broker: RedisBroker) -> None:
    await submit(broker, job())
    running = await claim_one(broker)
    waiting = asyncio.create_task(broker.finals([running.job_id], 1.0))
    await awaited(broker)
    await broker._link.ask("DEL", f"{broker._link.prefix}awaited")
    await settle(broker, running, DONE)

    assert (await waiting)[running.job_id].result == DONE.result


async def test_hundreds_who_wait_try_to_listen_as_one_while_the_server_is_away(server: ValkeyServer) -> None:
    with Proxy(server.port) as proxy:
        async with opened(proxy.url(server.url)) as broker, opened(server.url) as other:
            jobs = [job() for _ in range(300)]
            await submit(other, *jobs)
            running = await claim(other, limit=300)

            async def ended(job_id: str, pause_s: float) -> None:
                while True:
                    try:
                        if await broker.finals([job_id], LONG_S):
                            return
                    except BrokerUnavailable:
                        await asyncio.sleep(pause_s)

            waiting = [asyncio.create_task(ended(one.id, n / 1_000)) for n, one in enumerate(jobs, 1)]
            await eventually(lambda: _all_awaited(broker, len(jobs)))
            accepted = proxy.accepted
            proxy.cut()
            await asyncio.sleep(2.0)  # that is what is measured: how often they try meanwhile
            tries = proxy.accepted - accepted
            await settle_all(other, running, DONE)
            proxy.mend()
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.gather(*waiting)

    assert 1 <= tries <= 10


async def test_close_ends_all_waits(broker: RedisBroker) -> None:
    one = job(queue="other")
    await submit(broker, one)
    waiting = asyncio.create_task(broker.wait(ask(), LONG_S))
    final = asyncio.create_task(broker.finals([one.id], LONG_S))
    await idle(broker)
    await awaited(broker)

    await broker.close()

    async with asyncio.timeout(PATIENCE_S):
        await waiting
        with pytest.raises(BrokerError, match="closed"):
            await final


async def test_token_outgrows_what_a_lost_disk_forgot(server: ValkeyServer) -> None:
    one = job()
    async with opened(server.url) as broker:
        await submit(broker, one)
        before = await claim_one(broker)
        server.ask("FLUSHALL")  # as a restart without an AOF
        await submit(broker, one)
        after = await claim_one(broker, "w2")

        reply = await settle(broker, before, DONE)

    assert after.token > before.token
    assert reply.answer is Settled.STALE


# ---- keys ----


async def busy_day(broker: RedisBroker) -> list[Job]:
    """Jobs of all kinds through all ends."""
    kinds: list[dict[str, Any]] = [
        {}, {"lane": "a"}, {"gates": ("smtp", "http/a")}, {"key": "ada"}, {"batch": "run"}, {"delay_s": LONG_S},
        {"priority": 9}, {"queue": "other"},
    ]  # fmt: skip
    jobs = [job(**kind) for kind in kinds * 2 if kind.get("key") is None] + [job(key="ada")]
    await submit(broker, *jobs)
    await broker.gate("smtp", gating.Hold(LONG_S, "down"))
    await claim(broker)
    await broker.gate("smtp", gating.Release())
    await die(broker, "w1")
    claims = await claim(broker, queues=("q", "other"))
    for number, one in enumerate(claims):
        await settle(broker, one, (DONE, Bury(BOOM), Retry(0.0, BOOM), Retry(LONG_S, BOOM))[number % 4])
    await broker.finals([jobs[0].id], 0.01)
    return jobs


async def test_every_key_has_the_one_hash_tag(broker: RedisBroker, namespace: str) -> None:
    await busy_day(broker)

    found = await keys(broker)

    assert len(found) > 20
    assert all(key.startswith(f"{{{namespace}}}:") for key in found)


async def test_nothing_is_left_but_counters_once_all_ended_and_was_pruned(broker: RedisBroker, namespace: str) -> None:
    jobs = await busy_day(broker)
    waiting = asyncio.create_task(broker.wait(ask(queues=("nothing",)), LONG_S))
    await idle(broker)
    waiting.cancel()

    await broker.cancel([one.id for one in jobs])
    await settle_all(broker, await claim(broker), DONE)
    await broker.finish_batch("run")
    await broker.leave("w1")

    async def left_over() -> bool:
        await reclaim(broker, retention=NOTHING_KEPT)
        return await broker.states([one.id for one in jobs]) == {} and await broker.gates() == []

    await eventually(left_over)
    kept = {key.removeprefix(f"{{{namespace}}}:") for key in await keys(broker)}
    with_end = {key for key in kept if await broker._link.ask("PTTL", f"{{{namespace}}}:{key}") > 0}
    # `queues` has a field for each queue name that there ever was, `numbers` has three fields.
    assert kept - with_end == {"queues", "numbers"}


async def test_namespaces_do_not_see_each_other(namespace: str) -> None:
    one, same_key = job(key="ada"), job(key="ada")
    async with (
        opened(valkey_url(), namespace=namespace) as mine,
        opened(valkey_url(), namespace=f"{namespace}x") as its,
    ):
        await submit(mine, one)
        await mine.gate("smtp", gating.Hold(LONG_S, "down"))

        (receipt,) = await submit(its, same_key)

        assert receipt.accepted is Accepted.NEW
        assert await its.states([one.id]) == {}
        assert await its.gates() == []
        assert ids(await claim(its)) == [same_key.id]
        assert ids(await claim(mine)) == [one.id]
    forget_namespace(f"{namespace}x")


# ---- waiting ----


async def idle(broker: RedisBroker) -> None:
    """Somebody waits for work."""
    prefix = broker._link.prefix
    await eventually(lambda: broker._link.ask("EXISTS", f"{prefix}idle:q", f"{prefix}idle:nothing"))


async def awaited(broker: RedisBroker) -> None:
    """Somebody waits for a job to end."""
    await eventually(lambda: broker._link.ask("EXISTS", f"{broker._link.prefix}awaited"))


async def test_idle_broker_says_nothing(server: ValkeyServer) -> None:
    async with opened(server.url) as broker, opened(server.url) as observer:
        await submit(broker, job(queue="other", delay_s=LONG_S))
        (listed,) = await broker.jobs()
        waiting = [
            *(asyncio.create_task(broker.wait(ask(f"w{number}"), LONG_S)) for number in range(3)),
            *(asyncio.create_task(broker.finals([listed.id], LONG_S)) for _ in range(3)),
        ]
        await idle(broker)
        await awaited(broker)
        await commands(observer)

        before = await commands(observer)
        await asyncio.sleep(0.5)  # the promise is about time in which nothing happens
        after = await commands(observer)

        assert after - before <= 1  # the observer's own look
        assert not any(one.done() for one in waiting)
        for one in waiting:
            one.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_all_waits_of_a_broker_share_its_few_connections(server: ValkeyServer) -> None:
    async with opened(server.url) as broker:
        jobs = [job(queue="other") for _ in range(200)]
        await submit(broker, *jobs)
        waiting = [asyncio.create_task(broker.finals([one.id], LONG_S)) for one in jobs]
        waiting += [asyncio.create_task(broker.wait(ask(f"w{number}"), LONG_S)) for number in range(50)]
        await idle(broker)
        await eventually(lambda: _all_awaited(broker, len(jobs)))

        assert len(server.ask("CLIENT", "LIST").splitlines()) <= 4 + 1 + 1  # scripts, the listener, our own question

        before = await commands(broker)
        await settle_all(broker, await claim(broker, queues=("other",), limit=200), DONE)
        await submit(broker, job())
        await asyncio.gather(*waiting)
        assert await commands(broker) - before < 600  # far from one script, and five commands, for each wait


async def _all_awaited(broker: RedisBroker, count: int) -> bool:
    return await broker._link.ask("HLEN", f"{broker._link.prefix}awaited") == count


async def test_work_wakes_a_worker_of_another_machine(broker: RedisBroker, namespace: str) -> None:
    async with opened(valkey_url(), namespace=namespace) as other:
        got = asyncio.create_task(claimed_soon(other))
        await idle(broker)

        one = job()
        await submit(broker, one)

        assert ids(await got) == [one.id]


async def test_short_wait_does_not_end_a_longer_one(broker: RedisBroker, namespace: str) -> None:
    async with opened(valkey_url(), namespace=namespace) as other:
        got = asyncio.create_task(claimed_soon(other))
        await idle(broker)

        await broker.wait(ask(), 0.01)

        assert await broker._link.ask("PTTL", f"{{{namespace}}}:idle:q") > 1_000 * (LONG_S - 60)
        await submit(broker, job())
        assert len(await got) == 1


async def test_job_that_becomes_due_sooner_shortens_the_wait(broker: RedisBroker) -> None:
    await submit(broker, job(delay_s=LONG_S))
    got = asyncio.create_task(claimed_soon(broker))
    await idle(broker)

    one = job(delay_s=0.05)
    await submit(broker, one)

    assert ids(await got) == [one.id]


async def test_nobody_is_told_of_ends_that_nobody_waits_for(server: ValkeyServer) -> None:
    with redis.Redis.from_url(server.url) as client, client.pubsub() as heard:
        async with opened(server.url) as broker:
            heard.psubscribe(f"{broker._link.prefix}[we]*")
            assert heard.get_message(timeout=PATIENCE_S) is not None

            await submit(broker, job(), job())
            await settle_all(broker, await claim(broker), DONE)
            await broker._link.ask("PUBLISH", f"{broker._link.prefix}ends", "now")

            said = heard.get_message(timeout=PATIENCE_S)
            assert said is not None
            assert said["data"] == b"now"


# ---- gates: the core computes, but for what is asked at each claim ----


async def test_word_of_a_breaker_is_kept_to_its_last_digit(broker: RedisBroker) -> None:
    word = 2**62 + 1

    gate = await broker.gate("smtp", gating.Trip(0, word, CircuitBreaker("smtp")))

    assert gate.word == word
    assert await broker.gates() == [gate]


async def test_change_of_a_gate_leaves_its_live_claims_alone(broker: RedisBroker) -> None:
    await submit(broker, *(job(gates=("smtp",)) for _ in range(3)))
    await broker.gate("smtp", gating.Declare(rate=gating.Rate(100.0, burst=5)))

    async def change() -> None:
        for number in range(20):
            await broker.gate("smtp", gating.OverrideLimit(number + 10))
            await broker.gate("smtp", gating.Hold(0.0, "busy"))

    async def work() -> None:
        for _ in range(20):
            await settle_all(broker, await claim(broker, limit=1), Retry(0.0, BOOM))

    await asyncio.gather(change(), work(), change())
    running = await claim(broker, limit=1)

    (gate,) = await broker.gates()
    assert gate.live == len(running)
    assert (gate.generation, gate.limit_override) == (40, 29)


_SHARED = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
NOW = 1_764_312_345.125
an_instant = st.one_of(st.just(0.0), st.floats(NOW - 300, NOW + 300), st.floats(NOW - 2, NOW + 2))
a_rate = st.none() | st.builds(gating.Rate, st.sampled_from((1e-5, 0.01, 0.1, 1.0, 7.3, 60.0)), st.integers(1, 20))
a_limit = st.none() | st.integers(0, 5)
a_gate = st.fixed_dictionaries(
    {
        "held_until": an_instant,
        "tat": an_instant,
        "live": st.integers(0, 6),
        "ramp": st.none() | st.integers(1, 4),
        "limit": a_limit,
        "limit_override": a_limit,
        "rate": a_rate,
        "rate_override": a_rate,
    }
)
# Admission, and the record after claims began and after some ended, by the very functions of the prelude.
_ASKED = """
for i = 2, #ARGV do
  local gate = cjson.decode(ARGV[i])
  gate.queued = {}
  gates[i] = gate
end
local child, found = gates[2], {}
child.parent = gates[3]
local room, again = admit(child)
found[1] = room == huge and 'none' or num(room)
found[2] = again and num(again) or 'never'
local count = 3
take(child, count)
found[3], found[4] = num(child.live), num(child.tat)
give_back(child, 2, 1)
found[5], found[6] = num(child.live), num(child.tat)
return found
"""


def _record(gate: gating.Gate) -> dict[str, Any]:
    fields = {name: getattr(gate, name) for name in ("held_until", "tat", "live", "ramp", "limit", "limit_override")}
    for name, rate in (("", gate.rate), ("_override", gate.rate_override)):
        if rate is not None:
            fields[f"interval{name}"], fields[f"burst{name}"] = rate.interval_s, rate.burst
    return {name: value for name, value in fields.items() if value is not None}


@given(fields=a_gate, family=st.none() | a_gate)
@_SHARED
def test_scripts_admit_and_count_as_the_core_does(fields: dict[str, Any], family: dict[str, Any] | None) -> None:
    import json

    gate = gating.Gate("http/a", **fields)
    parent = None if family is None else gating.Gate("http", **family)
    taken = gating.take(gate, 3, parent, now=NOW)
    given_back = gating.give_back(taken, 2, 1, parent)
    admission = gating.admit(gate, parent, now=NOW)
    text = script("submit").text.split("-- ARGV: time, jobs")[0] + _ASKED
    records = [json.dumps(_record(one)) for one in (gate, parent) if one is not None]

    with redis.Redis.from_url(valkey_url()) as client:
        found = [word.decode() for word in client.eval(text, 1, "{test}:", repr(NOW), *records)]

    assert found[0] == ("none" if admission.room is None else str(admission.room))
    assert found[1] == "never" if admission.look_again_at is None else float(found[1]) == admission.look_again_at
    assert [float(word) for word in found[2:]] == [taken.live, taken.tat, given_back.live, given_back.tat]
    assert bucket.available(0.0, now=NOW, interval_s=1.0, burst=1) == 1


def test_servers_of_others_are_never_stopped() -> None:
    assert outside_url() is None or valkey_url() == outside_url()


# ---- all at once ----


async def test_nothing_is_lost_while_connections_are_cut_and_scripts_forgotten(server: ValkeyServer) -> None:
    jobs = [
        job(lane=str(number % 5), gates=("smtp",) * (number % 3 == 0), priority=number % 2) for number in range(600)
    ]
    ran: Counter[str] = Counter()
    settled: set[str] = set()

    async def until_heard(verb: Callable[[], Awaitable[Any]]) -> Any:
        while True:
            try:
                return await verb()
            except BrokerUnavailable:
                await asyncio.sleep(0.005)

    async def work(broker: RedisBroker, worker: str) -> None:
        while len(settled) < len(jobs):
            claims = await until_heard(lambda: claim(broker, worker, limit=7))
            ran.update(ids(claims))
            held = {one.job_id: one.token for one in claims}
            await until_heard(partial(broker.beat, worker, held, 60.0))
            await until_heard(partial(broker.beat, worker, held, 60.0))  # what a lost reply claimed is given back
            words = [Settlement(one.job_id, one.token, DONE) for one in claims]
            replies = await until_heard(partial(broker.settle, words))
            assert all(reply.answer is not Settled.STALE for reply in replies)
            settled.update(ids(claims))
            await until_heard(lambda: reclaim(broker, max_lost=1_000))

    async def disturb() -> None:
        for number in itertools.count():
            await asyncio.sleep(0.02)  # how often, not how long: between two the others get something done
            await asyncio.to_thread(server.ask, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            if number % 3 == 0:
                await asyncio.to_thread(server.ask, "SCRIPT", "FLUSH")

    async with opened(server.url) as one, opened(server.url) as two, opened(server.url) as three:
        await one.gate("smtp", gating.Declare(limit=10))
        await until_heard(lambda: submit(one, *jobs))
        disturbing = asyncio.create_task(disturb())
        async with asyncio.timeout(30):
            await asyncio.gather(*(work(broker, f"w{number}") for number, broker in enumerate((one, two, three))))
        disturbing.cancel()
        await asyncio.gather(disturbing, return_exceptions=True)

        states = await until_heard(lambda: one.states([each.id for each in jobs]))
        (counts,) = await until_heard(one.counts)
        (gate,) = await until_heard(one.gates)

    assert {*states.values()} == {JobState.SUCCEEDED}
    assert len(states) == len(ran) == len(jobs)
    assert (counts.ready, counts.scheduled, counts.running) == (0, 0, 0)
    assert gate.live == 0


async def test_nothing_is_lost_or_stuck_while_memory_runs_out_again_and_again(server: ValkeyServer) -> None:
    jobs = [
        job(lane=str(number % 7), gates=("smtp",) * (number % 3 == 0), priority=number % 2, payload=b"x" * 8_000)
        for number in range(1_000)
    ]
    starts: Counter[str] = Counter()  # each is started twice
    refused: Counter[tuple[str, str | None]] = Counter()

    async def pressed(name: str, verb: Callable[[], Awaitable[Any]]) -> Any:
        try:
            return await verb()
        except BrokerUnavailable as error:
            refused[name, error.kind] += 1
            await asyncio.sleep(0.002)  # others drain meanwhile
            return None

    async def produce(broker: RedisBroker) -> None:
        for at in range(0, len(jobs), 25):
            while (receipts := await pressed("submit", lambda at=at: submit(broker, *jobs[at : at + 25]))) is None:
                pass
            assert {one.accepted for one in receipts} == {Accepted.NEW}  # of a refused batch, not one was kept

    async def work(broker: RedisBroker, worker: str) -> None:
        while starts.total() < 2 * len(jobs):
            claims = await claim(broker, worker, limit=9)
            await broker.beat(worker, {one.job_id: one.token for one in claims}, 60.0)
            await pressed(
                "note", lambda claims=claims: broker.note([Note(*one[:2], None, b"c" * 500) for one in claims])
            )
            for one in claims:
                starts[one.job_id] += 1
                end = Complete(b"r" * 1_000) if starts[one.job_id] == 2 else Retry(0.0, BOOM)
                assert (await settle(broker, one, end)).answer is Settled.APPLIED
            await reclaim(broker, retention=NOTHING_KEPT)
            await asyncio.sleep(0)

    async with opened(server.url) as one, opened(server.url) as two, opened(server.url) as three:
        await one.gate("smtp", gating.Declare(limit=5))
        used = (await one._link.ask("INFO", "memory"))["used_memory"]
        server.ask("CONFIG", "SET", "maxmemory", str(used + 2_000_000))  # a quarter of what comes
        async with asyncio.timeout(45):
            await asyncio.gather(produce(one), work(two, "w2"), work(three, "w3"))
        await reclaim(one, retention=NOTHING_KEPT)
        (counts,) = await one.counts()
        (gate,) = await one.gates()

    assert refused["submit", "full"] > 5
    assert {*refused} <= {("submit", "full"), ("note", "full")}
    assert {*starts.values()} == {2}
    assert (counts.ready, counts.scheduled, counts.running, gate.live) == (0, 0, 0, 0)


async def test_writing_to_a_connection_that_asyncio_has_lost_is_an_outage() -> None:
    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.transport.abort()
        await asyncio.sleep(0)  # the turn in which the transport lets go of its loop
        failed: Exception | None = None
        try:
            with heeding_cancellation():
                writer.writelines([b"PING"])
        except Exception as error:
            failed = error

    # Python 3.11 takes the words and forgets them: there the answer does not come.
    assert failed is None or isinstance(failed, redis.exceptions.ConnectionError)
    assert sys.version_info < (3, 12) or failed is not None


async def test_a_mistake_of_our_own_is_no_outage() -> None:
    with pytest.raises(AttributeError), heeding_cancellation():
        object().nothing  # noqa: B018
