from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from taskflow.core.backoff import Pauses, delay_s, exponential
from taskflow.core.specs import Retry

ATTEMPTS = st.integers(1, 5_000)
BASES = st.floats(0, 1e6) | st.integers(0, 1_000_000)
FACTORS = st.floats(1, 1e9) | st.integers(1, 1_000)
CAPS = st.floats(0, 1e9)
JITTERS = st.floats(0, 1, exclude_max=True)
RETRIES = st.builds(
    Retry, base=BASES, factor=FACTORS, max_delay=CAPS, jitter=st.sampled_from(["full", "equal", "decorrelated", "none"])
)


def test_the_ceiling_doubles_from_the_base_to_the_cap() -> None:
    ceilings = [exponential(attempt, base_s=0.5, factor=2, cap_s=60) for attempt in range(1, 10)]

    assert ceilings == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]


@given(ATTEMPTS, BASES, FACTORS, CAPS)
@example(attempt=5_000, base_s=0.5, factor=1e9, cap_s=60.0)
@example(attempt=5_000, base_s=1e6, factor=1, cap_s=1e9)
def test_the_ceiling_is_never_negative_and_never_over_the_cap(
    attempt: int, base_s: float, factor: float, cap_s: float
) -> None:
    assert 0 <= exponential(attempt, base_s=base_s, factor=factor, cap_s=cap_s) <= cap_s


@given(ATTEMPTS, BASES, FACTORS, CAPS)
@example(attempt=1_024, base_s=1e-300, factor=2, cap_s=1e9)
def test_the_ceiling_never_falls_from_one_attempt_to_the_next(
    attempt: int, base_s: float, factor: float, cap_s: float
) -> None:
    this = exponential(attempt, base_s=base_s, factor=factor, cap_s=cap_s)
    following = exponential(attempt + 1, base_s=base_s, factor=factor, cap_s=cap_s)

    assert following >= this * (1 - 1e-12)  # `pow` may be wrong in its last digit


@given(ATTEMPTS, BASES)
def test_factor_1_waits_the_base_every_time(attempt: int, base_s: float) -> None:
    assert exponential(attempt, base_s=base_s, factor=1, cap_s=1e9) == base_s


@given(ATTEMPTS, FACTORS)
@example(attempt=5_000, factor=2)
@example(attempt=1_025, factor=2)
def test_base_0_never_waits(attempt: int, factor: float) -> None:
    assert exponential(attempt, base_s=0, factor=factor, cap_s=60) == 0


@pytest.mark.parametrize("attempt", [1_025, 5_000, 2**63])
def test_what_is_too_large_for_a_float_is_the_cap(attempt: int) -> None:
    assert exponential(attempt, base_s=0.5, factor=2, cap_s=60) == 60


def test_an_attempt_before_the_first_waits_as_the_first() -> None:
    assert exponential(0, base_s=0.5, factor=2, cap_s=60) == 0.5


@given(RETRIES, ATTEMPTS, JITTERS)
def test_a_delay_is_never_negative_and_never_over_max_delay(retry: Retry, attempt: int, jitter: float) -> None:
    assert 0 <= delay_s(retry, attempt, jitter=jitter) <= retry.max_delay


@given(ATTEMPTS, JITTERS)
def test_full_jitter_draws_from_nothing_to_the_ceiling(attempt: int, jitter: float) -> None:
    ceiling = exponential(attempt, base_s=0.5, factor=2, cap_s=60)

    assert delay_s(Retry(), attempt, jitter=jitter) == pytest.approx(ceiling * jitter)


@given(ATTEMPTS, JITTERS)
def test_equal_jitter_draws_from_half_the_ceiling_to_all_of_it(attempt: int, jitter: float) -> None:
    ceiling = exponential(attempt, base_s=0.5, factor=2, cap_s=60)

    assert delay_s(Retry(jitter="equal"), attempt, jitter=jitter) == pytest.approx(ceiling / 2 + ceiling / 2 * jitter)


