"""The front door: what registers, what is refused, and what opens and closes."""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import pytest

from taskflow import (
    BrokerUnavailable,
    Bulkhead,
    BulkheadFull,
    CircuitBreaker,
    ConfigError,
    Pipeline,
    RateLimit,
    RateLimited,
    Registry,
    Retry,
    Settings,
    TaskFlow,
    UnknownTask,
)
from taskflow.brokers.memory import MemoryBroker
from taskflow.core import events
from taskflow.core.gate import GateChange, Hold, OverrideLimit, Release
from tests.runtime.made import heard, make_flow

pytestmark = pytest.mark.anyio


# --- registering ---------------------------------------------------------


def test_a_task_is_found_by_its_name_and_a_wrong_name_names_the_right_ones() -> None:
    flow = make_flow()

    @flow.task(name="mail.send")
    async def send() -> None: ...

    @flow.task
    async def resize() -> None: ...

    assert flow.find("mail.send") is send
    with pytest.raises(UnknownTask, match=r"no task named 'send_mial'; known: mail\.send, resize"):
        flow.find("send_mial")
    assert list(flow.tasks) == ["mail.send", "resize"]


def test_two_tasks_of_one_name_are_refused() -> None:
    flow = make_flow()

    @flow.task
    async def send() -> None: ...

    with pytest.raises(ConfigError, match="two tasks are named 'send'"):

        @flow.task(name="send")
        async def other() -> None: ...


@pytest.mark.parametrize("name", ["a__b", "a\nb"])
def test_a_name_that_no_variable_can_spell_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="printable and without '__'"):

        @make_flow().task(name=name)
        async def send() -> None: ...


