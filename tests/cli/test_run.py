"""A file of jobs, submitted and worked in one process: it always ends, tells the truth, and goes on when started again."""

import json
import os
import pty
import signal
from collections import Counter

import pytest

from tests.cli.processes import Place, until


def work(count, seconds=0.0):
    return [json.dumps({"number": number, "seconds": seconds}) for number in range(count)]


# --- the whole of it ---------------------------------------------------------------------------------------------------


def test_a_file_runs_once_and_the_same_file_again_runs_nothing_and_tells_the_same(tmp_path):
    with Place(tmp_path) as place:
        file = place.file(*(json.dumps([number]) for number in range(5)))
        first, second = (place.run("run", "app", "refuse", "--jsonl", file, "--json") for _ in range(2))

    told, again = json.loads(first.out), json.loads(second.out)
    assert (first.code, second.code) == (1, 1)
    assert told["outcomes"] == {"succeeded": 2, "dead": 3}
    assert (told["lines"], told["left"]) == (5, 0)
    assert [dead["line"] for dead in told["failed"]] == [1, 3, 5]
    assert {**told, "took_s": 0} == {**again, "took_s": 0}
    assert Counter(place.ledger("start")) == Counter("01234")


def test_a_run_without_failures_is_exit_0_and_a_line_for_people(tmp_path):
    with Place(tmp_path, LOG__LEVEL="ERROR") as place:
        result = place.run("run", "app", "work", "--jsonl", place.file(*work(3)))

    assert (result.code, result.err) == (0, "")  # no bar either: that is for terminals
    assert result.out.startswith("3 lines in ")
    assert result.out.endswith(" s: 3 succeeded\n")


def test_an_empty_file_is_done_at_once(tmp_path):
    with Place(tmp_path) as place:
        result = place.run("run", "app", "work", "--jsonl", place.file())

    assert (result.code, result.out.split(" ")[:2]) == (0, ["0", "lines"])


def test_blank_lines_count_in_the_numbers_of_lines(tmp_path):
    with Place(tmp_path) as place:
        file = place.file("", '{"number": 1}', "", "  ", '{"number": 2}')
        result = place.run("run", "app", "refuse", "--jsonl", file)

    assert result.code == 1
    assert result.out.startswith("2 lines")
    assert "\n  line 5, job " in result.out
    assert result.out.endswith(": ValueError: 2 is even\n")


@pytest.mark.parametrize("bad", ["{no json", '{"numbr": 3}', "7"])
def test_a_bad_line_is_named_and_nothing_is_submitted(tmp_path, bad):
    with Place(tmp_path) as place:
        result = place.here("run", "app", "work", "--jsonl", place.file('{"number": 1}', "", bad))

        assert (result.code, result.out) == (2, "")
        assert "jobs.jsonl, line 3: " in result.err
        assert "Traceback" not in result.err
        assert not (tmp_path / "jobs.db").exists() or place.jobs() == []


@pytest.mark.parametrize("path", ["-", "/dev/stdin"])
def test_what_can_be_read_only_once_is_a_file_too(tmp_path, path):
    reads, writes = os.pipe()
    with Place(tmp_path) as place:
        os.write(writes, b"[1]\n[2]\n")
        os.close(writes)
        result = place.run("run", "app", "work", "--jsonl", path, stdin=reads)
        os.close(reads)

    assert result.code == 0, result.err
    assert Counter(place.ledger("end")) == Counter("12")


# --- when things are not as they should be -----------------------------------------------------------------------------


def test_a_queue_that_is_too_small_for_the_file_is_filled_as_it_drains(tmp_path):
    with Place(tmp_path, QUEUE__MAX_SIZE=3, QUEUE__ON_FULL="reject") as place:
        result = place.run("run", "app", "work", "--jsonl", place.file(*work(20, 0.01)), "-c", "2", "--json")

    assert result.code == 0, result.err
    assert json.loads(result.out)["outcomes"] == {"succeeded": 20}
    assert Counter(place.ledger("end")) == Counter(map(str, range(20)))


@pytest.mark.parametrize("verb", ["submit", "finals", "finish_batch"])
def test_an_outage_of_the_broker_is_waited_out(tmp_path, verb):
    with Place(tmp_path, FRAGILE=1) as place:
        outage = tmp_path / "outage"
        outage.write_text(verb)
        running = place.start("run", "app", "work", "--jsonl", place.file(*work(3)))
        until(lambda: f'"{verb}"' in running.err, f"it meets the outage of {verb}")
        is_still_there = running.code is None

        outage.unlink()

        assert (is_still_there, running.end()) == (True, 0)
        assert "3 succeeded" in running.out
        assert "Traceback" not in running.err


