"""The contract of a broker, in types and words. `memory` is the reference; one conformance suite runs over all.

Rules for every broker:

1.  Every verb is atomic and takes a batch. Once `submit` returned, the job is as safe as the broker is durable.
2.  Decisions carry durations. The broker's own clock makes the instants; no worker's clock is ever compared with it.
3.  A claim carries a token that only grows. Every later word about the claim is answered *applied*, *already* (this
    very token settled it before) or *stale* (changes nothing).
4.  A worker has one lease, renewed by each beat and by each claim. When it ends, `reclaim` makes the worker's jobs
    ready again, `lost` + 1, and their old tokens stale. If one of them is a suspect, only the suspect's count grows:
    what it breaks is its own. A server's clock that is stepped forward ends no lease (`server_clock`).
5.  Claims that are missing from two beats in a row are reclaimed too (the reply to the claim was lost on its way, or
    the worker no longer vouches for the job).
6.  Order within a queue: strict priority (9 first); lanes in turn; within a lane, the instant at which a job became
    due, then the order of submission. A lane at the same top priority gets at most max(QUOTA, limit / open lanes) jobs
    before the next lane has its turn. Queues are asked in the order in which the request names them.
7.  A job is claimed only if all its gates admit it (`core.gate.admit`); live counts and rate tokens move in the same
    transaction. A gate is never over its limit, and may be under-served.
    A claim carries what each of its gates with an era was at that moment (`core.gate.recoveries_of`).
8.  A lane whose gate does not admit leaves the set of open lanes until the gate may open (hold over, token there,
    a claim settled); at most WAKE lanes are woken, and PARKS lanes parked, by one claim, so that neither a mass
    release nor a mass hold stalls it.
9.  A suspect (lost twice or more) is claimed only by a request with `suspects`, one at a time.
10. A job that was asked to cancel while it ran becomes `cancelled` by any decision that would have run it again.
11. The bound of a queue counts ready + scheduled jobs; those of one gate fill at most half of it. Retries, snoozes,
    releases and reclaims are never refused.
12. `BrokerUnavailable` is raised when the broker cannot be reached, is locked, or has no space; nothing has changed
    then (or the verb is safe to repeat: `submit` by id, `settle` by token).
13. A worker says with each beat what it is (`Presence`). `workers` shows it from then on, until it leaves or has not
    said so for FORGOTTEN leases, whether its lease has ended or not.

Verbs may be called from many tasks of one event loop at once. `close` is idempotent.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from taskflow.core.decision import Decision
    from taskflow.core.gate import Gate, GateChange
    from taskflow.core.job import Claim, Job, JobState

QUOTA = 4  # jobs a lane gets in one turn: measured at 0.6 to 0.96 of plain FIFO over 1,000 lanes
WAKE = 25  # lanes that one claim may wake: with their quota, jobs for a hundred slots
# Lanes that one claim may park: when a dependency of ten thousand open lanes is held, a few claims share the work.
PARKS = 4 * WAKE
PROMOTE = 1_000  # scheduled jobs that one claim may make ready
ERRORS_KEPT = 50  # of one job, the last ones: a job that is retried for ever must not grow for ever
# Leases without a beat until a worker is shown no more: time to see at 3 a.m. that it was there, and to see it come
# back; and few enough that a worker which dies at each start does not fill the list.
FORGOTTEN = 10


class Accepted(StrEnum):
    """What became of one submitted job."""

    NEW = "new"
    SAME_ID = "same_id"  # a job of this id is kept already: a repeated submit
    SAME_KEY = "same_key"  # a job of this task and key is not final yet: `job_id` names it
    QUEUE_FULL = "queue_full"
    GATE_FULL = "gate_full"
    KEY_HELD = "key_held"  # an open transaction has taken its key, and was waited for: nothing is known yet


class Receipt(NamedTuple):
    """The answer for one submitted job, in the order of submission. `retry_after_s` is for the refused ones."""

    job_id: str
    accepted: Accepted
    retry_after_s: float = 0.0


class ClaimRequest(NamedTuple):
    """At most `limit` jobs, of them at most `gated` with gates and `suspects` suspects (0 or 1)."""

    worker: str
    queues: tuple[str, ...]
    limit: int
    gated: int
    suspects: int
    lease_s: float


class Settlement(NamedTuple):
    """A decision about one claim."""

    job_id: str
    token: int
    decision: Decision


class Settled(StrEnum):
    """The fence's answer."""

    APPLIED = "applied"
    ALREADY = "already"
    STALE = "stale"


