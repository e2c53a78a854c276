"""What a command tells about the settings of the app that it starts."""

import sys

import pytest

from taskflow import Bulkhead, CircuitBreaker, TaskFlow
from taskflow.cli.loading import load_app, warn_about
from taskflow.errors import ConfigError
from taskflow.settings import Settings


def _flow(**env):
    flow = TaskFlow(settings=Settings.from_env({f"TASKFLOW_{name}": text for name, text in env.items()}))
    for name in ("send_mail", "send_bill"):
        flow.task(name=name, bulkhead=Bulkhead("smtp", 9))(_nothing)
    return flow


async def _nothing() -> None: ...


def test_nothing_is_told_when_all_is_well(capsys):
    warn_about(_flow(TASKS__SEND_MAIL__TIMEOUT_S="5", STRICT_ENV="1"))

    assert capsys.readouterr() == ("", "")


def test_overrides_of_unknown_tasks_are_told_on_stderr(capsys):
    warn_about(_flow(TASKS__SEND_MIAL__TIMEOUT_S="5", OOPS="1"))

    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split(":")[2].strip() for line in err.splitlines()] == [
        "TASKFLOW_OOPS",
        "TASKFLOW_TASKS__SEND_MIAL__TIMEOUT_S",
    ]


def test_overrides_of_unknown_tasks_are_an_error_under_strict_env():
    with pytest.raises(ConfigError) as caught:
        warn_about(_flow(TASKS__SEND_MIAL__TIMEOUT_S="5", TASKS__Q__QUEUE="x", STRICT_ENV="1"))

    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == [
        "TASKFLOW_TASKS__Q__QUEUE",
        "TASKFLOW_TASKS__SEND_MIAL__TIMEOUT_S",
    ]


def test_a_gate_that_an_override_splits_is_told_in_one_line(capsys):
    warn_about(_flow(TASKS__SEND_MAIL__BULKHEAD__LIMIT="3"))

    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("taskflow: warning: Bulkhead 'smtp': tasks 'send_bill' and 'send_mail'")
    assert "a limit of 3 is in force" in line


def test_an_override_that_makes_a_gate_is_told_in_one_line(capsys):
    warn_about(_flow(TASKS__SEND_MAIL__RATE__LIMIT="3/s"))

    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "taskflow: warning: TASKFLOW_TASKS__SEND_MAIL__RATE__LIMIT: code declares no gate 'send_mail'"
    )
    assert "set it for submitters too" in line


def test_policies_that_are_not_valid_are_all_told_at_once():
    flow = _flow(TASKS__SEND_MAIL__RATE__BURST="3", TASKS__CALL__BREAKER__OPEN_FOR_S="1h")
    flow.task(name="call", breaker=CircuitBreaker("http"))(_nothing)

    with pytest.raises(ConfigError) as caught:
        warn_about(flow)

    assert "TASKFLOW_TASKS__SEND_MAIL__RATE__BURST" in str(caught.value)
    assert "TASKFLOW_TASKS__CALL__BREAKER__" in str(caught.value)


# --- queues ------------------------------------------------------------------------------------------------------------


def test_a_worker_is_told_of_queues_that_no_task_goes_to(capsys):
    warn_about(_flow(TASKS__SEND_MAIL__QUEUE="mail"), queues={"mial": 1, "mail": 5})

    assert capsys.readouterr().err.splitlines() == [
        "taskflow: warning: queue 'mial': no task goes there by itself; they go to default, mail"
    ]


def test_a_worker_is_told_that_its_app_has_no_tasks(capsys):
    warn_about(TaskFlow(settings=Settings.from_env({})), queues={"default": 1})

    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("taskflow: warning: the app has no tasks")


# --- the module --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import no_such_part", "ModuleNotFoundError: No module named 'no_such_part' ({file}, line 1)"),
        ("\nraise RuntimeError('no')", "RuntimeError: no ({file}, line 2)"),
        ("\n\ndef (:", "SyntaxError: invalid syntax ({file}, line 3)"),
        ("import sys; sys.exit(7)", "it calls sys.exit(7)"),
    ],
)
def test_a_module_that_breaks_on_import_is_told_with_its_place(code, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "modules", {**sys.modules})
    file = tmp_path / "broken_app.py"
    file.write_text(code)

    with pytest.raises(ConfigError) as caught:
        load_app("broken_app:flow", Settings.from_env({}))

    assert words.format(file=file) in str(caught.value)


@pytest.mark.parametrize("spec", ["jobs/app.py", "jobs/app.py:flow", "./jobs/app.py"])
def test_a_file_in_place_of_a_module_is_told_the_module(spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "app.py").touch()

    with pytest.raises(ConfigError, match=r"did you mean 'jobs\.app:flow'"):
        load_app(spec, Settings.from_env({}))


def test_a_file_of_the_current_folder_in_place_of_a_module_is_told_the_module(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "some_app.py").touch()

    with pytest.raises(ConfigError, match="did you mean 'some_app:flow'"):
        load_app("some_app.py", Settings.from_env({}))
