"""Connections of the PostgreSQL broker that their driver has lost track of, or that nobody answers on."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import asyncpg
import pytest

from taskflow.brokers.postgres import PostgresBroker, errors
from taskflow.brokers.postgres.connection import CALL_S
from taskflow.errors import BrokerUnavailable
from tests.brokers.conftest import made
from tests.servers.postgres import PostgresServer

pytestmark = pytest.mark.anyio


async def test_a_connection_that_is_out_of_step_is_replaced(tmp_path: Path) -> None:
    broker = made("postgres", tmp_path)
    assert isinstance(broker, PostgresBroker)
    await broker.open()
    pool = broker._pool._pool
    assert pool is not None
    connection = await pool.acquire()
    # Not `fetch`, which takes two turns at the server: cut off between them, the driver has no word for it.
    left = asyncio.create_task(connection.execute("SELECT pg_sleep(5)"))
    await asyncio.sleep(0)  # its first turn: the statement is on its way
    await pool.release(connection)  # in the middle of a statement: as a fault of the network can leave it

    with pytest.raises(BrokerUnavailable):
        await broker.counts()
    counts = await broker.counts()

    assert counts == []
    with pytest.raises(asyncpg.PostgresConnectionError):
        await left
    await broker.close()


def test_what_the_driver_calls_its_own_bug_is_an_outage_to_us() -> None:
    error = asyncpg.InternalClientError("cannot switch to state 12; another operation (2) is in progress")

    assert errors.is_translated(error)
    assert isinstance(errors.translated(error, "here"), BrokerUnavailable)


async def test_call_that_is_stranded_is_heard_of_within_its_time_and_a_little() -> None:
    with PostgresServer() as server:
        broker = PostgresBroker(server.url)
        await broker.open()
        server.pause()
        began = time.monotonic()

        with pytest.raises(BrokerUnavailable, match="did not answer in time"):
            await broker.counts()
        took_s = time.monotonic() - began
        server.resume()

        assert CALL_S <= took_s < CALL_S + 5
        assert await broker.counts() == []
        await broker.close()
