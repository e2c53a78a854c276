"""What users test with: hours in milliseconds, faults on purpose, and a flow that is itself again afterwards."""

from __future__ import annotations

import asyncio
import time

import pytest

from taskflow import ConfigError, RateLimit, Retry, TaskFlow
from taskflow.errors import BrokerUnavailable, ResultTimeout
from taskflow.testing import TestFlow, VirtualClock, all_blocked
from tests.runtime.made import make_flow

pytestmark = pytest.mark.anyio


async def test_hours_pass_in_no_time_and_everything_happens_at_its_instant() -> None:
    clock = VirtualClock()
    woke: list[tuple[str, float]] = []

    async def sleeper(name: str, *sleeps: float) -> None:
        for seconds in sleeps:
            await clock.sleep(seconds)
            woke.append((name, clock.now()))

    tasks = [asyncio.create_task(sleeper("a", 10, 10)), asyncio.create_task(sleeper("b", 15, 7_200))]
    began = time.monotonic()
    await clock.advance(7_215)

    assert woke == [("a", 10), ("b", 15), ("a", 20), ("b", 7_215)]
    assert clock.now() == 7_215
    assert time.monotonic() - began < 5
    assert all(task.done() for task in tasks)


async def test_advance_waits_for_everything_that_an_instant_sets_off() -> None:
    clock = VirtualClock()
    ends: list[str] = []

    async def chain(links: int) -> None:
        for _ in range(links):
            await asyncio.sleep(0)
        ends.append("chain")

    async def sets_off() -> None:
        await clock.sleep(1)
        await asyncio.gather(asyncio.shield(asyncio.create_task(chain(50))), chain(3))
        ends.append("all")

    task = asyncio.create_task(sets_off())
    await clock.advance(1)

    assert ends == ["chain", "chain", "all"]
    await task


async def test_a_task_that_never_stops_to_wait_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    async def spins() -> None:
        while True:  # noqa: ASYNC110 - what it should not do
            await asyncio.sleep(0)

    monkeypatch.setattr("taskflow.testing._REAL_LIMIT_S", 0.05)
    spinning = asyncio.create_task(spins(), name="the culprit")
    with pytest.raises(TimeoutError, match="the culprit"):
        await all_blocked()
    spinning.cancel()
    await asyncio.wait([spinning])


async def test_the_readme_of_the_module_holds() -> None:
    flow = make_flow()

    @flow.task
    async def send_mail(to: str) -> str:
        return to

    async with flow.test() as t:
        job = await send_mail.options(delay=3600).submit("ada@example.org")
        await t.advance(3599)
        early = await job.status()
        await t.advance(1)
        await t.run_until_idle()

        assert early == "scheduled"
        assert await job.status() == "succeeded"


async def test_run_until_idle_runs_what_is_due_and_leaves_what_is_not() -> None:
    flow = make_flow()

    @flow.task
    async def work(number: int) -> int:
        return number

    async with flow.test() as t:
        now = await work.submit_many([work.call(number) for number in range(500)])
        later = await work.options(delay=60).submit(1)
        elsewhere = await work.options(queue="nobody-works-this").submit(2)
        began = t.clock.now()
        await t.run_until_idle()

        assert {await job.status() for job in now} == {"succeeded"}
        assert await later.status() == "scheduled"
        assert await elsewhere.status() == "ready"
        assert t.clock.now() - began < 1


async def test_what_a_gate_holds_back_is_not_due() -> None:
    flow = make_flow()

    @flow.task(rate=RateLimit("api", "1/m"))
    async def work(number: int) -> int:
        return number

    async with flow.test() as t:
        jobs = await work.submit_many([work.call(number) for number in range(3)])
        await t.run_until_idle()
        first = [str(await job.status()) for job in jobs]
        await t.advance(120)
        then = [str(await job.status()) for job in jobs]

    assert first == ["succeeded", "ready", "ready"]
    assert then == ["succeeded"] * 3


async def test_time_stands_still_while_a_handler_waits_for_the_real_world() -> None:
    flow = make_flow()

    @flow.task(timeout=1, retry=Retry(attempts=1))
    async def work() -> str:
        await asyncio.sleep(0.2)
        return "done"

    async with flow.test() as t:
        job = await work.submit()
        await t.run_until_idle()

        assert await job.result(0) == "done"
        assert t.clock.now() < 1


async def test_sync_handlers_run_until_they_have_ended() -> None:
    flow = make_flow()

    @flow.task
    def work(number: int) -> int:
        time.sleep(0.01)
        return number

    async with flow.test() as t:
        jobs = await work.submit_many([work.call(number) for number in range(20)])
        await t.run_until_idle()

        assert [await job.result(0) for job in jobs] == list(range(20))


