"""When a dependency fails, its jobs wait; they are not burnt."""

from __future__ import annotations

from typing import Any

import pytest

from taskflow import Bulkhead, CircuitBreaker, RateLimit, Retry
from taskflow.core import events
from taskflow.core.outcome import ErrorRecord, Failed, Succeeded
from taskflow.core.specs import CircuitBreaker as Spec
from taskflow.runtime import breakers
from taskflow.runtime.breakers import Admitted, Breakers, TurnedAway
from taskflow.settings import Settings, TaskOverride
from taskflow.settings.tuning import TaskPolicy, resolve
from taskflow.testing import TestFlow, VirtualClock
from tests.runtime.made import heard, make_claim, make_flow

pytestmark = pytest.mark.anyio

BROKEN = Failed(ErrorRecord("OSError", "no", "transient"))


async def test_an_open_breaker_spends_no_attempts_and_the_jobs_run_when_it_closes() -> None:
    flow = make_flow()
    is_down = True
    runs: list[float] = []

    @flow.task(
        breaker=CircuitBreaker("smtp", consecutive=3, open_for=10), retry=Retry(attempts=3, base=1, jitter="none")
    )
    async def send(number: int) -> int:
        runs.append(flow.clock.now())
        if is_down:
            raise OSError("connection refused")
        return number

    moved = heard(flow, events.BreakerMoved)
    async with TestFlow(flow, concurrency=5) as t:
        jobs = await send.submit_many([send.call(number) for number in range(200)])
        await t.advance(60)
        tried = len(runs)
        found = [await t.broker.show(job.id) for job in jobs]
        is_down = False
        await t.advance(120)
        states = {await job.status() for job in jobs}

    assert tried <= 5 + 6  # what ran when it opened, and a probe now and then
    assert max(job.attempts for job in found if job is not None) < 3
    assert sum(job.snoozes for job in found if job is not None) < 60  # the rest waited in the queue, untouched
    assert states == {"succeeded"}
    assert [event.to for event in moved][-2:] == ["half_open", "closed"]


async def test_jobs_of_other_dependencies_keep_flowing() -> None:
    flow = make_flow()

    @flow.task(breaker=CircuitBreaker("smtp", consecutive=1, open_for=60), retry=Retry(attempts=9))
    async def send() -> None:
        raise OSError

    @flow.task
    async def other(number: int) -> int:
        return number

    async with TestFlow(flow, concurrency=2) as t:
        await send.submit_many([send.call() for _ in range(50)])
        await t.advance(1)
        jobs = await other.submit_many([other.call(number) for number in range(50)])
        await t.run_until_idle()

        assert [await job.result(0) for job in jobs] == list(range(50))


async def test_one_lane_that_fails_does_not_hold_the_others() -> None:
    flow = make_flow()

    @flow.task(
        breaker=CircuitBreaker("http", consecutive=1, open_for=60, per_lane=True),
        lane=lambda host: host,
        retry=Retry(attempts=1),
    )
    async def call(host: str) -> str:
        if host == "down":
            raise OSError
        return host

    async with flow.test() as t:
        await call.submit("down")
        await t.run_until_idle()
        held = await call.submit("down")
        fine = await call.submit("up")
        await t.run_until_idle()
        gates = {gate.name: gate.held_until for gate in await t.broker.gates()}

        assert await held.status() == "ready"
        assert await fine.result(0) == "up"
        assert gates["http/down"] > t.clock.wall()


async def test_bad_data_says_nothing_about_the_dependency() -> None:
    flow = make_flow()

    @flow.task(breaker=CircuitBreaker("smtp", consecutive=2), retry=Retry(attempts=1, on=(OSError,)))
    async def send() -> None:
        raise ValueError("no address")

    moved = heard(flow, events.BreakerMoved)
    async with flow.test() as t:
        await send.submit_many([send.call() for _ in range(30)])
        await t.run_until_idle()

    assert moved == []


async def test_timeouts_open_a_breaker_even_where_they_are_not_retried() -> None:
    flow = make_flow()

    @flow.task(timeout=5, breaker=CircuitBreaker("slow", consecutive=2), retry=Retry(attempts=1, on=(OSError,), never=(TimeoutError,)))  # fmt: skip
    async def send() -> None:
        await flow.clock.sleep(60)

    moved = heard(flow, events.BreakerMoved)
    async with flow.test() as t:
        await send.submit_many([send.call() for _ in range(2)])
        await t.advance(6)

    assert [event.to for event in moved] == ["open"]


