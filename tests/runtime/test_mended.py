"""Promises that a first review found broken."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from taskflow import Bulkhead, Retry, Snooze
from taskflow.brokers.memory import MemoryBroker
from taskflow.core import events
from taskflow.core.job import JobState
from taskflow.errors import BrokerError, ConfigError, PayloadError
from taskflow.testing import TestFlow, all_blocked
from tests.runtime.made import heard, make_flow, put

if TYPE_CHECKING:
    from taskflow import TaskFlow

pytestmark = pytest.mark.anyio


async def test_a_handler_that_snoozes_for_nothing_does_not_spin() -> None:
    flow = make_flow()
    runs = 0

    @flow.task
    async def restless() -> None:
        nonlocal runs
        runs += 1
        raise Snooze(0)

    async with TestFlow(flow) as t:
        await restless.submit()
        await t.advance(1)

    assert 1 <= runs <= 11


async def test_a_snooze_holds_its_gate_for_a_day_at_most() -> None:
    flow = make_flow()

    @flow.task(bulkhead=Bulkhead("smtp", 1))
    async def mail() -> None:
        raise Snooze(float("inf"), hold="smtp")

    async with TestFlow(flow) as t:
        await mail.submit()
        await t.advance(1)
        (gate,) = [gate for gate in await t.broker.gates() if gate.name == "smtp"]
        held_s = gate.held_until - t.clock.wall()

    assert 86_000 < held_s <= 86_400


async def test_a_jump_of_the_wall_clock_is_no_loss_of_a_worker() -> None:
    flow = make_flow()
    done = asyncio.Event()

    @flow.task
    async def long() -> str:
        await done.wait()
        return "done"

    async with TestFlow(flow) as t:
        job = await long.submit()
        await t.advance(5)
        t.clock._wall += 3_600
        await t.advance(12)
        info = await t.broker.show(job.id)
        done.set()
        await t.run_until_idle()

        assert info is not None
        assert (info.state, info.lost) == (JobState.RUNNING, 0)
        assert await job.result(0) == "done"


async def test_who_waits_for_a_result_hears_that_the_memory_broker_is_closed() -> None:
    broker = MemoryBroker()
    await put(broker, "a")
    waiting = asyncio.create_task(broker.finals(["a"], 60))
    await all_blocked()

    await broker.close()

    with pytest.raises(BrokerError, match="closed"):
        await waiting


async def test_a_cancelled_job_of_a_lost_worker_is_announced_as_cancelled() -> None:
    flow: TaskFlow = make_flow()

    @flow.task(name="task")
    async def task() -> None: ...

    async with TestFlow(flow) as t:
        t.running.worker.pause()
        cancelled, expired = heard(flow, events.JobCancelled), heard(flow, events.JobExpired)
        await put(t.broker, "a")
        from taskflow.brokers.base import ClaimRequest

        await t.broker.claim(ClaimRequest("doomed", ("default",), 1, 1, 1, 1.0))
        await t.broker.cancel(["a"])
        await t.advance(5)

    assert [event.job_id for event in cancelled] == ["a"]
    assert expired == []


async def test_a_handler_that_swallows_its_timeout_is_told_on() -> None:
    flow = make_flow()

    @flow.task(timeout=1)
    async def stubborn() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "went on"
        return "never"

    async with TestFlow(flow) as t:
        ignored = heard(flow, events.TimeoutIgnored)
        job = await stubborn.submit()
        await t.advance(2)
        await t.run_until_idle()

        assert await job.result(0) == "went on"
    assert [event.job_id for event in ignored] == [job.id]


async def test_numbers_that_cannot_be_are_refused_where_a_task_is_declared() -> None:
    flow = make_flow()

    for bad in ({"timeout": 0}, {"deadline": -1}, {"priority": 77}, {"lane": 5}, {"retries": 3}):
        with pytest.raises(ConfigError):
            flow.task(**bad)(lambda: None)  # type: ignore[arg-type, call-overload]


async def test_submit_many_of_what_is_no_call_says_what_it_takes() -> None:
    flow = make_flow()

    @flow.task
    async def add(a: int) -> int:
        return a

    async with TestFlow(flow):
        with pytest.raises(PayloadError, match=r"takes what add.call\(...\) makes, got a int"):
            await add.submit_many([1])  # type: ignore[list-item]
        with pytest.raises(PayloadError, match="takes a Retry"):
            add.options(retry=5)  # type: ignore[arg-type]


@pytest.mark.parametrize("answer", [ZeroDivisionError(), None, "soon"])
async def test_a_backoff_of_ones_own_that_breaks_costs_no_job(answer: object) -> None:
    flow = make_flow()

    def delay(attempt: int) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    @flow.task(retry=Retry(attempts=2, base=1, jitter="none", delay=delay))
    async def fail() -> None:
        raise OSError("down")

    async with TestFlow(flow) as t:
        job = await fail.submit()
        await t.run_until_idle()
        first = await t.broker.show(job.id)
        await t.advance(2)

        assert await job.status() == "dead"

    assert first is not None
    assert (first.state, first.due_at - first.submitted_at) == ("scheduled", 1)
    assert first.errors[0].message.startswith("down (its Retry(delay=) raised ")
