"""What each policy costs a call, in microseconds, beside tenacity, stamina, aiolimiter and purgatory, in one run.

    pip install tenacity stamina aiolimiter purgatory
    python benchmarks/policies.py [--calls 20000] [--rounds 7]

The body is a coroutine that returns at once; what calling it alone costs is taken off. The order of the contestants
rotates, the fastest round counts: it is the one that the machine disturbed least. Peers that are not installed are
left out. What they do differs: purgatory's breaker counts failures in a row, ours also rates in a window, slow calls
and leases; stamina and tenacity have no budget; none of them has a deadline.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import platform
import time
import warnings
from collections.abc import Awaitable, Callable
from contextlib import suppress

from taskflow import Bulkhead, CircuitBreaker, Pipeline, RateLimit, Retry, RetryBudget, Timeout

Call = Callable[[], Awaitable[object]]
MANY = "100000/s"  # never in the way


async def body() -> None:
    """Nothing."""


def ours() -> dict[str, Call]:
    """Each policy alone, and the recommended order."""
    rate = RateLimit("rate", MANY, burst=100_000)
    pipelines = {
        "retry": Pipeline(Retry()),
        "retry with a budget": Pipeline(Retry(budget=RetryBudget("budget"))),
        "timeout": Pipeline(Timeout(30)),
        "circuit breaker": Pipeline(CircuitBreaker("breaker")),
        "rate limit": Pipeline(rate),
        "bulkhead": Pipeline(Bulkhead("bulkhead", 100)),
        "all of them": Pipeline(
            Timeout(30),
            Retry(budget=RetryBudget("all")),
            CircuitBreaker("all"),
            RateLimit("all", MANY, burst=100_000),
            Bulkhead("all", 100),
            Timeout(5),
        ),
    }
    calls: dict[str, Call] = {
        f"taskflow, {name}": lambda pipeline=pipeline: pipeline.call(body)  # type: ignore[misc]
        for name, pipeline in pipelines.items()
    }
    guarded = Pipeline(Bulkhead("guard", 100))

    async def guard() -> None:
        async with guarded.guard():
            await body()

    return {**calls, "taskflow, bulkhead as a guard": guard}


def theirs() -> dict[str, Call]:
    """The nearest that the peers have."""
    found: dict[str, Call] = {}
    with suppress(ImportError):
        import tenacity

        retrying = tenacity.AsyncRetrying(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_random_exponential())
        found["tenacity, retry"] = lambda: retrying(body)
    with suppress(ImportError):
        import stamina

        found["stamina, retry"] = stamina.retry(on=Exception, attempts=3)(body)
    with suppress(ImportError):
        from purgatory import AsyncCircuitBreakerFactory

        breakers = AsyncCircuitBreakerFactory()

        async def broken() -> None:
            async with await breakers.get_breaker("peer"):
                await body()

        found["purgatory, circuit breaker"] = broken
    with suppress(ImportError):
        from aiolimiter import AsyncLimiter

        limiter = AsyncLimiter(100_000, 1)

        async def limited() -> None:
            async with limiter:
                await body()

        found["aiolimiter, rate limit"] = limited

    async def timed() -> None:
        async with asyncio.timeout(30):
            await body()

    async def bounded() -> None:
        async with semaphore:
            await body()

    semaphore = asyncio.Semaphore(100)
    return {**found, "asyncio.timeout": timed, "asyncio.Semaphore": bounded}


async def cost_us(call: Call, calls: int) -> float:
    for _ in range(100):
        await call()
    gc.collect()
    gc.disable()
    began = time.perf_counter()
    for _ in range(calls):
        await call()
    took_s = time.perf_counter() - began
    gc.enable()
    return took_s / calls * 1e6


async def measure(calls: int, rounds: int) -> dict[str, float]:
    contestants = {"": body, **ours(), **theirs()}
    found: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    for number in range(rounds):
        at = number * len(names) // rounds
        for name in names[at:] + names[:at]:
            found[name].append(await cost_us(contestants[name], calls))
    best = {name: min(costs) for name, costs in found.items()}
    alone = best.pop("")
    return {name: cost - alone for name, cost in best.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    costs = asyncio.run(measure(options.calls, options.rounds))
    print(f"CPython {platform.python_version()}, {options.calls:,} calls, the best of {options.rounds} rounds")
    for name, cost in costs.items():
        print(f"{name:34} {cost:8.2f} us a call")


if __name__ == "__main__":
    main()
