"""What a job is: its states, the one table of transitions, and the records that travel.

Rule 1: a job's state changes only along `TRANSITIONS`; every broker is tested against it.
Rule 2: a final state is never left, but for `dead → ready`, when a person retries a dead letter.

`Job` and `Claim` are named tuples, not frozen dataclasses: as immutable, and several times cheaper to make, which
counts once for every job.
"""

from __future__ import annotations

from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from taskflow.core.gate import Recovery


class JobState(StrEnum):
    """Where a job stands. The last four are final."""

    SCHEDULED = "scheduled"
    WAITING = "waiting"
    READY = "ready"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    DEAD = "dead"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    __hash__ = str.__hash__  # the enum's own is a Python function, and states are dict keys on the hot path


INITIAL = (JobState.SCHEDULED, JobState.WAITING, JobState.READY)  # where a submit may put a job
FINAL = frozenset({JobState.SUCCEEDED, JobState.DEAD, JobState.CANCELLED, JobState.EXPIRED})

# state → {what happens: state after}. The README's diagram is drawn from this table.
TRANSITIONS: Mapping[JobState, Mapping[str, JobState]] = MappingProxyType(
    {
        JobState.SCHEDULED: {
            "due": JobState.READY,
            "cancel": JobState.CANCELLED,
            "expire": JobState.EXPIRED,
        },
        JobState.WAITING: {
            "unblock": JobState.READY,
            "cancel": JobState.CANCELLED,
            "expire": JobState.EXPIRED,
        },
        JobState.READY: {
            "claim": JobState.RUNNING,
            "cancel": JobState.CANCELLED,
            "expire": JobState.EXPIRED,
        },
        JobState.RUNNING: {
            "complete": JobState.SUCCEEDED,
            "retry": JobState.SCHEDULED,
            "snooze": JobState.SCHEDULED,
            "release": JobState.READY,
            "reclaim": JobState.READY,
            "bury": JobState.DEAD,
            "cancel": JobState.CANCELLED,
            "expire": JobState.EXPIRED,
        },
        JobState.SUCCEEDED: {},
        JobState.DEAD: {"resurrect": JobState.READY},
        JobState.CANCELLED: {},
        JobState.EXPIRED: {},
    }
)

MAX_GATES = 3  # fixed at submit; three policies (breaker, bulkhead, rate) of three names is the most a task can have
MAX_LANE_BYTES = 200
SUSPECT_AFTER = 2  # losses; from then on a job is claimed alone


class Job(NamedTuple):
    """One submission, as the submitter hands it to a broker. Durations are seconds; the broker makes the instants.

    `payload` is the JSON envelope. `key` is unique per task until the job is final. `expires_s` counts from when the
    job was first due: the smaller of its deadline and the longest wait; `expire_reason` names which.
    """

    id: str
    task: str
    queue: str
    payload: bytes
    priority: int = 4
    lane: str = ""
    gates: tuple[str, ...] = ()
    key: str | None = None
    delay_s: float = 0.0
    expires_s: float = 604_800.0
    expire_reason: str = "max_wait"
    batch: str = ""


class Claim(NamedTuple):
    """A job handed to one worker. Every later word about it carries `token`, which only ever grows.

    `waited_s` counts from when the job became ready, `age_s` from when it was first due; `expires_in_s` is what
    remains of its deadline. `attempts` were spent before this claim; `lost` counts workers that died with it.
    `recoveries` are those of its gates that a breaker has tripped before: almost always none.
    """

    job_id: str
    token: int
    task: str
    queue: str
    payload: bytes
    lane: str
    gates: tuple[str, ...]
    priority: int
    attempts: int
    snoozes: int
    lost: int
    waited_s: float
    age_s: float
    expires_in_s: float
    expire_reason: str
    checkpoint: bytes | None
    recoveries: tuple[Recovery, ...] = ()

    @property
    def is_suspect(self) -> bool:
        return self.lost >= SUSPECT_AFTER


def is_buried(lost: int, *, max_lost: int) -> bool:
    """Whether a job that was lost `lost` times in all has used up its losses.

    Only losses as a suspect count: the first two may be a neighbour's fault.
    """
    return lost - SUSPECT_AFTER >= max_lost


def mermaid() -> str:
    """`TRANSITIONS` as a mermaid `stateDiagram-v2`: what happens along the same arrow shares it."""
    lines = ["stateDiagram-v2", *(f"    [*] --> {state}: submit" for state in INITIAL)]
    for state, ways in TRANSITIONS.items():
        arrows: dict[JobState, list[str]] = {}
        for what, to in ways.items():
            arrows.setdefault(to, []).append(what)
        lines += [f"    {state} --> {to}: {', '.join(whats)}" for to, whats in arrows.items()]
    lines += [f"    {state} --> [*]" for state in TRANSITIONS if state in FINAL]
    return "\n".join(lines) + "\n"
