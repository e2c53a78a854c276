"""`taskflow gate`: look at gates, hold and release them, change their limits and rates while workers run."""

from __future__ import annotations

import asyncio
import math
import time
from typing import TYPE_CHECKING

import click

from taskflow.cli.loading import did_you_mean
from taskflow.cli.operating import open_for_operator
from taskflow.cli.running import print_json, print_table, run_async
from taskflow.cli.shown import count_of, one_line
from taskflow.cli.standing import (
    ENDLESS_S,
    by_name,
    gate_json,
    in_words,
    is_held,
    limit_in_force,
    limit_text,
    operators_reason,
    parent_of,
    rate_in_force,
    rate_in_words,
    told,
)
from taskflow.core.gate import Hold, OverrideLimit, OverrideRate, Rate, Release, family
from taskflow.core.job import JobState
from taskflow.core.specs import parse_rate
from taskflow.errors import JobNotFound

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from taskflow.brokers.base import FullBroker
    from taskflow.core.gate import Gate, GateChange

_HEAD = ["GATE", "LIVE", "LIMIT", "RATE", "STATE"]
_AT_ONCE = 50  # changes that are sent together, and committed together: a claim waits no longer than that takes
_SEARCHED = 1_000  # newest jobs of a state, whose gates count as known
_MOST_NAMED = 10  # gates that a message lists
_MOST_REASON = 200  # characters
_MOST_LIMIT = 1_000_000_000  # what a bulkhead in code may say, too

_json_option = click.option("--json", "as_json", is_flag=True, help="A JSON object.")
_new_option = click.option("--new", is_flag=True, help="Also for a gate of which the broker keeps nothing yet.")


@click.group()
def gate() -> None:
    """Look at gates, hold and release them, change their limits and rates.

    A gate is one dependency: what the policies of tasks named, as in CircuitBreaker("smtp"). What is said here is
    kept in the broker, wins over code and environment, and holds for every job that is claimed from now on, by any
    worker. Jobs that run go on.
    """


@gate.command("list")
@click.option("--json", "as_json", is_flag=True, help="A JSON array.")
def list_(*, as_json: bool) -> None:
    """All gates: live claims, limit and rate with who said them, and whether they are held.

    "code" is what code and environment of the last worker to start say; "operator" is what was said here.
    """
    run_async(_list(as_json=as_json))


async def _list(*, as_json: bool) -> None:
    async with open_for_operator() as broker:
        gates = by_name(await broker.gates())
    if not gates:
        click.echo("taskflow: nothing is kept of any gate", err=True)
    now = time.time()
    if as_json:
        print_json([gate_json(one, gates, now) for one in gates.values()])
    elif gates:
        print_table(_HEAD, [_row(one, gates, now) for one in gates.values()])


def _row(gate: Gate, gates: Mapping[str, Gate], now: float) -> list[object]:
    parent = parent_of(gate, gates)
    limit, rate = limit_text(limit_in_force(gate, parent)), rate_in_words(rate_in_force(gate, parent))
    return [one_line(gate.name, 200), gate.live, limit, rate, told(gate, parent, now)]


@gate.command()
@click.argument("name", metavar="NAME")
@click.option(
    "--for", "for_s", type=click.FloatRange(0, ENDLESS_S, min_open=True), help="Seconds; else until released."
)
@click.option("--reason", help="Why, for whoever looks at it.")
@_new_option
@_json_option
def hold(name: str, for_s: float | None, reason: str | None, *, new: bool, as_json: bool) -> None:
    """Claim no more jobs that need this gate, in any queue, by any worker. They wait; no attempt is spent.

    Without --for until it is released: that isolates a breaker. A hold never shortens another: for that, release
    first. What runs goes on; submitting goes on.
    """
    if for_s is not None and not math.isfinite(for_s):  # NaN passes any range
        raise click.UsageError("--for takes seconds; leave it out to hold until released")
    said = Hold(ENDLESS_S if for_s is None else for_s, operators_reason(one_line(reason or "", _MOST_REASON)))
    run_async(_hold(name, said, new=new, as_json=as_json))


async def _hold(name: str, said: Hold, *, new: bool, as_json: bool) -> None:
    gates = await _change([name], said, new=new)
    now = time.time()
    if gates[name].reason != said.reason or gates[name].held_until > now + said.for_s + 1:
        click.echo(
            f"taskflow: warning: gate {name!r} was held for longer already, and a hold never shortens another; to "
            f"shorten it: taskflow gate release {name}, then hold",
            err=True,
        )
    _tell([name], gates, as_json=as_json)


@gate.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option("--lanes", is_flag=True, help="Also all gates of its lane keys, as http/example.org of http.")
@_json_option
def release(names: tuple[str, ...], *, lanes: bool, as_json: bool) -> None:
    """End the hold of gates: an operator's, a breaker's, or a Retry-After's. Waiting jobs are claimed again."""
    run_async(_release(list(dict.fromkeys(names)), lanes=lanes, as_json=as_json))


