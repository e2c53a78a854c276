from __future__ import annotations

import asyncio
import inspect
import warnings
from typing import TYPE_CHECKING, Any

import pytest

from taskflow import (
    Bulkhead,
    BulkheadFull,
    Chaos,
    CircuitBreaker,
    CircuitOpen,
    ConfigError,
    DeadlineExceeded,
    ErrorClass,
    Pipeline,
    PolicyOrderWarning,
    RateLimit,
    RateLimited,
    Registry,
    Rejected,
    Retry,
    RetryBudget,
    TaskFlow,
    Timeout,
    register_classifier,
)
from taskflow.core.breaker import BreakerState, Mode
from taskflow.testing import virtual_policies
from tests.policies.made import Body, Hung

if TYPE_CHECKING:
    from taskflow.testing import VirtualClock

pytestmark = pytest.mark.anyio


# ---- ways to call ----


async def test_a_call_hands_its_arguments_on_and_returns_what_comes_back(registry: Registry) -> None:
    async def fetch(url: str, *, fn: int) -> tuple[str, int]:
        return url, fn

    for policies in ((), (Timeout(5),), (Retry(),), (Timeout(5), Retry(), Bulkhead("b", 1), Timeout(4))):
        assert await Pipeline(*policies, registry=registry).call(fetch, "a", fn=3) == ("a", 3)


async def test_a_decorated_function_keeps_its_name_and_is_a_coroutine_function(registry: Registry) -> None:
    @Pipeline(Timeout(5), Retry(), registry=registry)
    async def fetch(url: str) -> str:
        """Fetches."""
        return url

    assert (fetch.__name__, fetch.__doc__, inspect.iscoroutinefunction(fetch)) == ("fetch", "Fetches.", True)
    assert await fetch("a") == "a"


async def test_a_block_runs_under_the_guards(registry: Registry, clock: VirtualClock) -> None:
    pipeline = Pipeline(CircuitBreaker("api", consecutive=1), Bulkhead("api", 1), Timeout(5), registry=registry)

    async with pipeline.guard():
        assert pipeline.bulkhead.in_use == 1
        with pytest.raises(BulkheadFull):
            async with pipeline.guard():
                pytest.fail("it was full")
    with pytest.raises(ConnectionError, match="the block's own"):
        async with pipeline.guard():
            raise ConnectionError("the block's own")

    assert pipeline.bulkhead.in_use == 0
    with pytest.raises(CircuitOpen):
        await pipeline.guard().__aenter__()


async def test_a_block_that_runs_out_of_time_is_cancelled(registry: Registry, clock: VirtualClock) -> None:
    async def block() -> None:
        async with Pipeline(Timeout(5), registry=registry).guard():
            await clock.sleep(60)

    with pytest.raises(DeadlineExceeded, match="after its timeout of 5 s"):
        await clock.run(block())

    assert clock.now() == 5


async def test_a_guard_is_for_one_block(registry: Registry) -> None:
    guard = Pipeline(Bulkhead("b", 5), registry=registry).guard()
    async with guard:
        pass

    with pytest.raises(RuntimeError, match="a new one for each block"):
        await guard.__aenter__()


def test_a_pipeline_that_may_repeat_refuses_a_block_and_says_what_to_do(registry: Registry) -> None:
    pipeline: Any = Pipeline(Timeout(5), Retry(), registry=registry)

    with pytest.raises(TypeError, match=r"has a Retry, .* use `await pipeline.call\(fn, ...\)` or decorate"):
        pipeline.guard()


async def test_a_coroutine_instead_of_its_function_is_refused(registry: Registry) -> None:
    coroutine: Any = Body()()

    with pytest.raises(TypeError, match="takes the function and its arguments"):
        await Pipeline(registry=registry).call(coroutine)

    coroutine.close()


# ---- what stands where ----


