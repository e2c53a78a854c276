from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskflow.core.gate import (
    Admission,
    Declare,
    Gate,
    GateChange,
    Hold,
    OverrideLimit,
    OverrideRate,
    Rate,
    Release,
    Trip,
    Word,
    admit,
    as_row,
    change,
    family,
    from_row,
    give_back,
    limit_of,
    of_family,
    rate_of,
    take,
)
from taskflow.core.specs import CircuitBreaker
from taskflow.errors import ConfigError

NOW = 1_800_000_000.0
LIMITS = st.none() | st.integers(0, 20)
RATES = st.none() | st.builds(Rate, st.sampled_from([0.01, 0.6, 60.0]), st.integers(1, 20))
ERAS = st.integers(0, 2)
WORDS = st.integers(1, 3)
SPECS = st.builds(
    CircuitBreaker,
    st.just("smtp"),
    consecutive=st.integers(1, 5),
    open_for=st.sampled_from([1, 10]),
    max_open_for=st.sampled_from([10, 300]),
    close_after=st.integers(1, 3),
)
CHANGES: dict[type[GateChange], st.SearchStrategy[GateChange]] = {
    Hold: st.builds(Hold, st.floats(-5, 100), st.text(max_size=5)),
    Release: st.just(Release()),
    Trip: st.builds(Trip, ERAS, WORDS, SPECS),
    Word: st.builds(Word, ERAS, WORDS, st.booleans(), SPECS),
    Declare: st.builds(Declare, LIMITS, RATES),
    OverrideLimit: st.builds(OverrideLimit, LIMITS),
    OverrideRate: st.builds(OverrideRate, RATES),
}


RECOVERIES = st.fixed_dictionaries({"era": ERAS, "word": st.just(0) | WORDS}) | st.fixed_dictionaries(
    {
        "era": st.integers(1, 2),
        "ramp": st.sampled_from([1, 2, 4, 32]),
        "good": st.integers(0, 31),
        "bad": st.integers(0, 4),
        "failed": st.integers(1, 9),
        "word": WORDS,
    }
)


@st.composite
def gates(draw: st.DrawFn, name: str = "http") -> Gate:
    return Gate(
        name,
        generation=draw(st.integers(0, 5)),
        held_until=draw(st.sampled_from([0.0, NOW - 1, NOW, NOW + 1, NOW + 9])),
        **draw(RECOVERIES),
        limit=draw(LIMITS),
        limit_override=draw(LIMITS),
        rate=draw(RATES),
        rate_override=draw(RATES),
        live=draw(st.integers(0, 25)),
        tat=draw(st.just(0.0) | st.floats(NOW - 10, NOW + 10)),
    )


PARENTS = st.none() | gates()


def test_a_new_gate_says_nothing_and_is_open() -> None:
    assert Gate("smtp") == Gate(
        name="smtp",
        generation=0,
        held_until=0.0,
        reason="",
        era=0,
        ramp=None,
        good=0,
        bad=0,
        failed=0,
        word=0,
        limit=None,
        limit_override=None,
        rate=None,
        rate_override=None,
        live=0,
        tat=0.0,
    )
    assert Rate(1.0) == Rate(1.0, 1)
    assert Hold(1.0) == Hold(1.0, "")
    assert Declare() == Declare(None, None)


@pytest.mark.parametrize("kind", [Gate, Rate, *get_args(GateChange)])
def test_what_travels_cannot_be_changed(kind: Any) -> None:
    assert kind.__dataclass_params__.frozen
    assert "__slots__" in vars(kind)


# ---- words ----


@pytest.mark.parametrize(
    ("name", "of"), [("http", "http"), ("http/api.example.org", "http"), ("http/a/b", "http"), ("http/", "http")]
)
def test_the_family_of_a_keyed_gate_is_the_name_before_its_key(name: str, of: str) -> None:
    assert family(name) == of


@pytest.mark.parametrize(
    ("own_override", "family_override", "own", "of_family", "in_force"),
    [
        (1, 2, 3, 4, 1),
        (None, 2, 3, 4, 2),
        (None, None, 3, 4, 3),
        (None, None, None, 4, 4),
        (None, None, None, None, None),
        (0, 2, 3, 4, 0),
        (None, 0, 3, 4, 0),
    ],
)
def test_the_nearest_word_wins_and_an_operators_first(
    own_override: int | None, family_override: int | None, own: int | None, of_family: int | None, in_force: int | None
) -> None:
    gate = Gate("http/a", limit=own, limit_override=own_override)
    parent = Gate("http", limit=of_family, limit_override=family_override)

    def rate(burst: int | None) -> Rate | None:
        return None if burst is None else Rate(1.0, burst + 1)

    assert limit_of(gate, parent) == in_force
    rated = Gate("http/a", rate=rate(own), rate_override=rate(own_override))
    parent = Gate("http", rate=rate(of_family), rate_override=rate(family_override))
    assert rate_of(rated, parent) == rate(in_force)


