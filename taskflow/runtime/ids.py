"""Job ids: UUID version 7 (RFC 9562) as 32 hex digits, so that ids sort by the time at which they were made."""

from __future__ import annotations

import hashlib
import random
import time

_VERSION, _VARIANT = 0x7 << 76, 0x2 << 62
_last = 0


def new_job_id() -> str:
    """A new id, greater than every one that this process made before.

    48 bits of milliseconds, 12 bits of their fraction (RFC 9562 method 3), 62 random bits.
    """
    global _last  # noqa: PLW0603 - one line of ids for a process
    ticks = time.time_ns() * 4096 // 1_000_000
    _last = ticks = max(ticks, _last + 1)
    number = (ticks >> 12) << 80 | _VERSION | (ticks & 0xFFF) << 64 | _VARIANT | random.getrandbits(62)
    return f"{number:032x}"


def derived_job_id(*parts: str) -> str:
    """The same id for the same parts, for ever: a repeated submit finds its job. UUID version 8 of RFC 9562."""
    number = int.from_bytes(hashlib.sha256("\0".join(parts).encode()).digest()[:16], "big")
    number = number & ~(0xF << 76) & ~(0x3 << 62) | 0x8 << 76 | _VARIANT
    return f"{number:032x}"
