"""Turns events into log lines. The message of a line is constant; what varies is in its fields."""

from __future__ import annotations

import time
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from loguru import logger

from taskflow.core import decision, events
from taskflow.core.job import JobState
from taskflow.telemetry.lines import OURS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from loguru import Record

    from taskflow.core.job import Claim
    from taskflow.core.outcome import ErrorRecord
    from taskflow.telemetry.bus import Bus


class LogEvent(NamedTuple):
    """How one event is logged."""

    level: str
    message: str


# The names are API; the messages are not. ERROR only where a person should act.
LOG_EVENTS: dict[str, LogEvent] = {
    "job.started": LogEvent("DEBUG", "job started"),
    "job.ended": LogEvent("DEBUG", "attempt ended"),
    "job.succeeded": LogEvent("DEBUG", "job succeeded"),
    "job.snoozed": LogEvent("DEBUG", "job will wait, no attempt was spent"),
    "job.released": LogEvent("DEBUG", "job was handed back, no attempt was spent"),
    "job.failed": LogEvent("WARNING", "attempt failed"),
    "job.retried": LogEvent("INFO", "job will be retried"),
    "job.cancelled": LogEvent("INFO", "job was cancelled"),
    "job.expired": LogEvent("WARNING", "job came too late and was given up"),
    "job.buried": LogEvent("ERROR", "job is dead: a person has to look at it"),
    "job.redelivered": LogEvent("WARNING", "job of a dead worker is ready again"),
    "job.stale": LogEvent("WARNING", "job was settled too late: another worker has it, or the broker has lost it"),
    "job.unknown_task": LogEvent("WARNING", "job names a task that this worker does not know; it waits"),
    "job.timeout_ignored": LogEvent("WARNING", "job ran past its timeout: its handler swallowed the cancellation"),
    "job.thread_abandoned": LogEvent("WARNING", "sync handler ran out of time; its thread goes on"),
    "worker.gone": LogEvent("WARNING", "the worker of this child process is gone; the process ends"),
    "job.process_died": LogEvent("WARNING", "child process of a sync handler died; the worker goes on"),
    "jobs.submitted": LogEvent("DEBUG", "jobs were submitted"),
    "jobs.deduplicated": LogEvent("DEBUG", "jobs were there already"),
    "jobs.rejected": LogEvent("WARNING", "jobs were refused"),
    "worker.started": LogEvent("INFO", "worker started"),
    "worker.paused": LogEvent("INFO", "worker was told to claim nothing more"),
    "worker.draining": LogEvent("INFO", "worker is draining"),
    "worker.stopped": LogEvent("INFO", "worker stopped"),
    "worker.unstarted": LogEvent("INFO", "worker was told to stop before it had started"),
    "worker.left": LogEvent("WARNING", "something does not end, a handler, its thread or a call: left without it"),
    "worker.lease_lost": LogEvent("WARNING", "worker lost its claims and stopped what ran of them"),
    "worker.process_ended": LogEvent("WARNING", "worker process ended, though nobody told it to; another is started"),
    "broker.failed": LogEvent("WARNING", "broker failed"),
    "broker.recovered": LogEvent("INFO", "broker answers again"),
    "broker.doubted": LogEvent("WARNING", "broker may lose jobs"),
    "loop.stalled": LogEvent("WARNING", "something blocked the event loop"),
    "gate.held": LogEvent("INFO", "gate is closed"),
    "breaker.open": LogEvent("WARNING", "circuit breaker opened"),
    "breaker.half_open": LogEvent("INFO", "circuit breaker tries again"),
    "breaker.closed": LogEvent("INFO", "circuit breaker closed"),
    "http.started": LogEvent("INFO", "HTTP server started"),
    "http.unavailable": LogEvent("WARNING", "HTTP server could not start; the worker goes on without it"),
    "http.failed": LogEvent("ERROR", "HTTP request failed"),
}

_FAILED = frozenset({"failed", "timed_out"})
_REJECTED_EVERY_S = 1.0  # a full queue refuses thousands a second; their callers all hear of it anyway
_BROKEN_EVERY_S = 10.0  # in an outage each of a worker's loops fails about once a second, on every worker
_MOST_TOLD = 1_000  # lines that are remembered for that


def _as_ours(record: Record) -> None:
    record["name"] = OURS


_ours = logger.patch(_as_ours)


def announce(event: str, **fields: Any) -> None:
    """Write the line of `event`, one of `LOG_EVENTS`."""
    level, message = LOG_EVENTS[event]
    _ours.bind(event=event, **fields).log(level, message)


