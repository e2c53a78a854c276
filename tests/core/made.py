"""Records as tests need them: everything has a default, a test names what it is about."""

from __future__ import annotations

from typing import Any

from taskflow.core.job import Claim
from taskflow.core.outcome import ErrorRecord

BOOM = ErrorRecord("OSError", "boom", "transient", "Traceback ...")


def claim(**said: Any) -> Claim:
    """A first claim of a job that was never lost, but for what is said."""
    values: dict[str, Any] = {
        "job_id": "1",
        "token": 1,
        "task": "send_mail",
        "queue": "mail",
        "payload": b"{}",
        "lane": "",
        "gates": (),
        "priority": 4,
        "attempts": 0,
        "snoozes": 0,
        "lost": 0,
        "waited_s": 0.0,
        "age_s": 0.0,
        "expires_in_s": 60.0,
        "expire_reason": "max_wait",
        "checkpoint": None,
    }
    return Claim(**(values | said))
