"""The command itself: what it costs to ask for help, how it fails, and with whom it refuses to share its name."""

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import taskflow
from taskflow import errors
from taskflow.cli import main
from taskflow.cli.exits import Exit, code_of


def run(*words, **env):
    """What `taskflow …` does in this process."""
    return CliRunner().invoke(main.cli, words, env=env)


def process(*command, env=None, cwd=None):
    """What a Python of its own does, without any TASKFLOW_ variable but those of `env`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TASKFLOW_")}
    return subprocess.run(
        [sys.executable, *command],
        env={**inherited, **(env or {})}, cwd=cwd, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def all_errors(kind=errors.TaskflowError):
    return [kind, *(found for child in kind.__subclasses__() for found in all_errors(child))]


# --- help --------------------------------------------------------------------------------------------------------------


def imported_for_help():
    code = (
        "import sys; from taskflow.cli.main import cli\n"
        "try: cli(['--help'])\n"
        "finally: print('modules', *sys.modules, file=sys.stderr)"
    )
    done = process("-W", "error", "-c", code)
    assert "Commands:" in done.stdout, done.stderr
    return set(done.stderr.partition("modules ")[2].split())


def test_help_imports_no_command_and_no_server():
    modules = imported_for_help()

    assert not {name for name in modules if name.startswith("taskflow.cli.")} - {
        "taskflow.cli.main",
        "taskflow.cli.exits",
    }
    assert not modules & {"aiohttp", "sqlite3", "uvloop", "taskflow.brokers.memory", "taskflow.brokers.sqlite"}


@pytest.mark.parametrize("name", list(main._COMMANDS))
def test_every_command_that_help_lists_is_there(name):
    result = run(name, "--help")

    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("Usage:")


def test_help_tells_the_exit_codes():
    text = " ".join(run("--help").stdout.split())

    for code in Exit:
        assert f"{code:d} " in text.partition("Exit codes:")[2]


def test_version_is_that_of_the_package():
    result = run("--version")

    assert (result.exit_code, result.stdout) == (0, f"{taskflow.__version__}\n")


# --- failing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["wrok"], ["job", "lits"], ["--colour"], ["job", "show"]])
def test_an_unknown_command_or_option_is_exit_2(words):
    result = run(*words)

    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Usage:" in result.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigError("no such folder"), 2),
        (errors.UnknownTask("no task named 'send_mial'"), 2),
        (errors.PayloadError("to: a string is missing"), 2),
        (errors.BrokerUnavailable("locked"), 3),
        (errors.BrokerError("broken"), 3),
        (errors.JobNotFound("no job 7"), 5),
        (errors.QueueFull("queue 'mail' is full"), 5),
    ],
)
def test_an_error_of_ours_is_one_line_and_its_exit_code(error, code, monkeypatch):
    @click.command()
    def fail():
        raise error

    monkeypatch.setattr(main.Commands, "get_command", lambda *_: fail)

    result = run("fail")

    assert result.exit_code == code
    assert result.stderr == f"taskflow: {error}\n"
    assert result.stdout == ""


@pytest.mark.parametrize("kind", all_errors())
def test_every_error_has_an_exit_code_other_than_0(kind):
    assert code_of(kind("what happened")) in set(Exit) - {Exit.DONE}


def test_an_app_that_is_not_there_is_exit_2_without_a_traceback(tmp_path):
    done = process("-m", "taskflow", "worker", "no_such_module", cwd=tmp_path)

    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("taskflow: app 'no_such_module': there is no module")


def test_an_invalid_setting_is_exit_2_and_its_value_no_traceback(tmp_path):
    done = process("-m", "taskflow", "queue", "list", cwd=tmp_path, env={"TASKFLOW_WORKER__CONCURRENCY": "many"})

    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "TASKFLOW_WORKER__CONCURRENCY" in done.stderr


def test_a_reader_that_goes_away_is_no_error(tmp_path):
    reads, writes = os.pipe()
    os.close(reads)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "taskflow", "config", "reference"],
            stdout=writes, stderr=subprocess.PIPE, text=True, timeout=60, check=False, cwd=tmp_path,
        )  # fmt: skip
    finally:
        os.close(writes)

    assert (done.returncode, done.stderr) == (0, "")


def test_python_m_taskflow_is_the_command():
    done = process("-m", "taskflow", "--version")

    assert (done.returncode, done.stdout, done.stderr) == (0, f"{taskflow.__version__}\n", "")


# --- the other taskflow ------------------------------------------------------------------------------------------------


@pytest.fixture
def other(tmp_path):
    """A folder with the metadata of OpenStack's distribution of our import name."""
    info = tmp_path / "taskflow-5.9.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: taskflow\nVersion: 5.9.1\n")
    return tmp_path


def test_beside_the_other_distribution_of_our_name_it_refuses_to_start(other):
    done = process("-m", "taskflow", "--version", env={"PYTHONPATH": str(other)})

    assert done.returncode == 2
    assert done.stdout == ""
    assert "pip uninstall taskflow" in done.stderr
    assert "resilient-taskflow" in done.stderr
    assert "Traceback" not in done.stderr


def test_alone_it_starts(tmp_path):
    assert main.other_owner() is None
    assert Path(taskflow.__file__).parent.name == "taskflow"
