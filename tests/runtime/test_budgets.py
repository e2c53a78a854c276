"""A retry that its budget does not cover waits longer: the job does not die, and no attempt is spent."""

from __future__ import annotations

import threading

import pytest

from taskflow import CircuitBreaker, Retry, RetryBudget
from taskflow.core import events
from taskflow.core.outcome import Rejected
from taskflow.core.specs import Retry as Spec
from taskflow.runtime import budgets
from taskflow.runtime.budgets import Budgets
from taskflow.testing import TestFlow, VirtualClock
from tests.runtime.made import heard, make_claim, make_flow

pytestmark = pytest.mark.anyio


def of(spec: Spec) -> RetryBudget:
    assert spec.budget is not None
    return spec.budget


def make(spec: Spec, *, drawn: float = 0.0) -> tuple[Budgets, VirtualClock]:
    clock = VirtualClock()
    return Budgets(clock, lambda: drawn), clock


def test_first_attempts_pay_for_retries() -> None:
    retry = Spec(budget=RetryBudget("api", ratio=0.5, cap=1))
    made, _ = make(retry)
    first, again = make_claim(), make_claim(attempts=1)

    assert made.charge(again, retry, of(retry)) is None  # the cap
    assert made.charge(again, retry, of(retry)) is None  # the one that is free each second
    assert isinstance(made.charge(again, retry, of(retry)), Rejected)
    assert [made.charge(first, retry, of(retry)) for _ in range(2)] == [None, None]
    assert made.charge(again, retry, of(retry)) is None
    assert isinstance(made.charge(again, retry, of(retry)), Rejected)


def test_the_delay_stretches_with_each_turn_that_finds_no_token() -> None:
    retry = Spec(max_delay=10, budget=RetryBudget("api", ratio=0, cap=1))
    made, _ = make(retry)
    for _ in range(2):
        made.charge(make_claim(attempts=1), retry, of(retry))

    waits = [made.charge(make_claim(attempts=1, snoozes=snoozes), retry, of(retry)) for snoozes in (0, 1, 2, 30)]

    assert [(one.reason, one.retry_after_s) for one in waits if one is not None] == [
        ("retry_budget", 0.5),
        ("retry_budget", 1.0),
        ("retry_budget", 2.0),
        ("retry_budget", 30.0),
    ]


async def test_retries_without_first_attempts_are_slow_and_never_starve() -> None:
    retry = Spec(budget=RetryBudget("api", ratio=0, cap=1))
    made, clock = make(retry)
    claim = make_claim(attempts=1)

    started = []
    for second in range(5):
        started += [second for _ in range(100) if made.charge(claim, retry, of(retry)) is None]
        await clock.advance(1)

    assert started == [0, 0, 1, 2, 3, 4]


async def test_an_empty_budget_spends_no_attempts_and_buries_nothing() -> None:
    flow = make_flow()
    calls = 0
    is_down = True

    @flow.task(retry=Retry(attempts=4, base=0.1, max_delay=0.2, budget=RetryBudget("api", ratio=0.2, cap=10)))
    async def call(number: int) -> int:
        nonlocal calls
        calls += 1
        if is_down:
            raise OSError("connection refused")
        return number

    snoozed = heard(flow, events.JobSettled)
    async with TestFlow(flow, concurrency=10) as t:
        jobs = await call.submit_many([call.call(number) for number in range(500)])
        await t.advance(30)
        tried, states = calls, {await job.status() for job in jobs}
        found = [await t.broker.show(job.id) for job in jobs]
        is_down = False
        await t.advance(1_000)

        assert {await job.status() for job in jobs} == {"succeeded"}

    assert tried <= 500 * 1.2 + 10 + 32  # the first attempts, their share, the cap, one a second
    assert tried == sum(info.attempts for info in found if info is not None)
    assert "dead" not in states
    assert "retry_budget" in {getattr(one.decision, "reason", "") for one in snoozed}


async def test_a_retry_that_finds_no_thread_has_not_been_sent_and_pays_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budgets, "_LEAST_PER_S", 1e-6)
    flow = make_flow(worker={"threads": 1, "concurrency": 10})
    runs, hanging, let_go = [], threading.Event(), threading.Event()

    @flow.task(timeout=1)
    def hang() -> None:
        hanging.set()
        let_go.wait(30)

    @flow.task(retry=Retry(attempts=2, base=2, jitter="none", budget=RetryBudget("api", ratio=0, cap=1)))
    def call() -> None:
        runs.append(1)
        raise OSError

    async with TestFlow(flow) as t:
        job = await call.submit()
        await t.run_until_idle()
        await hang.submit()
        while not hanging.is_set():
            await t.advance(0.01)
        await t.advance(60)
        turned_away = await t.broker.show(job.id)
        let_go.set()
        for _ in range(5):
            await t.advance(20)
            await t.run_until_idle()

        assert await job.status() == "dead"

    assert turned_away is not None
    assert (turned_away.reason, turned_away.snoozes > 1) == ("threads_busy", True)
    assert len(runs) == 2


async def test_a_probe_is_not_a_retry_that_its_budget_could_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budgets, "_LEAST_PER_S", 1e-6)
    flow = make_flow()
    calls: list[float] = []

    @flow.task(
        breaker=CircuitBreaker("api", consecutive=1, max_open_for=10),
        retry=Retry(budget=RetryBudget("api", ratio=0, cap=1)),
    )
    async def call() -> None:
        calls.append(flow.clock.now())
        raise OSError

    async with TestFlow(flow) as t:
        await call.submit()
        await t.advance(100)

    assert len(calls) >= 8
