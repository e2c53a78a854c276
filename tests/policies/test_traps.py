"""The traps in which resilience libraries were caught, each with the test that this one is not.

A number, what went wrong elsewhere, and the tests; or why it cannot happen here.

 1 half-open herd: test_trap_01_half_open_herd
 2 a late result decides the probe: test_trap_02_late_result_of_an_earlier_generation
 3 a cancelled probe closes the breaker: test_trap_03_cancelled_probe
 4 cancellation counted as a failure: test_trap_04_cancellation_is_no_failure
 5 a probe that never reports: test_trap_05_hung_probe
 6 an ignored error adds a permit: test_trap_06_ignored_error_of_another_generation
 7 a caller's short deadline opens a shared breaker: test_trap_07_deadline_that_a_caller_shortened
 8 a timeout swallows a cancellation: test_trap_08_outside_cancellation_meets_the_result,
   tests/test_architecture.py::test_nobody_waits_by_wait_for
 9 CancelledError is retried: test_trap_09_cancellation_is_never_retried
10 ExceptionGroup matches nothing: test_trap_10_exception_group
11 a cancelled waiter keeps a bulkhead's slot: test_trap_11_bulkhead_slot_of_a_cancelled_waiter
12 semaphore bugs of the runtime: test_trap_12_semaphores_of_the_runtime
13 a shared backoff iterator: test_trap_13_backoff_of_two_calls_at_once,
   tests/core/test_backoff.py::test_two_jobs_at_the_same_attempt_wait_the_same_whatever_else_was_asked
14 shared statistics: test_trap_14_notes_of_two_calls_at_once
15 jitter lost at the cap: tests/core/test_backoff.py::test_jitter_survives_at_the_cap
16 the deadline overshot: test_trap_16_no_sleep_past_the_deadline
17 Retry-After without bounds: test_trap_17_retry_after, tests/policies/test_retry_after.py::test_whatever_a_server_sends_gives_a_bounded_wait_or_none
18 retries of retries: test_trap_18_retry_inside_retry
19 budgets that look at what is in flight: test_trap_19_budget_is_charged_when_a_retry_is_sent
20 an empty budget hides the error: test_trap_20_empty_budget_keeps_the_original_error
21 a shared breaker that serialises the fleet: cannot occur in a Pipeline, whose state is its process's own; in the
   queue only transitions are shared: tests/brokers/contract/test_gates.py::test_change_from_an_older_generation_is_refused
22 a racy shared breaker: as 21; tests/core/test_gate.py::test_the_generation_grows_with_every_hold_and_release
23 breaker state for every key for ever: test_trap_23_keys_are_bounded
24 the wall clock: test_trap_24_wall_clock_set_back
25 blind below the minimum of calls: test_trap_25_few_calls
26 one exception object raised again and again: test_trap_26_new_exception_each_time
27 the tripping call's error replaced: test_trap_27_tripping_call_keeps_its_error
28 a sync breaker around `async def`: test_trap_28_function_that_only_returns_an_awaitable
29 a thread ignores its timeout: policies run no threads; for jobs
   tests/runtime/test_worker.py::test_a_sync_handler_that_runs_out_of_time_is_given_up_on_and_keeps_its_slot_until_it_ends
30 cancel scopes across yield: test_trap_30_generators
31 starvation by weight: test_trap_31_turns_in_order_of_arrival
32 one waiter woken when the limit grew by many: test_trap_32_raised_limit_wakes_as_many_as_it_grew_by
33 hedges whose losers count: cannot occur, nothing is hedged
34 snoozed for ever: a Pipeline's waits are bounded by `wait` and the deadline, for jobs
   tests/runtime/test_attempt.py::test_snoozes_end_with_the_longest_wait
35 a hot requeue loop: a Pipeline requeues nothing; for jobs
   tests/brokers/contract/test_gates.py::test_held_gate_admits_none_until_its_hold_is_over
36 deadlines by clocks that differ: test_trap_36_deadlines_travel_as_remaining_time
37 429 counted as a breaker's failure: test_trap_37_throttled_is_no_failure
38 exponent overflow: tests/core/test_backoff.py::test_what_is_too_large_for_a_float_is_the_cap
39 the herd after closing: test_trap_39_slow_start
"""

from __future__ import annotations

