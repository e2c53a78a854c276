"""What is promised of deadlines: a job that waits too long expires, and says why; one that runs does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from taskflow.brokers.base import Accepted
from taskflow.core import gate as gating
from taskflow.core.decision import Retry
from taskflow.core.job import JobState
from tests.brokers.words import (
    BOOM,
    LONG_S,
    claim,
    claim_one,
    eventually,
    job,
    reclaim,
    settle,
    shown,
    state,
    submit,
    through,
)

if TYPE_CHECKING:
    from taskflow.brokers.base import FullBroker

pytestmark = pytest.mark.anyio


async def test_waiting_job_expires(broker: FullBroker) -> None:
    ready = job(expires_s=0.05, expire_reason="deadline", key="ada")
    scheduled = job(expires_s=0.05, expire_reason="max_wait", delay_s=0.05)
    await submit(broker, ready, scheduled)
    moved = {}

    async def both() -> bool:
        moved.update({one.job_id: one for one in await reclaim(broker)})
        return len(moved) == 2

    await eventually(both)

    assert (moved[ready.id].state, moved[ready.id].reason) == (JobState.EXPIRED, "deadline")
    assert (moved[scheduled.id].state, moved[scheduled.id].reason) == (JobState.EXPIRED, "max_wait")
    assert (await shown(broker, ready.id)).reason == "deadline"
    assert await claim(broker) == []
    assert (await submit(broker, job(key="ada")))[0].accepted is Accepted.NEW


async def test_expiry_counts_from_when_the_job_was_first_due(broker: FullBroker) -> None:
    one = job(delay_s=LONG_S, expires_s=0.0)
    await submit(broker, one)

    assert await reclaim(broker) == []
    info = await shown(broker, one.id)
    assert info.expires_at == pytest.approx(info.due_at, abs=1e-3)


async def test_running_job_does_not_expire_and_expires_when_it_waits_again(broker: FullBroker) -> None:
    one, other = job(expires_s=0.05), job(expires_s=0.1, queue="other")
    await submit(broker, one, other)
    running = await claim_one(broker)
    moved = await eventually(lambda: reclaim(broker))
    while other.id not in {found.job_id for found in moved}:
        moved += await eventually(lambda: reclaim(broker))

    while_running = await state(broker, one.id)
    await settle(broker, running, Retry(LONG_S, BOOM))

    assert while_running is JobState.RUNNING
    assert [found.job_id for found in await eventually(lambda: reclaim(broker))] == [one.id]
    assert await state(broker, one.id) is JobState.EXPIRED


async def test_job_behind_a_held_gate_expires(broker: FullBroker) -> None:
    await broker.gate("smtp", gating.Hold(LONG_S))
    await submit(broker, *through("smtp", expires_s=0.02))
    await claim(broker)

    (moved,) = await eventually(lambda: reclaim(broker))

    assert moved.state is JobState.EXPIRED
