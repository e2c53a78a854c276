"""What becomes of a job after an attempt: one pure function, one `match`, the whole failure behaviour on one screen.

Decisions carry durations; the broker's own clock makes the instants.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, assert_never

from taskflow.core.backoff import delay_s
from taskflow.core.outcome import ErrorRecord, Failed, Interrupted, Invalid, Outcome, Overdue, Rejected, Succeeded

if TYPE_CHECKING:
    from taskflow.core import specs
    from taskflow.core.job import Claim


class Complete(NamedTuple):  # one a job: it costs half of what a frozen dataclass does
    """Succeeded. An attempt is spent."""

    result: bytes | None = None


@dataclass(frozen=True, slots=True)
class Retry:
    """Run again after `delay_s`. An attempt is spent."""

    delay_s: float
    error: ErrorRecord


@dataclass(frozen=True, slots=True)
class Snooze:
    """Wait for `delay_s`. No attempt is spent."""

    delay_s: float
    reason: str
    error: ErrorRecord | None = None


@dataclass(frozen=True, slots=True)
class Release:
    """Hand back, at its old place in the line. Nothing is spent; rate tokens are given back."""


@dataclass(frozen=True, slots=True)
class Bury:
    """To the dead letters. `spent` tells whether the handler ran."""

    error: ErrorRecord
    spent: bool = True


@dataclass(frozen=True, slots=True)
class Expire:
    """Its deadline passed, or it waited too long."""

    reason: str


@dataclass(frozen=True, slots=True)
class Cancel:
    """A person cancelled it, and it stopped."""


Decision = Complete | Retry | Snooze | Release | Bury | Expire | Cancel


def decide(job: Claim, outcome: Outcome, *, retry: specs.Retry, jitter: float) -> Decision:
    """The decision about `job` after `outcome`, under the task's `retry` policy.

    `jitter` in [0, 1) is drawn by the caller. `job.attempts` does not count the attempt that just ended.
    """
    match outcome:
        case Succeeded():
            return complete(outcome)
        case Failed(error, retryable=False):
            return Bury(error)
        case Failed(error) if job.attempts + 1 >= retry.attempts:
            return Bury(error)
        case Failed(error, retry_after_s=asked_s):
            wait_s = delay_s(retry, job.attempts + 1, jitter=jitter) if asked_s is None else asked_s
            return Retry(_bounded(wait_s), error)
        case Rejected(reason, retry_after_s, error):
            return Snooze(_bounded(retry_after_s), reason, error)
        case Interrupted(cancelled=True):
            return Cancel()
        case Interrupted():
            return Release()
        case Overdue(reason):
            return Expire(reason)
        case Invalid(error):
            return Bury(error, spent=False)
        case _:
            assert_never(outcome)


def complete(outcome: Succeeded) -> Complete:
    """What `decide` comes to after a success, whatever the policy: every job passes here."""
    return tuple.__new__(Complete, (outcome.result,))  # as its constructor, which is one more call


# What another machine asks for can be negative, NaN or for ever. A year is an instant that every broker can store.
_LONGEST_S = 31_536_000.0


def _bounded(asked_s: float) -> float:
    return min(max(0.0, asked_s), _LONGEST_S)
