"""What `close` promises: what was asked is still done, waits end, and jobs are there after the next `open`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from taskflow.brokers.base import Accepted
from taskflow.errors import BrokerError
from tests.brokers.words import LONG_S, PATIENCE_S, ask, claim, ids, job, submit

if TYPE_CHECKING:
    from taskflow.brokers.base import FullBroker

pytestmark = pytest.mark.anyio


async def test_close_is_idempotent(broker: FullBroker) -> None:
    await broker.close()
    await broker.close()


@pytest.mark.parametrize("turns", [1, 2, 5, 15, 40])
async def test_close_lets_what_was_asked_be_done_and_ends_all_waits(broker: FullBroker, turns: int) -> None:
    running = job(queue="other")
    await submit(broker, running)
    calls = [asyncio.create_task(submit(broker, job(queue="calls"))) for _ in range(12)]  # more than connections
    for_work = asyncio.create_task(broker.wait(ask(queues=("empty",)), LONG_S))
    for_end = asyncio.create_task(broker.finals([running.id], LONG_S))
    for _ in range(turns):  # of the loop: how far they are when it closes
        await asyncio.sleep(0)

    await broker.close()

    async with asyncio.timeout(PATIENCE_S):
        accepted = [receipt.accepted for (receipt,) in await asyncio.gather(*calls)]
        assert accepted == [Accepted.NEW] * 12
        (told,) = await asyncio.gather(for_work, return_exceptions=True)
        assert told is None or type(told) is BrokerError  # no outage, which its subclass would be
        with pytest.raises(BrokerError) as closed:  # that no end is known is not the same as none within the time
            await for_end
        assert type(closed.value) is BrokerError


async def test_jobs_are_there_after_close_and_open(broker: FullBroker) -> None:
    one = job()
    await submit(broker, one)

    await broker.close()
    await broker.open()

    assert ids(await claim(broker)) == [one.id]
