"""The retry budgets of one worker: a retry that finds no token waits longer; it does not die, no attempt is spent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskflow.core.backoff import exponential
from taskflow.core.budget import Budget
from taskflow.core.outcome import Rejected

if TYPE_CHECKING:
    from collections.abc import Callable

    from taskflow.clock import Clock
    from taskflow.core.job import Claim
    from taskflow.core.specs import Retry, RetryBudget

# Without first attempts nothing fills the bucket, and retries that wait for one another would wait for ever: so many a
# second are free. Finagle allows ten a client; a fleet has many workers.
_LEAST_PER_S = 1.0
_FIRST_S = 1.0
_LONGEST_S = 60.0  # or the policy's own `max_delay`, when that is longer


class Budgets:
    """Charged when a retry starts. One for each spec: tasks that share one share its tokens, unless one is tuned."""

    def __init__(self, clock: Clock, jitter: Callable[[], float]) -> None:
        self._clock = clock
        self._jitter = jitter
        self._budgets: dict[RetryBudget, Budget] = {}  # as many as code and environment declare
        self._free_at: dict[RetryBudget, float] = {}

    def charge(self, claim: Claim, retry: Retry, spec: RetryBudget) -> Rejected | None:
        """Take a token for a retry, and pay in for a first attempt. None: it may start. `spec` is the retry's."""
        budget = self._budgets.get(spec)
        if budget is None:
            budget = self._budgets[spec] = Budget(spec)
        if claim.attempts == 0:
            budget.deposit()
            return None
        if budget.try_withdraw():
            return None
        now = self._clock.now()
        if now >= self._free_at.get(spec, 0.0):
            self._free_at[spec] = now + 1 / _LEAST_PER_S
            return None
        longest_s = max(_LONGEST_S, retry.max_delay)
        wait_s = exponential(claim.snoozes + 1, base_s=max(_FIRST_S, retry.base), factor=2, cap_s=longest_s)
        return Rejected("retry_budget", wait_s * (0.5 + self._jitter() / 2))
