"""The typed face of a task: call it as ever, or submit it, one job or many, with options or without."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, ParamSpec, Protocol, TypeVar

from pydantic_core import to_json

from taskflow.collector import no_collection
from taskflow.core import events, specs
from taskflow.core.job import Job, JobState
from taskflow.errors import ConfigError, PayloadError
from taskflow.handles import Connected, JobHandle
from taskflow.options import Options
from taskflow.runtime.codec import ENVELOPE_END, envelope_head
from taskflow.runtime.ids import new_job_id, new_job_ids
from taskflow.runtime.results import Results
from taskflow.runtime.task import Named, TaskDef, gate_names
from taskflow.telemetry.context import current_correlation_id, current_traceparent

if TYPE_CHECKING:
    from taskflow.settings import Settings
    from taskflow.settings.tuning import TaskPolicy
    from taskflow.telemetry.bus import Bus

_new = tuple.__new__  # the constructor of a NamedTuple is one more call
_SUCCEEDED = JobState.SUCCEEDED  # an enum's member costs as much as a call on Python 3.11

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C")  # what a plain call gives: R for a sync function, an awaitable of R for an async one


class Flow(Connected, Protocol):
    """What a task needs of the flow that it belongs to."""

    bus: Bus

    @property
    def settings(self) -> Settings: ...


_NO_OPTIONS = Options()


class Call(NamedTuple, Generic[R]):
    """One set of arguments, for `submit_many`. Made by `task.call(...)`."""

    task: str
    arguments: Mapping[str, Any]
    options: Options


class Task(Generic[P, R, C]):
    """A function that can be called as ever, and submitted as a job."""

    def __init__(self, flow: Flow, definition: TaskDef, fn: Callable[P, C]) -> None:
        functools.update_wrapper(self, fn)  # first: it brings along what other decorators left on the function
        self._flow = flow
        self.definition = definition
        self.fn = fn
        self._plan: _Plan | None = None

    @property
    def name(self) -> str:
        return self.definition.name

    @property
    def declared(self) -> Mapping[str, Any]:
        """What the decorator says explicitly."""
        return self.definition.declared

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> C:
        """Call the function: no queue, no policies."""
        return self.fn(*args, **kwargs)

    async def submit(self, *args: P.args, **kwargs: P.kwargs) -> JobHandle[R]:
        """Put one job in the queue. Raises `PayloadError`, `QueueFull`, `BrokerUnavailable`."""
        return await self._submit(args, kwargs, _NO_OPTIONS)

    def options(
        self,
        *,
        delay: float = 0.0,
        key: str | None = None,
        priority: int | None = None,
        queue: str | None = None,
        timeout: float | None = None,
        deadline: float | None = None,
        max_wait: float | None = None,
        retry: specs.Retry | None = None,
        lane: str | None = None,
        correlation_id: str | None = None,
        job_id: str | None = None,
        connection: Any = None,
    ) -> TaskWithOptions[P, R, C]:
        """This task, submitted otherwise. Durations are seconds; `key` is unique until its job is final.

        With `connection`, yours to the database in which the jobs live (an `sqlite3.Connection`, or one of asyncpg or
        psycopg), the job exists if and only if your transaction commits; nobody sees it before, and its handle finds
        nothing. Nothing is waited for, repeated, committed or rolled back: `QueueFull` and `BrokerUnavailable` are
        raised at once, and leave the transaction to you.
        """
        return TaskWithOptions(
            self,
            Options(
                delay=delay,
                key=key,
                priority=priority,
                queue=queue,
                timeout=timeout,
                deadline=deadline,
                max_wait=max_wait,
                retry=retry,
                lane=lane,
                correlation_id=correlation_id,
                job_id=job_id,
            ),
            connection,
        )

    def call(self, *args: P.args, **kwargs: P.kwargs) -> Call[R]:
        """A job to be, for `submit_many`."""
        definition = self.definition
        return _new(Call, (definition.name, definition.codec.bind(args, kwargs), _NO_OPTIONS))

    async def submit_many(self, calls: Iterable[Call[R]]) -> list[JobHandle[R]]:
        """Put many jobs in the queue, in batches. All arguments are validated before the first one is sent."""
        return await self._submit_calls(calls, None)

    async def _submit(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], options: Options, connection: Any = None
    ) -> JobHandle[R]:
        definition = self.definition
        try:
            job = self.prepare(definition.codec.bind(args, kwargs), options)
        except PayloadError:
            self._refused(options)
            raise
        client = self._flow.client
        (job_id,) = await (client.submit([job]) if connection is None else client.submit_in(connection, [job]))
        return JobHandle(self._flow, job_id, definition)

    async def _submit_calls(
        self, calls: Iterable[Call[R]], options: Options | None, connection: Any = None
    ) -> list[JobHandle[R]]:
        name, origin = self.name, Origin.here()
        jobs = []
        before, mould = None, None
        with no_collection():
            calls = list(calls)
            for call, job_id in zip(calls, new_job_ids(len(calls)), strict=True):
                if type(call) is not Call or call.task != name:
                    got = f"one of {call.task!r}" if isinstance(call, Call) else f"a {type(call).__name__}"
                    raise PayloadError(f"{name}.submit_many() takes what {name}.call(...) makes, got {got}")
                said = call.options if options is None else options
                if said is not before or mould is None:
                    before, mould = said, self._mould(said, origin)
                try:
                    jobs.append(mould.cast(call.arguments, job_id))
                except PayloadError:
                    self._refused(said)
                    raise
        client = self._flow.client
        ids = await (client.submit(jobs) if connection is None else client.submit_in(connection, jobs)) if jobs else []
        flow, definition, together = self._flow, self.definition, Results(ids)
        with no_collection():
            return [JobHandle(flow, job_id, definition, together) for job_id in ids]

    def _refused(self, options: Options) -> None:
        """Tell that one job did not fit."""
        queue = self.definition.policy(self._flow.settings, options.policy_options()).queue
        self._flow.bus.emit(events.JobsRejected(queue, "invalid", 1))

    def prepare(self, arguments: Mapping[str, Any], options: Options) -> Job:
        """The job record of one submission: validated, encoded, its gates and lane fixed."""
        return self._mould(options, Origin.here()).cast(arguments, new_job_id())

    def _mould(self, options: Options, origin: Origin) -> _Mould:
        definition, settings = self.definition, self._flow.settings
        if options is _NO_OPTIONS:
            if self._plan is None or self._plan.settings is not settings:
                self._plan = _Plan.of(settings, definition.policy(settings))
            plan, carried = self._plan, None
        else:
            plan = _Plan.of(settings, definition.policy(settings, options.policy_options()))
            carried = options.carried()
        head = envelope_head(
            options.correlation_id or origin.correlation_id, origin.traceparent, to_json(carried) if carried else None
        )
        lane = "" if options.lane is None and definition.lane is None else options.lane
        return _new(_Mould, (definition, plan, options, head, lane, gate_names(plan.named, lane or "")))

    def __repr__(self) -> str:
        return f"<task {self.name!r}>"


class Origin(NamedTuple):
    """What a job inherits from where it is submitted."""

    correlation_id: str | None
    traceparent: str | None

    @classmethod
    def here(cls) -> Origin:
        """Of this context."""
        return cls(current_correlation_id(), current_traceparent())


class _Plan(NamedTuple):
    """What a submission takes from the task's policies: worked out once, not once a job."""

    settings: Settings
    queue: str
    priority: int
    named: tuple[Named, ...]
    expire_reason: str  # which limit ends a job that waits
    expires_s: float  # and when, in seconds from when it was first due
    max_bytes: int  # of arguments

    @classmethod
    def of(cls, settings: Settings, policy: TaskPolicy) -> _Plan:
        reason, expires_s = "max_wait", policy.max_wait_s
        if policy.deadline_s is not None and policy.deadline_s <= expires_s:
            reason, expires_s = "deadline", policy.deadline_s
        named = tuple(spec for spec in (policy.breaker, policy.bulkhead, policy.rate) if spec is not None)
        return cls(
            settings, policy.queue, policy.priority, named, reason, expires_s, settings.queue.arguments_max_bytes
        )


