from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from taskflow.core.window import HALF_LIFE_S, CallWindow, DrainRate, Window, retry_after_s

LENGTHS = st.sampled_from([0.001, 0.1, 1.0, 10.0, 60.0, 3_600.0]) | st.floats(0.001, 1e6)
CALLS = st.lists(st.tuples(st.floats(-2, 15), st.booleans(), st.booleans()), max_size=60)


def counted(window: Window) -> tuple[int, int, int]:
    return window.calls, window.failures, window.slow


@given(LENGTHS, st.sampled_from([0.0, 12_345.678, 1_800_000_000.0]), CALLS)
def test_a_window_counts_as_a_list_of_all_calls_would(
    length_s: float, began_at: float, calls: list[tuple[float, bool, bool]]
) -> None:
    window, seen, now, newest = Window(length_s), [], began_at, 0
    for tenths, is_failure, is_slow in calls:
        now = max(0.0, now + tenths * length_s / 10)
        window.add(now=now, is_failure=is_failure, is_slow=is_slow)
        newest = max(newest, math.floor(now * 10 / length_s))
        seen.append((newest, is_failure, is_slow))

        recent = [call for call in seen if call[0] > newest - 10]
        assert counted(window) == (len(recent), sum(call[1] for call in recent), sum(call[2] for call in recent))


@given(LENGTHS, CALLS)
def test_a_window_that_was_not_used_for_its_length_is_empty(
    length_s: float, calls: list[tuple[float, bool, bool]]
) -> None:
    window, now = Window(length_s), 1_000.0
    for tenths, is_failure, is_slow in calls:
        now = max(0.0, now + tenths * length_s / 10)
        window.add(now=now, is_failure=is_failure, is_slow=is_slow)

    window.advance(now + 3 * length_s + 1e-3)

    assert counted(window) == (0, 0, 0)


def test_a_call_counts_for_its_window_and_not_after_it() -> None:
    window = Window(10.0)
    window.add(now=100.0, is_failure=True, is_slow=True)

    window.advance(109.99)
    assert counted(window) == (1, 1, 1)
    window.advance(110.0)
    assert counted(window) == (0, 0, 0)


def test_a_call_late_in_its_tenth_is_forgotten_with_it() -> None:
    window = Window(10.0)
    window.add(now=100.99, is_failure=False, is_slow=True)

    window.advance(110.0)

    assert counted(window) == (0, 0, 0)


def test_kinds_are_counted_apart() -> None:
    window = Window(60.0)
    window.add(now=1.0, is_failure=True, is_slow=False)
    window.add(now=1.0, is_failure=False, is_slow=True)
    window.add(now=1.0, is_failure=False, is_slow=False)

    assert counted(window) == (3, 1, 1)


def test_a_clock_that_went_back_counts_into_the_newest_slice() -> None:
    window = Window(10.0)
    window.add(now=105.0, is_failure=False, is_slow=False)
    window.add(now=95.0, is_failure=True, is_slow=False)

    window.advance(114.0)
    assert counted(window) == (2, 1, 0)
    window.advance(115.0)
    assert counted(window) == (0, 0, 0)


@given(LENGTHS, CALLS)
def test_clear_forgets_all_and_counting_goes_on(length_s: float, calls: list[tuple[float, bool, bool]]) -> None:
    window, now = Window(length_s), 50.0
    for tenths, is_failure, is_slow in calls:
        now = max(0.0, now + tenths * length_s / 10)
        window.add(now=now, is_failure=is_failure, is_slow=is_slow)

    window.clear()
    assert counted(window) == (0, 0, 0)
    window.add(now=now, is_failure=True, is_slow=False)
    assert counted(window) == (1, 1, 0)
    window.advance(now + 3 * length_s + 1e-3)
    assert counted(window) == (0, 0, 0)


def test_two_windows_share_nothing() -> None:
    first, second = Window(10.0), Window(10.0)
    first.add(now=1.0, is_failure=True, is_slow=True)
    second.advance(100.0)

    assert (counted(first), counted(second)) == ((1, 1, 1), (0, 0, 0))


# ---- the rate at which a queue drains ----


def test_half_of_a_rate_is_forgotten_in_its_half_life() -> None:
    rate = DrainRate()
    rate.add(100, now=50.0)

    assert rate.read(now=50.0 + HALF_LIFE_S) == pytest.approx(rate.read(now=50.0) / 2)
    assert rate.read(now=50.0 + 2 * HALF_LIFE_S) == pytest.approx(rate.read(now=50.0) / 4)