@given(gates())
def test_a_gate_without_a_family_has_its_own_words_only(gate: Gate) -> None:
    ends = replace(gate, ramp=None)

    assert limit_of(ends) == (gate.limit if gate.limit_override is None else gate.limit_override)
    assert rate_of(ends) == (gate.rate if gate.rate_override is None else gate.rate_override)


@given(gates())
def test_a_family_that_says_nothing_changes_nothing(gate: Gate) -> None:
    silent = Gate("http")

    assert limit_of(gate, silent) == limit_of(gate)
    assert rate_of(gate, silent) == rate_of(gate)
    assert admit(gate, silent, now=NOW) == admit(gate, now=NOW)


@given(gates(), PARENTS, st.integers(0, 20))
def test_a_ramp_lowers_the_limit_and_never_raises_it(gate: Gate, parent: Gate | None, ramp: int) -> None:
    limit = limit_of(replace(gate, ramp=None), parent)

    ramped = limit_of(replace(gate, ramp=ramp), parent)

    assert ramped == (ramp if limit is None else min(limit, ramp))


@pytest.mark.parametrize("bad", [(0.0, 1), (-1.0, 1), (math.nan, 1), (math.inf, 1), (1.0, 0), (1.0, -3), (1.0, 10**10)])
def test_a_rate_that_cannot_be_counted_is_refused_with_its_numbers(bad: tuple[float, int]) -> None:
    with pytest.raises(ConfigError, match=rf"got {bad[0]!r} and {bad[1]!r}") as refused:
        Rate(*bad)

    assert "interval_s must be at least 1e-05 seconds" in str(refused.value)
    assert "multiplied at most 1e+09 seconds" in str(refused.value)


# ---- admission ----


@given(gates(), PARENTS)
def test_a_held_gate_admits_none(gate: Gate, parent: Gate | None) -> None:
    held = [gate.held_until] if parent is None else [gate.held_until, parent.held_until]

    if max(held) > NOW:
        assert admit(gate, parent, now=NOW) == Admission(0, max(held))
    else:
        assert admit(gate, parent, now=NOW) == admit(replace(gate, held_until=0.0), parent, now=NOW)


def test_a_hold_ends_at_its_instant() -> None:
    gate = Gate("smtp", held_until=NOW)

    assert admit(gate, now=math.nextafter(NOW, 0)) == Admission(0, NOW)
    assert admit(gate, now=NOW) == Admission(None)


def test_a_gate_that_is_held_by_itself_and_its_family_opens_when_both_are_over() -> None:
    gate, parent = Gate("http/a", held_until=NOW + 1), Gate("http", held_until=NOW + 9)

    assert admit(gate, parent, now=NOW) == Admission(0, NOW + 9)


def test_a_gate_with_nothing_said_admits_without_a_bound() -> None:
    assert admit(Gate("smtp", live=10**6), now=NOW) == Admission(None, None)


@given(st.integers(0, 20), st.integers(0, 25))
def test_the_room_is_what_the_live_claims_leave_of_the_limit(limit: int, live: int) -> None:
    gate = Gate("smtp", limit=limit, live=live)

    assert admit(gate, now=NOW) == Admission(max(0, limit - live), None)


def test_a_full_gate_opens_by_a_settle_whatever_its_rate_says() -> None:
    gate = Gate("smtp", limit=1, live=1, rate=Rate(60.0), tat=NOW + 60)

    assert admit(gate, now=NOW) == Admission(0, None)


@pytest.mark.parametrize(("limit", "room"), [(None, 3), (2, 2), (3, 3), (9, 3)])
def test_the_room_is_the_lesser_of_limit_and_tokens(limit: int | None, room: int) -> None:
    gate = Gate("smtp", limit=limit, rate=Rate(60.0, 3))

    assert admit(gate, now=NOW) == Admission(room)


def test_without_a_token_a_gate_says_when_there_will_be_one() -> None:
    gate = take(Gate("smtp", rate=Rate(60.0, 2)), 2, now=NOW)

    assert admit(gate, now=NOW) == Admission(0, NOW + 60)
    assert admit(gate, now=NOW + 60) == Admission(1)


