"""A retry budget: a bucket of tokens that first attempts fill by a ratio, and each retry empties by one.

A ratio, not a count of what is in flight: that misfires where few calls run (Envoy #30205). As gRPC's throttling and
the AWS quota it refuses the extra attempt alone; the error of the one before it stays the caller's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from taskflow.core.specs import RetryBudget


class Budget:
    """The tokens of one `RetryBudget`; full at first."""

    __slots__ = ("_cap", "_ratio", "_tokens")

    def __init__(self, spec: RetryBudget) -> None:
        self._ratio, self._cap = spec.ratio, spec.cap
        self._tokens: float = spec.cap

    @property
    def tokens(self) -> float:
        """Retries that may be sent now; a fraction is on its way to the next."""
        return self._tokens

    def deposit(self) -> None:
        """A first attempt was made."""
        self._tokens = min(self._cap, self._tokens + self._ratio)

    def try_withdraw(self) -> bool:
        """Whether one retry may be sent, now: ask at the moment of sending, after the wait."""
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
