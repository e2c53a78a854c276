from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskflow.core.budget import Budget
from taskflow.core.specs import RetryBudget


def test_a_new_budget_is_full() -> None:
    assert Budget(RetryBudget("api")).tokens == 10


def test_each_retry_costs_one_until_less_than_one_is_left() -> None:
    budget = Budget(RetryBudget("api", cap=2.5))

    assert [budget.try_withdraw() for _ in range(4)] == [True, True, False, False]
    assert budget.tokens == pytest.approx(0.5)


def test_first_attempts_fill_it_by_the_ratio() -> None:
    budget = Budget(RetryBudget("api", ratio=0.25, cap=1))
    budget.try_withdraw()

    answers = []
    for _ in range(8):
        budget.deposit()
        answers.append(budget.try_withdraw())

    assert answers == [False, False, False, True] * 2


def test_a_ratio_of_nothing_never_fills_it() -> None:
    budget = Budget(RetryBudget("api", ratio=0, cap=1))
    budget.try_withdraw()

    for _ in range(1_000):
        budget.deposit()

    assert not budget.try_withdraw()


@given(
    st.sampled_from([0.0, 0.1, 0.2, 1.0, 3.0]),
    st.sampled_from([0.5, 1.0, 10.0, 100.0]),
    st.lists(st.booleans(), max_size=300),
)
def test_retries_never_exceed_the_ratio_and_what_was_saved(ratio: float, cap: float, steps: list[bool]) -> None:
    budget, first, retries = Budget(RetryBudget("api", ratio=ratio, cap=cap)), 0, 0
    for is_retry in steps:
        if is_retry:
            retries += budget.try_withdraw()
        else:
            first += 1
            budget.deposit()

        assert 0 <= budget.tokens <= cap
        assert retries <= cap + ratio * first + 1e-6
