"""Events become lines with stable names, at a level that says who should care."""

from __future__ import annotations

import timeit
from typing import TYPE_CHECKING, Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from taskflow.core import events
from taskflow.core.decision import Bury, Cancel, Complete, Expire, Release, Retry, Snooze
from taskflow.core.job import JobState
from taskflow.core.outcome import ErrorRecord
from taskflow.telemetry import logs
from taskflow.telemetry.bus import Bus
from taskflow.telemetry.context import job_context
from taskflow.telemetry.listener import LOG_EVENTS, LogListener
from tests.telemetry.made import ALL_EVENTS, BROKEN, Job, Log, ended, settled, started

if TYPE_CHECKING:
    from tests.telemetry.conftest import Now

NAMES = {
    "job.started", "job.ended", "job.succeeded", "job.snoozed", "job.released", "job.failed", "job.retried",
    "job.cancelled", "job.expired", "job.buried", "job.redelivered", "job.stale", "job.unknown_task",
    "job.thread_abandoned", "job.process_died", "job.timeout_ignored", "jobs.submitted", "jobs.deduplicated",
    "jobs.rejected", "worker.started", "worker.paused", "worker.draining", "worker.stopped", "worker.lease_lost",
    "worker.process_ended", "worker.unstarted", "worker.left", "worker.gone", "broker.failed", "broker.recovered", "broker.doubted", "loop.stalled",
    "gate.held", "breaker.open", "breaker.half_open", "breaker.closed", "http.started", "http.unavailable",
    "http.failed",
}  # fmt: skip


@pytest.fixture
def told(log: Log) -> Any:
    """Emit events; get the lines that they made at this level."""

    def tell(level: str, *happened: Any) -> list[dict[str, Any]]:
        bus = Bus()
        LogListener(level).subscribe(bus)
        before = len(log.records())
        for event in happened:
            bus.emit(event)
        return log.records()[before:]

    return tell


def test_the_names_of_events_are_api() -> None:
    assert set(LOG_EVENTS) == NAMES


def test_every_event_but_the_two_of_each_round_trip_is_told_at_debug(told: Any) -> None:
    silent = [type(event).__name__ for event in ALL_EVENTS if not told("DEBUG", event)]

    assert silent == ["BrokerAnswered", "BatchClaimed"]


@pytest.mark.parametrize(
    ("event", "name", "level"),
    [
        (started(), "job.started", "DEBUG"),
        (ended(), "job.ended", "DEBUG"),
        (settled(Complete()), "job.succeeded", "DEBUG"),
        (settled(Snooze(5.0, "snoozed")), "job.snoozed", "DEBUG"),
        (settled(Release()), "job.released", "DEBUG"),
        (ended("failed", BROKEN), "job.failed", "WARNING"),
        (ended("timed_out", ErrorRecord("TimeoutError", "30 s", "timeout")), "job.failed", "WARNING"),
        (settled(Retry(1.5, BROKEN)), "job.retried", "INFO"),
        (settled(Bury(BROKEN)), "job.buried", "ERROR"),
        (settled(Expire("deadline")), "job.expired", "WARNING"),
        (settled(Cancel()), "job.cancelled", "INFO"),
        (settled(Retry(1.5, BROKEN), JobState.CANCELLED), "job.cancelled", "INFO"),
        (events.JobBuried("0192", "send", "mail", 5), "job.buried", "ERROR"),
        (events.BreakerMoved("smtp", "smtp", "open"), "breaker.open", "WARNING"),
        (events.BreakerMoved("smtp", "smtp", "half_open"), "breaker.half_open", "INFO"),
        (events.BreakerMoved("smtp", "smtp", "closed"), "breaker.closed", "INFO"),
    ],
)
def test_name_and_level(told: Any, event: Any, name: str, level: str) -> None:
    (line,) = told("DEBUG", event)

    assert (line["event"], line["level"], line["logger"]) == (name, level, "taskflow")
    assert line["message"] == LOG_EVENTS[name].message


def test_an_open_breaker_tells_what_opened_it(told: Any) -> None:
    opened, closed = told(
        "INFO", events.BreakerMoved("smtp", "smtp", "open", "OSError"), events.BreakerMoved("smtp", "smtp", "closed")
    )

    assert (opened["cause"], "cause" in closed) == ("OSError", False)


def test_only_a_dead_letter_and_our_own_fault_are_errors() -> None:
    assert {name for name, line in LOG_EVENTS.items() if line.level == "ERROR"} == {"job.buried", "http.failed"}


def test_success_is_not_even_listened_to_above_debug(bus: Bus, told: Any) -> None:
    LogListener("INFO").subscribe(bus)

    assert not bus.wants(events.AttemptsStarted)
    assert not bus.wants(events.JobsSubmitted)
    assert not bus.wants(events.BrokerAnswered)
    assert told("INFO", started(), ended(), settled(Complete()), settled(Release()), ended("snoozed", BROKEN)) == []


