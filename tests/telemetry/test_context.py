"""One id follows a request into its jobs, and into every line they log."""

from __future__ import annotations

import asyncio
import contextvars

import hypothesis.strategies as st
import pytest
from hypothesis import given

from taskflow.telemetry.context import (
    bind_correlation_id,
    correlation_id,
    current_correlation_id,
    current_traceparent,
    job_context,
    parse_traceparent,
    request_id,
    trace_id,
)
from tests.telemetry.made import Job

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"


def in_a_context_of_its_own(test):
    def run() -> None:
        contextvars.Context().run(test)

    run.__name__ = test.__name__
    return run


@in_a_context_of_its_own
def test_outside_there_is_none() -> None:
    assert current_correlation_id() is None
    assert current_traceparent() is None


@in_a_context_of_its_own
def test_a_job_brings_its_own() -> None:
    job_context.set(Job(correlation_id="req-1", traceparent=PARENT))

    assert current_correlation_id() == "req-1"
    assert current_traceparent() == PARENT


@in_a_context_of_its_own
def test_what_the_caller_binds_wins_over_the_job() -> None:
    job_context.set(Job(correlation_id="req-1"))

    with bind_correlation_id("req-2", parent=PARENT):
        inside = current_correlation_id(), current_traceparent()

    assert inside == ("req-2", PARENT)
    assert current_correlation_id() == "req-1"


@in_a_context_of_its_own
def test_the_request_that_started_a_worker_does_not_rub_off_on_its_jobs() -> None:
    with bind_correlation_id("the-request", parent=PARENT):
        job_context.set(Job(correlation_id="req-1", traceparent=None))

        assert current_correlation_id() == "req-1"
        assert current_traceparent() is None


@in_a_context_of_its_own
def test_a_middleware_may_set_the_variable_itself() -> None:
    correlation_id.set("req-3")

    assert current_correlation_id() == "req-3"


@in_a_context_of_its_own
def test_it_follows_into_tasks_and_threads() -> None:
    async def main() -> tuple[str | None, str | None]:
        with bind_correlation_id("req-4"):
            task = asyncio.create_task(asyncio.to_thread(current_correlation_id))
        return await task, current_correlation_id()

    assert asyncio.run(main()) == ("req-4", None)


@in_a_context_of_its_own
def test_bindings_nest_and_end_with_an_error_too() -> None:
    with bind_correlation_id("outer"):
        with pytest.raises(ZeroDivisionError), bind_correlation_id("inner"):
            raise ZeroDivisionError
        assert current_correlation_id() == "outer"


@pytest.mark.parametrize("header", [None, "", "with space", "tab\t", "line\nbreak", "ä", "x" * 129, "\x00", "a\x7f"])
def test_a_header_that_is_no_id_is_replaced_by_a_new_one(header: str | None) -> None:
    assert request_id(header) is None
    with bind_correlation_id(header) as bound:
        assert bound != header
        assert current_correlation_id() == bound
        assert request_id(bound) == bound


@given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=128))
def test_visible_ascii_is_taken_as_it_is(header: str) -> None:
    assert request_id(header) == header


@pytest.mark.parametrize(
    ("header", "read"),
    [
        (PARENT, PARENT),
        (f" {PARENT}\t", PARENT),
        (f"00-{TRACE}-{SPAN}-00", f"00-{TRACE}-{SPAN}-00"),
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like", PARENT),
        (f"00-{TRACE}-{SPAN}-01-more", None),
        (f"ff-{TRACE}-{SPAN}-01", None),
        (f"00-{'0' * 32}-{SPAN}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (PARENT.upper(), None),
        (f"00-{TRACE}-{SPAN}", None),
        (f"{PARENT}\n", None),
        ("", None),
        (None, None),
    ],
)
def test_a_traceparent_is_read_as_w3c_says(header: str | None, read: str | None) -> None:
    assert parse_traceparent(header) == read
    assert trace_id(header) == (None if read is None else TRACE)


@given(st.text(max_size=80))
def test_rubbish_is_no_traceparent(header: str) -> None:
    assert parse_traceparent(header) is None
