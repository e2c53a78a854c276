"""A key that somebody's open transaction holds, on PostgreSQL: whoever asks for it hears so, and nobody else pays."""

from __future__ import annotations

import asyncio
import uuid

import asyncpg
import pytest

from taskflow import BrokerUnavailable, Settings, TaskFlow
from taskflow.errors import KEY_HELD
from tests.brokers.conftest import postgres

pytestmark = pytest.mark.anyio

HELD = ("a", "b", "c", "d")
SOON_S = 1.5  # less than the wait for a key


async def test_a_key_that_an_open_transaction_holds_is_told_in_seconds_and_holds_up_nobody_else() -> None:
    server = postgres()
    flow = TaskFlow(
        settings=Settings.from_env(
            {"TASKFLOW_BROKER__URL": server.url, "TASKFLOW_BROKER__NAMESPACE": f"held_{uuid.uuid4().hex}"}
        )
    )

    @flow.task
    async def charge(number: int) -> int:
        return number

    async with flow:
        connection = await asyncpg.connect(flow.settings.broker.url.get_secret_value())
        async with connection.transaction():
            for key in HELD:
                await charge.options(connection=connection, key=key).submit(1)
            asked = [asyncio.create_task(charge.options(key=key).submit(2)) for key in HELD]
            await asyncio.sleep(0)  # they are under way, or wait for those
            async with asyncio.timeout(SOON_S):
                await charge.submit(3)
            free = asyncio.create_task(charge.options(key="free").submit(4))
            said = await asyncio.gather(*asked, return_exceptions=True)
            await free
        after = await charge.options(key="a").submit(5)
        await connection.close()

    assert [type(answer) for answer in said] == [BrokerUnavailable] * 4
    assert {answer.kind for answer in said if isinstance(answer, BrokerUnavailable)} == {KEY_HELD}
    assert all(f"charge '{key}'" in str(answer) for key, answer in zip(HELD, said, strict=True))
    assert after.id
