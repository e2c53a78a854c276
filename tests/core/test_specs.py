from __future__ import annotations

import asyncio
import copy
import dataclasses
import inspect
import math
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskflow.core.specs import (
    Bulkhead,
    Chaos,
    CircuitBreaker,
    ErrorClass,
    RateLimit,
    Retry,
    RetryBudget,
    Timeout,
    parse_rate,
)
from taskflow.errors import ConfigError

NAMED: dict[type, dict[str, Any]] = {
    RetryBudget: {},
    CircuitBreaker: {},
    Bulkhead: {"limit": 1},
    RateLimit: {"rate": "1/s"},
}
NO_NUMBERS = ["5", None, True, math.nan, math.inf, -math.inf, 1e9 + 0.5, [1]]
NO_COUNTS = [0, -1, 2.0, 2.5, "5", True, math.nan, math.inf, None, 10**10]


def refusal(kind: Any, **said: Any) -> str:
    with pytest.raises(ConfigError) as refused:
        kind(**said)
    return str(refused.value)


# ---- defaults ----


def test_the_defaults_are_those_of_the_design() -> None:
    assert Retry() == Retry(
        attempts=3, on=(Exception,), never=(), base=0.5, factor=2, max_delay=60, jitter="full", budget=None
    )
    assert RetryBudget("api") == RetryBudget(name="api", ratio=0.2, cap=10)
    assert CircuitBreaker("smtp") == CircuitBreaker(
        name="smtp",
        failure_rate=0.5,
        min_calls=10,
        window=60,
        consecutive=5,
        slow_call=None,
        slow_rate=0.8,
        open_for=10,
        max_open_for=300,
        close_after=2,
        per_lane=False,
    )
    assert Bulkhead("smtp", 10) == Bulkhead(name="smtp", limit=10, wait=0, per_lane=False)
    assert RateLimit("smtp", "100/m") == RateLimit(name="smtp", rate="100/m", burst=None, per_lane=False)


@pytest.mark.parametrize("kind", [Retry, RetryBudget, CircuitBreaker, Bulkhead, RateLimit, Timeout])
def test_a_spec_is_frozen_and_has_no_room_for_more(kind: Any) -> None:
    assert kind.__dataclass_params__.frozen
    assert "__slots__" in vars(kind)


def test_equal_specs_are_one_key() -> None:
    assert len({CircuitBreaker("smtp"), CircuitBreaker("smtp"), CircuitBreaker("http")}) == 2


# ---- what was said ----

SAID = [
    (Retry(), set()),
    (Retry(3), {"attempts"}),
    (Retry(3, OSError, max_delay=60), {"attempts", "on", "max_delay"}),  # type: ignore[arg-type]
    (CircuitBreaker("smtp"), {"name"}),
    (CircuitBreaker("smtp", consecutive=5, slow_call=None), {"name", "consecutive", "slow_call"}),
    (Bulkhead("smtp", 5, wait=0), {"name", "limit", "wait"}),
    (RateLimit(name="smtp", rate="1/s"), {"name", "rate"}),
]


@pytest.mark.parametrize(("spec", "said"), SAID)
def test_a_spec_remembers_what_was_said_even_where_it_equals_the_default(spec: Any, said: set[str]) -> None:
    assert spec.said == said


@pytest.mark.parametrize(("spec", "said"), SAID)
def test_a_copy_and_a_pickle_remember_what_was_said(spec: Any, said: set[str]) -> None:
    for twin in (copy.copy(spec), copy.deepcopy(spec), pickle.loads(pickle.dumps(spec))):
        assert twin == spec
        assert twin.said == said


@pytest.mark.parametrize(("spec", "_said"), SAID)
def test_a_replaced_spec_says_all_fields(spec: Any, _said: set[str]) -> None:
    twin = dataclasses.replace(spec)

    assert twin == spec
    assert twin.said == {field.name for field in dataclasses.fields(spec) if field.init}


def test_what_was_said_makes_no_difference_to_equality_hash_and_text() -> None:
    assert Retry() == Retry(attempts=3)
    assert len({CircuitBreaker("smtp"), CircuitBreaker("smtp", consecutive=5)}) == 1
    assert repr(Retry()) == repr(Retry(attempts=3))
    assert "said" not in repr(Retry())


