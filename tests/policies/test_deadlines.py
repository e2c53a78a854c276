from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskflow import (
    CircuitBreaker,
    ConfigError,
    Deadline,
    DeadlineExceeded,
    JobFailed,
    Pipeline,
    Registry,
    Retry,
    Timeout,
)
from taskflow.core import events
from taskflow.testing import VirtualClock, virtual_policies
from tests.policies.made import Body, Hung
from tests.runtime.made import heard, make_flow

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.anyio


@pytest.fixture
def clock() -> Iterator[VirtualClock]:
    with virtual_policies() as clock:
        yield clock


async def test_a_timeout_cancels_the_body_and_says_so(clock: VirtualClock) -> None:
    body = Hung()

    with pytest.raises(DeadlineExceeded) as late:
        await clock.run(Pipeline(Timeout(5), name="api").call(body))

    assert (clock.now(), body.running) == (5, 0)
    assert str(late.value) == "api: still running after its timeout of 5 s"
    assert isinstance(late.value, TimeoutError)
    assert isinstance(late.value.__cause__, asyncio.CancelledError)  # shows where it was
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_what_ends_in_time_is_not_touched(clock: VirtualClock) -> None:
    pipeline = Pipeline(Timeout(5))

    assert await clock.run(pipeline.call(Body("done", clock=clock, takes_s=4.9))) == "done"
    with pytest.raises(ValueError, match="its own"):
        await clock.run(pipeline.call(Body(ValueError("its own"), clock=clock, takes_s=4.9)))
    await clock.advance(60)


async def test_an_error_while_it_is_cancelled_comes_out_and_takes_the_cancellation_back(clock: VirtualClock) -> None:
    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ConnectionError("while cleaning up") from None

    with pytest.raises(ConnectionError, match="while cleaning up"):
        await clock.run(Pipeline(Timeout(5)).call(stubborn))


async def test_a_cancellation_from_outside_wins_over_the_timeout(clock: VirtualClock) -> None:
    task = asyncio.create_task(Pipeline(Timeout(5)).call(Hung()))
    await clock.advance(0)
    clock.call_at(5, task.cancel)

    await clock.advance(5)
    await asyncio.wait([task])

    assert task.cancelled()


async def test_the_nearest_deadline_ends_nested_calls(clock: VirtualClock) -> None:
    outer, inner = Pipeline(Timeout(3), name="outer"), Pipeline(Timeout(30), name="inner")

    with pytest.raises(DeadlineExceeded, match="outer: still running after its timeout of 3 s"):
        await clock.run(outer.call(inner.call, Hung()))

    assert clock.now() == 3


async def test_a_call_after_the_deadline_is_not_made(clock: VirtualClock) -> None:
    body = Body()

    with Deadline(0), pytest.raises(DeadlineExceeded, match="not called, since the caller's deadline has passed"):
        await Pipeline(Timeout(5), name="api").call(body)

    assert body.runs == 0


async def test_the_time_that_is_left_travels_to_another_process_and_back(clock: VirtualClock) -> None:
    async def remote(headers: dict[str, str]) -> float | None:
        with Deadline.from_header(headers.get(Deadline.HEADER)):
            await clock.sleep(1)
            return Deadline.remaining_s()

    async def call() -> float | None:
        await clock.sleep(2)
        return await remote(Deadline.header())

    assert await clock.run(Pipeline(Timeout(10)).call(call)) == 7
    assert (Deadline.remaining_s(), Deadline.header()) == (None, {})


@pytest.mark.parametrize(
    ("value", "left_s"),
    [
        ("1500", 1.5),
        (" 1500 ", 1.5),
        ("0", 0),
        ("-20", 0),
        (None, None),
        ("", None),
        ("1.5", None),
        ("soon", None),
        ("9" * 19, None),
        ("9" * 5000, None),
        ("٣", None),
    ],
)
async def test_a_header_is_milliseconds_or_nothing(
    value: str | None, left_s: float | None, clock: VirtualClock
) -> None:
    with Deadline.from_header(value):
        assert Deadline.remaining_s() == left_s


@given(st.text())
def test_any_header_is_understood_or_ignored(value: str) -> None:
    Deadline.from_header(value)


@pytest.mark.parametrize("seconds", ["5", float("nan"), [1]])
def test_a_deadline_that_is_no_number_is_refused(seconds: float) -> None:
    with pytest.raises(ConfigError, match="takes seconds from now on"):
        Deadline(seconds)


async def test_a_deadline_stops_a_retry_from_sleeping_past_it(clock: VirtualClock) -> None:
    body = Body(ConnectionError(), clock=clock)

    with Deadline(5), pytest.raises(ConnectionError):
        await clock.run(Pipeline(Retry(attempts=9, base=2, jitter="none")).call(body))

    assert body.at == [0, 2]


