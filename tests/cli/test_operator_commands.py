"""What the person on call types at 3 a.m., against real SQLite files: what it says, does, and exits with."""

import json
import os
import pty
import subprocess
import sys
import time

import pytest

from taskflow.brokers.base import ClaimRequest
from taskflow.cli.shown import per_second
from taskflow.core.gate import Hold
from tests.cli.desk import at_broker, claimed, dead, declared, run, shown, sit_down, state_of, submitted, work

SECRET = "hunter2"


@pytest.fixture(autouse=True)
def file(tmp_path, monkeypatch):
    return sit_down(tmp_path, monkeypatch)


# --- job list ----------------------------------------------------------------------------------------------------------


def test_job_list_shows_the_newest_first():
    first, second = submitted("send_mail", "ada"), submitted("send_mail", "bob")

    result = run("job", "list")

    assert result.code == 0
    lines = result.out.splitlines()
    assert lines[0].split()[:4] == ["ID", "TASK", "QUEUE", "STATE"]
    assert [line.split()[0] for line in lines[1:]] == second + first
    assert result.err == ""


def test_job_list_can_be_narrowed_by_state_queue_and_task():
    mail = submitted("send_mail", "ada")
    later = submitted("send_mail", "ada", delay=60)
    gated = submitted("gated")
    bulk = submitted("refuse")

    def ids(*words):
        return {job["id"] for job in shown("job", "list", *words)}

    assert ids("--state", "scheduled") == set(later)
    assert ids("--queue", "bulk") == set(bulk)
    assert ids("--task", "gated") == set(gated)
    assert ids("--queue", "mail", "--task", "send_mail", "--state", "ready") == set(mail)


def test_job_list_shows_why_a_job_has_to_wait_for_its_next_attempt():
    submitted("stumble")
    work(until=lambda counts: any(queue.scheduled for queue in counts))

    (_, line) = run("job", "list", "--task", "stumble").out.splitlines()

    assert line.endswith(", after ConnectionError: no route")


def test_job_list_stops_at_the_limit_and_says_so():
    submitted("send_mail", "ada", count=3)

    result = run("job", "list", "--limit", "2")

    assert len(result.out.splitlines()) == 3
    assert "--limit" in result.err


def test_job_list_names_the_states_when_one_is_misspelt():
    result = run("job", "list", "--state", "died")

    assert result.code == 2
    assert "dead" in result.err
    assert "scheduled" in result.err


def test_empty_lists_say_so_on_stderr_only():
    submitted("send_mail", "ada")

    for words in (["job", "list", "--state", "dead"], ["dead", "list"]):
        result = run(*words)
        assert (result.code, result.out) == (0, "")
        assert "no " in result.err
        assert shown(*words) == []


def test_no_list_and_no_record_shows_arguments():
    ids = submitted("send_mail", "ada", SECRET)

    for words in (["job", "list"], ["job", "list", "--json"], ["job", "show", *ids], ["job", "show", *ids, "--json"]):
        result = run(*words)
        assert result.code == 0
        assert SECRET not in result.out + result.err


# --- job show ----------------------------------------------------------------------------------------------------------


def test_job_show_shows_arguments_only_when_asked():
    ids = submitted("send_mail", "ada", SECRET)

    assert SECRET in run("job", "show", *ids, "--payload").out
    assert shown("job", "show", *ids, "--payload")["payload"]["args"]["password"] == SECRET


def test_job_show_shows_everything_kept():
    (job_id,) = submitted("send_mail", "ada", priority=7, key="welcome", lane="example.org", correlation_id="req-1")

    found = shown("job", "show", job_id)
    text = run("job", "show", job_id).out

    assert {
        "id": job_id,
        "task": "send_mail",
        "queue": "mail",
        "state": "ready",
        "priority": 7,
        "lane": "example.org",
        "key": "welcome",
        "attempts": 0,
        "correlation_id": "req-1",
        "errors": [],
    }.items() <= found.items()
    for word in (job_id, "send_mail", "mail", "ready", "7", "welcome", "example.org", "req-1", "ago", "why"):
        assert word in text


