from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskflow.core.breaker import Breaker, BreakerState, Denied, Mode, Permit, Snapshot, Transition, Verdict
from taskflow.core.specs import CircuitBreaker

CLOSED, OPEN, HALF_OPEN = BreakerState
SUCCESS, FAILURE, IGNORED = Verdict
RARELY = 1_000  # a bound that the test does not mean to reach


def breaker(**said: Any) -> Breaker:
    return Breaker(CircuitBreaker("smtp", **said))


def permit(machine: Breaker, *, now: float, lease_s: float = 0.0) -> Permit:
    answer = machine.admit(now=now, lease_s=lease_s)
    assert isinstance(answer, Permit)
    return answer


def call(machine: Breaker, verdict: Verdict, *, now: float = 0.0, took_s: float = 0.0) -> Transition | None:
    return machine.report(permit(machine, now=now), verdict, now=now, took_s=took_s)


def opened(**said: Any) -> Breaker:
    """Open since instant 0."""
    machine = breaker(**said, consecutive=1)
    call(machine, FAILURE)
    return machine


def seen(machine: Breaker) -> dict[str, Any]:
    return dataclasses.asdict(machine)


# ---- closed ----


def test_a_new_breaker_lets_every_call_pass() -> None:
    machine = breaker()

    assert [machine.admit(now=0.0) for _ in range(50)] == [Permit(0)] * 50


def test_failures_in_a_row_open_it() -> None:
    machine = breaker(consecutive=3)

    moves = [call(machine, FAILURE) for _ in range(3)]

    assert moves == [None, None, Transition(OPEN, 10)]
    assert machine.state is OPEN


def test_a_success_breaks_the_row() -> None:
    machine = breaker(consecutive=3, min_calls=RARELY)

    for verdict in (FAILURE, FAILURE, SUCCESS, FAILURE, FAILURE):
        call(machine, verdict)

    assert machine.state is CLOSED


def test_a_row_of_failures_has_no_age() -> None:
    machine = breaker(consecutive=3, min_calls=RARELY)

    for day in range(3):
        call(machine, FAILURE, now=day * 86_400.0)

    assert machine.state is OPEN


def test_a_failure_rate_opens_it_once_there_are_enough_calls() -> None:
    machine = breaker(consecutive=RARELY, min_calls=4, failure_rate=0.5)

    moves = [call(machine, verdict) for verdict in (FAILURE, SUCCESS, SUCCESS, FAILURE)]

    assert moves == [None, None, None, Transition(OPEN, 10)]


def test_fewer_failures_than_the_rate_leave_it_closed() -> None:
    machine = breaker(consecutive=RARELY, min_calls=5, failure_rate=0.5)

    for verdict in (FAILURE, SUCCESS, SUCCESS, FAILURE, SUCCESS):
        call(machine, verdict)

    assert machine.state is CLOSED


@given(st.integers(1, 200), st.data())
def test_a_rate_is_reached_by_exactly_its_share_of_failures(calls: int, data: st.DataObject) -> None:
    failures = data.draw(st.integers(1, calls))
    machine = breaker(consecutive=RARELY, min_calls=calls, failure_rate=failures / calls)

    for _ in range(calls - failures):
        call(machine, SUCCESS)
    moves = [call(machine, FAILURE) for _ in range(failures)]

    assert moves == [None] * (failures - 1) + [Transition(OPEN, 10)]


def test_seven_of_a_hundred_reach_a_rate_of_seven_percent() -> None:
    machine = breaker(consecutive=RARELY, min_calls=100, failure_rate=0.07)

    for verdict in [SUCCESS] * 93 + [FAILURE] * 7:
        call(machine, verdict)

    assert machine.state is OPEN


def test_failures_older_than_the_window_do_not_count() -> None:
    machine = breaker(consecutive=RARELY, min_calls=4, window=60)
    for _ in range(3):
        call(machine, FAILURE, now=0.0)

    call(machine, FAILURE, now=60.0)

    assert machine.state is CLOSED


