"""The names, labels and meanings of metrics are API."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import threading
import timeit
from typing import TYPE_CHECKING, Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from prometheus_client import REGISTRY
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from taskflow.brokers.base import QueueCounts
from taskflow.core import events
from taskflow.core.decision import Bury, Cancel, Complete, Expire, Release, Retry, Snooze
from taskflow.core.gate import Gate
from taskflow.core.job import JobState
from taskflow.telemetry.bus import Bus
from taskflow.telemetry.exposition import OPENMETRICS, TEXT
from taskflow.telemetry.metrics import Metrics
from tests.telemetry.made import ALL_EVENTS, BROKEN, ended, settled, started

if TYPE_CHECKING:
    from tests.telemetry.conftest import Now

NAMES = {
    "taskflow_jobs_submitted_total": ("counter", {"queue", "task"}),
    "taskflow_jobs_deduplicated_total": ("counter", {"queue", "task"}),
    "taskflow_jobs_rejected_total": ("counter", {"queue", "reason"}),
    "taskflow_jobs_shed_total": ("counter", {"queue", "reason"}),
    "taskflow_attempts_started_total": ("counter", {"queue", "task"}),
    "taskflow_attempts_total": ("counter", {"queue", "task", "outcome"}),
    "taskflow_jobs_retried_total": ("counter", {"queue", "task"}),
    "taskflow_jobs_snoozed_total": ("counter", {"queue", "reason"}),
    "taskflow_jobs_finished_total": ("counter", {"queue", "task", "state"}),
    "taskflow_jobs_redelivered_total": ("counter", {"queue"}),
    "taskflow_stale_settlements_total": ("counter", {"queue"}),
    "taskflow_broker_errors_total": ("counter", {"broker", "operation", "kind"}),
    "taskflow_breaker_transitions_total": ("counter", {"breaker", "to"}),
    "taskflow_limiter_rejections_total": ("counter", {"limiter", "reason"}),
    "taskflow_job_queue_wait_seconds": ("histogram", {"queue"}),
    "taskflow_attempt_run_seconds": ("histogram", {"queue", "task"}),
    "taskflow_job_end_to_end_seconds": ("histogram", {"queue"}),
    "taskflow_job_finish_attempts": ("histogram", {"queue"}),
    "taskflow_broker_operation_seconds": ("histogram", {"broker", "operation"}),
    "taskflow_claim_batch_jobs": ("histogram", {"queue"}),
    "taskflow_event_loop_lag_seconds": ("histogram", set()),
    "taskflow_queue_jobs": ("gauge", {"queue", "state"}),
    "taskflow_queue_oldest_ready_age_seconds": ("gauge", {"queue"}),
    "taskflow_queue_limit": ("gauge", {"queue"}),
    "taskflow_worker_in_flight": ("gauge", set()),
    "taskflow_worker_concurrency_limit": ("gauge", set()),
    "taskflow_worker_longest_running_seconds": ("gauge", set()),
    "taskflow_worker_draining": ("gauge", set()),
    "taskflow_limiter_in_use": ("gauge", {"limiter"}),
    "taskflow_limiter_limit": ("gauge", {"limiter"}),
    "taskflow_breaker_state": ("gauge", {"breaker", "state"}),
    "taskflow_gates_held": ("gauge", set()),
    "taskflow_abandoned_threads": ("gauge", set()),
    "taskflow_broker_up": ("gauge", {"broker"}),
    "taskflow_build_info": ("gauge", {"version", "python", "broker"}),
}
SET_AT_START = {"taskflow_queue_limit", "taskflow_limiter_limit", "taskflow_breaker_state", "taskflow_build_info"}
FORBIDDEN = {"id", "job_id", "host", "pid", "key", "lane", "worker", "message", "instance", "error"}


def scrape(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text = metrics.render()[0].decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse_text(text)
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return scrape(metrics)[name, frozenset(labels.items())]


def emit(bus: Bus, *told: Any) -> None:
    for event in told:
        bus.emit(event)


def test_names_kinds_and_labels_are_exactly_the_promised_ones(metrics: Metrics) -> None:
    shown = {
        family.name + ("_total" if family.type == "counter" else ""): (
            family.type,
            {label for sample in family.samples for label in sample.labels} - {"le"},
        )
        for family in parse_text(metrics.render()[0].decode())
    }

    assert shown == NAMES


def test_every_series_exists_from_the_start_at_zero(metrics: Metrics) -> None:
    at_start = scrape(metrics)

    assert {name for name, _ in at_start if not name.endswith(("_bucket", "_sum", "_count"))} == {
        name for name, (kind, _) in NAMES.items() if kind != "histogram"
    }
    assert {name for (name, _), number in at_start.items() if number != 0} == SET_AT_START


def test_no_event_makes_a_series_that_was_not_there_before(metrics: Metrics, bus: Bus) -> None:
    before = scrape(metrics).keys()

    emit(bus, *(event for event in ALL_EVENTS if not isinstance(event, events.TaskUnknown)))

    assert scrape(metrics).keys() == before


def test_no_label_tells_who_or_what_in_particular(metrics: Metrics, bus: Bus) -> None:
    emit(bus, *ALL_EVENTS)

    labels = {name for _, pairs in scrape(metrics) for name, _ in pairs}
    assert not labels & FORBIDDEN
    assert "0192" not in {text for _, pairs in scrape(metrics) for _, text in pairs}


def test_there_are_no_created_series_in_either_format(metrics: Metrics) -> None:
    assert b"_created" not in metrics.render()[0]
    assert b"_created" not in metrics.render("application/openmetrics-text")[0]


def test_the_registry_is_our_own(metrics: Metrics) -> None:
    Metrics(version="1", python="3", broker="memory")  # a second one does not clash

    assert metrics.registry is not REGISTRY
    assert not any(family.name.startswith("taskflow") for family in REGISTRY.collect())


def test_the_format_is_negotiated(metrics: Metrics, bus: Bus) -> None:
    emit(bus, *ALL_EVENTS)

    text, kind = metrics.render("text/plain;version=0.0.4;q=0.5,*/*;q=0.1")
    open_text, open_kind = metrics.render("application/openmetrics-text;version=1.0.0;q=0.8,text/plain;q=0.5")

    assert (kind, open_kind) == (TEXT, OPENMETRICS)
    assert open_text.endswith(b"# EOF\n")
    assert len(list(parse_openmetrics(open_text.decode()))) == len(list(parse_text(text.decode()))) == len(NAMES)


def test_promtool_finds_nothing_to_complain_of(metrics: Metrics, bus: Bus) -> None:
    promtool = os.environ.get("TASKFLOW_TEST_PROMTOOL") or shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not on PATH, and TASKFLOW_TEST_PROMTOOL does not say where it is")
    emit(bus, *ALL_EVENTS)

    done = subprocess.run([promtool, "check", "metrics"], input=metrics.render()[0], capture_output=True, check=False)

    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_an_attempt_is_counted_when_it_starts_and_when_it_ends(metrics: Metrics, bus: Bus) -> None:
    emit(bus, started(waited_s=0.02), ended("failed", BROKEN, run_s=0.3))

    pair = {"queue": "mail", "task": "send"}
    assert value(metrics, "taskflow_attempts_started_total", **pair) == 1
    assert value(metrics, "taskflow_attempts_total", **pair, outcome="failed") == 1
    assert value(metrics, "taskflow_attempts_total", **pair, outcome="succeeded") == 0
    assert value(metrics, "taskflow_job_queue_wait_seconds_bucket", queue="mail", le="0.01") == 0
    assert value(metrics, "taskflow_job_queue_wait_seconds_bucket", queue="mail", le="0.025") == 1
    assert value(metrics, "taskflow_attempt_run_seconds_sum", **pair) == 0.3
    assert value(metrics, "taskflow_attempt_run_seconds_count", **pair) == 1


def test_a_bound_belongs_to_its_bucket(metrics: Metrics, bus: Bus) -> None:
    emit(bus, ended(run_s=0.5), ended(run_s=10_000.0))

    pair = {"queue": "mail", "task": "send"}
    assert value(metrics, "taskflow_attempt_run_seconds_bucket", **pair, le="0.25") == 0
    assert value(metrics, "taskflow_attempt_run_seconds_bucket", **pair, le="0.5") == 1
    assert value(metrics, "taskflow_attempt_run_seconds_bucket", **pair, le="3600.0") == 1
    assert value(metrics, "taskflow_attempt_run_seconds_bucket", **pair, le="+Inf") == 2


@pytest.mark.parametrize(
    ("decision", "attempts", "state"),
    [
        (Complete(), 3, "succeeded"),
        (Bury(BROKEN), 3, "dead"),
        (Bury(BROKEN, spent=False), 2, "dead"),
        (Expire("deadline"), 2, "expired"),
        (Cancel(), 2, "cancelled"),
    ],
)
def test_a_finished_job_is_counted_once_with_its_attempts(
    metrics: Metrics, bus: Bus, decision: Any, attempts: int, state: str
) -> None:
    emit(bus, settled(decision, total_s=7.0, attempts=2))

    finished = {
        dict(labels)["state"]: count
        for (name, labels), count in scrape(metrics).items()
        if name == "taskflow_jobs_finished_total"
    }
    assert finished == {"succeeded": 0, "dead": 0, "cancelled": 0, "expired": 0, state: 1}
    assert value(metrics, "taskflow_job_finish_attempts_sum", queue="mail") == attempts
    assert value(metrics, "taskflow_job_end_to_end_seconds_sum", queue="mail") == 7.0


def test_a_job_that_goes_on_is_not_finished(metrics: Metrics, bus: Bus) -> None:
    emit(bus, settled(Retry(1.0, BROKEN)), settled(Snooze(5.0, "circuit_open")), settled(Release()))

    after = scrape(metrics)
    assert sum(count for (name, _), count in after.items() if name == "taskflow_jobs_finished_total") == 0
    assert value(metrics, "taskflow_jobs_retried_total", queue="mail", task="send") == 1
    assert value(metrics, "taskflow_jobs_snoozed_total", queue="mail", reason="circuit_open") == 1
    assert value(metrics, "taskflow_job_end_to_end_seconds_count", queue="mail") == 0


def test_a_retry_of_a_cancelled_job_counts_as_cancelled(metrics: Metrics, bus: Bus) -> None:
    emit(bus, settled(Retry(1.0, BROKEN), JobState.CANCELLED))

    assert value(metrics, "taskflow_jobs_finished_total", queue="mail", task="send", state="cancelled") == 1
    assert value(metrics, "taskflow_jobs_retried_total", queue="mail", task="send") == 0


def test_what_upkeep_finds_is_counted_too(metrics: Metrics, bus: Bus) -> None:
    emit(
        bus,
        events.JobRedelivered("0192", "send", "mail", 1),
        events.JobBuried("0192", "send", "mail", 5),
        events.JobExpired("0193", "send", "mail", "max_wait"),
    )

    pair = {"queue": "mail", "task": "send"}
    assert value(metrics, "taskflow_jobs_redelivered_total", queue="mail") == 1
    assert value(metrics, "taskflow_attempts_total", **pair, outcome="lost") == 2
    assert value(metrics, "taskflow_jobs_finished_total", **pair, state="dead") == 1
    assert value(metrics, "taskflow_jobs_finished_total", **pair, state="expired") == 1
    assert value(metrics, "taskflow_jobs_shed_total", queue="mail", reason="max_wait") == 1


def test_what_nobody_declared_is_counted_in_one_series(metrics: Metrics, bus: Bus) -> None:
    for n in range(50):
        emit(
            bus,
            started(f"task-{n}", "mail"),
            started("send", f"queue-{n}"),
            events.JobsSubmitted(f"queue-{n}", f"task-{n}", 1),
            settled(Snooze(60.0, f"come back to customer {n}")),
            events.JobsRejected(f"queue-{n}", f"because {n}", 1),
            events.BrokerFailed(f"operation-{n}", f"kind-{n}", "", 0.0),
            events.BrokerAnswered(f"operation-{n}", 0.1),
            events.BreakerMoved(f"breaker-{n}", f"breaker-{n}", "open"),
        )

    after = scrape(metrics)
    labels = {text for _, pairs in after for _, text in pairs}
    assert not [text for text in labels if text.endswith(tuple("0123456789")) and "-" in text]
    assert value(metrics, "taskflow_attempts_started_total", queue="mail", task="_unknown") == 50
    assert value(metrics, "taskflow_attempts_started_total", queue="_other", task="send") == 50
    assert value(metrics, "taskflow_jobs_submitted_total", queue="_other", task="_unknown") == 50
    assert value(metrics, "taskflow_jobs_snoozed_total", queue="mail", reason="_other") == 50
    assert value(metrics, "taskflow_jobs_rejected_total", queue="_other", reason="_other") == 50
    assert value(metrics, "taskflow_broker_errors_total", broker="memory", operation="_other", kind="_other") == 50
    assert value(metrics, "taskflow_broker_operation_seconds_count", broker="memory", operation="_other") == 50


def counts(queue: str = "mail", ready: int = 3, oldest_s: float = 12.0) -> QueueCounts:
    return QueueCounts(queue, ready, 5, 0, 2, 1, oldest_s, 4.0, False)


def test_queues_show_what_was_last_sampled(metrics: Metrics, now: Now) -> None:
    metrics.sample([counts()], now())

    jobs = {state: value(metrics, "taskflow_queue_jobs", queue="mail", state=state) for state in ("ready", "running")}
    assert jobs == {"ready": 3, "running": 2}
    assert value(metrics, "taskflow_queue_limit", queue="mail") == 1000


def test_the_oldest_age_grows_between_samples_while_jobs_are_ready(metrics: Metrics, now: Now) -> None:
    metrics.sample([counts(ready=3, oldest_s=12.0)], now())
    now.at += 30.0  # the broker is gone: nobody samples any more

    waiting = value(metrics, "taskflow_queue_oldest_ready_age_seconds", queue="mail")
    metrics.sample([counts(ready=0, oldest_s=0.0)], now())
    now.at += 30.0

    assert waiting == 42.0
    assert value(metrics, "taskflow_queue_oldest_ready_age_seconds", queue="mail") == 0.0


def test_queues_that_nobody_declared_are_added_up(metrics: Metrics, now: Now) -> None:
    metrics.sample([counts("a", oldest_s=1.0), counts("b", oldest_s=9.0), counts("mail")], now())

    assert value(metrics, "taskflow_queue_jobs", queue="_other", state="ready") == 6
    assert value(metrics, "taskflow_queue_oldest_ready_age_seconds", queue="_other") == 9.0


def test_a_queue_that_is_no_longer_reported_is_empty(metrics: Metrics, now: Now) -> None:
    metrics.sample([counts()], now())
    metrics.sample([], now())

    assert value(metrics, "taskflow_queue_jobs", queue="mail", state="ready") == 0


def test_the_worker_is_asked_at_each_scrape(metrics: Metrics) -> None:
    running = [1, 2]
    metrics.asked.in_flight = lambda: len(running)
    metrics.asked.concurrency_limit = lambda: 100
    first = value(metrics, "taskflow_worker_in_flight")
    running.append(3)

    assert (first, value(metrics, "taskflow_worker_in_flight")) == (2, 3)
    assert value(metrics, "taskflow_worker_concurrency_limit") == 100


def test_a_gauge_that_raises_shows_as_unknown_and_hurts_no_other(metrics: Metrics, bus: Bus) -> None:
    metrics.asked.in_flight = lambda: 1 / 0
    metrics.asked.longest_running_s = lambda: 4.5
    emit(bus, started())

    assert math.isnan(value(metrics, "taskflow_worker_in_flight"))
    assert value(metrics, "taskflow_worker_longest_running_seconds") == 4.5
    assert value(metrics, "taskflow_attempts_started_total", queue="mail", task="send") == 1


def test_a_gauge_over_something_that_changes_meanwhile_is_asked_again(metrics: Metrics) -> None:
    answers = iter([RuntimeError("dictionary changed size during iteration"), 3.0])

    def longest() -> float:
        answer = next(answers)
        if isinstance(answer, RuntimeError):
            raise answer
        return answer

    metrics.asked.longest_running_s = longest

    assert value(metrics, "taskflow_worker_longest_running_seconds") == 3.0


def test_the_broker_is_up_as_long_as_it_answers(metrics: Metrics, bus: Bus) -> None:
    seen = [value(metrics, "taskflow_broker_up", broker="memory")]
    for event in (
        events.BrokerAnswered("claim", 0.001),
        events.BrokerFailed("claim", "connection", "refused", 0.1),
        events.BrokerRecovered("claim", 1.0),
        events.BrokerFailed("settle", "refused", "one job does not fit", 0.0),  # which is an answer
    ):
        emit(bus, event)
        seen.append(value(metrics, "taskflow_broker_up", broker="memory"))

    assert seen == [0, 1, 0, 1, 1]
    assert value(metrics, "taskflow_broker_errors_total", broker="memory", operation="claim", kind="connection") == 1


def breaker_state(metrics: Metrics) -> str:
    (state,) = [
        state
        for state in ("closed", "open", "half_open")
        if value(metrics, "taskflow_breaker_state", breaker="smtp", state=state)
    ]
    return state


def test_a_breaker_is_in_one_state_at_a_time(metrics: Metrics, bus: Bus) -> None:
    seen = [breaker_state(metrics)]
    for to in ("open", "half_open", "open", "half_open", "closed"):
        emit(bus, events.BreakerMoved("smtp", "smtp", to))
        seen.append(breaker_state(metrics))

    assert seen == ["closed", "open", "half_open", "open", "half_open", "closed"]
    assert value(metrics, "taskflow_breaker_transitions_total", breaker="smtp", to="open") == 2


def test_a_breaker_with_lanes_shows_its_worst(metrics: Metrics, bus: Bus) -> None:
    emit(bus, events.BreakerMoved("smtp", "smtp/a", "open"), events.BreakerMoved("smtp", "smtp/b", "open"))
    emit(bus, events.BreakerMoved("smtp", "smtp/a", "closed"))
    still = breaker_state(metrics)
    emit(bus, events.BreakerMoved("smtp", "smtp/b", "closed"))

    assert (still, breaker_state(metrics)) == ("open", "closed")


def test_a_held_gate_is_counted_until_its_time_is_over(metrics: Metrics, bus: Bus, now: Now) -> None:
    emit(bus, events.GateHeld("smtp", 10.0, "circuit_open"), events.GateHeld("http/a", 30.0, "snoozed"))
    seen = [value(metrics, "taskflow_gates_held")]
    now.at += 20.0
    seen.append(value(metrics, "taskflow_gates_held"))
    now.at += 20.0
    seen.append(value(metrics, "taskflow_gates_held"))

    assert seen == [2, 1, 0]


def test_the_brokers_gates_show_use_limit_and_holds(metrics: Metrics) -> None:
    metrics.sample_gates(
        [
            Gate("smtp", limit=10, limit_override=4),
            Gate("smtp/a", live=2, held_until=150.0),
            Gate("smtp/b", live=1),
            Gate("nobody-declared-it", limit=3, live=3),
        ],
        now=100.0,
    )

    assert value(metrics, "taskflow_limiter_in_use", limiter="smtp") == 3
    assert value(metrics, "taskflow_limiter_limit", limiter="smtp") == 4
    assert value(metrics, "taskflow_gates_held") == 1


def test_a_breaker_shows_the_state_that_the_brokers_gates_have(metrics: Metrics, bus: Bus) -> None:
    emit(bus, events.BreakerMoved("smtp", "smtp", "open"))
    seen = []
    for gates in (
        [Gate("smtp", ramp=1, era=1, held_until=150.0)],
        [Gate("smtp", ramp=1, era=1, held_until=99.0), Gate("nobody-declared-it", ramp=1, era=1)],
        [Gate("smtp", ramp=8, era=1), Gate("smtp/a", ramp=1, era=1, held_until=101.0)],
        [Gate("smtp", era=1, held_until=150.0)],
        [],
    ):
        metrics.sample_gates(gates, now=100.0)
        seen.append(breaker_state(metrics))

    assert seen == ["open", "half_open", "open", "closed", "closed"]
    assert value(metrics, "taskflow_breaker_transitions_total", breaker="smtp", to="open") == 1


def test_a_mere_rate_has_no_limit_of_live_claims(metrics: Metrics) -> None:
    metrics.declare({}, {}, limiters={"api": None})

    assert value(metrics, "taskflow_limiter_limit", limiter="api") == math.inf


def test_to_declare_again_resets_nothing(metrics: Metrics, bus: Bus) -> None:
    emit(bus, started(), events.BreakerMoved("smtp", "smtp", "open"))

    metrics.declare({"mail": 2000, "more": 5}, {"send": "mail", "other": "more"}, ["smtp"], {"smtp": 20})

    assert value(metrics, "taskflow_attempts_started_total", queue="mail", task="send") == 1
    assert value(metrics, "taskflow_attempts_started_total", queue="more", task="other") == 0
    assert value(metrics, "taskflow_queue_limit", queue="mail") == 2000
    assert breaker_state(metrics) == "open"


def test_build_info_says_what_runs(metrics: Metrics) -> None:
    assert value(metrics, "taskflow_build_info", version="1.2.3", python="3.11.7", broker="memory") == 1


def test_a_scrape_in_another_thread_sees_whole_numbers_while_jobs_run(metrics: Metrics, bus: Bus) -> None:
    stop = threading.Event()
    wrong: list[object] = []

    def scrape_all_the_time() -> None:
        while not stop.is_set():
            try:
                for family in parse_text(metrics.render()[0].decode()):
                    buckets = {
                        s.labels["le"]: s.value
                        for s in family.samples
                        if s.name == "taskflow_attempt_run_seconds_bucket"
                    }
                    if buckets and list(buckets.values()) != sorted(buckets.values()):
                        wrong.append(buckets)
            except Exception as error:
                wrong.append(error)

    thread = threading.Thread(target=scrape_all_the_time)
    thread.start()
    for n in range(3_000):
        emit(bus, started(), ended(run_s=n / 1000), settled(Complete()))
        if n % 100 == 0:
            metrics.declare({f"q{n}": 1}, {f"t{n}": f"q{n}"})
    stop.set()
    thread.join()

    assert wrong == []
    assert value(metrics, "taskflow_attempts_total", queue="mail", task="send", outcome="succeeded") == 3_000


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(min_value=0, max_value=1e6), max_size=50))
def test_a_histogram_agrees_with_what_it_was_told(run_times: list[float]) -> None:
    bus, metrics = Bus(), Metrics(version="1", python="3", broker="memory")
    metrics.declare({"mail": 1}, {"send": "mail"})
    metrics.subscribe(bus)

    emit(bus, *(ended(run_s=run_s) for run_s in run_times))

    pair = {("queue", "mail"), ("task", "send")}
    shown = scrape(metrics)
    for bound in (0.005, 1.0, 3600.0):
        below = shown["taskflow_attempt_run_seconds_bucket", frozenset({*pair, ("le", str(bound))})]
        assert below == sum(run_s <= bound for run_s in run_times)
    assert shown["taskflow_attempt_run_seconds_count", frozenset(pair)] == len(run_times)
    assert shown["taskflow_attempt_run_seconds_sum", frozenset(pair)] == pytest.approx(sum(run_times))


@settings(deadline=None, max_examples=50)
@given(queue=st.text(max_size=20), task=st.text(max_size=20))
def test_any_name_makes_a_text_that_can_be_parsed(queue: str, task: str) -> None:
    metrics = Metrics(version='"1"\n', python="\\", broker="memory")
    metrics.declare({queue: 1}, {task: queue})

    families = list(parse_openmetrics(metrics.render("application/openmetrics-text")[0].decode()))

    assert len(families) == len(NAMES)


@pytest.mark.parametrize("event", [started(), ended(), settled(Complete())], ids=lambda event: type(event).__name__)
def test_recording_costs_microseconds(metrics: Metrics, bus: Bus, event: Any) -> None:
    # About 1 µs; the bound has room for a loaded machine, and none for labels() and observe() of prometheus_client.
    took_s = min(timeit.repeat(lambda: bus.emit(event), number=1_000, repeat=20)) / 1_000

    assert took_s < 10e-6