async def test_bulkheads_and_rates_hold_for_all_jobs_of_a_task() -> None:
    flow = make_flow()
    now = most = 0
    started: list[float] = []

    @flow.task(bulkhead=Bulkhead("db", 3))
    async def query() -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await flow.clock.sleep(1)
        now -= 1

    @flow.task(rate=RateLimit("api", "60/m"))
    async def call() -> None:
        started.append(flow.clock.now())

    async with TestFlow(flow, concurrency=20) as t:
        jobs = await query.submit_many([query.call() for _ in range(12)])
        await call.submit_many([call.call() for _ in range(5)])
        await t.advance(6)

        assert {await job.status() for job in jobs} == {"succeeded"}
    assert most == 3
    assert [round(at) for at in started] == [0, 1, 2, 3, 4]


class Bench:
    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.events: list[Any] = []
        self.breakers = Breakers(self.clock, self.events.append, lambda: 0.5)

    def admit(self, policy: TaskPolicy, gate: str = "smtp") -> Admitted | TurnedAway:
        return self.breakers.admit(make_claim(gates=(gate,)), policy)


def policy_of(spec: Spec, **override: Any) -> TaskPolicy:
    settings = Settings(tasks={"task": TaskOverride(breaker=override)} if override else {})  # type: ignore[arg-type]
    return resolve(settings, "task", {"breaker": spec})


def test_two_tasks_of_one_dependency_share_its_breaker_though_one_of_them_is_tuned() -> None:
    bench = Bench()
    plain = policy_of(Spec("smtp", consecutive=4))
    tuned = policy_of(Spec("smtp", consecutive=4), open_for_s=77)

    holds = []
    for policy in (plain, tuned, plain, tuned):
        admitted = bench.admit(policy)
        assert isinstance(admitted, Admitted)
        holds.append(bench.breakers.report(admitted, BROKEN, 0.1))

    assert holds[:3] == [None] * 3
    assert holds[3] is not None
    assert (holds[3].gate, holds[3].for_s) == ("smtp", 77)


def test_whoever_is_turned_away_has_its_siblings_wait_at_the_gate() -> None:
    bench = Bench()
    policy = policy_of(Spec("smtp", consecutive=1, open_for=10))
    first = bench.admit(policy)
    assert isinstance(first, Admitted)
    bench.breakers.report(first, BROKEN, 0.1)

    turned = bench.admit(policy)
    bench.clock._now = 11
    probe = bench.admit(policy)
    sibling = bench.admit(policy)

    assert isinstance(turned, TurnedAway)
    assert turned.hold == ("smtp", 10, "circuit_open")
    assert isinstance(probe, Admitted)
    assert isinstance(sibling, TurnedAway)
    assert sibling.hold == ("smtp", 1, "circuit_open")  # the probe's word may come at any time
    assert sibling.outcome.retry_after_s > 1


def test_no_gate_is_held_that_the_job_does_not_have() -> None:
    bench = Bench()
    policy = policy_of(Spec("smtp", consecutive=1))
    first = bench.admit(policy, "other")
    assert isinstance(first, Admitted)
    bench.breakers.report(first, BROKEN, 0.1)

    turned = bench.admit(policy, "other")

    assert isinstance(turned, TurnedAway)
    assert turned.hold is None


def test_the_number_of_breakers_is_bounded_and_open_ones_go_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breakers, "_MOST", 10)
    bench = Bench()
    policy = policy_of(Spec("http", consecutive=1, per_lane=True))
    first = bench.admit(policy, "http/down")
    assert isinstance(first, Admitted)
    bench.breakers.report(first, BROKEN, 0.1)

    for number in range(100):
        bench.admit(policy, f"http/{number}")
    kept = bench.admit(policy, "http/down")
    for number in range(200):
        opened = bench.admit(policy, f"http/open-{number}")
        assert isinstance(opened, Admitted)
        bench.breakers.report(opened, BROKEN, 0.1)

    assert isinstance(kept, TurnedAway)
    assert len(bench.breakers._breakers) == 10


def test_a_task_without_a_breaker_is_always_admitted() -> None:
    bench = Bench()
    policy = resolve(Settings(), "task", {})

    admitted = bench.admit(policy)

    assert isinstance(admitted, Admitted)
    assert bench.breakers.report(admitted, Succeeded(), 0.1) is None
