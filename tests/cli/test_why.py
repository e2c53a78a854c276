"""One sentence for each thing that can keep a job from running, and the words for durations and instants in it."""

import re
import time

import pytest

from taskflow.brokers.base import ErrorInfo, JobInfo, Presence, QueueCounts, WorkerInfo, WorkerState
from taskflow.cli.queue import print_queues
from taskflow.cli.shown import instant, one_line, plain, span
from taskflow.cli.standing import ENDLESS_S, operators_reason
from taskflow.cli.why import why
from taskflow.core.gate import Gate, Rate
from taskflow.core.job import JobState
from taskflow.runtime import outcomes


def record(state, **changes):
    """A job as a broker tells of it, at second 1,000."""
    said = {
        "id": "a" * 32, "task": "t", "queue": "q", "state": state, "priority": 4, "lane": "", "gates": (), "key": None,
        "attempts": 0, "snoozes": 0, "lost": 0, "submitted_at": 900.0, "due_at": 900.0, "expires_at": 9e9,
        "started_at": None, "finished_at": None, "worker": None, "reason": "", "cancel_requested": False,
        "progress": None, "payload": b"{}", "errors": (),
    }  # fmt: skip
    return JobInfo(**{**said, **changes})


def counts(**changes):
    said = {
        "queue": "q", "ready": 1, "scheduled": 0, "waiting": 0, "running": 1, "dead": 0, "oldest_ready_age_s": 1.0,
        "drain_per_s": 2.0, "paused": False,
    }  # fmt: skip
    return [QueueCounts(**{**said, **changes})]


def worker(name="host-1", *, silent_s=1.0, **said):
    """A worker with a lease of 9 s, as it said `silent_s` ago; it serves the queue."""
    presence = {
        "host": "host", "pid": 1, "version": "0", "up_s": 60.0, "queues": {"q": 1}, "concurrency": 10, "busy": 1,
        "state": WorkerState.CLAIMING,
    }  # fmt: skip
    return WorkerInfo(name, silent_s, 9.0, Presence(**{**presence, **said}))


WORKER = worker()


def sentence(job, gates=(), workers=(WORKER,), **of_queue):
    return why(job, counts(**of_queue), gates, workers, now=1_000.0)


def test_why_knows_every_state():
    for state in JobState:
        assert sentence(record(state))


def test_why_a_retry_waits_names_the_error_before_it():
    failed = record(
        JobState.SCHEDULED, due_at=1_030.0, attempts=1, errors=(ErrorInfo(1, 990.0, "OSError", "cut", "transient", ""),)
    )

    assert "(in 30 s), after 1 failed attempt, the last of OSError: cut" in sentence(failed)


def test_why_a_job_waits_whose_last_attempt_was_spared():
    errors = tuple(ErrorInfo(attempt, 990.0, "OSError", "cut", "transient", "") for attempt in (1, 2, 3))
    spared = record(JobState.SCHEDULED, due_at=1_030.0, attempts=2, snoozes=1, reason="circuit_open", errors=errors)

    assert "OSError: cut, attempt 3 not spent, as nothing but failures was seen" in sentence(spared)


def test_why_a_snoozed_job_waits_names_the_reason():
    job = record(JobState.SCHEDULED, due_at=1_030.0, snoozes=1, reason="they asked\nfor a pause")

    assert "(in 30 s), snoozed: they asked for a pause" in sentence(job)


def test_why_a_job_of_a_task_that_no_worker_knows_waits_also_once_it_is_due_again():
    job = record(JobState.READY, snoozes=3, reason="unknown_task", task="send_mial")

    assert "as no worker that took it knows task 'send_mial' (sent back 3 times)" in sentence(job)


def test_why_a_job_waits_at_the_held_family_of_its_gate():
    job = record(JobState.READY, gates=("http/example.org",))

    assert "gate 'http' is held until" in sentence(job, [Gate("http", held_until=1_060.0), Gate("http/example.org")])


def test_why_a_job_waits_that_the_other_side_has_throttled():
    gate = Gate("http", held_until=1_060.0, reason=outcomes.THROTTLED)
    job = record(JobState.SCHEDULED, gates=("http",), due_at=1_060.0, snoozes=1, reason=outcomes.THROTTLED)

    said = sentence(job, [gate])

    assert "snoozed: its dependency asked it to wait" in said
    assert re.search(r"gate 'http' is held until .*, as the other side asked", said)


def test_why_a_job_waits_at_a_rate():
    job = record(JobState.READY, gates=("smtp",))

    assert (
        "gate 'smtp' is rate limited to 1/m (code): the next start is in 1 min"
        in sentence(job, [Gate("smtp", rate=Rate(60.0), tat=1_060.0)])
    )  # fmt: skip


def test_why_a_job_waits_at_a_gate_that_recovers():
    job = record(JobState.READY, gates=("smtp",))

    assert "gate 'smtp' recovers: 2 of 2 slots are taken" in sentence(job, [Gate("smtp", limit=9, ramp=2, live=2)])


def test_why_a_job_waits_at_the_limit_of_its_gates_family():
    job = record(JobState.READY, gates=("http/x",))

    assert (
        "gate 'http/x' is full: 2 of 2 (operator; code: 9) slots are taken"
        in sentence(job, [Gate("http", limit=9, limit_override=2), Gate("http/x", live=2)])
    )  # fmt: skip


def test_why_a_hold_without_an_end_waits_for_a_release():
    job = record(JobState.READY, gates=("smtp",))

    assert (
        "gate 'smtp' is held by an operator until released: they move (`taskflow gate release smtp`)"
        in sentence(job, [Gate("smtp", held_until=1_000.0 + ENDLESS_S, reason=operators_reason("they move"))])
    )  # fmt: skip


