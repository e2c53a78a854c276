"""Probes of a running worker, and the look at everything before one starts: exit codes that scripts rely on."""

import asyncio
import json
import os
import sqlite3
import sys
import threading
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from taskflow.cli.main import cli
from taskflow.cli.running import open_broker

SECRET = "hunter2"
GARBAGE = b"this is no database " * 100


@pytest.fixture(autouse=True)
def file(tmp_path, monkeypatch):
    """The broker's file. It does not exist yet."""
    for name in list(os.environ):
        if name.startswith("TASKFLOW_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TASKFLOW_BROKER__URL", "sqlite:///jobs.db")
    return tmp_path / "jobs.db"


def run(*words):
    """What `taskflow …` prints, and how it exits. Never with a traceback."""
    result = CliRunner().invoke(cli, words)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return SimpleNamespace(code=result.exit_code, out=result.stdout, err=result.stderr)


def told(*words):
    """The JSON that `taskflow … --json` prints."""
    return json.loads(run(*words, "--json").out)


# --- health ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def worker():
    """An HTTP server that answers as it is told, and remembers what it was asked."""
    said = SimpleNamespace(status=200, body='{"status": "ok"}', asked=[], port=0)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            said.asked.append((self.path, self.headers.get("Authorization")))
            self.send_response(said.status)
            self.end_headers()
            self.wfile.write(said.body.encode())

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    said.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield said
    server.shutdown()
    thread.join()
    server.server_close()


def test_health_asks_the_worker_of_the_settings_whether_it_is_ready(worker, monkeypatch):
    monkeypatch.setenv("TASKFLOW_HTTP__PORT", str(worker.port))

    result = run("health")

    assert (result.code, result.out) == (0, "ready\n")
    assert worker.asked == [("/readyz", None)]


def test_health_live_asks_whether_it_is_alive(worker, monkeypatch):
    monkeypatch.setenv("TASKFLOW_HTTP__PORT", str(worker.port))

    assert run("health", "--live").out == "live\n"
    assert worker.asked == [("/livez", None)]


def test_health_asks_loopback_where_the_worker_listens_everywhere_and_never_sends_the_token(worker, monkeypatch):
    monkeypatch.setenv("TASKFLOW_HTTP__HOST", "0.0.0.0")
    monkeypatch.setenv("TASKFLOW_HTTP__TOKEN", SECRET)
    monkeypatch.setenv("TASKFLOW_HTTP__PORT", str(worker.port))

    assert run("health").code == 0
    assert worker.asked == [("/readyz", None)]


@pytest.mark.parametrize(
    "body",
    [
        '{"status": "not ready", "reasons": ["draining", "broker unreachable"]}',
        '{"reasons": {"worker": "draining", "broker": "broker unreachable"}}',
        '{"type": "about:blank", "title": "Not ready", "detail": "draining; broker unreachable"}',
        "draining\nbroker unreachable\n",
    ],
)
def test_health_of_a_worker_that_is_not_ready_is_exit_6_with_the_reasons(worker, body):
    worker.status, worker.body = 503, body

    result = run("health", "--url", f"http://127.0.0.1:{worker.port}")

    assert result.code == 6
    assert "draining" in result.out
    assert "broker unreachable" in result.out


def test_health_json_tells_the_same(worker):
    worker.status, worker.body = 503, '{"reasons": ["draining"]}'

    url = f"http://127.0.0.1:{worker.port}"

    assert told("health", "--url", url) == {
        "url": f"{url}/readyz", "healthy": False, "status": 503, "reasons": ["draining"],
    }  # fmt: skip


def test_health_of_a_worker_that_does_not_answer_is_exit_6():
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        port = server.server_address[1]

    result = run("health", "--url", f"http://127.0.0.1:{port}")

    assert result.code == 6
    assert f"127.0.0.1:{port}" in result.out


@pytest.mark.parametrize("url", ["localhost:9464", "ftp://localhost", "http://", "http://localhost:port"])
def test_health_refuses_what_is_no_url(url):
    assert run("health", "--url", url).code == 2


def test_health_cannot_guess_a_free_port(monkeypatch):
    monkeypatch.setenv("TASKFLOW_HTTP__PORT", "0")

    result = run("health")

    assert result.code == 2
    assert "--url" in result.err


# --- check -------------------------------------------------------------------------------------------------------------

APP = """
from taskflow import TaskFlow

flow = TaskFlow()

@flow.task(queue="mail")
async def send_mail(to: str) -> None: ...

@flow.task(queue="bulk")
def shrink(path: str) -> None: ...
"""


@pytest.fixture
def app(tmp_path, monkeypatch):
    """A module with an app, in the current folder."""
    (tmp_path / "shop_of_check.py").write_text(APP)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield "shop_of_check"
    sys.modules.pop("shop_of_check", None)


def verdicts(*words):
    return {(found["check"], found["verdict"]) for found in told("check", *words)}


def test_check_of_what_is_right_is_exit_0_and_changes_nothing(app, file, tmp_path):
    before = sorted(path.name for path in tmp_path.glob("*.db*"))

    result = run("check", app)

    assert result.code == 0, result.out
    assert {line.split()[0] for line in result.out.splitlines()} == {"ok"}
    assert {line.split()[1] for line in result.out.splitlines()} == {
        "settings", "variables", "app", "tasks", "queues", "sizes", "broker",
    }  # fmt: skip
    assert sorted(path.name for path in tmp_path.glob("*.db*")) == before


def test_check_leaves_an_existing_file_as_it_is(app, file):
    run("queue", "pause", "mail")
    before = file.read_bytes(), sorted(file.parent.iterdir())

    assert run("check", app).code == 0
    assert (file.read_bytes(), sorted(file.parent.iterdir())) == before


