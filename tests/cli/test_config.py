"""`taskflow config`: data on stdout, messages on stderr, exit 0 or 2, and never a secret."""

import dataclasses
import json
import re
import sys
from operator import attrgetter
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from taskflow.cli.main import cli
from taskflow.core.specs import Bulkhead, CircuitBreaker, RateLimit, Retry
from taskflow.settings import TASK_LEAVES, Settings, reference

APP = """
from taskflow import Bulkhead, CircuitBreaker, Retry, TaskFlow

flow = TaskFlow()

@flow.task(timeout=30, retry=Retry(attempts=5, on=(OSError,)), breaker=CircuitBreaker("smtp"), bulkhead=Bulkhead("smtp", 9))
async def send_mail(to: str) -> None: ...

@flow.task(bulkhead=Bulkhead("smtp", 9))
async def send_bill(to: str) -> None: ...
"""


@pytest.fixture(autouse=True)
def shop(tmp_path, monkeypatch):
    """A folder with an app, as the current one."""
    (tmp_path / "shop_of_test_config.py").write_text(APP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield "shop_of_test_config"
    sys.modules.pop("shop_of_test_config", None)


def run(*words, **env):
    """What `taskflow config …` prints and how it exits, with these TASKFLOW_ variables."""
    sys.modules.pop("shop_of_test_config", None)  # a process reads its environment once
    result = CliRunner().invoke(cli, ["config", *words], env={f"TASKFLOW_{name}": text for name, text in env.items()})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result


# --- show --------------------------------------------------------------------------------------------------------------


def test_show_prints_every_setting_with_its_value_and_source():
    result = run("show", WORKER__CONCURRENCY="7", TASKS__SEND_MAIL__TIMEOUT_S="5m")

    assert result.exit_code == 0
    rows = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines()}
    assert rows["TASKFLOW_WORKER__CONCURRENCY"] == ["7", "environment"]
    assert rows["TASKFLOW_WORKER__LEASE_S"] == ["10", "default"]
    assert rows["TASKFLOW_TASKS__SEND_MAIL__TIMEOUT_S"] == ["300", "environment"]
    assert {leaf.name for leaf in Settings().leaves()} < set(rows)
    assert result.stderr == ""


def test_show_tells_misspelt_names_on_stderr():
    result = run("show", WORKER__CONCURENCY="7")

    assert result.exit_code == 0
    assert "TASKFLOW_WORKER__CONCURENCY: there is no such setting" in result.stderr
    assert "CONCURENCY" not in result.stdout


def test_show_json_is_one_object(shop):
    result = run("show", shop, "--json", TASKS__SEND_MAIL__RETRY__ATTEMPTS="7", OOPS="1")

    found = json.loads(result.stdout)
    leaf = found["settings"][0]
    assert set(leaf) == {"name", "value", "source", "default", "unit", "description"}
    assert found["tasks"]["send_mail"]["retry.attempts"] == {
        "value": "7",
        "source": "environment: TASKFLOW_TASKS__SEND_MAIL__RETRY__ATTEMPTS",
        "variable": "TASKFLOW_TASKS__SEND_MAIL__RETRY__ATTEMPTS",
    }
    assert len(found["warnings"]) == 1


def test_show_with_an_app_prints_the_policies_of_its_tasks(shop):
    result = run("show", shop, TASKS__SEND_MAIL__TIMEOUT_S="5", RETRY__BASE_S="2")

    _, _, text = result.stdout.partition("\ntask send_mail\n")
    rows = [re.split(r"  +", line.strip()) for line in text.splitlines()]
    assert ["timeout_s", "5", "environment: TASKFLOW_TASKS__SEND_MAIL__TIMEOUT_S"] in rows
    assert ["retry.attempts", "5", "decorator"] in rows
    assert ["retry.base_s", "2", "environment: TASKFLOW_RETRY__BASE_S"] in rows
    assert ["retry.max_delay_s", "60", "default"] in rows
    assert ["retry.on", "OSError", "decorator"] in rows
    assert ["bulkhead.name", "smtp", "decorator"] in rows
    assert result.stdout.index("task send_bill") < result.stdout.index("task send_mail")


