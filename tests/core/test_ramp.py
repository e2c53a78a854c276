from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from taskflow.core.ramp import Ramp


def test_it_doubles_with_as_many_successes_as_it_allows() -> None:
    ramp, limits = Ramp(now=0.0, lasts_s=10.0), []
    for _ in range(15):
        limits.append(ramp.limit)
        assert ramp.try_start()
        ramp.end(is_good=True)

    assert limits == [1, 2, 2, 4, 4, 4, 4] + [8] * 8


def test_no_more_than_its_limit_run_at_once() -> None:
    ramp = Ramp(now=0.0, lasts_s=10.0)

    assert [ramp.try_start() for _ in range(5)] == [True] + [False] * 4
    ramp.end(is_good=True)
    assert [ramp.try_start() for _ in range(5)] == [True] * 2 + [False] * 3


def test_failures_and_cancellations_do_not_raise_it() -> None:
    ramp = Ramp(now=0.0, lasts_s=10.0)
    for _ in range(50):
        assert ramp.try_start()
        ramp.end(is_good=False)

    assert ramp.limit == 1


def test_it_ends_at_its_time_whatever_hangs() -> None:
    ramp = Ramp(now=5.0, lasts_s=10.0)
    ramp.try_start()

    assert [ramp.is_over(now) for now in (5.0, 14.9, 15.0)] == [False, False, True]


def test_it_ends_after_127_successes() -> None:
    ramp = Ramp(now=0.0, lasts_s=10.0)
    for _ in range(126):
        ramp.try_start()
        ramp.end(is_good=True)
    assert not ramp.is_over(0.0)

    ramp.try_start()
    ramp.end(is_good=True)

    assert ramp.is_over(0.0)


@given(st.lists(st.sampled_from(["start", "good", "bad"]), max_size=200))
def test_what_runs_is_never_more_than_the_limit_and_the_limit_never_falls(steps: list[str]) -> None:
    ramp, running, limit = Ramp(now=0.0, lasts_s=10.0), 0, 1
    for step in steps:
        if step == "start":
            running += ramp.try_start()
        elif running:
            running -= 1
            ramp.end(is_good=step == "good")
        assert limit <= ramp.limit
        limit = ramp.limit
        assert running <= limit
