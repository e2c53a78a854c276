"""What a pipeline runs: the caller's function, or the policies that stand inside."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from types import CoroutineType
from typing import Any

Body = Callable[[Any, Any, Any], Coroutine[Any, Any, Any]]  # of a function, its arguments, and those by name


class NotAwaitable(TypeError):
    """The function that was called is no coroutine function: it has run, and running it again would help nobody."""


async def plain(fn: Any, args: Any, kwargs: Any) -> Any:
    """The function itself."""
    awaitable = fn(*args, **kwargs)
    if type(awaitable) is not CoroutineType:
        check_awaitable(fn, awaitable)
    return await awaitable


def check_awaitable(fn: Any, result: Any) -> None:
    """Raise `NotAwaitable` for what `fn` gave, unless it can be awaited."""
    if not inspect.isawaitable(result):
        raise NotAwaitable(
            f"{fn!r} gave {type(result).__name__}, which cannot be awaited: policies work on coroutine functions; "
            "for a plain function, call asyncio.to_thread with it"
        )
