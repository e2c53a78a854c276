"""What is special about the memory broker: its maps and lines are as large as what is in use, and it is cheap."""

from __future__ import annotations

import asyncio

import pytest

from taskflow.brokers.memory import MemoryBroker
from taskflow.core import gate as gating
from taskflow.core.decision import Complete
from taskflow.core.job import JobState

from .words import LONG_S, NOTHING_KEPT, ask, claim, job, reclaim, settle_all, submit

pytestmark = pytest.mark.anyio

MANY = 500


async def test_lane_is_forgotten_when_its_last_job_was_claimed() -> None:
    broker = MemoryBroker()
    await submit(broker, *(job(lane=str(number), gates=(f"http/{number}",)) for number in range(MANY)))

    while await claim(broker, limit=MANY, gated=MANY):
        pass

    assert broker._store.queue("q").lanes == {}
    assert not any(broker._store.queue("q").open)


async def test_idle_gates_and_workers_are_forgotten() -> None:
    broker = MemoryBroker()
    await submit(broker, *(job(gates=(f"http/{number}",)) for number in range(MANY)))
    for number in range(10):
        await settle_all(broker, await claim(broker, f"w{number}", limit=50), Complete())
        await broker.leave(f"w{number}")

    for _ in range(3):  # keys first, then their family
        await reclaim(broker, retention=NOTHING_KEPT)

    assert await broker.gates() == []
    assert broker._store.workers == {}
    assert broker._store.rows == {}


async def test_jobs_that_were_purged_are_let_go_and_hold_up_nobody_else() -> None:
    broker = MemoryBroker()
    await submit(broker, *(job(task="gone") for _ in range(MANY)), job(task="kept"))
    await settle_all(broker, await claim(broker, limit=MANY + 1), Complete(b"1"))

    purged = await broker.purge(state=JobState.SUCCEEDED, task="gone")

    assert purged == MANY
    assert max(len(broker._store.results), len(broker._store.finished)) <= 2 + 64
    await reclaim(broker, retention=NOTHING_KEPT)
    assert broker._store.rows == {}
    assert not broker._store.results
    assert not broker._store.finished


async def test_gates_are_looked_at_in_turn() -> None:
    """However many gates must be kept, upkeep comes to the idle ones behind them."""
    broker = MemoryBroker()
    for number in range(20):
        await broker.gate(f"kept{number}", gating.Declare(limit=1))
    await broker.gate("idle", gating.Release())

    for _ in range(3):
        await reclaim(broker, retention=NOTHING_KEPT._replace(rows=10))

    assert "idle" not in {gate.name for gate in await broker.gates()}
    assert len(await broker.gates()) == 20


@pytest.mark.parametrize("delay_s", [0.0, LONG_S])
async def test_jobs_cancelled_in_the_middle_of_a_line_are_let_go(delay_s: float) -> None:
    broker = MemoryBroker()
    jobs = [job(delay_s=delay_s) for _ in range(MANY)]
    await submit(broker, *jobs)

    await broker.cancel([one.id for one in jobs[5:]])
    await reclaim(broker, retention=NOTHING_KEPT)

    queue = broker._store.queue("q")
    in_lines = sum(len(line) for lane in queue.lanes.values() for line in lane.lines.values())
    assert 5 <= in_lines + len(queue.scheduled) <= 5 + 65
    assert len(broker._store.expiries) == 5


async def test_waiters_leave_nothing_behind() -> None:
    broker = MemoryBroker()
    one = job(queue="other")
    await submit(broker, one)
    patient = [asyncio.create_task(broker.wait(ask(), 0.01)) for _ in range(MANY)]
    patient += [asyncio.create_task(broker.finals([one.id], 0.01)) for _ in range(MANY)]

    await asyncio.gather(*patient)

    assert not broker._store.awaited
    assert broker._store.queue("q").waiters == {}
