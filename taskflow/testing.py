"""For the tests of whoever uses taskflow: a memory broker, a virtual clock, faults on purpose.

    async with flow.test() as t:
        job = await send_mail.options(delay=3600).submit("ada@example.org")
        await t.advance(3600)
        await t.run_until_idle()
        assert await job.status() == "succeeded"
        assert await job.result() == "sent"         # would let the time pass that the job waits for, retries and all

    with virtual_policies() as clock:
        assert await clock.run(github.call(fetch, url)) == "data"     # however long its retries wait

Policies and the runtime wait on the virtual clock only: hours pass in milliseconds. A handler's own sleeps stay real.
"""

from __future__ import annotations

import asyncio
import inspect
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Self, TypeVar

from taskflow.clock import Timer, TimerHeap, sleep_on
from taskflow.errors import BrokerUnavailable, ConfigError
from taskflow.policies.registry import Registry, as_default

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from taskflow.brokers.base import Final, FullBroker

_T = TypeVar("_T")

# Real seconds that `run_until_idle` gives to handlers which wait for the real world.
_REAL_LIMIT_S = 30.0
# Turns of the loop without a task that can go on, after which none will: callbacks take a turn each to reach a task.
_QUIET_TURNS = 10


class VirtualClock:
    """Time that stands still until `advance` is called. Satisfies `taskflow.clock.Clock`."""

    def __init__(self, wall: float = 1_700_000_000.0) -> None:
        self._now = 0.0
        self._wall = wall
        self._timers = TimerHeap()

    def now(self) -> float:
        return self._now

    def wall(self) -> float:
        return self._wall + self._now

    def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
        return self._timers.push(when, callback)

    async def sleep(self, seconds: float) -> None:
        await sleep_on(self, seconds)

    async def advance(self, seconds: float) -> None:
        """Let `seconds` pass: every timer fires at its instant, and what it sets off has run before the next one."""
        end = self._now + seconds
        while True:
            await all_blocked()
            due = self._timers.earliest()
            if due is None or due > end:
                break
            self._now = max(self._now, due)
            self._timers.fire(self._now)
        self._now = end
        await all_blocked()

    async def run(self, awaitable: Awaitable[_T]) -> _T:
        """What `awaitable` gives, with the time passing that it waits for.

        Raises `TimeoutError` after 30 real seconds in which it waited for something else.
        """
        task = asyncio.ensure_future(awaitable)
        give_up_at = time.monotonic() + _REAL_LIMIT_S
        try:
            while True:
                await all_blocked()
                if task.done():
                    return task.result()
                if self.jump():
                    continue
                if time.monotonic() > give_up_at:
                    raise TimeoutError(f"it waits for no timer, and does not end: {task}")
                await asyncio.sleep(0.001)
        finally:
            task.cancel()

    def jump(self) -> bool:
        """Go to the next timer, and fire it. False if there is none."""
        due = self._timers.earliest()
        if due is None:
            return False
        self._now = max(self._now, due)
        self._timers.fire(self._now)
        return True


async def all_blocked() -> None:
    """Wait until nothing in this loop can go on by itself: all wait for timers, threads, or the outside world.

    Raises `TimeoutError` after 30 real seconds in which something always could.
    """
    loop = asyncio.get_running_loop()
    me = asyncio.current_task()
    give_up_at = time.monotonic() + _REAL_LIMIT_S
    quiet = 0
    while quiet < _QUIET_TURNS:
        await asyncio.sleep(0)
        ready = getattr(loop, "_ready", None)  # asyncio's own loop tells; uvloop's does not
        if ready is not None and not ready:
            return
        busy = [task for task in asyncio.all_tasks() if task is not me and _can_go_on(task)]
        quiet = 0 if busy else quiet + 1
        if time.monotonic() > give_up_at:
            raise TimeoutError(f"something never stops to wait: {busy}")


def _can_go_on(task: asyncio.Task[Any]) -> bool:
    waiter = getattr(task, "_fut_waiter", None)
    return waiter is None or waiter.done()


@contextmanager
def virtual_policies(seed: int = 0) -> Iterator[VirtualClock]:
    """Pipelines that name no registry start anew, on a virtual clock and with the same jitter each time."""
    clock = VirtualClock()
    with as_default(Registry(clock, random.Random(seed))):  # noqa: S311 - for jitter, not for secrets
        yield clock


