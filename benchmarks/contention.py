"""The contention simulation of the AWS Architecture Blog ("Exponential Backoff And Jitter", 2015), made anew.

    python benchmarks/contention.py [--clients 100] [--runs 60]

Optimistic writers against one row: read its version, write with it, and back off if somebody else was first. Each way
over the network takes N(10, 2) ms. Backoff is that of `taskflow.core.backoff`: base 5 ms, cap 2000 ms. Few calls and a
short completion are both wanted; without jitter the clients meet again and again.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import random
import statistics
from collections.abc import Callable
from typing import NamedTuple

from taskflow import Retry
from taskflow.core.backoff import delay_s


class Ended(NamedTuple):
    """Writes that the row saw, and milliseconds until the last client was done."""

    calls: int
    completion_ms: float


def spec(jitter: str) -> Retry:
    """The backoff of the simulation, in seconds."""
    return Retry(attempts=10_000, base=0.005, max_delay=2, jitter=jitter)  # type: ignore[arg-type]


def simulate(retry: Retry | None, *, clients: int, seed: int) -> Ended:
    """One run; None backs off not at all."""
    rng = random.Random(seed)
    order = itertools.count()
    events: list[tuple[float, int, Callable[[float], None]]] = []
    version = calls = 0
    completed_at = 0.0

    def after_network(now: float, what: Callable[[float], None], wait_ms: float = 0.0) -> None:
        heapq.heappush(events, (now + wait_ms + max(0.0, rng.gauss(10, 2)), next(order), what))

    class Client:
        attempts = 0
        last_s: float | None = None

        def read(self, now: float) -> None:
            """The row answers with its version; the client writes with it."""
            seen = version
            after_network(now, lambda then: after_network(then, lambda at: self.write(at, seen)))

        def write(self, now: float, seen: int) -> None:
            nonlocal version, calls
            calls += 1
            if seen == version:
                version += 1
                after_network(now, self.done)
            else:
                after_network(now, self.back_off)

        def back_off(self, now: float) -> None:
            self.attempts += 1
            wait_s = 0.0
            if retry is not None:
                wait_s = self.last_s = delay_s(retry, self.attempts, jitter=rng.random(), last_s=self.last_s)
            after_network(now, self.read, wait_s * 1000)

        def done(self, now: float) -> None:
            nonlocal completed_at
            completed_at = max(completed_at, now)

    for _ in range(clients):
        after_network(0.0, Client().read)
    while events:
        now, _, what = heapq.heappop(events)
        what(now)
    return Ended(calls, completed_at)


def mean(retry: Retry | None, *, clients: int, runs: int) -> Ended:
    """The mean of `runs` runs, the seeds from 0 on."""
    ended = [simulate(retry, clients=clients, seed=seed) for seed in range(runs)]
    return Ended(
        round(statistics.mean(run.calls for run in ended)), statistics.mean(run.completion_ms for run in ended)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--runs", type=int, default=60)
    options = parser.parse_args()
    print(f"{options.clients} clients, mean of {options.runs} runs")
    print(f"{'backoff':28} {'calls':>7} {'completion':>14}")
    kinds = {"none at all": None, "exponential, no jitter": spec("none")}
    kinds |= {f"{jitter} jitter": spec(jitter) for jitter in ("decorrelated", "equal", "full")}
    for name, retry in kinds.items():
        ended = mean(retry, clients=options.clients, runs=options.runs)
        mark = "  <- the default" if retry is not None and retry.jitter == Retry().jitter else ""
        print(f"{name:28} {ended.calls:7,} {ended.completion_ms:11,.0f} ms{mark}")


if __name__ == "__main__":
    main()