class SettleReply(NamedTuple):
    """`state` after the settlement; None when it was stale."""

    answer: Settled
    state: JobState | None


class BeatReply(NamedTuple):
    """Of the tokens that were sent: job ids that are no longer this worker's, and those that a person cancelled."""

    lost: tuple[str, ...] = ()
    cancel: tuple[str, ...] = ()


class Note(NamedTuple):
    """What a running job says of itself: JSON. None leaves the old one."""

    job_id: str
    token: int
    progress: bytes | None = None
    checkpoint: bytes | None = None


class Final(NamedTuple):
    """How a job ended. `result` is JSON; `error` is the last `ErrorInfo`. `kept` is False once a result was pruned."""

    job_id: str
    state: JobState
    result: bytes | None
    error: ErrorInfo | None
    kept: bool = True


class ErrorInfo(NamedTuple):
    """One failed attempt, as it is kept. `attempt` counts from 1; `at` is in seconds since 1970."""

    attempt: int
    at: float
    type: str
    message: str
    kind: str
    stack: str


class Reclaimed(NamedTuple):
    """A job that `reclaim` moved, and why: `ready`, `dead` or `cancelled` (its worker was lost), or `expired`."""

    job_id: str
    task: str
    queue: str
    state: JobState
    lost: int
    reason: str


class QueueCounts(NamedTuple):
    """One queue now. `drain_per_s` is the rate at which jobs leave it lately."""

    queue: str
    ready: int
    scheduled: int
    waiting: int
    running: int
    dead: int
    oldest_ready_age_s: float
    drain_per_s: float
    paused: bool


class WorkerState(StrEnum):
    """What a worker is about."""

    CLAIMING = "claiming"
    PAUSED = "paused"  # told to stop claiming, without draining
    DRAINING = "draining"  # on its way out


class Presence(NamedTuple):
    """What a worker says of itself with each beat, for people. No clock's instants: it has been up for `up_s`.

    `queues` are those that it serves, with their weights; of its `concurrency` slots `busy` are taken: by a
    handler that runs, or a thread that was given up on.
    """

    host: str
    pid: int
    version: str
    up_s: float
    queues: Mapping[str, int]
    concurrency: int
    busy: int
    state: WorkerState | str  # a newer version may know other states


class WorkerInfo(NamedTuple):
    """One worker, as it last said: `silent_s` ago, by the broker's clock."""

    worker: str
    silent_s: float
    lease_s: float
    said: Presence

    @property
    def is_silent(self) -> bool:
        """Whether it missed two beats, which go out every third of a lease: it is dead, cut off, or stands still."""
        return self.silent_s > self.lease_s * 2 / 3


class JobInfo(NamedTuple):
    """Everything that is kept of one job, for people. Instants are seconds since 1970; None where there is none."""

    id: str
    task: str
    queue: str
    state: JobState
    priority: int
    lane: str
    gates: tuple[str, ...]
    key: str | None
    attempts: int
    snoozes: int
    lost: int
    submitted_at: float
    due_at: float
    expires_at: float
    started_at: float | None
    finished_at: float | None
    worker: str | None
    reason: str  # why it waits or ended: the last snooze's, expiry's reason
    cancel_requested: bool
    progress: bytes | None
    payload: bytes
    errors: tuple[ErrorInfo, ...]


