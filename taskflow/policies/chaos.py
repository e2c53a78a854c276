"""Faults and waits on purpose, as the innermost policy: what the others do about them is what happens in earnest."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from taskflow.policies.guard import Waiting

if TYPE_CHECKING:
    from taskflow.clock import Clock
    from taskflow.core.specs import Chaos


class ChaosGuard:
    """The mischief of one pipeline."""

    __slots__ = ("_clock", "_rng", "_spec")

    def __init__(self, spec: Chaos, clock: Clock, rng: random.Random) -> None:
        self._spec = spec
        self._clock = clock
        self._rng = rng if spec.seed is None else random.Random(spec.seed)  # noqa: S311 - for mischief, not for secrets

    def enter(self, now: float) -> Waiting | None:
        """Let the call pass, make it wait, or make it fail."""
        del now
        spec = self._spec
        if spec.enabled is not None and not spec.enabled():
            return None
        # Both are drawn each time, so that one rate does not change what the other does with the same seed.
        is_late, fails = self._rng.random() < spec.latency_rate, self._rng.random() < spec.fault_rate
        if is_late:
            return Waiting(self._wait(fails=fails))
        if fails:
            raise self._fault()
        return None

    def leave(self, permit: None, now: float, error: BaseException | None, result: object) -> BaseException | None:
        """Nothing to give back."""
        del permit, now, result
        return error

    async def _wait(self, *, fails: bool) -> None:
        await self._clock.sleep(self._spec.latency)
        if fails:
            raise self._fault()

    def _fault(self) -> Exception:
        error = self._spec.fault()
        error.add_note("taskflow: injected by Chaos")
        return error
