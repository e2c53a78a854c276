"""Checked by mypy, never run: `assert_type` is what must hold, an unused `type: ignore` is an error that is missing."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Coroutine
from typing import Any, assert_type

from taskflow import (
    Bulkhead,
    Call,
    CircuitBreaker,
    CurrentJob,
    ErrorClass,
    JobHandle,
    JobState,
    Pipeline,
    Retry,
    RetryBudget,
    TaskFlow,
    Timeout,
    current_job,
)
from taskflow.policies.pipeline import MayRepeat, RunsOnce

flow = TaskFlow()


@flow.task
async def send(to: str, body: str = "") -> str:
    return to + body


@flow.task
def resize(width: int) -> bytes:
    return b"x" * width


@flow.task(queue="mail", timeout=30, retry=Retry(attempts=5), bulkhead=Bulkhead("smtp", 10), lane=lambda to: to)
async def deliver(to: str, *, urgent: bool = False) -> dict[str, int]:
    return {to: urgent}


@flow.task(name="other")
def count(words: list[str]) -> int:
    return len(words)


async def plain_calls() -> None:
    assert_type(send("ada"), Awaitable[str])
    assert_type(await send("ada", body="hi"), str)
    assert_type(resize(3), bytes)
    assert_type(await deliver("ada", urgent=True), dict[str, int])
    assert_type(count(["a"]), int)

    await send(7)  # type: ignore[arg-type]
    await send()  # type: ignore[call-arg]
    await send("ada", subject="x")  # type: ignore[call-arg]
    resize("x")  # type: ignore[arg-type]


async def submitting() -> None:
    job = await send.submit("ada", body="hi")
    assert_type(job, JobHandle[str])
    assert_type(await job.result(timeout=5), str)
    assert_type(await job.status(), JobState)
    assert_type(await job.cancel(), bool)
    assert_type(job.id, str)
    assert_type(await resize.submit(3), JobHandle[bytes])
    assert_type(await (await deliver.submit("ada")).result(), dict[str, int])

    await send.submit(7)  # type: ignore[arg-type]
    await send.submit()  # type: ignore[call-arg]
    await send.submit("ada", "hi", "more")  # type: ignore[call-arg]
    await deliver.submit("ada", True)  # type: ignore[call-arg]
    await count.submit("words", 1)  # type: ignore[call-arg,arg-type]


async def with_options() -> None:
    chosen = deliver.options(delay=60, key="ada", priority=9)
    assert_type(await chosen.submit("ada", urgent=True), JobHandle[dict[str, int]])
    assert_type(chosen.call("ada"), Call[dict[str, int]])

    theirs = deliver.options(connection=sqlite3.connect("taskflow.db"))
    assert_type(await theirs.submit("ada"), JobHandle[dict[str, int]])
    assert_type(await theirs.submit_many([deliver.call("ada")]), list[JobHandle[dict[str, int]]])
    assert_type(await current_job().complete_in(object(), 1), None)

    await chosen.submit(7)  # type: ignore[arg-type]
    await chosen.submit("ada", delay=60)  # type: ignore[call-arg]
    deliver.options(delay="soon")  # type: ignore[arg-type]
    deliver.options(urgent=True)  # type: ignore[call-arg]


async def many() -> None:
    assert_type(send.call("ada"), Call[str])
    assert_type(await send.submit_many([send.call("ada"), send.call("bob", body="hi")]), list[JobHandle[str]])

    send.call(7)  # type: ignore[arg-type]
    await send.submit_many([resize.call(3)])  # type: ignore[list-item]


async def the_rest() -> None:
    async with flow as opened, flow.worker(concurrency=5, queues={"mail": 5}) as running:
        assert_type(opened, TaskFlow)
        await running.stop()
    async with flow.test() as t:
        await t.advance(60)
    assert_type(current_job(), CurrentJob)
    assert_type(current_job().remaining_s(), float)


flow.task(retry=3)  # type: ignore[call-overload]
flow.task(timeout="long")  # type: ignore[call-overload]
flow.task(unknown=1)  # type: ignore[call-overload]


# ---- policies for any awaitable ----

guards = Pipeline(Timeout(5), CircuitBreaker("api"))
strategies = Pipeline(Timeout(30), Retry(on=(OSError, ErrorClass.TRANSIENT)), CircuitBreaker("api"))
assert_type(guards, Pipeline[RunsOnce])
assert_type(strategies, Pipeline[MayRepeat])


@strategies
async def fetch(url: str, *, size: int = 0) -> bytes:
    return url.encode() * size


async def blocks() -> None:
    async with guards.guard(), guards.guard(key="ada"), guards.with_key("ada").guard():
        pass
    strategies.guard()  # type: ignore[misc]
    strategies.with_key("ada").guard()  # type: ignore[misc]


async def calls() -> None:
    assert_type(await assert_type(fetch("x", size=3), Coroutine[Any, Any, bytes]), bytes)
    assert_type(await guards.call(send, "ada", body="hi"), str)
    assert_type(await strategies.with_key("ada").call(fetch, "x"), bytes)

    await fetch(7)  # type: ignore[arg-type]
    await guards.call(fetch, "x", count=3)  # type: ignore[call-arg]
    await guards.call(fetch("x"))  # type: ignore[arg-type]
    await guards.call(resize, "x")  # type: ignore[arg-type]


Pipeline(RetryBudget("api"))  # type: ignore[call-overload]
Pipeline(Retry)  # type: ignore[call-overload]
