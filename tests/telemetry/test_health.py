"""A probe gets an honest answer, in words, without asking the broker."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from taskflow.core import events
from taskflow.telemetry.bus import Bus
from taskflow.telemetry.health import BEAT_S, DEAD_S, REMEMBER_S, Health
from taskflow.testing import VirtualClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

WORKER = events.WorkerStarted("w1", ("mail",), 100, ("send",))


class Watched:
    """Health on a clock that the test moves, and what it told."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.lags: list[float] = []
        self.stalls: list[float] = []
        self.bus = Bus()
        self.health = Health(self.clock, observe_lag=self.lags.append)
        self.health.subscribe(self.bus)
        self.bus.subscribe(lambda event: self.stalls.append(event.stalled_s), events.LoopStalled)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Watched]:
        task = asyncio.create_task(self.health.run())
        await self.clock.advance(0)
        yield self
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def stall(self, seconds: float) -> None:
        """Time passes, and the loop does not come to its timers."""
        self.block(seconds)
        await self.clock.advance(0)

    def block(self, seconds: float) -> None:
        self.clock._now += seconds


@pytest.fixture
def watched() -> Watched:
    return Watched()


@pytest.mark.anyio
async def test_a_loop_that_runs_is_live_and_never_late(watched: Watched) -> None:
    async with watched.running():
        await watched.clock.advance(60.0)

        assert watched.health.live() == (True, "the event loop runs")
    assert len(watched.lags) == 60 / BEAT_S
    assert max(watched.lags) == pytest.approx(0.0)
    assert watched.stalls == []


@pytest.mark.anyio
async def test_a_small_delay_is_measured_and_not_announced(watched: Watched) -> None:
    async with watched.running():
        await watched.stall(BEAT_S + 0.8)

        assert watched.health.live().ok
    assert watched.lags == [pytest.approx(0.8)]
    assert watched.stalls == []


@pytest.mark.anyio
async def test_a_stall_of_a_second_is_announced(watched: Watched) -> None:
    async with watched.running():
        await watched.stall(BEAT_S + 1.5)

        assert watched.health.live().ok
    assert watched.stalls == [pytest.approx(1.5)]


@pytest.mark.anyio
async def test_it_is_not_live_while_the_loop_stands_still(watched: Watched) -> None:
    async with watched.running():
        watched.block(DEAD_S + 1.0)  # asked from another thread: nothing in the loop can answer

        assert watched.health.live() == (False, "the event loop has stood still for 6.0 s")


@pytest.mark.anyio
async def test_the_probe_that_comes_right_after_a_long_stall_hears_of_it(watched: Watched) -> None:
    async with watched.running():
        await watched.stall(DEAD_S + 2.0)
        after = watched.health.live()
        await watched.clock.advance(REMEMBER_S + 1.0)

        assert after == (False, "the event loop stood still for 7.0 s, 0.0 s ago")
        assert watched.health.live().ok
    assert len(watched.stalls) == 1


@pytest.mark.anyio
async def test_nobody_looking_is_no_stall(watched: Watched) -> None:
    before = watched.health.live().ok
    async with watched.running():
        pass
    watched.block(3600.0)

    assert (before, watched.health.live().ok) == (True, True)


def reasons(watched: Watched, *happened: events.Event) -> tuple[str, ...]:
    for event in happened:
        watched.bus.emit(event)
    ready = watched.health.ready()
    assert ready.ok is not bool(ready.reasons)
    return ready.reasons


def test_a_worker_is_ready_between_its_start_and_its_drain(watched: Watched) -> None:
    assert reasons(watched) == ("the worker has not started yet",)
    assert reasons(watched, WORKER) == ()
    assert reasons(watched, events.WorkerDraining("w1", 3, 25.0)) == ("the worker is draining: it takes no more jobs",)
    assert reasons(watched, events.WorkerStopped("w1", 0)) == ("the worker has stopped",)


def test_one_of_two_workers_in_a_process_is_enough(watched: Watched) -> None:
    second = events.WorkerStarted("w2", ("mail",), 100, ("send",))

    assert reasons(watched, WORKER, second, events.WorkerDraining("w1", 0, 25.0)) == ()
    assert reasons(watched, events.WorkerStopped("w1", 0)) == ()


def test_it_is_not_ready_while_the_broker_is_down(watched: Watched) -> None:
    down = reasons(watched, WORKER, events.BrokerFailed("claim", "timeout", "redis://app:hunter2@db", 0.5))

    assert down == ("the broker does not answer (claim: timeout)",)
    assert reasons(watched, events.BrokerRecovered("claim", 4.0)) == ()


def test_a_broker_that_answers_reads_and_refuses_writes_is_down(watched: Watched) -> None:
    full = events.BrokerFailed("settle", "full", "no space left", 0.5)

    assert reasons(watched, WORKER, full, events.BrokerAnswered("counts", 0.01)) == (
        "the broker does not answer (settle: full)",
    )
    assert reasons(watched, events.BrokerAnswered("settle", 0.01)) == ()


def test_a_claim_that_works_ends_an_outage(watched: Watched) -> None:
    outage = [events.BrokerFailed(name, "connection", "", 0.5) for name in ("gate", "leave", "claim")]

    assert reasons(watched, WORKER, *outage, events.BrokerAnswered("claim", 0.01)) == ()


def test_one_refused_settlement_is_no_outage(watched: Watched) -> None:
    assert reasons(watched, WORKER, events.BrokerFailed("settle", "refused", "one job", 0.0)) == ()


def test_it_is_not_ready_while_claims_are_paused(watched: Watched) -> None:
    watched.health.is_paused = lambda: True

    assert reasons(watched, WORKER) == ("claiming is paused",)


def test_all_reasons_are_told_and_none_tells_a_secret(watched: Watched) -> None:
    watched.health.is_paused = lambda: True
    told = reasons(watched, events.BrokerFailed("claim", "timeout", "redis://app:hunter2@db", 0.5))

    assert len(told) == 3
    assert "hunter2" not in str(told)
