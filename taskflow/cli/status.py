"""`taskflow status`: everything at a glance."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from taskflow.cli.exits import Exit
from taskflow.cli.operating import open_for_operator, sqlite_file
from taskflow.cli.queue import print_queues
from taskflow.cli.running import print_json, run_async
from taskflow.cli.shown import instant, one_line
from taskflow.core.gate import Gate, family, limit_of
from taskflow.errors import BrokerError
from taskflow.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

    from taskflow.brokers.base import QueueCounts


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_context
def status(ctx: click.Context, *, as_json: bool) -> None:
    """The broker, its queues, the gates that are held, the dead letters. Exit 3 if the broker cannot be reached."""
    settings = Settings.from_env()
    broker: dict[str, Any] = {"url": settings.broker.shown_url, "reachable": True}
    try:
        counts, gates = run_async(_look())
    except BrokerError as error:
        if as_json:
            print_json({"broker": {**broker, "reachable": False, "error": str(error)}})
        else:
            click.echo(f"broker        {broker['url']}, not reachable")
        click.echo(f"taskflow: {error}", err=True)
        ctx.exit(Exit.BROKER)
    file = sqlite_file(settings)
    if file is not None:
        broker["file_bytes"] = _size(file)
    now = time.time()
    held = [gate for gate in gates if gate.held_until > now]
    dead = sum(count.dead for count in counts)
    if as_json:
        queues = [count._asdict() for count in counts]
        shown = [_gate_json(gate, gates) for gate in held]
        print_json({"broker": broker, "queues": queues, "gates_held": shown, "dead_letters": dead})
        return
    click.echo(f"broker        {broker['url']}, reachable{_sized(broker.get('file_bytes'))}")
    click.echo(f"dead letters  {f'{dead:,}: taskflow dead list' if dead else 0}")
    click.echo(f"gates held    {len(held)} of {len(gates)}")
    for gate in held:
        because = f", because of {one_line(gate.reason)}" if gate.reason else ""
        click.echo(f"  {one_line(gate.name)} until {instant(gate.held_until, now)}{because}; {_live(gate, gates)}")
    if counts:
        click.echo()
        print_queues(counts)
    else:
        click.echo("taskflow: no queue has had a job yet", err=True)


async def _look() -> tuple[list[QueueCounts], list[Gate]]:
    async with open_for_operator() as broker:
        return await broker.counts(), await broker.gates()


def _size(file: Path) -> int:
    """Bytes on disk, the write-ahead log included: it is a part of the database until the next checkpoint."""
    found = 0
    for path in (file, file.with_name(f"{file.name}-wal")):
        try:
            found += path.stat().st_size
        except OSError:
            continue
    return found


def _sized(size: int | None) -> str:
    if size is None:
        return ""
    return f", {size / 1e6:,.1f} MB" if size else ", no file yet"


def _limit(gate: Gate, gates: list[Gate]) -> int | None:
    parent = next((other for other in gates if other.name == family(gate.name) and other is not gate), None)
    return limit_of(gate, parent)


def _live(gate: Gate, gates: list[Gate]) -> str:
    limit = _limit(gate, gates)
    return f"{gate.live} running" if limit is None else f"{gate.live} of {limit} running"


def _gate_json(gate: Gate, gates: list[Gate]) -> dict[str, Any]:
    return {
        "gate": gate.name,
        "held_until": gate.held_until,
        "reason": gate.reason,
        "live": gate.live,
        "limit": _limit(gate, gates),
    }
