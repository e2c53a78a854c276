"""A worker embedded in this process: with its flow's tasks, lifespans, metrics and health."""

from __future__ import annotations

import asyncio
import os
import platform
import secrets
import socket
from collections.abc import Iterable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import TYPE_CHECKING, Protocol, Self

import anyio

from taskflow.brokers.base import Doubtful
from taskflow.core import events
from taskflow.errors import ConfigError
from taskflow.runtime.parts import WorkerParts
from taskflow.runtime.shield import to_its_end
from taskflow.runtime.worker import Stopped, Worker
from taskflow.settings import DEFAULT_HTTP_PORT
from taskflow.settings.sharing import shared_gates
from taskflow.telemetry import turned_away
from taskflow.telemetry.exposition import Asked
from taskflow.telemetry.health import Health
from taskflow.telemetry.metrics import Metrics
from taskflow.version import __version__

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable

    from taskflow.brokers.base import FullBroker, QueueCounts
    from taskflow.clock import Clock
    from taskflow.core.gate import Gate
    from taskflow.http.server import HealthServer
    from taskflow.settings import Settings
    from taskflow.settings.tuning import TaskPolicy
    from taskflow.tasks import AnyTask
    from taskflow.telemetry.bus import Bus

_END_S = 10.0  # for the HTTP server to let go of its clients


class Flow(Protocol):
    """What a worker needs of the flow whose tasks it runs."""

    bus: Bus
    clock: Clock
    rng: random.Random
    lifespans: list[Callable[[], AbstractAsyncContextManager[None]]]

    @property
    def settings(self) -> Settings: ...
    @property
    def tasks(self) -> Mapping[str, AnyTask]: ...
    @property
    def broker(self) -> FullBroker: ...
    async def __aenter__(self) -> object: ...
    async def __aexit__(self, *exc: object) -> None: ...


