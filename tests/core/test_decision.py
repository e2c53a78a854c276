from __future__ import annotations

import dataclasses
import math
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskflow.core.decision import Bury, Cancel, Complete, Decision, Expire, Release, Retry, Snooze, decide
from taskflow.core.outcome import ErrorRecord, Failed, Interrupted, Invalid, Outcome, Overdue, Rejected, Succeeded
from taskflow.core.specs import Retry as RetrySpec
from tests.core.made import BOOM, claim

JITTERS = st.floats(0, 1, exclude_max=True)
SECONDS = st.floats() | st.integers(-10, 10**9)
ERRORS = st.builds(ErrorRecord, st.text(), st.text(), st.text(), st.text())
OUTCOMES: dict[type[Outcome], st.SearchStrategy[Outcome]] = {
    Succeeded: st.builds(Succeeded, st.none() | st.binary()),
    Failed: st.builds(Failed, ERRORS, st.booleans(), st.none() | SECONDS),
    Rejected: st.builds(Rejected, st.text(), SECONDS, st.none() | ERRORS),
    Interrupted: st.builds(Interrupted, st.booleans()),
    Overdue: st.builds(Overdue, st.text()),
    Invalid: st.builds(Invalid, ERRORS),
}
ANY_OUTCOME = st.one_of(*OUTCOMES.values())


def decided(outcome: Outcome, *, attempts: int = 0, of: int = 3, jitter: float = 0.5) -> Decision:
    return decide(claim(attempts=attempts), outcome, retry=RetrySpec(attempts=of), jitter=jitter)


def is_spent(decision: Decision) -> bool:
    """As the brokers count: whether the decision spends an attempt."""
    match decision:
        case Complete() | Retry() | Bury(spent=True):
            return True
        case _:
            return False


def test_these_tests_know_every_outcome() -> None:
    assert set(OUTCOMES) == set(get_args(Outcome))


@given(ANY_OUTCOME, st.integers(0, 10_000), st.integers(1, 10_000), JITTERS)
def test_every_outcome_has_a_decision(outcome: Outcome, attempts: int, of: int, jitter: float) -> None:
    assert isinstance(decided(outcome, attempts=attempts, of=of, jitter=jitter), Decision)


@given(ANY_OUTCOME, st.integers(0, 10_000), st.integers(1, 10_000), JITTERS)
def test_a_wait_is_never_negative_and_always_an_instant_that_can_be_stored(
    outcome: Outcome, attempts: int, of: int, jitter: float
) -> None:
    decision = decided(outcome, attempts=attempts, of=of, jitter=jitter)

    assert 0.0 <= getattr(decision, "delay_s", 0.0) <= 365 * 86_400


@given(st.integers(1, 5), st.lists(st.sampled_from([Failed(BOOM), Rejected("held", 1), Interrupted()]), max_size=50))
def test_attempts_never_exceed_those_of_the_retry_policy(of: int, outcomes: list[Outcome]) -> None:
    attempts = 0
    for outcome in outcomes:
        decision = decided(outcome, attempts=attempts, of=of)
        attempts += is_spent(decision)
        if not isinstance(decision, Retry | Snooze | Release):
            break

    assert attempts <= of


@given(st.integers(0, 6), st.integers(1, 6))
def test_a_failure_is_retried_while_an_attempt_is_left_and_buried_after_the_last(attempts: int, of: int) -> None:
    decision = decided(Failed(BOOM), attempts=attempts, of=of)

    assert isinstance(decision, Retry) is (attempts + 1 < of)
    assert isinstance(decision, Bury) is (attempts + 1 >= of)


@given(ANY_OUTCOME, st.integers(0, 10_000), st.integers(1, 10_000))
def test_only_a_handler_that_ended_by_itself_spends_an_attempt(outcome: Outcome, attempts: int, of: int) -> None:
    decision = decided(outcome, attempts=attempts, of=of)

    assert is_spent(decision) is isinstance(outcome, Succeeded | Failed)


@given(OUTCOMES[Rejected] | OUTCOMES[Interrupted] | OUTCOMES[Overdue], st.integers(0, 10_000), st.integers(1, 10))
def test_what_did_not_fail_is_never_buried(outcome: Outcome, attempts: int, of: int) -> None:
    assert not isinstance(decided(outcome, attempts=attempts, of=of), Bury)


