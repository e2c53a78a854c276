"""Connections of the PostgreSQL broker that their driver has lost track of."""

from __future__ import annotations

import asyncio
from pathlib import Path

import asyncpg
import pytest

from taskflow.brokers.postgres import PostgresBroker, errors
from taskflow.errors import BrokerUnavailable
from tests.brokers.conftest import made

pytestmark = pytest.mark.anyio


async def test_a_connection_that_is_out_of_step_is_replaced(tmp_path: Path) -> None:
    broker = made("postgres", tmp_path)
    assert isinstance(broker, PostgresBroker)
    await broker.open()
    pool = broker._pool._pool
    assert pool is not None
    connection = await pool.acquire()
    left = asyncio.create_task(connection.fetch("SELECT pg_sleep(5)"))
    await asyncio.sleep(0)
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
