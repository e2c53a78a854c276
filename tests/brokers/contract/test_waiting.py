"""What `wait` promises: it returns when there may be something to claim, whatever made it so, or when its time is over."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from taskflow.core import gate as gating
from taskflow.core.decision import Retry
from tests.brokers.words import (
    BOOM,
    DONE,
    LONG_S,
    ask,
    claim,
    claim_one,
    claimed_soon,
    die,
    job,
    settle,
    submit,
    until_it_waits_for_work,
)

if TYPE_CHECKING:
    from taskflow.brokers.base import FullBroker

pytestmark = pytest.mark.anyio


async def within_patience(broker: FullBroker, **fields: object) -> None:
    """`wait` returns long before its own timeout."""
    async with asyncio.timeout(10):
        await broker.wait(ask(**fields), LONG_S)


async def test_wait_returns_at_once_when_there_is_something(broker: FullBroker) -> None:
    await submit(broker, job())

    await within_patience(broker)


async def test_wait_returns_after_its_timeout(broker: FullBroker) -> None:
    async with asyncio.timeout(10):
        await broker.wait(ask(), 0.05)


async def test_submit_wakes_a_waiting_worker(broker: FullBroker) -> None:
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(claimed_soon(broker))
        await until_it_waits_for_work(broker)
        await submit(broker, job())

    assert len(waiting.result()) == 1


async def test_resume_wakes_a_waiting_worker(broker: FullBroker) -> None:
    await submit(broker, job())
    await broker.pause("q")

    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(claimed_soon(broker))
        await until_it_waits_for_work(broker)
        await broker.resume("q")

    assert len(waiting.result()) == 1


async def test_settled_claim_wakes_a_worker_that_waits_for_the_gate(broker: FullBroker) -> None:
    await broker.gate("smtp", gating.Declare(limit=1))
    await submit(broker, job(gates=("smtp",)), job(gates=("smtp",)))
    running = await claim_one(broker)

    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(claimed_soon(broker, "w2"))
        await until_it_waits_for_work(broker)
        await settle(broker, running, DONE)

    assert len(waiting.result()) == 1


async def test_change_of_a_gate_wakes_a_worker_that_waits_for_it(broker: FullBroker) -> None:
    await broker.gate("smtp", gating.Hold(LONG_S))
    await submit(broker, job(gates=("smtp",)))

    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(claimed_soon(broker))
        await until_it_waits_for_work(broker)
        await broker.gate("smtp", gating.Release())

    assert len(waiting.result()) == 1


async def test_hold_that_is_over_wakes_a_worker(broker: FullBroker) -> None:
    await broker.gate("smtp", gating.Hold(0.1))
    await submit(broker, job(gates=("smtp",)))

    assert len(await claimed_soon(broker)) == 1


async def test_hold_that_was_prolonged_wakes_a_worker_when_it_is_over(broker: FullBroker) -> None:
    await broker.gate("smtp", gating.Hold(0.3))
    await submit(broker, job(gates=("smtp",)))
    assert await claim(broker) == []

    prolonged_at = time.monotonic()
    await broker.gate("smtp", gating.Hold(0.5))

    assert len(await claimed_soon(broker)) == 1
    assert time.monotonic() - prolonged_at >= 0.499


async def test_next_token_of_a_rate_wakes_a_worker(broker: FullBroker) -> None:
    await broker.gate("smtp", gating.Declare(rate=gating.Rate(0.05)))
    await submit(broker, *(job(gates=("smtp",)) for _ in range(4)))

    taken = [await claimed_soon(broker) for _ in range(4)]

    assert [len(claims) for claims in taken] == [1, 1, 1, 1]


async def test_reclaim_wakes_a_waiting_worker(broker: FullBroker) -> None:
    await submit(broker, job())
    await claim_one(broker, "dies")

    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(claimed_soon(broker))
        await until_it_waits_for_work(broker)
        await die(broker, "dies")

    assert len(waiting.result()) == 1


async def test_retried_job_wakes_a_worker_when_it_is_due(broker: FullBroker) -> None:
    await submit(broker, job())
    await settle(broker, await claim_one(broker), Retry(0.05, BOOM))

    assert len(await claimed_soon(broker)) == 1


async def test_cancelled_wait_leaves_the_broker_as_it_was(broker: FullBroker) -> None:
    waiting = asyncio.create_task(broker.wait(ask(), LONG_S))
    await until_it_waits_for_work(broker)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await submit(broker, job())

    assert len(await claim(broker)) == 1