def test_a_success_completes_with_its_result() -> None:
    assert decided(Succeeded(b"42"), attempts=9, of=3) == Complete(b"42")


def test_a_failure_waits_by_the_backoff_of_its_attempt() -> None:
    delays = [decided(Failed(BOOM), attempts=attempts, of=10, jitter=0.5) for attempts in range(4)]

    assert delays == [Retry(0.25, BOOM), Retry(0.5, BOOM), Retry(1.0, BOOM), Retry(2.0, BOOM)]


def test_an_error_that_is_not_retryable_is_buried_at_once() -> None:
    assert decided(Failed(BOOM, retryable=False, retry_after_s=5.0)) == Bury(BOOM, spent=True)


@pytest.mark.parametrize("asked_s", [30.0, 30])
def test_a_failure_that_says_when_to_come_back_is_obeyed_without_jitter(asked_s: float) -> None:
    assert decided(Failed(BOOM, retry_after_s=asked_s), jitter=0.1) == Retry(30, BOOM)


def test_a_failure_that_may_come_back_at_once_does_not_fall_back_to_the_backoff() -> None:
    assert decided(Failed(BOOM, retry_after_s=0)) == Retry(0.0, BOOM)


def test_a_failure_that_says_when_to_come_back_spends_its_attempt_too() -> None:
    assert decided(Failed(BOOM, retry_after_s=30), attempts=2) == Bury(BOOM)


def test_a_rejection_snoozes_with_its_reason_and_error() -> None:
    assert decided(Rejected("rate_limited", 7, BOOM), attempts=2) == Snooze(7, "rate_limited", BOOM)


@pytest.mark.parametrize(
    ("asked_s", "waits_s"), [(-1, 0), (-math.inf, 0), (math.nan, 0), (math.inf, 31_536_000), (1e300, 31_536_000)]
)
def test_an_absurd_wait_is_cut_to_one_that_every_broker_can_store(asked_s: float, waits_s: float) -> None:
    assert decided(Rejected("circuit_open", asked_s)) == Snooze(waits_s, "circuit_open")
    assert decided(Failed(BOOM, retry_after_s=asked_s)) == Retry(waits_s, BOOM)


def test_an_absurd_backoff_is_cut_too() -> None:
    retry = RetrySpec(base=1e9, max_delay=1e9, jitter="none")

    assert decide(claim(), Failed(BOOM), retry=retry, jitter=0.5) == Retry(31_536_000, BOOM)


def test_a_shutdown_hands_the_job_back() -> None:
    assert decided(Interrupted(), attempts=9) == Release()


def test_a_person_who_cancels_is_obeyed() -> None:
    assert decided(Interrupted(cancelled=True)) == Cancel()


def test_a_job_that_is_overdue_expires_with_the_reason() -> None:
    assert decided(Overdue("deadline")) == Expire("deadline")


def test_a_payload_that_does_not_fit_is_buried_without_spending_an_attempt() -> None:
    assert decided(Invalid(BOOM)) == Bury(BOOM, spent=False)


@given(ANY_OUTCOME, st.integers(0, 100), JITTERS)
def test_the_same_question_has_the_same_answer(outcome: Outcome, attempts: int, jitter: float) -> None:
    first, second = (decided(outcome, attempts=attempts, of=50, jitter=jitter) for _ in range(2))

    assert first == second


def test_what_travels_cannot_be_changed() -> None:
    for kind in (*get_args(Outcome), *get_args(Decision), ErrorRecord):
        assert issubclass(kind, tuple) or kind.__dataclass_params__.frozen
        assert "__slots__" in vars(kind), kind


def test_defaults_are_the_quiet_case() -> None:
    assert Succeeded().result is None
    assert (Failed(BOOM).retryable, Failed(BOOM).retry_after_s) == (True, None)
    assert Rejected("snoozed", 1.0).error is None
    assert Interrupted().cancelled is False
    assert ErrorRecord("OSError", "boom", "transient").stack == ""
    assert Complete().result is None
    assert Snooze(1.0, "snoozed").error is None
    assert dataclasses.replace(Bury(BOOM)).spent is True