EVERY_POLICY = """
from taskflow import Bulkhead, CircuitBreaker, RateLimit, Retry, TaskFlow

flow = TaskFlow()

@flow.task(
    queue="mail",
    deadline=3600,
    retry=Retry(attempts=3, never=(ValueError, KeyError)),
    breaker=CircuitBreaker("smtp", consecutive=5, per_lane=True),
    bulkhead=Bulkhead("pool", 9, wait=1),
    rate=RateLimit("api", "100/m"),
)
async def send_mail(to: str) -> None: ...
"""


def test_show_prints_every_policy_with_its_value_and_source(shop):
    Path(f"{shop}.py").write_text(EVERY_POLICY)

    found = json.loads(
        run(
            "show",
            shop,
            "--json",
            RETRY__ATTEMPTS="9",
            RETRY__FACTOR="3",
            BREAKER__CONSECUTIVE="9",
            BREAKER__OPEN_FOR_S="20",
            TASKS__SEND_MAIL__BULKHEAD__LIMIT="4",
            TASKS__SEND_MAIL__RATE__BURST="7",
            TASKS__SEND_MAIL__PRIORITY="8",
            TASK__MAX_WAIT_S="60",
        ).stdout
    )["tasks"]["send_mail"]

    assert {
        name: (leaf["value"], leaf["source"].removeprefix("environment: TASKFLOW_")) for name, leaf in found.items()
    } == {
        "timeout_s": ("300", "default"),
        "deadline_s": ("3600", "decorator"),
        "max_wait_s": ("60", "TASK__MAX_WAIT_S"),
        "priority": ("8", "TASKS__SEND_MAIL__PRIORITY"),
        "queue": ("mail", "decorator"),
        "retry.attempts": ("3", "decorator"),
        "retry.base_s": ("0.5", "default"),
        "retry.factor": ("3", "RETRY__FACTOR"),
        "retry.max_delay_s": ("60", "default"),
        "retry.jitter": ("full", "default"),
        "retry.on": ("Exception", "default"),
        "retry.never": ("ValueError, KeyError", "decorator"),
        "retry.delay": ("none", "default"),
        "breaker.name": ("smtp", "decorator"),
        "breaker.per_lane": ("true", "decorator"),
        "breaker.failure_rate": ("0.5", "default"),
        "breaker.min_calls": ("10", "default"),
        "breaker.window_s": ("60", "default"),
        "breaker.consecutive": ("5", "decorator"),
        "breaker.slow_call_s": ("not set", "default"),
        "breaker.slow_rate": ("0.8", "default"),
        "breaker.open_for_s": ("20", "BREAKER__OPEN_FOR_S"),
        "breaker.max_open_for_s": ("300", "default"),
        "breaker.window_calls": ("not set", "default"),
        "breaker.close_after": ("2", "default"),
        "bulkhead.name": ("pool", "decorator"),
        "bulkhead.per_lane": ("false", "default"),
        "bulkhead.limit": ("4", "TASKS__SEND_MAIL__BULKHEAD__LIMIT"),
        "bulkhead.wait": ("1", "decorator"),
        "rate.name": ("api", "decorator"),
        "rate.per_lane": ("false", "default"),
        "rate.limit": ("100/m", "decorator"),
        "rate.burst": ("7", "TASKS__SEND_MAIL__RATE__BURST"),
        "rate.wait": ("0", "default"),
    }


SAID = {
    "queue": "other", "priority": "8", "retry.jitter": "none", "breaker.failure_rate": "0.75",
    "breaker.slow_rate": "0.75", "breaker.max_open_for_s": "400", "breaker.window_calls": "50", "rate.limit": "7/s",
}  # fmt: skip
NOT_TUNED = {
    "retry": {"on", "never", "on_result", "delay"},  # Python objects
    "breaker": {"name", "per_lane"},  # which gate a job has is fixed when it is submitted
    "bulkhead": {"name", "per_lane", "wait"},  # jobs wait in their queue
    "rate": {"name", "per_lane", "wait"},  # as above
}


@pytest.mark.parametrize("path", TASK_LEAVES, ids=".".join)
def test_every_policy_of_a_task_can_be_set_by_its_variable_and_is_shown_with_it(shop, path):
    Path(f"{shop}.py").write_text(EVERY_POLICY)
    leaf, variable = ".".join(path), f"TASKS__SEND_MAIL__{'__'.join(path).upper()}"
    value = SAID.get(leaf, "7")

    result = run("show", shop, "--json", **{variable: value})

    assert (result.exit_code, result.stderr) == (0, "")
    name = f"TASKFLOW_{variable}"
    assert json.loads(result.stdout)["tasks"]["send_mail"][leaf] == {
        "value": value, "source": f"environment: {name}", "variable": name,
    }  # fmt: skip
    flow = sys.modules[shop].flow
    policy = flow.tasks["send_mail"].definition.policy(flow.settings)
    attribute = [*path[:-1], path[-1].removesuffix("_s") if len(path) > 1 else path[-1]]
    if leaf == "rate.limit":
        attribute = ["rate", "rate"]
    assert str(attrgetter(".".join(attribute))(policy)).removesuffix(".0") == value


