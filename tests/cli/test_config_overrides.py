"""`taskflow config show APP` and what operators changed: shown as overrides, and never in the way of the rest."""

import json
import re
import sqlite3
import sys
import time

import pytest

from taskflow.core.gate import Hold
from tests.cli.desk import at_broker, run, sit_down

APP = """
from taskflow import Bulkhead, CircuitBreaker, RateLimit, TaskFlow

flow = TaskFlow()

@flow.task(breaker=CircuitBreaker("smtp"), bulkhead=Bulkhead("smtp", 9), rate=RateLimit("smtp", "100/m"))
async def send_mail(to: str) -> None: ...

@flow.task(breaker=CircuitBreaker("api"))
async def ask() -> None: ...

@flow.task(bulkhead=Bulkhead("http", 4, per_lane=True))
async def fetch() -> None: ...
"""


@pytest.fixture(autouse=True)
def file(tmp_path, monkeypatch):
    (tmp_path / "shop_of_overrides.py").write_text(APP)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield sit_down(tmp_path, monkeypatch)
    sys.modules.pop("shop_of_overrides", None)


def shown():
    """What `config show APP --json` tells."""
    result = run("config", "show", "shop_of_overrides", "--json")
    assert result.code == 0
    return json.loads(result.out)


def rows(task):
    """A task's rows as people see them: leaf → (value, source)."""
    text = run("config", "show", "shop_of_overrides").out.partition(f"\ntask {task}\n")[2].partition("\n\n")[0]
    return {row[0]: tuple(row[1:]) for row in (re.split(r"  +", line.strip()) for line in text.splitlines())}


def test_an_operators_limit_and_rate_are_shown_in_place_of_what_code_says():
    run("gate", "limit", "smtp", "3", "--new")
    run("gate", "rate", "smtp", "10/s", "--burst", "5")

    found, leaves = rows("send_mail"), shown()["tasks"]["send_mail"]

    assert found["bulkhead.limit"] == ("3", "operator: gate 'smtp', instead of 9 (decorator)")
    assert found["rate.limit"] == ("10/s", "operator: gate 'smtp', instead of 100/m (decorator)")
    assert found["rate.burst"] == ("5", "operator: gate 'smtp', instead of not set (default)")
    assert leaves["bulkhead.limit"]["value"] == "3"
    assert found["breaker.consecutive"] == ("5", "default")


def test_an_operators_limit_is_shown_where_code_has_none():
    run("gate", "limit", "api", "3", "--new")

    assert rows("ask")["bulkhead.limit"] == ("3", "operator: gate 'api', instead of not set (default)")


def test_an_override_that_was_reset_is_not_shown():
    run("gate", "limit", "smtp", "3", "--new")
    run("gate", "limit", "smtp", "--reset", "--new")

    assert rows("send_mail")["bulkhead.limit"] == ("9", "decorator")
    assert shown()["gates"] == []


def test_gates_that_are_held_are_shown_with_those_of_lane_keys():
    run("gate", "hold", "smtp", "--new", "--reason", "they move")
    at_broker(lambda broker: broker.gate("http/example.org", Hold(600, "circuit_open")))
    run("gate", "hold", "of_another_app", "--new")

    text = run("config", "show", "shop_of_overrides").out.partition("\ngates ")[2]

    assert "smtp  held by an operator until released: they move" in text
    assert "http/example.org  held by its breaker until 2" in text
    assert "of_another_app" not in text
    assert {gate["gate"]: gate["state"] for gate in shown()["gates"]} == {"smtp": "held", "http/example.org": "held"}


def test_without_a_file_there_is_nothing_to_say_and_none_is_made(file):
    result = run("config", "show", "shop_of_overrides")

    assert (result.code, result.err) == (0, "")
    assert not file.exists()


def test_a_broker_that_cannot_be_reached_is_told_and_the_rest_is_shown(file):
    file.write_bytes(b"this is no database " * 100)

    result = run("config", "show", "shop_of_overrides")

    assert result.code == 0
    assert "what operators changed (`taskflow gate`) is not shown: " in result.err
    assert rows("send_mail")["bulkhead.limit"] == ("9", "decorator")
    assert shown()["gates"] is None


def test_a_broker_that_does_not_answer_is_not_waited_for_long(file, monkeypatch):
    monkeypatch.setattr("taskflow.cli.policies._ASK_S", 0.2)
    monkeypatch.setenv("TASKFLOW_BROKER__BUSY_TIMEOUT_S", "60")
    assert run("db", "migrate").code == 0
    lock = sqlite3.connect(file, isolation_level=None)
    lock.execute("PRAGMA locking_mode=EXCLUSIVE")  # nobody else can even read it
    lock.execute("BEGIN EXCLUSIVE")
    began = time.monotonic()

    result = run("config", "show", "shop_of_overrides")

    took_s = time.monotonic() - began
    lock.close()
    assert result.code == 0
    assert "what operators changed (`taskflow gate`) is not shown: " in result.err
    assert took_s < 10
