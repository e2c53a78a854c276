"""A retry budget: a token bucket that first attempts fill and retries empty (Finagle's RetryBudget, gRPC A6).

While little fails, every retry finds a token. When all fails, the retries add at most `ratio` to the load of the first
attempts, instead of a multiple of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from taskflow.core.specs import RetryBudget


class Budget:
    """The tokens of one `RetryBudget`; full at first."""

    __slots__ = ("_spec", "_tokens")

    def __init__(self, spec: RetryBudget) -> None:
        self._spec = spec
        self._tokens = float(spec.cap)

    @property
    def tokens(self) -> float:
        """Retries that may be made now; 0 to the cap."""
        return self._tokens

    def deposit(self) -> None:
        """A first attempt starts."""
        self._tokens = min(float(self._spec.cap), self._tokens + self._spec.ratio)

    def try_withdraw(self) -> bool:
        """Take the token of one retry, if there is one."""
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