def test_one_policy_name_has_one_spec() -> None:
    flow = make_flow()

    @flow.task(bulkhead=Bulkhead("db", 5), rate=RateLimit("db", "5/s"))
    async def one() -> None: ...

    @flow.task(bulkhead=Bulkhead("db", 5))
    async def two() -> None: ...

    with pytest.raises(ConfigError, match="Bulkhead 'db' is declared twice with different values"):

        @flow.task(bulkhead=Bulkhead("db", 6))
        async def three() -> None: ...


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        ({"retry": 3}, "retry= takes a Retry, got 3"),
        ({"breaker": "smtp"}, "breaker= takes a CircuitBreaker"),
        ({"bulkhead": RateLimit("a", "1/s")}, "bulkhead= takes a Bulkhead"),
        ({"retries": 3}, "no option 'retries'"),
    ],
)
def test_a_policy_of_the_wrong_kind_is_refused(declared: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_flow().task(**declared)(yields_nothing)


def yields_nothing() -> None: ...


async def yields_async() -> AsyncIterator[int]:
    yield 1


def yields() -> Iterator[int]:
    yield 1


@pytest.mark.parametrize("fn", [yields, yields_async])
def test_a_generator_is_no_task(fn: Any) -> None:
    with pytest.raises(ConfigError, match="is a generator; a task returns one result"):
        make_flow().task(fn)


@pytest.mark.parametrize("fn", [7, "send"])
def test_what_cannot_be_called_is_no_task(fn: Any) -> None:
    with pytest.raises(ConfigError, match="takes a function"):
        make_flow().task()(fn)


async def test_partials_objects_and_tasks_of_other_flows_can_be_tasks() -> None:
    flow = make_flow()

    async def add(a: int, b: int) -> int:
        return a + b

    class Adder:
        async def __call__(self, a: int, b: int) -> int:
            return a + b

    other = make_flow().task(add)
    tasks = [
        flow.task(name="partial")(functools.partial(add, b=1)),
        flow.task(name="object")(Adder()),
        flow.task(name="task")(other),
    ]

    async with flow.test() as t:
        jobs = [await task.submit(1, b=2) for task in tasks]
        await t.run_until_idle()

        assert [await job.result(0) for job in jobs] == [3, 3, 3]


# --- open and closed -----------------------------------------------------


class Watched(MemoryBroker):
    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []
        self.refuses = False

    async def open(self) -> None:
        self.said.append("open")
        await asyncio.sleep(0)
        if self.refuses:
            raise BrokerUnavailable("nobody there")

    async def close(self) -> None:
        await asyncio.sleep(0)
        self.said.append("close")
        await super().close()


async def test_submitting_to_a_closed_flow_says_how_to_open_it() -> None:
    flow = make_flow()

    @flow.task
    async def send() -> None: ...

    with pytest.raises(ConfigError, match="async with flow:"):
        await send.submit()
    async with flow:
        await send.submit()
    with pytest.raises(ConfigError, match="async with flow:"):
        await send.submit()


async def test_a_flow_that_is_opened_by_many_is_open_until_the_last_has_left() -> None:
    broker = Watched()
    flow = TaskFlow(settings=make_flow().settings, broker=broker)

    async def use() -> None:
        async with flow, flow:
            await asyncio.sleep(0)

    await asyncio.gather(use(), use())
    async with flow.worker(drain=0), flow:
        assert flow.is_open

    assert broker.said == ["open", "close"] * 2
    assert not flow.is_open


def test_a_flow_can_be_opened_again_in_another_loop() -> None:
    flow = make_flow()

    @flow.task(timeout=30)
    async def double(number: int) -> int:
        await asyncio.sleep(0.001)
        return 2 * number

    async def once() -> list[int]:
        async with flow.worker(concurrency=2), flow:
            jobs = await asyncio.gather(*[double.submit(number) for number in range(5)])
            return await asyncio.gather(*[job.result(10) for job in jobs])

    assert [asyncio.run(once()) for _ in range(3)] == [[0, 2, 4, 6, 8]] * 3


async def test_a_broker_that_does_not_open_is_closed_and_the_flow_can_be_opened_later() -> None:
    broker = Watched()
    broker.refuses = True
    flow = TaskFlow(settings=make_flow().settings, broker=broker)

    with pytest.raises(BrokerUnavailable):
        async with flow:
            pytest.fail("it opened")
    broker.refuses = False
    async with flow:
        pass

    assert broker.said == ["open", "close", "open", "close"]


@pytest.mark.parametrize("how", ["task", "scope"])
async def test_a_client_whose_surroundings_are_cancelled_closes_its_broker(how: str) -> None:
    broker = Watched()
    flow = TaskFlow(settings=make_flow().settings, broker=broker)
    is_open = asyncio.Event()
    scope = anyio.CancelScope()

    async def client() -> None:
        with scope:
            async with flow:
                is_open.set()
                await asyncio.get_running_loop().create_future()

    task = asyncio.create_task(client())
    await is_open.wait()
    task.cancel() if how == "task" else scope.cancel()
    await asyncio.wait([task])

    assert broker.said == ["open", "close"]
    assert not flow.is_open


# --- the worker ----------------------------------------------------------


async def test_a_worker_works_the_queues_of_its_tasks_unless_it_is_told_others() -> None:
    flow = make_flow()

    @flow.task(queue="mail")
    async def send() -> None: ...

    @flow.task
    async def other() -> None: ...

    async with flow.worker(drain=0) as running:
        own = dict(running.queues)
    async with flow.worker(queues=["a", "b"], drain=0) as running:
        asked = dict(running.queues)
    async with flow.worker(queues={"a": 5}, drain=0) as running:
        weighed = dict(running.queues)

    assert own == {"mail": 1, "default": 1}
    assert asked == {"a": 1, "b": 1}
    assert weighed == {"a": 5}


async def test_queues_of_the_settings_win_over_those_of_the_tasks() -> None:
    flow = make_flow(worker={"queues": "mail:5,default"})

    async with flow.worker(drain=0) as running:
        assert dict(running.queues) == {"mail": 5, "default": 1}


async def test_what_code_and_environment_say_of_a_gate_is_told_to_the_broker() -> None:
    flow = make_flow(tasks={"send": {"bulkhead": {"limit": 3}}})

    @flow.task(bulkhead=Bulkhead("smtp", 10), rate=RateLimit("smtp", "60/m", burst=2), breaker=CircuitBreaker("smtp"))
    async def send() -> None: ...

    async with flow.test() as t:
        (gate,) = await t.broker.gates()

    assert (gate.name, gate.limit) == ("smtp", 3)
    assert gate.rate is not None
    assert (gate.rate.interval_s, gate.rate.burst) == (1, 2)


async def test_metrics_show_what_an_operator_says_of_a_gate_and_what_code_says_once_it_is_taken_back() -> None:
    flow = make_flow()

    @flow.task(breaker=CircuitBreaker("api"))
    async def ask() -> None: ...

    @flow.task(bulkhead=Bulkhead("smtp", 10))
    async def send() -> None: ...

    async with flow.test() as t:

        async def seen(*changes: GateChange) -> list[float | None]:
            for change in changes:
                await t.broker.gate("api", change)
                await t.broker.gate("smtp", change)
            await t.advance(10)  # the gates are looked at every 5 s
            read = t.running.metrics.registry.get_sample_value
            limits = [read("taskflow_limiter_limit", {"limiter": name}) for name in ("api", "smtp")]
            return [*limits, read("taskflow_gates_held", {})]

        assert await seen() == [math.inf, 10, 0]
        assert await seen(OverrideLimit(3)) == [3, 3, 0]
        assert await seen(OverrideLimit(0), Hold(1e9, "operator")) == [0, 0, 2]
        assert await seen(OverrideLimit(None), Release()) == [math.inf, 10, 0]


async def test_lifespans_surround_the_work() -> None:
    flow = make_flow()
    has_started = asyncio.Event()
    order: list[str] = []

    @flow.lifespan
    async def first() -> AsyncIterator[None]:
        order.append("first in")
        yield
        order.append("first out")

    @flow.lifespan
    async def second() -> AsyncIterator[None]:
        async with anyio.create_task_group():  # has to be left in the task that entered it
            order.append("second in")
            yield
            order.append("second out")

    @flow.task
    async def work() -> None:
        order.append("work")
        has_started.set()
        await flow.clock.sleep(0.01)
        order.append("done")

    async with flow.worker(drain=5):
        await work.submit()
        await has_started.wait()

    assert order == ["first in", "second in", "work", "done", "second out", "first out"]


async def test_an_error_in_the_block_drains_and_is_raised() -> None:
    flow = make_flow()
    stopped = heard(flow, events.WorkerStopped)

    with pytest.raises(ZeroDivisionError):
        async with flow.worker(drain=0):
            raise ZeroDivisionError

    assert len(stopped) == 1


def test_settings_are_read_from_the_environment_only_when_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    flow = TaskFlow()
    monkeypatch.setenv("TASKFLOW_WORKER__CONCURRENCY", "7")

    assert flow.settings.worker.concurrency == 7
    assert flow.settings is flow.settings
    assert isinstance(flow.settings, Settings)


async def test_the_environment_tunes_a_task_without_a_deploy() -> None:
    flow = make_flow(tasks={"work": {"timeout_s": 5, "retry": {"attempts": 1}}})

    @flow.task(timeout=60, retry=Retry(attempts=9))
    async def work() -> None:
        await flow.clock.sleep(100)

    async with flow.test() as t:
        job = await work.options(timeout=50).submit()
        await t.advance(5)

        assert await job.status() == "dead"


async def test_metrics_count_the_calls_that_the_limiters_of_pipelines_turned_away() -> None:
    flow = make_flow()
    registry = Registry()
    crowd = Pipeline(Bulkhead("turned-away-crowd", 1), registry=registry)
    quick = Pipeline(RateLimit("turned-away-quick", "1/h"), registry=registry)

    async def work() -> None: ...

    async with flow.test() as t:
        read = t.running.metrics.registry.get_sample_value

        def told() -> list[float | None]:
            name = "taskflow_limiter_rejections_total"
            return [
                read(name, {"limiter": "turned-away-crowd", "reason": "bulkhead_full"}),
                read(name, {"limiter": "turned-away-quick", "reason": "rate_limited"}),
            ]

        await quick.call(work)
        async with crowd.guard():
            before = told()
            for _ in range(2):
                with pytest.raises(BulkheadFull):
                    await crowd.call(work)
            with pytest.raises(RateLimited):
                await quick.call(work)
        after = told()

    assert (before, after) == ([0, 0], [2, 1])
