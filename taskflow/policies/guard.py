"""The contract of the policies that run the body at most once."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, NamedTuple, Protocol


class Waiting(NamedTuple):
    """The permit is not there yet: await it."""

    permit: Coroutine[Any, Any, Any]


class Guard(Protocol):
    """Asked before the body, told after it. Both answer at once: nobody comes between the check and the taking."""

    def enter(self, now: float) -> Any:
        """The permit of one call, or `Waiting`. Raises what turns the call away: then nothing was taken."""
        ...

    def leave(self, permit: Any, now: float, error: BaseException | None, result: Any) -> BaseException | None:
        """Take the permit back. Returns the error that comes out: `error`, or what stands for it."""
        ...
