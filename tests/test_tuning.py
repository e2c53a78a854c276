"""What is in force for a task: precedence leaf by leaf, and who said it."""

import dataclasses

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from taskflow import TaskFlow
from taskflow.core.specs import Bulkhead, CircuitBreaker, RateLimit, Retry, RetryBudget
from taskflow.errors import ConfigError
from taskflow.runtime.task import TaskDef
from taskflow.settings import LEAVES, TASK_LEAVES, Settings
from taskflow.settings.reference import env_name, task_key
from taskflow.settings.tuning import explain, resolve, unknown_tasks


def _env(**values):
    """TASKFLOW_ variables without the prefix."""
    return {f"TASKFLOW_{name}": value for name, value in values.items()}


LAYERS = ("task variable", "options", "decorator", "section variable", "env file", "default")
SPECS = {"retry": Retry, "breaker": CircuitBreaker, "bulkhead": Bulkhead, "rate": RateLimit}


def _choices(path):
    """Five values, none of them the default, neighbours different; the last is the default's layer."""
    match path:
        case ("retry", "jitter"):
            return ["none", "equal", "none", "equal", "none"]
        case ("queue",):
            return ["q1", "q2", "q3", "q4", "q5"]
        case ("rate", "limit"):
            return ["1/s", "2/s", "3/s", "4/s", "5/s"]
        case ("priority",):
            return [9, 8, 7, 6, 5]
        case (_, "failure_rate" | "slow_rate"):
            return [0.9, 0.6, 0.7, 0.65, 0.75]
        case ("breaker", "max_open_for_s"):
            return [301, 302, 303, 304, 305]
        case _:
            return [11, 12, 13, 14, 15]


@pytest.mark.parametrize("path", TASK_LEAVES, ids=".".join)
def test_precedence_leaf_by_leaf(path, tmp_path):
    values = dict(zip(LAYERS, _choices(path), strict=False))
    section = path if len(path) > 1 else ("task", *path)
    layers = [layer for layer in LAYERS[:-1] if section in LEAVES or layer not in ("section variable", "env file")]
    key = path[-1].removesuffix("_s")

    def in_code(layer):
        if len(path) == 1:
            return {key: values[layer]}
        if path[:2] == ("retry", "budget"):
            return {"retry": Retry(budget=RetryBudget("gate", **{key: values[layer]}))}
        named = {} if path[0] == "retry" else {"name": "gate"}
        if path[0] == "rate":
            return {"rate": RateLimit(**named, **{"rate": "9/s", {"limit": "rate"}.get(key, key): values[layer]})}
        return {path[0]: SPECS[path[0]](**named, **{key: values[layer]})}

    def effective(present):
        file = tmp_path / "env"
        file.write_text(f"{env_name(section)}={values['env file']}\n" if "env file" in present else "")
        env = _env(ENV_FILE=str(file))
        if "section variable" in present:
            env[env_name(section)] = str(values["section variable"])
        if "task variable" in present:
            env[env_name(("tasks", "send_mail", *path))] = str(values["task variable"])
        s = Settings.from_env(env)
        declared = in_code("decorator") if "decorator" in present else {}
        options = in_code("options") if "options" in present else {}
        if (path[0] in ("breaker", "rate") or "budget" in path) and not (declared or options):
            declared = {"breaker": CircuitBreaker("gate"), "rate": RateLimit("gate", "9/s")}
            declared["retry"] = Retry(budget=RetryBudget("gate")) if "budget" in path else None
        policy = resolve(s, "send_mail", declared, options)
        said = {leaf.name: leaf for leaf in explain(s, "send_mail", declared, options)}[".".join(path)]
        part = policy
        for step in path[:-1]:
            part = getattr(part, step)
        attribute = path[-1] if len(path) == 1 else {"limit": "rate"}.get(key, key) if path[0] == "rate" else key
        return getattr(part, attribute), said.source

    for at, layer in enumerate(layers):
        value, source = effective(layers[at:])
        assert value == values[layer]
        assert (
            source
            == {
                "task variable": f"environment: {env_name(('tasks', 'send_mail', *path))}",
                "options": "options()",
                "decorator": "decorator",
                "section variable": f"environment: {env_name(section)}",
                "env file": f"env file: {env_name(section)}",
            }[layer]
        )
    if path[0] != "bulkhead" and path != ("rate", "limit") and "budget" not in path:
        assert effective([])[1] == "default"


def test_what_code_says_wins_over_a_section_also_where_it_equals_the_default():
    s = Settings.from_env(
        _env(
            RETRY__ATTEMPTS="9",
            RETRY__BASE_S="2",
            BREAKER__CONSECUTIVE="9",
            BREAKER__SLOW_CALL_S="1",
            TASK__PRIORITY="9",
        )
    )

    policy = resolve(
        s,
        "t",
        {"retry": Retry(3), "breaker": CircuitBreaker("x", consecutive=5, slow_call=None), "priority": 4},
    )

    assert policy.retry == Retry(attempts=3, base=2)
    assert policy.breaker == CircuitBreaker("x", consecutive=5)
    assert policy.priority == 4
    assert resolve(s, "t", {"retry": Retry(5)}, {"retry": Retry(attempts=3)}).retry.attempts == 3


