"""A gate as the circuit breaker of a whole deployment: it trips, is probed, ramps up, and never gets stuck."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskflow.core.breaker import BreakerState
from taskflow.core.gate import (
    FORGET_S,
    TRIPPED,
    WIDEST,
    Declare,
    Gate,
    Hold,
    OverrideLimit,
    Rate,
    Recovery,
    Release,
    Trip,
    Word,
    admit,
    cause_of,
    change,
    give_back,
    is_idle,
    limit_of,
    open_for_s,
    recoveries_of,
    state_of,
    take,
)
from taskflow.core.specs import CircuitBreaker

NOW = 1_800_000_000.0
SPEC = CircuitBreaker("smtp", open_for=10, max_open_for=60, close_after=2, consecutive=5)


def tripped(**changes: Any) -> Gate:
    """A gate that tripped once, at `NOW`."""
    return replace(change(Gate("smtp"), Trip(0, 1, SPEC), now=NOW), **changes)


def told(gate: Gate, *words: bool, now: float = NOW + 10, spec: CircuitBreaker = SPEC) -> Gate:
    """The gate after these words of its own era."""
    for is_good in words:
        gate = change(gate, Word(gate.era, gate.word + 1, is_good, spec), now=now)
    return gate


# ---- trips ----


def test_a_trip_holds_the_gate_and_leaves_one_probe_when_the_hold_is_over() -> None:
    gate = tripped()

    assert gate == Gate("smtp", 1, NOW + 10, TRIPPED, era=1, ramp=1, failed=1, word=1)
    assert admit(gate, now=NOW) == (0, NOW + 10)
    assert admit(gate, now=NOW + 10).room == 1
    assert admit(take(gate, 1, now=NOW + 10), now=NOW + 10).room == 0


def test_a_breakers_hold_tells_what_its_last_call_met() -> None:
    gate = change(Gate("smtp"), Trip(0, 1, SPEC, "OSError"), now=NOW)
    first = gate.reason

    gate = change(gate, Word(1, 2, False, SPEC, "TimeoutError"), now=NOW + 10)

    assert [cause_of(first), cause_of(gate.reason)] == ["OSError", "TimeoutError"]
    assert cause_of(tripped().reason) == ""
    assert cause_of("operator: moved") is None


def test_a_fleet_trips_once() -> None:
    gate = tripped()

    others = change(change(gate, Trip(0, 2, SPEC), now=NOW), Trip(1, 3, SPEC), now=NOW)

    assert others == gate


def test_a_trip_over_claims_of_an_earlier_era_changes_nothing() -> None:
    recovered = told(tripped(limit=2), True, True)
    assert recovered.ramp is None

    assert change(recovered, Trip(0, 9, SPEC), now=NOW + 10) == recovered
    assert change(recovered, Trip(1, 9, SPEC), now=NOW + 10).ramp == 1


def test_a_longer_hold_outlives_a_trip() -> None:
    held = Gate("smtp", held_until=NOW + 3_600, reason="by hand")

    gate = change(held, Trip(0, 1, SPEC), now=NOW)

    assert (gate.held_until, gate.reason, gate.ramp) == (NOW + 3_600, "by hand", 1)


@pytest.mark.parametrize(("failed", "for_s"), [(1, 10), (2, 20), (3, 40), (4, 60), (5_000, 60)])
def test_each_failed_recovery_doubles_the_hold_up_to_its_most(failed: int, for_s: float) -> None:
    assert open_for_s(failed, SPEC) == for_s
    gate = tripped(failed=failed - 1, held_until=0.0)

    assert told(gate, False, now=NOW).held_until == NOW + for_s


# ---- probes ----


def test_a_failed_probe_holds_the_gate_again_for_longer() -> None:
    gate = told(tripped(), False)

    assert gate == replace(tripped(), generation=2, held_until=NOW + 30, era=2, failed=2, word=2)


def test_it_takes_as_many_good_probes_as_the_breaker_says() -> None:
    assert (told(tripped(), True).ramp, told(tripped(), True, True).ramp) == (1, 2)
    once = replace(SPEC, close_after=1)
    assert told(tripped(), True, spec=once).ramp == 2


def test_a_failed_probe_forgets_the_good_ones_before_it() -> None:
    gate = told(tripped(), True, False)

    assert (gate.good, told(gate, True).ramp) == (0, 1)


def test_a_probe_that_says_nothing_gives_way_to_the_next() -> None:
    probing = take(tripped(), 1, now=NOW + 10)

    ended = give_back(probing, 1, 0)

    assert admit(ended, now=NOW + 10).room == 1
    assert replace(ended, live=1) == probing


# ---- the ramp ----


def test_the_ramp_doubles_with_each_round_of_good_words_and_ends() -> None:
    gate, widths = told(tripped(), True), []
    while gate.ramp is not None:
        widths.append(gate.ramp)
        gate = told(gate, *[True] * gate.ramp)

    assert widths == [1, 2, 4, 8, 16, 32]
    assert gate.ramp is None
    assert (gate.good, gate.bad, gate.failed, gate.era, gate.held_until) == (0, 0, 0, 1, NOW + 10)
    assert admit(gate, now=NOW + 10).room is None


@pytest.mark.parametrize(("limit", "widths"), [(1, [1]), (2, [1]), (3, [1, 2]), (4, [1, 2]), (9, [1, 2, 4, 8])])
def test_the_ramp_ends_where_the_gates_own_limit_begins(limit: int, widths: list[int]) -> None:
    gate, seen = told(tripped(limit=limit), True), []
    while gate.ramp is not None:
        seen.append(gate.ramp)
        gate = told(gate, *[True] * gate.ramp)

    assert seen == widths
    assert limit_of(gate) == limit


@given(st.sampled_from([2, 4, 8, 16, 32]), st.integers(1, 100))
def test_one_failure_in_a_ramp_throws_nothing_back(ramp: int, consecutive: int) -> None:
    gate = tripped(ramp=ramp, good=1)

    after = told(gate, False, spec=replace(SPEC, consecutive=max(2, consecutive)))

    assert after == replace(gate, generation=gate.generation + 1, bad=1, word=gate.word + 1)
    assert told(after, True).bad == 0


@given(st.sampled_from([1, 2, 4, 8, 16, 32]), st.integers(1, 100))
def test_a_whole_round_of_failures_trips_again_at_most_as_many_as_the_breaker_takes(ramp: int, most: int) -> None:
    spec = replace(SPEC, consecutive=most)
    gate, words = tripped(ramp=ramp), 0
    while gate.era == 1:
        gate = told(gate, False, spec=spec)
        words += 1

    assert words == min(ramp, most)
    assert (gate.ramp, gate.failed, gate.bad, gate.good) == (1, 2, 0, 0)


def test_a_recovery_that_succeeded_forgets_how_often_it_failed() -> None:
    gate = told(tripped(limit=2), False, False, True, True)
    assert gate.ramp is None

    again = change(gate, Trip(gate.era, 99, SPEC), now=NOW + 100)

    assert again.held_until == NOW + 110


# ---- fences ----


@given(st.integers(0, 5), st.booleans())
def test_a_late_word_of_an_earlier_era_changes_nothing(era: int, is_good: bool) -> None:
    gate = told(tripped(), False)
    assert gate.era == 2

    if era != 2:
        assert change(gate, Word(era, 77, is_good, SPEC), now=NOW + 99) == gate


def test_a_word_that_is_told_twice_counts_once() -> None:
    word = Word(1, 7, True, SPEC)

    once = change(tripped(), word, now=NOW + 10)

    assert once.good == 1
    assert change(once, word, now=NOW + 10) == once


@pytest.mark.parametrize("is_good", [True, False])
def test_the_word_of_a_recovery_that_is_over_changes_nothing(is_good: bool) -> None:
    gate = told(tripped(limit=2), True, True)

    assert told(gate, is_good) == gate


# ---- other words ----


def test_a_throttled_dependency_is_held_and_does_not_enter_the_ramp() -> None:
    gate = change(Gate("smtp"), Hold(30, "http_429"), now=NOW)

    assert (gate.era, gate.ramp, admit(gate, now=NOW + 30).room) == (0, None, None)
    assert state_of(gate, now=NOW) is BreakerState.CLOSED


def test_a_hold_during_a_recovery_leaves_it_where_it_was() -> None:
    gate = told(tripped(), True)

    held = change(gate, Hold(300, "http_429"), now=NOW + 10)

    assert replace(held, held_until=gate.held_until, reason=gate.reason, generation=gate.generation) == gate
    assert told(held, True).held_until == NOW + 310


def test_an_operators_release_opens_the_gate_fully_and_voids_what_was_known() -> None:
    gate = told(tripped(), False)

    released = change(gate, Release(), now=NOW + 11)

    assert admit(released, now=NOW + 11).room is None
    assert (released.ramp, released.failed, released.era) == (None, 0, 3)
    assert change(released, Trip(2, 9, SPEC), now=NOW + 11) == released


def test_a_release_of_a_gate_that_never_tripped_begins_no_era() -> None:
    assert change(Gate("smtp", held_until=NOW + 9), Release(), now=NOW).era == 0


def test_a_gate_is_a_breaker_that_is_open_half_open_or_closed() -> None:
    gate = tripped()

    assert state_of(gate, now=NOW + 9) is BreakerState.OPEN
    assert state_of(gate, now=NOW + 10) is BreakerState.HALF_OPEN
    assert state_of(told(gate, True, True), now=NOW + 10) is BreakerState.HALF_OPEN
    assert state_of(told(replace(gate, limit=1), True, True), now=NOW + 10) is BreakerState.CLOSED


def test_a_claim_knows_of_the_gates_that_ever_tripped() -> None:
    probed = told(tripped(), False)

    assert recoveries_of([Gate("db"), probed]) == (Recovery("smtp", 2, 1, 2),)
    assert recoveries_of([Gate("db", limit=1)]) == ()


def test_a_recovery_that_nobody_goes_on_with_is_forgotten_after_a_day() -> None:
    gate = tripped()

    assert not is_idle(gate, now=NOW + 10 + FORGET_S - 1)
    assert is_idle(gate, now=NOW + 10 + FORGET_S)


@pytest.mark.parametrize(
    "matters",
    [
        {"live": 1},
        {"held_until": NOW + 1},
        {"tat": NOW + 1},
        {"limit": 1},
        {"limit_override": 1},
        {"rate": Rate(1.0)},
        {"rate_override": Rate(1.0)},
    ],
)
def test_a_gate_that_matters_is_not_idle(matters: dict[str, Any]) -> None:
    assert is_idle(Gate("smtp", era=3, word=9, held_until=NOW, tat=NOW), now=NOW)
    assert not is_idle(Gate("smtp", **matters), now=NOW)


# ---- random interleavings ----


@dataclass(slots=True)
class Claimed:
    era: int
    ramp: int | None


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "claim",
                "claim",
                "good",
                "good",
                "bad",
                "bad",
                "mute",
                "lost",
                "repeat",
                "trip",
                "wait",
                "throttle",
                "release",
                "limit",
                "unlimit",
            ]
        ),
        st.integers(0, 63),
    ),
    max_size=80,
)


SPECS = st.builds(
    CircuitBreaker,
    st.just("smtp"),
    consecutive=st.integers(1, 6),
    open_for=st.just(10),
    max_open_for=st.sampled_from([10, 60]),
    close_after=st.integers(1, 3),
)


@settings(max_examples=500)
@given(STEPS, SPECS)
def test_no_interleaving_of_claims_and_words_breaks_the_gate_or_gets_it_stuck(
    steps: list[tuple[str, int]], spec: CircuitBreaker
) -> None:
    interleave(steps, spec)


@pytest.mark.soak
@pytest.mark.timeout(600)
@settings(max_examples=10_000)
@given(STEPS, SPECS)
def test_ten_thousand_interleavings_do_not_either(steps: list[tuple[str, int]], spec: CircuitBreaker) -> None:
    interleave(steps, spec)


def interleave(steps: list[tuple[str, int]], spec: CircuitBreaker) -> None:
    """Claims of many workers end well, badly, silently or never; words come late, twice, and from other eras."""
    gate, now, words = Gate("smtp"), NOW, 0
    live: list[Claimed] = []
    late: list[Claimed] = []  # whose claims were lost: their words still come
    last = Word(0, 0, True, spec)
    for what, pick in steps:
        before = gate
        match what:
            case "claim":
                if admit(gate, now=now).room != 0:
                    gate = take(gate, 1, now=now)
                    live.append(Claimed(gate.era, gate.ramp))
                    assert gate.held_until <= now
                    assert gate.ramp is None or gate.live <= gate.ramp
                    assert gate.limit is None or gate.live <= gate.limit
                assert state_of(gate, now=now) is not BreakerState.OPEN or gate == before
            case "good" | "bad" | "mute" | "lost":
                if not live:
                    continue
                one = live.pop(pick % len(live))
                if what in {"good", "bad"} and one.ramp is not None:
                    words += 1
                    last = Word(one.era, words, what == "good", spec)
                    gate = change(gate, last, now=now)
                    check_word(before, gate, one)
                if what == "lost":
                    late.append(one)
                gate = give_back(gate, 1, 0)
            case "repeat":
                gate = change(gate, last, now=now)
                assert gate == before or last.era == before.era
                if late:
                    words += 1
                    one = late.pop()
                    before, gate = gate, change(gate, Word(one.era, words, is_good=bool(pick % 2), spec=spec), now=now)
                    check_word(before, gate, one)
            case "trip":
                era = pick % 4 if pick > 32 else gate.era
                words += 1
                gate = change(gate, Trip(era, words, spec), now=now)
                assert gate == before or (era == before.era and before.ramp is None)
            case "wait":
                now += pick
            case "throttle":
                gate = change(gate, Hold(pick, "http_429"), now=now)
            case "release":
                gate = change(gate, Release(), now=now)
                assert admit(gate, now=now).room != 0 or gate.limit is not None
            case "limit":
                gate = change(gate, Declare(1 + pick % 8), now=now)
            case _:
                gate = change(change(gate, Declare(), now=now), OverrideLimit(None), now=now)
        check(before, gate, what)
        assert gate.live == len(live)
    recover(gate, now, words, len(live), spec)


def check_word(before: Gate, after: Gate, claimed: Claimed) -> None:
    """A word moves its own recovery one step, and no other."""
    if claimed.era != before.era or before.ramp is None:
        assert after == before
    elif after.era != before.era:
        assert (after.era, after.ramp, after.failed) == (before.era + 1, 1, before.failed + 1)
    else:
        assert after.ramp in {None, before.ramp, 2 * before.ramp}
        assert after.held_until == before.held_until


def check(before: Gate, after: Gate, what: str) -> None:
    """What holds after every step."""
    hold_and_recovery = [(one.held_until, one.era, one.ramp, one.good, one.bad, one.failed) for one in (before, after)]
    assert (after.generation > before.generation) == (hold_and_recovery[0] != hold_and_recovery[1]) or what in {
        "throttle",
        "release",
    }
    assert after.generation >= before.generation
    assert after.era >= before.era
    assert what == "release" or after.held_until >= before.held_until
    assert (after.ramp is None) == (after.failed == 0)
    assert after.ramp is None or 1 <= after.ramp < WIDEST
    assert after.era > 0 or after.ramp is None


def recover(gate: Gate, now: float, words: int, live: int, spec: CircuitBreaker) -> None:
    """From wherever it is, a gate whose dependency is well again opens, and needs no person for it."""
    gate = give_back(gate, live, 0)
    now = max(now, gate.held_until)
    for _ in range(3 * WIDEST):
        if gate.ramp is None:
            break
        assert admit(gate, now=now).room != 0
        gate = take(gate, 1, now=now)
        words += 1
        gate = give_back(change(gate, Word(gate.era, words, True, spec), now=now), 1, 0)
    assert gate.ramp is None
    assert (gate.failed, gate.bad, gate.good) == (0, 0, 0)