async def test_the_first_policy_is_the_outermost(registry: Registry, clock: VirtualClock) -> None:
    total = Pipeline(Timeout(10), Retry(attempts=9, base=0), registry=registry)
    each = Pipeline(Retry(attempts=3, base=0), Timeout(10), registry=registry)

    with pytest.raises(DeadlineExceeded):
        await clock.run(total.call(Hung()))
    assert clock.now() == 10
    with pytest.raises(DeadlineExceeded):
        await clock.run(each.call(Hung()))
    assert clock.now() == 40


async def test_time_in_line_does_not_count_against_the_attempt(registry: Registry, clock: VirtualClock) -> None:
    pipeline = Pipeline(
        CircuitBreaker("api", slow_call=2), Bulkhead("api", 1, wait=60), Timeout(1.5), registry=registry
    )
    body = Body("done", clock=clock, takes_s=1)

    assert await clock.run(asyncio.gather(*(pipeline.call(body) for _ in range(5)))) == ["done"] * 5
    assert clock.now() == 5


ORDERS = [
    ((CircuitBreaker("a"), Retry()), "Retry inside CircuitBreaker"),
    ((Bulkhead("a", 1), Retry()), "Bulkhead outside Retry"),
    ((RateLimit("a", "1/s"), Retry()), "RateLimit outside Retry"),
    ((Retry(), Timeout(1), Retry()), "two Retry"),
    ((Chaos(), Timeout(1)), "Chaos is not the innermost"),
    ((Timeout(1), Retry(), Timeout(1)), "it never ends first"),
]


@pytest.mark.parametrize(("policies", "doubt"), ORDERS)
def test_an_order_that_hardly_anybody_means_is_warned_about(
    policies: tuple[Any, ...], doubt: str, registry: Registry
) -> None:
    with pytest.warns(PolicyOrderWarning, match=doubt) as warned:
        Pipeline(*policies, registry=registry)

    assert [each.filename for each in warned] == [__file__]


def test_the_recommended_order_is_not_warned_about(registry: Registry) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Pipeline(
            Timeout(30),
            Retry(budget=RetryBudget("a")),
            CircuitBreaker("a"),
            RateLimit("a", "1/s"),
            Bulkhead("a", 1),
            Timeout(5),
            Chaos(),
            registry=registry,
        )


@pytest.mark.parametrize("wrong", [RetryBudget("a"), 5, Retry, None])
def test_what_is_no_policy_is_refused(wrong: Any, registry: Registry) -> None:
    with pytest.raises(TypeError):
        Pipeline(wrong, registry=registry)


def test_one_name_with_two_meanings_is_refused(registry: Registry) -> None:
    Pipeline(CircuitBreaker("a"), Bulkhead("a", 1), registry=registry)
    Pipeline(CircuitBreaker("a"), registry=registry)

    with pytest.raises(ConfigError, match="'a' is CircuitBreaker"):
        Pipeline(CircuitBreaker("a", consecutive=3), registry=registry)
    with pytest.raises(ConfigError, match="twice"):
        Pipeline(Bulkhead("b", 1), Bulkhead("b", 1), registry=registry)


# ---- state ----


async def test_pipelines_of_one_name_share_its_state(registry: Registry) -> None:
    first, second = (Pipeline(CircuitBreaker("api", consecutive=1), registry=registry) for _ in range(2))

    with pytest.raises(ConnectionError):
        await first.call(Body(ConnectionError()))

    with pytest.raises(CircuitOpen):
        await second.call(Body())


async def test_each_key_has_a_state_of_its_own(registry: Registry) -> None:
    pipeline = Pipeline(CircuitBreaker("api", consecutive=1), RateLimit("api", "1/h"), registry=registry)
    with pytest.raises(ConnectionError):
        await pipeline.with_key("a").call(Body(ConnectionError()))

    with pytest.raises(CircuitOpen):
        await pipeline.with_key("a").call(Body())
    assert await pipeline.with_key("b").call(Body("b")) == "b"
    with pytest.raises(RateLimited):
        async with pipeline.guard(key="b"):
            pytest.fail("it has had its turn")
    assert await pipeline.call(Body("none")) == "none"