async def test_run_until_idle_waits_out_small_faults() -> None:
    flow = make_flow()

    @flow.task
    async def work() -> str:
        return "done"

    async with flow.test() as t:
        t.faults.lose_reply("settle")
        t.faults.lose_reply("claim")
        jobs = await work.submit_many([work.call() for _ in range(3)])
        await t.run_until_idle()
        await t.advance(20)  # what the lost claim took comes back after two beats
        await t.run_until_idle()

        assert {await job.result(0) for job in jobs} == {"done"}


async def test_waiting_for_a_result_lets_the_time_pass_that_the_job_waits_for() -> None:
    flow = TaskFlow()
    tried_at: list[float] = []

    @flow.task(retry=Retry(attempts=3, base=60, max_delay=600, jitter="none"))
    async def fetch() -> str:
        tried_at.append(t.clock.now())
        if len(tried_at) < 3:
            raise OSError
        return "data"

    async with flow.test() as t:
        job = await fetch.options(delay=3600).submit()

        assert await job.result(timeout=7200) == "data"

    assert [round(at) for at in tried_at] == [3600, 3660, 3780]


async def test_a_result_that_does_not_come_in_time_is_told_at_once() -> None:
    flow = TaskFlow()

    @flow.task
    async def later() -> None: ...

    async with flow.test() as t:
        job = await later.options(delay=3600).submit()
        with pytest.raises(ResultTimeout, match="5 s"):
            await job.result(timeout=5)

        assert 5 <= t.clock.now() < 60


async def test_time_stands_still_while_a_result_waits_for_a_handler_that_waits_for_the_real_world() -> None:
    flow = TaskFlow()

    @flow.task(timeout=0.001)
    async def real() -> str:
        await asyncio.sleep(0.05)
        return "done"

    async with flow.test():
        job = await real.submit()

        assert await job.result(timeout=0.002) == "done"


async def test_a_result_awaited_elsewhere_leaves_the_time_to_the_test() -> None:
    flow = TaskFlow()

    @flow.task
    async def later() -> None: ...

    async with flow.test() as t:
        job = await later.options(delay=60).submit()
        waiting = asyncio.create_task(job.result())
        await t.run_until_idle()

        assert (waiting.done(), t.clock.now()) == (False, pytest.approx(0, abs=0.1))
        await t.advance(60)
        assert await waiting is None


async def test_a_paused_worker_is_idle() -> None:
    flow = make_flow()

    @flow.task
    async def work() -> None: ...

    async with flow.test() as t:
        t.running.worker.pause()
        job = await work.submit()
        await t.run_until_idle()

        assert await job.status() == "ready"


async def test_what_never_ends_is_told_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    flow = make_flow()
    release = asyncio.Event()

    @flow.task
    async def work() -> None:
        await release.wait()

    async with flow.test() as t:
        await work.submit()
        monkeypatch.setattr("taskflow.testing._REAL_LIMIT_S", 0.05)
        with pytest.raises(TimeoutError, match="still busy"):
            await t.run_until_idle()
        release.set()


async def test_faults_cut_and_mend_and_know_what_a_broker_can() -> None:
    async with make_flow().test() as t:
        t.faults.cut("counts")
        with pytest.raises(BrokerUnavailable, match="cut on purpose"):
            await t.faults.counts()
        t.faults.mend()
        t.faults.lose_reply("counts")
        with pytest.raises(BrokerUnavailable, match="lost on purpose"):
            await t.faults.counts()

        assert await t.faults.counts() == []
        with pytest.raises(ValueError, match="no operation 'clam'"):
            t.faults.cut("clam")
        with pytest.raises(ValueError, match="no operation 'setle'"):
            t.faults.lose_reply("setle")


async def test_the_flow_is_itself_again_after_the_test() -> None:
    flow = make_flow()
    clock = flow.clock

    async with flow.test():
        assert flow.clock is not clock
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the block is what is tested
        async with flow.test() as t:
            t.faults.cut("beat", "settle")
            raise ZeroDivisionError

    assert flow.clock is clock
    assert not flow.is_open


async def test_an_open_flow_is_not_tested_on_its_real_broker() -> None:
    flow = make_flow()

    async with flow:
        with pytest.raises(ConfigError, match="the flow is open"):
            async with flow.test():
                pytest.fail("it started")


async def test_a_test_ends_though_a_handler_hangs() -> None:
    flow = make_flow()

    @flow.task
    async def hangs() -> None:
        await asyncio.get_running_loop().create_future()

    before = asyncio.all_tasks()
    async with TestFlow(flow) as t:
        job = await hangs.submit()
        await all_blocked()

    assert await t.broker.states([job.id]) == {job.id: "ready"}
    assert asyncio.all_tasks() == before


async def test_a_test_needs_no_settings_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKFLOW_BROKER__URL", "sqlite:////nowhere/none.db")
    flow = TaskFlow()

    @flow.task
    async def work() -> int:
        return 1

    async with flow.test() as t:
        job = await work.submit()
        await t.run_until_idle()

        assert await job.result(0) == 1
