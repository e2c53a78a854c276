"""What a worker is handed: the one list for it, its claimer, and whoever puts them together."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from taskflow.brokers.base import FullBroker, QueueCounts
    from taskflow.clock import Clock
    from taskflow.core.gate import Gate
    from taskflow.runtime.task import TaskDef
    from taskflow.settings import Settings
    from taskflow.telemetry.bus import Bus


def _ignore_sample(_counts: list[QueueCounts], _gates: list[Gate]) -> None:
    """Nobody asked for it."""


@dataclass(slots=True)
class WorkerParts:
    """What a worker is made of; `TaskFlow.worker` puts it together."""

    name: str
    broker: FullBroker
    tasks: Mapping[str, TaskDef]
    settings: Settings
    bus: Bus
    clock: Clock
    queues: Mapping[str, int]
    concurrency: int
    prefetch: int
    threads: int
    rng: random.Random = field(default_factory=random.Random)
    on_sample: Callable[[list[QueueCounts], list[Gate]], None] = _ignore_sample