@given(gates(), PARENTS)
def test_an_admission_without_room_names_an_instant_to_come_or_a_settle(gate: Gate, parent: Gate | None) -> None:
    room, look_again_at = admit(gate, parent, now=NOW)

    if room == 0:
        limit = limit_of(gate, parent)
        is_full = limit is not None and gate.live >= limit
        assert is_full if look_again_at is None else look_again_at > NOW
    else:
        assert look_again_at is None


@given(gates(), PARENTS)
def test_live_claims_never_exceed_the_limit_by_an_admission(gate: Gate, parent: Gate | None) -> None:
    room, _ = admit(gate, parent, now=NOW)
    limit = limit_of(gate, parent)

    if room is None:
        assert limit is None
    elif room > 0:
        assert limit is None or take(gate, room, parent, now=NOW).live <= limit


@given(
    st.integers(1, 10),
    st.none() | st.builds(Rate, st.sampled_from([0.1, 1.0, 60.0]), st.integers(1, 5)),
    st.lists(
        st.tuples(st.sampled_from(["claim", "settle", "hand back"]), st.integers(1, 5), st.floats(0, 30)), max_size=50
    ),
)
def test_a_gate_is_never_over_its_limit_or_its_rate_while_jobs_come_and_go(
    limit: int, rate: Rate | None, steps: list[tuple[str, int, float]]
) -> None:
    gate, now, live = Gate("smtp", limit=limit, rate=rate), NOW, 0
    for what, wanted, waits_s in steps:
        now += waits_s
        if what == "claim":
            room, _ = admit(gate, now=now)
            assert room is not None
            count = min(wanted, room)
            gate, live = take(gate, count, now=now), live + count
        else:
            count = min(wanted, live)
            gate, live = give_back(gate, count, count if what == "hand back" else 0), live - count
        assert 0 <= gate.live == live <= limit
        room, _ = admit(gate, now=now)
        assert room is not None
        assert room <= min(limit - live, rate.burst if rate else limit)


def test_a_claim_takes_tokens_by_the_familys_rate() -> None:
    parent = Gate("http", rate=Rate(60.0, 2))

    gate = take(Gate("http/a"), 2, parent, now=NOW)

    assert admit(gate, parent, now=NOW) == Admission(0, NOW + 60)
    assert admit(Gate("http/b"), parent, now=NOW) == Admission(2)


def test_a_claim_without_a_rate_takes_no_token() -> None:
    assert take(Gate("smtp", tat=5.0), 3, now=NOW) == Gate("smtp", live=3, tat=5.0)


# ---- what comes back ----


def test_a_settled_claim_gives_its_slot_back_and_keeps_its_token() -> None:
    gate = take(Gate("smtp", limit=2, rate=Rate(60.0, 2)), 2, now=NOW)

    gate = give_back(gate, ended=2, unused=0)

    assert gate.live == 0
    assert admit(gate, now=NOW) == Admission(0, NOW + 60)


@given(st.integers(1, 20), st.integers(0, 20), st.integers(0, 20))
def test_claims_that_never_started_give_their_tokens_back(burst: int, used: int, unused: int) -> None:
    used, unused = min(used, burst), min(unused, max(0, burst - used))
    gate = take(Gate("smtp", rate=Rate(60.0, burst)), used + unused, now=NOW)

    gate = give_back(gate, ended=unused, unused=unused)

    assert gate.live == used
    assert admit(gate, now=NOW).room == burst - used


def test_tokens_come_back_by_the_familys_rate() -> None:
    parent = Gate("http", rate=Rate(60.0, 2))
    gate = take(Gate("http/a"), 2, parent, now=NOW)

    gate = give_back(gate, 1, 1, parent)

    assert admit(gate, parent, now=NOW) == Admission(1)


def test_without_a_rate_no_token_comes_back() -> None:
    assert give_back(Gate("smtp", live=3, tat=5.0), 3, 3) == Gate("smtp", live=0, tat=5.0)


def test_live_claims_are_never_less_than_none() -> None:
    assert give_back(Gate("smtp", live=1), 3, 0).live == 0


# ---- changes ----


def test_these_tests_know_every_change() -> None:
    assert set(CHANGES) == set(get_args(GateChange))


@given(gates(), st.one_of(*CHANGES.values()))
def test_a_change_touches_only_what_it_is_about(gate: Gate, asked: GateChange) -> None:
    held = {"held_until": 0.0, "reason": "", "generation": 0}
    recovery = {"era": 0, "ramp": None, "good": 0, "bad": 0, "failed": 0}
    touched: dict[type[GateChange], dict[str, Any]] = {
        Hold: held,
        Release: {**held, **recovery},
        Trip: {**held, **recovery, "word": 0},
        Word: {**held, **recovery, "word": 0},
        Declare: {"limit": None, "rate": None},
        OverrideLimit: {"limit_override": None},
        OverrideRate: {"rate_override": None},
    }

    after = change(gate, asked, now=NOW)

    blank = touched[type(asked)]
    assert replace(after, **blank) == replace(gate, **blank)


