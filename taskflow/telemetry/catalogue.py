"""Every metric that a worker exports: its name, meaning, labels and buckets. The names are API.

A label takes values of a closed set only: never an id, host, pid, key, lane, argument or message.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

OTHER_QUEUE, UNKNOWN_TASK, OTHER = "_other", "_unknown", "_other"

OUTCOMES = ("succeeded", "failed", "timed_out", "snoozed", "cancelled", "interrupted", "lost")
QUEUE_STATES = ("ready", "scheduled", "waiting", "running", "dead")
BREAKER_STATES = ("closed", "open", "half_open")
REJECTIONS = ("queue_full", "gate_full", "invalid", OTHER)
SHED_REASONS = ("deadline", "max_wait", OTHER)
SNOOZE_REASONS = (
    "snoozed",
    "circuit_open",
    "bulkhead_full",
    "rate_limited",
    "queue_full",
    "rejected",
    "throttled",
    "threads_busy",
    "retry_budget",
    "processes_busy",
    "unknown_task",
    OTHER,
)
LIMITER_REASONS = ("bulkhead_full", "rate_limited")
OPERATIONS = ("submit", "claim", "settle", "beat", "gate", "reclaim", "counts", "finals", "note", "leave", OTHER)
FAILURES = ("timeout", "connection", "full", "locked", "config", "refused", OTHER)

# Five milliseconds to an hour: a job that waits or runs longer than that is looked at by other means.
JOB_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
# From submission to the end, retries and delays included: up to a day.
END_TO_END_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 21_600, 86_400)
BROKER_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
LAG_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5)
ATTEMPTS = (1, 2, 3, 5, 8, 13, 21)
BATCH_JOBS = (1, 2, 5, 10, 25, 50, 100)


class Family(NamedTuple):
    """One metric. `buckets` are the upper bounds of a histogram, without +Inf."""

    kind: Literal["counter", "gauge", "histogram"]
    meaning: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


_QT = ("queue", "task")

CATALOGUE: dict[str, Family] = {
    "taskflow_jobs_submitted_total": Family("counter", "Jobs accepted by the broker.", _QT),
    "taskflow_jobs_deduplicated_total": Family("counter", "Submissions that met a job which is there already.", _QT),
    "taskflow_jobs_rejected_total": Family("counter", "Jobs that were refused at submission.", ("queue", "reason")),
    "taskflow_jobs_shed_total": Family(
        "counter", "Jobs that were accepted and expired before they could be finished.", ("queue", "reason")
    ),
    "taskflow_attempts_started_total": Family("counter", "Handlers that were started.", _QT),
    "taskflow_attempts_total": Family("counter", "Attempts that ended, by outcome.", (*_QT, "outcome")),
    "taskflow_jobs_retried_total": Family("counter", "Failed attempts that will be followed by another.", _QT),
    "taskflow_jobs_snoozed_total": Family(
        "counter", "Jobs that were told to wait, at no cost of an attempt.", ("queue", "reason")
    ),
    "taskflow_jobs_finished_total": Family("counter", "Jobs that reached a final state.", (*_QT, "state")),
    "taskflow_jobs_redelivered_total": Family(
        "counter", "Jobs of dead workers that were made ready again.", ("queue",)
    ),
    "taskflow_stale_settlements_total": Family(
        "counter", "Late words about a job that belonged to another worker by then.", ("queue",)
    ),
    "taskflow_broker_errors_total": Family(
        "counter", "Round trips to the broker that failed.", ("broker", "operation", "kind")
    ),
    "taskflow_breaker_transitions_total": Family(
        "counter", "Changes of state of a circuit breaker, in this worker.", ("breaker", "to")
    ),
    "taskflow_limiter_rejections_total": Family(
        "counter",
        "Calls that a pipeline's bulkhead or rate limit turned away; jobs wait in their queue instead.",
        ("limiter", "reason"),
    ),
    "taskflow_job_queue_wait_seconds": Family(
        "histogram", "Time from ready to claimed, without intended delays.", ("queue",), JOB_SECONDS
    ),
    "taskflow_attempt_run_seconds": Family("histogram", "Time that a handler ran.", _QT, JOB_SECONDS),
    "taskflow_job_end_to_end_seconds": Family(
        "histogram", "Time from first due to the final state.", ("queue",), END_TO_END_SECONDS
    ),
    "taskflow_job_finish_attempts": Family(
        "histogram", "Attempts that a job needed to reach its final state.", ("queue",), ATTEMPTS
    ),
    "taskflow_broker_operation_seconds": Family(
        "histogram", "Time of one round trip to the broker.", ("broker", "operation"), BROKER_SECONDS
    ),
    "taskflow_claim_batch_jobs": Family(
        "histogram", "Jobs claimed in one round trip, by the queue of the first.", ("queue",), BATCH_JOBS
    ),
    "taskflow_event_loop_lag_seconds": Family("histogram", "How late the event loop woke up a timer.", (), LAG_SECONDS),
    "taskflow_queue_jobs": Family("gauge", "Jobs in the broker when it was last asked.", ("queue", "state")),
    "taskflow_queue_oldest_ready_age_seconds": Family(
        "gauge", "Age of the oldest ready job; it grows until the broker is asked again.", ("queue",)
    ),
    "taskflow_queue_limit": Family("gauge", "Most jobs, ready and scheduled, that a queue holds.", ("queue",)),
    "taskflow_worker_in_flight": Family("gauge", "Handlers that run now, in this worker."),
    "taskflow_worker_concurrency_limit": Family("gauge", "Most handlers that this worker runs at once."),
    "taskflow_worker_longest_running_seconds": Family("gauge", "Age of the oldest handler that runs now."),
    "taskflow_worker_draining": Family("gauge", "1 while this worker claims no more and lets its jobs end."),
    "taskflow_limiter_in_use": Family("gauge", "Live claims of a bulkhead, over all workers and lanes.", ("limiter",)),
    "taskflow_limiter_limit": Family("gauge", "Most live claims of a bulkhead; +Inf for none.", ("limiter",)),
    "taskflow_breaker_state": Family(
        "gauge", "1 for the state of a circuit breaker, of all workers; the worst of its lanes.", ("breaker", "state")
    ),
    "taskflow_gates_held": Family("gauge", "Gates that are closed now, as far as this worker knows."),
    "taskflow_abandoned_threads": Family("gauge", "Threads of sync handlers that ran out of time and go on."),
    "taskflow_broker_up": Family("gauge", "1 if the broker answered last time it was asked.", ("broker",)),
    "taskflow_build_info": Family("gauge", "1; what runs here.", ("version", "python", "broker")),
}