@given(ATTEMPTS, JITTERS)
def test_without_jitter_the_delay_is_the_ceiling(attempt: int, jitter: float) -> None:
    ceiling = exponential(attempt, base_s=0.5, factor=2, cap_s=60)

    assert delay_s(Retry(jitter="none"), attempt, jitter=jitter) == ceiling


@pytest.mark.parametrize(("kind", "least", "most"), [("full", 0, 60), ("equal", 30, 60)])
def test_jitter_survives_at_the_cap(kind: str, least: float, most: float) -> None:
    retry = Retry(jitter=kind)  # type: ignore[arg-type]

    delays = [delay_s(retry, 5_000, jitter=jitter) for jitter in (0.0, 0.5, 0.999_999)]

    assert delays == pytest.approx([least, (least + most) / 2, most], abs=0.001)


def test_equal_jitter_at_a_huge_cap_does_not_overflow() -> None:
    retry = Retry(base=1e9, factor=1e9, max_delay=1e9, jitter="equal")

    assert delay_s(retry, 5_000, jitter=0.999) == pytest.approx(0.9995e9)


def test_two_jobs_at_the_same_attempt_wait_the_same_whatever_else_was_asked() -> None:
    retry = Retry()
    alone = [delay_s(retry, attempt, jitter=0.5) for attempt in (1, 2, 3)]

    interleaved = [delay_s(retry, attempt, jitter=0.5) for attempt in (1, 1, 2, 2, 3, 3)]

    assert interleaved[::2] == interleaved[1::2] == alone


def test_decorrelated_jitter_draws_from_the_base_to_three_times_the_last_wait() -> None:
    retry = Retry(base=1, jitter="decorrelated")

    assert [delay_s(retry, 3, jitter=jitter, last_s=4) for jitter in (0.0, 0.5)] == [1, 6.5]


def test_decorrelated_jitter_without_the_last_wait_grows_by_the_mean() -> None:
    retry = Retry(base=1, jitter="decorrelated")

    assert [delay_s(retry, attempt, jitter=0.5) for attempt in (1, 2, 3)] == [2, 3.5, 6.5]


@given(ATTEMPTS, JITTERS, BASES, CAPS, st.none() | st.floats(0, 1e9))
def test_decorrelated_jitter_stays_between_base_and_cap(
    attempt: int, jitter: float, base: float, cap: float, last_s: float | None
) -> None:
    retry = Retry(base=base, max_delay=cap, jitter="decorrelated")

    waits_s = delay_s(retry, attempt, jitter=jitter, last_s=last_s)

    assert min(base, cap) <= waits_s <= cap * (1 + 1e-12)


def test_decorrelated_jitter_survives_at_the_cap() -> None:
    retry = Retry(base=0.5, max_delay=60, jitter="decorrelated")

    assert delay_s(retry, 5_000, jitter=0.5, last_s=60) == pytest.approx(30.25)


def test_a_delay_of_ones_own_is_taken_as_it_is_within_bounds() -> None:
    retry = Retry(delay=lambda attempt: attempt * 10 - 15, max_delay=12)

    assert [delay_s(retry, attempt, jitter=0.5) for attempt in (1, 2, 3)] == [0, 5, 12]


def test_a_constant_wait_is_factor_1_without_jitter() -> None:
    retry = Retry(base=3, factor=1, jitter="none")

    assert [delay_s(retry, attempt, jitter=0.3) for attempt in (1, 2, 50)] == [3, 3, 3]


@given(draws=st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=40))
def test_pauses_double_up_to_the_most_and_never_lose_more_than_half_to_the_jitter(draws: list[float]) -> None:
    left = iter(draws)
    pauses = Pauses(0.05, 5.0, lambda: next(left))

    for number, draw in enumerate(draws):
        ceiling = min(5.0, 0.05 * 2**number)
        assert pauses.next_s() == pytest.approx(ceiling * (0.5 + draw / 2))


def test_pauses_are_short_again_once_something_got_through() -> None:
    pauses = Pauses(0.05, 5.0, lambda: 0.0)
    before = [pauses.next_s() for _ in range(10)]

    pauses.reset()

    assert [pauses.next_s() for _ in range(10)] == before
