"""The typed face of a task: plain calls, options that say what is wrong with them, and what a submission carries."""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
import inspect
import json
import math
import traceback
from typing import Any

import pytest

from taskflow import Bulkhead, CircuitBreaker, ConfigError, JobCancelled, PayloadError, RateLimit, Retry, RetryBudget
from taskflow.core import events
from taskflow.options import Options
from tests.runtime.made import heard, make_flow

pytestmark = pytest.mark.anyio


async def test_a_plain_call_is_the_function_itself() -> None:
    flow = make_flow()

    @flow.task(queue="mail")
    async def send(to: str) -> str:
        """Sends."""
        return to

    @flow.task
    def count(words: str) -> int:
        return len(words)

    assert await send("ada") == "ada"
    assert count("abc") == 3
    assert (send.__name__, send.__doc__, send.name) == ("send", "Sends.", "send")
    assert repr(send) == "<task 'send'>"


async def test_what_other_decorators_left_on_a_function_does_not_replace_what_a_task_is() -> None:
    flow = make_flow()

    def mark(fn: Any) -> Any:
        @functools.wraps(fn)
        async def wrapped(*args: Any, **kwargs: Any) -> Any:
            return await fn(*args, **kwargs)

        wrapped.fn = "something"  # type: ignore[attr-defined]
        wrapped.definition = "else"  # type: ignore[attr-defined]
        return wrapped

    @flow.task
    @mark
    async def work(number: int) -> int:
        return number

    async with flow.test() as t:
        job = await work.submit(3)
        await t.run_until_idle()

        assert await job.result(0) == await work(3) == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"delay": -1}, "options(delay=): must be seconds from 0 on, got -1"),
        ({"delay": math.inf}, "delay"),
        ({"delay": math.nan}, "delay"),
        ({"delay": "60"}, "delay"),
        ({"delay": True}, "delay"),
        ({"key": ""}, "options(key=): must be 1 to 255 printable characters, got ''"),
        ({"key": "x" * 256}, "key"),
        ({"key": 7}, "key"),
        ({"key": "a\nb"}, "key"),
        ({"priority": 10}, "options(priority=): must be 0 to 9, got 10"),
        ({"priority": -1}, "priority"),
        ({"priority": 4.0}, "priority"),
        ({"queue": ""}, "queue"),
        ({"timeout": 0}, "options(timeout=): must be more than 0 seconds, got 0"),
        ({"timeout": math.inf}, "timeout"),
        ({"deadline": -5}, "deadline"),
        ({"max_wait": math.nan}, "max_wait"),
        ({"lane": "x" * 201}, "options(lane=): must be a string of at most 200 bytes"),
        ({"lane": "a\0b"}, "options(lane=): must be a string of at most 200 bytes without NUL"),
        ({"lane": "é" * 101}, "lane"),
        ({"lane": 5}, "lane"),
        ({"lane": "\ud800"}, "lane"),
        ({"correlation_id": "a\nb"}, "correlation_id"),
        ({"job_id": ""}, "job_id"),
        ({"retry": Retry(on=(OSError,))}, "only its numbers travel"),
        ({"retry": Retry(never=(OSError,))}, "only its numbers travel"),
        ({"retry": Retry(on=(Exception,))}, "only its numbers travel"),
        ({"retry": Retry(budget=RetryBudget("api"))}, "only its numbers travel"),
        ({"retry": dataclasses.replace(Retry(), attempts=5)}, "dataclasses.replace() says them all"),
    ],
)
async def test_options_that_do_not_fit_say_so(options: dict[str, Any], words: str) -> None:
    flow = make_flow()

    @flow.task
    async def work() -> None: ...

    with pytest.raises(PayloadError) as refused:
        work.options(**options)
    assert words in str(refused.value)


async def test_options_reach_the_broker_and_the_worker() -> None:
    flow = make_flow()

    @flow.task(retry=Retry(attempts=1), timeout=300)
    async def work() -> None:
        await flow.clock.sleep(100)

    async with flow.test() as t:
        await t.broker.pause("slow")
        chosen = work.options(
            delay=60,
            key="k",
            priority=9,
            queue="default",
            timeout=7,
            deadline=600,
            lane="l",
            retry=Retry(attempts=4, base=2, jitter="none"),
        )
        job = await chosen.submit()
        found = await t.broker.show(job.id)
        assert found is not None
        await t.advance(60 + 7)
        after = await t.broker.show(job.id)
        assert after is not None

    assert (found.key, found.priority, found.queue, found.lane) == ("k", 9, "default", "l")
    assert found.due_at - found.submitted_at == 60
    assert found.expires_at - found.due_at == 600
    assert json.loads(found.payload)["opt"] == {"timeout": 7, "retry": {"attempts": 4, "base": 2, "jitter": "none"}}
    assert (after.state, after.attempts) == ("scheduled", 1)
    assert after.due_at - after.submitted_at == pytest.approx(60 + 7 + 2)
    assert after.errors[0].kind == "timeout"


