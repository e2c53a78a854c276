"""What an attempt produced. Classified before it gets here, so that `decide` is one `match`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class ErrorRecord:
    """One failure, as a person will read it in the dead letters. `stack` is the whole traceback, as text.

    `kind` tells bad data from a broken dependency: `timeout`, `transient`, `throttled`; `bad_data`, `bad_payload`,
    `bad_result`, `given_up`; `died` (its process), `lost` (its worker); `error` where nobody can tell.
    """

    type: str
    message: str
    kind: str
    stack: str = ""


class Succeeded(NamedTuple):  # one a job: it costs half of what a frozen dataclass does
    """The handler returned. `result` is JSON, or None where the job keeps none."""

    result: bytes | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """The handler raised, or ran out of its time. `retryable` is what the task's `Retry` says of this error."""

    error: ErrorRecord
    retryable: bool = True
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Rejected:
    """Not run, or asked to come back later: the job waits, no attempt is spent."""

    reason: str
    retry_after_s: float
    error: ErrorRecord | None = None


@dataclass(frozen=True, slots=True)
class Interrupted:
    """Stopped from outside. `cancelled` when a person asked for it; else a shutdown or a lease that ended."""

    cancelled: bool = False


@dataclass(frozen=True, slots=True)
class Overdue:
    """Its deadline had passed before it could start."""

    reason: str


@dataclass(frozen=True, slots=True)
class Invalid:
    """Its payload does not fit the task: it could not even start, and never will."""

    error: ErrorRecord


Outcome = Succeeded | Failed | Rejected | Interrupted | Overdue | Invalid