class LogListener:
    """Logs what happens to jobs, workers, brokers and gates. Success is DEBUG, and not even looked at without."""

    def __init__(
        self,
        level: str = "INFO",
        *,
        now: Callable[[], float] = time.monotonic,
        about: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._is_debug = logger.level(level).no <= logger.level("DEBUG").no
        self._now = now
        self._about = dict(about)  # what a worker that starts tells of this process: its version, its broker
        self._told: dict[tuple[str, ...], tuple[float, int]] = {}  # of what repeats: → (quiet until, how many since)

    def subscribe(self, bus: Bus) -> None:
        """Log what `bus` tells."""
        wanted: list[tuple[Callable[[Any], None], type]] = [
            (self._on_ended, events.AttemptsEnded),
            (self._on_settled, events.JobsSettled),
            (self._on_stale, events.SettlementStale),
            (self._on_rejected, events.JobsRejected),
            (self._on_redelivered, events.JobRedelivered),
            (self._on_buried, events.JobBuried),
            (self._on_expired, events.JobExpired),
            (self._on_cancelled, events.JobCancelled),
            (self._on_unknown, events.TaskUnknown),
            (self._on_failed, events.BrokerFailed),
            (self._on_recovered, events.BrokerRecovered),
            (self._on_doubted, events.BrokerDoubted),
            (self._on_worker_started, events.WorkerStarted),
            (self._on_draining, events.WorkerDraining),
            (self._on_stopped, events.WorkerStopped),
            (self._on_lease_lost, events.LeaseLost),
            (self._on_abandoned, events.ThreadAbandoned),
            (self._on_died, events.ProcessDied),
            (self._on_ignored, events.TimeoutIgnored),
            (self._on_stalled, events.LoopStalled),
            (self._on_held, events.GateHeld),
            (self._on_breaker, events.BreakerMoved),
        ]
        if self._is_debug:
            wanted += [
                (self._on_started, events.AttemptStarted),
                (self._on_submitted, events.JobsSubmitted),
                (self._on_deduplicated, events.JobsDeduplicated),
            ]
        for listener, event_type in wanted:
            bus.subscribe(listener, event_type)

    # --- jobs --------------------------------------------------------

    def _on_started(self, event: events.AttemptStarted) -> None:
        announce("job.started", **_job(event.claim, event.correlation_id), waited_s=round(event.claim.waited_s, 6))

    def _on_ended(self, event: events.AttemptsEnded) -> None:
        for attempt in event.attempts:
            if self._is_debug or attempt.outcome in _FAILED:
                self._tell_ended(attempt)

    @staticmethod
    def _tell_ended(attempt: events.OfEndedAttempt) -> None:
        announce(
            "job.failed" if attempt.outcome in _FAILED else "job.ended",
            **_job(attempt.claim, attempt.correlation_id),
            duration_s=round(attempt.run_s, 6),
            outcome=attempt.outcome,
            error=_error(attempt.error),
        )

    def _on_settled(self, event: events.JobsSettled) -> None:
        for job in event.jobs:
            if self._is_debug or type(job.decision) is not decision.Complete:
                self._tell_settled(job)

    def _tell_settled(self, settled: events.OfSettledJob) -> None:
        decided = settled.decision
        job = _job(settled.claim, settled.correlation_id)
        if settled.state is JobState.CANCELLED:
            announce("job.cancelled", **job)
            return
        match decided:
            case decision.Complete():
                announce("job.succeeded", **job, total_s=round(settled.total_s, 6))
            case decision.Retry(delay_s, error):
                announce("job.retried", **job, delay_s=round(delay_s, 3), error=_error(error, has_stack=False))
            case decision.Bury(error, spent):
                # The stack is in the line of the attempt; where there was none, it is only here.
                announce("job.buried", **job, error=_error(error, has_stack=not spent))
            case decision.Expire(reason):
                announce("job.expired", **job, reason=reason)
            case decision.Snooze(delay_s, reason, error) if self._is_debug:
                announce("job.snoozed", **job, delay_s=round(delay_s, 3), reason=reason, error=_error(error))
            case decision.Release() if self._is_debug:
                announce("job.released", **job)
            case _:
                pass

    def _on_stale(self, event: events.SettlementStale) -> None:
        announce("job.stale", job_id=event.job_id, task=event.task, queue=event.queue)

    def _on_submitted(self, event: events.JobsSubmitted) -> None:
        announce("jobs.submitted", queue=event.queue, task=event.task, count=event.count)

    def _on_deduplicated(self, event: events.JobsDeduplicated) -> None:
        announce("jobs.deduplicated", queue=event.queue, task=event.task, count=event.count)

    def _on_rejected(self, event: events.JobsRejected) -> None:
        reason = str(event.reason)
        count = self._due(("jobs.rejected", event.queue, reason), event.count, every_s=_REJECTED_EVERY_S)
        if count:
            announce("jobs.rejected", queue=event.queue, reason=reason, count=count)

    def _due(self, key: tuple[str, ...], count: int, *, every_s: float) -> int:
        """How many a line about `key` has to tell of now: these, and those since the last; 0 if that is fresh."""
        now = self._now()
        quiet_until, since = self._told.get(key, (now, 0))
        since += count
        if now < quiet_until:
            self._told[key] = (quiet_until, since)
            return 0
        if len(self._told) >= _MOST_TOLD:
            self._told.clear()
        self._told[key] = (now + every_s, 0)
        return since

    def _on_redelivered(self, event: events.JobRedelivered) -> None:
        announce("job.redelivered", job_id=event.job_id, task=event.task, queue=event.queue, lost=event.lost)

    def _on_buried(self, event: events.JobBuried) -> None:
        error = {"type": "WorkerLost", "message": "its worker died with it, again and again", "kind": "lost"}
        announce("job.buried", job_id=event.job_id, task=event.task, queue=event.queue, lost=event.lost, error=error)

    def _on_expired(self, event: events.JobExpired) -> None:
        announce("job.expired", job_id=event.job_id, task=event.task, queue=event.queue, reason=event.reason)

    def _on_cancelled(self, event: events.JobCancelled) -> None:
        announce("job.cancelled", job_id=event.job_id, task=event.task, queue=event.queue)

    def _on_unknown(self, event: events.TaskUnknown) -> None:
        retry_after_s = round(event.retry_after_s, 3)
        announce(
            "job.unknown_task", job_id=event.job_id, task=event.task, queue=event.queue, retry_after_s=retry_after_s
        )

    def _on_abandoned(self, event: events.ThreadAbandoned) -> None:
        announce("job.thread_abandoned", job_id=event.job_id, task=event.task, queue=event.queue)

    def _on_died(self, event: events.ProcessDied) -> None:
        announce("job.process_died", job_id=event.job_id, task=event.task, queue=event.queue, reason=event.how)

    # --- what they need ----------------------------------------------

    def _on_ignored(self, event: events.TimeoutIgnored) -> None:
        duration_s = round(event.ran_s, 6)
        announce("job.timeout_ignored", job_id=event.job_id, task=event.task, queue=event.queue, duration_s=duration_s)

    def _on_failed(self, event: events.BrokerFailed) -> None:
        key = ("broker.failed", event.operation, event.kind, event.message)
        count = self._due(key, 1, every_s=_BROKEN_EVERY_S)
        if count:
            error = {"type": "BrokerError", "message": event.message, "kind": event.kind}
            retry_in_s = round(event.retry_in_s, 3)
            announce("broker.failed", operation=event.operation, count=count, retry_in_s=retry_in_s, error=error)

    def _on_recovered(self, event: events.BrokerRecovered) -> None:
        for key in [key for key in self._told if key[:2] == ("broker.failed", event.operation)]:
            del self._told[key]  # the next outage is told of at once
        announce("broker.recovered", operation=event.operation, duration_s=round(event.after_s, 3))

    def _on_doubted(self, event: events.BrokerDoubted) -> None:
        announce("broker.doubted", reason=event.message)

    def _on_worker_started(self, event: events.WorkerStarted) -> None:
        announce(
            "worker.started",
            worker=event.worker,
            queues=event.queues,
            concurrency=event.concurrency,
            tasks=event.tasks,
            **self._about,
        )

    def _on_draining(self, event: events.WorkerDraining) -> None:
        announce("worker.draining", worker=event.worker, in_flight=event.in_flight, drain_s=event.drain_s)

    def _on_stopped(self, event: events.WorkerStopped) -> None:
        announce("worker.stopped", worker=event.worker, handed_back=event.handed_back)

    def _on_lease_lost(self, event: events.LeaseLost) -> None:
        ids = event.job_ids
        announce("worker.lease_lost", worker=event.worker, reason=event.reason, count=len(ids), job_ids=ids)

    def _on_stalled(self, event: events.LoopStalled) -> None:
        announce("loop.stalled", duration_s=round(event.stalled_s, 3))

    def _on_held(self, event: events.GateHeld) -> None:
        announce("gate.held", gate=event.gate, for_s=round(event.for_s, 3), reason=event.reason)

    def _on_breaker(self, event: events.BreakerMoved) -> None:
        cause = {"cause": event.cause} if event.cause else {}
        announce(f"breaker.{event.to}", gate=event.gate, breaker=event.breaker, **cause)


def _job(claim: Claim, correlation_id: str) -> dict[str, Any]:
    return {
        "correlation_id": correlation_id,
        "job_id": claim.job_id,
        "task": claim.task,
        "queue": claim.queue,
        "lane": claim.lane,
        "gate": ",".join(claim.gates),
        "attempt": claim.attempts + 1,
    }


def _error(error: ErrorRecord | None, *, has_stack: bool = True) -> dict[str, str] | None:
    """The error for a line. `kind` tells bad data from a broken dependency."""
    if error is None:
        return None
    told = {"type": error.type, "message": error.message, "kind": error.kind}
    if has_stack and error.stack:
        told["stack"] = error.stack
    return told
