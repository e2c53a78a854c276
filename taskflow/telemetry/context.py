"""Who we work for: the running job, and the correlation id of the request behind it. Logs and submissions read it.

Nothing here costs anything per log line or per job but one `ContextVar.set` an attempt: sinks look when they write.
"""

from __future__ import annotations

import re
import secrets
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_ID = 128  # characters; longer than any id in use, short enough for every line of a request


class JobContext(Protocol):
    """What log lines tell of the job in whose handler they were written, and policies ask of it."""

    @property
    def job_id(self) -> str: ...
    @property
    def task(self) -> str: ...
    @property
    def queue(self) -> str: ...
    @property
    def lane(self) -> str: ...
    @property
    def gates(self) -> tuple[str, ...]: ...
    @property
    def attempt(self) -> int: ...
    @property
    def correlation_id(self) -> str: ...
    @property
    def traceparent(self) -> str | None: ...
    def deadline_in_s(self) -> float:
        """Seconds until its time is up; infinite once it has ended."""
        ...


# The runtime sets it for each attempt; threads of sync handlers run in a copy of the context.
job_context: ContextVar[JobContext | None] = ContextVar("taskflow_job", default=None)

# What the caller is about, outside jobs; inside a job, set them by `bind_correlation_id`.
correlation_id: ContextVar[str | None] = ContextVar("taskflow_correlation_id", default=None)
traceparent: ContextVar[str | None] = ContextVar("taskflow_traceparent", default=None)
# The job in which they were bound: a worker that was started while a request was served must not give all of its
# jobs the id of that request.
_bound_in: ContextVar[JobContext | None] = ContextVar("taskflow_bound_in", default=None)


def current_correlation_id() -> str | None:
    """The id that was bound here, else the running job's. None where there is neither: a job's own id will do."""
    job = job_context.get()
    if job is None:
        return correlation_id.get()
    bound = correlation_id.get()
    return bound if bound is not None and _bound_in.get() is job else job.correlation_id


def current_traceparent() -> str | None:
    """The W3C `traceparent` that was bound here, else the running job's."""
    job = job_context.get()
    if job is None:
        return traceparent.get()
    bound = traceparent.get()
    return bound if bound is not None and _bound_in.get() is job else job.traceparent


@contextmanager
def bind_correlation_id(value: str | None = None, *, parent: str | None = None) -> Iterator[str]:
    """Log and submit under the id `value`, and the `traceparent` `parent`; yields the id.

    Both may come straight from a header: an id that is none is replaced by a new one, a bad `parent` is dropped.
    """
    bound = request_id(value) or new_correlation_id()
    tokens = (
        (correlation_id, correlation_id.set(bound)),
        (traceparent, traceparent.set(parse_traceparent(parent))),
    )
    where = _bound_in.set(job_context.get())
    try:
        yield bound
    finally:
        _bound_in.reset(where)
        for variable, token in tokens:
            variable.reset(token)


def new_correlation_id() -> str:
    """A random id: 32 hex digits, as a W3C trace id."""
    return secrets.token_hex(16)


_VISIBLE = re.compile(rf"[!-~]{{1,{MAX_ID}}}")
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.{0,256})?")
_NO_TRACE, _NO_SPAN = "0" * 32, "0" * 16


def request_id(value: str | None) -> str | None:
    """`value` if it can be a correlation id (1 to 128 visible ASCII characters, as of X-Request-ID), else None."""
    return value if value is not None and _VISIBLE.fullmatch(value) else None


def parse_traceparent(value: str | None) -> str | None:
    """`value` as version 00 of W3C Trace Context, level 1; None for what is not one. Later versions are read as 00."""
    match = None if value is None else _TRACEPARENT.fullmatch(value.strip(" \t"))
    if match is None:
        return None
    version, trace, span, flags, rest = match.groups()
    if version == "ff" or (version == "00" and rest) or trace == _NO_TRACE or span == _NO_SPAN:
        return None
    return f"00-{trace}-{span}-{flags}"


def trace_id(parent: str | None) -> str | None:
    """The trace id in a `traceparent`: what finds the trace. None for what is none."""
    parsed = parse_traceparent(parent)
    return None if parsed is None else parsed[3:35]
