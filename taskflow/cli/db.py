"""`taskflow db`: the broker's tables. Every worker brings them up to date; here a deploy does it first, or looks."""

from __future__ import annotations

import click

from taskflow.app import make_broker
from taskflow.brokers.base import Versioned
from taskflow.cli.exits import Exit
from taskflow.cli.operating import sqlite_file
from taskflow.cli.running import open_broker, print_json, run_async
from taskflow.clock import LoopClock
from taskflow.settings import Settings


@click.group()
def db() -> None:
    """Bring the broker's schema up to date, or look whether it is. Redis and memory have none."""


@db.command()
@click.option("--json", "as_json", is_flag=True, help="A JSON object.")
def migrate(*, as_json: bool) -> None:
    """Make the schema, or bring it up to date. Running workers of the version before go on."""
    settings = Settings.from_env()
    found = run_async(_version(settings))
    if found is not None and found[0] < found[1]:
        run_async(_open(settings))
    _tell(settings, found, f"schema version {found[1]}, was {found[0]}" if found else "", as_json=as_json)


@db.command()
@click.option("--json", "as_json", is_flag=True, help="A JSON object.")
@click.pass_context
def check(ctx: click.Context, *, as_json: bool) -> None:
    """Exit 0 if the schema is of this version, 6 if it is missing or older, 2 if it is newer. Changes nothing.

    Redis and memory have none: there, 0 says that the broker answers. Exit 3 if it cannot be reached.
    """
    settings = Settings.from_env()
    found = run_async(_version(settings))
    is_current = found is None or found[0] == found[1]
    words = ""
    if found is not None:
        there = f"schema version {found[0]}" if found[0] else "no schema"
        words = there if is_current else f"{there}, not {found[1]}: taskflow db migrate"
    _tell(settings, found, words, as_json=as_json)
    ctx.exit(Exit.DONE if is_current else Exit.UNHEALTHY)


async def _version(settings: Settings) -> tuple[int, int] | None:
    """The version that is there (0: none), and this program's; None where there are no tables."""
    broker = make_broker(settings, LoopClock())
    if isinstance(broker, Versioned):
        return await broker.version(), broker.newest_version
    await _open(settings)  # a deploy is to hear now that its server is away
    return None


async def _open(settings: Settings) -> None:
    """Raises `BrokerUnavailable`, `ConfigError`."""
    async with open_broker(settings) as broker:
        await broker.counts()


def _tell(settings: Settings, found: tuple[int, int] | None, words: str, *, as_json: bool) -> None:
    file = sqlite_file(settings)
    where = settings.broker.shown_url if file is None else str(file.absolute())
    if as_json:
        version, newest = found or (None, None)
        print_json({"broker": where, "found": version, "newest": newest})
    else:
        click.echo(f"{where}: {words or 'there is nothing to migrate'}")
