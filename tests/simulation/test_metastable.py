"""An overload of five seconds, and what is left of it afterwards: see `benchmarks/metastable.py`."""

from __future__ import annotations

import pytest

from benchmarks.metastable import amplification, budget_alone, bulkheaded, collapse, naive, ours, without_budget

pytestmark = pytest.mark.anyio


async def test_naive_retries_keep_a_server_down_after_its_overload_is_over() -> None:
    seen = await collapse(naive, seed=0)

    assert seen.success(5, 20) > 0.98
    assert seen.recovered_after_s() is None
    assert seen.in_flight > 1_000


@pytest.mark.parametrize("make", [ours, bulkheaded])
@pytest.mark.parametrize("seed", [0, 1])
async def test_with_the_default_policies_it_recovers_within_twenty_seconds(make: object, seed: int) -> None:
    seen = await collapse(make, seed=seed)

    assert seen.success(5, 20) > 0.98
    assert seen.recovered_after_s() <= 20
    assert seen.in_flight < 100


async def test_a_dependency_that_fails_every_call_gets_a_quarter_more_at_most() -> None:
    assert await amplification(budget_alone, seed=0, seconds=30) <= 1.25
    assert await amplification(ours, seed=0, seconds=30) <= 1.25
    assert await amplification(without_budget, seed=0, seconds=10) > 3.5
