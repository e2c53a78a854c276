"""TaskFlow, the front door: register tasks, submit jobs, hand out a worker."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, Self, TypeVar, overload

from taskflow.clock import Clock, LoopClock
from taskflow.core import specs
from taskflow.core.gate import Declare, Rate
from taskflow.errors import ConfigError, UnknownTask
from taskflow.runtime.client import Client
from taskflow.runtime.task import TaskDef
from taskflow.runtime.worker import Stopped, Worker, WorkerParts
from taskflow.settings import Settings
from taskflow.tasks import AnyTask, JobHandle, Task
from taskflow.telemetry.bus import Bus

if TYPE_CHECKING:
    from taskflow.brokers.base import FullBroker
    from taskflow.testing import TestFlow

P = ParamSpec("P")
R = TypeVar("R")
Lifespan = Callable[[], AsyncIterator[None]]


class TaskFlow:
    """One set of tasks, one broker.

    `async with flow` opens it for submitting; `async with flow.worker()` runs jobs too. Without `settings` they come
    from TASKFLOW_*, when they are first needed.
    """

    def __init__(
        self,
        *,
        settings: Settings | None = None,
        broker: FullBroker | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
    ) -> None:
        if settings is not None:
            self.settings = settings
        self.clock: Clock = clock or LoopClock()
        self.bus = Bus()
        self._rng = rng or random.Random()  # noqa: S311 - for jitter, not for secrets
        self._given_broker = broker
        self._tasks: dict[str, AnyTask] = {}
        self._policies: dict[tuple[type, str], Any] = {}
        self._lifespans: list[Callable[[], AbstractAsyncContextManager[None]]] = []
        self._client: Client | None = None
        self._opened = 0
        self._opening = asyncio.Lock()

    @cached_property
    def settings(self) -> Settings:
        """From the environment, read once. Raises `ConfigError`."""
        return Settings.from_env()

    # --- registering -------------------------------------------------

    @overload
    def task(self, fn: Callable[P, Awaitable[R]], /) -> Task[P, R, Awaitable[R]]: ...
    @overload
    def task(self, fn: Callable[P, R], /) -> Task[P, R, R]: ...
    @overload
    def task(
        self,
        /,
        *,
        name: str | None = None,
        queue: str | None = None,
        timeout: float | None = None,
        deadline: float | None = None,
        max_wait: float | None = None,
        priority: int | None = None,
        retry: specs.Retry | None = None,
        breaker: specs.CircuitBreaker | None = None,
        bulkhead: specs.Bulkhead | None = None,
        rate: specs.RateLimit | None = None,
        lane: Callable[..., str] | None = None,
    ) -> TaskDecorator: ...
    def task(self, fn: Any = None, /, **declared: Any) -> Any:
        """Register a function as a task. Durations are seconds; what is left out comes from the environment.

        Raises `ConfigError` for a name that is taken, a policy name with two different specs, or a signature that JSON
        cannot carry.
        """
        name = declared.pop("name", None)
        lane = declared.pop("lane", None)
        unknown = declared.keys() - _DECLARABLE
        if unknown:
            raise ConfigError(f"@flow.task has no option {sorted(unknown)}; it has {sorted(_DECLARABLE)}")
        explicit = {key: value for key, value in declared.items() if value is not None}

        def register(function: Any) -> AnyTask:
            if not callable(function):
                raise ConfigError(f"@flow.task takes a function, got {function!r}")
            task_name = name or getattr(function, "__name__", "")
            if task_name in self._tasks:
                raise ConfigError(
                    f"two tasks are named {task_name!r}; give one of them another name with @flow.task(name=...)"
                )
            definition = TaskDef(task_name, function, explicit, lane)
            self._check_policies(task_name, explicit)
            task: AnyTask = Task(self, definition, function)
            self._tasks[task_name] = task
            return task

        return register if fn is None else register(fn)

    def _check_policies(self, task_name: str, declared: Mapping[str, Any]) -> None:
        """One policy name has one spec: it is one gate for the whole deployment."""
        for key, kind in _POLICIES.items():
            policy = declared.get(key)
            if policy is None:
                continue
            if not isinstance(policy, kind):
                raise ConfigError(f"task {task_name!r}: {key}= takes a {kind.__name__}, got {policy!r}")
            if key == "retry":
                continue
            known = self._policies.setdefault((kind, policy.name), policy)
            if known != policy:
                raise ConfigError(
                    f"task {task_name!r}: {kind.__name__} {policy.name!r} is declared twice with different values: "
                    f"{known} and {policy}. One name is one dependency: share one spec, or use two names"
                )

    @property
    def tasks(self) -> Mapping[str, AnyTask]:
        """All registered tasks, by name."""
        return self._tasks

    def find(self, name: str) -> AnyTask:
        """The task of that name. Raises `UnknownTask` with the known ones."""
        try:
            return self._tasks[name]
        except KeyError:
            known = ", ".join(sorted(self._tasks)) or "none"
            raise UnknownTask(f"no task named {name!r}; known: {known}") from None

    def lifespan(self, fn: Lifespan) -> Lifespan:
        """Register an async generator: it runs to its `yield` when a worker starts, and on after the drain."""
        self._lifespans.append(asynccontextmanager(fn))
        return fn

    def listen(self, listener: Callable[[Any], None], *events: type) -> None:
        """Call `listener` with each event of these types (`taskflow.core.events`). It may raise: jobs go on."""
        self.bus.subscribe(listener, *events)

    # --- submitting --------------------------------------------------

    @property
    def client(self) -> Client:
        """The submitting half. Raises `ConfigError` while the flow is not open."""
        if self._client is None:
            raise ConfigError("the flow is not open: submit inside `async with flow:` or `async with flow.worker():`")
        return self._client

    @property
    def broker(self) -> FullBroker:
        """Where the jobs live, while the flow is open."""
        return self.client.broker

    def job(self, job_id: str, task: AnyTask | None = None) -> JobHandle[Any]:
        """A handle for a job that was submitted earlier, or elsewhere. Its result is read as `task` says."""
        return JobHandle(self, job_id, None if task is None else task.definition)

    async def __aenter__(self) -> Self:
        async with self._opening:
            if self._opened == 0:
                broker = self._given_broker or make_broker(self.settings, self.clock)
                await broker.open()
                self._client = Client(broker, self.settings, self.clock, self._rng, self.bus.emit)
            self._opened += 1
        return self

    async def __aexit__(self, *exc: object) -> None:
        async with self._opening:
            self._opened -= 1
            if self._opened == 0 and self._client is not None:
                client, self._client = self._client, None
                await client.broker.close()

    # --- running -----------------------------------------------------

    def worker(
        self,
        *,
        concurrency: int | None = None,
        queues: Iterable[str] | Mapping[str, int] | None = None,
        drain: float | None = None,
        http: bool = False,
    ) -> RunningWorker:
        """Run jobs until the block ends, then drain for at most `drain` seconds, and hand back what is left.

        `queues` may give weights; without it, the settings', and without those, all queues of the registered tasks.
        With `http`, or a TASKFLOW_HTTP__PORT, metrics and health are served meanwhile.
        """
        return RunningWorker(self, concurrency=concurrency, queues=queues, drain=drain, http=http)

    def configure_logs(self) -> None:
        """Write logs as TASKFLOW_LOG__* say. For a program of its own, as `taskflow worker` is; not for embedding."""

    def test(self) -> TestFlow:
        """This flow on a memory broker and a virtual clock: see `taskflow.testing`."""
        from taskflow.testing import TestFlow  # noqa: PLC0415 - only tests pay for it

        return TestFlow(self)


class TaskDecorator(Protocol):
    """What `@flow.task(...)` applies to a function."""

    @overload
    def __call__(self, fn: Callable[P, Awaitable[R]], /) -> Task[P, R, Awaitable[R]]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> Task[P, R, R]: ...


_POLICIES: dict[str, type[Any]] = {
    "retry": specs.Retry,
    "breaker": specs.CircuitBreaker,
    "bulkhead": specs.Bulkhead,
    "rate": specs.RateLimit,
}
_DECLARABLE = {"queue", "timeout", "deadline", "max_wait", "priority", *_POLICIES}


class RunningWorker:
    """A worker embedded in this process; `async with` starts and drains it."""

    def __init__(
        self,
        flow: TaskFlow,
        *,
        concurrency: int | None,
        queues: Iterable[str] | Mapping[str, int] | None,
        drain: float | None,
        http: bool,
    ) -> None:
        self._flow = flow
        self._http = http
        self.queues: Mapping[str, int] = {}
        self._concurrency = concurrency
        self._queues = queues
        self._drain = drain
        self._stack = AsyncExitStack()
        self._worker: Worker | None = None
        self.stopped: Stopped | None = None

    @property
    def worker(self) -> Worker:
        """What runs. Raises `ConfigError` before it has started."""
        if self._worker is None:
            raise ConfigError("the worker has not started: use `async with flow.worker():`")
        return self._worker

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            flow = await stack.enter_async_context(self._flow)
            for lifespan in flow._lifespans:  # noqa: SLF001 - one front door, two halves
                await stack.enter_async_context(lifespan())
            self.queues = queue_weights(flow, self._queues)
            worker = Worker(self._parts())
            await declare_gates(flow)
            await worker.start()
            self._worker = worker
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc: object) -> None:
        async with self._stack:
            await self.stop()

    async def stop(self) -> Stopped:
        """Drain now, rather than at the end of the block."""
        if self.stopped is None:
            drain_s = self._flow.settings.worker.drain_s if self._drain is None else self._drain
            self.stopped = await self.worker.stop(drain_s)
        return self.stopped

    def _parts(self) -> WorkerParts:
        flow, settings = self._flow, self._flow.settings
        concurrency = self._concurrency or settings.worker.concurrency
        prefetch = settings.worker.prefetch
        return WorkerParts(
            name=f"{socket.gethostname()}-{os.getpid()}-{self._flow._rng.getrandbits(32):08x}",  # noqa: SLF001
            broker=flow.broker,
            tasks={name: task.definition for name, task in flow.tasks.items()},
            settings=settings,
            bus=flow.bus,
            clock=flow.clock,
            queues=self.queues,
            concurrency=concurrency,
            prefetch=concurrency if prefetch is None else prefetch,
            threads=settings.worker.threads or concurrency,
            rng=flow._rng,  # noqa: SLF001
        )


def queue_weights(flow: TaskFlow, asked: Iterable[str] | Mapping[str, int] | None) -> dict[str, int]:
    """The queues of a worker: asked for, or in the settings, or of the registered tasks."""
    if isinstance(asked, Mapping):
        weights = dict(asked)
    elif asked is not None:
        weights = dict.fromkeys(asked, 1)
    else:
        weights = dict(flow.settings.worker.queues)
    if not weights:
        settings = flow.settings
        weights = dict.fromkeys((task.definition.policy(settings).queue for task in flow.tasks.values()), 1)
    return weights or {flow.settings.task.queue: 1}


async def declare_gates(flow: TaskFlow) -> None:
    """Tell the broker what code and environment say of each gate."""
    said: dict[str, Declare] = {}
    for task in flow.tasks.values():
        policy = task.definition.policy(flow.settings)
        for spec in (policy.breaker, policy.bulkhead, policy.rate):
            if spec is None:
                continue
            known = said.get(spec.name, Declare())
            if isinstance(spec, specs.Bulkhead):
                known = Declare(spec.limit, known.rate)
            elif isinstance(spec, specs.RateLimit):
                known = Declare(known.limit, Rate(spec.interval_s, spec.burst or 1))
            said[spec.name] = known
    for name, change in sorted(said.items()):
        await flow.broker.gate(name, change)


def make_broker(settings: Settings, clock: Clock) -> FullBroker:
    """The broker that TASKFLOW_BROKER__URL names. Raises `ConfigError`."""
    url = settings.broker.url.get_secret_value()
    scheme, _, rest = url.partition("://")
    if scheme == "memory":
        from taskflow.brokers.memory import MemoryBroker  # noqa: PLC0415 - only what is used is imported

        return MemoryBroker(clock)
    if scheme == "sqlite":
        from taskflow.brokers.sqlite import SqliteBroker  # noqa: PLC0415

        path = rest.removeprefix("/")
        if not path:
            raise ConfigError("TASKFLOW_BROKER__URL: sqlite:///FILE needs a file name; for no file use memory://")
        return SqliteBroker(
            path, synchronous=settings.broker.synchronous, busy_timeout_s=settings.broker.busy_timeout_s
        )
    raise ConfigError(f"TASKFLOW_BROKER__URL: no broker for {scheme!r} yet; there are memory:// and sqlite:///FILE")
