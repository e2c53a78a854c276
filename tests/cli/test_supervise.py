"""Several worker processes under one parent: they work, come back, and end with it, whatever it is told or dies of."""

import json
import os
import signal
import time

import pytest

from tests.cli.processes import Place, is_alive, until


def fleet(place, *words):
    """A parent whose two children each run one of two jobs, until `place.let_go()`.

    Jobs that end by themselves might both be run by the child that starts first, on a busy machine.
    """
    place.submit("wait", (1,), (2,))
    parent = place.start("worker", "app", "--processes", "2", "-c", "1", *words)
    until(lambda: len(place.ledger("start")) == 2, "two jobs run at once")
    assert len(place.pids()) == 2
    assert place.pids() == parent.children()
    return parent


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_jobs_run_in_two_processes_and_a_signal_lets_them_end(tmp_path, signum):
    with Place(tmp_path) as place:
        parent = fleet(place)
        children = parent.children()

        parent.tell(signum)
        until(lambda: parent.err.count('"worker.draining"') == 2, "both drain")
        place.let_go()

        assert parent.end() == 0
        assert not any(map(is_alive, children))
        assert place.states() == {"succeeded": 2}


def test_a_child_that_is_killed_is_started_again_and_its_job_runs(tmp_path):
    with Place(tmp_path) as place:
        parent = fleet(place)
        victim = min(place.pids())

        os.kill(victim, signal.SIGKILL)
        until(lambda: len(parent.children() - {victim}) == 2, "there are two again")
        place.let_go()
        until(lambda: place.states() == {"succeeded": 2}, "all are done")
        parent.tell(signal.SIGTERM)

        assert parent.end() == 0
        (line,) = [line for line in parent.err.splitlines() if '"worker.process_ended"' in line]
        told = json.loads(line)
        assert (told["level"], told["pid"], told["exit_code"], told["retry_in_s"]) == ("WARNING", victim, -9, 0.5)


@pytest.mark.parametrize("how", ["in C", "with the interpreter"])
def test_a_child_whose_main_thread_hears_no_signal_does_not_keep_the_fleet(tmp_path, how):
    with Place(tmp_path, WORKER__DRAIN_S=0.1) as place:
        place.submit("stay", (1, how))
        parent = place.start("worker", "app", "--processes", "2", "-c", "1")
        until(lambda: place.ledger("start"), "it runs")
        children = parent.children()
        began = time.monotonic()

        parent.tell(signal.SIGTERM)

        assert parent.end() == 1
        assert time.monotonic() - began < 0.1 + 4.5 + 1  # the last is for a busy machine
        assert not any(map(is_alive, children))


def test_ctrl_c_counts_once(tmp_path):
    with Place(tmp_path, WORKER__DRAIN_S=60) as place:
        parent = fleet(place)

        groups = {os.getpgid(child) for child in parent.children()}

        parent.press_ctrl_c()
        until(lambda: parent.err.count('"worker.draining"') == 2, "both drain")
        place.let_go()

        assert parent.end() == 0
        assert parent.pid not in groups  # the terminal reaches the parent only, which passes it on
        assert place.states() == {"succeeded": 2}


def test_ctrl_c_twice_hands_back_at_once(tmp_path):
    with Place(tmp_path, WORKER__DRAIN_S=60) as place:
        parent = fleet(place)

        parent.press_ctrl_c()
        until(lambda: parent.err.count('"worker.draining"') == 2, "both drain")
        parent.press_ctrl_c()

        assert parent.end() == 130
        assert place.states() == {"ready": 2}


@pytest.mark.parametrize("children", [1, 2])
def test_sigterm_while_children_start_ends_all_with_0(tmp_path, children):
    with Place(tmp_path) as place:
        parent = place.start("worker", "app", "--processes", "2")
        until(lambda: len(parent.children()) >= children, "it starts children")
        begun = parent.children()

        parent.tell(signal.SIGTERM)

        assert parent.end() == 0
        assert not any(map(is_alive, begun | parent.children()))


def test_children_do_not_outlive_a_parent_that_is_killed(tmp_path):
    with Place(tmp_path) as place:
        parent = fleet(place)
        children = parent.children()

        parent.tell(signal.SIGKILL)
        parent.end()
        place.let_go()

        until(lambda: not any(map(is_alive, children)), "they end")
        assert place.states() == {"succeeded": 2}


def test_a_paused_fleet_claims_nothing_even_when_a_child_dies(tmp_path):
    with Place(tmp_path) as place:
        parent = fleet(place)

        parent.tell(signal.SIGTSTP)
        until(lambda: parent.err.count('"worker.paused"') == 2, "both heard")
        victim = min(place.pids())
        os.kill(victim, signal.SIGKILL)
        until(lambda: len(parent.children()) == 1, "it is gone")
        until(
            lambda: place.states()["ready"] == 1, "its job waits"
        )  # reclaimed by the other; restarts come after 0.5 s
        parent.tell(signal.SIGINT)
        until(lambda: '"worker.draining"' in parent.err, "it drains")
        parent.tell(signal.SIGINT)

        assert parent.end() == 130
        assert len(place.ledger("start")) == 2


def test_each_line_that_a_machine_reads_is_json_while_a_fleet_is_paused_and_drains(tmp_path):
    with Place(tmp_path) as place:
        parent = fleet(place)

        parent.tell(signal.SIGTSTP)
        until(lambda: parent.err.count('"worker.paused"') == 2, "both heard")
        parent.tell(signal.SIGTERM)
        until(lambda: parent.err.count('"worker.draining"') == 2, "both drain")
        place.let_go()

        assert parent.end() == 0
        events = [json.loads(line)["event"] for line in parent.err.splitlines()]
        assert events.count("worker.stopped") == 2


def test_until_empty_ends_when_all_is_done(tmp_path):
    with Place(tmp_path) as place:
        place.submit("work", *((number,) for number in range(20)))

        result = place.run("worker", "app", "--processes", "2", "--until-empty")

        assert result.code == 0
        assert place.states() == {"succeeded": 20}


def test_a_broker_that_cannot_be_reached_at_start_is_exit_3(tmp_path):
    with Place(tmp_path, BROKER__URL="sqlite:///no/such/folder/jobs.db") as place:
        result = place.run("worker", "app", "--processes", "2")

    assert result.code == 3
    assert "its folder must exist" in result.err
    assert "worker.process_ended" not in result.err  # none is started again
