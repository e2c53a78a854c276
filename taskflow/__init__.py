"""Runs Python functions as jobs, and survives production: resilience lives in the queue, not in the job."""

from __future__ import annotations

from loguru import logger as _logger

from taskflow.app import TaskFlow
from taskflow.core import events
from taskflow.core.job import JobState
from taskflow.core.specs import Bulkhead, Chaos, CircuitBreaker, ErrorClass, RateLimit, Retry, RetryBudget, Timeout
from taskflow.errors import (
    BrokerError,
    BrokerUnavailable,
    BulkheadFull,
    CircuitOpen,
    ConfigError,
    DeadlineExceeded,
    JobCancelled,
    JobExpired,
    JobFailed,
    JobNotFound,
    PayloadError,
    QueueFull,
    RateLimited,
    Rejected,
    ResultTimeout,
    StaleClaim,
    TaskflowError,
    UnknownTask,
)
from taskflow.handles import JobHandle
from taskflow.policies import (
    Deadline,
    Pipeline,
    PolicyOrderWarning,
    Registry,
    classify,
    register_classifier,
    retry_after_s,
)
from taskflow.runtime.control import GiveUp, RetryLater, Snooze
from taskflow.runtime.current import CurrentJob, current_job
from taskflow.settings import Settings
from taskflow.tasks import Call, Task
from taskflow.version import __version__

# Silent when embedded, until the application asks: `taskflow.telemetry.logs.enable()`.
_logger.disable("taskflow")

__all__ = [
    "BrokerError",
    "BrokerUnavailable",
    "Bulkhead",
    "BulkheadFull",
    "Call",
    "Chaos",
    "CircuitBreaker",
    "CircuitOpen",
    "ConfigError",
    "CurrentJob",
    "Deadline",
    "DeadlineExceeded",
    "ErrorClass",
    "GiveUp",
    "JobCancelled",
    "JobExpired",
    "JobFailed",
    "JobHandle",
    "JobNotFound",
    "JobState",
    "PayloadError",
    "Pipeline",
    "PolicyOrderWarning",
    "QueueFull",
    "RateLimit",
    "RateLimited",
    "Registry",
    "Rejected",
    "ResultTimeout",
    "Retry",
    "RetryBudget",
    "RetryLater",
    "Settings",
    "Snooze",
    "StaleClaim",
    "Task",
    "TaskFlow",
    "TaskflowError",
    "Timeout",
    "UnknownTask",
    "__version__",
    "classify",
    "current_job",
    "events",
    "register_classifier",
    "retry_after_s",
]
