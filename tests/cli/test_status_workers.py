"""Worker processes as `taskflow status` and `job show` see them: who is there, who fell silent, whom a queue lacks."""

import json
import signal
import socket

from taskflow import __version__
from tests.cli.processes import Place, until

LONG = {"WORKER__LEASE_S": 60}  # nobody falls silent, however busy the machine is
SOME = {"WORKER__LEASE_S": 6}  # the same, for those who wait for a beat


def workers(place):
    """By pid, what `status --json` says of them."""
    return {worker["pid"]: worker for worker in status(place)["workers"]}


def status(place):
    return json.loads(place.here("status", "--json").out)


def text(place):
    return place.here("status").out


def up(place, *words):
    """A worker that has started."""
    worker = place.start("worker", "app", *words)
    until(lambda: '"worker.started"' in worker.err, "the worker is up")
    return worker


def listening(place):
    """A worker that has run a job: by then it listens to signals."""
    place.submit("work", (0,))
    worker = place.start("worker", "app")
    until(lambda: place.ledger("end") == ["0"], "it works")
    return worker


def test_status_shows_the_workers_that_are_up_though_they_are_idle(tmp_path):
    with Place(tmp_path, **LONG) as place:
        mail, other = up(place, "-q", "mail", "-c", "7"), up(place, "-q", "default")
        shown, told = workers(place), text(place)

    assert set(shown) == {mail.pid, other.pid}
    one = shown[mail.pid]
    assert (one["host"], one["version"], one["queues"]) == (socket.gethostname(), __version__, {"mail": 1})
    assert (one["concurrency"], one["busy"], one["state"]) == (7, 0, "claiming")
    assert (one["silent"], one["lease_s"]) == (False, 60.0)
    assert 0 <= one["up_s"] < 60
    assert "workers       2 live\n" in told
    (line,) = [line for line in told.splitlines() if one["worker"] in line]
    assert line.split()[1:5] == ["claiming", "0", "of", "7"]
    assert "mail" in line


def test_an_idle_worker_is_still_there_after_many_leases(tmp_path):
    with Place(tmp_path, WORKER__LEASE_S=0.2) as place:
        worker = up(place)

        def is_there():
            info = workers(place)[worker.pid]
            return info["up_s"] > 3 and not info["silent"]  # ten leases are over: it would be forgotten

        until(is_there, "it says so still")


def test_each_process_of_a_worker_command_is_a_worker(tmp_path):
    with Place(tmp_path, WORKER__QUEUES="mail:5,default", **LONG) as place:
        parent = place.start("worker", "app", "--processes", "2")
        until(lambda: len(workers(place)) == 2, "both are up")

        assert set(workers(place)) == parent.children()
        assert [info["queues"] for info in workers(place).values()] == [{"mail": 5, "default": 1}] * 2
        assert text(place).count("mail:5,default") == 2


def test_status_tells_how_busy_a_worker_is(tmp_path):
    with Place(tmp_path, **SOME) as place:
        worker = up(place, "-c", "2")
        place.submit("wait", *((number,) for number in range(3)))

        until(lambda: workers(place)[worker.pid]["busy"] == 2, "it says so")
        (ready,) = [job for job in place.jobs() if job.state == "ready"]

        assert "2 of 2" in text(place)
        assert "all slots were taken at the last beat: 2 of 2 in 1 worker" in place.here("job", "show", ready.id).out


def test_a_worker_that_ends_in_order_is_gone_at_once(tmp_path):
    with Place(tmp_path, **LONG) as place:
        worker = listening(place)
        assert set(workers(place)) == {worker.pid}

        worker.tell(signal.SIGTERM)
        assert worker.end() == 0

        assert workers(place) == {}
        assert "workers       no worker is running\n" in text(place)


def test_a_killed_worker_is_silent_and_then_forgotten(tmp_path):
    with Place(tmp_path) as place:
        worker = up(place)
        place.submit("wait", (1,))
        until(lambda: place.ledger("start"), "it runs")
        (job,) = place.jobs()

        worker.kill()
        until(lambda: workers(place)[worker.pid]["silent"], "it is silent")
        told, why = text(place), place.here("job", "show", job.id).out

        assert "workers       no worker is running, 1 silent\n" in told
        assert "silent for " in told
        assert "that worker is silent for " in why
        until(lambda: workers(place) == {}, "it is forgotten")


def test_a_paused_worker_is_named_where_jobs_wait_for_it(tmp_path):
    with Place(tmp_path, **SOME) as place:
        worker = listening(place)
        worker.tell(signal.SIGTSTP)
        until(lambda: workers(place)[worker.pid]["state"] == "paused", "it says so")
        place.submit("work", (1,))

        assert "no worker claims from queue 'default': 1 worker of it is paused; 1 ready job waits\n" in text(place)


def test_status_names_the_queues_whose_jobs_wait_while_nobody_serves_them(tmp_path):
    with Place(tmp_path, **LONG) as place:
        place.submit("send_mail", ("ada",), ("bob",))
        nobody = text(place)
        up(place, "-q", "default")
        others, found = text(place), status(place)
        (job, _) = place.jobs()
        why = place.here("job", "show", job.id).out
        up(place, "-q", "mail")
        until(lambda: place.states() == {"succeeded": 2}, "they run")
        served = text(place)

    assert "workers       no worker is running\n" in nobody
    assert "  no live worker serves queue 'mail': no worker is running; 2 ready jobs wait\n" in nobody
    assert "  no live worker serves queue 'mail'; 2 ready jobs wait\n" in others
    assert found["unserved_queues"] == [{"queue": "mail", "reason": "no live worker serves queue 'mail'"}]
    assert "no live worker serves queue 'mail'" in why
    assert "no live worker" not in served
    assert "workers       2 live\n" in served