class _Mould(NamedTuple):
    """What all jobs share that are submitted in one place with the same options."""

    definition: TaskDef
    plan: _Plan
    options: Options
    head: bytes  # of the payload: all but the arguments
    lane: str | None  # None: each job has its own
    gates: tuple[str, ...]  # of that lane

    def cast(self, arguments: Mapping[str, Any], job_id: str) -> Job:
        """The job with these arguments; `job_id` is its id unless the options name one. Raises `PayloadError`."""
        definition, plan, options, head, lane, gates = self
        args = definition.codec.dump(arguments)
        if len(args) > plan.max_bytes:
            raise PayloadError(
                f"{definition.name}() was given {len(args):,} bytes of arguments as JSON; at most {plan.max_bytes:,} "
                f"are taken (TASKFLOW_QUEUE__ARGUMENTS_MAX_BYTES). Store them elsewhere and pass where they are"
            )
        if lane is None:
            lane = definition.lane_of(arguments)
            gates = gate_names(plan.named, lane)
        job = (
            options.job_id or job_id,
            definition.name,
            plan.queue,
            head + args + ENVELOPE_END,
            plan.priority,
            lane,
            gates,
            options.key,
            options.delay,
            plan.expires_s,
            plan.expire_reason,
            options.batch,
        )
        return _new(Job, job)


class TaskWithOptions(Generic[P, R, C]):
    """A task and how to submit it."""

    __slots__ = ("_connection", "_options", "_task")

    def __init__(self, task: Task[P, R, C], options: Options, connection: Any = None) -> None:
        self._task = task
        self._options = options
        self._connection = connection

    async def submit(self, *args: P.args, **kwargs: P.kwargs) -> JobHandle[R]:
        """As `Task.submit`."""
        return await self._task._submit(args, kwargs, self._options, self._connection)  # noqa: SLF001 - its other half

    def call(self, *args: P.args, **kwargs: P.kwargs) -> Call[R]:
        """As `Task.call`, with these options."""
        if self._connection is not None:
            raise ConfigError(
                f"{self._task.name}.options(connection=): all jobs of a batch go into one transaction: say "
                f"{self._task.name}.options(connection=...).submit_many([{self._task.name}.call(...)])"
            )
        return self._task.call(*args, **kwargs)._replace(options=self._options)

    async def submit_many(self, calls: Iterable[Call[R]]) -> list[JobHandle[R]]:
        """As `Task.submit_many`, with these options for all."""
        return await self._task._submit_calls(calls, self._options, self._connection)  # noqa: SLF001


AnyTask = Task[..., Any, Any]
