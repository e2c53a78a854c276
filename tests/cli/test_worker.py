"""A worker process and its signals: what each one does, and how the process ends."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, suppress

import click
import pytest

from taskflow import __version__
from taskflow.cli.signals import heard
from taskflow.cli.worker import worker as worker_command
from tests.cli.processes import Place, until


def answer(worker, path):
    """Status and body of what a worker serves."""
    (port, *_) = re.findall(r'"port": ?(\d+)', worker.err)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as said:
            return said.status, said.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def running(place, seconds, *words):
    """A worker that runs one job of `seconds`."""
    place.submit("work", (1, seconds))
    worker = place.start("worker", "app", *words)
    until(lambda: place.ledger("start"), "it runs")
    return worker


# --- to stop -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["in a thread", "deaf", "in the loop"])
def test_a_handler_that_does_not_end_does_not_keep_the_process(tmp_path, how):
    with Place(tmp_path, WORKER__DRAIN_S=0.1) as place:
        place.submit("stay", (1, how))
        worker = place.start("worker", "app")
        until(lambda: place.ledger("start"), "it runs")
        began = time.monotonic()

        worker.tell(signal.SIGTERM)

        assert worker.end(60) == 4
        assert time.monotonic() - began < 0.1 + 4.5 + 1  # the last is for a busy machine
        assert json.loads(worker.err.splitlines()[-1])["event"] == "worker.left"
        # One that blocks the loop is told of by nobody: its lease ends.
        assert place.states() == {"running" if how == "in the loop" else "ready": 1}


def test_a_pool_of_the_app_s_own_does_not_keep_the_process(tmp_path):
    with Place(tmp_path, WORKER__DRAIN_S=0.1) as place:
        place.submit("stay", (1, "in a pool of its own"))
        worker = place.start("worker", "app")
        until(lambda: place.states() == {"succeeded": 1}, "its job ends")
        began = time.monotonic()

        worker.tell(signal.SIGTERM)

        assert worker.end(60) == 0
        assert time.monotonic() - began < 0.1 + 4.5 + 1  # the last is for a busy machine
        assert json.loads(worker.err.splitlines()[-1])["event"] == "worker.left"


def test_what_the_app_does_at_exit_is_let_end_where_nobody_said_stop(tmp_path):
    with Place(tmp_path) as place:
        (tmp_path / "telling.py").write_text("""
import atexit
from app import *

@atexit.register
def tell():
    time.sleep(2.5)  # longer than the loop has to end
    add_line("ledger", f"told 0 {os.getpid()}")
""")

        result = place.run("worker", "telling", "--until-empty")

        assert result.code == 0
        assert place.ledger("told") == ["0"]


def test_a_command_within_a_process_that_lives_on_does_not_end_it(tmp_path):
    script = """