@pytest.mark.parametrize(
    ("key", "spec"), [("retry", Retry), ("breaker", CircuitBreaker), ("bulkhead", Bulkhead), ("rate", RateLimit)]
)
def test_every_parameter_of_a_policy_has_a_variable(key, spec):
    parameters = {field.name for field in dataclasses.fields(spec) if field.init} - NOT_TUNED[key]
    variables = {path[1].removesuffix("_s") for path in TASK_LEAVES if path[0] == key}

    assert variables == {"limit" if (key, name) == ("rate", "rate") else name for name in parameters}


def test_show_and_check_look_at_the_settings_that_an_app_brings(shop):
    text = APP.replace(
        "TaskFlow()", "TaskFlow(settings=Settings(task={'priority': 8}, tasks={'oops': {'priority': 1}}))"
    )
    Path(f"{shop}.py").write_text(f"from taskflow.settings import Settings\n{text}")

    shown, checked = run("show", shop, "--json", TASK__PRIORITY="1"), run("check", shop)

    found = json.loads(shown.stdout)
    assert found["tasks"]["send_bill"]["priority"]["value"] == "8"
    (row,) = [leaf for leaf in found["settings"] if leaf["name"] == "TASKFLOW_TASK__PRIORITY"]
    assert (row["value"], row["source"]) == ("8", "code")
    assert "TASKFLOW_TASKS__OOPS__PRIORITY" in shown.stderr
    assert "TASKFLOW_TASKS__OOPS__PRIORITY" in checked.stderr


@pytest.mark.parametrize("command", ["show", "check"])
def test_an_override_that_makes_a_gate_is_told(shop, command):
    result = run(command, shop, TASKS__SEND_BILL__RATE__LIMIT="1/s")

    assert result.exit_code == 0
    (line,) = result.stderr.splitlines()
    assert line.startswith("TASKFLOW_TASKS__SEND_BILL__RATE__LIMIT: code declares no gate 'send_bill'")


def test_show_takes_the_app_from_the_environment_and_names_overrides_of_unknown_tasks(shop):
    result = run("show", APP=shop, TASKS__SEND_MIAL__TIMEOUT_S="5")

    assert "task send_mail" in result.stdout
    assert "did you mean TASKFLOW_TASKS__SEND_MAIL__TIMEOUT_S?" in result.stderr


def test_show_prints_the_settings_even_if_the_app_is_missing():
    result = run("show", "nowhere")

    assert result.exit_code == 2
    assert "TASKFLOW_WORKER__CONCURRENCY" in result.stdout
    assert "nowhere" in result.stderr


def test_invalid_settings_are_one_line_each_on_stderr_and_exit_2():
    result = run("show", WORKER__CONCURRENCY="many", WORKER__LEASE_S="x")

    assert result.exit_code == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 2
    assert "TASKFLOW_WORKER__CONCURRENCY: must be a whole number from 1 to 100000, got 'many'" in result.stderr


@settings(max_examples=25)
@given(st.text("@/?#:%&= ", max_size=5), st.booleans())
def test_no_secret_is_ever_printed(junk, broken):
    secret = f"Zq7xk{junk}Wv9jb"
    env = {"BROKER__URL": f"memory://app:{secret}@cache:6379", "HTTP__TOKEN": secret}

    for words in (["show"], ["show", "--json"], ["check"], ["check", "--json"]):
        result = run(*words, **env, **({"LOG__LEVEL": env["BROKER__URL"]} if broken else {}))

        assert result.exit_code == (2 if broken else 0)
        assert "Zq7xk" not in result.output
        assert "Wv9jb" not in result.output

        result = run(*words, **env | {"BROKER__URL": f"redis://app:{secret}@cache:6379"})

        assert result.exit_code == 0
        assert "Zq7xk" not in result.output
        assert "Wv9jb" not in result.output


