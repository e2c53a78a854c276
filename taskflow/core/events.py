"""Frozen facts that the runtime announces. Listeners in telemetry turn them into logs, metrics and health.

What happens to every job is told in batches (`AttemptsStarted`, `AttemptsEnded`, `JobsSettled`): a listener costs a
loop, not a call a job. Whoever subscribes to the event of a single one (`AttemptStarted`, `AttemptEnded`,
`JobSettled`) gets those instead, made of the same batches. No event carries arguments, results or secrets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from taskflow.core.decision import Decision
    from taskflow.core.job import Claim, JobState
    from taskflow.core.outcome import ErrorRecord


class AttemptStarted(NamedTuple):
    """A handler is about to run."""

    claim: Claim
    correlation_id: str


class AttemptEnded(NamedTuple):
    """A handler ended. `outcome`: succeeded, failed, timed_out, snoozed, cancelled, interrupted."""

    claim: Claim
    correlation_id: str
    outcome: str
    run_s: float
    error: ErrorRecord | None


class JobSettled(NamedTuple):
    """The broker applied the decision. `state` is the state after it; `total_s` since the job was first due."""

    claim: Claim
    correlation_id: str
    decision: Decision
    state: JobState
    total_s: float


class OfAttempt(Protocol):
    """What a batch tells of each attempt."""

    @property
    def claim(self) -> Claim: ...
    @property
    def correlation_id(self) -> str: ...


class OfEndedAttempt(OfAttempt, Protocol):
    """As `AttemptEnded`."""

    @property
    def outcome(self) -> str: ...
    @property
    def run_s(self) -> float: ...
    @property
    def error(self) -> ErrorRecord | None: ...


class OfSettledJob(OfAttempt, Protocol):
    """As `JobSettled`."""

    @property
    def decision(self) -> Decision: ...
    @property
    def state(self) -> JobState: ...
    @property
    def total_s(self) -> float: ...


class AttemptsStarted(NamedTuple):
    """Handlers that are about to run, or began to since the last batch."""

    attempts: Sequence[OfAttempt]


class AttemptsEnded(NamedTuple):
    """Handlers that ended."""

    attempts: Sequence[OfEndedAttempt]


class JobsSettled(NamedTuple):
    """Jobs whose decision the broker applied."""

    jobs: Sequence[OfSettledJob]


@dataclass(frozen=True, slots=True)
class SettlementStale:
    """A late word was refused: the claim was no longer this worker's."""

    job_id: str
    task: str
    queue: str
    token: int


@dataclass(frozen=True, slots=True)
class JobsSubmitted:
    """`count` jobs were accepted."""

    queue: str
    task: str
    count: int


@dataclass(frozen=True, slots=True)
class JobsDeduplicated:
    """`count` submissions met a job that is there already."""

    queue: str
    task: str
    count: int


@dataclass(frozen=True, slots=True)
class JobsRejected:
    """`count` jobs were refused. `reason`: queue_full, gate_full, invalid."""

    queue: str
    reason: str
    count: int


@dataclass(frozen=True, slots=True)
class JobRedelivered:
    """A dead worker's job is ready again; `lost` times in all now."""

    job_id: str
    task: str
    queue: str
    lost: int


@dataclass(frozen=True, slots=True)
class JobBuried:
    """A suspect was lost too often: a poison job."""

    job_id: str
    task: str
    queue: str
    lost: int


@dataclass(frozen=True, slots=True)
class JobExpired:
    """A waiting job passed its deadline (`reason` deadline) or waited too long (`reason` max_wait).

    One that a worker had claimed by then ends as `JobSettled`, its decision an `Expire` with the same reasons.
    """

    job_id: str
    task: str
    queue: str
    reason: str


@dataclass(frozen=True, slots=True)
class JobCancelled:
    """A job that was cancelled ended without a worker's word: it had not started, or its worker was lost."""

    job_id: str
    task: str
    queue: str


@dataclass(frozen=True, slots=True)
class TaskUnknown:
    """A job names a task that this process does not know; it waits for a deploy that does."""

    job_id: str
    task: str
    queue: str
    retry_after_s: float


@dataclass(frozen=True, slots=True)
class BrokerAnswered:
    """One round trip to the broker."""

    operation: str
    took_s: float


