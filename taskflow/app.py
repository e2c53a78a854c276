"""TaskFlow, the front door: register tasks, submit jobs, hand out a worker."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Protocol, Self, TypeVar, overload

import anyio

from taskflow.clock import Clock, LoopClock
from taskflow.core import specs
from taskflow.errors import ConfigError, UnknownTask
from taskflow.handles import JobHandle
from taskflow.nearest import nearest
from taskflow.running import RunningWorker
from taskflow.runtime.client import Client
from taskflow.runtime.importing import refuse_while_importing
from taskflow.runtime.task import TaskDef
from taskflow.settings import Settings
from taskflow.settings.reference import REDIS_SCHEMES
from taskflow.tasks import AnyTask, Task
from taskflow.telemetry.bus import Bus
from taskflow.telemetry.listener import LogListener
from taskflow.version import __version__

if TYPE_CHECKING:
    from taskflow.brokers.base import FullBroker
    from taskflow.testing import TestFlow

P = ParamSpec("P")
R = TypeVar("R")
_CLOSE_S = 10.0  # a broker that does not close by then is left to the end of the process
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
        self.rng = rng or random.Random()  # noqa: S311 - for jitter, not for secrets
        self._given_broker = broker
        self._tasks: dict[str, AnyTask] = {}
        self._policies: dict[tuple[type, str], Any] = {}
        self.lifespans: list[Callable[[], AbstractAsyncContextManager[None]]] = []
        self._client: Client | None = None
        self._opened = 0
        self._opening = asyncio.Lock()
        self._is_logging = False

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
        isolation: Literal["thread", "process"] | None = None,
    ) -> TaskDecorator: ...
    def task(self, fn: Any = None, /, **declared: Any) -> Any:
        """Register a function as a task. Durations are seconds; what is left out comes from the environment.

        A plain function runs in a thread, or with `isolation="process"` in a child process that is killed when its time
        is up: it must stand at the top level of a module, which the child imports.

        Raises `ConfigError` for a name that is taken, a policy name with two different specs, a signature that JSON
        cannot carry, or a function that a child process could not find.
        """
        name = declared.pop("name", None)
        lane = declared.pop("lane", None)
        isolation = declared.pop("isolation", None)
        unknown = declared.keys() - _DECLARABLE
        if unknown:
            word = min(unknown)
            meant = nearest(word, (*_DECLARABLE, *_BESIDES))
            hint = f"; did you mean {meant!r}?" if meant else ""
            known = ", ".join(sorted((*_DECLARABLE, *_BESIDES)))
            raise ConfigError(f"@flow.task has no option {word!r}{hint} (it has {known})")
        if lane is not None and not callable(lane):
            raise ConfigError(f"@flow.task(lane=) takes a function of the task's arguments, got {lane!r}")
        explicit = {key: value for key, value in declared.items() if value is not None}

        def register(function: Any) -> AnyTask:
            if isinstance(function, Task):  # of another flow
                function = function.fn
            if not callable(function):
                raise ConfigError(f"@flow.task takes a function, got {function!r}")
            task_name = name or getattr(function, "__name__", "")
            if task_name in self._tasks:
                raise ConfigError(
                    f"two tasks are named {task_name!r}; give one of them another name with @flow.task(name=...)"
                )
            definition = TaskDef(task_name, function, explicit, lane, isolation)
            self._check_policies(task_name, explicit)
            definition.policy(_CHECKED_AGAINST)  # a number that cannot be is refused here, not at the first job
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
                policy = policy.budget
                if policy is None:
                    continue
            known = self._policies.setdefault((type(policy), policy.name), policy)
            if known != policy:
                raise ConfigError(
                    f"task {task_name!r}: {type(policy).__name__} {policy.name!r} is declared twice with different "
                    f"values: {known} and {policy}. One name is one dependency: share one spec, or use two names"
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
        self.lifespans.append(asynccontextmanager(fn))
        return fn

    def listen(self, listener: Callable[[Any], None], *events: type) -> None:
        """Call `listener` with each event of these types (`taskflow.events`). It may raise: jobs go on."""
        self.bus.subscribe(listener, *events)

    # --- submitting --------------------------------------------------

    @property
    def client(self) -> Client:
        """The submitting half. Raises `ConfigError` while the flow is not open."""
        if self._client is None:
            raise ConfigError("the flow is not open: submit inside `async with flow:` or `async with flow.worker():`")
        return self._client

    @property
    def is_open(self) -> bool:
        """Whether jobs can be submitted."""
        return self._client is not None

    @property
    def broker(self) -> FullBroker:
        """Where the jobs live, while the flow is open."""
        return self.client.broker

    def job(self, job_id: str, task: AnyTask | None = None) -> JobHandle[Any]:
        """A handle for a job that was submitted earlier, or elsewhere. Its result is read as `task` says."""
        return JobHandle(self, job_id, None if task is None else task.definition)

    async def __aenter__(self) -> Self:
        refuse_while_importing()
        if self._opened == 0 and not self._opening.locked():
            self._opening = asyncio.Lock()  # it belongs to one loop, and this may be another
        async with self._opening:
            if not self._is_logging:
                self._is_logging = True
                where = self.settings.broker.placed_url if self._given_broker is None else self._given_broker.name
                about = {"version": __version__, "broker": where}
                LogListener(self.settings.log.level, now=self.clock.now, about=about).subscribe(self.bus)
            if self._opened == 0:
                broker = self._given_broker or make_broker(self.settings, self.clock)
                try:
                    await broker.open()
                except BaseException:
                    with anyio.move_on_after(_CLOSE_S, shield=True):
                        await broker.close()
                    raise
                self._client = Client(broker, self.settings, self.clock, self.rng, self.bus.emit)
            self._opened += 1
        return self

    async def __aexit__(self, *exc: object) -> None:
        with anyio.move_on_after(_CLOSE_S, shield=True):  # a cancelled scope must not leave the broker open
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
        """Write logs to stderr as TASKFLOW_LOG__* say: for a program of its own, as `taskflow worker` is.

        An application that embeds taskflow has its own sinks: there, `taskflow.telemetry.logs.enable()` is enough.
        """
        from taskflow.telemetry import logs  # noqa: PLC0415 - only programs pay for it

        log = self.settings.log
        logs.configure(log.level, log.format)

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
_CHECKED_AGAINST = Settings()  # the defaults: nothing is read from the environment when a task is declared
_BESIDES = ("name", "lane", "isolation")  # no policies
_DECLARABLE = {"queue", "timeout", "deadline", "max_wait", "priority", *_POLICIES}


def make_broker(settings: Settings, clock: Clock) -> FullBroker:
    """The broker that TASKFLOW_BROKER__URL names. Raises `ConfigError`."""
    url = settings.broker.url.get_secret_value()
    scheme, _, rest = url.partition("://")
    if scheme == "memory":
        from taskflow.brokers.memory import MemoryBroker  # noqa: PLC0415 - only what is used is imported

        return MemoryBroker(clock)
    if scheme == "sqlite":
        from taskflow.brokers.sqlite import SqliteBroker  # noqa: PLC0415 - as above

        path = rest.removeprefix("/")
        if not path:
            raise ConfigError("TASKFLOW_BROKER__URL: sqlite:///FILE needs a file name; for no file use memory://")
        return SqliteBroker(
            path, synchronous=settings.broker.synchronous, busy_timeout_s=settings.broker.busy_timeout_s
        )
    if scheme in REDIS_SCHEMES:
        with _needs_extra("redis", scheme):
            from taskflow.brokers.redis import RedisBroker  # noqa: PLC0415 - its driver may not be installed

        return RedisBroker(url, namespace=settings.broker.namespace)
    with _needs_extra("postgres", scheme):
        from taskflow.brokers.postgres import PostgresBroker  # noqa: PLC0415 - its driver may not be installed

    return PostgresBroker(url, namespace=settings.broker.namespace)


@contextmanager
def _needs_extra(extra: str, scheme: str) -> Iterator[None]:
    """Say what to install where a broker's driver is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.startswith("taskflow"):
            raise
        raise ConfigError(
            f"TASKFLOW_BROKER__URL: {scheme}:// needs the package {error.name!r}: "
            f"pip install 'resilient-taskflow[{extra}]'"
        ) from error