@given(gates(), CHANGES[Hold] | CHANGES[Release])
def test_the_generation_grows_with_every_hold_and_release(gate: Gate, asked: GateChange) -> None:
    assert change(gate, asked, now=NOW).generation == gate.generation + 1


@given(gates(), CHANGES[Trip] | CHANGES[Word])
def test_the_generation_grows_with_every_word_that_counts(gate: Gate, asked: Trip | Word) -> None:
    after = change(gate, asked, now=NOW)

    counted = after != gate
    assert after.generation == gate.generation + counted
    assert (after.word == asked.word) or not counted


@given(gates(), CHANGES[Declare] | CHANGES[OverrideLimit] | CHANGES[OverrideRate])
def test_the_generation_stays_when_only_numbers_are_said(gate: Gate, asked: GateChange) -> None:
    assert change(gate, asked, now=NOW).generation == gate.generation


@pytest.mark.parametrize(("for_s", "until"), [(30.0, NOW + 30), (0.0, NOW), (-5.0, NOW)])
def test_a_hold_closes_the_gate_for_its_time_with_its_reason(for_s: float, until: float) -> None:
    gate = change(Gate("smtp"), Hold(for_s, "circuit_open"), now=NOW)

    assert (gate.held_until, gate.reason) == (until, "circuit_open")


def test_a_shorter_hold_does_not_cut_a_longer_one() -> None:
    gate = change(Gate("smtp", held_until=NOW + 3600, reason="http_429"), Hold(5, "http_503"), now=NOW)

    assert (gate.held_until, gate.reason) == (NOW + 3600, "http_429")


@pytest.mark.parametrize(
    ("for_s", "held_for_s", "reason"), [(29.0, 30.0, "by hand"), (30.0, 30.0, "by hand"), (31.0, 31.0, "circuit_open")]
)
def test_a_hold_never_shortens_another(for_s: float, held_for_s: float, reason: str) -> None:
    gate = change(Gate("smtp", held_until=NOW + 30, reason="by hand"), Hold(for_s, "circuit_open"), now=NOW)

    assert gate == Gate("smtp", held_until=NOW + held_for_s, reason=reason, generation=1)


def test_a_release_opens_the_gate_now() -> None:
    gate = change(Gate("smtp", held_until=NOW + 30, reason="circuit_open"), Release(), now=NOW)

    assert (gate.held_until, gate.reason) == (0.0, "")


def test_the_last_declaration_wins_and_forgets_what_it_does_not_say() -> None:
    gate = change(Gate("smtp", limit=3, rate=Rate(1.0)), Declare(limit=5), now=NOW)

    assert (gate.limit, gate.rate) == (5, None)


def test_an_operators_word_outlives_a_declaration_until_it_is_taken_back() -> None:
    gate = change(Gate("smtp", limit=3), OverrideLimit(1), now=NOW)
    gate = change(gate, OverrideRate(Rate(60.0)), now=NOW)
    declared = change(gate, Declare(9, Rate(1.0)), now=NOW)

    assert (limit_of(declared), rate_of(declared)) == (1, Rate(60.0))
    declared = change(change(declared, OverrideLimit(None), now=NOW), OverrideRate(None), now=NOW)
    assert (limit_of(declared), rate_of(declared)) == (9, Rate(1.0))


def test_an_operators_faster_rate_counts_at_once() -> None:
    gate = take(Gate("smtp", rate=Rate(3_600.0, 24)), 24, now=NOW)

    gate = change(gate, OverrideRate(Rate(0.6, 10)), now=NOW)

    assert admit(gate, now=NOW) == Admission(10)


def test_the_gate_that_a_policy_made_is_found_among_a_jobs_own_by_name_or_family() -> None:
    gates = ("smtp", "http/api.example.org")

    assert (of_family(gates, "smtp"), of_family(gates, "http")) == ("smtp", "http/api.example.org")
    assert of_family(gates, "api.example.org") is None


@given(limit=LIMITS, override=LIMITS, rate=RATES, rate_override=RATES)
def test_a_gate_is_the_same_after_it_was_a_row(
    limit: int | None, override: int | None, rate: Rate | None, rate_override: Rate | None
) -> None:
    gate = Gate("http/a", 7, NOW, "busy", 3, 2, 1, 4, 5, 6, limit, override, rate, rate_override, 8, NOW + 1)

    assert from_row(as_row(gate)) == gate