def test_a_replaced_spec_says_all_its_fields():
    s = Settings.from_env(_env(RETRY__BASE_S="2"))

    assert resolve(s, "t", {"retry": dataclasses.replace(Retry(), attempts=7)}).retry == Retry(attempts=7, base=0.5)


@pytest.mark.parametrize("carried", [False, True])
def test_options_that_equal_each_other_but_say_other_fields_are_told_apart(carried):
    task = TaskDef("t", _nothing, {"retry": Retry(attempts=7)})
    s = Settings()
    said, silent = ({"attempts": 3}, {}) if carried else (Retry(attempts=3), Retry())

    assert [task.policy(s, {"retry": retry}).retry.attempts for retry in (said, silent, said)] == [3, 7, 3]


@pytest.mark.parametrize(
    "carried",
    [
        [3, 0.5, 2, 60, "full"],
        None,
        "x",
        {"on": []},
        {"budget": {}},
        {"said": ["attempts"]},
        {"attempts": "3"},
        {"base": []},
        {"jitter": {}},
        {"oops": 1},
    ],
)
def test_a_carried_retry_that_is_none_is_refused(carried):
    with pytest.raises(ConfigError):
        TaskDef("t", _nothing, {}).policy(Settings(), {"retry": carried})


def test_a_retry_budget_is_the_tasks_own_with_what_the_environment_says():
    budget = RetryBudget("api", ratio=0.5, cap=20)
    declared = {"retry": Retry(budget=budget)}
    tuned = Settings.from_env(_env(TASKS__SEND__RETRY__BUDGET__RATIO="0.1"))

    assert resolve(Settings(), "send", declared).retry.budget == budget
    assert resolve(tuned, "send", declared).retry.budget == RetryBudget("api", ratio=0.1, cap=20)
    assert resolve(tuned, "send", {}).retry.budget == RetryBudget("send", ratio=0.1, cap=10)
    assert resolve(tuned, "other", {}).retry.budget is None
    shown = {leaf.name: (leaf.value, leaf.source) for leaf in explain(tuned, "send", declared)}
    assert shown["retry.budget.ratio"] == ("0.1", "environment: TASKFLOW_TASKS__SEND__RETRY__BUDGET__RATIO")
    assert shown["retry.budget.cap"] == ("20", "decorator")


def test_one_retry_budget_with_two_different_specs_is_refused():
    flow = TaskFlow()
    flow.task(name="a", retry=Retry(budget=RetryBudget("api")))(_nothing)
    flow.task(name="b", retry=Retry(budget=RetryBudget("api")))(_nothing)

    with pytest.raises(ConfigError, match="RetryBudget 'api' is declared twice"):
        flow.task(name="c", retry=Retry(budget=RetryBudget("api", ratio=1)))(_nothing)


def test_none_in_code_counts_as_not_said():
    assert resolve(Settings(), "t", {"timeout": None, "retry": None, "breaker": None}) == resolve(Settings(), "t", {})


def test_python_objects_of_a_retry_stay():
    never = resolve(Settings.from_env(_env(TASKS__T__RETRY__ATTEMPTS="9")), "t", {"retry": Retry(never=(ValueError,))})

    assert never.retry == Retry(attempts=9, never=(ValueError,))


def test_options_add_to_the_decorator_leaf_by_leaf():
    policy = resolve(Settings(), "t", {"retry": Retry(attempts=5)}, {"retry": Retry(base=2)})

    assert policy.retry == Retry(attempts=5, base=2)


def test_sections_make_no_breaker_but_an_override_does():
    s = Settings.from_env(_env(BREAKER__OPEN_FOR_S="20", TASKS__A__BREAKER__CONSECUTIVE="2"))

    assert resolve(s, "b", {}).breaker is None
    assert resolve(s, "a", {}).breaker == CircuitBreaker("a", consecutive=2, open_for=20)


def test_an_override_makes_a_bulkhead_and_a_rate_limit_named_after_the_task():
    s = Settings.from_env(_env(TASKS__A__BULKHEAD__LIMIT="2", TASKS__A__RATE__LIMIT="1/s", TASKS__A__RATE__BURST="3"))

    policy = resolve(s, "A", {})

    assert policy.bulkhead == Bulkhead("A", 2)
    assert policy.rate == RateLimit("A", "1/s", burst=3)


def test_an_override_keeps_what_it_does_not_say():
    s = Settings.from_env(
        _env(TASKS__A__BULKHEAD__LIMIT="2", TASKS__A__RATE__BURST="3", TASKS__A__BREAKER__OPEN_FOR_S="1")
    )
    declared = {
        "bulkhead": Bulkhead("smtp", 10, wait=1, per_lane=True),
        "rate": RateLimit("smtp", "9/s", per_lane=True),
        "breaker": CircuitBreaker("smtp", window=5, per_lane=True),
    }

    policy = resolve(s, "a", declared)

    assert policy.bulkhead == dataclasses.replace(declared["bulkhead"], limit=2)
    assert policy.rate == dataclasses.replace(declared["rate"], burst=3)
    assert policy.breaker == dataclasses.replace(declared["breaker"], open_for=1)


