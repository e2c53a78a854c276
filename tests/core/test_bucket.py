from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from taskflow.core import bucket

TODAY = 1_800_000_000.0
# From the first second of a virtual clock to the wall clock of this century.
NOWS = st.floats(0, 4e9)
INTERVALS = st.sampled_from([1e-5, 1e-3, 0.01, 0.1, 1 / 3, 0.6, 1.0, 36.0, 86_400.0]) | st.floats(1e-4, 1e5)
BURSTS = st.integers(1, 1_000)


def taken(count: int, *, now: float, interval_s: float, burst: int, tat: float = 0.0) -> float:
    """`tat` after `count` single starts at `now`."""
    for _ in range(count):
        tat = bucket.take(tat, 1, now=now, interval_s=interval_s, burst=burst)
    return tat


@given(NOWS, INTERVALS, BURSTS)
@example(now=TODAY, interval_s=0.1, burst=3)
@example(now=TODAY, interval_s=1e-5, burst=1)
def test_a_new_bucket_has_its_burst_and_not_one_more(now: float, interval_s: float, burst: int) -> None:
    assert bucket.available(0.0, now=now, interval_s=interval_s, burst=burst) == burst


@given(NOWS, INTERVALS, BURSTS, st.data())
def test_every_start_takes_one(now: float, interval_s: float, burst: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, burst))
    tat = bucket.take(0.0, count, now=now, interval_s=interval_s, burst=burst)

    assert bucket.available(tat, now=now, interval_s=interval_s, burst=burst) == burst - count


@given(NOWS, INTERVALS, st.integers(1, 30))
@example(now=TODAY, interval_s=0.1, burst=10)
@example(now=TODAY, interval_s=1e-5, burst=30)
def test_starts_one_by_one_take_as_much_as_all_at_once(now: float, interval_s: float, burst: int) -> None:
    tat = taken(burst, now=now, interval_s=interval_s, burst=burst)

    assert bucket.available(tat, now=now, interval_s=interval_s, burst=burst) == 0


@given(NOWS, INTERVALS, st.integers(1, 100), st.integers(1, 100))
@example(now=TODAY, interval_s=0.1, burst=10, waited=1)
@example(now=100.0, interval_s=0.1, burst=10, waited=1)
def test_one_comes_back_every_interval(now: float, interval_s: float, burst: int, waited: int) -> None:
    tat = bucket.take(0.0, burst, now=now, interval_s=interval_s, burst=burst)

    back = bucket.available(tat, now=now + waited * interval_s, interval_s=interval_s, burst=burst)

    assert back == min(waited, burst)


@given(NOWS, INTERVALS, BURSTS, st.floats(0, 1))
@example(now=TODAY, interval_s=0.1, burst=7, spread=0.0)
def test_next_at_is_the_exact_instant_of_the_next_start(
    now: float, interval_s: float, burst: int, spread: float
) -> None:
    tat = now + interval_s * (burst - 1 + spread)
    at = bucket.next_at(tat, now=now, interval_s=interval_s, burst=burst)

    assert bucket.available(tat, now=at, interval_s=interval_s, burst=burst) >= 1
    before = at - 3e-6
    assert before < now or bucket.available(tat, now=before, interval_s=interval_s, burst=burst) == 0


@given(NOWS, INTERVALS, BURSTS, st.floats(-100, 1e5))
@example(now=1e9, interval_s=86_400.0, burst=1_000, ahead_s=86_400.0 * 999.5)
def test_who_may_not_start_now_is_told_an_instant_that_is_still_to_come(
    now: float, interval_s: float, burst: int, ahead_s: float
) -> None:
    tat = now + ahead_s
    at = bucket.next_at(tat, now=now, interval_s=interval_s, burst=burst)

    if bucket.available(tat, now=now, interval_s=interval_s, burst=burst) == 0:
        assert at > now
    else:
        assert now <= at <= now + 2e-6


@given(
    st.sampled_from([0.0, TODAY, 4e9]),
    INTERVALS.filter(lambda interval_s: interval_s >= 1e-3),
    st.integers(1, 20),
    st.lists(st.tuples(st.floats(0, 3), st.integers(1, 30)), min_size=1, max_size=40),
)
def test_no_window_ever_has_more_starts_than_its_burst_and_its_rate(
    began_at: float, interval_s: float, burst: int, steps: list[tuple[float, int]]
) -> None:
    now, tat, starts = began_at, 0.0, []
    for waits, wanted in steps:
        now += waits * interval_s
        count = min(wanted, bucket.available(tat, now=now, interval_s=interval_s, burst=burst))
        tat = bucket.take(tat, count, now=now, interval_s=interval_s, burst=burst)
        starts += [now] * count

    for first, since in enumerate(starts):
        for last in range(first, len(starts)):
            rounding_s = 1e-6 + (last - first + 1) * 2 * math.ulp(starts[last])
            allowed = burst + (starts[last] - since + rounding_s) / interval_s
            assert last - first + 1 <= allowed