def test_slow_calls_open_it_although_they_succeed() -> None:
    machine = breaker(min_calls=5, slow_call=2, slow_rate=0.8)

    moves = [call(machine, SUCCESS, took_s=took_s) for took_s in (2, 3, 1.99, 5, 2)]

    assert moves == [None, None, None, None, Transition(OPEN, 10)]


def test_fewer_slow_calls_than_the_rate_leave_it_closed() -> None:
    machine = breaker(min_calls=5, slow_call=2, slow_rate=0.8)

    for took_s in (2, 3, 1.99, 1.99, 2):
        call(machine, SUCCESS, took_s=took_s)

    assert machine.state is CLOSED


def test_without_a_bound_no_call_is_slow() -> None:
    machine = breaker(min_calls=1, slow_rate=0.001)

    assert call(machine, SUCCESS, took_s=1e6) is None


def test_cancelled_calls_count_for_nothing() -> None:
    machine = breaker(consecutive=1, min_calls=1, slow_call=1, slow_rate=0.001)
    before = seen(machine)

    assert call(machine, IGNORED, took_s=100.0) is None

    assert seen(machine) == before


# ---- open ----


def test_an_open_breaker_denies_every_call_and_says_how_long() -> None:
    machine = opened()

    assert machine.admit(now=0.0) == Denied(10)
    assert machine.admit(now=9.5) == Denied(0.5)
    assert machine.state is OPEN


def test_words_of_calls_from_before_it_opened_count_for_nothing() -> None:
    machine = breaker(consecutive=1)
    early = [permit(machine, now=0.0) for _ in range(3)]
    machine.report(early[0], FAILURE, now=0.0)
    before = seen(machine)

    assert machine.report(early[1], FAILURE, now=1.0) is None
    assert machine.report(early[2], SUCCESS, now=1.0) is None

    assert seen(machine) == before


# ---- half-open ----


def test_past_the_open_time_exactly_one_of_many_callers_is_the_probe() -> None:
    machine = opened()

    answers = [machine.admit(now=10.0) for _ in range(50)]

    assert [isinstance(answer, Permit) for answer in answers] == [True] + [False] * 49
    assert machine.state is HALF_OPEN


def test_a_probe_carries_its_number() -> None:
    machine = opened()

    assert permit(machine, now=10.0).probe == 1


def test_enough_good_probes_close_it() -> None:
    machine = opened(close_after=3)

    moves = [call(machine, SUCCESS, now=10.0) for _ in range(3)]

    assert moves == [None, None, Transition(CLOSED)]
    assert isinstance(machine.admit(now=10.0), Permit)


def test_one_bad_probe_opens_it_for_twice_as_long() -> None:
    machine = opened(close_after=3)
    call(machine, SUCCESS, now=10.0)

    assert call(machine, FAILURE, now=10.0) == Transition(OPEN, 20)
    assert machine.admit(now=10.0) == Denied(20)


def test_good_probes_from_before_it_opened_again_do_not_count() -> None:
    machine = opened(close_after=2)
    call(machine, SUCCESS, now=10.0)
    call(machine, FAILURE, now=10.0)

    assert call(machine, SUCCESS, now=30.0) is None
    assert machine.state is HALF_OPEN


def test_the_open_time_grows_to_its_bound() -> None:
    machine, now, open_for = opened(open_for=10, max_open_for=70), 10.0, []
    for _ in range(5):
        moved = call(machine, FAILURE, now=now)
        assert moved is not None
        open_for.append(moved.open_for_s)
        now += moved.open_for_s

    assert open_for == [20, 40, 70, 70, 70]


def test_a_recovery_makes_the_open_time_short_again() -> None:
    machine = opened()
    call(machine, FAILURE, now=10.0)
    call(machine, SUCCESS, now=30.0)
    call(machine, SUCCESS, now=30.0)

    assert call(machine, FAILURE, now=30.0) == Transition(OPEN, 10)
    assert call(machine, FAILURE, now=40.0) == Transition(OPEN, 20)


def test_after_a_recovery_old_failures_are_forgotten() -> None:
    machine = breaker(consecutive=3, min_calls=4, close_after=1)
    for _ in range(3):
        call(machine, FAILURE)
    call(machine, SUCCESS, now=10.0)

    for verdict in (FAILURE, FAILURE, SUCCESS):
        call(machine, verdict, now=10.0)

    assert machine.state is CLOSED