import ast
import asyncio
import functools
import random
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from taskflow import (
    Bulkhead,
    BulkheadFull,
    CircuitBreaker,
    CircuitOpen,
    Deadline,
    DeadlineExceeded,
    ErrorClass,
    Pipeline,
    RateLimit,
    RateLimited,
    Registry,
    Rejected,
    Retry,
    RetryBudget,
    Timeout,
)
from taskflow.core.breaker import BreakerState
from tests.policies.made import Body, Hung, errors

if TYPE_CHECKING:
    from taskflow.testing import VirtualClock

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
CLOSED, OPEN, HALF_OPEN = BreakerState
SMTP = CircuitBreaker("smtp", consecutive=1, close_after=1)


class Throttled(Exception):
    """As an HTTP library raises it for 429."""

    def __init__(self, retry_after: str) -> None:
        super().__init__("429")
        self.status = 429
        self.headers = {"Retry-After": retry_after}


Throttled.__module__ = "aiohttp.client_exceptions"


async def opened(registry: Registry, *more: Any, spec: CircuitBreaker = SMTP) -> Pipeline[Any]:
    """A pipeline whose circuit has opened just now."""
    pipeline = Pipeline(spec, *more, registry=registry)
    with pytest.raises(ConnectionError):
        await pipeline.call(Body(ConnectionError("down")))
    assert pipeline.breaker.snapshot().state is OPEN
    return pipeline


def test_every_trap_has_its_test_or_a_reason() -> None:
    assert __doc__ is not None
    entries = re.split(r"^ ?(\d+) ", __doc__.partition("happen here.\n\n")[2], flags=re.MULTILINE)[1:]
    table = dict(zip(map(int, entries[::2]), entries[1::2], strict=True))

    assert list(table) == list(range(1, 40))
    for number, text in table.items():
        named = [("tests/policies/test_traps.py", name) for name in re.findall(r"(?<!::)\b(test_trap_\w+)", text)]
        named += re.findall(r"(tests/[\w/]+\.py)::(\w+)", text)
        assert named or "cannot occur" in text, number
        for path, name in named:
            assert name in names_in(path), f"trap {number}: no test {path}::{name}"