def test_job_show_shows_every_failed_attempt_with_its_stack():
    job_id = dead()

    result = run("job", "show", job_id)

    assert "attempt 1 failed" in result.out
    assert "attempt 2 failed" in result.out
    assert result.out.count("raise ConnectionError(why)") == 2
    assert [error["type"] for error in shown("job", "show", job_id)["errors"]] == ["ConnectionError"] * 2


def test_job_show_takes_the_beginning_of_an_id_that_only_one_job_has():
    (job_id,) = submitted("send_mail", "ada")

    assert shown("job", "show", job_id[:20])["id"] == job_id


def test_job_show_refuses_the_beginning_of_several_ids():
    ids = submitted("send_mail", "ada", count=2)
    shared = ids[0][:8]
    assert ids[1].startswith(shared), "made within the same minute"

    result = run("job", "show", shared)

    assert result.code == 5
    assert all(job_id in result.err for job_id in ids)


@pytest.mark.parametrize(
    "words", [["job", "show"], ["job", "cancel"], ["job", "retry"], ["dead", "show"], ["dead", "retry"]]
)
def test_an_unknown_id_is_exit_5_and_says_why(words):
    submitted("send_mail", "ada")

    result = run(*words, "feed" * 8)

    assert result.code == 5
    assert "feed" * 8 in result.err
    assert result.out == ""


# --- why is it not running? --------------------------------------------------------------------------------------------


def reason(job_id):
    return shown("job", "show", job_id)["why"]


def test_why_a_scheduled_job_waits_for_its_instant():
    (job_id,) = submitted("send_mail", "ada", delay=3600)

    assert "scheduled until 2" in reason(job_id)
    assert "(in 1 h)" in reason(job_id) or "(in 59 min" in reason(job_id)


def test_why_a_job_waits_at_a_held_gate():
    (job_id,) = submitted("gated")
    at_broker(lambda broker: broker.gate("smtp", Hold(600, "ConnectionError")))

    assert "gate 'smtp' is held until" in reason(job_id)
    assert "ConnectionError" in reason(job_id)


def test_why_a_job_waits_at_a_gate_that_its_breaker_holds():
    (job_id,) = submitted("gated")
    at_broker(lambda broker: broker.gate("smtp", Hold(600, "circuit_open")))

    assert "gate 'smtp' is held by its breaker until 2" in reason(job_id)


def test_why_a_job_waits_at_a_gate_that_an_operator_holds():
    (job_id,) = submitted("gated")
    run("gate", "hold", "smtp", "--reason", "they move")

    assert "held by an operator until released: they move (`taskflow gate release smtp`)" in reason(job_id)


def test_why_a_job_waits_at_a_rate():
    first, second = submitted("rated", count=2)
    declared()
    claimed(queue="bulk")

    assert "running" in reason(first)
    assert "gate 'api' is rate limited to 1/h (code): the next start is in " in reason(second)


def test_why_a_job_waits_at_a_gate_that_an_operator_closed():
    (job_id,) = submitted("gated")
    declared()
    run("gate", "limit", "smtp", "0")

    assert "gate 'smtp' admits no job: its limit is 0 (operator; code: 1)" in reason(job_id)


def test_why_a_job_waits_whose_task_no_worker_knows():
    (job_id,) = submitted("send_mail", "ada")

    work(mail_task="another_name", until=lambda counts: any(queue.scheduled for queue in counts))

    assert "scheduled until 2" in reason(job_id)
    assert "as no worker that took it knows task 'send_mail': start workers whose code has it" in reason(job_id)


def test_why_a_job_waits_for_its_next_attempt():
    (job_id,) = submitted("stumble")

    work(until=lambda counts: any(queue.scheduled for queue in counts))

    assert "after 1 failed attempt, the last of ConnectionError: no route" in reason(job_id)