async def test_a_key_that_was_forgotten_is_not_remembered_by_half(clock: VirtualClock) -> None:
    registry = Registry(clock, max_keys=2)
    pipeline = Pipeline(CircuitBreaker("api", consecutive=1), registry=registry)
    held = pipeline.with_key("a")
    await held.call(Body())
    for key in ("b", "c", "d"):
        await clock.advance(1)
        await pipeline.with_key(key).call(Body())

    with pytest.raises(ConnectionError):
        await held.call(Body(ConnectionError()))

    with pytest.raises(CircuitOpen):
        await pipeline.with_key("a").call(Body())


async def test_what_is_in_use_is_never_forgotten_and_a_new_key_is_turned_away(clock: VirtualClock) -> None:
    registry = Registry(clock, max_keys=3)
    pipeline = Pipeline(Bulkhead("api", 1), registry=registry)
    body = Hung()
    holding = [asyncio.create_task(pipeline.with_key(key).call(body)) for key in "abc"]
    await clock.advance(10_000)

    with pytest.raises(Rejected, match="all 3 keys"):
        pipeline.with_key("d")
    with pytest.raises(BulkheadFull):
        await pipeline.with_key("a").call(Body())

    body.let_go()
    await asyncio.gather(*holding)
    assert await pipeline.with_key("d").call(Body("d")) == "d"


async def test_keys_that_nobody_used_for_an_hour_are_forgotten(registry: Registry, clock: VirtualClock) -> None:
    pipeline = Pipeline(CircuitBreaker("api"), registry=registry)
    for number in range(50):
        await pipeline.with_key(str(number)).call(Body())
    await clock.advance(2 * 3600)

    for _ in range(3):  # the first look gives those that were used since a second chance
        await pipeline.with_key("new").call(Body())
        pipeline.with_key("other")
        await clock.advance(3600)
    pipeline.with_key("last")

    assert registry.keys <= 3


async def test_words_of_a_person_force_the_breaker(registry: Registry) -> None:
    pipeline = Pipeline(CircuitBreaker("api", consecutive=1), registry=registry)

    pipeline.breaker.isolate()
    with pytest.raises(CircuitOpen, match="isolated by hand"):
        await pipeline.call(Body())
    pipeline.breaker.disable()
    for _ in range(3):
        with pytest.raises(ConnectionError):
            await pipeline.call(Body(ConnectionError()))
    assert pipeline.breaker.snapshot().calls == 0
    pipeline.breaker.metrics_only()
    for _ in range(3):
        with pytest.raises(ConnectionError):
            await pipeline.call(Body(ConnectionError()))
    assert pipeline.breaker.snapshot()[:5] == (BreakerState.CLOSED, Mode.METRICS_ONLY, 3, 3, 3)
    pipeline.breaker.close()
    assert pipeline.breaker.snapshot()[:4] == (BreakerState.CLOSED, Mode.AUTOMATIC, 4, 0)


def test_what_a_pipeline_has_not_cannot_be_asked_for(registry: Registry) -> None:
    with pytest.raises(ConfigError, match="has no CircuitBreaker"):
        _ = Pipeline(Timeout(1), registry=registry).breaker


# ---- retries ----


async def test_results_that_are_failures_are_retried_and_count_for_the_breaker(
    registry: Registry, clock: VirtualClock
) -> None:
    pipeline = Pipeline(
        Retry(attempts=3, on_result=lambda status: status >= 500),
        CircuitBreaker("api", min_calls=99),
        registry=registry,
    )
    good, bad = Body(500, 503, 200), Body(500)

    assert await clock.run(pipeline.call(good)) == 200
    assert await clock.run(pipeline.call(bad)) == 500  # the last result comes out as it is

    assert (good.runs, bad.runs) == (3, 3)
    assert pipeline.breaker.snapshot().failures == 5