@given(NOWS, INTERVALS, BURSTS, st.data())
def test_what_is_given_back_at_once_can_be_taken_again(
    now: float, interval_s: float, burst: int, data: st.DataObject
) -> None:
    used = data.draw(st.integers(0, burst))
    unused = data.draw(st.integers(0, burst - used))
    tat = bucket.take(0.0, used + unused, now=now, interval_s=interval_s, burst=burst)

    tat = bucket.give_back(tat, unused, interval_s=interval_s)

    assert bucket.available(tat, now=now, interval_s=interval_s, burst=burst) == burst - used


@given(NOWS, INTERVALS, BURSTS, st.integers(0, 10_000), st.floats(0, 1e6))
def test_giving_back_never_lets_more_than_the_burst_through_at_once(
    now: float, interval_s: float, burst: int, unused: int, ahead_s: float
) -> None:
    tat = bucket.give_back(now + ahead_s, unused, interval_s=interval_s)

    assert 0 <= bucket.available(tat, now=now, interval_s=interval_s, burst=burst) <= burst


@given(NOWS, INTERVALS, BURSTS)
def test_a_bucket_that_was_idle_for_ever_has_no_more_than_its_burst(now: float, interval_s: float, burst: int) -> None:
    tat = bucket.take(0.0, burst, now=now, interval_s=interval_s, burst=burst)
    later = now + interval_s * burst + 1e8

    assert bucket.available(tat, now=later, interval_s=interval_s, burst=burst) == burst


@given(INTERVALS, BURSTS, st.floats(10.5, 1e6))
@example(interval_s=1.0, burst=3, back_s=10.5)
def test_a_clock_that_was_set_back_closes_no_limit_for_hours(interval_s: float, burst: int, back_s: float) -> None:
    tat = bucket.take(0.0, burst, now=TODAY, interval_s=interval_s, burst=burst)
    now = TODAY - back_s

    assert bucket.available(tat, now=now, interval_s=interval_s, burst=burst) == burst
    assert bucket.next_at(tat, now=now, interval_s=interval_s, burst=burst) == now
    tat = bucket.take(tat, burst, now=now, interval_s=interval_s, burst=burst)
    assert bucket.available(tat, now=now, interval_s=interval_s, burst=burst) == 0


@given(INTERVALS, BURSTS, st.floats(0, 9.9))
def test_a_reading_from_before_the_last_start_gets_nothing_more(
    interval_s: float, burst: int, earlier_s: float
) -> None:
    tat = bucket.take(0.0, burst, now=TODAY, interval_s=interval_s, burst=burst)

    assert bucket.available(tat, now=TODAY - earlier_s, interval_s=interval_s, burst=burst) == 0


def test_a_debt_from_a_slower_rate_does_not_outlast_it() -> None:
    tat = taken(24, now=TODAY, interval_s=3_600.0, burst=24)

    assert bucket.available(tat, now=TODAY, interval_s=0.1, burst=5) == 5


@pytest.mark.parametrize(
    ("interval_s", "burst", "countable"),
    [
        (1.0, 1, True),
        (1e-5, 1, True),
        (0.99e-5, 1, False),
        (0.0, 1, False),
        (-1.0, 1, False),
        (math.nan, 1, False),
        (math.inf, 1, False),
        (1.0, 0, False),
        (1.0, -1, False),
        (1e9, 1, True),
        (1.0, 10**9, True),
        (1.0, 10**9 + 1, False),
    ],
)
def test_only_rates_that_a_float_can_count_are_countable(interval_s: float, burst: int, countable: bool) -> None:
    assert bucket.is_countable(interval_s, burst) is countable


# ---- turns that are waited for ----


def test_turns_are_evenly_spaced_after_the_burst() -> None:
    tat, turns = 0.0, []
    for _ in range(6):
        tat, turn = bucket.reserve(tat, now=100.0, interval_s=2.0, burst=3)
        turns.append(turn)

    assert turns == [100, 100, 100, 102, 104, 106]


def test_however_many_wait_none_is_forgotten() -> None:
    tat = 0.0
    for _ in range(1_000):
        tat, turn = bucket.reserve(tat, now=0.0, interval_s=60.0, burst=1)

    assert turn == 999 * 60


@given(st.lists(st.floats(0, 5), min_size=1, max_size=60), st.sampled_from([0.1, 1.0, 3.0]), st.integers(1, 4))
def test_no_window_of_turns_holds_more_than_rate_and_burst_allow(
    waits: list[float], interval_s: float, burst: int
) -> None:
    tat, now, turns = 0.0, 50.0, []
    for wait_s in waits:
        now += wait_s
        tat, turn = bucket.reserve(tat, now=now, interval_s=interval_s, burst=burst)
        assert turn >= now
        turns.append(turn)

    for first in range(len(turns) - burst):
        assert turns[first + burst] - turns[first] >= interval_s - 1e-5
