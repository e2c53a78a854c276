from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskflow.core import job as jobs
from taskflow.core.job import FINAL, INITIAL, SUSPECT_AFTER, TRANSITIONS, Job, JobState, is_buried, mermaid
from tests.core.made import claim


def test_every_state_has_its_row_in_the_table() -> None:
    assert list(TRANSITIONS) == list(JobState)


def test_states_are_told_by_their_lower_case_names() -> None:
    assert [str(state) for state in JobState] == [
        *("scheduled", "waiting", "ready", "running"),
        *("succeeded", "dead", "cancelled", "expired"),
    ]


def test_a_state_is_found_by_its_plain_text_too() -> None:
    assert [{state: "found"}[str(state)] for state in JobState] == ["found"] * len(JobState)


def test_every_arrow_ends_at_a_state_of_the_table() -> None:
    ends = {to for ways in TRANSITIONS.values() for to in ways.values()}

    assert ends <= set(TRANSITIONS)


def test_a_final_state_is_left_only_when_a_person_resurrects_a_dead_letter() -> None:
    ways_out = {(state, what, to) for state in FINAL for what, to in TRANSITIONS[state].items()}

    assert ways_out == {(JobState.DEAD, "resurrect", JobState.READY)}


def test_a_state_that_is_not_final_can_be_left() -> None:
    assert {state for state in JobState if not TRANSITIONS[state]} == FINAL - {JobState.DEAD}


def test_every_state_is_reachable_from_a_submit() -> None:
    reached = set(INITIAL)
    while found := {to for state in reached for to in TRANSITIONS[state].values()} - reached:
        reached |= found

    assert reached == set(JobState)


def test_a_final_state_is_reachable_from_every_state() -> None:
    ending = set(FINAL)
    while found := {state for state in JobState if ending & set(TRANSITIONS[state].values())} - ending:
        ending |= found

    assert ending == set(JobState)


def test_a_job_runs_only_by_a_claim() -> None:
    into_running = {
        (state, what) for state, ways in TRANSITIONS.items() for what, to in ways.items() if to == "running"
    }

    assert into_running == {(JobState.READY, "claim")}


def test_a_job_that_waits_or_runs_can_be_cancelled_and_can_expire() -> None:
    for state in set(JobState) - FINAL:
        assert TRANSITIONS[state]["cancel"] is JobState.CANCELLED
        assert TRANSITIONS[state]["expire"] is JobState.EXPIRED


def test_what_ends_an_attempt_leads_where_the_words_say() -> None:
    assert TRANSITIONS[JobState.RUNNING] == {
        "complete": JobState.SUCCEEDED,
        "retry": JobState.SCHEDULED,
        "snooze": JobState.SCHEDULED,
        "release": JobState.READY,
        "reclaim": JobState.READY,
        "bury": JobState.DEAD,
        "cancel": JobState.CANCELLED,
        "expire": JobState.EXPIRED,
    }


def test_the_table_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        TRANSITIONS[JobState.DEAD] = {}  # type: ignore[index]


@pytest.mark.parametrize(("lost", "is_suspect"), [(0, False), (1, False), (2, True), (3, True)])
def test_a_job_is_a_suspect_from_its_second_loss_on(lost: int, is_suspect: bool) -> None:
    assert claim(lost=lost).is_suspect is is_suspect


@pytest.mark.parametrize(("lost", "buried"), [(0, False), (3, False), (4, False), (5, True), (6, True)])
def test_three_losses_as_a_suspect_bury_a_job(lost: int, buried: bool) -> None:
    assert is_buried(lost, max_lost=3) is buried


@given(st.integers(0, 100), st.integers(1, 100))
def test_a_job_is_never_buried_for_losses_that_may_be_a_neighbours_fault(lost: int, max_lost: int) -> None:
    as_suspect = max(0, lost - SUSPECT_AFTER)

    assert is_buried(lost, max_lost=max_lost) is (as_suspect >= max_lost)


def test_a_job_waits_seven_days_at_middle_priority_unless_said_otherwise() -> None:
    job = Job("1", "send_mail", "mail", b"{}")

    assert (job.priority, job.delay_s, job.expires_s, job.expire_reason) == (4, 0.0, 7 * 86_400.0, "max_wait")
    assert (job.lane, job.gates, job.key, job.batch) == ("", (), None, "")


def test_the_bounds_of_a_job_are_those_of_the_design() -> None:
    assert (jobs.MAX_GATES, jobs.MAX_LANE_BYTES, SUSPECT_AFTER) == (3, 200, 2)


def test_the_diagram_shows_every_transition_of_the_table_and_no_other() -> None:
    drawn = re.findall(r"^    (\w+) --> (\w+): (.+)$", mermaid(), re.MULTILINE)

    shown = {(state, what, to) for state, to, whats in drawn for what in whats.split(", ")}

    assert shown == {(state, what, to) for state, ways in TRANSITIONS.items() for what, to in ways.items()}


def test_the_diagram_has_one_arrow_from_one_state_to_another() -> None:
    arrows = re.findall(r"^    (.+ --> [^:\n]+)", mermaid(), re.MULTILINE)

    assert len(arrows) == len(set(arrows))


def test_the_diagram_begins_at_a_submit_and_ends_at_the_final_states() -> None:
    lines = mermaid().splitlines()

    assert lines[0] == "stateDiagram-v2"
    assert [line for line in lines if "[*] -->" in line] == [f"    [*] --> {state}: submit" for state in INITIAL]
    assert {line for line in lines if "--> [*]" in line} == {f"    {state} --> [*]" for state in FINAL}


def test_the_diagram_ends_with_a_line_end() -> None:
    assert mermaid().endswith("--> [*]\n")