async def test_calls_carry_their_own_options_and_options_for_all_replace_them() -> None:
    flow = make_flow()

    @flow.task
    async def work(number: int) -> None: ...

    async with flow.test() as t:
        t.running.worker.pause()
        own = await work.submit_many([work.options(priority=7).call(1), work.call(2)])
        all_same = await work.options(priority=1).submit_many([work.options(priority=7).call(1), work.call(2)])
        found = [await t.broker.show(job.id) for job in own + all_same]

    assert [job.priority for job in found if job is not None] == [7, 4, 1, 1]


async def test_submit_many_sends_nothing_when_one_call_does_not_fit() -> None:
    flow = make_flow()

    @flow.task
    async def work(number: int) -> None: ...

    @flow.task
    async def other(number: int) -> None: ...

    async with flow.test() as t:
        with pytest.raises(PayloadError, match="number"):
            await work.submit_many([work.call(1), work.call("no")])  # type: ignore[arg-type]
        with pytest.raises(PayloadError, match=r"takes what work.call\(...\) makes, got one of 'other'"):
            await work.submit_many([work.call(1), other.call(1)])
        none = await work.submit_many([])

        assert await t.broker.counts() == []
    assert none == []


async def test_arguments_that_are_too_large_are_refused_at_submit_and_told_what_to_do() -> None:
    flow = make_flow(queue={"arguments_max_bytes": 2_000})

    @flow.task
    async def work(text: str) -> int:
        return len(text)

    async with flow.test() as t:
        with pytest.raises(
            PayloadError, match=r"work\(\) was given 2,011 bytes .* at most 2,000 .*ARGUMENTS_MAX_BYTES"
        ):
            await work.submit("x" * 2_000)
        with pytest.raises(PayloadError, match="bytes"):
            await work.submit_many([work.call("x"), work.call("x" * 2_000)])
        assert await t.broker.counts() == []
        job = await work.submit("x" * 1_989)
        await t.run_until_idle()

        assert await job.result() == 1_989


async def test_the_gates_of_a_job_are_its_named_policies_and_the_lane_keys_those_that_say_so() -> None:
    flow = make_flow()

    @flow.task(
        breaker=CircuitBreaker("http", per_lane=True),
        bulkhead=Bulkhead("http", 5, per_lane=True),
        rate=RateLimit("api", "10/s"),
        lane=lambda host, port: f"{host}:{port}",
    )
    async def call(host: str, port: int = 80) -> None: ...

    async with flow.test() as t:
        t.running.worker.pause()
        jobs = [await call.submit("a"), await call.submit("b", port=8080), await call.options(lane="c").submit("d")]
        found = [await t.broker.show(job.id) for job in jobs]

    assert [job.gates for job in found if job is not None] == [
        ("api", "http/a:80"),
        ("api", "http/b:8080"),
        ("api", "http/c"),
    ]
    assert [job.lane for job in found if job is not None] == ["a:80", "b:8080", "c"]


async def test_a_lane_sees_the_arguments_that_the_handler_will_get() -> None:
    flow = make_flow()

    @flow.task(lane=lambda day: day.strftime("%Y-%m"))
    async def bill(day: dt.date) -> None: ...

    async with flow.test() as t:
        jobs = [await bill.submit(dt.date(2026, 7, 1)), await bill.submit("2026-07-02")]  # type: ignore[arg-type]
        found = [await t.broker.show(job.id) for job in jobs]

    assert [job.lane for job in found if job is not None] == ["2026-07", "2026-07"]


@pytest.mark.parametrize(
    ("lane", "words"),
    [
        (lambda to: to.missing, "lane= raised AttributeError"),
        (lambda to: 7, "must return a string"),
        (lambda to: "x" * 300, "at most 200 bytes"),
        (lambda to: "\ud800", "of valid UTF-8 without NUL, got one of 1 characters"),
        (lambda to: "a\0b", "of valid UTF-8 without NUL, got one of 3 characters"),
    ],
)
async def test_a_lane_that_cannot_be_had_is_refused_at_submit(lane: Any, words: str) -> None:
    flow = make_flow()

    @flow.task(lane=lane)
    async def work(to: str) -> None: ...

    async with flow.test():
        with pytest.raises(PayloadError, match=words):
            await work.submit("ada")


