"""A worker's life: it runs what it may, keeps its capacity, drains, and hands back what it cannot finish."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from taskflow import Bulkhead, ConfigError, Retry, TaskFlow, current_job
from taskflow.brokers.base import ClaimRequest, JobInfo
from taskflow.brokers.memory import MemoryBroker
from taskflow.clock import LoopClock
from taskflow.core import events
from taskflow.core.decision import Release
from taskflow.errors import BrokerUnavailable
from taskflow.runtime.worker import END_S
from taskflow.testing import Faults, TestFlow, all_blocked
from tests.runtime.fleet import Fleet
from tests.runtime.made import heard, make_flow, put

if TYPE_CHECKING:
    from collections.abc import Callable

    from taskflow.core.job import Claim

pytestmark = pytest.mark.anyio


async def info(broker: Any, job_id: str) -> JobInfo:
    found = await broker.show(job_id)
    assert found is not None
    return found  # type: ignore[no-any-return]


class Gauge:
    """How many are inside at once, and at most."""

    def __init__(self) -> None:
        self.now = self.most = 0

    async def __aenter__(self) -> None:
        self.now += 1
        self.most = max(self.most, self.now)

    async def __aexit__(self, *_exc: object) -> None:
        self.now -= 1


# --- capacity ----------------------------------------------------------


def deaf(release: asyncio.Event) -> Callable[[TaskFlow], None]:
    """A task whose handler heeds no cancellation until it is let go."""

    def register(flow: TaskFlow) -> None:
        @flow.task(name="task")
        async def work() -> None:
            while not release.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await release.wait()

    return register


async def test_as_many_jobs_run_at_once_as_there_are_slots_and_no_more() -> None:
    flow, gauge = make_flow(), Gauge()

    @flow.task
    async def work() -> None:
        async with gauge:
            await flow.clock.sleep(1)

    async with TestFlow(flow, concurrency=7) as t:
        await work.submit_many([work.call() for _ in range(50)])
        await t.advance(20)
        counts = await t.broker.counts()

    assert gauge.most == 7
    assert counts[0].ready + counts[0].running == 0


async def cancel_me() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)


async def leak_a_cancellation() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(0)


_VARIABLE = contextvars.ContextVar("variable", default="clean")


async def leave_a_variable() -> None:
    _VARIABLE.set("dirty")


async def exit_the_program() -> None:
    raise SystemExit(1)


async def raise_no_exception() -> None:
    raise BaseExceptionGroup("both", [asyncio.CancelledError()])


@pytest.mark.parametrize(
    "harm", [cancel_me, leak_a_cancellation, leave_a_variable, exit_the_program, raise_no_exception]
)
async def test_no_handler_costs_a_slot_for_good(harm: Any) -> None:
    flow, gauge = make_flow(), Gauge()
    seen: set[str] = set()

    @flow.task(retry=Retry(attempts=1))
    async def harmful() -> None:
        await harm()

    @flow.task
    async def work() -> None:
        seen.add(_VARIABLE.get())
        async with gauge:
            await flow.clock.sleep(1)

    async with TestFlow(flow, concurrency=3) as t:
        for _ in range(4):
            await harmful.submit_many([harmful.call() for _ in range(10)])
            await t.run_until_idle()
        await work.submit_many([work.call() for _ in range(9)])
        await t.advance(4)
        counts = await t.broker.counts()
        worker = t.running.worker

        assert worker._slots.busy == 0
        assert not worker._slots._waking
    assert gauge.most == 3
    assert counts[0].ready + counts[0].running == 0
    assert seen == {"clean"}


async def test_a_slot_that_is_cancelled_as_it_is_woken_does_not_leave_the_others_asleep() -> None:
    flow = make_flow()
    loop = asyncio.get_running_loop()
    is_armed = False

    @flow.task
    async def work(number: int) -> int:
        return number

    def cancel_slots(_event: object) -> None:
        for task in asyncio.all_tasks() if is_armed else ():
            if "slot" in task.get_name():
                loop.call_soon(task.cancel)

    flow.listen(cancel_slots, events.BatchClaimed)
    async with TestFlow(flow, concurrency=3) as t:
        await work.submit_many([work.call(number) for number in range(3)])
        await t.run_until_idle()
        is_armed = True
        jobs = await work.submit_many([work.call(number) for number in range(3)])
        await all_blocked()
        is_armed = False
        await t.advance(1)

        assert [await job.result(0) for job in jobs] == [0, 1, 2]


async def test_a_job_sees_nothing_of_the_context_in_which_another_was_claimed_or_woken() -> None:
    flow = make_flow()
    variable = contextvars.ContextVar("who", default="nobody")
    seen: list[str] = []

    @flow.task
    async def work(number: int) -> None:
        seen.append(variable.get())
        variable.set(f"job {number}")
        await asyncio.sleep(0)

    async with TestFlow(flow, concurrency=5) as t:
        variable.set("the submitter")
        await work.submit_many([work.call(number) for number in range(30)])
        await t.run_until_idle()

    assert seen == ["nobody"] * 30


# --- what is claimed ----------------------------------------------------


async def test_jobs_ahead_of_need_go_back_after_a_second_unstarted_and_keep_their_place() -> None:
    flow = make_flow()
    started: list[int] = []

    @flow.task
    async def quick(number: int) -> None:
        started.append(number)

    @flow.task
    async def slow() -> None:
        await flow.clock.sleep(60)

    async with TestFlow(flow, concurrency=2) as t:
        await quick.submit_many([quick.call(0) for _ in range(100)])  # the worker learns that it is fast
        await t.advance(0.3)
        started.clear()
        await slow.submit_many([slow.call() for _ in range(2)])
        jobs = await quick.submit_many([quick.call(number) for number in range(1, 6)])
        await all_blocked()
        early = [str(await job.status()) for job in jobs]
        await t.advance(2)
        late = [str(await job.status()) for job in jobs]
        await t.advance(70)
        spent = [(await info(t.broker, job.id)) for job in jobs]

    assert "running" in early  # claimed ahead of need
    assert late == ["ready"] * 5
    assert started == [1, 2, 3, 4, 5]
    assert {(job.attempts, job.lost, job.snoozes) for job in spent} == {(1, 0, 0)}


async def test_a_job_with_a_gate_is_claimed_only_when_it_can_start() -> None:
    flow = make_flow()

    @flow.task
    async def quick() -> None: ...

    @flow.task
    async def slow() -> None:
        await flow.clock.sleep(60)

    @flow.task(bulkhead=Bulkhead("db", 10))
    async def gated() -> None:
        await flow.clock.sleep(1)

    async with TestFlow(flow, concurrency=2) as t:
        await quick.submit_many([quick.call() for _ in range(100)])
        await t.advance(0.3)
        await slow.submit_many([slow.call() for _ in range(2)])
        await all_blocked()
        jobs = await gated.submit_many([gated.call() for _ in range(5)])
        await t.advance(30)
        live = {gate.name: gate.live for gate in await t.broker.gates()}
        states = {await job.status() for job in jobs}
        await t.advance(60)
        done = {await job.status() for job in jobs}

    assert live == {"db": 0}
    assert states == {"ready"}
    assert done == {"succeeded"}


async def test_what_has_a_place_at_a_gate_does_not_wait_behind_what_was_claimed_ahead_of_need() -> None:
    flow = make_flow()
    order: list[str] = []

    @flow.task
    async def quick() -> None: ...

    @flow.task(priority=9)
    async def plain() -> None:
        order.append("plain")
        await flow.clock.sleep(10)

    @flow.task(bulkhead=Bulkhead("db", 10))
    async def gated() -> None:
        order.append("gated")

    async with TestFlow(flow, concurrency=2) as t:
        await quick.submit_many([quick.call() for _ in range(100)])
        await t.advance(0.3)
        await t.broker.pause("default")
        await plain.submit_many([plain.call() for _ in range(3)])
        await gated.submit()
        await t.broker.resume("default")
        await all_blocked()
        gates = {gate.name: gate.live for gate in await t.broker.gates()}

    assert order[0] == "gated"
    assert gates == {"db": 0}


async def test_a_slot_that_becomes_free_is_filled_before_the_broker_knows_what_became_of_its_last_job() -> None:
    flow = make_flow()
    started_at: list[float] = []

    @flow.task(bulkhead=Bulkhead("db", 10))
    async def gated() -> None:  # never claimed ahead of need
        started_at.append(flow.clock.now())
        await flow.clock.sleep(0.1)

    async with TestFlow(flow, concurrency=1) as t:
        t.faults.cut("settle")
        await gated.submit_many([gated.call() for _ in range(4)])
        await t.advance(1)
        t.faults.mend()
        await t.run_until_idle()

    assert [at - started_at[0] for at in started_at] == pytest.approx([0.0, 0.1, 0.2, 0.3])


async def test_jobs_with_gates_that_are_claimed_at_once_start_in_their_order() -> None:
    flow = make_flow()
    order: list[int] = []

    @flow.task(bulkhead=Bulkhead("db", 10))
    async def gated(number: int) -> None:
        order.append(number)

    async with TestFlow(flow, concurrency=5) as t:
        await gated.submit_many([gated.call(number) for number in range(5)])
        await t.run_until_idle()

    assert order == [0, 1, 2, 3, 4]


async def test_a_suspect_is_claimed_alone_and_one_at_a_time() -> None:
    gauge = Gauge()

    def register(flow: TaskFlow) -> None:
        @flow.task(name="task")
        async def work() -> None:
            async with gauge:
                await flow.clock.sleep(1)

    fleet = Fleet(register)
    await put(fleet.broker, *"abcdef")
    for _ in range(2):  # lost twice: suspects
        await fleet.broker.claim(ClaimRequest("dies", ("default",), 10, 10, 1, 1.0))
        await fleet.clock.advance(2)
        await _reclaim(fleet)
    await fleet.start(concurrency=10)
    await fleet.clock.advance(20)
    jobs = await fleet.broker.jobs()
    await fleet.stop()

    assert gauge.most == 1
    assert {(job.state, job.lost) for job in jobs} == {("succeeded", 2)}


async def _reclaim(fleet: Fleet) -> None:
    from taskflow.brokers.base import Retention

    await fleet.broker.reclaim(max_lost=3, retention=Retention())


async def test_an_idle_worker_asks_the_broker_seldom() -> None:
    flow = make_flow()

    @flow.task
    async def work() -> None: ...

    claims = heard(flow, events.BrokerAnswered)
    async with flow.test() as t:
        await t.advance(60)

    assert sum(event.operation == "claim" for event in claims) <= 5


async def test_a_new_job_starts_at_once_not_at_the_next_look() -> None:
    flow = make_flow()
    started_at: list[float] = []

    @flow.task
    async def work() -> None:
        started_at.append(flow.clock.now())

    async with flow.test() as t:
        await t.advance(17)
        await work.submit()
        await all_blocked()

    assert started_at == [17]


async def test_a_broker_that_cries_wolf_is_not_asked_in_a_spin() -> None:
    class Wolf(Faults):
        claims = 0

        async def wait(self, _request: ClaimRequest, _timeout_s: float) -> None:
            return

        async def claim(self, request: ClaimRequest) -> list[Claim]:
            self.claims += 1
            return await self._broker.claim(request)

    flow = make_flow()

    @flow.task
    async def work() -> None: ...

    async with flow.test() as t:
        wolf = Wolf(t.broker)
        t.running.worker._claimer._broker = wolf  # type: ignore[assignment]
        await work.submit()
        await t.advance(10)

    assert wolf.claims <= 10 / 0.05 + 50


async def test_a_paused_worker_takes_nothing_new_and_finishes_what_it_has() -> None:
    flow = make_flow()

    @flow.task
    async def work() -> None:
        await flow.clock.sleep(1)

    async with flow.test() as t:
        first = await work.submit()
        await all_blocked()
        t.running.worker.pause()
        second = await work.submit()
        await t.advance(60)

        assert await first.status() == "succeeded"
        assert await second.status() == "ready"
        assert t.running.worker.is_paused
        assert not t.running.worker.is_draining


async def test_a_worker_tells_the_broker_what_it_is_about_until_it_has_ended() -> None:
    flow, beat_s = make_flow(), 10 / 3 + 0.1

    @flow.task(queue="mail")
    async def work() -> None:
        await flow.clock.sleep(60)

    async def told() -> tuple[str, int]:
        await t.advance(beat_s)
        (info,) = await memory.workers()
        assert (info.worker, info.is_silent) == (worker.name, False)
        assert (info.said.pid, info.said.host) == (os.getpid(), socket.gethostname())
        assert (info.said.queues, info.said.concurrency) == ({"mail": 1}, 5)
        return info.said.state, info.said.busy

    async with TestFlow(flow, concurrency=5) as t:
        memory, worker = flow.broker, t.running.worker
        idle = await told()
        await work.submit_many([work.call(), work.call()])
        busy = await told()
        worker.pause()
        paused = await told()
        t.running._drain = 60.0
        stopping = asyncio.create_task(t.running.stop())
        draining = await told()
        await t.advance(60)
        await stopping

        assert [idle, busy, paused, draining] == [("claiming", 0), ("claiming", 2), ("paused", 2), ("draining", 2)]
        assert await memory.workers() == []


# --- cancel -------------------------------------------------------------


async def test_a_cancelled_job_that_runs_is_stopped_within_a_beat() -> None:
    flow = make_flow(worker={"lease_s": 9})

    @flow.task
    async def work() -> None:
        await flow.clock.sleep(100)

    async with flow.test() as t:
        job = await work.submit()
        await all_blocked()
        asked = await job.cancel()
        await t.advance(3.1)

        assert asked
        assert await job.status() == "cancelled"
        assert (await info(t.broker, job.id)).attempts == 0
        assert not await job.cancel()


async def test_a_cancelled_job_that_finishes_anyway_has_succeeded() -> None:
    flow = make_flow()

    @flow.task
    async def work() -> str:
        try:
            await flow.clock.sleep(100)
        except asyncio.CancelledError:
            return "finished"
        return "slept"

    async with flow.test() as t:
        job = await work.submit()
        await all_blocked()
        await job.cancel()
        await t.advance(5)

        assert await job.result(0) == "finished"


async def test_a_job_that_is_cancelled_while_it_waits_here_never_starts() -> None:
    flow = make_flow()
    started: list[str] = []

    @flow.task
    async def quick() -> None: ...

    @flow.task
    async def slow() -> None:
        await flow.clock.sleep(0.9)

    @flow.task
    async def work() -> None:
        started.append("work")

    async with TestFlow(flow, concurrency=1) as t:
        t.running.worker._leases._lease_s = 0.3
        await quick.submit_many([quick.call() for _ in range(100)])
        await t.advance(4)  # the next beats come every tenth of a second
        await quick.submit_many([quick.call() for _ in range(100)])
        await t.advance(0.3)
        await slow.submit()
        job = await work.submit()
        await all_blocked()
        claimed = await job.status()
        await job.cancel()
        await t.advance(0.5)
        state = await job.status()
        await t.advance(5)

    assert claimed == "running"  # claimed ahead of need
    assert state == "cancelled"
    assert started == []


# --- leases -------------------------------------------------------------


async def test_a_lost_job_is_stopped_and_what_it_says_then_counts_for_nothing() -> None:
    flow = make_flow()
    ends: list[str] = []

    @flow.task
    async def work() -> str:
        try:
            await flow.clock.sleep(100)
        except asyncio.CancelledError:
            ends.append("stopped")
        return "late"

    lost, stale = heard(flow, events.LeaseLost), heard(flow, events.SettlementStale)
    async with flow.test() as t:
        await t.advance(5)  # only now is this worker a judge of who is dead
        job = await work.submit()
        await all_blocked()
        t.running.worker.pause()
        await t.broker.leave(t.running.worker.name)  # somebody thinks that it is dead
        await t.advance(1.5)
        theirs = await t.broker.claim(ClaimRequest("other", ("default",), 1, 1, 1, 100.0))
        await t.advance(5)

        assert [claim.job_id for claim in theirs] == [job.id]
        assert ends == ["stopped"]
        assert await job.status() == "running"
        assert [event.job_ids for event in lost] == [(job.id,)]
        assert [event.job_id for event in stale] == [job.id]


async def test_a_handler_that_goes_on_half_a_minute_past_its_timeout_is_given_up_on() -> None:
    flow = make_flow()
    is_over = False

    @flow.task(timeout=10)
    async def deaf() -> None:
        while not is_over:
            with contextlib.suppress(asyncio.CancelledError):
                await flow.clock.sleep(1_000)

    async with flow.test() as t:
        job = await deaf.submit()
        await t.advance(39)
        before = await t.broker.show(job.id)
        await t.advance(20)
        after = await t.broker.show(job.id)

        assert before is not None
        assert before.lost == 0
        assert after is not None
        assert after.lost == 1
        is_over = True  # for this run, and for the next one of the job, which has begun meanwhile
        await t.advance(1_000)


async def test_the_next_claim_of_a_job_whose_old_handler_goes_on_here_is_a_job_of_its_own() -> None:
    flow = make_flow()
    runs: list[int] = []

    @flow.task
    async def work() -> int:
        runs.append(len(runs))
        mine = runs[-1]
        try:
            await flow.clock.sleep(20)
        except asyncio.CancelledError:
            await flow.clock.sleep(8)
        return mine

    async with flow.test() as t:
        await t.advance(5)  # only now is this worker a judge of who is dead
        job = await work.submit()
        await all_blocked()
        await t.broker.leave(t.running.worker.name)
        await t.advance(9)
        both = t.running.worker.in_flight
        await t.advance(30)

        assert both == 2
        assert await job.result(0) == 1
        assert t.running.worker.in_flight == 0
        assert t.running.worker.is_idle


async def test_a_worker_that_cannot_beat_stops_its_jobs_spends_no_attempt_and_goes_on_when_it_can() -> None:
    flow = make_flow()
    runs: list[float] = []

    @flow.task(retry=Retry(attempts=1))
    async def work() -> str:
        runs.append(flow.clock.now())
        await flow.clock.sleep(30)
        return "done"

    lost = heard(flow, events.LeaseLost)
    async with flow.test() as t:
        job = await work.submit()
        await all_blocked()
        t.faults.cut("beat")
        await t.advance(10)
        in_flight = t.running.worker.in_flight
        new = await work.submit()
        await t.advance(60)
        untouched = await new.status()
        t.faults.mend()
        await t.advance(40)

        assert in_flight == 0
        assert len(lost) == 1
        assert untouched == "ready"  # no trust, no claims
        assert await job.result(0) == await new.result(0) == "done"
        assert (await info(t.broker, job.id)).attempts == 1
        assert (await info(t.broker, job.id)).lost == 0


async def test_a_worker_that_stood_still_past_its_lease_starts_nothing_of_what_it_held() -> None:
    flow = make_flow()
    release = asyncio.Event()
    runs: list[int] = []

    @flow.task
    async def work(number: int) -> None:
        runs.append(number)
        await release.wait()

    async with TestFlow(flow, concurrency=1) as t:
        await work.submit(1)
        await all_blocked()
        second = await work.submit(2)
        worker = t.running.worker
        request = ClaimRequest(worker.name, ("default",), 1, 1, 0, 10.0)
        worker._claimer._take_in(await t.broker.claim(request))  # claimed ahead
        t.clock._now += 11  # SIGSTOP, a suspended machine: no timer has fired yet
        release.set()
        await all_blocked()
        assert runs == [1]

        await t.advance(30)

        assert runs == [1, 2]
        assert (await info(t.broker, second.id)).lost == 0


async def test_a_handler_that_goes_on_although_its_worker_lost_trust_does_not_keep_its_job_from_others() -> None:
    release = asyncio.Event()
    runs: list[int] = []

    def register(flow: TaskFlow) -> None:
        @flow.task(name="task")
        async def work() -> None:
            runs.append(len(runs))
            while runs[-1] == 0 and not release.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await release.wait()

    fleet = Fleet(register, worker={"lease_s": 9})
    member = await fleet.start(concurrency=1)
    lost = heard(member.flow, events.LeaseLost)
    await put(fleet.broker, "a")
    await all_blocked()
    await fleet.start(concurrency=1)

    member.faults.cut("beat")
    await fleet.clock.advance(8.6)  # no trust any more, but the lease has not ended yet
    member.faults.mend()
    await fleet.clock.advance(10)
    job = await info(fleet.broker, "a")

    assert (job.state, job.lost) == ("succeeded", 1)
    assert runs == [0, 1]
    assert len(lost) == 1
    release.set()
    await all_blocked()
    await fleet.stop()


async def test_a_loop_that_stood_still_for_longer_than_a_lease_loses_no_job_of_its_own() -> None:
    flow = TaskFlow(settings=make_flow(worker={"lease_s": 0.3}).settings, broker=None, clock=LoopClock())

    @flow.task
    async def blocks() -> None:
        time.sleep(0.7)  # noqa: ASYNC251 - what it must not do

    @flow.task
    async def waits() -> str:
        await asyncio.sleep(1.0)
        return "done"

    redelivered, lost = heard(flow, events.JobRedelivered), heard(flow, events.LeaseLost)
    async with flow.worker(concurrency=5):
        jobs = await waits.submit_many([waits.call() for _ in range(3)])
        blocking = await blocks.submit()
        await blocking.result(10)
        results = [await job.result(10) for job in jobs]

    assert results == ["done"] * 3
    assert redelivered == []
    assert lost == []


# --- drain --------------------------------------------------------------


async def test_a_drain_lets_what_runs_end_and_takes_nothing_new() -> None:
    def register(flow: TaskFlow) -> None:
        @flow.task(name="task")
        async def work() -> None:
            await flow.clock.sleep(20)

    fleet = Fleet(register)
    member = await fleet.start(concurrency=2, drain=25)
    await put(fleet.broker, "a", "b", "c")
    await fleet.clock.advance(1)

    await member.stop()

    states = await fleet.broker.states(["a", "b", "c"])
    assert states == {"a": "succeeded", "b": "succeeded", "c": "ready"}
    assert member.running.stopped is not None
    assert member.running.stopped.handed_back == 0
    assert fleet.clock.now() < 25


async def test_long_jobs_are_handed_back_after_the_drain_without_an_attempt_or_a_loss() -> None:
    def register(flow: TaskFlow) -> None:
        @flow.task(name="task", retry=Retry(attempts=1))
        async def work() -> None:
            try:
                await flow.clock.sleep(100)
            finally:
                raise ConnectionError("closed under our feet")

    fleet = Fleet(register)
    member = await fleet.start(concurrency=5, drain=25)
    await put(fleet.broker, "a", "b", "c")
    await fleet.clock.advance(1)

    await member.stop()

    assert member.running.stopped is not None
    assert (member.running.stopped.handed_back, member.running.stopped.unsettled) == (3, 0)
    for job_id in "abc":
        job = await info(fleet.broker, job_id)
        assert (job.state, job.attempts, job.lost, job.snoozes) == ("ready", 0, 0, 0)


async def test_beats_go_on_until_the_last_draining_job_has_ended() -> None:
    def register(flow: TaskFlow) -> None:
        @flow.task(name="task")
        async def work() -> None:
            await flow.clock.sleep(50)

    fleet = Fleet(register, worker={"lease_s": 5})
    member = await fleet.start(concurrency=1, drain=100)
    await put(fleet.broker, "a")
    await all_blocked()
    other = await fleet.start(concurrency=1)  # it would take the job, if it could

    await member.stop()

    job = await info(fleet.broker, "a")
    assert (job.state, job.attempts, job.lost) == ("succeeded", 1, 0)
    await fleet.stop()
    assert other.running.stopped is not None


@pytest.mark.parametrize("how", ["task", "scope"])
async def test_a_worker_whose_surroundings_are_cancelled_drains_all_the_same(how: str) -> None:
    def register(flow: TaskFlow) -> None:
        @flow.task(name="task")
        async def work() -> None:
            await flow.clock.sleep(10)

    fleet = Fleet(register)
    flow = fleet.make_flow(fleet.broker)
    scopes: list[anyio.CancelScope] = []
    ended: list[str] = []

    @flow.lifespan
    async def resources() -> Any:
        yield
        ended.append("lifespan")

    async def surroundings() -> None:
        with anyio.CancelScope() as scope:
            scopes.append(scope)
            async with flow.worker(drain=25):
                await asyncio.get_running_loop().create_future()

    task = asyncio.create_task(surroundings())
    await put(fleet.broker, "a")
    await fleet.clock.advance(1)

    task.cancel() if how == "task" else scopes[0].cancel()
    await fleet.drive(task)

    assert task.cancelled() == (how == "task")
    assert await fleet.broker.states(["a"]) == {"a": "succeeded"}
    assert ended == ["lifespan"]
    assert not flow.is_open


@pytest.mark.parametrize("how", ["task", "signal"])
async def test_whoever_asks_twice_gets_a_quick_end_and_the_jobs_are_handed_back(how: str) -> None:
    def register(flow: TaskFlow) -> None:
        @flow.task(name="task")
        async def work() -> None:
            await flow.clock.sleep(100)

    fleet = Fleet(register)
    member = await fleet.start(concurrency=5, drain=50)
    await put(fleet.broker, "a")
    await fleet.clock.advance(1)

    member._end.set()
    await fleet.clock.advance(1)
    member.task.cancel() if how == "task" else member.running.worker.cut_off()
    await fleet.clock.advance(1)

    assert member.task.done()
    assert member.task.cancelled() == (how == "task")
    assert member.running.stopped is not None
    assert member.running.stopped.handed_back == 1
    job = await info(fleet.broker, "a")
    assert (job.state, job.attempts, job.lost) == ("ready", 0, 0)


async def test_after_a_second_signal_even_a_handler_that_does_not_stop_is_not_waited_for() -> None:
    release = asyncio.Event()
    fleet = Fleet(deaf(release))
    member = await fleet.start(concurrency=1, drain=1_000)
    await put(fleet.broker, "a")
    await all_blocked()

    member._end.set()
    await fleet.clock.advance(1)
    member.running.worker.cut_off()
    await fleet.clock.advance(20)

    assert member.task.done()
    assert await fleet.broker.states(["a"]) == {"a": "ready"}
    release.set()
    await all_blocked()


async def test_a_second_signal_before_the_drain_began_counts_too() -> None:
    def register(flow: TaskFlow) -> None:
        @flow.task(name="task")
        async def work() -> None:
            await flow.clock.sleep(100)

    fleet = Fleet(register)
    member = await fleet.start(concurrency=1, drain=50)
    await put(fleet.broker, "a", "b")
    await all_blocked()

    member.running.worker.cut_off()
    await fleet.clock.advance(1)
    await member.stop()

    assert member.running.stopped is not None
    assert member.running.stopped.handed_back == 1
    assert await fleet.broker.states(["a", "b"]) == {"a": "ready", "b": "ready"}


@pytest.mark.parametrize("is_draining", [False, True])
async def test_the_end_of_the_whole_loop_hands_back_too(is_draining: bool) -> None:
    def register(flow: TaskFlow) -> None:
        @flow.task(name="task")
        async def work() -> None:
            await flow.clock.sleep(100)

    fleet = Fleet(register)
    member = await fleet.start(concurrency=2, drain=25)
    await put(fleet.broker, "a", "b", "c")
    await all_blocked()
    if is_draining:
        member._end.set()
        await fleet.clock.advance(1)

    for task in asyncio.all_tasks():  # as asyncio.run does when its main task has ended
        if "taskflow" in task.get_name():
            task.cancel()
    member.task.cancel()
    await fleet.drive(member.task)

    for job_id in "abc":
        job = await info(fleet.broker, job_id)
        assert (job.state, job.attempts, job.lost) == ("ready", 0, 0)


async def test_a_handler_that_does_not_stop_does_not_hold_up_the_end_and_its_job_is_handed_back() -> None:
    release = asyncio.Event()
    fleet = Fleet(deaf(release))
    member = await fleet.start(concurrency=2, drain=1)
    await put(fleet.broker, "a")
    await all_blocked()

    await member.stop()

    assert fleet.clock.now() < 30
    assert member.running.stopped is not None
    assert member.running.stopped.handed_back == 1
    job = await info(fleet.broker, "a")
    assert (job.state, job.attempts, job.lost) == ("ready", 0, 0)
    release.set()
    await all_blocked()


@pytest.mark.parametrize("is_reachable", [True, False])
@pytest.mark.parametrize("is_in_a_hurry", [True, False])
async def test_the_end_fits_in_the_drain_and_its_few_seconds(is_reachable: bool, is_in_a_hurry: bool) -> None:
    release = asyncio.Event()
    fleet = Fleet(deaf(release))
    member = await fleet.start(concurrency=2, drain=25)
    await put(fleet.broker, "a")
    await all_blocked()
    if not is_reachable:
        member.faults.cut("beat", "claim", "settle", "wait", "leave")
    began = fleet.clock.now()

    member._end.set()
    await fleet.clock.advance(1)
    if is_in_a_hurry:
        member.running.worker.cut_off()
    await fleet.drive(member.task)
    release.set()
    await all_blocked()

    assert fleet.clock.now() - began <= (1 if is_in_a_hurry else 25) + END_S + 0.1
    assert member.running.stopped is not None
    assert (member.running.stopped.handed_back, member.running.stopped.unsettled) == (1, 0 if is_reachable else 1)


async def test_a_cancelled_job_whose_handler_does_not_heed_it_is_handed_back_to_nobody() -> None:
    release = asyncio.Event()
    fleet = Fleet(deaf(release))
    member = await fleet.start(concurrency=2, drain=5)
    stopped = heard(member.flow, events.WorkerStopped)
    await put(fleet.broker, "a", "b")
    await all_blocked()
    await fleet.broker.cancel(["a"])

    await member.stop()
    release.set()
    await all_blocked()

    assert await fleet.broker.states(["a", "b"]) == {"a": "cancelled", "b": "ready"}
    assert member.running.stopped is not None
    assert member.running.stopped.handed_back == 1
    assert [event.handed_back for event in stopped] == [1]


async def test_the_word_of_a_handler_whose_job_was_handed_back_is_not_told_at_all() -> None:
    release = asyncio.Event()
    fleet = Fleet(deaf(release))
    member = await fleet.start(concurrency=2, drain=1)
    settled = heard(member.flow, events.JobSettled)
    await put(fleet.broker, "a")
    await all_blocked()
    member.faults.cut("settle")
    member._end.set()
    await fleet.clock.advance(3.2)  # the drain, and the time to clean up

    release.set()
    await all_blocked()
    member.faults.mend()
    await fleet.drive(member.task)

    assert [(event.decision, event.state) for event in settled] == [(Release(), "ready")]
    assert member.running.stopped is not None
    assert (member.running.stopped.handed_back, member.running.stopped.unsettled) == (1, 0)


async def test_a_claim_that_is_under_way_when_the_drain_begins_is_handed_back_without_a_loss() -> None:
    class SlowLine(Faults):
        """The broker hands over at once; the answer takes a second."""

        async def claim(self, request: ClaimRequest) -> list[Claim]:
            claims: list[Claim] = await self._broker.claim(request)
            if claims:
                await fleet.clock.sleep(1)
            return claims

    def register(flow: TaskFlow) -> None:
        @flow.task(name="task")
        async def work() -> None:
            await flow.clock.sleep(1)

    fleet = Fleet(register)
    flow = fleet.make_flow(SlowLine(fleet.broker))
    running = flow.worker(concurrency=5, drain=10)
    stopping = asyncio.Event()

    async def live() -> None:
        async with running:
            await stopping.wait()

    task = asyncio.create_task(live())
    await all_blocked()
    await put(fleet.broker, "a", "b")
    await fleet.clock.advance(0.5)
    states = await fleet.broker.states(["a", "b"])
    stopping.set()
    await fleet.drive(task)

    assert set(states.values()) == {"running"}
    for job_id in "ab":
        job = await info(fleet.broker, job_id)
        assert (job.state, job.attempts, job.lost) == ("ready", 0, 0)


async def test_settlements_that_the_broker_never_heard_are_reported() -> None:
    def register(flow: TaskFlow) -> None:
        @flow.task(name="task")
        async def work() -> None:
            await flow.clock.sleep(1)

    fleet = Fleet(register)
    member = await fleet.start(concurrency=1, drain=5)
    await put(fleet.broker, "a")
    await all_blocked()
    member.faults.cut("settle", "leave")

    await member.stop()

    assert member.running.stopped is not None
    assert member.running.stopped.unsettled == 1


async def test_stop_is_one_drain_however_many_ask_for_it() -> None:
    flow = make_flow()
    draining = heard(flow, events.WorkerDraining)

    async with flow.worker(drain=0) as running:
        first, second = await asyncio.gather(running.stop(), running.stop())

    assert first is second
    assert len(draining) == 1


async def test_a_job_that_stops_its_own_worker_is_handed_back_and_the_worker_ends() -> None:
    flow = make_flow()
    workers: list[Any] = []

    @flow.task
    async def stop_it() -> None:
        await workers[0].stop()

    async with flow.test() as t:
        workers.append(t.running)
        t.running._drain = 1
        job = await stop_it.submit()
        await t.advance(30)

        assert t.running.stopped is not None
        assert await job.status() == "ready"


# --- start --------------------------------------------------------------


async def test_a_worker_that_cannot_start_leaves_nothing_running_and_nothing_open() -> None:
    def register(flow: TaskFlow) -> None:
        @flow.task(name="task", bulkhead=Bulkhead("db", 1))
        async def work() -> None: ...

    for operation in ("gate", "beat"):
        fleet = Fleet(register)
        faults = Faults(fleet.broker)
        faults.cut(operation)
        flow = fleet.make_flow(faults)
        ended: list[str] = []

        @flow.lifespan
        async def resources(ended: list[str] = ended) -> Any:
            try:
                yield
            finally:
                ended.append("lifespan")

        before = asyncio.all_tasks()
        with pytest.raises(BrokerUnavailable):
            async with flow.worker():
                pytest.fail("it started")

        assert asyncio.all_tasks() == before
        assert not flow.is_open
        assert ended == ["lifespan"]


async def test_a_worker_is_used_once() -> None:
    flow = make_flow()
    running = flow.worker()
    async with running:
        pass

    with pytest.raises(ConfigError, match="makes another"):
        async with running:
            pytest.fail("it ran again")


@pytest.mark.parametrize("concurrency", [0, -1])
async def test_a_worker_without_slots_is_refused(concurrency: int) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        async with make_flow().worker(concurrency=concurrency):
            pytest.fail("it started")


async def test_worker_and_client_in_one_process_and_two_workers_of_one_flow() -> None:
    flow = make_flow()

    @flow.task
    async def double(number: int) -> int:
        return 2 * number

    async with flow, flow.worker(concurrency=2) as one, flow.worker(concurrency=2) as two:
        jobs = await double.submit_many([double.call(number) for number in range(100)])
        results = [await job.result(10) for job in jobs]

        assert one.worker.name != two.worker.name
    assert results == [2 * number for number in range(100)]
    assert not flow.is_open


# --- outages ------------------------------------------------------------


async def test_a_long_outage_is_retried_seldom_and_nothing_is_lost() -> None:
    flow = make_flow()

    @flow.task
    async def work(number: int) -> int:
        await flow.clock.sleep(0.5)
        return number

    failed = heard(flow, events.BrokerFailed)
    async with flow.test() as t:
        jobs = await work.submit_many([work.call(number) for number in range(40)])
        await t.advance(0.7)
        t.faults.cut("claim", "settle", "beat", "reclaim", "counts", "wait")
        await t.advance(600)
        asked = len(failed)
        t.faults.mend()
        await t.advance(60)
        results = [await job.result(0) for job in jobs]

    assert results == list(range(40))
    # claim, settle, reclaim: one in 2.5 s at most; beats: one in 0.8 s.
    assert asked <= 3 * 600 / 2.5 + 600 / 0.8 + 50


async def test_a_job_that_has_ended_is_not_run_again_however_long_the_broker_does_not_hear_of_it() -> None:
    runs: list[float] = []

    def register(flow: TaskFlow) -> None:
        @flow.task(name="task", timeout=5)
        async def work() -> None:
            runs.append(flow.clock.now())

    fleet = Fleet(register)
    member = await fleet.start(concurrency=1)
    member.faults.cut("settle")
    await put(fleet.broker, "a")
    await all_blocked()
    await fleet.start(concurrency=1)
    await fleet.clock.advance(300)
    during = await info(fleet.broker, "a")
    member.faults.mend()
    await fleet.clock.advance(10)
    after = await info(fleet.broker, "a")
    await fleet.stop()

    assert (during.state, during.lost) == ("running", 0)
    assert after.state == "succeeded"
    assert len(runs) == 1


@pytest.mark.parametrize("operation", ["claim", "settle", "beat", "reclaim", "leave", "counts"])
async def test_any_lost_reply_loses_no_job_and_runs_none_twice(operation: str) -> None:
    flow = make_flow()
    runs: list[int] = []

    @flow.task
    async def work(number: int) -> int:
        runs.append(number)
        await flow.clock.sleep(0.5)
        return number

    async with TestFlow(flow, concurrency=3) as t:
        jobs = await work.submit_many([work.call(number) for number in range(12)])
        for _ in range(5):
            t.faults.lose_reply(operation)
            await t.advance(2)
        await t.advance(60)
        results = [await job.result(0) for job in jobs]

    assert results == list(range(12))
    assert sorted(runs) == list(range(12))


async def test_a_loop_of_the_worker_that_breaks_is_announced_and_starts_again() -> None:
    flow = make_flow()

    class Broken(Faults):
        errors = 3

        async def claim(self, request: ClaimRequest) -> list[Claim]:
            if self.errors:
                self.errors -= 1
                raise ZeroDivisionError("no broker translated this")
            return await self._broker.claim(request)

    @flow.task
    async def work() -> str:
        return "done"

    failed = heard(flow, events.BrokerFailed)
    async with flow.test() as t:
        t.running.worker._claimer._broker = Broken(t.broker)  # type: ignore[assignment]
        job = await work.submit()
        await t.advance(5)

        assert await job.result(0) == "done"
    assert [event.operation for event in failed] == ["claim"] * 3
    assert "ZeroDivisionError: no broker translated this" in failed[0].message


async def test_who_listens_for_single_starts_hears_of_each_before_its_handler_has_the_word() -> None:
    flow = make_flow()
    told: list[str] = []
    flow.listen(lambda event: told.append(event.claim.job_id), events.AttemptStarted)
    early: list[bool] = []

    @flow.task
    async def work() -> None:
        early.append(current_job().id in told)

    async with TestFlow(flow, concurrency=3) as t:
        await _all_done(t, await work.submit_many([work.call() for _ in range(10)]))

    assert early == [True] * 10
    assert len(told) == 10


async def test_starts_and_ends_are_told_although_no_broker_answers() -> None:
    flow = make_flow()
    started, ended = heard(flow, events.AttemptsStarted), heard(flow, events.AttemptsEnded)

    @flow.task
    async def work(forever: bool) -> None:
        if forever:
            await asyncio.get_running_loop().create_future()

    async with TestFlow(flow, concurrency=3) as t:
        t.faults.cut("settle")
        first, second, third = [await work.submit(forever) for forever in (False, False, True)]
        await t.advance(1)

        assert {one.claim.job_id for batch in started for one in batch.attempts} == {first.id, second.id, third.id}
        assert [one.claim.job_id for batch in ended for one in batch.attempts] == [first.id, second.id]
        t.faults.mend()


async def test_a_listener_that_raises_never_hurts_a_job(capsys: pytest.CaptureFixture[str]) -> None:
    flow = make_flow()

    def listener(_event: object) -> None:
        raise ZeroDivisionError

    kinds = [kind for kind in vars(events).values() if isinstance(kind, type) and kind.__module__ == events.__name__]
    flow.listen(listener, *kinds)

    @flow.task
    async def work() -> str:
        return "done"

    async with flow.test() as t:
        job = await work.submit()
        await t.advance(30)

        assert await job.result(0) == "done"
    assert capsys.readouterr().err.count("jobs go on") == 1


# --- threads ------------------------------------------------------------


async def test_a_sync_handler_that_runs_out_of_time_is_given_up_on_and_keeps_its_slot_until_it_ends() -> None:
    flow = make_flow(worker={"threads": 1, "concurrency": 1})
    release = threading.Event()

    @flow.task(timeout=5, retry=Retry(attempts=1))
    def hangs() -> None:
        release.wait(20)

    @flow.task
    def quick() -> str:
        return "done"

    abandoned = heard(flow, events.ThreadAbandoned)
    async with TestFlow(flow, concurrency=1) as t:
        hanging = await hangs.submit()
        await t.advance(6)
        next_job = await quick.submit()
        await t.advance(6)
        state, waits, count = await hanging.status(), await next_job.status(), t.running.worker.abandoned_threads
        release.set()
        await t.run_until_idle()
        await _until(lambda: t.running.worker.abandoned_threads == 0)
        await _all_done(t, [next_job])

        assert state == "dead"
        assert waits == "ready"
        assert count == 1
        assert len(abandoned) == 1
        assert await next_job.result(0) == "done"


@pytest.mark.parametrize("timeout", [1_000, 5])
async def test_jobs_that_get_no_thread_wait_and_spend_no_attempt(timeout: float) -> None:
    flow = make_flow(worker={"threads": 1})
    release = threading.Event()

    @flow.task(timeout=timeout, retry=Retry(attempts=1))
    def hangs() -> None:
        release.wait(20)

    @flow.task(retry=Retry(attempts=1))
    def quick() -> str:
        return "done"

    async with TestFlow(flow, concurrency=5) as t:
        await hangs.submit()
        await all_blocked()
        jobs = await quick.submit_many([quick.call() for _ in range(3)])
        await t.advance(10.1)
        found = [await info(t.broker, job.id) for job in jobs]
        release.set()
        await _all_done(t, jobs)

        assert {(job.attempts, job.lost) for job in found} == {(0, 0)}
        # One waits to be the next, unless there is none to wait for: the others leave their slots to async handlers.
        assert [job.state for job in found].count("running") == (1 if timeout > 10 else 0)
        assert {job.reason for job in found if job.state == "scheduled"} == {"threads_busy"}
        assert [await job.result(0) for job in jobs] == ["done"] * 3


async def test_async_jobs_run_although_all_threads_are_busy_and_the_queue_is_not_churned() -> None:
    flow = make_flow(worker={"threads": 2})
    release = threading.Event()

    @flow.task(timeout=1_000)
    def blocks() -> None:
        release.wait(20)

    @flow.task
    async def quick() -> str:
        return "done"

    settled = heard(flow, events.JobSettled)
    async with TestFlow(flow, concurrency=6) as t:
        jobs = await blocks.submit_many([blocks.call() for _ in range(20)])
        job = await quick.submit()
        await t.advance(60)
        state = await job.status()
        sent_away = sum(event.state == "scheduled" for event in settled)
        release.set()
        await _all_done(t, jobs)

        assert state == "succeeded"
    assert sent_away <= 60 / 5 * 6


async def test_a_system_without_threads_spends_no_attempts_and_is_not_asked_in_a_spin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flow = make_flow()
    refused = 0

    @flow.task(retry=Retry(attempts=1))
    def work(number: int) -> int:
        return number

    def refuse(_thread: threading.Thread) -> None:
        nonlocal refused
        refused += 1
        raise RuntimeError("can't start new thread")

    async with TestFlow(flow, concurrency=4) as t:
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", refuse)
            jobs = await work.submit_many([work.call(number) for number in range(3)])
            await t.advance(60)
        await _all_done(t, jobs)

        assert 3 <= refused <= 3 * 60 / 5 + 3
        assert [await job.result(0) for job in jobs] == [0, 1, 2]
        assert t.running.worker._threads.places.taken == 0


async def test_a_thread_that_is_free_is_taken_at_once() -> None:
    flow = make_flow(worker={"threads": 2})
    done: list[int] = []

    @flow.task
    def work(number: int) -> None:
        done.append(number)

    async with TestFlow(flow, concurrency=4) as t:
        await work.submit_many([work.call(number) for number in range(4)])
        began = t.clock.now()
        await t.run_until_idle()

        assert sorted(done) == [0, 1, 2, 3]
        assert t.clock.now() == began


@pytest.mark.parametrize("how", ["cancel", "drain"])
async def test_a_job_that_waits_for_a_thread_can_be_cancelled_and_is_handed_back(how: str) -> None:
    release = threading.Event()

    def register(flow: TaskFlow) -> None:
        @flow.task(name="task")
        def work() -> None:
            release.wait(20)

    fleet = Fleet(register, worker={"threads": 1, "lease_s": 3})
    member = await fleet.start(concurrency=5, drain=0)
    await put(fleet.broker, "a", "b")
    await all_blocked()

    if how == "cancel":
        await fleet.broker.cancel(["b"])
        await fleet.clock.advance(1.5)
    else:
        await member.stop()

    job = await info(fleet.broker, "b")
    assert (job.state, job.attempts, job.lost) == ("cancelled" if how == "cancel" else "ready", 0, 0)
    release.set()
    await fleet.stop()


async def _all_done(t: TestFlow, jobs: list[Any]) -> None:
    """Threads keep their own time: turn by turn until all have succeeded."""
    end = time.monotonic() + 20
    while {await job.status() for job in jobs} != {"succeeded"}:
        assert time.monotonic() < end
        await t.run_until_idle()
        await t.advance(1)


async def _until(holds: Any) -> None:
    end = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < end
        await asyncio.sleep(0.001)


async def test_a_memory_broker_that_is_shared_serves_two_flows() -> None:
    def register(flow: TaskFlow) -> None:
        @flow.task(name="task")
        async def work() -> str:
            return "done"

    fleet = Fleet(register)
    client = fleet.make_flow(fleet.broker)
    await fleet.start()
    async with client:
        job = await client.find("task").submit()
        await all_blocked()

        assert await job.result(0) == "done"
    assert isinstance(fleet.broker, MemoryBroker)
    await fleet.stop()


async def test_jobs_with_gates_have_their_turn_while_jobs_without_keep_every_slot_busy() -> None:
    flow = make_flow()
    ended: list[str] = []

    @flow.task
    async def plain() -> None:
        await flow.clock.sleep(0.05)
        ended.append("plain")

    @flow.task(bulkhead=Bulkhead("db", 100))
    async def gated() -> None:
        await flow.clock.sleep(0.05)
        ended.append("gated")

    async with TestFlow(flow, concurrency=10) as t:
        await plain.submit_many([plain.call() for _ in range(2_000)])
        await t.advance(1)
        await gated.submit_many([gated.call() for _ in range(100)])
        await t.advance(2)

    assert ended.count("gated") == 100
    assert ended.count("plain") < 2_000
