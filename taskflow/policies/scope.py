"""What a call hands to the calls inside it: its deadline, and that somebody retries it already.

One context variable holds a chain of scopes; a job's time is that of its attempt, and costs a job without policies
nothing. A scope counts only until its call has ended: a background task that was started inside must not inherit a
deadline for ever.
"""

from __future__ import annotations

import math
from contextvars import ContextVar
from typing import TYPE_CHECKING

from taskflow.telemetry.context import job_context

if TYPE_CHECKING:
    from taskflow.clock import Clock


class Scope:
    """One call. `at` is its deadline on `clock` (infinite: it adds none), `retries` the dependency it retries."""

    __slots__ = ("at", "clock", "is_over", "outer", "retries")

    def __init__(self, outer: Scope | None, clock: Clock, *, at: float = math.inf, retries: str = "") -> None:
        self.outer = outer
        self.clock = clock
        self.at = at
        self.retries = retries
        self.is_over = False


current: ContextVar[Scope | None] = ContextVar("taskflow_scope", default=None)


def deadline_at(clock: Clock) -> float:
    """The nearest deadline of the calls, and of the job, that run here, on `clock`; infinite if there is none."""
    nearest, job = calls_end_at(clock), job_context.get()
    if job is not None and (left_s := job.deadline_in_s()) != math.inf:
        nearest = min(nearest, clock.now() + left_s)
    return nearest


def calls_end_at(clock: Clock) -> float:
    """As `deadline_at`, of the calls alone: for whoever would cancel what the worker itself cancels at that instant."""
    scope, nearest = current.get(), math.inf
    while scope is not None:
        if not scope.is_over and scope.at != math.inf:
            at = scope.at if scope.clock is clock else clock.now() + scope.at - scope.clock.now()
            nearest = min(nearest, at)
        scope = scope.outer
    return nearest


def remaining_s() -> float:
    """Seconds until the nearest deadline of the calls, and of the job, that run here; infinite if there is none."""
    scope, job = current.get(), job_context.get()
    least = math.inf if job is None else job.deadline_in_s()
    while scope is not None:
        if not scope.is_over and scope.at != math.inf:
            least = min(least, scope.at - scope.clock.now())
        scope = scope.outer
    return least


def is_retried(dependency: str) -> bool:
    """Whether a call that runs here is retried already for this dependency."""
    scope = current.get()
    while scope is not None:
        if scope.retries == dependency and not scope.is_over:
            return True
        scope = scope.outer
    return False
