"""The command line on PostgreSQL: a real worker process, its beats, its end."""

import json
import os
import signal

import pytest

from tests.cli.processes import Place, until
from tests.servers.postgres import PostgresServer


@pytest.fixture(scope="module")
def server():
    with PostgresServer() as server:
        yield server


@pytest.fixture
def place(server, tmp_path):
    url = server.database() if not server.is_own else server.url
    settings = {"BROKER__URL": url, "BROKER__NAMESPACE": f"cli_{os.getpid()}_{tmp_path.name}"[:60]}
    with Place(tmp_path, **settings) as place:
        yield place


def test_worker_runs_jobs_and_drains(place):
    for number in range(3):
        assert place.here("submit", "app", "work", f"[{number}]").code == 0
    worker = place.start("worker", "app")
    until(lambda: len(place.ledger("end")) == 3, "all ran")

    worker.tell(signal.SIGTERM)

    assert worker.end() == 0
    told = place.here("status", "--json")
    assert told.code == 0, told.err


def test_job_of_a_killed_worker_runs_again(place):
    place.here("submit", "app", "work", "[1, 60]")
    first = place.start("worker", "app")
    until(lambda: place.ledger("start"), "it runs")
    first.kill()
    second = place.start("worker", "app")
    until(lambda: len(place.ledger("start")) == 2, "it runs again")
    second.kill()


def test_submit_may_wait_for_the_result(place):
    worker = place.start("worker", "app")

    answer = place.run("submit", "app", "work", "[7]", "--wait", "--timeout", "20")

    assert (answer.code, answer.out.strip()) == (0, "7")
    worker.tell(signal.SIGTERM)
    assert worker.end() == 0


def test_status_shows_the_worker_until_it_ends(place):
    place.here("submit", "app", "work", "[1]")
    worker = place.start("worker", "app")
    until(lambda: place.ledger("end") == ["1"], "it works, and listens to signals")

    def shown():
        return [info["pid"] for info in json.loads(place.here("status", "--json").out)["workers"]]

    assert shown() == [worker.pid]
    worker.tell(signal.SIGTERM)
    assert worker.end() == 0
    assert shown() == []