async def test_a_task_that_outlives_its_call_inherits_neither_deadline_nor_retry(clock: VirtualClock) -> None:
    body, started = Body(ConnectionError(), "done"), []

    async def background() -> object:
        await clock.sleep(100)
        return await Pipeline(Timeout(5), Retry(), name="api").call(body)

    async def start() -> None:
        started.append(asyncio.create_task(background()))

    await clock.run(Pipeline(Timeout(5), Retry(), name="api").call(start))

    assert await clock.run(started[0]) == "done"


async def test_pipelines_on_clocks_of_their_own_understand_each_others_deadlines(clock: VirtualClock) -> None:
    other = VirtualClock()
    await other.advance(1_000)
    far = Pipeline(Timeout(60), name="far", registry=Registry(other))
    calling = asyncio.create_task(Pipeline(Timeout(3)).call(far.call, Hung()))
    await clock.advance(1)

    await other.advance(3)

    with pytest.raises(DeadlineExceeded, match="far: still running when the caller's deadline passed"):
        await calling


async def test_real_time_is_the_default() -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()

    with pytest.raises(DeadlineExceeded):
        await Pipeline(Timeout(0.05), Retry(attempts=9, base=0.01)).call(Hung())

    assert 0.04 < loop.time() - began < 5


async def test_cancel_scopes_and_task_groups_inside_and_outside_keep_their_own(clock: VirtualClock) -> None:
    pipeline = Pipeline(Timeout(5), Retry(), Timeout(4), name="api")
    ended: list[str] = []

    async def children() -> None:
        try:
            async with anyio.create_task_group() as group, asyncio.TaskGroup() as other:
                group.start_soon(asyncio.Event().wait)
                other.create_task(asyncio.Event().wait())
        finally:
            ended.append("children")

    with pytest.raises(DeadlineExceeded):
        await clock.run(pipeline.call(children))
    with anyio.CancelScope() as scope:
        clock.call_at(clock.now() + 1, scope.cancel)
        calling = asyncio.create_task(clock.advance(1))
        await pipeline.call(Hung())
    await calling

    assert scope.cancelled_caught
    assert ended == ["children"] * 2  # the first attempt had four seconds, the second what was left


async def test_each_thread_has_a_state_and_a_clock_of_its_own() -> None:
    pipeline = Pipeline(CircuitBreaker("threads", consecutive=1))
    with pytest.raises(ConnectionError):
        await pipeline.call(Body(ConnectionError()))

    async def there() -> str:
        with pytest.raises(DeadlineExceeded):
            await Pipeline(Timeout(0.01)).call(Hung())
        return str(await pipeline.call(Body("up")))

    assert await asyncio.to_thread(asyncio.run, there()) == "up"
    assert pipeline.breaker.snapshot().state == "open"


async def test_the_time_of_a_job_reaches_the_policies_in_its_handler() -> None:
    flow = make_flow()
    left: list[float | None] = []
    body = Body(ConnectionError("down"))
    behind: list[asyncio.Task[float | None]] = []
    over = asyncio.Event()

    async def in_the_background() -> float | None:
        await over.wait()
        return Deadline.remaining_s()

    @flow.task(timeout=30, deadline=10, retry=Retry(attempts=1))
    async def work() -> None:
        left.append(Deadline.remaining_s())
        behind.append(asyncio.create_task(in_the_background()))
        await api.call(body)

    async with flow.test() as t:
        api = Pipeline(Retry(attempts=9, base=60, jitter="none"), name="api", registry=Registry(t.clock))
        job = await work.submit()
        await t.run_until_idle()
        with pytest.raises(JobFailed, match="ConnectionError") as failed:
            await job.result()
    over.set()

    assert left == [pytest.approx(10)]
    assert body.runs == 1, "no sleep past the deadline"
    assert "the deadline comes before the next attempt" in "".join(failed.value.__notes__)
    assert await behind[0] is None, "what goes on behind the job's back has no deadline for ever"


async def test_a_handler_that_waits_in_a_pipeline_when_its_time_is_up_has_timed_out() -> None:
    flow = make_flow()

    @flow.task(timeout=10, retry=Retry(attempts=1))
    async def work() -> None:
        await api.call(Hung())

    ended = heard(flow, events.AttemptEnded)
    async with flow.test() as t:
        api = Pipeline(Timeout(60), name="api", registry=Registry(t.clock))
        await work.submit()
        await t.advance(11)
        await t.run_until_idle()

    assert [one.outcome for one in ended] == ["timed_out"]