def test_what_was_said_is_no_argument() -> None:
    for kind in (Retry, CircuitBreaker, Bulkhead, RateLimit):
        assert "said" not in inspect.signature(kind).parameters
        assert "said" not in kind.__match_args__
    with pytest.raises(TypeError):
        Retry(said=frozenset())  # type: ignore[call-arg]
    assert list(inspect.signature(Bulkhead).parameters) == ["name", "limit", "wait", "per_lane"]


# ---- names ----


@pytest.mark.parametrize("kind", NAMED)
@pytest.mark.parametrize("name", ["smtp", "a", "x" * 100, "api.example.org:443", "Übermut", "two words"])
def test_a_readable_name_is_taken(kind: Any, name: str) -> None:
    assert kind(name=name, **NAMED[kind]).name == name


@pytest.mark.parametrize("kind", NAMED)
@pytest.mark.parametrize("name", ["", " ", "http/api", "a\nb", "a\x00", "x" * 101, None, 5, b"smtp"])
def test_a_name_that_cannot_be_a_gate_is_refused(kind: Any, name: Any) -> None:
    assert refusal(kind, name=name, **NAMED[kind]) == (
        f"{kind.__name__}: name must be a printable name of at most 100 characters without '/', got {name!r}"
    )


# ---- numbers ----


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        (RetryBudget, "ratio"),
        (RetryBudget, "cap"),
        (Retry, "base"),
        (Retry, "factor"),
        (Retry, "max_delay"),
        (CircuitBreaker, "failure_rate"),
        (CircuitBreaker, "window"),
        (CircuitBreaker, "slow_rate"),
        (CircuitBreaker, "open_for"),
        (CircuitBreaker, "max_open_for"),
        (Bulkhead, "wait"),
        (Timeout, "seconds"),
    ],
)
@pytest.mark.parametrize("value", NO_NUMBERS)
def test_what_is_no_finite_number_is_refused_by_name(kind: Any, field: str, value: Any) -> None:
    said = {"name": "smtp", **NAMED[kind]} if kind in NAMED else {}

    assert refusal(kind, **said | {field: value}) == (
        f"{kind.__name__}: {field} must be a number up to 1e+09, got {value!r}"
    )


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        (Retry, "attempts"),
        (CircuitBreaker, "min_calls"),
        (CircuitBreaker, "consecutive"),
        (CircuitBreaker, "close_after"),
        (Bulkhead, "limit"),
    ],
)
@pytest.mark.parametrize("value", NO_COUNTS)
def test_what_is_no_count_is_refused_by_name(kind: Any, field: str, value: Any) -> None:
    said = {"name": "smtp", **NAMED[kind]} if kind in NAMED else {}

    assert refusal(kind, **said | {field: value}) == (
        f"{kind.__name__}: {field} must be a whole number, at least 1, got {value!r}"
    )


@pytest.mark.parametrize("value", [value for value in NO_COUNTS if value is not None])
def test_a_burst_that_is_no_count_is_refused(value: Any) -> None:
    assert refusal(RateLimit, name="smtp", rate="1/s", burst=value) == (
        f"RateLimit: burst must be a whole number, at least 1, got {value!r}"
    )


@pytest.mark.parametrize("value", [value for value in NO_NUMBERS if value is not None])
def test_a_slow_call_that_is_no_number_is_refused(value: Any) -> None:
    assert refusal(CircuitBreaker, name="smtp", slow_call=value) == (
        f"CircuitBreaker: slow_call must be a number up to 1e+09, got {value!r}"
    )


@pytest.mark.parametrize(
    ("kind", "field", "value", "wants"),
    [
        (RetryBudget, "ratio", -0.1, "at least 0"),
        (RetryBudget, "cap", 0, "more than 0"),
        (Retry, "base", -0.1, "at least 0 seconds"),
        (Retry, "factor", 0.99, "at least 1"),
        (Retry, "max_delay", -1, "at least 0 seconds"),
        (Retry, "jitter", "some", "one of 'full', 'equal', 'decorrelated', 'none'"),
        (CircuitBreaker, "failure_rate", 0, "in (0, 1]"),
        (CircuitBreaker, "failure_rate", 1.01, "in (0, 1]"),
        (CircuitBreaker, "window", 0, "at least 0.001 seconds"),
        (CircuitBreaker, "slow_call", 0, "more than 0 seconds"),
        (CircuitBreaker, "slow_rate", 0, "in (0, 1]"),
        (CircuitBreaker, "slow_rate", 1.01, "in (0, 1]"),
        (CircuitBreaker, "open_for", 0, "more than 0 seconds"),
        (CircuitBreaker, "max_open_for", 9.9, "at least open_for"),
        (Bulkhead, "wait", -1, "at least 0 seconds"),
        (Timeout, "seconds", 0, "more than 0"),
        (Timeout, "seconds", -5, "more than 0"),
    ],
)
def test_a_number_out_of_its_range_is_refused_with_the_range(kind: Any, field: str, value: Any, wants: str) -> None:
    said = {"name": "smtp", **NAMED[kind]} if kind in NAMED else {}

    assert refusal(kind, **said | {field: value}) == f"{kind.__name__}: {field} must be {wants}, got {value!r}"


