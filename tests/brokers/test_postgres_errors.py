"""What a PostgreSQL server, or a pooler in front of it, says, in our words: an outage, a setting to correct, or a fault."""

from __future__ import annotations

import asyncio
import itertools
import os
import struct
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import asyncpg
import pytest

from taskflow.brokers.postgres import PostgresBroker
from taskflow.brokers.postgres.errors import translated
from taskflow.errors import BrokerError, BrokerUnavailable, ConfigError
from tests.servers.postgres import PostgresServer

from .conftest import postgres
from .words import eventually, job, submit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

pytestmark = pytest.mark.anyio

OUTAGES = ("53000", "53400", "55000", "55006", "58000", "25P03", "57000", "72000", "40002", "ZZ123")
FAULTS = ("22P05", "22021", "23514", "42883", "42601", "54001", "P0001", "0A000")

_numbers = itertools.count(1)


@pytest.fixture
def namespace() -> str:
    return f"said_{os.getpid()}_{next(_numbers)}"


@asynccontextmanager
async def refusing(state: str, words: str) -> AsyncIterator[str]:
    """The URL of something that answers whoever connects with this error."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        (size,) = struct.unpack("!I", await reader.readexactly(4))
        await reader.readexactly(size - 4)
        said = f"SFATAL\0VFATAL\0C{state}\0M{words}\0\0".encode()
        writer.write(b"E" + struct.pack("!I", len(said) + 4) + said)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    async with server:
        yield f"postgresql://app:s3cret@127.0.0.1:{server.sockets[0].getsockname()[1]}/shop?sslmode=disable"


# ---- as a connection is made ----


@pytest.mark.parametrize("state", [*OUTAGES, *(state for state in FAULTS if not state.startswith(("22", "42")))])
@pytest.mark.parametrize("verb", ["open", "version"])
async def test_whatever_refuses_a_connection_is_an_outage(state: str, verb: str) -> None:
    async with refusing(state, "MaxClientsInSessionMode: max clients reached") as url:
        with pytest.raises(BrokerUnavailable, match="max clients reached"):
            await getattr(PostgresBroker(url), verb)()


@pytest.mark.parametrize("state", ["42704", "22023", "28P01", "3D000"])
async def test_a_setting_or_a_password_that_is_refused_is_ours_to_correct(state: str) -> None:
    async with refusing(state, "no such thing") as url:
        with pytest.raises(ConfigError, match=r"no such thing.*TASKFLOW_BROKER__URL"):
            await PostgresBroker(url).open()


async def test_a_setting_that_the_server_has_not_names_the_option(namespace: str) -> None:
    url = f"{postgres().url}?options=-c%20no_such_thing%3D1"

    with pytest.raises(ConfigError, match=r"no_such_thing.*\?options= in TASKFLOW_BROKER__URL"):
        await PostgresBroker(url, namespace=namespace).open()


async def test_a_beat_and_a_listener_take_a_full_pooler_for_an_outage() -> None:
    async with refusing("XX000", "max clients reached") as url:
        beat = PostgresBroker(url).sync_beat()
        assert beat is not None
        with pytest.raises(BrokerUnavailable, match="max clients reached"):
            await asyncio.to_thread(beat.beat, "w1", {}, 60.0)
        beat.close()


# ---- of a statement ----


@pytest.mark.parametrize("state", OUTAGES)
async def test_what_speaks_of_no_statement_is_an_outage(namespace: str, state: str) -> None:
    broker = PostgresBroker(postgres().url, namespace=namespace)
    await broker.open()

    with pytest.raises(BrokerUnavailable, match="it is so"):
        await broker._pool.fetch(f"DO $$ BEGIN RAISE EXCEPTION 'it is so' USING ERRCODE = '{state}'; END $$")

    await submit(broker, job())
    await broker.close()


@pytest.mark.parametrize("state", ["XX000", "XX001"])
async def test_what_is_broken_under_one_job_is_no_outage_for_the_others(namespace: str, state: str) -> None:
    broker = PostgresBroker(postgres().url, namespace=namespace)
    await broker.open()

    with pytest.raises(BrokerError, match=f"{state} it is so.*see its log") as caught:
        await broker._pool.fetch(f"DO $$ BEGIN RAISE EXCEPTION 'it is so' USING ERRCODE = '{state}'; END $$")

    assert type(caught.value) is BrokerError
    await broker.close()


@pytest.mark.parametrize("state", FAULTS)
async def test_what_speaks_of_the_statement_is_a_fault(namespace: str, state: str) -> None:
    broker = PostgresBroker(postgres().url, namespace=namespace)
    await broker.open()

    with pytest.raises(BrokerError, match=f"{state}.*please report it") as caught:
        await broker._pool.fetch(f"DO $$ BEGIN RAISE EXCEPTION 'it is so' USING ERRCODE = '{state}'; END $$")

    assert type(caught.value) is BrokerError
    await broker.close()


@pytest.mark.parametrize(
    ("words", "function"),
    [
        ("database is not accepting commands that assign new XIDs to avoid wraparound data loss in database", None),
        ("die Datenbank nimmt keine Befehle an", "GetNewTransactionId"),
    ],
)
def test_a_server_that_stopped_ahead_of_a_wraparound_is_an_outage(words: str, function: str | None) -> None:
    said = {"S": "ERROR", "C": "54000", "M": words} | ({"R": function} if function else {})

    failure = translated(asyncpg.PostgresError.new(said), "here")

    assert isinstance(failure, BrokerUnavailable)
    assert "VACUUM" in str(failure)


async def test_a_primary_that_became_a_standby_is_an_outage() -> None:
    with PostgresServer() as server:
        broker = PostgresBroker(server.url)
        await broker.open()
        server.stop()
        (server.folder / "data" / "standby.signal").touch()
        server.start()

        async def answer(verb: Callable[[], Awaitable[object]]) -> str:
            try:
                await verb()
            except BrokerUnavailable as error:
                return "" if "cannot be reached" in str(error) else str(error)  # a connection of before
            return "it works"

        for verb in (broker.workers, lambda: submit(broker, job())):
            assert "a standby" in await eventually(partial(answer, verb))

        await broker.close()
