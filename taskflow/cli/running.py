"""What every command needs that talks to a broker: an event loop, and an open broker."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from taskflow.app import make_broker
from taskflow.clock import LoopClock
from taskflow.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine

    from taskflow.brokers.base import FullBroker

T = TypeVar("T")


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` in a loop of its own: uvloop's where it is installed."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(work)


def _loop_factory() -> Any:
    try:
        import uvloop  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415 - an extra
    except ImportError:
        return None
    return uvloop.new_event_loop


@asynccontextmanager
async def open_broker(settings: Settings | None = None) -> AsyncIterator[FullBroker]:
    """The broker of TASKFLOW_BROKER__URL, for commands that need no app. Raises `BrokerUnavailable`, `ConfigError`."""
    broker = make_broker(settings or Settings.from_env(), LoopClock())
    await broker.open()
    try:
        yield broker
    finally:
        await broker.close()


def print_json(data: Any) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(data, indent=2, default=str, ensure_ascii=False))


def print_table(head: list[str], rows: list[list[object]]) -> None:
    """Columns on stdout, aligned; numbers to the right."""
    texts = [head, *([("" if cell is None else str(cell)) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in texts) for column in range(len(head))]
    right = [bool(rows) and all(isinstance(row[column], int | float) for row in rows) for column in range(len(head))]
    for line in texts:
        cells = [
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(line, widths, right, strict=True)
        ]
        click.echo("  ".join(cells).rstrip())
