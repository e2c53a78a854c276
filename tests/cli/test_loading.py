"""What a command tells about the settings of the app that it starts."""

import pytest

from taskflow import Bulkhead, CircuitBreaker, TaskFlow
from taskflow.cli.loading import warn_about
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
