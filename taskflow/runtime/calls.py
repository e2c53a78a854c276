"""Round trips to the broker: timed, counted, and repeated through an outage with capped jittered backoff."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, TypeVar

from taskflow.core import events
from taskflow.errors import BrokerError, BrokerUnavailable

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

    async def once(self, operation: str, call: Callable[[], Awaitable[T]]) -> T:
        """One round trip. Raises `BrokerError` after it has been announced."""
        clock = self._clock
        began = clock.now()
        try:
            answer = await call()
        except BrokerError as error:
            self.failed(operation, error, 0.0)
            raise
        self.answered(operation, clock.now() - began)
        return answer

    async def until_heard(self, operation: str, call: Callable[[], Awaitable[T]]) -> T:
        """The answer, however long the outage. For verbs that are safe to repeat.

        Raises `BrokerError` that is no outage: the broker refused.
        """
        wait_s = _FIRST_S
        clock = self._clock
        while True:
            began = clock.now()
            try:
                answer = await call()
            except BrokerUnavailable as error:
                pause_s = wait_s * (0.5 + self._rng.random() / 2)
                self.failed(operation, error, pause_s)
                await clock.sleep(pause_s)
                wait_s = min(_CAP_S, wait_s * 2)
                continue
            self.answered(operation, clock.now() - began)
            return answer

    async def keep_up(self, operation: str, loop: Callable[[], Awaitable[None]]) -> None:
        """Run one of a worker's own loops for ever: what nobody foresaw is announced, and the loop starts again."""
        wait_s = _FIRST_S
        while True:
            began = self._clock.now()
            try:
                await loop()
            except Exception as error:  # noqa: BLE001 - a worker without this loop would be a zombie
                if self._clock.now() - began > _CAP_S:
                    wait_s = _FIRST_S
                pause_s = wait_s * (0.5 + self._rng.random() / 2)
                self.failed(operation, error, pause_s)
                await self._clock.sleep(pause_s)
                wait_s = min(_CAP_S, wait_s * 2)
            else:
                return

    def failed(self, operation: str, error: Exception, retry_in_s: float) -> None:
        """Announce that the broker did not answer, or refused, or that its driver broke."""
        if isinstance(error, BrokerUnavailable):
            self._down_since.setdefault(operation, self._clock.now())
            kind, message = error.kind, str(error)
        elif isinstance(error, BrokerError):
            kind, message = "refused", str(error)
        else:  # a bug, or a driver's error that no broker translated: the place is what helps
            frame = traceback.extract_tb(error.__traceback__)[-1:]
            where = f" ({frame[0].filename}:{frame[0].lineno})" if frame else ""
            kind, message = "other", f"{type(error).__name__}: {error}{where}"
        self._emit(events.BrokerFailed(operation, kind, message, retry_in_s))

    def answered(self, operation: str, took_s: float) -> None:
        """Announce that the broker answered."""
        if self._down_since:
            since = self._down_since.pop(operation, None)
            if since is not None:
                self._emit(events.BrokerRecovered(operation, self._clock.now() - since))
        self._emit(events.BrokerAnswered(operation, took_s))