def test_why_a_job_waits_at_a_full_gate():
    declared()
    submitted("gated", count=2)
    claimed()
    (waiting,) = [job["id"] for job in shown("job", "list", "--state", "ready")]

    assert "gate 'smtp' is full: 1 of 1 (code) slots are taken" in reason(waiting)


def test_why_a_job_of_a_paused_queue_waits():
    (job_id,) = submitted("send_mail", "ada")
    run("queue", "pause", "mail")

    assert "queue 'mail' is paused" in reason(job_id)
    assert "taskflow queue resume mail" in reason(job_id)


def test_why_a_ready_job_waits_behind_others():
    ids = submitted("send_mail", "ada", count=3)

    assert "behind at most 2 ready jobs of queue 'mail'" in reason(ids[-1])


def test_why_a_ready_job_waits_when_no_worker_is_up():
    (job_id,) = submitted("send_mail", "ada")

    assert "no live worker serves queue 'mail': no worker is running" in reason(job_id)


def test_why_says_where_a_job_runs():
    (job_id,) = submitted("send_mail", "ada")
    claimed()

    assert "running for" in reason(job_id)
    assert "in worker host-1" in reason(job_id)


def test_why_says_that_and_why_a_job_expired():
    late, tired = submitted("send_mail", "ada", deadline=0.01) + submitted("send_mail", "ada", max_wait=0.01)
    over_at = time.time() + 0.02
    while time.time() < over_at:  # it is the clock that is waited for: a quick worker would be in time
        time.sleep(0.001)
    work()

    assert "it expired" in reason(late)
    assert "its deadline passed" in reason(late)
    assert "it waited for longer than its max_wait" in reason(tired)


def test_why_says_how_a_job_ended():
    job_id = dead("refuse")
    (fine,) = submitted("send_mail", "ada")
    work()

    assert "ValueError: not an address" in reason(job_id)
    assert f"taskflow dead retry {job_id}" in reason(job_id)
    assert "succeeded" in reason(fine)


# --- job cancel, job retry ---------------------------------------------------------------------------------------------


def test_job_cancel_cancels_what_waits():
    ids = submitted("send_mail", "ada", count=2)

    result = run("job", "cancel", *ids)

    assert result.code == 0
    assert result.out.splitlines() == [f"{job_id} cancelled" for job_id in ids]
    assert {state_of(job_id) for job_id in ids} == {"cancelled"}


def test_job_cancel_asks_what_runs():
    (job_id,) = submitted("send_mail", "ada")
    claimed()

    assert shown("job", "cancel", job_id) == [{"id": job_id, "outcome": "requested"}]
    assert state_of(job_id) == "running"


def test_job_cancel_of_a_final_job_is_a_conflict_and_spares_nobody_else():
    over = dead("refuse")
    (waits,) = submitted("send_mail", "ada")

    result = run("job", "cancel", over, waits)

    assert result.code == 5
    assert f"{over} is dead already" in result.err
    assert state_of(waits) == "cancelled"


def test_an_id_given_twice_counts_once():
    (job_id,) = submitted("send_mail", "ada")

    assert run("job", "cancel", job_id, job_id).code == 0


@pytest.mark.parametrize("group", ["job", "dead"])
def test_retry_makes_a_dead_job_ready_and_keeps_its_errors(group):
    job_id = dead()

    result = run(group, "retry", job_id)

    assert (result.code, result.out) == (0, f"{job_id} ready\n")
    assert state_of(job_id) == "ready"
    assert len(shown("job", "show", job_id)["errors"]) == 2


def test_retry_of_a_job_that_is_not_dead_is_a_conflict():
    (job_id,) = submitted("send_mail", "ada")

    result = run("job", "retry", job_id)

    assert result.code == 5
    assert "is ready: only dead jobs can be retried" in result.err


def test_retry_of_a_job_whose_key_is_taken_is_a_conflict():
    job_id = dead("fail", key="one")
    submitted("fail", key="one", delay=60)

    result = run("job", "retry", job_id)

    assert result.code == 5
    assert "key" in result.err
    assert shown("dead", "list")[0]["id"] == job_id


