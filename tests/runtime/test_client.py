"""Submitting waits while a queue is full, refuses with the time to come back, and submits nothing twice."""

from __future__ import annotations

import asyncio

import pytest

from taskflow import BrokerUnavailable, Bulkhead, JobFailed, QueueFull, ResultTimeout, Retry
from taskflow.brokers.base import WorkerState
from taskflow.core import events
from taskflow.testing import all_blocked
from tests.runtime.made import heard, make_flow

pytestmark = pytest.mark.anyio


async def test_a_full_queue_refuses_at_once_where_it_is_told_to_and_says_when_to_come_back() -> None:
    flow = make_flow(queue={"max_size": 3, "on_full": "reject"})

    @flow.task
    async def work(number: int) -> None: ...

    rejected = heard(flow, events.JobsRejected)
    async with flow.test() as t:
        t.running.worker.pause()
        with pytest.raises(QueueFull) as full:
            await work.submit_many([work.call(number) for number in range(5)])
        with pytest.raises(QueueFull):
            await work.submit(6)
        states = await t.broker.states(full.value.accepted)

    assert full.value.retry_after_s is not None
    assert full.value.retry_after_s > 0
    assert len(full.value.accepted) == 3
    assert set(states.values()) == {"ready"}
    assert "TASKFLOW_QUEUE__MAX_SIZE" in str(full.value)
    assert [(event.queue, event.reason, event.count) for event in rejected] == [
        ("default", "queue_full", 2),
        ("default", "queue_full", 1),
    ]


async def test_submit_waits_for_room_and_goes_on_in_order() -> None:
    flow = make_flow(queue={"max_size": 3, "wait_s": 60})
    ran: list[int] = []

    @flow.task
    async def work(number: int) -> None:
        ran.append(number)
        await flow.clock.sleep(1)

    async with flow.test() as t:
        await t.broker.pause("default")
        submitting = asyncio.create_task(work.submit_many([work.call(number) for number in range(9)]))
        await t.advance(10)
        waiting = not submitting.done()
        await t.broker.resume("default")
        await t.advance(60)
        jobs = await submitting

        assert waiting
        assert len({job.id for job in jobs}) == 9
        assert sorted(ran) == list(range(9))


async def test_submit_waits_no_longer_than_it_may() -> None:
    flow = make_flow(queue={"max_size": 2, "wait_s": 30})

    @flow.task
    async def work(number: int) -> None: ...

    async with flow.test() as t:
        await t.broker.pause("default")
        submitting = asyncio.create_task(work.submit_many([work.call(number) for number in range(3)]))
        await t.advance(29.9)
        early = submitting.done()
        await t.advance(0.2)

        assert not early
        with pytest.raises(QueueFull) as full:
            await submitting
        assert len(full.value.accepted) == 2


async def test_the_jobs_of_one_gate_fill_at_most_half_of_a_queue() -> None:
    flow = make_flow(queue={"max_size": 10, "on_full": "reject"})

    @flow.task(bulkhead=Bulkhead("smtp", 1))
    async def send(number: int) -> None: ...

    @flow.task
    async def other(number: int) -> None: ...

    async with flow.test() as t:
        await t.broker.pause("default")
        with pytest.raises(QueueFull, match="smtp") as full:
            await send.submit_many([send.call(number) for number in range(10)])
        await other.submit_many([other.call(number) for number in range(5)])

    assert len(full.value.accepted) == 5


async def test_a_lost_reply_submits_nothing_twice() -> None:
    flow = make_flow()
    ran: list[int] = []

    @flow.task
    async def work(number: int) -> None:
        ran.append(number)

    async with flow.test() as t:
        t.faults.lose_reply("submit", 2)
        one = asyncio.create_task(work.submit(0))
        many = asyncio.create_task(work.submit_many([work.call(number) for number in range(1, 1_200)]))
        await t.advance(2)
        await t.run_until_idle()

        assert (await one).id
        assert len(await many) == 1_199
    assert sorted(ran) == list(range(1_200))


