from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from taskflow.telemetry import logs
from taskflow.telemetry.bus import Bus
from taskflow.telemetry.metrics import Metrics
from tests.telemetry.made import Log

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def bus() -> Bus:
    return Bus()


@pytest.fixture
def log() -> Iterator[Log]:
    """The log of this process from DEBUG on, as JSON."""
    log = Log()
    undo = logs.configure("DEBUG", "json", log)
    yield log
    undo()


@pytest.fixture
def console() -> Iterator[Log]:
    log = Log()
    undo = logs.configure("DEBUG", "console", log)
    yield log
    undo()


class Now:
    """Monotonic seconds that the test moves."""

    def __init__(self) -> None:
        self.at = 1000.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def now() -> Now:
    return Now()


@pytest.fixture
def metrics(bus: Bus, now: Now) -> Metrics:
    """Metrics of one queue, one task, one breaker and one limiter."""
    metrics = Metrics(version="1.2.3", python="3.11.7", broker="memory", now=now)
    metrics.declare({"mail": 1000}, {"send": "mail"}, ["smtp"], {"smtp": 10})
    metrics.subscribe(bus)
    return metrics
