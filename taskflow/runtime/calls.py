"""Round trips to the broker: timed, counted, and repeated through an outage with capped jittered backoff.

What waits to be repeated does not wait for long once the broker is back: the first operation that gets through again
(as a rule a beat, the most frequent) has the others try at once.
"""

from __future__ import annotations

import asyncio
import traceback
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from taskflow.core import events
from taskflow.core.backoff import Pauses
from taskflow.errors import BrokerError, BrokerUnavailable, ConfigError
from taskflow.runtime.bell import ring

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable

    from taskflow.clock import Clock

T = TypeVar("T")

_FIRST_S, _CAP_S = 0.05, 5.0  # between two tries in an outage


class BrokerCalls:
    """Calls the broker on behalf of one worker, and announces how it answers."""

    def __init__(self, clock: Clock, rng: random.Random, emit: Callable[[events.Event], None]) -> None:
        self._clock = clock
        self._rng = rng
        self._emit = emit
        self._down_since: dict[str, float] = {}
        self._pausing: set[asyncio.Future[None]] = set()

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
        pauses = self.pauses()
        while True:
            with suppress(BrokerUnavailable):
                return await self.or_pause(operation, call, pauses)

    async def or_pause(self, operation: str, call: Callable[[], Awaitable[T]], pauses: Pauses) -> T:
        """The answer; an outage is raised once it is time to ask again. For who may not want to ask the same again.

        Raises `BrokerUnavailable` then, and at once a `BrokerError` that is no outage: the broker refused.
        """
        clock = self._clock
        began = clock.now()
        try:
            answer = await call()
        except (BrokerUnavailable, ConfigError) as error:
            pause_s = pauses.next_s()
            self.failed(operation, error, pause_s)
            await self._until_due_or_back(pause_s)
            raise _as_outage(error) from error
        pauses.reset()
        self.answered(operation, clock.now() - began)
        return answer

    def pauses(self) -> Pauses:
        """For one operation that is repeated."""
        return Pauses(_FIRST_S, _CAP_S, self._rng.random)

    async def is_heard(self, operation: str, call: Callable[[], Awaitable[object]], pauses: Pauses) -> bool:
        """Whether the broker answers a call that it has no reason to refuse. If not, once it is time to ask again."""
        try:
            await self.or_pause(operation, call, pauses)
        except BrokerUnavailable:
            return False
        except Exception as error:  # noqa: BLE001 - whatever it is called, it is an outage
            pause_s = pauses.next_s()
            self._down_since.setdefault(operation, self._clock.now())
            self.failed(operation, error, pause_s)
            await self._until_due_or_back(pause_s)
            return False
        return True

    async def _until_due_or_back(self, pause_s: float) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        timer = self._clock.call_at(self._clock.now() + pause_s, partial(ring, waiter))
        self._pausing.add(waiter)
        try:
            await waiter
        finally:
            timer.cancel()
            self._pausing.discard(waiter)

    async def keep_up(self, operation: str, loop: Callable[[], Awaitable[None]]) -> None:
        """Run one of a worker's own loops for ever: what nobody foresaw is announced, and the loop starts again."""
        pauses = self.pauses()
        while True:
            began = self._clock.now()
            try:
                await loop()
            except Exception as error:  # noqa: BLE001 - a worker without this loop would be a zombie
                if self._clock.now() - began > _CAP_S:
                    pauses = self.pauses()
                pause_s = pauses.next_s()
                self.failed(operation, error, pause_s)
                await self._clock.sleep(pause_s)
            else:
                return

    def failed(self, operation: str, error: Exception, retry_in_s: float) -> None:
        """Announce that the broker did not answer, or refused, or that its driver broke."""
        if isinstance(error, BrokerUnavailable | ConfigError):
            error = _as_outage(error)
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
                for waiter in self._pausing:
                    ring(waiter)
        self._emit(events.BrokerAnswered(operation, took_s))


def _as_outage(error: BrokerUnavailable | ConfigError) -> BrokerUnavailable:
    """The broker was open, so its settings were right: somebody changes a password or rights, and is not done yet."""
    return error if isinstance(error, BrokerUnavailable) else BrokerUnavailable(str(error), kind="config")