import time
from click.testing import CliRunner
from taskflow.cli.main import cli
assert CliRunner().invoke(cli, ["worker", "app", "--until-empty"]).exit_code == 0
time.sleep(3)  # as long as a command that ends leaves to what its handlers have left behind, and more
print("lives on")
"""
    with Place(tmp_path) as place:
        done = subprocess.run(
            [sys.executable, "-c", script],
            check=False, cwd=tmp_path, env=place.env, capture_output=True, text=True, timeout=30,
        )  # fmt: skip

    assert (done.returncode, done.stdout) == (0, "lives on\n"), done.stderr


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_stop_lets_what_runs_end(tmp_path, signum):
    with Place(tmp_path) as place:
        worker = running(place, 0.5)

        worker.tell(signum)

        assert worker.end() == 0
        assert place.states() == {"succeeded": 1}


def test_past_the_drain_deadline_it_hands_back_and_says_so(tmp_path):
    with Place(tmp_path, WORKER__DRAIN_S=0.2) as place:
        worker = running(place, 60)

        worker.tell(signal.SIGTERM)

        assert worker.end() == 4
        assert place.states() == {"ready": 1}


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 4)])
def test_a_second_signal_hands_back_at_once(tmp_path, signum, code):
    with Place(tmp_path, WORKER__DRAIN_S=60) as place:
        worker = running(place, 60)

        worker.tell(signum)
        until(lambda: "draining" in worker.err, "it drains")
        worker.tell(signum)

        assert worker.end() == code
        assert place.states() == {"ready": 1}


def test_the_log_says_which_version_works_on_which_broker(tmp_path):
    with Place(tmp_path) as place:
        result = place.run("worker", "app", "--until-empty")

    (line,) = [json.loads(line) for line in result.err.splitlines() if '"worker.started"' in line]
    assert (line["version"], line["broker"]) == (__version__, f"sqlite:///{tmp_path}/jobs.db")


def test_of_two_hangups_of_one_terminal_the_second_is_no_second_word(tmp_path):
    with Place(tmp_path, WORKER__DRAIN_S=60) as place:
        place.submit("wait", (1,))
        worker = place.start("worker", "app")
        until(lambda: place.ledger("start"), "it runs")

        worker.tell(signal.SIGHUP)
        until(lambda: "draining" in worker.err, "it drains")
        worker.tell(signal.SIGHUP)
        place.run("worker", "app", "-q", "mail", "--until-empty")  # time passes
        place.let_go()

        assert worker.end() == 0
        assert place.states() == {"succeeded": 1}


@pytest.mark.parametrize("processes", [1, 2])
def test_under_nohup_a_hangup_stops_nothing(tmp_path, processes):
    with Place(tmp_path) as place:
        place.submit("wait", (1,))
        worker = place.start(
            "worker",
            "app",
            "--processes",
            str(processes),
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
        )
        until(lambda: place.ledger("start"), "it runs")

        worker.tell(signal.SIGHUP)
        place.let_go()
        until(lambda: place.states() == {"succeeded": 1}, "the job ends")
        place.submit("work", (2,))
        until(lambda: place.ledger("end") == ["2"], "it goes on")
        until(lambda: worker.err.count('"worker.started"') == processes, "all have started")
        worker.tell(signal.SIGTERM)

        assert worker.end() == 0
        assert worker.err.count('"worker.draining"') == processes


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_a_shell_ignores_for_its_background_stops_all_the_same(tmp_path, signum):
    with Place(tmp_path) as place:
        place.submit("wait", (1,))
        worker = place.start("worker", "app", preexec_fn=lambda: signal.signal(signum, signal.SIG_IGN))
        until(lambda: place.ledger("start"), "it runs")

        worker.tell(signum)
        until(lambda: "draining" in worker.err, "it drains")
        place.let_go()

        assert worker.end() == 0


OWN_HANDLERS = """
import asyncio, os, signal
from app import *

def deaf(*_):
    add_line("ledger", f"deaf 0 {os.getpid()}")

if os.environ["OWN"] == "default":
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
if os.environ["OWN"] == "handler":
    signal.signal(signal.SIGTERM, deaf)

@flow.lifespan
async def deafening():
    loop = asyncio.get_running_loop()
    if os.environ["OWN"] == "lifespan":
        signal.signal(signal.SIGTERM, deaf)
    if os.environ["OWN"] == "loop":
        loop.add_signal_handler(signal.SIGTERM, deaf)
    yield
    add_line("ledger", f"{'kept' if loop.remove_signal_handler(signal.SIGTERM) else 'gone'} 0 {os.getpid()}")

@flow.lifespan
async def starting():
    if os.environ["OWN"] == "handler":  # of the module: it is overruled before anything starts
        add_line("ledger", f"begun 0 {os.getpid()}")
        if os.path.exists("slow"):
            await asyncio.sleep(60)
    yield
"""


@pytest.mark.parametrize("own", ["default", "handler", "lifespan", "loop"])
def test_what_the_app_does_with_signals_keeps_no_worker_from_its_drain(tmp_path, monkeypatch, own):
    monkeypatch.setenv("OWN", own)
    with Place(tmp_path) as place:
        (tmp_path / "own.py").write_text(OWN_HANDLERS)
        place.submit("wait", (1,))
        worker = place.start("worker", "own")
        until(lambda: place.ledger("start"), "it runs")

        worker.tell(signal.SIGTERM)
        until(lambda: "draining" in worker.err, "it drains")
        place.let_go()

        assert worker.end() == 0
        assert place.states() == {"succeeded": 1}
        assert place.ledger("gone") == ["0"]
        assert not place.ledger("deaf")


@pytest.mark.parametrize("command", ["worker", "run"])
def test_what_an_app_does_with_signals_at_its_import_keeps_nobody_from_ending_its_start(tmp_path, monkeypatch, command):
    monkeypatch.setenv("OWN", "handler")
    with Place(tmp_path) as place:
        (tmp_path / "own.py").write_text(OWN_HANDLERS)
        (tmp_path / "slow").touch()
        words = ("work", "--jsonl", place.file('{"number": 1}')) if command == "run" else ()
        worker = place.start(command, "own", *words)
        until(lambda: place.ledger("begun"), "it starts")

        worker.tell(signal.SIGTERM)

        assert worker.end(10) == 0
        assert '"worker.unstarted"' in worker.err


# --- to stop before it has started -------------------------------------------------------------------------------------

STARTING = """
import asyncio, os, time
from app import *

