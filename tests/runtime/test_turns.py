"""Queues are asked in turn, by their weights."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from taskflow.runtime.turns import QueueTurns

WEIGHTS = st.dictionaries(st.text(min_size=1, max_size=5), st.integers(1, 100), min_size=1, max_size=6)


@given(WEIGHTS)
def test_each_queue_has_its_share_of_first_turns(weights: dict[str, int]) -> None:
    turns = QueueTurns(weights)

    first = Counter(turns.next()[0] for _ in range(sum(weights.values())))

    assert first == weights


@given(WEIGHTS, st.integers(1, 50))
def test_every_claim_asks_every_queue_once(weights: dict[str, int], claims: int) -> None:
    turns = QueueTurns(weights)

    for _ in range(claims):
        assert sorted(turns.next()) == sorted(weights)


def test_first_turns_are_spread_not_bunched() -> None:
    turns = QueueTurns({"mail": 5, "rest": 1})

    first = [turns.next()[0] for _ in range(12)]

    gaps = [index for index, queue in enumerate(first) if queue == "rest"]
    assert gaps[1] - gaps[0] == 6
