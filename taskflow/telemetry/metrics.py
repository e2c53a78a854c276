"""The metrics of one worker: counted from events, sampled from the broker, shown to Prometheus."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Protocol

from taskflow.core import gate as gates
from taskflow.telemetry.catalogue import QUEUE_STATES
from taskflow.telemetry.counting import Counting
from taskflow.telemetry.exposition import Asked, Exposition
from taskflow.telemetry.series import MOST_GATES, Labels, Series

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class QueueSample(Protocol):
    """What `sample` reads of a broker's `QueueCounts`."""

    @property
    def queue(self) -> str: ...
    @property
    def ready(self) -> int: ...
    @property
    def scheduled(self) -> int: ...
    @property
    def waiting(self) -> int: ...
    @property
    def running(self) -> int: ...
    @property
    def dead(self) -> int: ...
    @property
    def oldest_ready_age_s(self) -> float: ...


class Metrics:
    """Everything that `CATALOGUE` names, in a registry of its own. `asked` is asked at each scrape."""

    def __init__(
        self,
        *,
        version: str,
        python: str,
        broker: str,
        now: Callable[[], float] = time.monotonic,
        asked: Asked | None = None,
    ) -> None:
        self._now = now
        self._series = series = Series(broker)
        series.numbers["taskflow_build_info"][version, python, broker] = 1
        self.asked = asked or Asked()
        exposition = Exposition(series, self.asked, now)
        # What others are asked for, as they say it: they know what it is.
        self.declare = series.declare
        self.subscribe = Counting(series, broker=broker, now=now).subscribe
        self.observe_loop_lag = series.histograms["taskflow_event_loop_lag_seconds"][()].observe
        self.registry = exposition.registry
        self.render = exposition.render

    def sample(self, counts: Iterable[QueueSample], at: float) -> None:
        """Keep what the broker said at `at` (monotonic seconds). The runtime calls it on a timer, a scrape never does.

        Queues that were not declared are added up under `_other`.
        """
        series = self._series
        jobs: dict[Labels, float] = dict.fromkeys(series.numbers["taskflow_queue_jobs"], 0)
        oldest: dict[str, tuple[float, float]] = {}
        for one in counts:
            queue = series.queue(one.queue)
            for state in QUEUE_STATES:
                jobs[queue, state] = jobs.get((queue, state), 0) + getattr(one, state)
            if one.ready > 0:
                age_s = max(one.oldest_ready_age_s, oldest.get(queue, (0.0, at))[0])
                oldest[queue] = (age_s, at)
        series.numbers["taskflow_queue_jobs"] = jobs
        series.oldest = oldest

    def sample_gates(self, records: Iterable[gates.Gate], *, now: float) -> None:
        """Keep what the broker says of its gates. `now` is the broker's clock, by which gates are held."""
        series = self._series
        in_use: dict[str, int] = {}
        held: dict[str, float] = {}
        breakers: dict[str, dict[str, str]] = {name: {} for name in series.breakers}
        limits: dict[str, int | None] = {}  # a gate of which nothing is said any more is not among the records
        for record in records:
            name = gates.family(record.name)
            in_use[name] = in_use.get(name, 0) + record.live
            if record.held_until > now and len(held) < MOST_GATES:
                held[record.name] = self._now() + record.held_until - now
            if record.ramp is not None and name in breakers and len(breakers[name]) < MOST_GATES:
                breakers[name][record.name] = gates.state_of(record, now=now)
            if record.name == name:
                limits[name] = gates.limit_of(record)
        for (limiter,) in series.numbers["taskflow_limiter_in_use"]:
            limit = limits.get(limiter)
            series.numbers["taskflow_limiter_in_use"][limiter,] = in_use.get(limiter, 0)
            series.numbers["taskflow_limiter_limit"][limiter,] = math.inf if limit is None else limit
        series.held = held
        series.breakers = breakers
        for breaker in breakers:
            series.show_breaker(breaker)
