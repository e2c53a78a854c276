"""One claim on its way through a worker: one record, from the claim to the settlement.

Every job makes one. It is what the leases vouch for, what waits and runs here, what the log lines of the handler read,
what the settler tells the broker and what the events tell the listeners: an object for each of these would cost more
than all that is done with them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from taskflow.clock import NEVER

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from taskflow.brokers.base import Note, Settled
    from taskflow.clock import Clock
    from taskflow.core.decision import Decision
    from taskflow.core.job import Claim, JobState
    from taskflow.core.outcome import ErrorRecord
    from taskflow.runtime.breakers import Admitted
    from taskflow.runtime.process import Child
    from taskflow.runtime.slot import Slot
    from taskflow.runtime.task import TaskDef
    from taskflow.runtime.words import GateHold, GateWord
    from taskflow.settings.tuning import TaskPolicy


class Completion(NamedTuple):
    """What a handler said by `complete_in`: its result, as JSON. It counts if the handler's transaction commits."""

    result: bytes | None


class Notebook(NamedTuple):
    """Where a handler's notes and its completion go, and the clock that its time is measured by."""

    keep: Callable[[Note], Awaitable[Settled]]
    clock: Clock
    complete_in: Callable[[Walk, Any, Any], Awaitable[Settled]]


class Walk:
    """A claim that came to this worker at `at`. Instants are of the worker's clock.

    What has no value before a certain step is set by that step, and read by nobody earlier: `slot` when a slot takes
    it; `definition`, `policy` and `args` when it is admitted; `started_at`, `deadline_at` and `notebook` when its
    handler starts; `outcome`, `run_s` and `error` when it has ended;
    `decision` and `total_s` when it is decided what becomes of the job; `state` when the broker has answered.
    """

    __slots__ = (
        "admitted",
        "args",
        "at",
        "child",
        "claim",
        "completion",
        "correlation_id",
        "deadline_at",
        "decision",
        "definition",
        "error",
        "has_ended",
        "hold",
        "notebook",
        "outcome",
        "policy",
        "run_s",
        "slot",
        "started_at",
        "state",
        "total_s",
        "traceparent",
        "vouched_until",
    )

    args: dict[str, Any]
    deadline_at: float
    decision: Decision
    definition: TaskDef
    error: ErrorRecord | None
    notebook: Notebook
    outcome: str
    run_s: float
    slot: Slot
    started_at: float
    state: JobState
    total_s: float

    def __init__(self, claim: Claim, at: float) -> None:
        self.claim = claim
        self.at = at
        self.vouched_until = NEVER
        self.correlation_id = claim.job_id
        self.traceparent: str | None = None
        self.policy: TaskPolicy | None = None
        self.admitted: Admitted | None = None
        self.child: Child | None = None  # the process that was taken for it
        self.hold: GateHold | GateWord | None = None
        self.completion: Completion | None = None
        self.has_ended = False  # its end is with the settler

    # What log lines and policies ask of the job in whose handler they are (`telemetry.context.JobContext`).

    @property
    def job_id(self) -> str:
        return self.claim.job_id

    @property
    def task(self) -> str:
        return self.claim.task

    @property
    def queue(self) -> str:
        return self.claim.queue

    @property
    def lane(self) -> str:
        return self.claim.lane

    @property
    def gates(self) -> tuple[str, ...]:
        return self.claim.gates

    @property
    def attempt(self) -> int:
        """Counts from 1."""
        return self.claim.attempts + 1

    def deadline_in_s(self) -> float:
        """Seconds until its time is up; infinite once it has ended."""
        return NEVER if self.has_ended else self.deadline_at - self.notebook.clock.now()