def mark(what):
    add_line("ledger", f"{what} 0 {os.getpid()}")

if os.environ["WHERE"] == "import":
    mark("begun")
    time.sleep(60)

@flow.lifespan
async def opened():
    mark("opened")
    yield
    mark("closed")

@flow.lifespan
async def connecting():
    mark("begun")
    await asyncio.sleep(60)
    yield
"""


@pytest.mark.parametrize("where", ["import", "lifespan"])
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 0), (signal.SIGHUP, 0), (signal.SIGINT, 130)], ids=str)
@pytest.mark.parametrize("command", ["worker", "run"])
def test_a_signal_ends_a_start_in_order(tmp_path, monkeypatch, command, signum, code, where):
    monkeypatch.setenv("WHERE", where)
    with Place(tmp_path) as place:
        (tmp_path / "starting.py").write_text(STARTING)
        words = ("work", "--jsonl", place.file('{"number": 1}')) if command == "run" else ()
        worker = place.start(command, "starting", *words)
        until(lambda: place.ledger("begun"), "it starts")

        worker.tell(signum)

        assert worker.end(10) == code
        assert len(place.ledger("opened")) == len(place.ledger("closed")) == (where == "lifespan")
        assert all(json.loads(line) for line in worker.err.splitlines())


def test_a_signal_amid_the_installing_of_handlers_ends_the_command(monkeypatch):
    install, default = signal.signal, signal.getsignal(signal.SIGTERM)

    def interrupted(signum, handler):
        before = install(signum, handler)
        if signum == signal.SIGTERM and handler is not default:
            signal.raise_signal(signum)
        return before

    monkeypatch.setattr(signal, "signal", interrupted)

    with pytest.raises(click.exceptions.Exit) as ended, heard(click.Context(worker_command)):
        raise AssertionError("it went on")

    assert ended.value.exit_code == 0
    assert signal.getsignal(signal.SIGTERM) is default


@pytest.mark.parametrize("scheme", ["postgresql", "redis"])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_signal_ends_a_start_that_hangs_at_a_server_that_says_nothing(tmp_path, scheme, processes):
    with socket.create_server(("127.0.0.1", 0)) as mute, ExitStack() as lines:
        url = f"{scheme}://127.0.0.1:{mute.getsockname()[1]}/0"
        with Place(tmp_path, BROKER__URL=url) as place:
            worker = place.start("worker", "app", "--processes", str(processes))
            for _ in range(processes):
                lines.enter_context(mute.accept()[0])
            began = time.monotonic()

            worker.tell(signal.SIGTERM)

            assert worker.end(15) == 0
            assert time.monotonic() - began < 6
            assert worker.err.count('"worker.unstarted"') == processes
            assert all(json.loads(line) for line in worker.err.splitlines())


# --- to pause, to tell -------------------------------------------------------------------------------------------------


def test_sigtstp_stops_claiming_and_the_probes_say_so(tmp_path):
    with Place(tmp_path) as place:
        worker = place.start("worker", "app")
        until(lambda: re.search(r'"port": ?\d+', worker.err) and answer(worker, "/readyz")[0] == 200, "it is ready")

        worker.tell(signal.SIGTSTP)
        until(lambda: '"worker.paused"' in worker.err, "it heard")
        ready, why = answer(worker, "/readyz")
        live, _ = answer(worker, "/livez")
        place.submit("work", (1,))
        assert place.run("worker", "app", "-q", "mail", "--until-empty").code == 0  # time passes; nobody takes the job
        still = place.states()
        worker.tell(signal.SIGTERM)

        assert worker.end() == 0
        assert (ready, live) == (503, 200)
        assert "claiming is paused" in why
        assert still == {"ready": 1}


def test_a_person_at_a_terminal_is_told_what_the_signals_did(tmp_path):
    shown, terminal = os.openpty()
    with Place(tmp_path) as place:
        place.submit("wait", (1,))
        worker = place.start("worker", "app", stderr=terminal)
        os.close(terminal)
        until(lambda: place.ledger("start"), "the job runs")

        worker.tell(signal.SIGTSTP)
        worker.tell(signal.SIGTERM)
        place.let_go()

        assert worker.end() == 0
    said = ""
    with suppress(OSError):  # the other end is closed, and all is read
        while part := os.read(shown, 4_096):
            said += part.decode()
    os.close(shown)
    assert "taskflow: paused: what runs goes on, nothing more is claimed; SIGTERM ends it" in said
    assert "taskflow: draining; a second signal cancels what runs and hands it back" in said


def test_sigusr1_shows_threads_and_tasks_and_the_worker_goes_on(tmp_path):
    with Place(tmp_path) as place:
        worker = running(place, 0.5, "--until-empty")

        worker.tell(signal.SIGUSR1)
        until(lambda: "Stack for <Task" in worker.err, "it shows tasks")

        assert worker.end() == 0
        assert "Current thread" in worker.err
        assert "taskflow claim" in worker.err
        assert place.states() == {"succeeded": 1}


# --- until empty -------------------------------------------------------------------------------------------------------


def test_until_empty_ends_when_all_is_done_retries_too(tmp_path):
    with Place(tmp_path) as place:
        place.submit("flaky", (1,), (2,))

        result = place.run("worker", "app", "--until-empty")

        assert result.code == 0
        assert sorted(place.ledger("attempt-3")) == ["1", "2"]
        assert place.states() == {"succeeded": 2}


def test_a_handler_that_raises_keyboard_interrupt_has_failed_and_its_worker_goes_on(tmp_path):
    with Place(tmp_path) as place:
        place.submit("interrupt", (1,))
        place.submit("work", (2,))

        result = place.run("worker", "app", "--until-empty", "-c", "1")

        assert result.code == 0
        assert place.states() == {"dead": 1, "succeeded": 1}


def test_until_empty_waits_out_an_outage_of_the_broker(tmp_path):
    with Place(tmp_path, FRAGILE=1) as place:
        outage = tmp_path / "outage"
        outage.write_text("counts")
        worker = place.start("worker", "app", "--until-empty")
        until(lambda: '"counts"' in worker.err, "it meets the outage")
        is_still_there = worker.code is None

        outage.unlink()

        assert (is_still_there, worker.end()) == (True, 0)


def test_until_empty_stops_within_an_outage_when_it_is_told_to(tmp_path):
    with Place(tmp_path, FRAGILE=1) as place:
        (tmp_path / "outage").write_text("counts")
        worker = place.start("worker", "app", "--until-empty")
        until(lambda: '"counts"' in worker.err, "it meets the outage")

        worker.tell(signal.SIGTERM)

        assert worker.end() == 0


def test_until_empty_keeps_no_task_for_each_look(tmp_path):
    looks = tmp_path / "looks"
    with Place(tmp_path, FRAGILE=1) as place:
        place.submit("work", (1, 60))
        worker = place.start("worker", "app", "--until-empty")
        until(lambda: looks.exists() and len(looks.read_text().splitlines()) > 10, "it has looked ten times")

        worker.tell(signal.SIGUSR1)
        until(lambda: "taskflow tick" in worker.err, "it shows tasks")  # the last name in the alphabet but `settle`'s

        until(lambda: worker.err.count("Stack for <Task") >= 5, "it shows them all")
        assert worker.err.count("coro=<Event.wait()") <= 3


# --- queues ------------------------------------------------------------------------------------------------------------


def test_a_worker_of_one_queue_leaves_the_others_alone(tmp_path):
    with Place(tmp_path) as place:
        place.submit("send_mail", ("ada",))
        place.submit("work", (1,))

        result = place.run("worker", "app", "-q", "mail", "--until-empty")

        assert result.code == 0
        assert place.ledger("end") == ["ada"]


def test_queues_may_have_weights(tmp_path):
    with Place(tmp_path) as place:
        place.submit("send_mail", ("ada",))
        place.submit("work", (1,))

        result = place.run("worker", "app", "-q", "mail:5, default:1", "-q", "bulk", "--until-empty")

        assert result.code == 0
        assert sorted(place.ledger("end")) == ["1", "ada"]


@pytest.mark.parametrize("words", [["-q", "mail:many"], ["-q", "mail:", "--processes", "2"]])
def test_a_weight_that_is_none_is_exit_2(tmp_path, words):
    with Place(tmp_path) as place:
        result = place.run("worker", "app", *words)

    assert result.code == 2
    assert result.err.count("a weight is a whole number from 1 to 100") == 1
