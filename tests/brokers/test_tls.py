"""TLS from end to end: jobs that run through it, and what is said when it is set up wrongly. Certificates are real."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

import pytest

from taskflow.brokers.redis import RedisBroker
from taskflow.core.job import JobState
from taskflow.errors import BrokerUnavailable, ConfigError
from tests.cli.processes import Place
from tests.servers import postgres
from tests.servers.postgres import PostgresServer
from tests.servers.sentinel import SERVICE, Sentinel
from tests.servers.tls import Authority, TlsRelay
from tests.servers.valkey import ValkeyServer

from .words import job, submit

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.anyio
SECRET = "correct-horse"
HOST = "127.0.0.1"


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A CA that signed nothing of ours."""
    return Authority(tmp_path_factory.mktemp("stranger"))


@pytest.fixture(scope="module")
def server() -> Iterator[ValkeyServer]:
    with ValkeyServer(password=SECRET, aof=True) as server:
        yield server


@pytest.fixture
def relay(server: ValkeyServer, ca: Authority) -> Iterator[TlsRelay]:
    with TlsRelay(server.port, ca.context(HOST)) as relay:
        yield relay


def url(relay: TlsRelay, **options: object) -> str:
    asked = "&".join(f"{name}={value}" for name, value in options.items())
    return f"rediss://:{SECRET}@{HOST}:{relay.port}/3?{asked}"


async def refused(address: str) -> str:
    """What is said, and nothing of it a secret."""

    async def open_it() -> None:
        await RedisBroker(address).open()

    with pytest.raises(ConfigError) as caught:
        await open_it()
    assert SECRET not in str(caught.value)
    return str(caught.value)


def test_jobs_run_through_tls_with_a_password_and_a_database_of_their_own(
    server: ValkeyServer, relay: TlsRelay, ca: Authority, tmp_path: Path
) -> None:
    with Place(tmp_path, BROKER__URL=url(relay, ssl_ca_certs=ca.file), WORKER__LEASE_S=1) as place:
        worker = place.start("worker", "app")
        done = place.run("submit", "app", "work", '{"number": 7, "seconds": 2.5}', "--wait")  # the beats need it, too
        worker.tell(signal.SIGTERM)

        assert (done.code, done.out.strip()) == (0, "7")
        assert worker.end() == 0
        assert place.ledger("start") == ["7"]
    assert relay.accepted >= 4
    assert "db3" in server.ask("INFO", "keyspace")


async def test_certificate_of_somebody_else_is_a_setting_to_correct(
    server: ValkeyServer, relay: TlsRelay, ca: Authority, stranger: Authority
) -> None:
    with TlsRelay(server.port, ca.context("example.org")) as elsewhere:
        wrong_ca = await refused(url(relay, ssl_ca_certs=stranger.file))
        no_ca = await refused(url(relay))
        wrong_host = await refused(url(elsewhere, ssl_ca_certs=ca.file))

    for said in (wrong_ca, no_ca):
        assert "not trusted here" in said
        assert "ssl_ca_certs=FILE" in said
    assert "not valid for '127.0.0.1'" in wrong_host


async def unreached(address: str) -> str:
    """What is said of a server that may be ill as well."""
    broker = RedisBroker(address)
    with pytest.raises(BrokerUnavailable) as caught:
        await broker.open()
    return str(caught.value)


async def test_scheme_without_tls_is_suspected_when_a_server_hangs_up_at_the_first_word(relay: TlsRelay) -> None:
    plain = await unreached(f"redis://{HOST}:{relay.port}/0")
    sentinel = await unreached(f"redis+sentinel://{HOST}:{relay.port}/main")

    assert "Or it speaks TLS: then say rediss://, or is no Redis" in plain
    assert "Or it speaks TLS: then say rediss+sentinel://" in sentinel


async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def test_scheme_with_tls_is_suspected_when_no_handshake_comes_about(server: ValkeyServer) -> None:
    async with await asyncio.start_server(hang_up, HOST, 0) as hanging_up:
        port = hanging_up.sockets[0].getsockname()[1]
        closed = await unreached(f"rediss://{HOST}:{port}/0")
    waits = await unreached(f"rediss://{HOST}:{server.port}/0?socket_connect_timeout=0.5")  # a plain server does
    refused = await unreached(f"rediss://{HOST}:1/0")

    for said in (closed, waits):
        assert "Or it does not speak TLS: then say redis://" in said
    assert "TLS" not in refused


async def test_scheme_is_not_suspected_of_a_server_that_has_answered() -> None:
    with ValkeyServer() as server:
        broker = RedisBroker(f"{server.url}?socket_timeout=0.5")
        await broker.open()
        server.kill()
        async with await asyncio.start_server(hang_up, HOST, server.port):
            with pytest.raises(BrokerUnavailable) as caught:
                await broker.counts()
        await broker.close()

    assert "cannot be reached" in str(caught.value)
    assert "TLS" not in str(caught.value)


async def test_server_that_answers_in_other_words_is_no_bug_of_ours() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, HOST, 0) as http:
        said = await unreached(f"redis://{HOST}:{http.sockets[0].getsockname()[1]}/0")

    assert "is no Redis" in said


