"""Results that are read in the order of submission come many at a time, and each tells of its own job alone."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from taskflow import JobFailed, JobNotFound, Retry
from taskflow.brokers.base import WorkerState
from taskflow.core.job import JobState
from taskflow.testing import all_blocked
from tests.runtime.made import make_flow

if TYPE_CHECKING:
    from collections.abc import Sequence

    from taskflow.brokers.base import Final
    from taskflow.testing import TestFlow

pytestmark = pytest.mark.anyio


def asked(t: TestFlow, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many jobs the broker is asked for from now on, by each question."""
    counts: list[int] = []
    finals = t.broker.finals

    async def counted(job_ids: Sequence[str], timeout_s: float) -> dict[str, Final]:
        counts.append(len(job_ids))
        return await finals(job_ids, timeout_s)

    monkeypatch.setattr(t.broker, "finals", counted)
    return counts


async def test_results_that_are_read_in_order_are_fetched_a_hundred_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    flow = make_flow()

    @flow.task
    async def work(number: int) -> int:
        return number

    async with flow.test() as t:
        jobs = await work.submit_many([work.call(number) for number in range(1_000)])
        await t.run_until_idle()
        counts = asked(t, monkeypatch)
        results = [await job.result() for job in jobs]
        again = await jobs[7].result()

    assert results == list(range(1_000))
    assert again == 7
    assert len(counts) < 20
    assert max(counts) == 100


async def test_many_that_wait_at_once_for_what_is_not_final_ask_for_little_more_than_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flow = make_flow()

    @flow.task
    async def work(number: int) -> int:
        return number

    async with flow.test() as t:
        t.running.worker.pause()
        jobs = await work.submit_many([work.call(number) for number in range(1_000)])
        counts = asked(t, monkeypatch)
        waiting = [asyncio.create_task(job.result()) for job in jobs]
        await all_blocked()
        waiting[1].cancel()  # the others are none the wiser
        t.running.worker._state = WorkerState.CLAIMING
        await t.advance(2)
        await t.run_until_idle()
        results = await asyncio.gather(*waiting[:1], *waiting[2:])

    assert results == [0, *range(2, 1_000)]
    assert sum(counts) < 1_000 * 1.3


async def test_results_that_are_read_in_any_order_are_each_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    flow = make_flow()

    @flow.task
    async def work(number: int) -> int:
        return number

    async with flow.test() as t:
        jobs = await work.submit_many([work.call(number) for number in range(500)])
        await t.run_until_idle()
        counts = asked(t, monkeypatch)
        results = [await job.result() for job in reversed(jobs)]
        spread = [await jobs[number * 37 % 500].result() for number in range(500)]

    assert results == list(reversed(range(500)))
    assert spread == [number * 37 % 500 for number in range(500)]
    assert sum(counts) < 2 * 1_000


async def test_a_dead_job_among_others_raises_for_its_own_handle_and_succeeds_once_it_was_retried() -> None:
    flow = make_flow()
    broken = {5, 8}

    @flow.task(retry=Retry(attempts=1))
    async def work(number: int) -> int:
        if number in broken:
            raise ValueError(str(number))
        return number

    async with flow.test() as t:
        jobs = await work.submit_many([work.call(number) for number in range(10)])
        await t.run_until_idle()
        first = [await job.result() for job in jobs[:5]]
        with pytest.raises(JobFailed, match="ValueError: 5"):
            await jobs[5].result()
        rest = [await job.result() for job in jobs[6:8]]
        broken.clear()
        await t.broker.retry([jobs[8].id])
        await t.run_until_idle()
        mended = await jobs[8].result()

    assert (first, rest, mended) == ([0, 1, 2, 3, 4], [6, 7], 8)


async def test_a_job_that_is_kept_no_longer_raises_for_its_own_handle_alone() -> None:
    flow = make_flow()

    @flow.task
    async def work(number: int) -> int:
        return number

    async with flow.test() as t:
        jobs = await work.submit_many(
            [work.options(delay=600 if number > 1 else 0).call(number) for number in range(4)]
        )
        await t.run_until_idle()
        results = [await jobs[0].result()]
        await t.broker.purge(state=JobState.SUCCEEDED)
        with pytest.raises(JobNotFound):  # while the others are to come
            await jobs[1].result()
        await t.advance(601)
        results += [await job.result() for job in jobs[2:]]

    assert results == [0, 2, 3]


async def test_large_results_are_fetched_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    flow = make_flow()

    @flow.task
    async def work(number: int) -> str:
        return f"{number:900000}"

    async with flow.test() as t:
        jobs = await work.submit_many([work.call(number) for number in range(40)])
        await t.run_until_idle()
        counts = asked(t, monkeypatch)
        results = [int(await job.result()) for job in jobs]

    assert results == list(range(40))
    assert max(counts) == 10
    assert counts[-1] <= 2
