"""How many calls each limiter of this process turned away. A pipeline works without a flow, so no bus reaches it."""

from __future__ import annotations

import threading

_MOST = 1_000  # limiters: their names come from code, but code may make them up

_counts: dict[tuple[str, str], int] = {}
_lock = threading.Lock()  # each thread has limiters of its own, and they share their names


def declare(limiter: str, reason: str) -> None:
    """There is such a limiter: its series begins at 0."""
    with _lock:
        if len(_counts) < _MOST:
            _counts.setdefault((limiter, reason), 0)


def count(limiter: str, reason: str) -> None:
    """It turned a call away."""
    with _lock:
        if (limiter, reason) in _counts:
            _counts[limiter, reason] += 1


def counts() -> dict[tuple[str, str], int]:
    """(limiter, reason) → calls since this process began."""
    with _lock:
        return _counts.copy()