def test_a_failure_tells_a_broken_dependency_from_bad_data(told: Any) -> None:
    bad_data = ErrorRecord("KeyError", "'amount'", "bad_data", "Traceback ...\n")

    first, second = told("INFO", ended("failed", BROKEN, run_s=0.25), ended("failed", bad_data))

    assert first["error"] == {
        "type": "ConnectionError",
        "message": "no route to host",
        "kind": "transient",
        "stack": BROKEN.stack,
    }
    assert second["error"]["kind"] == "bad_data"
    assert first["duration_s"] == 0.25
    assert (first["job_id"], first["task"], first["queue"], first["correlation_id"]) == (
        "0192",
        "send",
        "mail",
        "req-1",
    )
    assert (first["lane"], first["gate"], first["attempt"]) == ("example.org", "smtp", 1)


def test_the_stack_is_told_once(told: Any) -> None:
    failed, retried, buried, never_ran = told(
        "INFO",
        ended("failed", BROKEN),
        settled(Retry(1.5, BROKEN)),
        settled(Bury(BROKEN)),
        settled(Bury(BROKEN, spent=False)),
    )

    assert ["stack" in line["error"] for line in (failed, retried, buried, never_ran)] == [True, False, False, True]
    assert retried["delay_s"] == 1.5


def test_an_event_is_not_ascribed_to_the_job_around_it(told: Any) -> None:
    token = job_context.set(Job(job_id="somebody-else", task="other"))
    settled_line, broker_line = told("INFO", settled(Bury(BROKEN)), events.BrokerRecovered("settle", 2.0))
    job_context.reset(token)

    assert settled_line["job_id"] == "0192"
    assert "job_id" not in broker_line
    assert "task" not in broker_line


def test_the_password_of_a_broker_is_not_told(told: Any) -> None:
    (line,) = told("INFO", events.BrokerFailed("claim", "timeout", "redis://app:hunter2@db:6379 does not answer", 0.5))

    assert line["error"] == {"type": "BrokerError", "message": "redis://***@db:6379 does not answer", "kind": "timeout"}


def test_payloads_and_fencing_tokens_are_not_told(told: Any, log: Log) -> None:
    told("DEBUG", *ALL_EVENTS)

    assert '{\\"v\\":1}' not in log.getvalue()
    assert "payload" not in log.getvalue()


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text())
def test_whatever_a_handler_raises_is_one_line(told: Any, text: str) -> None:
    lines = told(
        "INFO", ended("failed", ErrorRecord(text, text, text, text)), settled(Snooze(1.0, text)), settled(Expire(text))
    )

    assert [line["event"] for line in lines] == ["job.failed", "job.expired"]


def test_a_flood_of_refusals_is_one_line_a_second(log: Log, bus: Bus, now: Now) -> None:
    LogListener("INFO", now=now).subscribe(bus)
    for _ in range(100):
        bus.emit(events.JobsRejected("mail", "queue_full", 2))
    bus.emit(events.JobsRejected("other", "queue_full", 1))
    now.at += 1.5
    bus.emit(events.JobsRejected("mail", "queue_full", 2))

    assert [(line["queue"], line["count"]) for line in log.records()] == [("mail", 2), ("other", 1), ("mail", 200)]


def test_an_outage_is_one_line_in_ten_seconds_for_each_operation(log: Log, bus: Bus, now: Now) -> None:
    LogListener("INFO", now=now).subscribe(bus)
    for _ in range(24):
        bus.emit(events.BrokerFailed("beat", "connection", "it cannot be reached", 0.5))
        bus.emit(events.BrokerFailed("claim", "connection", "it cannot be reached", 0.5))
        now.at += 0.5

    told = [(line["operation"], line["count"]) for line in log.records()]
    assert told == [("beat", 1), ("claim", 1), ("beat", 20), ("claim", 20)]


def test_another_outage_or_another_error_is_told_at_once(log: Log, bus: Bus, now: Now) -> None:
    LogListener("INFO", now=now).subscribe(bus)
    bus.emit(events.BrokerFailed("beat", "connection", "it cannot be reached", 0.5))
    bus.emit(events.BrokerFailed("beat", "timeout", "it did not answer", 0.5))
    bus.emit(events.BrokerRecovered("beat", 1.0))
    bus.emit(events.BrokerFailed("beat", "timeout", "it did not answer", 0.5))

    assert [line["event"] for line in log.records()] == [
        "broker.failed", "broker.failed", "broker.recovered", "broker.failed",
    ]  # fmt: skip


def test_success_costs_next_to_nothing_above_debug(bus: Bus) -> None:
    undo = logs.configure("INFO", "json", Log())
    LogListener("INFO").subscribe(bus)
    event = settled(Complete())
    took_s = min(timeit.repeat(lambda: bus.emit(event), number=1_000, repeat=20)) / 1_000
    undo()

    assert took_s < 5e-6  # measured at 0.25 µs