# --- check -------------------------------------------------------------------------------------------------------------


def test_check_says_that_all_is_right(shop):
    for words in ([], [shop]):
        result = run("check", *words)

        assert (result.exit_code, result.stderr) == (0, "")


def test_check_prints_problems_and_misspelt_names_and_exits_2():
    result = run("check", WORKER__LEASE_S="x", WORKER__CONCURENCY="7")

    assert result.exit_code == 2
    assert result.stdout == ""
    assert [line.split(":")[0] for line in result.stderr.splitlines()] == [
        "TASKFLOW_WORKER__LEASE_S",
        "TASKFLOW_WORKER__CONCURENCY",
    ]


def test_a_misspelt_name_alone_is_no_problem_unless_strict(shop):
    relaxed = run("check", shop, OOPS="1", TASKS__SEND_MIAL__TIMEOUT_S="5")
    strict_name = run("check", OOPS="1", STRICT_ENV="1")
    strict_task = run("check", shop, TASKS__SEND_MIAL__TIMEOUT_S="5", STRICT_ENV="1")

    assert relaxed.exit_code == 0
    assert len(relaxed.stderr.splitlines()) == 2
    assert strict_name.exit_code == strict_task.exit_code == 2
    assert len(strict_name.stderr.splitlines()) == 1


def test_check_resolves_the_policies_of_every_task(shop):
    result = run("check", shop, TASKS__SEND_MAIL__BREAKER__OPEN_FOR_S="1h", TASKS__SEND_BILL__RATE__BURST="3")

    assert result.exit_code == 2
    assert "max_open_for must be at least open_for" in result.stderr
    assert "TASKFLOW_TASKS__SEND_BILL__RATE__BURST: the task has no rate limit" in result.stderr


def test_check_tells_when_an_override_splits_a_shared_gate(shop):
    result = run("check", shop, TASKS__SEND_MAIL__BULKHEAD__LIMIT="3")

    assert result.exit_code == 0
    assert "Bulkhead 'smtp': tasks 'send_bill' and 'send_mail' give it different values" in result.stderr


def test_check_of_an_app_that_is_missing_or_broken_exits_2(tmp_path):
    (tmp_path / "broken_shop.py").write_text("raise RuntimeError('no such thing')")

    for name in ("nowhere", "broken_shop"):
        result = run("check", name)

        assert result.exit_code == 2
        assert name in result.stderr


def test_check_json_is_one_object():
    good, bad = run("check", "--json"), run("check", "--json", WORKER__LEASE_S="x")

    assert json.loads(good.stdout) == {"ok": True, "problems": [], "warnings": []}
    assert bad.exit_code == 2
    assert json.loads(bad.stdout)["ok"] is False
    assert len(json.loads(bad.stdout)["problems"]) == 1


# --- reference ---------------------------------------------------------------------------------------------------------


def test_the_readme_table_has_a_row_for_every_variable():
    lines = run("reference", "--format", "markdown").stdout.splitlines()

    assert lines[:2] == ["| variable | default | unit | meaning |", "| --- | --- | --- | --- |"]
    rows = {line.split("`")[1]: re.split(r"(?<!\\)\|", line)[1:-1] for line in lines[2:]}
    assert set(rows) == {leaf.name for leaf in reference()}
    assert all(len(cells) == 4 for cells in rows.values())
    assert [cell.strip() for cell in rows["TASKFLOW_WORKER__LEASE_S"][1:3]] == ["10", "seconds"]


def test_the_reference_does_not_depend_on_the_environment():
    assert run("reference", WORKER__LEASE_S="x").stdout == run("reference").stdout
    assert run("reference", WORKER__LEASE_S="x").exit_code == 0


def test_the_reference_as_text_and_json_has_every_variable():
    text = run("reference").stdout
    found = json.loads(run("reference", "--json").stdout)

    names = [leaf.name for leaf in reference()]
    assert [line.split()[0] for line in text.splitlines() if line.startswith("TASKFLOW_")] == names
    assert [row["variable"] for row in found] == names


def test_an_unknown_word_is_a_usage_error():
    assert run("reference", "--format", "pdf").exit_code == 2
    assert run("sing").exit_code == 2


def test_nothing_is_written_to_the_current_folder():
    run("show")
    run("check")

    assert [path.name for path in Path.cwd().iterdir()] == ["shop_of_test_config.py"]
