"""What a handler can know of its own job: `current_job()`."""

from __future__ import annotations

from typing import Any

from pydantic_core import PydanticSerializationError, from_json, to_json

from taskflow.brokers.base import Note, Settled
from taskflow.errors import PayloadError, StaleClaim
from taskflow.runtime.walk import Walk
from taskflow.telemetry.context import job_context

# Progress and checkpoints are for small states: larger ones belong where the data is.
MAX_NOTE_BYTES = 262_144


class CurrentJob:
    """The job that runs here. `attempt` counts from 1; `token` grows with every claim: send it on as a fence.

    The pair (`id`, `token`) never comes twice; `id` alone is stable over retries: the idempotency key of the job.
    """

    __slots__ = ("_walk",)

    def __init__(self, walk: Walk) -> None:
        self._walk = walk

    @property
    def id(self) -> str:
        return self._walk.claim.job_id

    @property
    def task(self) -> str:
        return self._walk.claim.task

    @property
    def queue(self) -> str:
        return self._walk.claim.queue

    @property
    def lane(self) -> str:
        return self._walk.claim.lane

    @property
    def gates(self) -> tuple[str, ...]:
        return self._walk.claim.gates

    @property
    def attempt(self) -> int:
        return self._walk.attempt

    @property
    def token(self) -> int:
        return self._walk.claim.token

    @property
    def correlation_id(self) -> str:
        return self._walk.correlation_id

    @property
    def traceparent(self) -> str | None:
        return self._walk.traceparent

    def remaining_s(self) -> float:
        """Seconds until this attempt runs out of its timeout, or the job out of its deadline. Never negative."""
        return max(0.0, self._walk.deadline_at - self._walk.notebook.clock.now())

    @property
    def last_checkpoint(self) -> Any:
        """What an earlier attempt gave to `checkpoint`, or None."""
        data = self._walk.claim.checkpoint
        return None if data is None else from_json(data)

    async def checkpoint(self, state: Any) -> None:
        """Keep `state` (JSON) for the next attempt. Raises `StaleClaim` if this worker has lost the job."""
        await self._note(Note(self.id, self.token, checkpoint=_json("a checkpoint", state)))

    async def progress(self, state: Any) -> None:
        """Show `state` (JSON, a number or whatever helps) to whoever looks at the job. Raises `StaleClaim`."""
        await self._note(Note(self.id, self.token, progress=_json("progress", state)))

    async def complete_in(self, connection: Any, result: Any = None) -> None:
        """Complete this job within the transaction of `connection`: it has succeeded if and only if that commits.

        What the handler wrote in that transaction, and that the job is done, are one: a worker that lost the job
        meanwhile gets `StaleClaim` here, and its writes are rolled back with it. So let the error out, commit at once,
        and return; what is returned then is ignored in favour of `result`. If the transaction rolls back, nothing has
        been said, and how the handler ends decides as ever: raise, or the job succeeds with `result` all the same.
        Once it is committed, nothing that the handler still does changes that the job has succeeded.

        `connection` is the caller's own, as for `options(connection=)`. Raises `ConfigError` for one that cannot be
        used, or jobs that live elsewhere; `PayloadError` if `result` does not fit.
        """
        if await self._walk.notebook.complete_in(self._walk, connection, result) is not Settled.APPLIED:
            raise StaleClaim(f"job {self.id} is no longer this worker's (token {self.token}): roll back what it did")

    async def _note(self, note: Note) -> None:
        if await self._walk.notebook.keep(note) is not Settled.APPLIED:
            raise StaleClaim(f"job {self.id} is no longer this worker's (token {self.token}): nothing was kept")

    def __repr__(self) -> str:
        return f"<job {self.id} of {self.task!r}, attempt {self.attempt}>"


def _json(what: str, state: Any) -> bytes:
    try:
        data = to_json(state)
    except PydanticSerializationError as error:
        raise PayloadError(f"{what} must be JSON: {error}") from None
    if len(data) > MAX_NOTE_BYTES:
        raise PayloadError(f"{what} has {len(data):,} bytes of JSON; at most {MAX_NOTE_BYTES:,} are kept")
    return data


def current_job() -> CurrentJob:
    """The job that runs here, also in the thread of a sync handler. Raises `LookupError` outside a job."""
    walk = job_context.get()
    if not isinstance(walk, Walk):
        raise LookupError("no job runs here: current_job() works inside a handler that a worker runs")  # noqa: TRY004
    return CurrentJob(walk)