async def test_certificate_of_a_sentinel_that_is_not_trusted_is_a_setting_to_correct(relay: TlsRelay) -> None:
    for hosts in (f"{HOST}:{relay.port}", f"{HOST}:{relay.port},{HOST}:1"):
        address = f"rediss+sentinel://:{SECRET}@{hosts}/main"
        beat = RedisBroker(address).sync_beat()
        assert beat is not None

        said = await refused(address)
        with pytest.raises(ConfigError, match="not trusted here"):
            await asyncio.to_thread(beat.beat, "w", {}, 5.0)
        beat.close()

        assert "not trusted here" in said


def test_command_that_does_not_trust_the_server_ends_with_2(
    relay: TlsRelay, stranger: Authority, tmp_path: Path
) -> None:
    with Place(tmp_path, BROKER__URL=url(relay, ssl_ca_certs=stranger.file)) as place:
        told = place.run("worker", "app")

    assert told.code == 2
    assert "not trusted here" in told.err
    assert "Traceback" not in told.err
    assert SECRET not in told.err


async def test_file_that_is_none_of_tls_is_told_as_ours(relay: TlsRelay, ca: Authority, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("no certificate")
    cert, key = ca.certificate("worker.example.org")
    _, other_key = ca.certificate("other.example.org")

    assert "no file that can be read" in await refused(url(relay, ssl_ca_certs=tmp_path / "missing"))
    assert f"ssl_ca_certs={text} holds no certificate" in await refused(url(relay, ssl_ca_certs=text))
    assert f"ssl_certfile={text}" in await refused(url(relay, ssl_certfile=text, ssl_keyfile=key))
    assert f"ssl_keyfile={other_key}" in await refused(url(relay, ssl_certfile=cert, ssl_keyfile=other_key))
    assert "without ssl_certfile" in await refused(url(relay, ssl_keyfile=key))


async def test_server_may_ask_for_a_certificate_of_ours(server: ValkeyServer, ca: Authority) -> None:
    cert, key = ca.certificate("worker.example.org")
    one = job()
    with TlsRelay(server.port, ca.context(HOST, wants_client=True)) as relay:
        broker = RedisBroker(url(relay, ssl_ca_certs=ca.file, ssl_certfile=cert, ssl_keyfile=key))
        await broker.open()
        await submit(broker, one)
        states = await broker.states([one.id])
        await broker.close()
        stripped = RedisBroker(url(relay, ssl_ca_certs=ca.file))
        with pytest.raises((BrokerUnavailable, ConfigError)):  # TLS 1.3 tells it only after the handshake, or hangs up
            await stripped.open()

    assert states == {one.id: JobState.READY}


async def test_unix_socket_takes_password_and_database(server: ValkeyServer) -> None:
    one = job()
    broker = RedisBroker(server.socket_url.removesuffix("?db=0") + "?db=5")
    await broker.open()
    await submit(broker, one)
    await broker.close()
    by_port = RedisBroker(server.url.removesuffix("/0") + "/5")
    await by_port.open()
    states = await by_port.states([one.id])
    await by_port.close()

    assert states == {one.id: JobState.READY}


async def test_sentinels_are_asked_by_tls_too_and_their_word_leads_to_the_primary(
    server: ValkeyServer, relay: TlsRelay, ca: Authority
) -> None:
    one = job()
    with (
        Sentinel(relay.port, replicas=False) as sentinel,
        TlsRelay(sentinel.port, ca.context(HOST)) as asked,
    ):
        place = f"{HOST}:{asked.port}/{SERVICE}?db=4&ssl_ca_certs={ca.file}"
        broker = RedisBroker(f"rediss+sentinel://:{SECRET}@{place}")
        await broker.open()
        await submit(broker, one)
        beat = broker.sync_beat()
        assert beat is not None
        reply = await asyncio.to_thread(beat.beat, "w1", {"never": 1}, 10.0)
        beat.close()
        await broker.close()
    direct = RedisBroker(server.url.removesuffix("/0") + "/4")
    await direct.open()
    states = await direct.states([one.id])
    await direct.close()

    assert states == {one.id: JobState.READY}
    assert reply.lost == ("never",)
    assert asked.accepted >= 2
    assert relay.accepted >= 2


# ---- PostgreSQL, whose clients ask for it in clear first ----


def test_jobs_on_postgresql_run_through_verified_tls_and_no_other(
    ca: Authority, stranger: Authority, tmp_path: Path
) -> None:
    with (
        PostgresServer(bin_folder=postgres.needed()) as server,
        TlsRelay(server.port, ca.context(HOST), asked=True) as relay,
    ):
        verified = f"postgresql://postgres@{HOST}:{relay.port}/postgres?sslmode=verify-full&sslrootcert="
        with Place(tmp_path, BROKER__URL=f"{verified}{ca.file}") as place:
            worker = place.start("worker", "app")
            done = place.run("submit", "app", "work", "[7]", "--wait")
            worker.tell(signal.SIGTERM)
            ended = worker.end()
        accepted = relay.accepted
        with Place(tmp_path, BROKER__URL=f"{verified}{stranger.file}") as place:
            refused = place.run("worker", "app")

    assert (done.code, done.out.strip(), ended) == (0, "7", 0)
    assert accepted >= 3  # the worker's, its beats', and who submits
    assert refused.code == 2
    assert "not trusted here" in refused.err