class Cancelled(StrEnum):
    """What `cancel` did."""

    CANCELLED = "cancelled"  # it had not started: it never will
    REQUESTED = "requested"  # it runs: its worker hears of it with the next beat
    FINAL = "final"  # too late
    MISSING = "missing"


class Retried(StrEnum):
    """What `retry` did."""

    READY = "ready"
    NOT_DEAD = "not_dead"
    KEY_TAKEN = "key_taken"  # another job of its task and key is not final yet
    MISSING = "missing"


class Retention(NamedTuple):
    """How long things are kept, in seconds, and how many rows one `reclaim` prunes at most.

    `batch_s`: a batch that nobody has finished, and that no submit has named for so long, was given up by whoever made
    it. It counts as finished: what is kept for it would be kept for ever.
    """

    result_s: float = 3_600.0
    finished_s: float = 86_400.0
    dead_s: float = 2_592_000.0
    rows: int = 1_000
    batch_s: float = 2_592_000.0  # 30 days, as dead letters: a month, holidays included


class SyncBeat(Protocol):
    """The beat over a connection of its own, called from a thread that no handler can block."""

    def beat(
        self, worker: str, tokens: Mapping[str, int], lease_s: float, presence: Presence | None = None
    ) -> BeatReply:
        """As `Broker.beat`."""
        ...

    def close(self) -> None: ...


class Broker(Protocol):
    """What the runtime asks of a broker."""

    name: str  # memory, sqlite, redis, postgres: the label in metrics
    is_durable: bool

    async def open(self) -> None:
        """Connect, and bring the schema up to date. Raises `BrokerUnavailable`, or `ConfigError` for a newer schema."""
        ...

    async def close(self) -> None:
        """What was asked before is still done. Waits end: `wait` returns, or raises `BrokerError`, as `finals` does.

        Never `BrokerUnavailable`: it is no outage. Idempotent.
        """
        ...

    async def submit(self, jobs: Sequence[Job], bounds: Mapping[str, int]) -> list[Receipt]:
        """Store `jobs`, each known by its id. `bounds` is the most ready + scheduled jobs for each queue they name."""
        ...

    async def claim(self, request: ClaimRequest) -> list[Claim]:
        """Jobs for this worker, in the order in which they should start. An empty list does not mean an empty queue."""
        ...

    async def wait(self, request: ClaimRequest, timeout_s: float) -> None:
        """Return when `claim(request)` may find something, or after `timeout_s`. May return early."""
        ...

    async def settle(self, settlements: Sequence[Settlement]) -> list[SettleReply]:
        """Apply decisions, in order. One answer each."""
        ...

    async def beat(
        self, worker: str, tokens: Mapping[str, int], lease_s: float, presence: Presence | None = None
    ) -> BeatReply:
        """Renew the worker's lease, and vouch for all of its claims: job id → token.

        Without a `presence` the worker is not shown to people, or as it last said.
        """
        ...

    def sync_beat(self) -> SyncBeat | None:
        """A beat for a thread of its own; None when this broker lives in the worker's process and needs none."""
        ...

    async def leave(self, worker: str) -> None:
        """The worker has ended: forget its lease, and show it no more. The next `reclaim` takes back what it holds."""
        ...

    async def note(self, notes: Sequence[Note]) -> list[Settled]:
        """Keep progress and checkpoints of running jobs, fenced."""
        ...

    async def finals(self, job_ids: Sequence[str], timeout_s: float) -> dict[str, Final]:
        """Those of `job_ids` that are final, as soon as at least one is, or none after `timeout_s`.

        Raises `JobNotFound` when none of the ids is kept.
        """
        ...

    async def gate(self, name: str, change: GateChange, generation: int | None = None) -> Gate:
        """Apply `change` if the gate's generation is still `generation` (None: always). Returns the gate as it is.

        `core.gate.change` computes the record. It fences the words of breakers by itself (`era`, `word`); whatever it
        changes of hold and recovery makes a new generation, so that a broker that cannot lock may read, compute,
        compare generations, store what the change is about, and begin again when another was first.
        """
        ...

    async def reclaim(self, *, max_lost: int, retention: Retention) -> list[Reclaimed]:
        """Take back what dead workers held, expire what waited too long, prune what was kept long enough.

        Bounded; call it again. Jobs of a batch that is not finished yet are not pruned (see `Retention.batch_s`).
        """
        ...

    async def counts(self) -> list[QueueCounts]:
        """All queues that have ever had a job, by name.

        One that was only offered jobs (refused, or known by their key) may be among them, with nothing in it.
        """
        ...


