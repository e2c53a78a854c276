"""Round trips to the broker: timed, counted, and repeated through an outage with capped jittered backoff."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from taskflow.core import events
from taskflow.errors import BrokerUnavailable

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable

    from taskflow.clock import Clock

T = TypeVar("T")

# Waits grow from the first to the second, jittered over the upper half: never a spin, and soon back after an outage.
_FIRST_S, _CAP_S = 0.05, 5.0


class BrokerCalls:
    """Calls the broker on behalf of one worker, and announces how it answers."""

    def __init__(self, clock: Clock, rng: random.Random, emit: Callable[[events.Event], None]) -> None:
        self._clock = clock
        self._rng = rng
        self._emit = emit
        self._down_since: dict[str, float] = {}

    @property
    def is_down(self) -> bool:
        """Whether the last answer of any operation was none."""
        return bool(self._down_since)

    async def once(self, operation: str, call: Callable[[], Awaitable[T]]) -> T:
        """One round trip. Raises `BrokerUnavailable` after it has been announced."""
        clock = self._clock
        began = clock.now()
        try:
            answer = await call()
        except BrokerUnavailable as error:
            self._failed(operation, error, 0.0)
            raise
        took_s = clock.now() - began
        if self._down_since:
            self._answered(operation)
        self._emit(events.BrokerAnswered(operation, took_s))
        return answer

    async def until_heard(self, operation: str, call: Callable[[], Awaitable[T]]) -> T:
        """The answer, however long the outage. For verbs that are safe to repeat."""
        wait_s = _FIRST_S
        clock = self._clock
        while True:
            began = clock.now()
            try:
                answer = await call()
            except BrokerUnavailable as error:
                pause_s = wait_s * (0.5 + self._rng.random() / 2)
                self._failed(operation, error, pause_s)
                await clock.sleep(pause_s)
                wait_s = min(_CAP_S, wait_s * 2)
                continue
            if self._down_since:
                self._answered(operation)
            self._emit(events.BrokerAnswered(operation, clock.now() - began))
            return answer

    def _failed(self, operation: str, error: BrokerUnavailable, pause_s: float) -> None:
        self._down_since.setdefault(operation, self._clock.now())
        self._emit(events.BrokerFailed(operation, error.kind, str(error), pause_s))

    def _answered(self, operation: str) -> None:
        since = self._down_since.pop(operation, None)
        if since is not None:
            self._emit(events.BrokerRecovered(operation, self._clock.now() - since))