async def _release(names: list[str], *, lanes: bool, as_json: bool) -> None:
    gates = await _change(names, Release(), lanes=lanes)
    now = time.time()
    if not lanes:
        held = [one for one in gates if family(one) != one and family(one) in names and is_held(gates[one], now)]
        if held:
            more = ", …" if len(held) > _MOST_NAMED else ""
            click.echo(
                f"taskflow: {count_of(len(held), 'gate')} of lane keys {'is' if len(held) == 1 else 'are'} held on "
                f"their own: {', '.join(held[:_MOST_NAMED])}{more}; --lanes releases them too",
                err=True,
            )
    _tell(names, gates, as_json=as_json)


@gate.command()
@click.argument("name", metavar="NAME")
@click.argument("limit", metavar="N", type=click.IntRange(0, _MOST_LIMIT), required=False)
@click.option("--reset", is_flag=True, help="Back to what code and environment say.")
@_new_option
@_json_option
def limit(name: str, limit: int | None, *, reset: bool, new: bool, as_json: bool) -> None:
    """At most N jobs of this gate at once, over all workers; 0 admits none. It stays until --reset."""
    if (limit is None) is not reset:
        raise click.UsageError("say either N or --reset")
    run_async(_override(name, OverrideLimit(limit), new=new, as_json=as_json))


@gate.command()
@click.argument("name", metavar="NAME")
@click.argument("rate", metavar="RATE", required=False)
@click.option("--burst", type=click.IntRange(1), help="Starts at once, before they are spaced evenly; 1 unless said.")
@click.option("--reset", is_flag=True, help="Back to what code and environment say.")
@_new_option
@_json_option
def rate(name: str, rate: str | None, burst: int | None, *, reset: bool, new: bool, as_json: bool) -> None:
    """At most RATE starts of jobs of this gate, as 100/m (s, m, h, d), over all workers. It stays until --reset."""
    if (rate is None) is not reset or (reset and burst is not None):
        raise click.UsageError("say either RATE, with or without --burst, or --reset")
    said = None if rate is None else Rate(parse_rate(rate), burst or 1)
    run_async(_override(name, OverrideRate(said), new=new, as_json=as_json))


async def _override(name: str, change: OverrideLimit | OverrideRate, *, new: bool, as_json: bool) -> None:
    _tell([name], await _change([name], change, new=new), as_json=as_json)


async def _change(
    names: Sequence[str], change: GateChange, *, new: bool = False, lanes: bool = False
) -> dict[str, Gate]:
    """Change these gates, with `lanes` those of their lane keys too, and give all gates as they are then."""
    async with open_for_operator(creates=new) as broker:
        gates = by_name(await broker.gates())
        if not new:
            await _check_known(names, gates, broker)
        wanted = [*names, *(one for one in gates if lanes and family(one) in names and one not in names)]
        for start in range(0, len(wanted), _AT_ONCE):
            gates |= by_name(
                await asyncio.gather(*(broker.gate(name, change) for name in wanted[start : start + _AT_ONCE]))
            )
    return gates


async def _check_known(names: Sequence[str], gates: Mapping[str, Gate], broker: FullBroker) -> None:
    """Raises `JobNotFound` for a gate that nobody knows: what is said of it would hold for nothing.

    A lane key comes and goes with its jobs: a gate is known by its family, too, and a family by its lane keys. Of
    gates that nothing is kept of, jobs tell that wait.
    """
    known = {*gates, *map(family, gates)}
    for state in (JobState.READY, JobState.SCHEDULED):
        if any(family(name) not in known for name in names):
            waiting = {name for job in await broker.jobs(state=state, limit=_SEARCHED) for name in job.gates}
            known |= {*waiting, *map(family, waiting)}
    for name in names:
        if family(name) not in known:
            listed = ", ".join(sorted(known)[:_MOST_NAMED]) + (", …" if len(known) > _MOST_NAMED else "")
            meant = did_you_mean(name, sorted(known)) or ";"
            raise JobNotFound(
                f"the broker knows no gate {name!r}{meant} known: {listed or 'none'}. "
                "For one of which nothing is kept yet, `hold`, `limit` and `rate` take --new"
            )


def _tell(names: Sequence[str], gates: Mapping[str, Gate], *, as_json: bool) -> None:
    """How the gates stand now."""
    now = time.time()
    if as_json:
        found = [gate_json(gates[name], gates, now) for name in names]
        print_json(found[0] if len(found) == 1 else found)
        return
    for name in names:
        click.echo(f"gate {one_line(name, 200)!r} is {in_words(gates[name], gates, now)}")
