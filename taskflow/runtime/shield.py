"""An end that must not be cut short: the drain.

Cancellation asks for an end; the drain is that end, and cut short it would leave more behind than it saves. So it goes
on in a task of its own, and whoever was cancelled hears of it afterwards. That holds for asyncio's `task.cancel()`,
which comes once, and for anyio's cancelled scopes, in which every await is cancelled.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

import anyio

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


async def to_its_end(task: asyncio.Task[T], on_cancel: Callable[[], object]) -> T:
    """What `task` gives, however often the caller is cancelled meanwhile; that is raised then.

    `on_cancel` is called each time, to hurry. Bound the work itself: nothing else does.
    """
    cancelled: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError as error:
                cancelled = error
                on_cancel()
    if cancelled is not None:
        raise cancelled
    return task.result()