@dataclass(frozen=True, slots=True)
class BatchClaimed:
    """`jobs` were claimed in one round trip, the first of them from `queue`."""

    queue: str
    jobs: int


@dataclass(frozen=True, slots=True)
class BrokerFailed:
    """The broker did not answer, or refused. `kind`: timeout, connection, full, locked, config, other."""

    operation: str
    kind: str
    message: str
    retry_in_s: float


@dataclass(frozen=True, slots=True)
class BrokerRecovered:
    """It answers again."""

    operation: str
    after_s: float


@dataclass(frozen=True, slots=True)
class BrokerDoubted:
    """The broker's server is set up so that it may lose jobs. `message` says how, and what to do."""

    message: str


@dataclass(frozen=True, slots=True)
class WorkerStarted:
    """A worker claims from now on."""

    worker: str
    queues: tuple[str, ...]
    concurrency: int
    tasks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WorkerDraining:
    """No more claims; what runs has `drain_s`."""

    worker: str
    in_flight: int
    drain_s: float


@dataclass(frozen=True, slots=True)
class WorkerStopped:
    """All ended. `handed_back` jobs were cut off and wait for another worker."""

    worker: str
    handed_back: int


@dataclass(frozen=True, slots=True)
class LeaseLost:
    """Claims that are no longer this worker's; what ran of them was cancelled."""

    worker: str
    job_ids: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class ThreadAbandoned:
    """A sync handler ran out of time: its thread goes on, and keeps its slot until it ends."""

    job_id: str
    task: str
    queue: str


@dataclass(frozen=True, slots=True)
class ProcessDied:
    """The child process of a sync handler ended in the middle of its job. `how`: the signal, or the exit code."""

    job_id: str
    task: str
    queue: str
    how: str


@dataclass(frozen=True, slots=True)
class TimeoutIgnored:
    """An async handler swallowed its cancellation, and ended by itself after `ran_s`."""

    job_id: str
    task: str
    queue: str
    ran_s: float


@dataclass(frozen=True, slots=True)
class LoopStalled:
    """Something blocked the event loop for `stalled_s`."""

    stalled_s: float


@dataclass(frozen=True, slots=True)
class GateHeld:
    """A gate is closed for `for_s` seconds."""

    gate: str
    for_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class BreakerMoved:
    """A circuit breaker changed its state. `breaker` is its name without a lane key.

    `cause` is what the last call met when it opened: the type of an error, or `slow_call`.
    """

    breaker: str
    gate: str
    to: str
    cause: str = ""


Event = (
    AttemptsStarted
    | AttemptsEnded
    | JobsSettled
    | SettlementStale
    | JobsSubmitted
    | JobsDeduplicated
    | JobsRejected
    | JobRedelivered
    | JobBuried
    | JobExpired
    | JobCancelled
    | TaskUnknown
    | BrokerAnswered
    | BatchClaimed
    | BrokerFailed
    | BrokerRecovered
    | BrokerDoubted
    | WorkerStarted
    | WorkerDraining
    | WorkerStopped
    | LeaseLost
    | ThreadAbandoned
    | ProcessDied
    | TimeoutIgnored
    | LoopStalled
    | GateHeld
    | BreakerMoved
)


def _started(batch: AttemptsStarted) -> list[AttemptStarted]:
    return [AttemptStarted(one.claim, one.correlation_id) for one in batch.attempts]


def _ended(batch: AttemptsEnded) -> list[AttemptEnded]:
    return [AttemptEnded(one.claim, one.correlation_id, one.outcome, one.run_s, one.error) for one in batch.attempts]


def _settled(batch: JobsSettled) -> list[JobSettled]:
    return [JobSettled(one.claim, one.correlation_id, one.decision, one.state, one.total_s) for one in batch.jobs]


# What comes in batches → the event of a single job, and how it is taken out.
BATCHES: Mapping[type, tuple[type, Callable[[Any], Sequence[Any]]]] = MappingProxyType(
    {
        AttemptsStarted: (AttemptStarted, _started),
        AttemptsEnded: (AttemptEnded, _ended),
        JobsSettled: (JobSettled, _settled),
    }
)