# --- queue -------------------------------------------------------------------------------------------------------------


def test_queue_list_counts_each_queue():
    submitted("send_mail", "ada", count=2)
    submitted("send_mail", "ada", delay=60)
    submitted("refuse")

    found = {queue["queue"]: queue for queue in shown("queue", "list")}

    assert (found["mail"]["ready"], found["mail"]["scheduled"], found["bulk"]["ready"]) == (2, 1, 1)
    rows = {line.split()[0]: line.split()[1:] for line in run("queue", "list").out.splitlines()}
    assert rows["mail"][:4] == ["2", "1", "0", "0"]


def test_a_paused_queue_is_not_claimed_from_until_it_is_resumed():
    submitted("send_mail", "ada")

    assert run("queue", "pause", "mail").code == 0
    assert shown("queue", "list")[0]["paused"] is True
    assert at_broker(lambda broker: broker.claim(ClaimRequest("w", ("mail",), 1, 1, 0, 60.0))) == []
    assert shown("queue", "resume", "mail") == {"queue": "mail", "paused": False}
    claimed()


def test_pausing_a_queue_that_never_had_a_job_warns_and_names_the_nearest():
    submitted("send_mail", "ada")

    result = run("queue", "pause", "mial")

    assert result.code == 0
    assert "did you mean 'mail'?" in result.err


def test_a_queue_can_be_paused_before_its_first_job(file):
    run("queue", "pause", "mail")
    submitted("send_mail", "ada")

    assert shown("queue", "list")[0]["paused"] is True


def test_queue_purge_cancels_what_is_ready_and_nothing_else():
    ready = submitted("send_mail", "ada", count=2)
    (later,) = submitted("send_mail", "ada", delay=60)
    (other,) = submitted("refuse")

    result = run("queue", "purge", "mail", "--yes")

    assert (result.code, result.out) == (0, "2 ready jobs of queue 'mail' cancelled\n")
    assert {state_of(job_id) for job_id in ready} == {"cancelled"}
    assert (state_of(later), state_of(other)) == ("scheduled", "ready")


def test_queue_purge_can_take_another_state():
    submitted("send_mail", "ada", delay=60)
    submitted("send_mail", "ada")

    assert shown("queue", "purge", "mail", "--state", "scheduled", "--yes") == {
        "queue": "mail", "state": "scheduled", "purged": 1,
    }  # fmt: skip


def test_queue_purge_deletes_what_has_ended():
    (job_id,) = submitted("send_mail", "ada")
    work()

    assert (
        run("queue", "purge", "mail", "--state", "succeeded", "--yes").out
        == "1 succeeded job of queue 'mail' deleted\n"
    )
    assert state_of(job_id) is None


def test_running_jobs_cannot_be_purged():
    submitted("send_mail", "ada")

    result = run("queue", "purge", "mail", "--state", "running", "--yes")

    assert result.code == 2
    assert "'ready'" in result.err


def test_queue_purge_of_an_unknown_queue_is_exit_5():
    submitted("send_mail", "ada")

    result = run("queue", "purge", "mial", "--yes")

    assert result.code == 5
    assert "did you mean 'mail'?" in result.err


@pytest.mark.parametrize("words", [["queue", "purge", "mail"], ["dead", "purge"]])
def test_purge_refuses_where_nobody_can_be_asked_and_says_how_many_it_is(words):
    submitted("send_mail", "ada", count=3)

    result = run(*words)

    assert result.code == 2
    assert "--yes" in result.err
    assert ("3 ready jobs" if words[0] == "queue" else "0 dead letters") in result.err
    assert len(shown("job", "list", "--state", "ready")) == 3


