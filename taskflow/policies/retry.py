"""Runs the body again after a failure that may pass: jittered, under a budget, never past the deadline."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from taskflow.core.backoff import delay_s
from taskflow.errors import CircuitOpen, Rejected
from taskflow.policies.body import NotAwaitable
from taskflow.policies.classes import classify
from taskflow.policies.hints import asked_wait_s
from taskflow.policies.scope import Scope, current, deadline_at, is_retried

if TYPE_CHECKING:
    import random

    from taskflow.clock import Clock
    from taskflow.core.specs import Retry
    from taskflow.policies.body import Body
    from taskflow.policies.registry import Tokens

_SPREAD = 0.1  # those who were told the same `Retry-After` come back over this share of it: later, never earlier


class Retrying:
    """The retries of one pipeline. Holds nothing of a call: two calls at once know nothing of each other."""

    __slots__ = ("_body", "_budget", "_clock", "_name", "_of", "_rng", "_spec", "_waits_for_circuits")

    def __init__(
        self, spec: Retry, body: Body, *, of: str, name: str, clock: Clock, rng: random.Random, budget: Tokens | None
    ) -> None:
        self._spec = spec
        self._body = body
        self._of = of  # the dependency that is retried
        self._name = name
        self._clock = clock
        self._rng = rng
        self._budget = budget
        # To fail at once is what an open circuit is for: it is waited for only if somebody says so.
        self._waits_for_circuits = any(isinstance(kind, type) and issubclass(kind, Rejected) for kind in spec.on)

    async def run(self, fn: Any, args: Any, kwargs: Any) -> Any:
        """The result of the first attempt that succeeds, else the last one's error or result."""
        if is_retried(self._of):
            # Whoever is around us retries the same dependency: 3 times 3 attempts would be 9.
            return await self._body(fn, args, kwargs)
        budget, on_result = self._budget, self._spec.on_result
        began = self._clock.now()
        if budget is not None:
            budget.deposit(began)
        scope = Scope(current.get(), self._clock, retries=self._of)
        current.set(scope)
        history: _History | None = None  # most calls need none
        try:
            while True:
                error: Exception | None = None
                result = None
                try:
                    result = await self._body(fn, args, kwargs)
                except Exception as raised:  # the policy says which are worth another attempt
                    history = history or _History(self._name, self._clock, began)
                    wait_s = self._wait_s(history, raised, None)
                    if wait_s is None:
                        history.tell(raised)
                        raise
                    error = raised
                else:  # an `on_result` that raises is no failure of the call: to make it again would help nobody
                    if on_result is None or not on_result(result):
                        return result
                    history = history or _History(self._name, self._clock, began)
                    wait_s = self._wait_s(history, None, result)
                if wait_s is None:
                    return result
                try:
                    await self._clock.sleep(wait_s)
                    # Paid for when it is sent: paid before the wait, a whole crowd would pass (Envoy #30205).
                    if budget is not None and not budget.try_withdraw(self._clock.now()):
                        history.stopped = "its retry budget is empty"
                        if error is None:
                            return result
                        history.tell(error)
                        raise error
                    history.add(error)
                finally:
                    del error  # its traceback holds this frame
        finally:
            scope.is_over = True
            current.set(scope.outer)

    def _wait_s(self, history: _History, error: Exception | None, result: Any) -> float | None:
        """Seconds until the next attempt, or None if there is none; `history` then knows why."""
        spec = self._spec
        history.attempts += 1
        if error is not None and not self._covers(error):
            history.stopped = "another attempt does not help"
        elif history.attempts >= spec.attempts:
            history.stopped = "all attempts are used up"
        elif self._budget is not None and self._budget.tokens < 1:
            history.stopped = "its retry budget is empty"
        else:
            return self._fitting_s(history, result if error is None else error)
        return None

    def _covers(self, error: Exception) -> bool:
        if isinstance(error, NotAwaitable) or (isinstance(error, CircuitOpen) and not self._waits_for_circuits):
            return False
        return self._spec.covers(error, classify)

    def _fitting_s(self, history: _History, answer: Any) -> float | None:
        """The backoff, or what was asked for if that is longer; None if there is no time for it."""
        spec, rng = self._spec, self._rng
        wait_s = delay_s(spec, history.attempts, jitter=rng.random(), last_s=history.last_s)
        history.last_s = wait_s
        asked_s = asked_wait_s(answer, wall=self._clock.wall())
        if asked_s is not None:
            if asked_s > spec.max_delay:
                history.stopped = f"it was asked to wait {asked_s:.3g} s, more than max_delay={spec.max_delay:g}"
                return None
            wait_s = max(wait_s, asked_s * (1 + _SPREAD * rng.random()))
        at = deadline_at(self._clock)
        if at != math.inf and self._clock.now() + wait_s >= at:
            history.stopped = f"the deadline comes before the next attempt, in {wait_s:.3g} s"
            return None
        return wait_s


class _History:
    """What one call has been through."""

    __slots__ = ("_began", "_clock", "_earlier", "_name", "attempts", "last_s", "stopped")

    def __init__(self, name: str, clock: Clock, began: float) -> None:
        self._name = name
        self._clock = clock
        self._began = began
        self._earlier: list[str] = []
        self.attempts = 0
        self.last_s: float | None = None
        self.stopped = ""

    def add(self, error: Exception | None) -> None:
        """An attempt failed with `error`, or its result was none, and another follows."""
        self._earlier.append("a result" if error is None else type(error).__name__)

    def tell(self, error: Exception) -> None:
        """Note on the error that comes out what came before it. Types only: messages may hold secrets."""
        if self.attempts == 1 and self.stopped == "another attempt does not help":
            return
        took_s = self._clock.now() - self._began
        attempts = "1 attempt" if self.attempts == 1 else f"{self.attempts} attempts"
        before = f" (before: {', '.join(self._earlier[-_NAMED:])})" if self._earlier else ""
        error.add_note(f"taskflow: {self._name}: {attempts} in {took_s:.3g} s; {self.stopped}{before}")


_NAMED = 10  # earlier errors that a note names
