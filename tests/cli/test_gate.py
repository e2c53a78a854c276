"""`taskflow gate`, against real SQLite files: what an operator says of a gate holds, stays, and is shown."""

import json
import re
import time

import pytest

from taskflow.brokers.base import ClaimRequest
from taskflow.cli.standing import gate_json, rate_text, told
from taskflow.core.gate import Gate, Hold, Rate
from tests.cli.desk import at_broker, claimed, declared, run, shown, sit_down, submitted


@pytest.fixture(autouse=True)
def file(tmp_path, monkeypatch):
    return sit_down(tmp_path, monkeypatch)


def gates():
    return {gate["gate"]: gate for gate in shown("gate", "list")}


def kept(name):
    """The record of a gate in the broker."""
    return {gate.name: gate for gate in at_broker(lambda broker: broker.gates())}.get(name, Gate(name))


def claims(queue="mail"):
    """How many jobs a worker gets now, that never comes back."""
    return len(at_broker(lambda broker: broker.claim(ClaimRequest("w", (queue,), 100, 100, 0, 60.0))))


# --- list --------------------------------------------------------------------------------------------------------------


def test_gate_list_shows_live_claims_limit_rate_and_who_said_them():
    submitted("gated", count=2)
    declared()
    claimed()
    run("gate", "limit", "smtp", "7")

    found, text = gates(), run("gate", "list").out

    assert (found["smtp"]["live"], found["smtp"]["limit"], found["smtp"]["limit_source"]) == (1, 7, "operator")
    assert (found["smtp"]["limit_code"], found["smtp"]["limit_operator"]) == (1, 7)
    assert (found["api"]["rate"]["rate"], found["api"]["rate_source"], found["api"]["limit"]) == ("1/h", "code", None)
    rows = {line.split()[0]: re.split(r"  +", line) for line in text.splitlines()}
    assert rows["GATE"] == ["GATE", "LIVE", "LIMIT", "RATE", "STATE"]
    assert rows["smtp"] == ["smtp", "1", "7 (operator; code: 1)", "admitting"]
    assert rows["api"] == ["api", "0", "1/h (code)", "admitting"]


def test_gate_list_shows_who_holds_a_gate_until_when():
    declared()
    at_broker(lambda broker: broker.gate("smtp", Hold(600, "circuit_open")))
    at_broker(lambda broker: broker.gate("api", Hold(600, "429 of api")))
    at_broker(lambda broker: broker.gate("disk", Hold(600, "circuit_open: OSError")))
    run("gate", "hold", "http", "--reason", "moved\nto another house")

    text = run("gate", "list").out

    assert re.search(r"^smtp .* held by its breaker until 2\S+ \S+ UTC \(in (10|9) min", text, re.MULTILINE)
    assert re.search(r"^disk .* held by its breaker until 2.*, the last call met OSError$", text, re.MULTILINE)
    assert re.search(r"^api .* held until 2.*, because of 429 of api$", text, re.MULTILINE)
    assert re.search(r"^http .* held by an operator until released: moved to another house$", text, re.MULTILINE)
    assert {name: gate["state"] for name, gate in gates().items()} == dict.fromkeys(
        ("smtp", "api", "disk", "http"), "held"
    )


def test_a_gate_that_recovers_shows_how_many_it_lets_through():
    gate = Gate("http", limit=10, ramp=2)

    found = gate_json(gate, {"http": gate}, now=0.0)

    assert (found["state"], found["limit"], found["limit_code"]) == ("recovering", 2, 10)
    assert told(gate, None, now=0.0) == "recovering, 2 at once"


def test_a_gate_of_a_lane_key_shows_what_it_has_from_its_family():
    submitted("fetch", lane="example.org")
    declared()
    claimed(queue="bulk")
    run("gate", "hold", "http")

    one = gates()["http/example.org"]

    assert (one["limit"], one["limit_source"], one["limit_code"], one["state"]) == (10, "code", None, "held")
    assert "held with all of gate 'http': held by an operator until released" in run("gate", "list").out


def test_gate_list_of_nothing_says_so_on_stderr_and_makes_no_file(file):
    result = run("gate", "list")

    assert (result.code, result.out) == (0, "")
    assert "nothing is kept of any gate" in result.err
    assert shown("gate", "list") == []
    assert not file.exists()


@pytest.mark.parametrize(
    ("interval_s", "burst", "words"),
    [(0.6, 1, "100/m"), (1.0, 1, "1/s"), (0.01, 5, "100/s, 5 at once"), (36.0, 1, "100/h"), (864.0, 1, "100/d"),
     (86_400.0 * 3, 1, "0.333333/d"), (0.7, 1, "1.42857/s")],
)  # fmt: skip
def test_a_rate_is_shown_as_people_write_it(interval_s, burst, words):
    assert rate_text(Rate(interval_s, burst)) == words


# --- hold and release --------------------------------------------------------------------------------------------------


def test_a_held_gate_lets_no_job_be_claimed_until_it_is_released():
    submitted("gated")
    submitted("send_mail", "ada")

    held = run("gate", "hold", "smtp", "--reason", "they move")

    assert (held.code, held.err) == (0, "")
    assert "gate 'smtp' is held by an operator until released: they move" in held.out
    assert claims() == 1, "the other one flows"
    assert run("gate", "release", "smtp").out.startswith("gate 'smtp' is admitting, ")
    assert claims() == 1


def test_a_hold_may_have_an_end():
    submitted("gated")

    found = shown("gate", "hold", "smtp", "--for", "600")

    assert found["state"] == "held"
    assert 590 < found["held_until"] - time.time() <= 600


