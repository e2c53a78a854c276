from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from taskflow.core.budget import Budget
from taskflow.core.specs import RetryBudget

RATIOS = st.sampled_from([0.0, 0.1, 0.25, 1.0, 3.0])


def test_a_budget_is_full_at_first_and_empty_after_its_cap() -> None:
    budget = Budget(RetryBudget("api", cap=3))

    assert budget.tokens == 3
    assert [budget.try_withdraw() for _ in range(4)] == [True, True, True, False]
    assert budget.tokens == 0


def test_it_takes_a_whole_token_to_retry() -> None:
    budget = Budget(RetryBudget("api", ratio=0.5, cap=1))
    budget.try_withdraw()

    budget.deposit()
    half = budget.try_withdraw()
    budget.deposit()

    assert (half, budget.try_withdraw()) == (False, True)


@given(RATIOS, st.integers(1, 20), st.lists(st.booleans(), max_size=200))
def test_retries_never_exceed_their_share_of_the_first_attempts_and_the_cap(
    ratio: float, cap: int, steps: list[bool]
) -> None:
    budget, firsts, retries = Budget(RetryBudget("api", ratio=ratio, cap=cap)), 0, 0
    for is_first in steps:
        if is_first:
            firsts += 1
            budget.deposit()
        else:
            retries += budget.try_withdraw()
        assert 0 <= budget.tokens <= cap
        assert retries <= cap + ratio * firsts + 1e-6
