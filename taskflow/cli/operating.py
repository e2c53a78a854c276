"""A broker for the commands of an operator: looking changes nothing, and never makes a file where none is."""

from __future__ import annotations

from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from taskflow.cli.running import open_broker
from taskflow.errors import ConfigError
from taskflow.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from taskflow.brokers.base import FullBroker


@asynccontextmanager
async def open_for_operator(*, creates: bool = False) -> AsyncIterator[FullBroker]:
    """The broker of TASKFLOW_BROKER__URL. Raises `ConfigError`, `BrokerUnavailable`.

    An SQLite file that does not exist counts as an empty one, and is made only with `creates`: who asks in the wrong
    folder must not leave a file there.
    """
    settings = Settings.from_env()
    for warning in settings.warnings:
        click.echo(f"taskflow: warning: {warning}", err=True)
    if settings.broker.scheme == "memory":
        raise ConfigError(
            "TASKFLOW_BROKER__URL: memory:// lives inside the process that runs the jobs: nothing can look into it "
            "from outside. For jobs that several processes share use sqlite:///taskflow.db (the default)"
        )
    missing = None if creates else missing_file(settings)
    if missing is None:
        async with open_broker(settings) as broker:
            yield broker
        return
    from taskflow.brokers.memory import MemoryBroker  # noqa: PLC0415 - only as the stand-in for a file that is not there

    click.echo(
        f"taskflow: there is no file {missing.absolute()} yet: nothing was submitted there (TASKFLOW_BROKER__URL)",
        err=True,
    )
    yield MemoryBroker()


def missing_file(settings: Settings) -> Path | None:
    """The broker's file, if it is one that is not there yet. Without its folder the broker has its own words for it."""
    file = sqlite_file(settings)
    return file if file is not None and not file.exists() and file.parent.is_dir() else None


def sqlite_file(settings: Settings) -> Path | None:
    """The broker's file, if it is one. A relative one is in the current folder."""
    if settings.broker.scheme != "sqlite":
        return None
    return Path(settings.broker.url.get_secret_value().partition("://")[2].removeprefix("/"))