async def test_an_outage_is_told_within_seconds_and_what_is_in_is_said() -> None:
    flow = make_flow()

    @flow.task
    async def work(number: int) -> None: ...

    async with flow.test() as t:
        t.faults.cut("submit")
        submitting = asyncio.create_task(work.submit_many([work.call(number) for number in range(10)]))
        await t.advance(4)

        assert submitting.done()
        with pytest.raises(BrokerUnavailable) as unavailable:
            await submitting
        assert unavailable.value.__notes__ == ["of 10 jobs, 0 are in"]


async def test_a_key_is_unique_until_its_job_is_final() -> None:
    flow = make_flow()
    ran: list[int] = []

    @flow.task
    async def work(number: int) -> None:
        ran.append(number)

    known = heard(flow, events.JobsDeduplicated)
    async with flow.test() as t:
        first = await work.options(key="ada", delay=10).submit(1)
        second = await work.options(key="ada").submit(2)
        many = await work.options(key="ada").submit_many([work.call(3), work.call(4)])
        await t.advance(11)
        third = await work.options(key="ada").submit(5)
        await t.run_until_idle()

    assert {first.id} == {second.id, *(job.id for job in many)}
    assert third.id != first.id
    assert ran == [1, 5]
    assert sum(event.count for event in known) == 3


async def test_the_same_job_id_is_the_same_job() -> None:
    flow = make_flow()
    ran: list[int] = []

    @flow.task
    async def work(number: int) -> None:
        ran.append(number)

    async with flow.test() as t:
        for number in range(3):
            job = await work.options(job_id="from-the-caller").submit(number)
            await t.run_until_idle()

            assert job.id == "from-the-caller"
    assert ran == [0]


async def test_waiting_for_a_result_ends_in_time_and_the_job_goes_on() -> None:
    flow = make_flow()

    @flow.task
    async def work() -> int:
        await flow.clock.sleep(10)
        return 7

    async with flow.test() as t:
        job = await work.submit()
        waiting = asyncio.create_task(job.result(5))
        forever = asyncio.create_task(job.result())
        await t.advance(5)

        with pytest.raises(ResultTimeout, match="after 5 s; it goes on"):
            await waiting
        with pytest.raises(ResultTimeout):
            await job.result(0)
        await t.advance(6)
        assert await forever == await job.result(0) == 7


async def test_a_result_is_waited_for_through_an_outage_but_no_longer_than_asked() -> None:
    flow = make_flow()

    @flow.task
    async def work() -> int:
        return 7

    async with flow.test() as t:
        t.faults.cut("finals")
        job = await work.submit()
        patient = asyncio.create_task(job.result(60))
        hasty = asyncio.create_task(job.result(5))
        await t.advance(10)
        t.faults.mend()
        await t.advance(3)

        assert await patient == 7
        with pytest.raises(BrokerUnavailable):
            await hasty


async def test_thousands_may_wait_for_their_results_at_once() -> None:
    flow = make_flow()

    @flow.task
    async def work(number: int) -> int:
        return number

    async with flow.test() as t:
        t.running.worker.pause()
        jobs = await work.submit_many([work.call(number) for number in range(2_000)])
        waiting = [asyncio.create_task(job.result()) for job in jobs]
        await all_blocked()
        t.running.worker._state = WorkerState.CLAIMING
        await t.advance(2)
        await t.run_until_idle()

        assert [await result for result in waiting] == list(range(2_000))


async def test_whoever_awaits_a_dead_job_hears_the_last_error_and_its_stack() -> None:
    flow = make_flow()

    @flow.task(retry=Retry(attempts=1))
    async def work() -> None:
        raise KeyError("the-key")

    async with flow.test() as t:
        job = await work.submit()
        await t.run_until_idle()

        with pytest.raises(JobFailed) as failed:
            await job.result()
    assert job.id in str(failed.value)
    assert "KeyError: 'the-key'" in str(failed.value)
    assert failed.value.code == "job_failed"
    assert "raise KeyError" in failed.value.__notes__[0]