def test_a_cancelled_probe_changes_nothing_and_the_next_may_go_at_once() -> None:
    machine = opened(close_after=1)

    assert call(machine, IGNORED, now=10.0) is None
    assert machine.state is HALF_OPEN
    assert call(machine, SUCCESS, now=10.0) == Transition(CLOSED)


def test_a_cancelled_probe_keeps_what_good_probes_have_won() -> None:
    machine = opened(close_after=2)
    call(machine, SUCCESS, now=10.0)
    call(machine, IGNORED, now=10.0)

    assert call(machine, SUCCESS, now=10.0) == Transition(CLOSED)


def test_a_slow_probe_is_a_bad_one() -> None:
    machine = opened(slow_call=2)

    assert call(machine, SUCCESS, now=10.0, took_s=2.0) == Transition(OPEN, 20)


def test_a_probe_that_is_not_slow_is_a_good_one() -> None:
    machine = opened(slow_call=2, close_after=1)

    assert call(machine, SUCCESS, now=10.0, took_s=1.99) == Transition(CLOSED)


def test_a_probe_that_never_reports_gives_way_to_another() -> None:
    machine = opened()
    permit(machine, now=10.0)

    assert isinstance(machine.admit(now=19.9), Denied)
    assert permit(machine, now=20.0).probe == 2


@pytest.mark.parametrize("verdict", Verdict)
def test_the_word_of_a_replaced_probe_counts_for_nothing(verdict: Verdict) -> None:
    machine = opened(close_after=1)
    lost = permit(machine, now=10.0)
    permit(machine, now=20.0)
    before = seen(machine)

    assert machine.report(lost, verdict, now=21.0) is None

    assert seen(machine) == before


def test_a_late_probe_that_nobody_replaced_still_counts() -> None:
    machine = opened(close_after=1)
    late = permit(machine, now=10.0)

    assert machine.report(late, SUCCESS, now=500.0) == Transition(CLOSED)


def test_a_probe_counts_once() -> None:
    machine = opened(close_after=2)
    probe = permit(machine, now=10.0)
    machine.report(probe, SUCCESS, now=10.0)

    assert machine.report(probe, SUCCESS, now=10.0) is None
    assert machine.state is HALF_OPEN


def test_the_word_of_a_probe_from_an_earlier_outage_counts_for_nothing() -> None:
    machine = opened(close_after=1)
    lost = permit(machine, now=10.0)
    call(machine, FAILURE, now=20.0)
    probe = permit(machine, now=60.0)
    before = seen(machine)

    assert machine.report(lost, SUCCESS, now=60.0) is None

    assert seen(machine) == before
    assert machine.report(probe, SUCCESS, now=60.0) == Transition(CLOSED)


def test_a_probe_is_not_given_up_before_its_call_may_end() -> None:
    machine = opened()
    permit(machine, now=10.0, lease_s=45.0)

    assert isinstance(machine.admit(now=54.9), Denied)
    assert isinstance(machine.admit(now=55.0), Permit)


def test_a_lease_is_never_shorter_than_the_open_time() -> None:
    machine = opened()
    permit(machine, now=10.0, lease_s=0.1)

    assert isinstance(machine.admit(now=19.9), Denied)


def test_while_a_probe_runs_others_look_again_after_the_open_time_at_most() -> None:
    machine = opened()
    permit(machine, now=10.0, lease_s=300.0)

    assert machine.admit(now=11.0) == Denied(10)
    assert machine.admit(now=305.0) == Denied(5)


def test_calls_slower_than_the_open_time_can_still_prove_a_recovery() -> None:
    machine, now = opened(open_for=10, close_after=1), 10.0
    running: list[tuple[float, Permit]] = []
    while machine.state is not CLOSED and now < 300:  # callers come all the time; every call takes 35 s
        answer = machine.admit(now=now)
        if isinstance(answer, Permit):
            running.append((now + 35, answer))
        for ends_at, probe in running:
            if ends_at == now:
                machine.report(probe, SUCCESS, now=now)
        now += 1

    assert machine.state is CLOSED