def test_a_burst_without_a_rate_is_refused():
    s = Settings.from_env(_env(TASKS__A__RATE__BURST="3"))

    with pytest.raises(ConfigError) as caught:
        resolve(s, "a", {})

    assert str(caught.value) == (
        "TASKFLOW_TASKS__A__RATE__BURST: the task has no rate limit; set TASKFLOW_TASKS__A__RATE__LIMIT too"
    )


@pytest.mark.parametrize("name", ["send_mail", "Send_Mail", "SEND_MAIL"])
def test_task_names_are_matched_without_case(name):
    s = Settings.from_env(_env(TASKS__Send_Mail__TIMEOUT_S="5"))

    assert resolve(s, name, {"timeout": 30}).timeout_s == 5


@pytest.mark.parametrize("variable", ["TASKS__MAIL_SEND__TIMEOUT_S", "TASKS__mail.send__TIMEOUT_S"])
def test_a_dot_in_a_task_name_is_an_underscore_for_shells(variable):
    s = Settings.from_env(_env(**{variable: "5"}))

    assert resolve(s, "mail.send", {}).timeout_s == 5
    assert s.warnings == ()


@given(st.from_regex(r"[A-Za-z0-9_.]{1,20}", fullmatch=True).filter(lambda name: "__" not in name))
@example("_")
@example("retry")
@example("x_")
@example("_x")
@example("0..0")
def test_any_task_name_can_be_overridden(name):
    for tail in (("timeout_s",), ("retry", "max_delay_s")):
        variable = f"TASKFLOW_TASKS__{name.upper()}__{'__'.join(tail).upper()}"

        s = Settings.from_env({variable: "7"})

        policy = resolve(s, name, {})
        assert (policy.timeout_s if len(tail) == 1 else policy.retry.max_delay) == 7
        assert s.warnings == ()
        assert list(s.tasks) == [task_key(name)]


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        (
            {"timeout": -1},
            "timeout must be a duration above 0, at most 2592000 (seconds, or 250ms, 90s, 5m, 1h), got -1",
        ),
        ({"timeout": float("inf")}, "got inf"),
        ({"priority": 10}, "priority must be a whole number from 0 to 9, got 10"),
        ({"queue": ""}, "queue must be a printable name of at most 100 characters, got ''"),
        ({"retry": 5}, "retry must be a Retry, got 5"),
        ({"breaker": "smtp"}, "breaker must be a CircuitBreaker, got 'smtp'"),
    ],
)
def test_wrong_values_in_code_name_the_task_and_who_said_it(declared, words):
    with pytest.raises(ConfigError) as caught:
        resolve(Settings(), "send_mail", declared)

    assert str(caught.value).startswith("task 'send_mail', decorator: ")
    assert words in str(caught.value)


def test_an_override_that_contradicts_a_spec_names_its_variables():
    s = Settings.from_env(_env(TASKS__A__BREAKER__OPEN_FOR_S="400"))

    with pytest.raises(ConfigError, match=r"TASKFLOW_TASKS__A__BREAKER__.*max_open_for must be at least open_for"):
        resolve(s, "a", {})


def test_explain_tells_each_leaf_once_with_the_variable_that_overrides_it():
    declared = {"breaker": CircuitBreaker("smtp"), "bulkhead": Bulkhead("smtp", 3), "rate": RateLimit("smtp", "1/s")}
    declared["retry"] = Retry(budget=RetryBudget("smtp"))

    leaves = explain(Settings(), "mail.send", declared)

    names = [leaf.name for leaf in leaves]
    assert len(names) == len(set(names))
    assert {".".join(tail) for tail in TASK_LEAVES} <= set(names)
    known = {env_name(("tasks", "mail_send", *tail)) for tail in TASK_LEAVES}
    assert {leaf.variable for leaf in leaves if leaf.variable} == known


def test_the_sections_say_what_the_specs_say():
    policy = resolve(Settings(), "t", {"breaker": CircuitBreaker("x")})

    assert policy.retry == Retry()
    assert policy.breaker == CircuitBreaker("x")


def test_overrides_of_tasks_that_do_not_exist_are_told():
    s = Settings.from_env(
        _env(TASKS__SEND_MIAL__TIMEOUT_S="5", TASKS__RESIZE__RETRY__ATTEMPTS="2", TASKS__Q__QUEUE="x")
    )

    found = unknown_tasks(s, ["send_mail", "resize"])

    assert [(misspelt.name, misspelt.suggestion) for misspelt in found] == [
        ("TASKFLOW_TASKS__Q__QUEUE", None),
        ("TASKFLOW_TASKS__SEND_MIAL__TIMEOUT_S", "TASKFLOW_TASKS__SEND_MAIL__TIMEOUT_S"),
    ]


def test_a_task_forgets_what_other_settings_said():
    task = TaskDef("t", _nothing, {})

    assert [task.policy(Settings(task={"timeout_s": seconds})).timeout_s for seconds in (5, 6, 5)] == [5, 6, 5]


async def _nothing() -> None: ...