@pytest.mark.parametrize(("answer", "code", "left"), [("y\n", 0, 0), ("n\n", 1, 2)])
def test_purge_on_a_terminal_asks_and_does_what_it_is_told(answer, code, left):
    submitted("send_mail", "ada", count=2)
    ours, theirs = pty.openpty()
    try:
        os.write(ours, answer.encode())
        done = subprocess.run(
            [sys.executable, "-m", "taskflow", "queue", "purge", "mail"],
            stdin=theirs, capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
    finally:
        os.close(ours)
        os.close(theirs)

    assert done.returncode == code, done.stderr
    assert "Cancel 2 ready jobs of queue 'mail'?" in done.stderr
    assert len(shown("job", "list", "--state", "ready")) == left


# --- dead --------------------------------------------------------------------------------------------------------------


def test_dead_list_shows_the_last_error_of_each():
    job_id = dead("refuse")

    text = run("dead", "list").out
    (found,) = shown("dead", "list")

    assert job_id in text
    assert "ValueError: not an address" in text
    assert found["last_error"]["type"] == "ValueError"
    assert found["last_error"]["message"] == "not an address"
    assert found["last_error"]["kind"] in text


def test_dead_list_can_be_narrowed_by_queue_and_task():
    bulk, mail = dead("refuse"), dead("fail")

    assert [job["id"] for job in shown("dead", "list", "--queue", "bulk")] == [bulk]
    assert [job["id"] for job in shown("dead", "list", "--task", "fail")] == [mail]


def test_dead_show_shows_the_whole_history_with_stacks():
    job_id = dead("fail")

    result = run("dead", "show", job_id)

    assert result.code == 0
    assert result.out.count("raise ConnectionError(why)") == 2
    assert all("raise ConnectionError" in error["stack"] for error in shown("dead", "show", job_id)["errors"])


def test_dead_show_of_a_living_job_is_exit_5():
    (job_id,) = submitted("send_mail", "ada")

    result = run("dead", "show", job_id)

    assert result.code == 5
    assert "it is ready" in result.err


def test_what_an_error_says_cannot_steer_the_terminal():
    job_id = dead("fail", "\x1b[2Jgone\nback")

    for words in (["dead", "list"], ["dead", "show", job_id], ["job", "show", job_id]):
        assert "\x1b" not in run(*words).out
    assert "gone back" in run("dead", "list").out


def test_dead_retry_all_makes_every_dead_letter_ready():
    first, second = dead("refuse"), dead("fail")

    result = run("dead", "retry", "--all")

    assert (result.code, result.out) == (0, "2 jobs ready\n")
    assert state_of(first) == state_of(second) == "ready"


def test_dead_retry_all_can_be_narrowed():
    bulk, mail = dead("refuse"), dead("fail")

    assert shown("dead", "retry", "--all", "--task", "refuse") == {"ready": 1, "refused": []}
    assert (state_of(bulk), state_of(mail)) == ("ready", "dead")


def test_dead_retry_all_tells_of_those_whose_key_is_taken_and_retries_the_rest(monkeypatch):
    monkeypatch.setattr("taskflow.cli.dead._PAGE", 2)
    ids = submitted("refuse", count=5)
    stuck = [dead("refuse", key=key) for key in "abc"]
    for key in "abc":
        submitted("refuse", key=key, delay=60)

    result = run("dead", "retry", "--all")

    assert (result.code, result.out) == (5, "5 jobs ready\n")
    assert all(job_id in result.err for job_id in stuck)
    assert {state_of(job_id) for job_id in ids} == {"ready"}
    assert {state_of(job_id) for job_id in stuck} == {"dead"}


def test_dead_retry_all_of_nothing_says_so():
    submitted("send_mail", "ada")

    result = run("dead", "retry", "--all")

    assert result.code == 0
    assert "no dead letters" in result.err


@pytest.mark.parametrize("words", [[], ["feed", "--all"], ["feed", "--queue", "mail"]])
def test_dead_retry_takes_either_ids_or_all(words):
    assert run("dead", "retry", *words).code == 2


def test_dead_purge_deletes_dead_letters_for_good():
    bulk, mail = dead("refuse"), dead("fail")

    assert run("dead", "purge", "--queue", "bulk", "--yes").out == "1 dead letter deleted\n"
    assert (state_of(bulk), state_of(mail)) == (None, "dead")
    assert shown("dead", "purge", "--task", "fail", "--yes") == {"purged": 1}


def test_the_beginning_of_an_id_that_is_too_short_is_told_how_long_it_has_to_be():
    (job_id,) = submitted("send_mail", "ada")

    result = run("job", "show", job_id[:7])

    assert result.code == 5
    assert "from 8 digits on" in result.err


def test_status_shows_a_fast_queue_without_an_exponent():
    assert [per_second(count) for count in (0.0584, 9.96, 240.4, 12_000)] == ["0.058", "10", "240", "12,000"]


# --- status ------------------------------------------------------------------------------------------------------------


def test_status_shows_broker_queues_gates_and_dead_letters(file):
    dead("refuse")
    submitted("send_mail", "ada", count=2)
    at_broker(lambda broker: broker.gate("smtp", Hold(600, "ConnectionError")))

    found = shown("status")
    text = run("status").out

    assert found["broker"]["url"] == "sqlite:///jobs.db"
    assert found["broker"]["reachable"] is True
    assert found["broker"]["file_bytes"] >= file.stat().st_size > 0
    assert {queue["queue"]: queue["ready"] for queue in found["queues"]} == {"bulk": 0, "mail": 2}
    assert [(gate["gate"], gate["reason"]) for gate in found["gates_held"]] == [("smtp", "ConnectionError")]
    assert found["dead_letters"] == 1
    for word in (
        "sqlite:///jobs.db",
        str(file),
        "reachable",
        "mail",
        "bulk",
        "smtp",
        "ConnectionError",
        "dead letters  1",
    ):
        assert word in text


def test_status_names_the_tasks_that_no_worker_knows():
    submitted("send_mail", "ada", count=2)
    submitted("refuse", delay=600)
    work(mail_task="another_name", until=lambda counts: sum(queue.scheduled for queue in counts) == 3)

    found, text = shown("status"), run("status").out

    assert found["unknown_tasks"] == [{"queue": "mail", "task": "send_mail", "jobs_seen": 2}]
    assert "no worker that took it knows task 'send_mail', as of 2 jobs in queue 'mail'" in text
    assert "refuse" not in text


def test_status_does_not_wait_for_the_tasks_that_no_worker_knows(monkeypatch):
    submitted("send_mail", "ada", delay=600)
    monkeypatch.setattr("taskflow.cli.status._ASK_S", 0)

    result = run("status")

    assert (result.code, "mail" in result.out) == (0, True)
    assert "which tasks no worker knows is not shown" in result.err


def test_status_of_what_is_no_database_is_exit_3(file):
    file.write_bytes(b"this is no database " * 100)

    result = run("status")

    assert result.code == 3
    assert "not reachable" in result.out
    assert len(result.err.splitlines()) == 1
    assert shown("status")["broker"]["reachable"] is False


@pytest.mark.parametrize(
    "words", [["status"], ["job", "list"], ["queue", "list"], ["dead", "list"], ["dead", "retry", "--all"]]
)
def test_looking_at_a_file_that_does_not_exist_makes_none_and_says_so(words, file):
    result = run(*words)

    assert result.code == 0
    assert str(file) in result.err
    assert not file.exists()


@pytest.mark.parametrize("words", [["status"], ["job", "list"], ["queue", "pause", "mail"], ["dead", "list"]])
def test_operator_commands_refuse_a_broker_that_lives_in_another_process(words, monkeypatch):
    monkeypatch.setenv("TASKFLOW_BROKER__URL", "memory://")

    result = run(*words)

    assert result.code == 2
    assert "memory://" in result.err


def test_operator_commands_tell_of_misspelt_variables(monkeypatch):
    submitted("send_mail", "ada")
    monkeypatch.setenv("TASKFLOW_BROKER_URL", "sqlite:///other.db")

    result = run("job", "list", "--json")

    assert "TASKFLOW_BROKER__URL" in result.err
    assert len(json.loads(result.out)) == 1
