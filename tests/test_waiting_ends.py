"""Waiting has an end, and turns are fair: on every broker, with a real worker."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from taskflow import Bulkhead, JobExpired, Settings, TaskFlow
from taskflow.brokers.base import ClaimRequest
from taskflow.core import events
from taskflow.core.decision import Expire
from taskflow.core.gate import Hold
from tests.runtime.made import heard

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.anyio

REASONS = ["deadline", "max_wait"]


@pytest.fixture(params=["memory", "sqlite"])
def flow(request: pytest.FixtureRequest, tmp_path: Path) -> TaskFlow:
    url = "memory://" if request.param == "memory" else f"sqlite:///{tmp_path / 'jobs.db'}"
    # Upkeep comes round four times a lease.
    return TaskFlow(
        settings=Settings.from_env({"TASKFLOW_BROKER__URL": url, "TASKFLOW_WORKER__LEASE_S": "1"}),
    )


def finished(running: Any, state: str) -> float | None:
    """`taskflow_jobs_finished_total` of this state."""
    found: float | None = running.metrics.registry.get_sample_value(
        "taskflow_jobs_finished_total", {"queue": "default", "task": "work", "state": state}
    )
    return found


async def until(condition: Callable[[], object]) -> None:
    """Poll until it holds."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is waited for announces itself to nobody
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("reason", REASONS)
async def test_a_job_that_expires_behind_a_held_gate_never_starts_is_counted_and_heard_of(
    flow: TaskFlow, reason: str
) -> None:
    starts: list[int] = []

    @flow.task(bulkhead=Bulkhead("smtp", 1))
    async def work() -> None:
        starts.append(1)

    told = heard(flow, events.JobExpired)
    async with flow.worker(drain=0) as running, asyncio.timeout(20):
        await flow.broker.gate("smtp", Hold(60, "circuit_open"))
        before = finished(running, "expired")
        limit: dict[str, Any] = {reason: 0.05}

        job = await work.options(**limit).submit()
        with pytest.raises(JobExpired):
            await job.result()
        await until(lambda: told)  # the worker speaks after the broker has done it

        assert [(one.job_id, one.task, one.reason) for one in told] == [(job.id, "work", reason)]
        assert (before, finished(running, "expired")) == (0, 1)
        info = await flow.broker.show(job.id)
    assert info is not None
    assert (info.reason, info.attempts) == (reason, 0)
    assert starts == []


@pytest.mark.parametrize("reason", REASONS)
async def test_a_job_that_is_claimed_too_late_never_starts_is_counted_and_heard_of(flow: TaskFlow, reason: str) -> None:
    starts: list[int] = []

    @flow.task
    async def work() -> None:
        starts.append(1)

    settled = heard(flow, events.JobSettled)
    async with flow:
        limit: dict[str, Any] = {reason: 0.05}
        job = await work.options(**limit).submit()
        # Claimed in time by a worker that is gone when it is too late: no upkeep has seen it wait since.
        (claim,) = await flow.broker.claim(ClaimRequest("w", ("default",), 1, 1, 1, 60.0))
        over_at = time.monotonic() + claim.expires_in_s
        await until(lambda: time.monotonic() > over_at)
        await flow.broker.leave("w")
        async with flow.worker(drain=0) as running, asyncio.timeout(20):
            with pytest.raises(JobExpired):
                await job.result()
            await until(lambda: finished(running, "expired"))

            assert finished(running, "expired") == 1
        info = await flow.broker.show(job.id)
    assert info is not None
    assert (info.reason, starts) == (reason, [])
    assert [one.decision for one in settled] in ([], [Expire(reason)])  # by upkeep, or by whoever claimed it first


async def test_a_tenant_with_thousands_of_jobs_does_not_delay_a_tenant_with_one(flow: TaskFlow) -> None:
    ran: Counter[str] = Counter()
    is_under_way, is_done = asyncio.Event(), asyncio.Event()
    seen_before: list[int] = []

    @flow.task(lane=lambda tenant: tenant)
    async def work(tenant: str) -> None:
        await asyncio.sleep(0)
        ran[tenant] += 1
        if ran["big"] == 100:
            is_under_way.set()
        if tenant == "small":
            seen_before.append(ran["big"])
            is_done.set()

    async with flow:
        await work.submit_many(work.call("big") for _ in range(3_000))
        async with flow.worker(concurrency=10, drain=5), asyncio.timeout(30):
            await is_under_way.wait()
            await work.submit("small")
            submitted_at = ran["big"]
            await is_done.wait()

    # What was in hand already: ten that ran, ten claimed ahead, a claim under way; not the thousands that wait.
    assert seen_before[0] - submitted_at <= 60, (submitted_at, seen_before)
    assert seen_before[0] < 3_000
