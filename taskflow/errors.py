"""Every error a user can meet, one short tree, by whose fault it is.

Each class has a stable machine-readable `code`; a message says what happened, the value, and what to do next.
`retry_after_s` is set where waiting helps. No message holds arguments, results or secrets.
"""

from __future__ import annotations


class TaskflowError(Exception):
    """The root: `except TaskflowError` catches whatever taskflow raises on its own account."""

    code = "taskflow_error"

    def __init__(self, message: str = "", *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ConfigError(TaskflowError):
    """A setting, a policy or a task definition is wrong. Fix it and start again."""

    code = "config_error"


class UnknownTask(TaskflowError):
    """No task of that name is registered in this process."""

    code = "unknown_task"


class PayloadError(TaskflowError):
    """Arguments, or a result, that do not fit the function's annotations, or are no JSON, or are too large."""

    code = "bad_payload"


class Rejected(TaskflowError):
    """Turned away before anything ran. `retry_after_s` says when to come back.

    Raised inside a job it makes the job wait: no attempt is spent.
    """

    code = "rejected"


class QueueFull(Rejected):
    """The queue is at its bound. `retry_after_s` comes from the rate at which it drains.

    `accepted` holds the ids of those jobs of a batch that were accepted before the queue was full.
    """

    code = "queue_full"
    accepted: tuple[str, ...] = ()


class CircuitOpen(Rejected):
    """The circuit breaker of a dependency is open."""

    code = "circuit_open"


class BulkheadFull(Rejected):
    """All slots of a bulkhead are taken."""

    code = "bulkhead_full"


class RateLimited(Rejected):
    """A rate limit has no token left."""

    code = "rate_limited"


class DeadlineExceeded(TaskflowError, TimeoutError):
    """The deadline passed before the work was done."""

    code = "deadline_exceeded"


class JobFailed(TaskflowError):
    """The awaited job is dead. The message names the last error of the handler."""

    code = "job_failed"


class JobCancelled(TaskflowError):
    """The awaited job was cancelled."""

    code = "job_cancelled"


class JobExpired(TaskflowError):
    """The awaited job passed its deadline, or waited too long, and was never finished."""

    code = "job_expired"


class JobNotFound(TaskflowError):
    """No such job is kept: the id is wrong, or its retention is over."""

    code = "job_not_found"


class ResultTimeout(TaskflowError, TimeoutError):
    """The job was not final in the time that the caller gave. It goes on."""

    code = "result_timeout"


class StaleClaim(TaskflowError):
    """The claim is no longer this worker's: nothing was changed."""

    code = "stale_claim"


class BrokerError(TaskflowError):
    """The broker refused or broke. The cause is chained."""

    code = "broker_error"


KEY_HELD = "held"  # `BrokerUnavailable.kind` where one job's key waits for a transaction that somebody holds open


class BrokerUnavailable(BrokerError):
    """The broker cannot be reached, is locked, or has no space. Waiting may help; nothing accepted was lost."""

    code = "broker_unavailable"

    def __init__(self, message: str = "", *, retry_after_s: float = 1.0, kind: str = "other") -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.kind = kind
