"""Counts what the bus tells.

The hot path, three looks at each job, in batches: plain dictionaries, integers and one `bisect`.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from taskflow.core import decision, events
from taskflow.core.job import JobState
from taskflow.telemetry.catalogue import FAILURES, OPERATIONS, OTHER
from taskflow.telemetry.series import MOST_GATES, Series

if TYPE_CHECKING:
    from collections.abc import Callable

    from taskflow.telemetry.bus import Bus


class Counting:
    """Events in, into `series`. `now`, in monotonic seconds, says until when gates are held."""

    def __init__(self, series: Series, *, broker: str, now: Callable[[], float]) -> None:
        self._series = series
        self._broker = broker
        self._now = now
        self._pairs = series.pairs
        self._operations = series.histograms["taskflow_broker_operation_seconds"]
        self._up = series.numbers["taskflow_broker_up"]
        self._up_key = (broker,)

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
                pair = self._pairs.get((queue, task)) or self._series.pair(queue, task)
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
                pair = self._pairs.get((queue, task)) or self._series.pair(queue, task)
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
                pair = self._pairs.get((queue, task)) or self._series.pair(queue, task)
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
                        self._series.add("taskflow_jobs_shed_total", pair.queue, decided.reason)
                needed.counts[bisect_left(needed.bounds, attempts)] += 1
                needed.total += attempts
            elif isinstance(decided, decision.Retry):
                pair.retried += 1
            elif isinstance(decided, decision.Snooze):
                self._series.add("taskflow_jobs_snoozed_total", pair.queue, decided.reason)

    def _on_stale(self, event: events.SettlementStale) -> None:
        self._series.numbers["taskflow_stale_settlements_total"][self._series.queue(event.queue),] += 1

    def _on_submitted(self, event: events.JobsSubmitted) -> None:
        pair = self._pairs.get((event.queue, event.task)) or self._series.pair(event.queue, event.task)
        pair.submitted += event.count

    def _on_deduplicated(self, event: events.JobsDeduplicated) -> None:
        self._series.pair(event.queue, event.task).deduplicated += event.count

    def _on_rejected(self, event: events.JobsRejected) -> None:
        self._series.add("taskflow_jobs_rejected_total", self._series.queue(event.queue), event.reason, event.count)

    def _on_redelivered(self, event: events.JobRedelivered) -> None:
        pair = self._series.pair(event.queue, event.task)
        self._series.numbers["taskflow_jobs_redelivered_total"][pair.queue,] += 1
        pair.outcomes["lost"] += 1

    def _on_buried(self, event: events.JobBuried) -> None:
        pair = self._series.pair(event.queue, event.task)
        pair.outcomes["lost"] += 1
        pair.states[JobState.DEAD] += 1

    def _on_cancelled(self, event: events.JobCancelled) -> None:
        self._series.pair(event.queue, event.task).states[JobState.CANCELLED] += 1

    def _on_expired(self, event: events.JobExpired) -> None:
        pair = self._series.pair(event.queue, event.task)
        pair.states[JobState.EXPIRED] += 1
        self._series.add("taskflow_jobs_shed_total", pair.queue, event.reason)

    def _on_answered(self, event: events.BrokerAnswered) -> None:
        operation = self._operations.get((self._broker, event.operation))
        (operation or self._operations[self._broker, OTHER]).observe(event.took_s)
        self._up[self._up_key] = 1

    def _on_failed(self, event: events.BrokerFailed) -> None:
        operation = event.operation if event.operation in OPERATIONS else OTHER
        kind = event.kind if event.kind in FAILURES else OTHER
        self._series.numbers["taskflow_broker_errors_total"][self._broker, operation, kind] += 1
        self._up[self._up_key] = int(kind == "refused")  # to refuse one thing is an answer

    def _on_recovered(self, _event: events.BrokerRecovered) -> None:
        self._up[self._up_key] = 1

    def _on_claimed(self, event: events.BatchClaimed) -> None:
        self._series.histograms["taskflow_claim_batch_jobs"][self._series.queue(event.queue),].observe(event.jobs)

    def _on_held(self, event: events.GateHeld) -> None:
        self._series.held.pop(event.gate, None)
        if event.for_s <= 0:
            return
        if len(self._series.held) >= MOST_GATES:
            now = self._now()
            self._series.held = {gate: until for gate, until in self._series.held.items() if until > now}
        if len(self._series.held) < MOST_GATES:
            self._series.held[event.gate] = self._now() + event.for_s

    def _on_breaker(self, event: events.BreakerMoved) -> None:
        if event.breaker not in self._series.breakers:
            return  # not declared: a label must come from a closed set
        moved = self._series.numbers["taskflow_breaker_transitions_total"]
        moved[event.breaker, event.to] = moved.get((event.breaker, event.to), 0) + 1
        lanes = self._series.breakers[event.breaker]
        if event.to == "closed":
            lanes.pop(event.gate, None)
            self._series.held.pop(event.gate, None)
        elif event.gate in lanes or len(lanes) < MOST_GATES:
            lanes[event.gate] = event.to
        self._series.show_breaker(event.breaker)


def _is_spent(decided: decision.Decision) -> bool:
    """Whether the attempt that led to this decision counts."""
    kind = type(decided)
    return kind is decision.Complete or kind is decision.Retry or (isinstance(decided, decision.Bury) and decided.spent)