def test_the_ends_of_the_ranges_belong_to_them() -> None:
    Retry(attempts=1, base=0, factor=1, max_delay=0)
    Retry(attempts=10**9, base=1e9, factor=1e9, max_delay=1e9)
    RetryBudget("api", ratio=0, cap=0.1)
    CircuitBreaker("smtp", failure_rate=1, min_calls=1, window=0.001, consecutive=1, slow_rate=1, close_after=1)
    CircuitBreaker("smtp", slow_call=0.001, open_for=300)
    CircuitBreaker("smtp", failure_rate=0.001, slow_rate=0.001, open_for=0.001, max_open_for=0.001)
    Bulkhead("smtp", 1, wait=0)
    RateLimit("smtp", "1/s", burst=1)
    Timeout(0.001)


# ---- rates ----


@pytest.mark.parametrize(
    ("text", "interval_s"),
    [
        ("100/m", 0.6),
        ("1/s", 1.0),
        ("1/h", 3_600.0),
        ("1/d", 86_400.0),
        ("0.5/s", 2.0),
        ("1e3/s", 0.001),
        (" 100 / m ", 0.6),
        ("100000/s", 1e-5),
        ("0.0001/d", 8.64e8),
    ],
)
def test_a_rate_is_a_count_for_a_period(text: str, interval_s: float) -> None:
    assert parse_rate(text) == pytest.approx(interval_s)
    assert RateLimit("smtp", text).interval_s == pytest.approx(interval_s)


@pytest.mark.parametrize(
    "text", ["", "100", "/m", "100/", "100/x", "m/100", "100/m/s", "0/s", "-1/s", "nan/s", "inf/s", "1e999/s", None, 5]
)
def test_what_is_no_rate_is_refused_with_an_example(text: Any) -> None:
    for kind in (lambda: parse_rate(text), lambda: RateLimit("smtp", text)):
        with pytest.raises(ConfigError) as refused:
            kind()
        assert str(refused.value) == f"a rate is a count per s, m, h or d, as in '100/m'; got {text!r}"


@pytest.mark.parametrize("text", ["100001/s", "1e300/d", "1e-300/s", "5e-324/s", "0.00001/d"])
def test_a_rate_that_cannot_be_counted_is_refused_with_the_range(text: str) -> None:
    assert refusal(lambda: parse_rate(text)) == (
        f"a rate is at most 100,000 starts a second, at least one in thirty years; got {text!r}"
    )


def test_a_burst_that_no_rate_could_refill_is_refused() -> None:
    assert refusal(RateLimit, name="smtp", rate="1/d", burst=20_000) == (
        "RateLimit: burst must be at most what '1/d' allows in thirty years, got 20000"
    )


@given(st.floats(0.001, 100_000), st.sampled_from("smhd"))
def test_the_interval_is_the_period_over_the_count(count: float, period: str) -> None:
    period_s = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}[period]

    assert parse_rate(f"{count!r}/{period}") * count == pytest.approx(period_s)


# ---- what is worth another attempt ----


def test_a_single_class_is_a_tuple_of_one() -> None:
    retry = Retry(on=OSError, never=TimeoutError)  # type: ignore[arg-type]

    assert (retry.on, retry.never) == ((OSError,), (TimeoutError,))


@pytest.mark.parametrize("field", ["on", "never"])
@pytest.mark.parametrize("value", ["OSError", OSError("x"), (OSError, "x"), [OSError], (int,), None])
def test_what_is_no_exception_class_is_refused(field: str, value: Any) -> None:
    assert refusal(Retry, **{field: value}) == (
        f"Retry: {field} must be an exception class, an ErrorClass, or a tuple of them, got {value!r}"
    )


def test_any_exception_is_worth_another_attempt_unless_said_otherwise() -> None:
    assert Retry().covers(RuntimeError())
    assert not Retry(on=()).covers(RuntimeError())