async def test_a_result_that_cannot_be_judged_is_not_asked_for_again_and_gives_all_permits_back(
    registry: Registry,
) -> None:
    pipeline = Pipeline(
        Retry(attempts=3, on_result=lambda status: status.code),
        CircuitBreaker("api"),
        Bulkhead("api", 1),
        registry=registry,
    )

    body = Body("no status")

    with pytest.raises(AttributeError):
        await pipeline.call(body)

    assert body.runs == 1
    assert (pipeline.bulkhead.in_use, pipeline.breaker.snapshot().calls) == (0, 0)


async def test_errors_are_retried_by_their_class(registry: Registry, clock: VirtualClock) -> None:
    pipeline = Pipeline(Retry(on=(ErrorClass.TRANSIENT,)), registry=registry)
    passing, lasting = Body(ConnectionResetError(), "done"), Body(ValueError("bad"))

    assert await clock.run(pipeline.call(passing)) == "done"
    with pytest.raises(ValueError, match="bad") as failed:
        await clock.run(pipeline.call(lasting))

    assert lasting.runs == 1
    assert not hasattr(failed.value, "__notes__")  # nothing happened that is worth a note


async def test_an_open_circuit_is_waited_for_only_if_somebody_says_so(registry: Registry, clock: VirtualClock) -> None:
    breaker = CircuitBreaker("api", consecutive=1, close_after=1)
    quick = Pipeline(Retry(attempts=5), breaker, registry=registry)
    patient = Pipeline(Retry(attempts=5, on=(ConnectionError, CircuitOpen)), breaker, registry=registry)
    body = Body(ConnectionError(), "done")

    with pytest.raises(CircuitOpen):
        await clock.run(quick.call(body))
    assert await clock.run(patient.call(body)) == "done"

    assert body.runs == 2
    assert clock.now() >= 10


async def test_waits_are_the_same_each_time_with_the_same_seed() -> None:
    at = []
    for _ in range(2):
        with virtual_policies(seed=3) as clock:
            body = Body(ConnectionError(), clock=clock)
            with pytest.raises(ConnectionError):
                await clock.run(Pipeline(Retry(attempts=5)).call(body))
            at.append(body.at)

    assert at[0] == at[1]
    assert len(set(at[0])) == 5


async def test_a_pipeline_made_earlier_follows_the_tests_clock_and_forgets_it_after() -> None:
    pipeline = Pipeline(CircuitBreaker("made-earlier", consecutive=1))

    with virtual_policies() as clock:
        with pytest.raises(ConnectionError):
            await pipeline.call(Body(ConnectionError()))
        await clock.advance(5)
        assert pipeline.breaker.snapshot().retry_after_s == 5

    assert await pipeline.call(Body("up")) == "up"


async def test_in_a_flow_under_test_pipelines_keep_its_time() -> None:
    flow, body = TaskFlow(), Body(ConnectionError(), ConnectionError(), "done")
    pipeline = Pipeline(Retry(base=3600, max_delay=3600, jitter="none"))

    @flow.task(timeout=90_000)
    async def work() -> str:
        return str(await pipeline.call(body))

    async with flow.test() as t:
        job = await work.submit()
        await t.advance(7200)
        await t.run_until_idle()
        assert await job.result() == "done"


# ---- rate, bulkhead, chaos ----


async def test_a_rate_limit_lets_callers_wait_for_their_turn_or_says_when_to_come(
    registry: Registry, clock: VirtualClock
) -> None:
    pipeline = Pipeline(RateLimit("api", "1/s", burst=2, wait=3), registry=registry)
    body = Body("done", clock=clock)

    results = await clock.run(asyncio.gather(*(pipeline.call(body) for _ in range(8)), return_exceptions=True))

    assert body.at == [0, 0, 1, 2, 3]
    assert [type(result) for result in results[5:]] == [RateLimited] * 3
    assert results[5].retry_after_s == pytest.approx(4)