def test_states_and_verdicts_are_told_by_their_lower_case_names() -> None:
    assert [str(state) for state in BreakerState] == ["closed", "open", "half_open"]
    assert [str(verdict) for verdict in Verdict] == ["success", "failure", "ignored"]


def test_every_transition_has_its_generation() -> None:
    machine = opened(close_after=1)
    generations = [machine.generation]
    probe = permit(machine, now=10.0)
    generations.append(machine.generation)
    machine.report(probe, SUCCESS, now=10.0)
    generations.append(machine.generation)

    assert generations == [1, 2, 3]


# ---- the last calls instead of the last seconds ----


def test_a_window_of_calls_opens_by_its_rate_however_old_they_are() -> None:
    machine = breaker(consecutive=RARELY, min_calls=4, window_calls=4)

    moves = [
        call(machine, verdict, now=day * 86_400.0) for day, verdict in enumerate((FAILURE, SUCCESS, SUCCESS, FAILURE))
    ]

    assert moves == [None, None, None, Transition(OPEN, 10)]


def test_a_call_that_left_the_window_of_calls_does_not_count() -> None:
    machine = breaker(consecutive=RARELY, min_calls=4, window_calls=4)

    for verdict in (FAILURE, SUCCESS, SUCCESS, SUCCESS, FAILURE):
        call(machine, verdict)

    assert machine.state is CLOSED


# ---- a person's word ----


def test_an_isolated_breaker_denies_every_call_until_it_is_closed() -> None:
    machine = breaker()
    machine.force(Mode.ISOLATED)

    assert machine.admit(now=1e6) == Denied(10)
    assert machine.state is OPEN
    machine.force(Mode.AUTOMATIC)
    assert isinstance(machine.admit(now=1e6), Permit)


def test_a_disabled_breaker_lets_all_pass_and_counts_none() -> None:
    machine = opened()
    machine.force(Mode.DISABLED)

    for _ in range(50):
        call(machine, FAILURE, now=1.0)

    assert machine.state is CLOSED
    assert machine.snapshot(now=1.0).calls == 0


def test_a_breaker_for_metrics_only_counts_and_never_opens() -> None:
    machine = breaker(slow_call=1)
    machine.force(Mode.METRICS_ONLY)

    for _ in range(50):
        call(machine, FAILURE, now=1.0, took_s=2)

    assert machine.snapshot(now=1.0) == Snapshot(CLOSED, Mode.METRICS_ONLY, 1, 50, 50, 50, 50, 0.0)


@pytest.mark.parametrize("mode", Mode)
def test_words_of_calls_from_before_a_person_spoke_count_for_nothing(mode: Mode) -> None:
    machine = opened(close_after=1)
    probe = permit(machine, now=10.0)
    machine.force(mode)
    before = seen(machine)

    assert machine.report(probe, SUCCESS, now=10.0) is None
    assert machine.report(Permit(0), FAILURE, now=10.0) is None

    assert seen(machine) == before


def test_closing_by_hand_forgets_failures_and_makes_the_open_time_short_again() -> None:
    machine = opened(min_calls=2)
    call(machine, FAILURE, now=10.0)
    machine.force(Mode.AUTOMATIC)

    assert call(machine, FAILURE, now=10.0) == Transition(OPEN, 10)


# ---- snapshots ----


def test_a_snapshot_tells_what_is_counted_now() -> None:
    machine = breaker(window=60)
    call(machine, FAILURE, now=0.0)
    call(machine, SUCCESS, now=30.0)

    assert machine.snapshot(now=30.0) == Snapshot(CLOSED, Mode.AUTOMATIC, 0, 2, 1, 0, 0, 0.0)
    assert machine.snapshot(now=60.0)[3:5] == (1, 0)


def test_a_snapshot_of_an_open_breaker_tells_when_the_next_probe_may_go() -> None:
    machine = opened()
    isolated = breaker()
    isolated.force(Mode.ISOLATED)

    assert [machine.snapshot(now=now).retry_after_s for now in (0.0, 4.0, 10.0, 50.0)] == [10, 6, 0, 0]
    assert isolated.snapshot(now=50.0).retry_after_s == 10
