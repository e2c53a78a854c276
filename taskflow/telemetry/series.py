"""What is counted and measured, by the names and labels of the catalogue. Series exist from the start, at 0.

Plain dictionaries and integers: counting is the hot path.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import TYPE_CHECKING

from taskflow.core.job import FINAL, JobState
from taskflow.telemetry.catalogue import (
    BREAKER_STATES,
    CATALOGUE,
    FAILURES,
    LIMITER_REASONS,
    OPERATIONS,
    OTHER,
    OTHER_QUEUE,
    OUTCOMES,
    QUEUE_STATES,
    REJECTIONS,
    SHED_REASONS,
    SNOOZE_REASONS,
    UNKNOWN_TASK,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Labels = tuple[str, ...]

MOST_GATES = 10_000  # keyed gates come from arguments: their number has no bound of its own


class Histogram:
    """Counts observations by bucket; the last bucket is +Inf."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count `value` in the first bucket whose bound is not below it."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class Pair:
    """What is counted for one task in one queue. The hot path: one look-up finds it all."""

    __slots__ = (
        "deduplicated",
        "needed",
        "outcomes",
        "queue",
        "retried",
        "run",
        "started",
        "states",
        "submitted",
        "total",
        "wait",
    )

    def __init__(self, *, queue: str, run: Histogram, wait: Histogram, total: Histogram, needed: Histogram) -> None:
        self.queue = queue
        self.started = self.submitted = self.deduplicated = self.retried = 0
        self.outcomes = dict.fromkeys(OUTCOMES, 0)
        self.states = dict.fromkeys((state for state in JobState if state in FINAL), 0)
        self.run = run
        self.wait, self.total, self.needed = wait, total, needed  # those of all tasks of the queue


class Series:
    """Those of one worker, whose jobs live in `broker`."""

    def __init__(self, broker: str) -> None:
        self._queues: set[str] = set()
        self._tasks: set[str] = set()
        self.numbers: dict[str, dict[Labels, float]] = {n: {} for n, f in CATALOGUE.items() if f.kind != "histogram"}
        self.histograms: dict[str, dict[Labels, Histogram]] = {
            n: {} for n, f in CATALOGUE.items() if f.kind == "histogram"
        }
        self.pairs: dict[tuple[str, str], Pair] = {}  # (queue, task), as an event names them
        self.oldest: dict[str, tuple[float, float]] = {}  # queue with ready jobs → (age, when that was)
        self.held: dict[str, float] = {}  # gate → until
        self.breakers: dict[str, dict[str, str]] = {}  # breaker → gate → state, without the closed ones
        for operation in OPERATIONS:
            self.histogram("taskflow_broker_operation_seconds", (broker, operation))
            for kind in FAILURES:
                self.numbers["taskflow_broker_errors_total"][broker, operation, kind] = 0
        self.histogram("taskflow_event_loop_lag_seconds", ())
        self.numbers["taskflow_broker_up"][broker,] = 0

    def declare(
        self,
        queues: Mapping[str, int],
        tasks: Mapping[str, str],
        breakers: Iterable[str] = (),
        limiters: Mapping[str, int | None] | None = None,
    ) -> None:
        """Make the series of these names, at 0. May be called again for more.

        `queues`: name → most jobs it holds; `tasks`: name → its queue; `limiters`: name → limit, None for a mere rate.
        What is not declared is counted under `_other` (a queue) and `_unknown` (a task).
        """
        self._tasks.update(tasks)
        for queue in {**queues, **dict.fromkeys(tasks.values())}:
            self._queues.add(queue)
            self._add_queue(queue)
        for queue, most in queues.items():
            self.numbers["taskflow_queue_limit"][queue,] = most
        for task, queue in tasks.items():
            self._add_pair((queue, task))
        for breaker in breakers:
            for state in BREAKER_STATES:
                self.numbers["taskflow_breaker_transitions_total"].setdefault((breaker, state), 0)
            self.breakers.setdefault(breaker, {})
            self.show_breaker(breaker)
        for limiter, limit in (limiters or {}).items():
            for reason in LIMITER_REASONS:
                self.numbers["taskflow_limiter_rejections_total"].setdefault((limiter, reason), 0)
            self.numbers["taskflow_limiter_in_use"].setdefault((limiter,), 0)
            self.numbers["taskflow_limiter_limit"][limiter,] = math.inf if limit is None else limit

    def _add_queue(self, queue: str) -> None:
        numbers = self.numbers
        for name, values in (
            ("taskflow_jobs_rejected_total", REJECTIONS),
            ("taskflow_jobs_shed_total", SHED_REASONS),
            ("taskflow_jobs_snoozed_total", SNOOZE_REASONS),
            ("taskflow_queue_jobs", QUEUE_STATES),
        ):
            for value in values:
                numbers[name].setdefault((queue, value), 0)
        for name in (
            "taskflow_jobs_redelivered_total",
            "taskflow_stale_settlements_total",
            "taskflow_queue_oldest_ready_age_seconds",
        ):
            numbers[name].setdefault((queue,), 0)
        for name in (
            "taskflow_job_queue_wait_seconds",
            "taskflow_job_end_to_end_seconds",
            "taskflow_job_finish_attempts",
            "taskflow_claim_batch_jobs",
        ):
            self.histogram(name, (queue,))

    def _add_pair(self, pair: tuple[str, str]) -> Pair:
        found = self.pairs.get(pair)
        if found is None:
            queue = (pair[0],)
            found = self.pairs[pair] = Pair(
                queue=pair[0],
                run=self.histogram("taskflow_attempt_run_seconds", pair),
                wait=self.histogram("taskflow_job_queue_wait_seconds", queue),
                total=self.histogram("taskflow_job_end_to_end_seconds", queue),
                needed=self.histogram("taskflow_job_finish_attempts", queue),
            )
        return found

    def histogram(self, name: str, labels: Labels) -> Histogram:
        """The one of these labels; made if there is none."""
        return self.histograms[name].setdefault(labels, Histogram(CATALOGUE[name].buckets))

    def queue(self, queue: str) -> str:
        """The label for `queue`."""
        if queue in self._queues:
            return queue
        self._add_queue(OTHER_QUEUE)
        return OTHER_QUEUE

    def pair(self, queue: str, task: str) -> Pair:
        """The series for a pair that was not declared: at most declared queues times declared tasks come of it."""
        return self._add_pair((self.queue(queue), task if task in self._tasks else UNKNOWN_TASK))

    def show_breaker(self, breaker: str) -> None:
        """Its state is the worst of its lanes'."""
        lanes = set(self.breakers[breaker].values())
        worst = next((state for state in ("open", "half_open") if state in lanes), "closed")
        for state in BREAKER_STATES:
            self.numbers["taskflow_breaker_state"][breaker, state] = int(state == worst)

    def add(self, name: str, queue: str, reason: str, count: int = 1) -> None:
        """Count under `reason`, if it is one of those that there are: it may be a user's free text."""
        series = self.numbers[name]
        key = (queue, reason)
        series[key if key in series else (queue, OTHER)] += count