@pytest.mark.parametrize("lane", [lambda: "", lambda to: to, lambda to, text, more: to, lambda to, **kw: to, str.upper])
def test_a_lane_that_does_not_take_what_the_handler_takes_is_refused_where_it_is_declared(lane: Any) -> None:
    flow = make_flow()

    def declare() -> None:
        @flow.task(lane=lane)
        async def work(to: str, *, text: str = "") -> None: ...

    if "kw" in inspect.signature(lane).parameters:
        declare()
    else:
        with pytest.raises(ConfigError, match=r"task 'work': lane= is called with all arguments .* \(to, text\)"):
            declare()


@pytest.mark.parametrize(
    "lane",
    [
        lambda to: {}[to],
        lambda to: [to],
        lambda to: to * 50,
        lambda to: f"{to}\ud800",
    ],
)
async def test_no_argument_is_seen_in_what_is_said_of_a_lane(lane: Any) -> None:
    flow, secret = make_flow(), "-".join("hünter2")  # not as in the source, which tracebacks quote

    @flow.task(lane=lane)
    async def work(to: str) -> None: ...

    async with flow.test():
        with pytest.raises(PayloadError) as refused:
            await work.submit(secret)

    assert secret[:6] not in "".join(traceback.format_exception(refused.value))


async def test_a_lane_can_refuse_a_job_in_its_own_words() -> None:
    flow = make_flow()

    def refuse(to: str) -> str:
        raise PayloadError("nobody is mailed there")

    @flow.task(lane=refuse)
    async def work(to: str) -> None: ...

    async with flow.test():
        with pytest.raises(PayloadError, match=r"^nobody is mailed there$"):
            await work.submit("ada")


async def test_of_the_options_only_what_they_say_counts_in_the_worker() -> None:
    flow = make_flow(retry={"max_delay_s": 9})

    @flow.task(retry=Retry(attempts=4, base=30, jitter="none"))
    async def work() -> None:
        raise OSError

    async with flow.test() as t:
        said = await work.options(retry=Retry(attempts=3)).submit()  # as the default, but said
        nothing = await work.options(retry=Retry()).submit()
        payloads = [
            json.loads(job.payload) for job in (await t.broker.show(said.id), await t.broker.show(nothing.id)) if job
        ]
        await t.run_until_idle()
        for _ in range(3):
            await t.advance(9)
        ended = [await t.broker.show(job.id) for job in (said, nothing)]

    assert [payload.get("opt") for payload in payloads] == [{"retry": {"attempts": 3}}, None]
    assert [job.attempts for job in ended if job] == [3, 4]


async def test_a_cancelled_job_is_told_to_whoever_awaits_it() -> None:
    flow = make_flow()

    @flow.task
    async def work() -> None: ...

    async with flow.test():
        job = await work.options(delay=60).submit()

        assert await job.cancel()
        assert not await job.cancel()
        with pytest.raises(JobCancelled):
            await job.result()
    assert repr(job) == f"<job {job.id}>"


async def test_a_job_that_is_cancelled_before_it_ran_is_counted_once() -> None:
    flow = make_flow()

    @flow.task
    async def work() -> None: ...

    cancelled = heard(flow, events.JobCancelled)
    async with flow.test():
        job = await work.options(delay=60, queue="later").submit()
        await flow.job(job.id).cancel()
        await flow.job(job.id).cancel()

    assert cancelled == [events.JobCancelled(job.id, work.name, "later")]


async def test_each_job_that_does_not_fit_is_counted_for_its_queue() -> None:
    flow = make_flow()

    @flow.task(queue="mail", lane=lambda to: to)
    async def work(to: str) -> None: ...

    rejected = heard(flow, events.JobsRejected)
    wrong, too_long = 1, "x" * 300  # the lane is found only when all is sent
    async with flow.test():
        for submit in (
            lambda: work.submit(wrong),  # type: ignore[arg-type]
            lambda: work.options(queue="other").submit(wrong),  # type: ignore[arg-type]
            lambda: work.submit_many([work.call("a"), work.call(too_long)]),
            lambda: work.submit_many([work.options(queue="other").call(to) for to in ("a", too_long)]),
        ):
            with pytest.raises(PayloadError):
                await submit()
        await work.submit("a")

    assert rejected == [events.JobsRejected(queue, "invalid", 1) for queue in ("mail", "other") * 2]


async def test_a_handle_can_be_made_again_from_the_id() -> None:
    flow = make_flow()

    @flow.task
    async def work() -> tuple[int, int]:
        return (1, 2)

    async with flow.test() as t:
        job = await work.submit()
        await t.run_until_idle()

        assert await flow.job(job.id, work).result(0) == (1, 2)
        assert await flow.job(job.id).result(0) == [1, 2]


def test_the_defaults_are_no_options() -> None:
    assert Options().carried() == {}
    assert Options().policy_options() == {}
