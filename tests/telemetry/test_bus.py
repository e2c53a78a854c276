from __future__ import annotations

from typing import TYPE_CHECKING

from taskflow.core import events
from taskflow.telemetry.health import Health
from taskflow.telemetry.listener import LogListener
from tests.telemetry.made import ALL_EVENTS, started

if TYPE_CHECKING:
    import pytest

    from taskflow.telemetry.bus import Bus
    from taskflow.telemetry.metrics import Metrics


def test_a_broken_listener_hurts_nobody_and_is_reported_once(bus: Bus, capsys: pytest.CaptureFixture[str]) -> None:
    heard = []

    def broken(_event: object) -> None:
        raise ZeroDivisionError("a dashboard")

    bus.subscribe(broken, events.AttemptStarted)
    bus.subscribe(heard.append, events.AttemptStarted)
    bus.emit(started())
    bus.emit(started())

    assert len(heard) == 2
    assert capsys.readouterr().err.count("taskflow: the listener") == 1


def test_nothing_of_ours_raises_on_any_event(
    metrics: Metrics, bus: Bus, capsys: pytest.CaptureFixture[str], log: object
) -> None:
    LogListener("DEBUG").subscribe(bus)
    Health(clock=None).subscribe(bus)  # type: ignore[arg-type]
    for event in ALL_EVENTS:
        bus.emit(event)

    assert capsys.readouterr().err == ""


def test_the_tests_know_every_event() -> None:
    assert {type(event) for event in ALL_EVENTS} == set(events.Event.__args__)