def test_a_hold_without_an_end_is_json_without_an_instant():
    submitted("gated")

    found = shown("gate", "hold", "smtp")

    assert (found["state"], found["held_until"], found["reason"]) == ("held", None, "operator")


def test_a_hold_never_shortens_another_and_says_so():
    submitted("gated")
    at_broker(lambda broker: broker.gate("smtp", Hold(600, "circuit_open")))

    result = run("gate", "hold", "smtp", "--for", "5")

    assert result.code == 0
    assert "never shortens another" in result.err
    assert "gate 'smtp' is held by its breaker until" in result.out


def test_an_operators_hold_outlasts_that_of_a_breaker():
    submitted("gated")
    run("gate", "hold", "smtp")

    at_broker(lambda broker: broker.gate("smtp", Hold(600, "circuit_open")))

    assert "held by an operator until released" in run("gate", "list").out


def test_release_names_the_gates_of_lane_keys_that_stay_held():
    submitted("fetch", lane="a.org")
    submitted("fetch", lane="b.org")
    for name in ("http", "http/a.org", "http/b.org"):
        run("gate", "hold", name)

    result = run("gate", "release", "http")

    assert "2 gates of lane keys are held on their own: http/a.org, http/b.org; --lanes" in result.err
    assert claims("bulk") == 0
    assert run("gate", "release", "http", "--lanes").err == ""
    assert claims("bulk") == 2


def test_several_gates_are_released_at_once():
    declared()
    for name in ("smtp", "api"):
        run("gate", "hold", name)

    found = shown("gate", "release", "smtp", "api")

    assert [(gate["gate"], gate["state"]) for gate in found] == [("smtp", "admitting"), ("api", "admitting")]


# --- limit and rate ----------------------------------------------------------------------------------------------------


def test_an_operators_limit_wins_until_it_is_reset():
    submitted("gated", count=9)
    declared()

    raised = run("gate", "limit", "smtp", "3")

    assert "limit 3 (operator; code: 1)" in raised.out
    assert claims() == 3
    assert "limit 1 (code)" in run("gate", "limit", "smtp", "--reset").out


def test_an_operators_limit_outlives_a_worker_that_starts_with_another():
    submitted("gated", count=9)
    run("gate", "limit", "smtp", "3")

    declared()

    assert claims() == 3


def test_a_limit_of_none_closes_a_gate():
    submitted("gated")

    run("gate", "limit", "smtp", "0")

    assert claims() == 0


def test_an_operators_rate_wins_until_it_is_reset():
    submitted("rated", count=9)
    declared()

    widened = run("gate", "rate", "api", "100/m", "--burst", "4")

    assert "rate 100/m, 4 at once (operator; code: 1/h)" in widened.out
    assert kept("api").rate_override == Rate(0.6, 4)
    assert claims("bulk") == 4
    assert "rate 1/h (code)" in run("gate", "rate", "api", "--reset").out
    assert kept("api").rate_override is None


@pytest.mark.parametrize(
    "words",
    [
        ["limit", "smtp"], ["limit", "smtp", "3", "--reset"], ["limit", "smtp", "-1"], ["limit", "smtp", "many"],
        ["rate", "smtp"], ["rate", "smtp", "1/s", "--reset"], ["rate", "smtp", "--reset", "--burst", "2"],
        ["rate", "smtp", "fast"], ["rate", "smtp", "1/s", "--burst", "0"], ["rate", "smtp", "1/d", "--burst", "999999"],
        ["hold", "smtp", "--for", "0"], ["hold", "smtp", "--for", "nan"], ["hold", "smtp", "--for", "soon"],
        ["release"],
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_exit_2_and_changes_nothing(words):
    submitted("gated")
    before = kept("smtp")

    result = run("gate", *words)

    assert (result.code, result.out) == (2, "")
    assert result.err
    assert kept("smtp") == before


# --- which gate --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words", [["hold", "stmp"], ["release", "stmp"], ["limit", "stmp", "3"], ["rate", "stmp", "1/s"]]
)
def test_a_gate_that_nobody_named_is_exit_5_with_the_nearest_one(words):
    declared()

    result = run("gate", *words)

    assert (result.code, result.out) == (5, "")
    assert "did you mean 'smtp'? known: api, http, smtp" in result.err
    assert kept("stmp") == Gate("stmp")


def test_where_no_gate_is_known_it_says_so(file):
    result = run("gate", "release", "smtp")

    assert result.code == 5
    assert "known: none" in result.err
    assert not file.exists()


def test_a_gate_can_be_held_before_anybody_names_it():
    assert run("gate", "hold", "smtp", "--new").code == 0

    submitted("gated")

    assert claims() == 0


def test_a_lane_key_without_jobs_is_known_by_its_family():
    declared()

    assert run("gate", "hold", "http/example.org").code == 0

    submitted("fetch", lane="example.org")
    assert claims("bulk") == 0


def test_names_and_reasons_of_others_cannot_steer_the_terminal():
    submitted("fetch", lane="a\x1b[2Jb")
    at_broker(lambda broker: broker.gate("http/a\x1b[2Jb", Hold(600, "\x1b[2Jgone")))

    for words in (["gate", "list"], ["gate", "release", "http/a\x1b[2Jb"], ["gate", "release", "http"]):
        result = run(*words)
        assert "\x1b" not in result.out + result.err
    assert "\x1b" not in json.dumps(shown("gate", "list"))
