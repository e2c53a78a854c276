"""Policies around any awaitable, without a queue: a flaky service in this very process, called as if it were far away.

    python -m examples.policies

The service breaks off every third call, is down for a while, and is mended. Watch the pipeline retry what may pass,
fail at once while the circuit is open, and find out by itself that the service is back.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter

from taskflow import Bulkhead, CircuitBreaker, CircuitOpen, Pipeline, Retry, RetryBudget, Timeout

prices = Pipeline(
    Timeout(2),  # for all attempts together
    Retry(attempts=4, on=(ConnectionError,), base=0.01, budget=RetryBudget("prices")),
    CircuitBreaker("prices", consecutive=5, open_for=0.3),
    Bulkhead("prices", 5, wait=1),
    Timeout(0.5),  # for each attempt
)


class Service:
    """A price for each of its callers, most of the time."""

    def __init__(self) -> None:
        self.calls = 0
        self.fails_each = 3

    async def price(self, item: str) -> int:
        """The price of `item`."""
        self.calls += 1
        await asyncio.sleep(0.001)
        if self.fails_each and self.calls % self.fails_each == 0:
            raise ConnectionError("broken off")
        return len(item) * 100


async def ask(service: Service, times: int) -> Counter[str]:
    """Ask so many times, one after the other; what came of it."""
    found: Counter[str] = Counter()
    for _ in range(times):
        try:
            await prices.call(service.price, "apple")
            found["answered"] += 1
        except CircuitOpen:
            found["failed at once"] += 1
        except ConnectionError:
            found["failed after its attempts"] += 1
    return found


async def main() -> bool:
    """True if it all went as it should."""
    service = Service()
    flaky = await ask(service, 30)
    print(f"flaky:   {dict(flaky)}, {service.calls} calls for 30 questions")
    service.fails_each, before = 1, service.calls
    down = await ask(service, 200)
    asked = service.calls - before
    print(f"down:    {dict(down)}, {asked} calls for 200 questions; the circuit is {prices.breaker.snapshot().state}")
    service.fails_each = 0
    await asyncio.sleep(0.35)
    back = await ask(service, 30)
    print(f"mended:  {dict(back)}; the circuit is {prices.breaker.snapshot().state}")
    async with Pipeline(Bulkhead("prices", 5, wait=1), Timeout(0.5)).guard():  # without Retry: around a block too
        print("a block: in the same bulkhead as the calls")
    return flaky["answered"] == back["answered"] == 30 and asked < 20


if __name__ == "__main__":
    sys.exit(0 if asyncio.run(main()) else 1)
