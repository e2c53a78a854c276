"""Counts events, and shows them to Prometheus.

Recording is the hot path, three looks at each job, in batches: plain dictionaries, integers and one `bisect`. Only
when someone scrapes does one collector turn them into the families of `prometheus_client`, which may happen in another
thread.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from typing import TYPE_CHECKING, Protocol

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from taskflow.core import decision, events
from taskflow.core import gate as gates
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
    Family,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from prometheus_client import Metric

    from taskflow.telemetry.bus import Bus

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

Labels = tuple[str, ...]

_MOST_GATES = 10_000  # keyed gates come from arguments: their number has no bound of its own


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


class _Pair:
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


class Metrics:
    """Everything that `CATALOGUE` names, in a registry of its own.

    `in_flight`, `concurrency_limit`, `longest_running_s`, `draining` and `abandoned_threads` are asked at each scrape,
    maybe in another thread. One that raises shows as NaN. `turned_away` says how many calls limiters turned away, by
    limiter and reason.
    """

    def __init__(
        self,
        *,
        version: str,
        python: str,
        broker: str,
        now: Callable[[], float] = time.monotonic,
        in_flight: Callable[[], float] | None = None,
        concurrency_limit: Callable[[], float] | None = None,
        longest_running_s: Callable[[], float] | None = None,
        draining: Callable[[], float] | None = None,
        abandoned_threads: Callable[[], float] | None = None,
        turned_away: Callable[[], Mapping[tuple[str, str], int]] = dict,
    ) -> None:
        self.in_flight = in_flight or _none
        self.concurrency_limit = concurrency_limit or _none
        self.longest_running_s = longest_running_s or _none
        self.draining = draining or _none
        self.abandoned_threads = abandoned_threads or _none
        self._turned_away = turned_away
        self._now = now
        self._broker = broker
        self._queues: set[str] = set()
        self._tasks: set[str] = set()
        self._numbers: dict[str, dict[Labels, float]] = {n: {} for n, f in CATALOGUE.items() if f.kind != "histogram"}
        self._histograms: dict[str, dict[Labels, Histogram]] = {
            n: {} for n, f in CATALOGUE.items() if f.kind == "histogram"
        }
        self._oldest: dict[str, tuple[float, float]] = {}  # queue with ready jobs → (age, when that was)
        self._held: dict[str, float] = {}  # gate → until
        self._breakers: dict[str, dict[str, str]] = {}  # breaker → gate → state, without the closed ones
        self._pairs: dict[tuple[str, str], _Pair] = {}
        self._operations = self._histograms["taskflow_broker_operation_seconds"]
        for operation in OPERATIONS:
            self._histogram("taskflow_broker_operation_seconds", (broker, operation))
            for kind in FAILURES:
                self._numbers["taskflow_broker_errors_total"][broker, operation, kind] = 0
        self._lag = self._histogram("taskflow_event_loop_lag_seconds", ())
        self._up = self._numbers["taskflow_broker_up"]
        self._up_key = (broker,)
        self._up[self._up_key] = 0
        self._numbers["taskflow_build_info"][version, python, broker] = 1
        self.registry = CollectorRegistry()
        self.registry.register(_Scrape(self))

    # --- what there is -----------------------------------------------

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
            self._numbers["taskflow_queue_limit"][queue,] = most
        for task, queue in tasks.items():
            self._add_pair((queue, task))
        for breaker in breakers:
            for state in BREAKER_STATES:
                self._numbers["taskflow_breaker_transitions_total"].setdefault((breaker, state), 0)
            self._breakers.setdefault(breaker, {})
            self._show_breaker(breaker)
        for limiter, limit in (limiters or {}).items():
            for reason in LIMITER_REASONS:
                self._numbers["taskflow_limiter_rejections_total"].setdefault((limiter, reason), 0)
            self._numbers["taskflow_limiter_in_use"].setdefault((limiter,), 0)
            self._numbers["taskflow_limiter_limit"][limiter,] = math.inf if limit is None else limit

    def _add_queue(self, queue: str) -> None:
        numbers = self._numbers
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
            self._histogram(name, (queue,))

    def _add_pair(self, pair: tuple[str, str]) -> _Pair:
        found = self._pairs.get(pair)
        if found is None:
            queue = (pair[0],)
            found = self._pairs[pair] = _Pair(
                queue=pair[0],
                run=self._histogram("taskflow_attempt_run_seconds", pair),
                wait=self._histogram("taskflow_job_queue_wait_seconds", queue),
                total=self._histogram("taskflow_job_end_to_end_seconds", queue),
                needed=self._histogram("taskflow_job_finish_attempts", queue),
            )
        return found

    def _histogram(self, name: str, labels: Labels) -> Histogram:
        return self._histograms[name].setdefault(labels, Histogram(CATALOGUE[name].buckets))

    def _queue(self, queue: str) -> str:
        """The label for `queue`."""
        if queue in self._queues:
            return queue
        self._add_queue(OTHER_QUEUE)
        return OTHER_QUEUE

    def _pair(self, queue: str, task: str) -> _Pair:
        """The series for a pair that was not declared: at most declared queues times declared tasks come of it."""
        return self._add_pair((self._queue(queue), task if task in self._tasks else UNKNOWN_TASK))

    # --- what happens ------------------------------------------------

    def subscribe(self, bus: Bus) -> None:
        """Count what `bus` tells."""
        for listener, event_type in (
            (self._on_started, events.AttemptsStarted),
            (self._on_ended, events.AttemptsEnded),
            (self._on_settled, events.JobsSettled),
            (self._on_stale, events.SettlementStale),
            (self._on_submitted, events.JobsSubmitted),
            (self._on_deduplicated, events.JobsDeduplicated),
            (self._on_rejected, events.JobsRejected),
            (self._on_redelivered, events.JobRedelivered),
            (self._on_buried, events.JobBuried),
            (self._on_expired, events.JobExpired),
            (self._on_cancelled, events.JobCancelled),
            (self._on_answered, events.BrokerAnswered),
            (self._on_failed, events.BrokerFailed),
            (self._on_recovered, events.BrokerRecovered),
            (self._on_claimed, events.BatchClaimed),
            (self._on_held, events.GateHeld),
            (self._on_breaker, events.BreakerMoved),
        ):
            bus.subscribe(listener, event_type)

    def _on_started(self, event: events.AttemptsStarted) -> None:
        queue = task = None
        for attempt in event.attempts:
            claim = attempt.claim
            if claim.task is not task or claim.queue is not queue:  # a batch is of few
                queue, task = claim.queue, claim.task
                pair = self._pairs.get((queue, task)) or self._pair(queue, task)
                wait = pair.wait
                counts, bounds = wait.counts, wait.bounds
            pair.started += 1
            # Here and below `observe` is written out: half of what these three cost would be the call.
            waited_s = claim.waited_s
            counts[bisect_left(bounds, waited_s)] += 1
            wait.total += waited_s

    def _on_ended(self, event: events.AttemptsEnded) -> None:
        queue = task = None
        for attempt in event.attempts:
            claim = attempt.claim
            if claim.task is not task or claim.queue is not queue:
                queue, task = claim.queue, claim.task
                pair = self._pairs.get((queue, task)) or self._pair(queue, task)
                run, ended = pair.run, pair.outcomes
                counts, bounds = run.counts, run.bounds
            ended[attempt.outcome] += 1
            run_s = attempt.run_s
            counts[bisect_left(bounds, run_s)] += 1
            run.total += run_s

    def _on_settled(self, event: events.JobsSettled) -> None:
        queue = task = None
        for job in event.jobs:
            claim, decided = job.claim, job.decision
            if claim.task is not task or claim.queue is not queue:
                queue, task = claim.queue, claim.task
                pair = self._pairs.get((queue, task)) or self._pair(queue, task)
                states, total, needed = pair.states, pair.total, pair.needed
            state = job.state
            if state in states:
                states[state] += 1
                total_s = job.total_s
                total.counts[bisect_left(total.bounds, total_s)] += 1
                total.total += total_s
                if type(decided) is decision.Complete:
                    attempts = claim.attempts + 1
                else:
                    attempts = claim.attempts + _is_spent(decided)
                    if type(decided) is decision.Expire:
                        self._add("taskflow_jobs_shed_total", pair.queue, decided.reason)
                needed.counts[bisect_left(needed.bounds, attempts)] += 1
                needed.total += attempts
            elif isinstance(decided, decision.Retry):
                pair.retried += 1
            elif isinstance(decided, decision.Snooze):
                self._add("taskflow_jobs_snoozed_total", pair.queue, decided.reason)

    def _on_stale(self, event: events.SettlementStale) -> None:
        self._numbers["taskflow_stale_settlements_total"][self._queue(event.queue),] += 1

    def _on_submitted(self, event: events.JobsSubmitted) -> None:
        pair = self._pairs.get((event.queue, event.task)) or self._pair(event.queue, event.task)
        pair.submitted += event.count

    def _on_deduplicated(self, event: events.JobsDeduplicated) -> None:
        self._pair(event.queue, event.task).deduplicated += event.count

    def _on_rejected(self, event: events.JobsRejected) -> None:
        self._add("taskflow_jobs_rejected_total", self._queue(event.queue), event.reason, event.count)

    def _on_redelivered(self, event: events.JobRedelivered) -> None:
        pair = self._pair(event.queue, event.task)
        self._numbers["taskflow_jobs_redelivered_total"][pair.queue,] += 1
        pair.outcomes["lost"] += 1

    def _on_buried(self, event: events.JobBuried) -> None:
        pair = self._pair(event.queue, event.task)
        pair.outcomes["lost"] += 1
        pair.states[JobState.DEAD] += 1

    def _on_cancelled(self, event: events.JobCancelled) -> None:
        self._pair(event.queue, event.task).states[JobState.CANCELLED] += 1

    def _on_expired(self, event: events.JobExpired) -> None:
        pair = self._pair(event.queue, event.task)
        pair.states[JobState.EXPIRED] += 1
        self._add("taskflow_jobs_shed_total", pair.queue, event.reason)

    def _on_answered(self, event: events.BrokerAnswered) -> None:
        operation = self._operations.get((self._broker, event.operation))
        (operation or self._operations[self._broker, OTHER]).observe(event.took_s)
        self._up[self._up_key] = 1

    def _on_failed(self, event: events.BrokerFailed) -> None:
        operation = event.operation if event.operation in OPERATIONS else OTHER
        kind = event.kind if event.kind in FAILURES else OTHER
        self._numbers["taskflow_broker_errors_total"][self._broker, operation, kind] += 1
        self._up[self._up_key] = int(kind == "refused")  # to refuse one thing is an answer

    def _on_recovered(self, _event: events.BrokerRecovered) -> None:
        self._up[self._up_key] = 1

    def _on_claimed(self, event: events.BatchClaimed) -> None:
        self._histograms["taskflow_claim_batch_jobs"][self._queue(event.queue),].observe(event.jobs)

    def _on_held(self, event: events.GateHeld) -> None:
        self._held.pop(event.gate, None)
        if event.for_s <= 0:
            return
        if len(self._held) >= _MOST_GATES:
            now = self._now()
            self._held = {gate: until for gate, until in self._held.items() if until > now}
        if len(self._held) < _MOST_GATES:
            self._held[event.gate] = self._now() + event.for_s

    def _on_breaker(self, event: events.BreakerMoved) -> None:
        if event.breaker not in self._breakers:
            return  # not declared: a label must come from a closed set
        moved = self._numbers["taskflow_breaker_transitions_total"]
        moved[event.breaker, event.to] = moved.get((event.breaker, event.to), 0) + 1
        lanes = self._breakers[event.breaker]
        if event.to == "closed":
            lanes.pop(event.gate, None)
            self._held.pop(event.gate, None)
        elif event.gate in lanes or len(lanes) < _MOST_GATES:
            lanes[event.gate] = event.to
        self._show_breaker(event.breaker)

    def _show_breaker(self, breaker: str) -> None:
        lanes = set(self._breakers[breaker].values())
        worst = next((state for state in ("open", "half_open") if state in lanes), "closed")
        for state in BREAKER_STATES:
            self._numbers["taskflow_breaker_state"][breaker, state] = int(state == worst)

    def _add(self, name: str, queue: str, reason: str, count: int = 1) -> None:
        """Count under `reason`, if it is one of those that there are: it may be a user's free text."""
        series = self._numbers[name]
        key = (queue, reason)
        series[key if key in series else (queue, OTHER)] += count

    # --- what is sampled ---------------------------------------------

    def sample(self, counts: Iterable[QueueSample], at: float) -> None:
        """Keep what the broker said at `at` (monotonic seconds). The runtime calls it on a timer, a scrape never does.

        Queues that were not declared are added up under `_other`.
        """
        jobs: dict[Labels, float] = dict.fromkeys(self._numbers["taskflow_queue_jobs"], 0)
        oldest: dict[str, tuple[float, float]] = {}
        for one in counts:
            queue = self._queue(one.queue)
            for state in QUEUE_STATES:
                jobs[queue, state] = jobs.get((queue, state), 0) + getattr(one, state)
            if one.ready > 0:
                age_s = max(one.oldest_ready_age_s, oldest.get(queue, (0.0, at))[0])
                oldest[queue] = (age_s, at)
        self._numbers["taskflow_queue_jobs"] = jobs
        self._oldest = oldest

    def sample_gates(self, records: Iterable[gates.Gate], *, now: float) -> None:
        """Keep what the broker says of its gates. `now` is the broker's clock, by which gates are held."""
        in_use: dict[str, int] = {}
        held: dict[str, float] = {}
        breakers: dict[str, dict[str, str]] = {name: {} for name in self._breakers}
        limits: dict[str, int | None] = {}  # a gate of which nothing is said any more is not among the records
        for record in records:
            name = gates.family(record.name)
            in_use[name] = in_use.get(name, 0) + record.live
            if record.held_until > now and len(held) < _MOST_GATES:
                held[record.name] = self._now() + record.held_until - now
            if record.ramp is not None and name in breakers and len(breakers[name]) < _MOST_GATES:
                breakers[name][record.name] = gates.state_of(record, now=now)
            if record.name == name:
                limits[name] = gates.limit_of(record)
        for (limiter,) in self._numbers["taskflow_limiter_in_use"]:
            limit = limits.get(limiter)
            self._numbers["taskflow_limiter_in_use"][limiter,] = in_use.get(limiter, 0)
            self._numbers["taskflow_limiter_limit"][limiter,] = math.inf if limit is None else limit
        self._held = held
        self._breakers = breakers
        for breaker in breakers:
            self._show_breaker(breaker)

    def observe_loop_lag(self, lag_s: float) -> None:
        """Count by how much the event loop was late."""
        self._lag.observe(lag_s)

    # --- what is shown -----------------------------------------------

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """The exposition and its content type: OpenMetrics for an `accept` that asks for it, else text.

        Takes milliseconds for each thousand lines: an event loop calls it in a thread.
        """
        if "application/openmetrics-text" in accept:
            shown: bytes = generate_openmetrics(self.registry)  # type: ignore[no-untyped-call,unused-ignore]
            return shown, OPENMETRICS
        return generate_latest(self.registry), TEXT

    def families(self) -> Iterator[Metric]:
        """Every family of `CATALOGUE`, in its order, with the samples of now."""
        self._measure()
        for name, family in CATALOGUE.items():
            if family.kind == "histogram":
                yield _histogram_family(name, family, self._histograms[name].copy())
            else:
                made = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
                shown = made(name, family.meaning, labels=family.labels)
                for labels, value in self._numbers[name].copy().items():
                    shown.add_metric(labels, value)
                yield shown

    def _measure(self) -> None:
        """Bring the families up to date that are kept elsewhere: pairs, and gauges that nobody tells us of."""
        numbers = self._numbers
        for labels, pair in self._pairs.copy().items():
            numbers["taskflow_attempts_started_total"][labels] = pair.started
            numbers["taskflow_jobs_submitted_total"][labels] = pair.submitted
            numbers["taskflow_jobs_deduplicated_total"][labels] = pair.deduplicated
            numbers["taskflow_jobs_retried_total"][labels] = pair.retried
            for outcome, count in pair.outcomes.items():
                numbers["taskflow_attempts_total"][*labels, outcome] = count
            for state, count in pair.states.items():
                numbers["taskflow_jobs_finished_total"][*labels, state] = count
        for name, ask in (
            ("taskflow_worker_in_flight", self.in_flight),
            ("taskflow_worker_concurrency_limit", self.concurrency_limit),
            ("taskflow_worker_longest_running_seconds", self.longest_running_s),
            ("taskflow_worker_draining", self.draining),
            ("taskflow_abandoned_threads", self.abandoned_threads),
        ):
            numbers[name][()] = _ask(ask)
        for limiter, count in self._turned_away().items():
            numbers["taskflow_limiter_rejections_total"][limiter] = count
        now, oldest = self._now(), self._oldest
        ages = numbers["taskflow_queue_oldest_ready_age_seconds"]
        for (queue,) in ages.copy():
            age_s, at = oldest.get(queue, (0.0, now))
            ages[queue,] = age_s + max(0.0, now - at)
        numbers["taskflow_gates_held"][()] = sum(until > now for until in self._held.copy().values())


