"""How long the other side, or a policy of ours, asks to wait."""

from __future__ import annotations

import math

from taskflow.policies.classes import headers_of
from taskflow.policies.retry_after import retry_after_s


def asked_wait_s(answer: object, *, wall: float) -> float | None:
    """Seconds that an error or a response asks to wait; None if it does not ask, or nobody can understand it.

    An error of ours says `retry_after_s`; an HTTP answer has a `Retry-After`, read at `wall`, seconds since 1970.
    """
    said = getattr(answer, "retry_after_s", None)
    if isinstance(said, int | float) and not isinstance(said, bool) and math.isfinite(said):
        return max(0.0, said)
    headers = headers_of(answer)
    if headers is None:
        return None
    return retry_after_s(headers.get("Retry-After"), now=wall, date=headers.get("Date"))
