"""Context that logs and submissions read."""
from __future__ import annotations
from contextvars import ContextVar
from typing import Any
job_context: ContextVar[Any] = ContextVar("taskflow_job", default=None)
def current_correlation_id() -> str | None:
    job = job_context.get()
    return None if job is None else job.correlation_id
def current_traceparent() -> str | None:
    return None