@given(st.floats(0.1, 1_000), st.sampled_from([0.0, 1_800_000_000.0]))
def test_a_steady_drain_is_read_as_its_rate(per_s: float, began_at: float) -> None:
    rate, now = DrainRate(), began_at
    for _ in range(400):
        now += 0.5
        rate.add(1, now=now)

    jobs_a_second = rate.read(now=now + 0.25) * per_s / 2

    assert jobs_a_second == pytest.approx(per_s, rel=0.01)


def test_jobs_that_leave_together_count_as_many() -> None:
    together, apart = DrainRate(), DrainRate()
    together.add(5, now=7.0)
    for _ in range(5):
        apart.add(1, now=7.0)

    assert together.read(now=8.0) == pytest.approx(apart.read(now=8.0))
    assert together.read(now=7.0) == pytest.approx(5 * math.log(2) / 10)


@given(st.lists(st.tuples(st.floats(-10, 1e6), st.integers(0, 1_000)), max_size=30))
def test_a_rate_is_never_negative_and_never_more_than_all_at_once(steps: list[tuple[float, int]]) -> None:
    rate, now, left = DrainRate(), 100.0, 0
    for waits_s, count in steps:
        now += waits_s
        left += count
        rate.add(count, now=now)

        assert 0 <= rate.read(now=now) <= left * math.log(2) / HALF_LIFE_S * (1 + 1e-9)


def test_a_clock_that_went_back_neither_raises_the_rate_nor_lowers_it() -> None:
    rate = DrainRate()
    rate.add(10, now=100.0)
    before = rate.read(now=100.0)

    rate.add(0, now=50.0)

    assert rate.read(now=50.0) == rate.read(now=100.0) == before


def test_a_queue_that_nothing_ever_left_has_no_rate() -> None:
    assert DrainRate().read(now=1_800_000_000.0) == 0.0


@pytest.mark.parametrize(
    ("wanted", "drain_per_s", "seconds"),
    [
        (10, 5.0, 2.0),
        (1, 1_000.0, 0.05),  # never at once: that would be a spin
        (100_000, 5.0, 60.0),  # never for ever: the rate may change
        (1, 0.0, 5.0),  # unknown
        (1, 0.0009, 5.0),
        (1, 0.001, 60.0),
        (0, 0.0, 5.0),
        (0, 1.0, 0.05),
    ],
)
def test_a_full_queue_says_when_there_will_be_room(wanted: int, drain_per_s: float, seconds: float) -> None:
    assert retry_after_s(wanted, drain_per_s=drain_per_s) == seconds


@given(st.integers(0, 10**9), st.floats(0, 1e9))
@example(wanted=0, drain_per_s=0.0)
def test_a_full_queue_never_says_less_than_a_moment_or_more_than_a_minute(wanted: int, drain_per_s: float) -> None:
    assert 0.05 <= retry_after_s(wanted, drain_per_s=drain_per_s) <= 60


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.floats(0, 1e6))
def test_more_jobs_take_no_less_time(some: int, more: int, drain_per_s: float) -> None:
    assert retry_after_s(some, drain_per_s=drain_per_s) <= retry_after_s(some + more, drain_per_s=drain_per_s)


# ---- the last calls ----


@given(st.integers(1, 12), st.lists(st.tuples(st.booleans(), st.booleans()), max_size=60), st.integers(0, 60))
def test_a_window_of_calls_counts_as_a_list_of_the_last_ones_would(
    length: int, calls: list[tuple[bool, bool]], cleared_after: int
) -> None:
    window, seen = CallWindow(length), []
    for number, (is_failure, is_slow) in enumerate(calls):
        if number == cleared_after:
            window.clear()
            seen.clear()
        window.add(now=0.0, is_failure=is_failure, is_slow=is_slow)
        seen.append((is_failure, is_slow))
        last = seen[-length:]

        counts = window.calls, window.failures, window.slow
        assert counts == (len(last), sum(call[0] for call in last), sum(call[1] for call in last))


def test_a_window_of_calls_has_no_age() -> None:
    window = CallWindow(5)
    window.add(now=0.0, is_failure=True, is_slow=False)

    window.advance(1e9)

    assert (window.calls, window.failures) == (1, 1)
