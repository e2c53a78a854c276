from __future__ import annotations

from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskflow.policies.retry_after import LONGEST_S, retry_after_s

NOW = 784_111_777.0  # Sun, 06 Nov 1994 08:49:37 GMT, the example of RFC 9110


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0", 0.0),
        ("7", 7.0),
        (" 7 ", 7.0),
        ("86400", LONGEST_S),
        ("9" * 5000, LONGEST_S),
        ("Sun, 06 Nov 1994 08:49:47 GMT", 10.0),
        ("Sunday, 06-Nov-94 08:49:47 GMT", 10.0),
        ("Sun Nov  6 08:49:47 1994", 10.0),
        ("Sun, 06 Nov 1994 08:49:07 GMT", 0.0),
        ("Sun, 06 Nov 1999 08:49:37 GMT", LONGEST_S),
        (None, None),
        ("", None),
        ("-1", None),
        ("1.5", None),
        ("²", None),
        ("soon", None),
        ("Sun, 06 Nov 99999 08:49:37 GMT", None),
    ],
)
def test_both_forms_are_understood_and_clamped(value: str | None, expected: float | None):
    assert retry_after_s(value, now=NOW) == expected


def test_date_is_read_against_the_servers_own_clock():
    an_hour_late = NOW - 3600

    waits_s = retry_after_s(
        formatdate(an_hour_late + 5, usegmt=True), now=NOW, date=formatdate(an_hour_late, usegmt=True)
    )

    assert waits_s == 5.0


def test_server_that_tells_no_sensible_time_is_read_against_ours():
    assert retry_after_s(formatdate(NOW + 5, usegmt=True), now=NOW, date="yesterday") == 5.0


@given(st.one_of(st.text(), st.from_regex(r"[A-Z][a-z]{2}, \d{1,3} [A-Z][a-z]{2} \d{1,6} [\d:]{1,9} \S{0,6}")))
def test_whatever_a_server_sends_gives_a_bounded_wait_or_none(value: str):
    waits_s = retry_after_s(value, now=NOW, date=value)

    assert waits_s is None or 0 <= waits_s <= LONGEST_S