@functools.cache
def names_in(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


async def test_trap_01_half_open_herd(registry: Registry, clock: VirtualClock) -> None:
    pipeline = await opened(registry)
    await clock.advance(10)
    body = Hung()

    callers = [asyncio.create_task(pipeline.call(body)) for _ in range(50)]
    await clock.advance(0)
    assert body.running == 1
    body.let_go()
    results = await asyncio.gather(*callers, return_exceptions=True)

    assert errors(results, CircuitOpen) == 49
    assert body.most == 1


@pytest.mark.parametrize("says", [ConnectionError("late"), "done"])
async def test_trap_02_late_result_of_an_earlier_generation(
    says: str | Exception, registry: Registry, clock: VirtualClock
) -> None:
    pipeline = Pipeline(SMTP, registry=registry)
    late = asyncio.create_task(pipeline.call(Body(says, clock=clock, takes_s=12)))
    await clock.advance(0)
    with pytest.raises(ConnectionError):
        await pipeline.call(Body(ConnectionError("down")))
    await clock.advance(10)
    probe = Hung()
    probing = asyncio.create_task(pipeline.call(probe))

    await clock.advance(2)
    (said,) = await asyncio.gather(late, return_exceptions=True)

    assert said is says
    assert pipeline.breaker.snapshot().state is HALF_OPEN
    probe.let_go()
    await probing
    assert pipeline.breaker.snapshot().state is CLOSED


async def test_trap_03_cancelled_probe(registry: Registry, clock: VirtualClock) -> None:
    pipeline = await opened(registry)
    await clock.advance(10)
    probing = asyncio.create_task(pipeline.call(Hung()))
    await clock.advance(0)

    probing.cancel()
    await asyncio.wait([probing])

    assert pipeline.breaker.snapshot().state is HALF_OPEN
    assert await pipeline.call(Body("up")) == "up"
    assert pipeline.breaker.snapshot().state is CLOSED


async def test_trap_04_cancellation_is_no_failure(registry: Registry, clock: VirtualClock) -> None:
    pipeline = Pipeline(SMTP, registry=registry)
    for _ in range(20):
        task = asyncio.create_task(pipeline.call(Hung()))
        await clock.advance(1)
        task.cancel()
        await asyncio.wait([task])

    seen = pipeline.breaker.snapshot()

    assert (seen.state, seen.calls) == (CLOSED, 0)


async def test_trap_04_own_timeout_is_a_failure(registry: Registry, clock: VirtualClock) -> None:
    for index, policies in enumerate(
        [(CircuitBreaker("a", consecutive=1), Timeout(5)), (Timeout(5), CircuitBreaker("b", consecutive=1))]
    ):
        pipeline = Pipeline(*policies, registry=registry)

        with pytest.raises(DeadlineExceeded):
            await clock.run(pipeline.call(Hung()))

        assert pipeline.breaker.snapshot().state is OPEN, index


async def test_trap_05_hung_probe(registry: Registry, clock: VirtualClock) -> None:
    pipeline = await opened(registry)
    await clock.advance(10)
    hung = asyncio.create_task(pipeline.call(Hung()))
    await clock.advance(9.9)
    with pytest.raises(CircuitOpen):
        await pipeline.call(Body())

    await clock.advance(0.1)

    assert await pipeline.call(Body("up")) == "up"
    assert pipeline.breaker.snapshot().state is CLOSED
    hung.cancel()
    await asyncio.wait([hung])
    assert pipeline.breaker.snapshot().state is CLOSED


async def test_trap_06_ignored_error_of_another_generation(registry: Registry, clock: VirtualClock) -> None:
    pipeline = Pipeline(SMTP, registry=registry)
    early = Body(ValueError("bad data"), clock=clock, takes_s=12)
    late = asyncio.create_task(pipeline.call(early))
    await clock.advance(0)
    with pytest.raises(ConnectionError):
        await pipeline.call(Body(ConnectionError("down")))
    await clock.advance(10)
    probe = asyncio.create_task(pipeline.call(Hung()))
    await clock.advance(2)
    with pytest.raises(ValueError, match="bad data"):
        await late

    with pytest.raises(CircuitOpen):
        await pipeline.call(Body())
    probe.cancel()
    await asyncio.wait([probe])


async def test_trap_07_deadline_that_a_caller_shortened(registry: Registry, clock: VirtualClock) -> None:
    shared = Pipeline(SMTP, Timeout(5), registry=registry)
    hurried = Pipeline(Timeout(0.1), registry=registry)
    for _ in range(20):
        with pytest.raises(DeadlineExceeded):
            await clock.run(hurried.call(shared.call, Hung()))

    assert await shared.call(Body("up")) == "up"
    assert pipeline_counts(shared) == (CLOSED, 0)
    patient = Pipeline(Timeout(6), registry=registry)
    with pytest.raises(DeadlineExceeded):
        await clock.run(patient.call(shared.call, Hung()))  # it had all of its own five seconds
    assert shared.breaker.snapshot().state is OPEN


def pipeline_counts(pipeline: Pipeline[Any]) -> tuple[BreakerState, int]:
    seen = pipeline.breaker.snapshot()
    return seen.state, seen.failures


async def test_trap_08_outside_cancellation_meets_the_result(registry: Registry, clock: VirtualClock) -> None:
    pipeline = Pipeline(Timeout(5), Retry(), Bulkhead("b", 10), Timeout(4), registry=registry)
    for number in range(50):
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def body(answer: asyncio.Future[str] = answer) -> str:
            return await answer

        task = asyncio.create_task(pipeline.call(body))
        await clock.advance(0)
        if number % 2:
            answer.set_result("done")
            task.cancel()
        else:
            task.cancel()
            answer.cancel()
        await asyncio.wait([task])

        assert task.cancelled()


async def test_trap_09_cancellation_is_never_retried(registry: Registry, clock: VirtualClock) -> None:
    pipeline = Pipeline(Retry(attempts=5, on=(BaseException,)), registry=registry)
    for error in (asyncio.CancelledError(), BaseExceptionGroup("", [OSError(), asyncio.CancelledError()])):
        body = Body(error)

        with pytest.raises(type(error)):
            await clock.run(pipeline.call(body))

        assert body.runs == 1


async def test_trap_10_exception_group(registry: Registry, clock: VirtualClock) -> None:
    pipeline = Pipeline(Retry(attempts=3, on=(OSError, ErrorClass.TRANSIENT)), registry=registry)
    passing = Body(ExceptionGroup("", [OSError(), ExceptionGroup("", [TimeoutError()])]), "done")
    lasting = Body(ExceptionGroup("", [OSError(), ValueError()]))

    assert await clock.run(pipeline.call(passing)) == "done"
    with pytest.raises(ExceptionGroup):
        await clock.run(pipeline.call(lasting))

    assert (passing.runs, lasting.runs) == (2, 1)


@pytest.mark.parametrize("moment", ["waiting", "as it gets the slot", "as its wait is over"])
async def test_trap_11_bulkhead_slot_of_a_cancelled_waiter(
    moment: str, registry: Registry, clock: VirtualClock
) -> None:
    pipeline = Pipeline(Bulkhead("b", 1, wait=5), registry=registry)
    holder = Hung()
    holding = asyncio.create_task(pipeline.call(holder))
    await clock.advance(0)
    waiter = asyncio.create_task(pipeline.call(Body()))
    await clock.advance(0)
    assert pipeline.bulkhead.waiting == 1

    if moment == "as it gets the slot":
        holder.let_go()
        while pipeline.bulkhead.waiting:  # noqa: ASYNC110 - the very turn of the loop in which it is handed on
            await asyncio.sleep(0)
    elif moment == "as its wait is over":
        clock.call_at(5, waiter.cancel)
        await clock.advance(5)
    waiter.cancel()
    holder.let_go()
    await asyncio.wait([waiter, holding])

    assert (pipeline.bulkhead.in_use, pipeline.bulkhead.waiting) == (0, 0)
    assert await pipeline.call(Body("done")) == "done"


def test_trap_12_semaphores_of_the_runtime() -> None:
    """4.14.2 is the first anyio without lost wake-ups; the policies count for themselves, and use none of its locks."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    sources = "".join(path.read_text() for path in (ROOT / "taskflow" / "policies").glob("*.py"))

    assert "anyio>=4.14.2" in project["dependencies"]
    assert re.search(r"Semaphore|CapacityLimiter|\bLock\(", sources) is None


async def test_trap_13_backoff_of_two_calls_at_once(registry: Registry, clock: VirtualClock) -> None:
    pipeline = Pipeline(Retry(attempts=4, base=1, jitter="none"), registry=registry)
    bodies = [Body(ConnectionError("down"), clock=clock) for _ in range(2)]

    await clock.run(asyncio.gather(*(pipeline.call(body) for body in bodies), return_exceptions=True))

    assert [body.at for body in bodies] == [[0, 1, 3, 7]] * 2


async def test_trap_14_notes_of_two_calls_at_once(registry: Registry, clock: VirtualClock) -> None:
    pipeline = Pipeline(Retry(attempts=3, on=(OSError,), base=1, jitter="none"), name="api", registry=registry)
    short, long = Body(OSError(), ValueError("a")), Body(OSError(), ConnectionError(), OSError("b"))

    found = await clock.run(asyncio.gather(*map(pipeline.call, (short, long)), return_exceptions=True))

    assert [error.__notes__ for error in found if isinstance(error, Exception)] == [
        ["taskflow: api: 2 attempts in 1 s; another attempt does not help (before: OSError)"],
        ["taskflow: api: 3 attempts in 3 s; all attempts are used up (before: OSError, ConnectionError)"],
    ]


async def test_trap_16_no_sleep_past_the_deadline(registry: Registry, clock: VirtualClock) -> None:
    pipeline = Pipeline(Timeout(10), Retry(attempts=9, base=4, factor=2, jitter="none"), name="api", registry=registry)
    body = Body(ConnectionError("down"), clock=clock)

    with pytest.raises(OSError, match="down") as failed:
        await clock.run(pipeline.call(body))

    assert (clock.now(), body.at) == (4, [0, 4])
    assert failed.value.__notes__ == [
        "taskflow: api: 2 attempts in 4 s; the deadline comes before the next attempt, in 8 s (before: ConnectionError)"
    ]


@pytest.mark.parametrize(
    ("said", "waits_s"),
    [
        ("7", 7),
        ("0", 0),
        ("-5", 0),
        ("soon", 0),
        ("Tue, 14 Nov 2023 22:13:30 GMT", 10),
        ("9" * 400, None),
        ("61", None),
    ],
)
async def test_trap_17_retry_after(said: str, waits_s: float | None, registry: Registry, clock: VirtualClock) -> None:
    """The virtual wall shows Tue, 14 Nov 2023 22:13:20 GMT at first."""
    pipeline = Pipeline(Retry(attempts=2, base=0.001, max_delay=60), registry=registry)
    body = Body(Throttled(said), "done", clock=clock)

    if waits_s is None:
        with pytest.raises(Throttled) as failed:
            await clock.run(pipeline.call(body))
        assert clock.now() == 0
        assert "more than max_delay=60" in failed.value.__notes__[0]
    else:
        await clock.run(pipeline.call(body))
        assert waits_s <= body.at[1] <= waits_s * 1.1 + 0.001  # jitter upwards only: never before it was asked


async def test_trap_18_retry_inside_retry(registry: Registry, clock: VirtualClock) -> None:
    inner = Pipeline(Retry(attempts=3), CircuitBreaker("api", consecutive=99, min_calls=99), registry=registry)
    outer = Pipeline(Retry(attempts=3), name="api", registry=registry)
    other = Pipeline(Retry(attempts=3), name="mail", registry=registry)
    same, different = Body(ConnectionError("down")), Body(ConnectionError("down"))

    with pytest.raises(ConnectionError):
        await clock.run(outer.call(inner.call, same))
    with pytest.raises(ConnectionError):
        await clock.run(other.call(inner.call, different))

    assert (same.runs, different.runs) == (3, 9)


async def test_trap_19_budget_is_charged_when_a_retry_is_sent(registry: Registry, clock: VirtualClock) -> None:
    """All fail at once, and all find a token before they sleep: only as many as there are tokens go on."""
    budget = RetryBudget("api", ratio=0, cap=10)
    pipeline = Pipeline(Retry(attempts=2, budget=budget), registry=registry)
    body = Body(ConnectionError("down"))

    results = await clock.run(asyncio.gather(*(pipeline.call(body) for _ in range(100)), return_exceptions=True))

    assert errors(results, OSError) == 100
    assert body.runs == 110


async def test_trap_20_empty_budget_keeps_the_original_error(registry: Registry, clock: VirtualClock) -> None:
    pipeline = Pipeline(Retry(budget=RetryBudget("api", ratio=0, cap=0.5)), name="api", registry=registry)
    original = ConnectionResetError("the very one")

    with pytest.raises(ConnectionResetError) as failed:
        await clock.run(pipeline.call(Body(original)))

    assert failed.value is original
    assert failed.value.__notes__ == ["taskflow: api: 1 attempt in 0 s; its retry budget is empty"]


async def test_trap_23_keys_are_bounded(clock: VirtualClock) -> None:
    registry = Registry(clock, random.Random(1), max_keys=100)
    pipeline = Pipeline(SMTP, registry=registry)
    with pytest.raises(ConnectionError):
        await pipeline.with_key("down").call(Body(ConnectionError("down")))

    for number in range(1_000):
        await pipeline.with_key(f"host{number}").call(Body())

    assert registry.keys == 100
    assert pipeline.with_key("down").breaker.snapshot().state is OPEN


async def test_trap_24_wall_clock_set_back(registry: Registry, clock: VirtualClock) -> None:
    pipeline = await opened(registry, RateLimit("r", "1/s", wait=5), Timeout(5))

    clock._wall -= 86_400
    await clock.advance(10)

    assert await pipeline.call(Body("up")) == "up"
    clock._wall += 2 * 86_400
    began = clock.now()
    await clock.run(pipeline.call(Body()))
    assert clock.now() - began == pytest.approx(1)


async def test_trap_25_few_calls(registry: Registry, clock: VirtualClock) -> None:
    pipeline = Pipeline(CircuitBreaker("slow"), registry=registry)
    body = Body(ConnectionError("down"))

    for _ in range(30):  # a call a minute never fills a window
        with pytest.raises((OSError, CircuitOpen)):
            await pipeline.call(body)
        await clock.advance(60)
        if pipeline.breaker.snapshot().state is OPEN:
            break

    assert body.runs == 5


async def test_trap_26_new_exception_each_time(registry: Registry, clock: VirtualClock) -> None:
    pipeline = await opened(registry)
    full = Pipeline(Bulkhead("b", 1), registry=registry)
    limited = Pipeline(RateLimit("r", "1/h"), registry=registry)
    holding = asyncio.create_task(full.call(Hung()))
    await clock.advance(0)
    await limited.call(Body())

    for each, kind in ((pipeline, CircuitOpen), (full, BulkheadFull), (limited, RateLimited)):
        raised: list[Rejected] = []
        for _ in range(2):
            with pytest.raises(kind) as turned_away:
                await each.call(Body())
            raised.append(turned_away.value)
        assert raised[0] is not raised[1]
        assert raised[0].retry_after_s
    holding.cancel()
    await asyncio.wait([holding])


async def test_trap_27_tripping_call_keeps_its_error(registry: Registry) -> None:
    pipeline = Pipeline(SMTP, registry=registry)
    original = ConnectionResetError("the very one")

    with pytest.raises(ConnectionResetError) as failed:
        await pipeline.call(Body(original))

    assert failed.value is original
    assert pipeline.breaker.snapshot().state is OPEN


async def test_trap_28_function_that_only_returns_an_awaitable(registry: Registry) -> None:
    pipeline = Pipeline(CircuitBreaker("api", consecutive=3), registry=registry)
    body = Body(ConnectionError("down"))

    def returns() -> Any:
        return body()

    for fn in (returns, functools.partial(returns), body):
        with pytest.raises(OSError, match="down"):
            await pipeline.call(fn)

    assert pipeline.breaker.snapshot().state is OPEN


async def test_trap_28_sync_function_is_refused_and_not_run_again(registry: Registry, clock: VirtualClock) -> None:
    runs: list[int] = []

    def sync() -> int:
        runs.append(1)
        return 3

    for policies in ((Retry(),), (Retry(), Timeout(5)), (Bulkhead("b", 1),), ()):
        with pytest.raises(TypeError, match="cannot be awaited"):
            await clock.run(Pipeline(*policies, registry=registry).call(sync))  # type: ignore[arg-type]

    assert len(runs) == 4


async def test_trap_30_generators(registry: Registry) -> None:
    async def items() -> Any:
        yield 1

    for policies in ((Timeout(5),), (Retry(),), ()):
        with pytest.raises(TypeError, match="is a generator"):
            Pipeline(*policies, registry=registry)(items)


async def test_trap_31_turns_in_order_of_arrival(registry: Registry, clock: VirtualClock) -> None:
    pipeline = Pipeline(RateLimit("r", "1/s", wait=60), Bulkhead("b", 1, wait=60), registry=registry)
    order: list[int] = []

    async def body(number: int) -> None:
        order.append(number)
        await clock.sleep(1.5)

    await clock.run(asyncio.gather(*(pipeline.call(body, number) for number in range(20))))

    assert order == list(range(20))


async def test_trap_32_raised_limit_wakes_as_many_as_it_grew_by(registry: Registry, clock: VirtualClock) -> None:
    pipeline = Pipeline(Bulkhead("b", 2, wait=60), registry=registry)
    body = Hung()
    callers = [asyncio.create_task(pipeline.call(body)) for _ in range(10)]
    await clock.advance(0)
    assert body.running == 2

    pipeline.bulkhead.set_limit(7)
    await clock.advance(0)

    assert (body.running, pipeline.bulkhead.waiting) == (7, 3)
    body.let_go()
    await asyncio.gather(*callers)
    assert body.most == 7


async def test_trap_36_deadlines_travel_as_remaining_time(registry: Registry, clock: VirtualClock) -> None:
    async def call_another_process() -> dict[str, str]:
        await clock.sleep(1)
        return Deadline.header()

    sent = await clock.run(Pipeline(Timeout(5), registry=registry).call(call_another_process))

    assert sent == {"X-Deadline-Ms": "4000"}
    with Deadline.from_header("4000"):  # there, on a clock that says something else
        assert Deadline.remaining_s() == pytest.approx(4, abs=0.5)


async def test_trap_37_throttled_is_no_failure(registry: Registry, clock: VirtualClock) -> None:
    pipeline = Pipeline(SMTP, RateLimit("smtp", "100/s", burst=10), registry=registry)

    with pytest.raises(Throttled):
        await pipeline.call(Body(Throttled("30")))

    assert pipeline_counts(pipeline) == (CLOSED, 0)
    with pytest.raises(RateLimited) as turned_away:  # it feeds the rate limit: one 429 stops its siblings
        await pipeline.call(Body())
    assert turned_away.value.retry_after_s == pytest.approx(30)


async def test_trap_39_slow_start(registry: Registry, clock: VirtualClock) -> None:
    pipeline = await opened(registry)
    await clock.advance(10)
    await pipeline.call(Body("up"))
    assert pipeline.breaker.snapshot().state is CLOSED

    admitted: list[int] = []
    for _ in range(6):
        body = Hung()
        callers = [asyncio.create_task(pipeline.call(body)) for _ in range(100)]
        await clock.advance(0)
        admitted.append(body.running)
        body.let_go()
        await asyncio.gather(*callers, return_exceptions=True)

    assert admitted == [1, 2, 4, 8, 16, 32]
