"""A broker for the commands of an operator: looking changes nothing, and never makes a file or schema where none is."""

from __future__ import annotations

from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from taskflow.app import make_broker
from taskflow.brokers.base import Versioned
from taskflow.cli.running import open_broker
from taskflow.clock import LoopClock
from taskflow.errors import ConfigError
from taskflow.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from taskflow.brokers.base import FullBroker


@asynccontextmanager
async def open_for_operator(*, creates: bool = False) -> AsyncIterator[FullBroker]:
    """The broker of TASKFLOW_BROKER__URL. Raises `ConfigError`, `BrokerUnavailable`.

    An SQLite file or a PostgreSQL schema that does not exist counts as an empty one, and is made only with `creates`:
    who asks in the wrong folder, or with a misspelt namespace, must not leave one there.
    """
    settings = Settings.from_env()
    for warning in settings.warnings:
        click.echo(f"taskflow: warning: {warning}", err=True)
    if settings.broker.scheme == "memory":
        raise ConfigError(
            "TASKFLOW_BROKER__URL: memory:// lives inside the process that runs the jobs: nothing can look into it "
            "from outside. For jobs that several processes share use sqlite:///taskflow.db (the default)"
        )
    if creates or await is_made(settings):
        async with open_broker(settings) as broker:
            yield broker
        return
    from taskflow.brokers.memory import MemoryBroker  # noqa: PLC0415 - only as the stand-in for what is not there

    click.echo(f"taskflow: nothing is kept yet: {_lacking(settings)}; the first worker or submit makes it", err=True)
    yield MemoryBroker()


async def is_made(settings: Settings) -> bool:
    """Whether the broker's file or schema is there; true of a broker that needs none. Changes nothing.

    Raises `ConfigError`, `BrokerError`, `BrokerUnavailable`.
    """
    broker = make_broker(settings, LoopClock())
    return not isinstance(broker, Versioned) or await broker.version() > 0


def _lacking(settings: Settings) -> str:
    file = sqlite_file(settings)
    if file is None:
        return f"no schema {settings.broker.namespace!r} in {settings.broker.shown_url} (TASKFLOW_BROKER__NAMESPACE)"
    return f"no {'tables in' if file.exists() else 'file'} {file.absolute()} (TASKFLOW_BROKER__URL)"


def missing_file(settings: Settings) -> Path | None:
    """The broker's file, if it is one that is not there yet. Without its folder the broker has its own words for it."""
    file = sqlite_file(settings)
    return file if file is not None and not file.exists() and file.parent.is_dir() else None


def sqlite_file(settings: Settings) -> Path | None:
    """The broker's file, if it is one. A relative one is in the current folder."""
    if settings.broker.scheme != "sqlite":
        return None
    return Path(settings.broker.url.get_secret_value().partition("://")[2].removeprefix("/"))
