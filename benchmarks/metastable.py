"""Does a short overload outlive its cause? After Marc Brooker's `simple_collapse_sim`, with the real policies.

    python benchmarks/metastable.py [--seed 0]

Clients call a server at 40/s, and at 80/s for the five seconds from t=20. The more calls a server has in flight, the
longer each takes (0.5 s alone; its throughput has its peak at 48/s), and it works on those that their clients gave up
on after 3 s. Three attempts. In virtual time: 80 seconds take some real ones.

The second table is a dependency that fails every call: what retries add to its load.
"""

from __future__ import annotations

import argparse
import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from taskflow import Bulkhead, CircuitBreaker, Pipeline, Registry, Retry, RetryBudget, Timeout
from taskflow.testing import VirtualClock

SPIKE_AT, SPIKE_S = 20, 5
LASTS_S = 80
RATE, SPIKE_RATE = 40, 80
TIMEOUT_S = 3.0

Make = Callable[[Registry], "Pipeline[Any]"]


def naive(registry: Registry) -> Pipeline[Any]:
    """Try again at once."""
    return Pipeline(Retry(attempts=3, base=0), Timeout(TIMEOUT_S), name="server", registry=registry)


def ours(registry: Registry) -> Pipeline[Any]:
    """The policies as they are, in the order that the README recommends."""
    return Pipeline(
        Timeout(4 * TIMEOUT_S),
        Retry(budget=RetryBudget("server")),
        CircuitBreaker("server"),
        Timeout(TIMEOUT_S),
        registry=registry,
    )


def bulkheaded(registry: Registry) -> Pipeline[Any]:
    """The same, with a limit of what the server can bear."""
    return Pipeline(
        Timeout(4 * TIMEOUT_S),
        Retry(budget=RetryBudget("server")),
        CircuitBreaker("server"),
        Bulkhead("server", 80),
        Timeout(TIMEOUT_S),
        registry=registry,
    )


@dataclass
class Server:
    """Slower with every call in flight. Those that nobody waits for any more stay in flight until they are done."""

    clock: VirtualClock
    rng: random.Random
    in_flight: int = 0
    calls: int = 0

    async def handle(self) -> None:
        self.calls += 1
        self.in_flight += 1
        mean_s = 0.5 + 0.008 * self.in_flight + 0.00008 * self.in_flight**2
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def done() -> None:
            self.in_flight -= 1
            if not answer.done():
                answer.set_result(None)

        self.clock.call_at(self.clock.now() + mean_s * self.rng.uniform(0.8, 1.2), done)
        await answer


@dataclass
class Seen:
    """By second of the first attempt: requests, and those of them that succeeded."""

    asked: list[int] = field(default_factory=lambda: [0] * LASTS_S)
    good: list[int] = field(default_factory=lambda: [0] * LASTS_S)
    in_flight: int = 0
    calls: int = 0

    def success(self, first: int, last: int) -> float:
        """The share of the requests of these seconds that succeeded."""
        return sum(self.good[first:last]) / sum(self.asked[first:last])

    def recovered_after_s(self, share: float = 0.98) -> int | None:
        """Seconds from the end of the spike until at least this share succeeds, in any five seconds from then on."""
        last = LASTS_S - 5
        bad = [at for at in range(SPIKE_AT + SPIKE_S, last) if self.success(at, at + 5) < share]
        after_s = bad[-1] + 1 - SPIKE_AT - SPIKE_S if bad else 0
        return None if after_s == last - SPIKE_AT - SPIKE_S else after_s


async def collapse(make: Make, *, seed: int) -> Seen:
    """80 seconds with the spike in them."""
    clock, rng = VirtualClock(), random.Random(seed)
    pipeline = make(Registry(clock, random.Random(seed + 1)))
    server, seen = Server(clock, rng), Seen()
    requests: set[asyncio.Task[None]] = set()

    async def request(second: int) -> None:
        seen.asked[second] += 1
        try:
            await pipeline.call(server.handle)
        except Exception:
            return
        seen.good[second] += 1

    async def load() -> None:
        while (now := clock.now()) < LASTS_S:
            task = asyncio.create_task(request(int(now)))
            requests.add(task)
            task.add_done_callback(requests.discard)
            rate = SPIKE_RATE if SPIKE_AT <= now < SPIKE_AT + SPIKE_S else RATE
            await clock.sleep(rng.expovariate(rate))

    loading = asyncio.create_task(load())
    await clock.advance(LASTS_S)
    seen.in_flight, seen.calls = server.in_flight, server.calls
    await clock.advance(100)
    await loading
    for task in requests:
        task.cancel()
    await asyncio.gather(*requests, return_exceptions=True)
    return seen


async def amplification(make: Make, *, seed: int, clients: int = 20, rate: float = 10, seconds: int = 60) -> float:
    """Calls that a dependency gets which fails all of them, for each first attempt."""
    clock = VirtualClock()
    pipeline = make(Registry(clock, random.Random(seed)))
    first = calls = 0

    async def fail() -> None:
        nonlocal calls
        calls += 1
        raise ConnectionError("down")

    async def client(rng: random.Random) -> None:
        nonlocal first
        while clock.now() < seconds:
            first += 1
            await asyncio.gather(pipeline.call(fail), return_exceptions=True)
            await clock.sleep(rng.expovariate(rate))

    await clock.run(asyncio.gather(*(client(random.Random(seed + number)) for number in range(clients))))
    return calls / first


def without_budget(registry: Registry) -> Pipeline[Any]:
    return Pipeline(Retry(attempts=4), name="server", registry=registry)


def budget_alone(registry: Registry) -> Pipeline[Any]:
    return Pipeline(Retry(attempts=4, budget=RetryBudget("server")), registry=registry)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    print(
        f"{'success of requests':34} {'before':>8} {'spike':>8} {'25-45 s':>8} {'45-65 s':>8} "
        f"{'>= 0.98 after':>14} {'in flight at 80 s':>18}"
    )
    for name, make in {"naive retries": naive, "our defaults": ours, "and a bulkhead of 80": bulkheaded}.items():
        seen = asyncio.run(collapse(make, seed=seed))
        windows = [(5, 20), (20, 25), (25, 45), (45, 65)]
        shares = " ".join(f"{seen.success(*window):8.3f}" for window in windows)
        after_s = seen.recovered_after_s()
        print(f"{name:34} {shares} {'never' if after_s is None else f'{after_s} s':>14} {seen.in_flight:18,}")
    print()
    print(f"{'a dependency that fails every call':34} {'calls for each first attempt':>30}")
    for name, make in {"4 attempts": without_budget, "with a budget": budget_alone, "our defaults": ours}.items():
        print(f"{name:34} {asyncio.run(amplification(make, seed=seed)):30.2f}")


if __name__ == "__main__":
    main()