def test_what_the_broker_refuses_ends_it_with_the_code_of_the_error(tmp_path):
    with Place(tmp_path, FRAGILE=1) as place:
        (tmp_path / "broken").write_text("submit")
        result = place.run("run", "app", "work", "--jsonl", place.file(*work(3)))

    assert result.code == 3
    assert result.err.splitlines()[-1] == "taskflow: submit refused"
    assert "Traceback" not in result.err


def test_killed_and_started_again_it_goes_on_and_submits_nothing_twice(tmp_path):
    count = 40
    with Place(tmp_path) as place:
        file = place.file(*work(count, 0.05))
        killed = place.start("run", "app", "work", "--jsonl", file, "-c", "2")
        until(lambda: len(place.ledger("end")) > 5, "some are done")
        killed.tell(signal.SIGKILL)
        killed.end()
        done = set(place.ledger("end"))

        result = place.run("run", "app", "work", "--jsonl", file, "-c", "10", "--json")

        ended = Counter(place.ledger("end"))
        assert len(done) < count
        assert result.code == 0
        assert json.loads(result.out)["outcomes"] == {"succeeded": count}
        assert len(place.jobs()) == count
        assert set(ended) == set(map(str, range(count)))
        assert sum(ended.values()) <= count + 4  # those in flight, or not yet told, at the kill: two slots


# --- stopped -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_json", [False, True])
def test_sigterm_hands_back_tells_what_is_left_and_how_to_go_on(tmp_path, as_json):
    with Place(tmp_path, WORKER__DRAIN_S=0.2) as place:
        running = place.start("run", "app", "work", "--jsonl", place.file(*work(3, 60)), *["--json"] * as_json)
        until(lambda: len(place.ledger("start")) == 3, "all run")

        running.tell(signal.SIGTERM)

        assert running.end() == 4
        assert "the same command goes on where this one stopped" in running.err
        assert (json.loads(running.out)["left"] == 3) if as_json else ("3 left" in running.out)
        assert place.states() == {"ready": 3}


def test_a_second_ctrl_c_cancels_what_runs(tmp_path):
    with Place(tmp_path, WORKER__DRAIN_S=60) as place:
        running = place.start("run", "app", "work", "--jsonl", place.file(*work(1, 60)))
        until(lambda: place.ledger("start"), "it runs")

        running.press_ctrl_c()
        until(lambda: "draining" in running.err, "it drains")
        running.press_ctrl_c()

        assert running.end() == 130
        assert place.states() == {"ready": 1}


def test_with_memory_it_does_not_promise_to_go_on(tmp_path):
    with Place(tmp_path, BROKER__URL="memory://", WORKER__DRAIN_S=0.2) as place:
        running = place.start("run", "app", "work", "--jsonl", place.file(*work(1, 60)))
        until(lambda: place.ledger("start"), "it runs")

        running.tell(signal.SIGTERM)

        assert running.end() == 4
        assert "memory:// dies with its process" in running.err
        assert "goes on" not in running.err


# --- output ------------------------------------------------------------------------------------------------------------


def test_a_terminal_sees_a_bar(tmp_path):
    ours, theirs = pty.openpty()
    with Place(tmp_path, LOG__LEVEL="ERROR") as place:
        seen = place.start("run", "app", "work", "--jsonl", place.file(*work(3)), stderr=theirs)
        os.close(theirs)
        seen.end()
        shown = os.read(ours, 65_536).decode()
        os.close(ours)

    assert "3/3" in shown


@pytest.mark.parametrize(("task", "code"), [("work", 0), ("refuse", 1)])
def test_a_reader_that_goes_away_changes_nothing_of_how_it_ended(tmp_path, task, code):
    reads, writes = os.pipe()
    os.close(reads)
    with Place(tmp_path, LOG__LEVEL="CRITICAL") as place:
        result = place.run("run", "app", task, "--jsonl", place.file("[2]"), stdout=writes)
        os.close(writes)

    assert (result.code, result.err) == (code, "")
    assert place.ledger("start") == ["2"]


def test_a_word_too_few_is_exit_2(tmp_path):
    with Place(tmp_path) as place:
        result = place.here("run", "app", "--jsonl", place.file())

    assert result.code == 2
    assert "takes APP and TASK" in result.err