async def test_a_turn_past_the_deadline_is_refused_at_once(registry: Registry, clock: VirtualClock) -> None:
    pipeline = Pipeline(Timeout(2), RateLimit("api", "1/h", wait=4000), registry=registry)
    await pipeline.call(Body())

    with pytest.raises(DeadlineExceeded, match="past the caller's deadline"):
        await pipeline.call(Body())

    assert clock.now() == 0


async def test_a_turn_that_is_given_up_goes_to_the_next(registry: Registry, clock: VirtualClock) -> None:
    pipeline = Pipeline(RateLimit("api", "1/s", wait=60), registry=registry)
    await pipeline.call(Body())
    waiting = asyncio.create_task(pipeline.call(Body()))
    await clock.advance(0)

    waiting.cancel()
    await asyncio.wait([waiting])
    await clock.run(pipeline.call(Body()))

    assert clock.now() == pytest.approx(1)


async def test_a_full_bulkhead_waits_its_time_and_says_when_to_come(registry: Registry, clock: VirtualClock) -> None:
    pipeline = Pipeline(Bulkhead("api", 1, wait=2), registry=registry)
    for _ in range(50):
        await clock.run(pipeline.call(Body(clock=clock, takes_s=4)))
    holding = asyncio.create_task(pipeline.call(Hung()))
    await clock.advance(0)
    began = clock.now()

    with pytest.raises(BulkheadFull) as full:
        await clock.run(pipeline.call(Body()))

    assert clock.now() - began == pytest.approx(2)
    assert full.value.retry_after_s == pytest.approx(4, rel=0.05)
    holding.cancel()
    await asyncio.wait([holding])


async def test_chaos_does_nothing_unless_asked_and_the_same_with_the_same_seed(
    registry: Registry, clock: VirtualClock
) -> None:
    async def play(chaos: Chaos) -> list[bool]:
        pipeline = Pipeline(chaos, registry=registry)
        calls = [clock.run(asyncio.gather(pipeline.call(Body()), return_exceptions=True)) for _ in range(40)]
        return [isinstance((await call)[0], ConnectionError) for call in calls]

    first, second = await play(Chaos(fault_rate=0.3, seed=5)), await play(Chaos(fault_rate=0.3, seed=5))
    off = await play(Chaos(fault_rate=1, enabled=lambda: False))

    assert first == second
    assert 0 < sum(first) < 40
    assert sum(await play(Chaos())) == sum(off) == 0


async def test_chaos_is_seen_by_all_policies_around_it(registry: Registry, clock: VirtualClock) -> None:
    pipeline = Pipeline(
        Retry(attempts=2, base=0),
        CircuitBreaker("api"),
        Chaos(fault_rate=1, latency_rate=1, latency=3),
        registry=registry,
    )

    with pytest.raises(ConnectionError) as failed:
        await clock.run(pipeline.call(Body()))

    assert failed.value.__notes__[0] == "taskflow: injected by Chaos"
    assert clock.now() == 6
    assert pipeline.breaker.snapshot().failures == 2


async def test_nobody_closes_a_rate_limit_for_ever_with_one_answer(registry: Registry) -> None:
    class Told(Exception):
        retry_after_s = 1e9

    undo = register_classifier(lambda error: ErrorClass.THROTTLED if isinstance(error, Told) else None)
    pipeline = Pipeline(RateLimit("api", "1/s"), registry=registry)
    try:
        with pytest.raises(Told):
            await pipeline.call(Body(Told()))
    finally:
        undo()

    with pytest.raises(RateLimited) as turned_away:
        await pipeline.call(Body("up"))
    assert turned_away.value.retry_after_s == pytest.approx(3600)


async def test_a_rate_limit_that_is_paused_starts_nothing_until_then(registry: Registry, clock: VirtualClock) -> None:
    pipeline = Pipeline(RateLimit("api", "100/s", burst=10), registry=registry)

    pipeline.rate_limit.pause(30)

    with pytest.raises(RateLimited) as turned_away:
        await pipeline.call(Body("up"))
    assert turned_away.value.retry_after_s == pytest.approx(30)
    await clock.advance(30)
    assert await pipeline.call(Body("up")) == "up"
