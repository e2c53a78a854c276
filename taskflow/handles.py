"""A submitted job in the hands of whoever submitted it: wait for its result, ask how it stands, cancel it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast

from pydantic_core import from_json

from taskflow.brokers.base import Cancelled
from taskflow.core.job import JobState
from taskflow.errors import JobCancelled, JobExpired, JobFailed, JobNotFound

if TYPE_CHECKING:
    from taskflow.brokers.base import Final
    from taskflow.runtime.client import Client
    from taskflow.runtime.results import Results
    from taskflow.runtime.task import TaskDef

_SUCCEEDED = JobState.SUCCEEDED  # an enum's member costs as much as a call on Python 3.11

R = TypeVar("R")


class Connected(Protocol):
    """What a handle needs of its flow."""

    @property
    def client(self) -> Client:
        """Raises `ConfigError` while the flow is not open."""
        ...


class JobHandle(Generic[R]):
    """A submitted job. Handles are cheap: keep the id, and `flow.job(id)` gives one again."""

    __slots__ = ("_definition", "_flow", "_together", "id")

    def __init__(
        self, flow: Connected, job_id: str, definition: TaskDef | None = None, together: Results | None = None
    ) -> None:
        self._flow = flow
        self._definition = definition
        self._together = together
        self.id = job_id

    async def result(self, timeout: float | None = None) -> R:
        """What the handler returned. Waits until the job is final, `timeout` seconds at most (None: for ever).

        Raises `JobFailed`, `JobCancelled`, `JobExpired` for how it ended, `ResultTimeout` if it has not, `JobNotFound`
        when it is kept no longer.
        """
        client, together = self._flow.client, self._together
        final = None if together is None else together.known.pop(self.id, None)
        if final is None or final.state is not _SUCCEEDED:  # a success stays one; a dead job may have been retried
            final = await client.final(self.id, timeout, together)
        if final.state is _SUCCEEDED:
            if not final.kept:
                raise JobNotFound(f"job {self.id} succeeded, but its result is kept no longer")
            data = final.result
            result: Any = None  # of the type that the function's annotation says
            if data is not None:
                result = from_json(data) if self._definition is None else self._definition.codec.load_result(data)
            return cast("R", result)
        raise _ended_badly(self.id, final)

    async def status(self) -> JobState:
        """The state of the job now. Raises `JobNotFound`."""
        states = await self._flow.client.broker.states([self.id])
        if self.id not in states:
            raise JobNotFound(f"no job {self.id} is kept: the id is wrong, or its retention is over")
        return states[self.id]

    async def cancel(self) -> bool:
        """Cancel it: one that waits never runs; one that runs is cancelled at its next await, within a beat.

        False if it is final already. Raises `JobNotFound`.
        """
        done = await self._flow.client.cancel(self.id)
        if done is Cancelled.MISSING:
            raise JobNotFound(f"no job {self.id} is kept: the id is wrong, or its retention is over")
        return done is not Cancelled.FINAL

    def __repr__(self) -> str:
        return f"<job {self.id}>"


def _ended_badly(job_id: str, final: Final) -> Exception:
    error = final.error
    why = f": {error.type}: {error.message}" if error is not None else ""
    match final.state:
        case JobState.CANCELLED:
            return JobCancelled(f"job {job_id} was cancelled")
        case JobState.EXPIRED:
            return JobExpired(f"job {job_id} expired before it was done{why}")
        case _:
            failed = JobFailed(f"job {job_id} is dead{'' if error is None else f' after attempt {error.attempt}'}{why}")
            if error is not None and error.stack:
                failed.add_note(error.stack)
            return failed