class RunningWorker:
    """`async with` starts it, and drains it at the end of the block. Made by `TaskFlow.worker`.

    `metrics` and `health` are what it shows of itself; `port` is where it serves them, if it does.
    """

    metrics: Metrics
    health: Health

    def __init__(
        self,
        flow: Flow,
        *,
        concurrency: int | None,
        queues: Iterable[str] | Mapping[str, int] | None,
        drain: float | None,
        http: bool,
    ) -> None:
        self._flow = flow
        self._concurrency = concurrency
        self._asked_queues = queues
        self._drain = drain
        self._http = http
        self._server: HealthServer | None = None
        self._worker: Worker | None = None
        self._stack = AsyncExitStack()
        self.queues: Mapping[str, int] = {}
        self.port: int | None = None
        self._stopping: asyncio.Task[Stopped] | None = None

    @property
    def worker(self) -> Worker:
        """What runs. Raises `ConfigError` before it has started."""
        if self._worker is None:
            raise ConfigError("the worker has not started: use `async with flow.worker():`")
        return self._worker

    async def __aenter__(self) -> Self:
        flow = self._flow
        if self._worker is not None:
            raise ConfigError("this worker has run already: `flow.worker()` makes another")
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(flow)
            self.queues = queue_weights(flow, self._asked_queues)
            for task in flow.tasks.values():
                task.definition.check_found()
            worker = Worker(self._parts())
            self._observe(worker, stack)
            if isinstance(flow.broker, Doubtful):
                for doubt in flow.broker.doubts:
                    flow.bus.emit(events.BrokerDoubted(doubt))
            for lifespan in flow.lifespans:
                opened = lifespan()
                await opened.__aenter__()
                # What follows its `yield` runs, `finally` or not, also where the start goes no further.
                stack.push_async_callback(opened.__aexit__, None, None, None)
            declared = {name: task.declared for name, task in flow.tasks.items()}
            for name, change in shared_gates(flow.settings, declared).items():
                await flow.broker.gate(name, change)
            await self._serve(stack)
            await worker.start()
            self._worker = worker
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Drain, also when the surrounding task or scope is cancelled; then end the lifespans and what else there is.

        A second cancellation cuts off what runs, and hands it back.
        """
        cancelled: asyncio.CancelledError | None = None
        async with self._stack:
            try:
                await self.stop()
            except asyncio.CancelledError as error:
                cancelled = error  # raised below: what ends now ends in order
        if cancelled is not None:
            raise cancelled

    async def stop(self) -> Stopped:
        """Drain now, rather than at the end of the block. Cancelled meanwhile, it cuts off what runs."""
        if self._stopping is None:
            drain_s = self._flow.settings.worker.drain_s if self._drain is None else self._drain
            self._stopping = asyncio.create_task(self.worker.stop(drain_s), name="taskflow drain")
        return await to_its_end(self._stopping, self.worker.cut_off)

    @property
    def stopped(self) -> Stopped | None:
        """How it ended; None while it has not."""
        task = self._stopping
        return None if task is None or not task.done() else task.result()

    # --- parts ---------------------------------------------------------

    def _parts(self) -> WorkerParts:
        flow, settings = self._flow, self._flow.settings
        concurrency = settings.worker.concurrency if self._concurrency is None else self._concurrency
        if concurrency < 1:
            raise ConfigError(f"flow.worker(concurrency=): must be at least 1, got {concurrency}")
        prefetch = settings.worker.prefetch
        return WorkerParts(
            # Never the same again, not even for process 1 of a container that comes back with a seeded `rng`: the
            # claims of the one before must not be taken for its own.
            name=f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}",
            broker=flow.broker,
            tasks={name: task.definition for name, task in flow.tasks.items()},
            settings=settings,
            bus=flow.bus,
            clock=flow.clock,
            queues=self.queues,
            concurrency=concurrency,
            prefetch=concurrency if prefetch is None else prefetch,
            threads=min(settings.worker.threads, concurrency),
            rng=flow.rng,
            on_sample=self._on_sample,
        )

    def _on_sample(self, counts: list[QueueCounts], gates: list[Gate]) -> None:
        clock = self._flow.clock
        self.metrics.sample(counts, clock.now())
        self.metrics.sample_gates(gates, now=clock.wall())

    def _observe(self, worker: Worker, stack: AsyncExitStack) -> None:
        """Metrics and health listen while this worker lives."""
        flow = self._flow
        self.metrics = Metrics(
            version=__version__,
            python=platform.python_version(),
            broker=flow.broker.name,
            now=flow.clock.now,
            asked=Asked(
                in_flight=lambda: worker.in_flight,
                concurrency_limit=lambda: worker.concurrency,
                longest_running_s=worker.longest_running_s,
                draining=lambda: worker.is_draining,
                abandoned_threads=lambda: worker.abandoned_threads,
                turned_away=turned_away.counts,
            ),
        )
        policies = [task.definition.policy(flow.settings) for task in flow.tasks.values()]
        self.metrics.declare(
            dict.fromkeys(self.queues, flow.settings.queue.max_size),
            {name: policy.queue for name, policy in zip(flow.tasks, policies, strict=True)},
            {policy.breaker.name for policy in policies if policy.breaker is not None},
            _limiters(policies),
        )
        self.health = Health(flow.clock, observe_lag=self.metrics.observe_loop_lag, is_paused=lambda: worker.is_paused)
        for listener in (self.metrics, self.health):
            stack.callback(flow.bus.attach(listener))
        watching = asyncio.create_task(self.health.run(), name="taskflow health")
        stack.push_async_callback(_end, watching)

    async def _serve(self, stack: AsyncExitStack) -> None:
        http = self._flow.settings.http
        if not self._http and http.port is None:
            return
        from taskflow.http.server import HealthServer  # noqa: PLC0415 - embedded and silent, nobody needs aiohttp's server

        token = http.token.get_secret_value() if http.token is not None else None
        port = DEFAULT_HTTP_PORT if http.port is None else http.port
        server = HealthServer(self.metrics, self.health, http.host, port, token)
        self.port = await server.start()
        stack.push_async_callback(_shielded, server.stop)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _shielded(end: Callable[[], Awaitable[None]]) -> None:
    """A cancelled scope must not leave a port open."""
    with anyio.move_on_after(_END_S, shield=True):
        await end()


def _limiters(policies: Iterable[TaskPolicy]) -> dict[str, int | None]:
    """The bulkheads with their limits; rates and breakers without one, as an operator may limit any gate."""
    found: dict[str, int | None] = {}
    for policy in policies:
        for spec in (policy.rate, policy.breaker):
            if spec is not None:
                found.setdefault(spec.name, None)
        if policy.bulkhead is not None:
            found[policy.bulkhead.name] = policy.bulkhead.limit
    return found


def queue_weights(flow: Flow, asked: Iterable[str] | Mapping[str, int] | None) -> dict[str, int]:
    """The queues of a worker: asked for, or in the settings, or of the registered tasks."""
    settings = flow.settings
    if isinstance(asked, Mapping):
        weights = dict(asked)
    elif asked is not None:
        weights = dict.fromkeys(asked, 1)
    else:
        weights = dict(settings.worker.queues)
    if not weights:
        weights = dict.fromkeys((task.definition.policy(settings).queue for task in flow.tasks.values()), 1)
    return weights or {settings.task.queue: 1}