class _Scrape(Collector):
    """The one collector of the registry."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        return self._metrics.families()


def _histogram_family(name: str, family: Family, series: Mapping[Labels, Histogram]) -> HistogramMetricFamily:
    shown = HistogramMetricFamily(name, family.meaning, labels=family.labels)
    bounds = [*map(floatToGoString, family.buckets), "+Inf"]
    for labels, histogram in series.items():
        buckets: list[tuple[str, float]] = []
        below = 0
        for bound, count in zip(bounds, histogram.counts.copy(), strict=True):
            below += count
            buckets.append((bound, below))
        shown.add_metric(labels, buckets, histogram.total)
    return shown


def _is_spent(decided: decision.Decision) -> bool:
    """Whether the attempt that led to this decision counts."""
    kind = type(decided)
    return kind is decision.Complete or kind is decision.Retry or (isinstance(decided, decision.Bury) and decided.spent)


def _none() -> float:
    return 0


def _ask(ask: Callable[[], float]) -> float:
    """What a gauge says now. The loop may change what it looks at meanwhile: then it is asked again."""
    for _ in range(3):
        try:
            return float(ask())
        except RuntimeError:  # "dictionary changed size during iteration"
            continue
        except Exception:  # noqa: BLE001 - one broken gauge must not break the scrape (promise 8)
            break
    return math.nan