@pytest.mark.parametrize(
    ("error_at", "kind", "words"),
    [
        (950.0, "transient", "after 1 failed attempt, the last of OSError: cut"),  # the last claim failed
        (930.0, "transient", "snoozed: its breaker was open (sent back 2 times)"),  # it failed, and then was sent back
        (
            950.0,
            "throttled",
            "snoozed: its breaker was open (sent back 2 times)",
        ),  # what sent it back is kept as an error
    ],
)
def test_why_names_what_came_last_of_failure_and_snooze(error_at, kind, words):
    job = record(
        JobState.SCHEDULED, due_at=1_030.0, started_at=940.0, attempts=1, snoozes=2, reason="circuit_open",
        errors=(ErrorInfo(1, error_at, "OSError", "cut", kind, ""),),
    )  # fmt: skip

    assert words in sentence(job)


def test_why_a_suspect_waits():
    assert "2 workers died with it" in sentence(record(JobState.READY, lost=2))


def test_why_a_cancelled_run_is_not_over_yet():
    job = record(JobState.RUNNING, started_at=990.0, worker="w", cancel_requested=True)

    assert "asked to cancel" in sentence(job)
    assert "the handler has to heed it" in sentence(job)  # it may have swallowed the word long ago


def test_gates_that_a_job_does_not_have_do_not_stop_it():
    assert "smtp" not in sentence(record(JobState.READY), [Gate("smtp", held_until=9e9)])


# --- workers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("workers", "words"),
    [
        ([], "no live worker serves queue 'q': no worker is running"),
        ([worker(queues={"mail": 1})], "no live worker serves queue 'q'"),
        (
            [worker("gone", silent_s=12.0), worker("gone-before", silent_s=30.0), worker(queues={"mail": 1})],
            "no live worker serves queue 'q': gone did, and is silent for 12 s",
        ),
        ([worker(state=WorkerState.PAUSED)], "no worker claims from queue 'q': 1 worker of it is paused"),
        (
            [worker(state=WorkerState.PAUSED), *[worker(state=WorkerState.DRAINING)] * 2],
            "no worker claims from queue 'q': 1 worker of it is paused and 2 workers of it are draining",
        ),
    ],
)
def test_why_a_due_job_waits_that_nobody_takes(workers, words):
    said = sentence(record(JobState.READY), workers=workers)

    assert said.split("; ")[1:] == [words]


def test_why_a_job_waits_names_its_held_gate_and_that_nobody_would_take_it():
    job = record(JobState.READY, gates=("smtp",))

    said = sentence(job, [Gate("smtp", held_until=1_060.0)], workers=[])

    assert "gate 'smtp' is held" in said
    assert "no live worker serves queue 'q'" in said


def test_one_worker_that_claims_is_enough():
    workers = [worker("gone", silent_s=12.0), worker(state=WorkerState.PAUSED), WORKER]

    assert "worker" not in sentence(record(JobState.READY), workers=workers).replace("the next worker with a", "")


def test_a_job_that_is_not_due_does_not_wait_for_workers():
    assert "worker" not in sentence(record(JobState.SCHEDULED, due_at=1_030.0), workers=[])


def test_why_a_job_waits_whose_workers_are_full():
    full = [worker(busy=10), worker(busy=11, concurrency=11), worker(state=WorkerState.PAUSED, busy=0)]

    said = sentence(record(JobState.READY), workers=full)

    assert "all slots were taken at the last beat: 21 of 21 in 2 workers" in said
    assert "slots" not in sentence(record(JobState.READY), workers=[*full, WORKER])


def test_why_a_job_runs_in_a_worker_that_fell_silent_says_who_takes_it():
    job = record(JobState.RUNNING, started_at=990.0, worker="host-1")

    assert "that worker is silent for 7 s: another takes the job once its lease of 9 s has ended" in sentence(
        job, workers=[worker(silent_s=7.0)]
    )
    assert "silent" not in sentence(job, workers=[WORKER, worker("other", silent_s=7.0)])


# --- words -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"), (0.4, "0.4 s"), (-1, "0 s"), (12, "12 s"), (60, "1 min"), (303, "5 min 3 s"), (3_600, "1 h"),
        (7_205, "2 h"), (86_400, "1 day"), (273_600, "3 days 4 h"), (59.7, "1 min"),
    ],
)  # fmt: skip
def test_a_duration_is_told_in_two_units_at_most(seconds, words):
    assert span(seconds) == words


def test_an_instant_beyond_the_calendar_is_never():
    assert instant(1e300, time.time()) == "never"


def test_text_of_others_is_one_plain_line_in_tables():
    assert one_line("a\n\x1b[31mb\tc") == "a �[31mb c"
    assert len(one_line("x" * 500)) == 80
    assert plain("a\x07\nb") == "a�\nb"


@pytest.mark.parametrize("left", [0.0, 5e-07, 0.00099])
def test_what_is_left_of_a_rate_long_after_a_queue_drained_is_no_rate(left, capsys):
    print_queues(counts(drain_per_s=left))

    assert "/s" not in capsys.readouterr().out
    assert "nothing of queue 'q' runs or has ended lately" in sentence(
        record(JobState.READY), running=0, ready=5, drain_per_s=left
    )


def test_a_slow_queue_is_shown_with_its_rate(capsys):
    print_queues(counts(drain_per_s=0.0012))

    assert "0.0012/s" in capsys.readouterr().out
