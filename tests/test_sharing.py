"""Gates that tasks share: what is in force when an override names only one of them, in whatever order they are met."""

import asyncio
import itertools

import pytest

from taskflow import TaskFlow
from taskflow.core.gate import Declare, Rate
from taskflow.core.specs import Bulkhead, CircuitBreaker, RateLimit
from taskflow.settings import Settings
from taskflow.settings.sharing import disagreements, made_by_overrides, shared_gates

TASKS = {name: {"bulkhead": Bulkhead("smtp", 9), "rate": RateLimit("smtp", "2/s", burst=4)} for name in ("a", "b", "c")}


def _settings(**values):
    return Settings.from_env({f"TASKFLOW_TASKS__{name}": value for name, value in values.items()})


def _each_order(tasks):
    return [dict(order) for order in itertools.permutations(tasks.items())]


def test_without_overrides_the_declaration_is_in_force():
    assert shared_gates(Settings(), TASKS) == {"smtp": Declare(9, Rate(0.5, 4))}
    assert disagreements(Settings(), TASKS) == []


@pytest.mark.parametrize("limit", [3, 30])
def test_an_override_wins_over_declarations_in_any_order(limit):
    settings = _settings(B__BULKHEAD__LIMIT=str(limit), B__RATE__LIMIT=f"{limit}/s")

    for tasks in _each_order(TASKS):
        assert shared_gates(settings, tasks) == {"smtp": Declare(limit, Rate(1 / limit, 4))}


def test_of_two_overrides_the_smaller_wins_in_any_order():
    settings = _settings(
        A__BULKHEAD__LIMIT="30",
        C__BULKHEAD__LIMIT="20",
        A__RATE__LIMIT="10/s",
        C__RATE__LIMIT="5/s",
        A__RATE__BURST="7",
    )

    for tasks in _each_order(TASKS):
        assert shared_gates(settings, tasks) == {"smtp": Declare(20, Rate(0.2, 7))}


def test_an_override_that_says_what_is_declared_wins_too():
    settings = _settings(A__BULKHEAD__LIMIT="9", B__BULKHEAD__LIMIT="20")

    assert shared_gates(settings, TASKS)["smtp"].limit == 9


def test_an_override_that_makes_a_bulkhead_wins_over_one_of_that_name():
    tasks = {"smtp": {}, "mail": {"bulkhead": Bulkhead("smtp", 9)}}

    assert shared_gates(_settings(SMTP__BULKHEAD__LIMIT="30"), tasks) == {"smtp": Declare(30)}


def test_a_breaker_alone_makes_a_gate_without_limits():
    assert shared_gates(Settings(), {"a": {"breaker": CircuitBreaker("smtp")}}) == {"smtp": Declare()}


def test_a_disagreement_is_one_line_that_says_what_is_in_force():
    (bulkhead,) = disagreements(_settings(B__BULKHEAD__LIMIT="3"), TASKS)
    (rate,) = disagreements(_settings(B__RATE__LIMIT="4/s"), TASKS)

    assert bulkhead.startswith("Bulkhead 'smtp': tasks 'a' and 'b' give it different values")
    assert "a limit of 3 is in force" in bulkhead
    assert "a start every 0.25 s, 4 at once, is in force" in rate
    assert disagreements(_settings(A__BULKHEAD__LIMIT="3", B__BULKHEAD__LIMIT="3", C__BULKHEAD__LIMIT="3"), TASKS) == []


def test_a_breaker_that_one_override_splits_is_told_too():
    tasks = {name: {"breaker": CircuitBreaker("smtp")} for name in ("a", "b")}

    (line,) = disagreements(_settings(B__BREAKER__CONSECUTIVE="9"), tasks)

    assert line.startswith("CircuitBreaker 'smtp': tasks 'a' and 'b'")


def test_tasks_of_which_one_says_what_another_leaves_to_a_section_disagree_too():
    settings = Settings.from_env({"TASKFLOW_BREAKER__CONSECUTIVE": "9"})
    tasks = {"a": {"breaker": CircuitBreaker("smtp")}, "b": {"breaker": CircuitBreaker("smtp", consecutive=5)}}

    (line,) = disagreements(settings, tasks)

    assert line.startswith("CircuitBreaker 'smtp': tasks 'a' and 'b'")


@pytest.mark.parametrize(
    ("variable", "value"), [("BULKHEAD__LIMIT", "3"), ("RATE__LIMIT", "3/s"), ("BREAKER__OPEN_FOR_S", "20")]
)
def test_an_override_that_makes_a_gate_is_one_line_that_says_which_jobs_lack_it(variable, value):
    (line,) = made_by_overrides(_settings(**{f"A__{variable}": value}), {"a": {}, "b": {}})

    assert line == (
        f"TASKFLOW_TASKS__A__{variable}: code declares no gate 'a' for this task; jobs submitted without it do not "
        "have that gate: set it for submitters too"
    )


def test_a_gate_that_several_overrides_make_is_one_line():
    (line,) = made_by_overrides(_settings(A__BULKHEAD__LIMIT="3", A__RATE__LIMIT="3/s", A__TIMEOUT_S="5"), {"a": {}})

    assert line.startswith("TASKFLOW_TASKS__A__BULKHEAD__LIMIT, TASKFLOW_TASKS__A__RATE__LIMIT: ")


def test_an_override_that_makes_another_gate_beside_a_declared_one_is_told():
    tasks = {"a": {"breaker": CircuitBreaker("smtp")}, "b": {"breaker": CircuitBreaker("b", per_lane=True)}}

    assert len(made_by_overrides(_settings(A__BULKHEAD__LIMIT="3", B__BULKHEAD__LIMIT="3"), tasks)) == 2


def test_overrides_of_gates_that_every_job_has_are_not_told():
    tasks = {**TASKS, "smtp": {"breaker": CircuitBreaker("smtp")}}
    settings = _settings(A__BULKHEAD__LIMIT="3", A__RATE__LIMIT="3/s", SMTP__BULKHEAD__LIMIT="3", C__TIMEOUT_S="5")

    assert made_by_overrides(settings, tasks) == []


def test_settings_from_code_declare_the_gate_they_make():
    assert made_by_overrides(Settings(tasks={"a": {"bulkhead": {"limit": 3}}}), {"a": {}}) == []


async def _declared(order):
    flow = TaskFlow(settings=_settings(B__BULKHEAD__LIMIT="3").replace(broker={"url": "memory://"}))
    for name in order:
        flow.task(name=name, bulkhead=Bulkhead("smtp", 9))(_nothing)
    async with flow.worker(drain=0):
        return {gate.name: gate.limit for gate in await flow.broker.gates()}


async def _nothing() -> None: ...


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_a_worker_declares_what_is_in_force(order):
    assert asyncio.run(_declared(order)) == {"smtp": 3}