class Operator(Protocol):
    """What a person asks of a broker."""

    async def show(self, job_id: str) -> JobInfo | None: ...

    async def states(self, job_ids: Sequence[str]) -> dict[str, JobState]:
        """The state of each job that is kept."""
        ...

    async def jobs(
        self, *, state: JobState | None = None, queue: str | None = None, task: str | None = None, limit: int = 100
    ) -> list[JobInfo]:
        """Newest first."""
        ...

    async def cancel(self, job_ids: Sequence[str]) -> list[Cancelled]: ...

    async def retry(self, job_ids: Sequence[str]) -> list[Retried]:
        """Dead jobs become ready, with fresh attempts and a fresh deadline; their error history stays."""
        ...

    async def purge(self, *, state: JobState, queue: str | None = None, task: str | None = None) -> int:
        """Delete jobs in a final state, or cancel those that wait (`ready`, `scheduled`). Returns how many."""
        ...

    async def pause(self, queue: str) -> None: ...

    async def resume(self, queue: str) -> None: ...

    async def gates(self) -> list[Gate]: ...

    async def workers(self) -> list[WorkerInfo]:
        """Those that are there, and those that fell silent and are not forgotten yet, by name."""
        ...

    async def finish_batch(self, batch: str) -> None:
        """From now on the jobs of this batch are pruned as any other."""
        ...


@runtime_checkable
class Transactional(Protocol):
    """What only a database gives: jobs that are there if and only if the caller's transaction commits.

    `connection` is the caller's own, to the same database, in a transaction that the caller ends. Nothing is committed
    or rolled back here, and nothing is retried: an error leaves the transaction to its owner. Raises `ConfigError` for
    a connection of a kind that this broker cannot use.
    """

    async def submit_in(self, connection: Any, jobs: Sequence[Job], bounds: Mapping[str, int]) -> list[Receipt]:
        """As `Broker.submit`, within the caller's transaction."""
        ...


@runtime_checkable
class Completing(Protocol):
    """What only a database gives, too: a job that is done if and only if the caller's transaction commits."""

    async def complete_in(self, connection: Any, job_id: str, token: int, result: bytes | None) -> Settled:
        """Settle this claim as succeeded, within the caller's transaction. The later settle of this token is *already*.

        A stale claim is answered *stale* and changes nothing: the caller raises, so that the transaction rolls back.
        """
        ...


@runtime_checkable
class Doubtful(Protocol):
    """A broker whose server can be set up so that it loses jobs."""

    @property
    def doubts(self) -> tuple[str, ...]:
        """What `open`, or `version`, found: a sentence each, with what to do. Nobody's fault, so no error."""
        ...


@runtime_checkable
class Versioned(Protocol):
    """A broker with tables, of which one version follows another: `open` brings them up to date."""

    newest_version: int

    async def version(self) -> int:
        """The version that is there, 0 where nothing is. Needs no `open`, changes nothing.

        Raises `BrokerError`, `BrokerUnavailable`, and `ConfigError` for a newer version or what is another program's.
        """
        ...


class FullBroker(Broker, Operator, Protocol):
    """Both halves: what every broker of this package is."""
