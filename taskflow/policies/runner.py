"""One call on its way through its guards: in from the left, out from the right, and nothing of them is left behind."""

from __future__ import annotations

from types import CoroutineType
from typing import TYPE_CHECKING, Any

from taskflow.policies.body import check_awaitable, plain
from taskflow.policies.guard import Guard, Waiting

if TYPE_CHECKING:
    from taskflow.clock import Clock
    from taskflow.policies.body import Body


class Guarded:
    """Guards around a body."""

    __slots__ = ("_body", "_clock", "guards")

    def __init__(self, guards: tuple[Guard, ...], body: Body, clock: Clock) -> None:
        self.guards = guards
        self._body = None if body is plain else body  # a coroutine less for the usual case
        self._clock = clock

    async def run(self, fn: Any, args: Any, kwargs: Any) -> Any:
        """What the body returns or raises, unless a guard says otherwise."""
        clock, guards = self._clock, self.guards
        now = clock.now()
        permits: list[Any] = []
        try:
            for guard in guards:
                permit = guard.enter(now)
                if type(permit) is Waiting:
                    permit = await permit.permit
                    now = clock.now()
                permits.append(permit)
            if self._body is not None:
                result = await self._body(fn, args, kwargs)
            else:
                awaitable = fn(*args, **kwargs)
                if type(awaitable) is not CoroutineType:
                    check_awaitable(fn, awaitable)
                result = await awaitable
        except BaseException as raised:
            error = leave(guards, permits, clock.now(), raised, None)
            if error is raised or error is None:
                raise
            raise error from raised
        if (error := leave(guards, permits, clock.now(), None, result)) is not None:
            raise error
        return result


class Guarding:
    """`async with`: the guards of a pipeline around a block. For one block."""

    __slots__ = ("_clock", "_guards", "_permits")

    def __init__(self, guards: tuple[Guard, ...], clock: Clock) -> None:
        self._guards = guards
        self._clock = clock
        self._permits: list[Any] | None = None

    async def __aenter__(self) -> None:
        if self._permits is not None:
            raise RuntimeError("this guard has been used: ask the pipeline for a new one for each block")
        clock = self._clock
        now = clock.now()
        permits = self._permits = []
        try:
            for guard in self._guards:
                permit = guard.enter(now)
                if type(permit) is Waiting:
                    permit = await permit.permit
                    now = clock.now()
                permits.append(permit)
        except BaseException as raised:
            error = leave(self._guards, permits, clock.now(), raised, None)
            if error is raised or error is None:
                raise
            raise error from raised

    async def __aexit__(self, kind: object, raised: BaseException | None, traceback: object) -> None:
        assert self._permits is not None
        error = leave(self._guards, self._permits, self._clock.now(), raised, None)
        if error is not raised and error is not None:
            raise error from raised


def leave(
    guards: tuple[Guard, ...], permits: list[Any], now: float, error: BaseException | None, result: Any
) -> BaseException | None:
    """Give back what was taken, the last first. Never awaits: a cancellation cannot come between."""
    for index in range(len(permits) - 1, -1, -1):
        error = guards[index].leave(permits[index], now, error, result)
    return error
