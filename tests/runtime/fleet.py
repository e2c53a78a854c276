"""Several workers on one memory broker and one virtual clock, each over a connection of its own that can be cut."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

from taskflow import Settings, TaskFlow
from taskflow.brokers.memory import MemoryBroker
from taskflow.settings import BrokerSettings
from taskflow.testing import Faults, VirtualClock, all_blocked

if TYPE_CHECKING:
    from collections.abc import Callable

    from taskflow.app import TaskFlow as Flow
    from taskflow.running import RunningWorker

EVERYTHING = ("submit", "claim", "wait", "settle", "beat", "leave", "note", "finals", "gate", "reclaim", "counts")


class Member:
    """One worker of the fleet."""

    def __init__(self, fleet: Fleet, **options: Any) -> None:
        self.faults = Faults(fleet.broker)
        self.flow = fleet.make_flow(self.faults)
        self.running: RunningWorker = self.flow.worker(**options)
        self._end = asyncio.Event()
        self._fleet = fleet
        self.task = asyncio.create_task(self._live())

    async def _live(self) -> None:
        async with self.running:
            await self._end.wait()

    async def stop(self) -> None:
        """Drain and leave."""
        self._end.set()
        await self._fleet.drive(self.task)

    def crash(self) -> None:
        """As kill -9 looks from the broker: from now on not a word. What runs here is cancelled, as it would be gone."""
        self.faults.cut(*EVERYTHING)
        self.task.cancel()


class Fleet:
    """`register` puts the tasks on each flow."""

    def __init__(self, register: Callable[[Flow], Any], *, seed: int = 0, **settings: Any) -> None:
        self.clock = VirtualClock()
        self.broker = MemoryBroker(self.clock)
        self.rng = random.Random(seed)
        self.members: list[Member] = []
        self._register = register
        self._settings = Settings(broker=BrokerSettings(url="memory://"), **settings)  # type: ignore[arg-type]

    def make_flow(self, broker: Any) -> Flow:
        flow = TaskFlow(settings=self._settings, broker=broker, clock=self.clock, rng=random.Random(self.rng.random()))
        self._register(flow)
        return flow

    async def start(self, **options: Any) -> Member:
        """One more worker."""
        member = Member(self, **options)
        self.members.append(member)
        await all_blocked()
        return member

    async def drive(self, task: asyncio.Task[Any]) -> None:
        """Let time pass until `task` is done."""
        for _ in range(10_000):
            if task.done():
                break
            await self.clock.advance(0.1)
        assert task.done(), "an hour of virtual time was not enough"

    async def stop(self) -> None:
        """The end of all of them."""
        for member in self.members:
            member._end.set()
        for member in self.members:
            await self.drive(member.task)
            if not member.task.cancelled():
                member.task.result()
