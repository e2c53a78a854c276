"""`Retry-After`, as RFC 9110 has it: a number of seconds, or an HTTP date."""

from __future__ import annotations

from datetime import UTC
from email.utils import parsedate_to_datetime

LONGEST_S = 3600.0  # nobody may stop all calls to a host for longer with one answer


def retry_after_s(value: str | None, *, now: float, date: str | None = None) -> float | None:
    """Seconds to wait, in [0, 3600]; None if `value` says nothing that can be understood.

    A date is read against the server's own clock, its `Date` header, where it sends one; else against `now`, seconds
    since 1970: clocks that differ make no difference.
    """
    text = (value or "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text), LONGEST_S)
    at = _seconds_since_1970(text)
    if at is None:
        return None
    server_now = _seconds_since_1970((date or "").strip())
    return min(max(0.0, at - (now if server_now is None else server_now)), LONGEST_S)


def _seconds_since_1970(text: str) -> float | None:
    try:
        moment = parsedate_to_datetime(text)
        # All three forms of an HTTP date are in GMT; the oldest, asctime's, does not say so.
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