def test_check_reads_a_file_that_a_worker_has_open(app, file):
    async def beside():
        async with open_broker() as broker:
            await broker.pause("mail")
            return await asyncio.to_thread(run, "check", app)

    result = asyncio.run(beside())

    assert result.code == 0
    assert "schema version" in result.out


def test_check_of_invalid_settings_is_exit_2_and_names_the_variable(monkeypatch):
    monkeypatch.setenv("TASKFLOW_WORKER__CONCURRENCY", "many")
    monkeypatch.setenv("TASKFLOW_WORKER__CONCURENCY", "7")

    result = run("check")

    assert result.code == 2
    assert "failed" in result.out
    assert "TASKFLOW_WORKER__CONCURRENCY: must be" in result.out
    assert "TASKFLOW_WORKER__CONCURENCY: there is no such setting" in result.out


def test_check_warns_of_misspelt_variables(app, monkeypatch):
    monkeypatch.setenv("TASKFLOW_WORKER__CONCURENCY", "7")

    assert ("variables", "warning") in verdicts(app)
    assert run("check", app).code == 0


def test_check_of_an_app_that_cannot_be_imported_is_exit_2(app, tmp_path):
    (tmp_path / "shop_of_check.py").write_text("import nothing_of_that_name")

    result = run("check", app)

    assert result.code == 2
    assert "nothing_of_that_name" in result.out
    assert "broker" in result.out, "one failure does not hide what else there is to say"


def test_check_without_an_app_says_that_it_skips_it():
    assert ("app", "skipped") in verdicts()
    assert run("check").code == 0


def test_check_warns_of_overrides_of_unknown_tasks(app, monkeypatch):
    monkeypatch.setenv("TASKFLOW_TASKS__SEND_MIAL__TIMEOUT_S", "5")

    result = run("check", app)

    assert result.code == 0
    assert "TASKFLOW_TASKS__SEND_MAIL__TIMEOUT_S" in result.out


def test_check_under_strict_env_fails_for_overrides_of_unknown_tasks(app, monkeypatch):
    monkeypatch.setenv("TASKFLOW_TASKS__SEND_MIAL__TIMEOUT_S", "5")
    monkeypatch.setenv("TASKFLOW_STRICT_ENV", "1")

    assert run("check", app).code == 2


def test_check_of_an_override_that_does_not_fit_its_task_is_exit_2(app, monkeypatch):
    monkeypatch.setenv("TASKFLOW_TASKS__SEND_MAIL__RATE__BURST", "5")

    result = run("check", app)

    assert result.code == 2
    assert "TASKFLOW_TASKS__SEND_MAIL__RATE__" in result.out


def test_check_warns_of_a_queue_that_no_worker_works(app, monkeypatch):
    monkeypatch.setenv("TASKFLOW_WORKER__QUEUES", "mail")

    result = run("check", app)

    assert result.code == 0
    assert "jobs of shrink go to queue 'bulk'" in result.out


def test_check_warns_of_an_override_after_which_tasks_disagree_about_their_gate(app, tmp_path, monkeypatch):
    shared = APP.replace("from taskflow import", "from taskflow import Bulkhead,")
    shared = shared.replace('queue="mail"', 'bulkhead=Bulkhead("disk", 2)').replace(
        'queue="bulk"', 'bulkhead=Bulkhead("disk", 2)'
    )
    (tmp_path / "shop_of_check.py").write_text(shared)
    monkeypatch.setenv("TASKFLOW_TASKS__SHRINK__BULKHEAD__LIMIT", "9")

    assert ("gates", "warning") in verdicts(app)
    assert run("check", app).code == 0


def test_check_warns_of_threads_that_are_never_used(app, monkeypatch):
    monkeypatch.setenv("TASKFLOW_WORKER__THREADS", "50")
    monkeypatch.setenv("TASKFLOW_WORKER__CONCURRENCY", "10")

    assert ("sizes", "warning") in verdicts(app)


def test_check_tells_of_child_processes_that_are_fewer_than_the_jobs_at_once(app, tmp_path, monkeypatch):
    (tmp_path / "shop_of_check.py").write_text(
        "from taskflow import TaskFlow\nflow = TaskFlow()\n@flow.task(isolation='process')\ndef resize() -> None: ...\n"
    )
    monkeypatch.setenv("TASKFLOW_WORKER__CHILDREN", "3")

    assert "all tasks run in child processes: 3 of them at once" in run("check", app).out


def test_check_of_a_function_that_a_child_process_would_not_find_is_exit_2(app, tmp_path):
    (tmp_path / "shop_of_check.py").write_text(
        "from taskflow import TaskFlow\nflow = TaskFlow()\n"
        "def resize() -> None: ...\nflow.task(isolation='process')(resize)\ndef resize() -> None: ...\n"
    )

    result = run("check", app)

    assert result.code == 2
    assert "resize in module shop_of_check is not the function that was registered" in result.out


def test_check_of_a_broker_that_cannot_be_reached_is_exit_3(app, file):
    file.write_bytes(b"this is no database " * 100)

    result = run("check", app)

    assert result.code == 3
    assert str(file) in result.out


def test_check_of_a_file_of_a_newer_taskflow_is_exit_2(app, file):
    run("queue", "pause", "mail")
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA user_version = 999")

    result = run("check", app)

    assert result.code == 2
    assert "999" in result.out


def test_check_of_a_folder_that_is_not_there_is_exit_3(app, monkeypatch):
    monkeypatch.setenv("TASKFLOW_BROKER__URL", "sqlite:///no/such/folder/jobs.db")

    assert run("check", app).code == 3
