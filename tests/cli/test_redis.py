"""Commands on a Redis or Valkey server: submit, worker and status meet there, and an outage is waited out."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING

import pytest

from tests.cli.processes import Place, until
from tests.servers.valkey import ValkeyServer, forget_namespace, new_namespace, valkey_url

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    namespace = new_namespace()
    with Place(tmp_path, BROKER__URL=valkey_url(), BROKER__NAMESPACE=namespace) as place:
        yield place
    forget_namespace(namespace)


def test_jobs_submitted_by_one_process_are_run_by_another_and_seen_by_a_third(place: Place) -> None:
    worker = place.start("worker", "app")
    done = place.run("submit", "app", "work", "[7]", "--wait")
    place.here("submit", "app", "gated", "[8]")
    until(lambda: place.ledger("end") == ["7", "8"], "both ran")
    worker.tell(signal.SIGTERM)

    assert (done.code, done.out.strip()) == (0, "7")
    assert worker.end() == 0
    (queue,) = json.loads(place.here("queue", "list", "--json").out)
    assert (queue["queue"], queue["ready"], queue["running"]) == ("default", 0, 0)
    assert place.here("status").code == 0
    assert ("broker.doubted" in worker.err) == ("appendonly" in place.here("status").err)
    assert ("broker.doubted" in worker.err) == ("appendonly" in place.here("check", "app").out)


def test_status_shows_the_worker_until_it_ends(place: Place) -> None:
    place.here("submit", "app", "work", "[1]")
    worker = place.start("worker", "app")
    until(lambda: place.ledger("end") == ["1"], "it works, and listens to signals")

    def shown() -> list[int]:
        return [info["pid"] for info in json.loads(place.here("status", "--json").out)["workers"]]

    assert shown() == [worker.pid]
    worker.tell(signal.SIGTERM)
    assert worker.end() == 0
    assert shown() == []


def test_worker_waits_a_restart_of_its_server_out_and_goes_on(tmp_path: Path) -> None:
    with ValkeyServer(aof=True) as server, Place(tmp_path, BROKER__URL=server.url) as place:
        worker = place.start("worker", "app")
        place.here("submit", "app", "work", "[1]")
        until(lambda: place.ledger("end") == ["1"], "the first ran")

        server.stop()
        until(lambda: "broker.failed" in worker.err, "it met the outage")
        server.start()
        place.here("submit", "app", "work", "[2]")

        until(lambda: place.ledger("end") == ["1", "2"], "it goes on")
        assert worker.code is None


def test_worker_whose_password_is_changed_keeps_what_ended_until_it_is_let_in_again(tmp_path: Path) -> None:
    with (
        ValkeyServer(aof=True, password="old") as server,
        Place(tmp_path, BROKER__URL=server.url, WORKER__LEASE_S=30) as place,
    ):
        worker = place.start("worker", "app")
        job = place.here("submit", "app", "work", '{"number": 1, "seconds": 1.0}').out.strip()
        until(lambda: place.ledger("start") == ["1"], "it runs")

        server.ask("CONFIG", "SET", "requirepass", "new")
        server.password = "new"
        server.ask("CLIENT", "KILL", "TYPE", "normal")
        until(lambda: place.ledger("end") == ["1"], "it ended")
        until(lambda: '"operation":"settle"' in worker.err, "nobody could be told")
        server.ask("CONFIG", "SET", "requirepass", "old")

        until(lambda: '"state": "succeeded"' in place.here("job", "show", job, "--json").out, "it was told")
        assert place.ledger("start") == ["1"]
        assert '"kind":"config"' in worker.err
        assert "refuses user or password, see those of" in worker.err
        assert worker.code is None


def test_server_that_is_not_there_ends_a_command_with_3(tmp_path: Path) -> None:
    with Place(tmp_path, BROKER__URL="redis://:secret-word@127.0.0.1:1/0") as place:
        refused = place.here("status")

    assert refused.code == 3
    assert "cannot be reached" in refused.err
    assert "secret-word" not in refused.err