@pytest.mark.parametrize("error", [asyncio.CancelledError(), KeyboardInterrupt(), SystemExit(), GeneratorExit()])
def test_what_is_no_failure_is_never_worth_another_attempt(error: BaseException) -> None:
    assert not Retry(on=(BaseException,)).covers(error)


def test_never_wins_over_on() -> None:
    retry = Retry(on=(OSError,), never=(TimeoutError,))

    assert retry.covers(ConnectionResetError())
    assert not retry.covers(TimeoutError())
    assert not retry.covers(ValueError())


def test_a_group_is_worth_another_attempt_only_if_every_error_in_it_is() -> None:
    retry = Retry(on=(OSError,), never=(TimeoutError,))

    assert retry.covers(ExceptionGroup("", [OSError(), ExceptionGroup("", [ConnectionError()])]))
    assert not retry.covers(ExceptionGroup("", [OSError(), ValueError()]))
    assert not retry.covers(ExceptionGroup("", [OSError(), ExceptionGroup("", [TimeoutError()])]))
    assert not retry.covers(BaseExceptionGroup("", [OSError(), asyncio.CancelledError()]))


def test_groups_can_be_refused_as_such() -> None:
    assert not Retry(never=(ExceptionGroup,)).covers(ExceptionGroup("", [OSError()]))


def test_a_spec_can_be_tuned_by_replacing_a_field() -> None:
    tuned = dataclasses.replace(Retry(on=(OSError,)), attempts=7)

    assert tuned == Retry(attempts=7, on=(OSError,))


# ---- classes of error ----


def classed(error: BaseException) -> ErrorClass:
    return ErrorClass.TRANSIENT if isinstance(error, RuntimeError) else ErrorClass.PERMANENT


def test_an_error_is_covered_by_its_class() -> None:
    retry = Retry(on=(ErrorClass.TRANSIENT, KeyError))

    assert retry.covers(RuntimeError(), classed)
    assert retry.covers(KeyError(), classed)
    assert not retry.covers(ValueError(), classed)
    assert retry.covers(ExceptionGroup("", [RuntimeError(), KeyError()]), classed)


def test_never_takes_classes_of_error_too() -> None:
    retry = Retry(never=ErrorClass.TRANSIENT)  # type: ignore[arg-type]

    assert not retry.covers(RuntimeError(), classed)
    assert retry.covers(ValueError(), classed)


def test_without_a_classifier_no_error_has_a_class() -> None:
    assert not Retry(on=(ErrorClass.TRANSIENT,)).covers(RuntimeError())


@pytest.mark.parametrize("field", ["on_result", "delay"])
def test_what_is_no_function_is_refused(field: str) -> None:
    assert refusal(Retry, **{field: 3}) == f"Retry: {field} must be a function, got 3"


# ---- chaos, counted windows, waits ----


@pytest.mark.parametrize(
    ("kind", "said", "message"),
    [
        (Chaos, {"fault_rate": 1.1}, "Chaos: fault_rate must be from 0 to 1, got 1.1"),
        (Chaos, {"fault_rate": True}, "Chaos: fault_rate must be a number up to 1e+09, got True"),
        (Chaos, {"latency_rate": -1}, "Chaos: latency_rate must be from 0 to 1, got -1"),
        (Chaos, {"latency": -1}, "Chaos: latency must be at least 0 seconds, got -1"),
        (Chaos, {"fault": 3}, "Chaos: fault must be a function that makes an exception, or its class, got 3"),
        (
            CircuitBreaker,
            {"name": "a", "window_calls": 9},
            "CircuitBreaker: window_calls must be from min_calls to 100000, or the rate never counts, got 9",
        ),
        (
            CircuitBreaker,
            {"name": "a", "window_calls": 2.5},
            "CircuitBreaker: window_calls must be a whole number, at least 1, got 2.5",
        ),
        (RateLimit, {"name": "a", "rate": "1/s", "wait": -1}, "RateLimit: wait must be at least 0 seconds, got -1"),
        (RateLimit, {"name": "a", "rate": "1/s", "wait": "1"}, "RateLimit: wait must be a number up to 1e+09, got '1'"),
    ],
)
def test_what_cannot_be_meant_is_refused(kind: Any, said: dict[str, Any], message: str) -> None:
    assert refusal(kind, **said) == message


def test_chaos_does_nothing_until_a_rate_is_said() -> None:
    assert (Chaos().fault_rate, Chaos().latency_rate) == (0, 0)
    assert isinstance(Chaos().fault(), ConnectionError)
