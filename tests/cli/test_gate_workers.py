"""What an operator says of a gate, obeyed by worker processes that run already, and shown by their metrics."""

import re
import urllib.request

import pytest

from tests.cli.processes import Place, until

SAMPLED_S = 15.0  # workers look at the gates every 5 s


@pytest.fixture
def place(tmp_path):
    """A folder with two workers that are up."""
    with Place(tmp_path) as place:
        for worker in [place.start("worker", "app"), place.start("worker", "app")]:
            until(lambda worker=worker: '"worker.started"' in worker.err, "the worker is up")
        yield place


def metric(place, name):
    """What each worker shows."""
    found = []
    for worker in place.processes:
        (port, *_) = re.findall(r'"port": ?(\d+)', worker.err)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as said:
            text = said.read().decode()
        (value,) = re.findall(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        found.append(float(value))
    return found


def gate(place, *words):
    result = place.here("gate", *words)
    assert result.code == 0, result.err


def test_a_held_gate_is_obeyed_by_workers_that_run_and_opens_again(place):
    gate(place, "hold", "smtp", "--reason", "they move")
    place.submit("gated", (1,))
    place.submit("work", (2,))

    until(lambda: place.ledger("end") == ["2"], "what needs no gate has run")
    (waiting,) = [job for job in place.jobs() if job.task == "gated"]
    why = place.here("job", "show", waiting.id).out
    gate(place, "release", "smtp")

    assert (waiting.state, waiting.attempts, waiting.snoozes) == ("ready", 0, 0)
    assert "gate 'smtp' is held by an operator until released: they move" in why
    until(lambda: place.ledger("end") == ["2", "1"], "the gate's job runs")


def test_a_limit_is_obeyed_by_workers_that_run(place):
    gate(place, "limit", "smtp", "1")
    place.submit("gated", *((number, 0.05) for number in range(6)))

    until(lambda: len(place.ledger("end")) == 6, "all have run")

    events = [line.split()[0] for line in (place.folder / "ledger").read_text().splitlines()]
    assert events == ["start", "end"] * 6, "one at a time, over both workers"


def test_a_limit_of_none_is_taken_back(place):
    gate(place, "limit", "smtp", "0")
    place.submit("gated", (1,))
    place.submit("work", (2,))
    until(lambda: place.ledger("end") == ["2"], "what needs no gate has run")

    gate(place, "limit", "smtp", "--reset")

    until(lambda: place.ledger("end") == ["2", "1"], "the gate's job runs")


def test_a_rate_is_obeyed_by_workers_that_run(place):
    gate(place, "rate", "smtp", "1/h", "--burst", "2")
    place.submit("gated", *((number,) for number in range(5)))
    until(lambda: len(place.ledger("end")) == 2, "the burst has run")
    place.submit("work", (9,))
    until(lambda: place.ledger("end")[-1] == "9", "time passes")

    assert len(place.ledger("end")) == 3

    gate(place, "rate", "smtp", "--reset")

    until(lambda: len(place.ledger("end")) == 6, "all have run")


def test_metrics_of_every_worker_show_what_the_operator_said(place):
    in_use, limit = 'taskflow_limiter_in_use{limiter="smtp"}', 'taskflow_limiter_limit{limiter="smtp"}'
    place.submit("gated", (1, 30.0), (2, 30.0), (3, 30.0))
    until(lambda: metric(place, in_use) == [2.0, 2.0], "two run, as code allows", SAMPLED_S)
    before = metric(place, limit)

    gate(place, "hold", "smtp")
    gate(place, "limit", "smtp", "3")

    until(lambda: metric(place, "taskflow_gates_held") == [1.0, 1.0], "the hold shows", SAMPLED_S)
    until(lambda: metric(place, limit) == [3.0, 3.0], "the limit shows", SAMPLED_S)
    assert before == [2.0, 2.0]
    assert metric(place, in_use) == [2.0, 2.0]

    gate(place, "release", "smtp")
    gate(place, "limit", "smtp", "--reset")

    until(lambda: metric(place, "taskflow_gates_held") == [0.0, 0.0], "the release shows", SAMPLED_S)
    until(lambda: metric(place, limit) == [2.0, 2.0], "code counts again", SAMPLED_S)