class Faults:
    """A broker that fails on purpose, in front of a real one.

    `cut("claim")` makes an operation raise `BrokerUnavailable` until `mend()`; `lose_reply("settle")` lets the
    operation take effect and then raises, as a connection does that breaks on the way back.
    """

    def __init__(self, broker: FullBroker) -> None:
        self._broker = broker
        self._cut: set[str] = set()
        self._lost: Counter[str] = Counter()

    def cut(self, *operations: str) -> None:
        """These operations fail from now on."""
        for operation in operations:
            self._check(operation)
        self._cut.update(operations)

    def mend(self) -> None:
        """All work again."""
        self._cut.clear()
        self._lost.clear()

    def lose_reply(self, operation: str, times: int = 1) -> None:
        """The next `times` calls take effect, and raise."""
        self._check(operation)
        self._lost[operation] += times

    def _check(self, operation: str) -> None:
        if not inspect.iscoroutinefunction(getattr(self._broker, operation, None)):
            raise ValueError(f"a broker has no operation {operation!r}; it has claim, settle, beat, submit, …")

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._broker, name)
        if name.startswith("_") or not inspect.iscoroutinefunction(real) or name in ("open", "close"):
            return real

        async def call(*args: Any, **kwargs: Any) -> Any:
            if name in self._cut:
                raise BrokerUnavailable(f"{name}: cut on purpose", retry_after_s=0.1, kind="connection")
            answer = await real(*args, **kwargs)
            if self._lost[name] > 0:
                self._lost[name] -= 1
                raise BrokerUnavailable(f"{name}: reply lost on purpose", retry_after_s=0.1, kind="connection")
            return answer

        return call


class _TimePasses:
    """A broker that lets time pass for the task that entered the test, while that one waits for a job's end.

    Nobody else would: `await job.result()` of a job that is due later would wait for ever.
    """

    def __init__(self, test: TestFlow) -> None:
        self._test = test
        self._task = asyncio.current_task()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._test.faults, name)

    async def finals(self, job_ids: Sequence[str], timeout_s: float) -> dict[str, Final]:
        if timeout_s <= 0 or asyncio.current_task() is not self._task:
            now: dict[str, Final] = await self._test.faults.finals(job_ids, timeout_s)
            return now
        found = asyncio.ensure_future(self._test.faults.finals(job_ids, timeout_s))
        try:
            while not found.done():
                await self._test.run_until_idle()  # not while handlers run: they may wait for the real world
                if not found.done():
                    self._test.clock.jump()
            answer: dict[str, Final] = await found
        finally:
            found.cancel()
        return answer


class TestFlow:
    """One flow under test: its worker runs in this loop, on a memory broker and a virtual clock."""

    __test__ = False  # not a test class, whatever pytest thinks of its name

    def __init__(self, flow: Any, *, concurrency: int = 10) -> None:
        from taskflow.brokers.memory import MemoryBroker  # noqa: PLC0415

        self._flow = flow
        self.clock = VirtualClock()
        self._memory = MemoryBroker(self.clock)
        self.faults = Faults(self._memory)
        self._concurrency = concurrency
        self._stack = AsyncExitStack()

    @property
    def broker(self) -> FullBroker:
        """The memory broker, without the faults."""
        return self._memory

    async def __aenter__(self) -> Self:
        flow = self._flow
        if flow.is_open:
            raise ConfigError("the flow is open: flow.test() would run its jobs on the real broker")
        kept = flow.clock, flow._given_broker  # noqa: SLF001 - the flow is lent to the test
        flow.clock, flow._given_broker = self.clock, _TimePasses(self)  # noqa: SLF001

        def give_back() -> None:
            flow.clock, flow._given_broker = kept  # noqa: SLF001

        async with AsyncExitStack() as stack:
            stack.callback(give_back)
            stack.enter_context(as_default(Registry(self.clock)))  # pipelines inside handlers keep the same time
            self.running = await stack.enter_async_context(flow.worker(concurrency=self._concurrency, drain=0))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.faults.mend()
        await self._drive(self._stack.aclose())

    async def advance(self, seconds: float) -> None:
        """Let virtual `seconds` pass, and everything that is due in them happen."""
        await self.clock.advance(seconds)

    async def run_until_idle(self) -> None:
        """Run every job that can run now until it has ended.

        Jobs that are due later, or that a gate holds back, stay where they are. Time stands still while handlers run:
        they may wait for the real world. Raises `TimeoutError` after 30 real seconds.
        """
        worker = self.running.worker
        give_up_at = time.monotonic() + _REAL_LIMIT_S
        while True:
            await all_blocked()
            if worker.is_idle and (worker.is_waiting or not worker.is_claiming):
                return
            if time.monotonic() > give_up_at:
                raise TimeoutError(f"still busy after {_REAL_LIMIT_S:g} s: {await self._memory.counts()}")
            if worker.in_flight:
                await asyncio.sleep(0.001)
            else:
                await self.clock.advance(0.01)  # a retry after a cut, a beat: small waits of the runtime itself

    async def _drive(self, ending: Any) -> None:
        """Await `ending` while the clock goes on: a shutdown waits on it too."""
        task = asyncio.ensure_future(ending)
        while not task.done():
            await self.clock.advance(0.1)
            await asyncio.sleep(0)
        task.result()
