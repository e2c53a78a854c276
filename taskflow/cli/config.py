"""`taskflow config`: what is set and where it comes from, whether it is right, and what there is to set."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from taskflow.errors import ConfigError

# taskflow.settings brings pydantic: only the commands that need it pay for it.
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from taskflow.app import TaskFlow
    from taskflow.cli.policies import Policies
    from taskflow.settings import Settings
    from taskflow.settings.reference import Leaf

_MOST_GATES = 50  # that a terminal is shown: lane keys may have thousands
_COLUMNS = ("variable", "default", "unit", "meaning")


@click.group()
def config() -> None:
    """Show, check and look up settings."""


@config.command()
@click.argument("app", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def show(app: str | None, *, as_json: bool) -> None:
    """Every setting with its value and source, secrets masked; with APP also each task's policies.

    What operators changed with `taskflow gate` is shown as such, if the broker answers within seconds.
    APP is module:attribute; without it TASKFLOW_APP, if set.
    """
    from taskflow.settings import Settings  # noqa: PLC0415

    settings = Settings.from_env()
    flow, problem = _find(app, settings)
    if flow is not None:
        settings = flow.settings  # an app may bring its own
    leaves = settings.leaves()
    if not as_json:
        _table([(leaf.name, leaf.value, leaf.source) for leaf in leaves])
    _tell(settings.warnings)
    if problem is not None:
        raise problem
    found = None if flow is None else _policies(flow)
    if as_json:
        shown = {"settings": [leaf._asdict() for leaf in leaves], "warnings": settings.warnings}
        click.echo(json.dumps({**shown, **_policies_json(found)}, indent=2))
    elif found is not None:
        _print_policies(found)


@config.command()
@click.argument("app", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of messages.")
def check(app: str | None, *, as_json: bool) -> None:
    """Exit 0 if the settings are right, 2 if not; problems and misspelt names go to stderr.

    With APP (module:attribute; without it TASKFLOW_APP, if set) the policies of its tasks are checked too.
    """
    problems, warnings = _check(app)
    if as_json:
        click.echo(json.dumps({"ok": not problems, "problems": problems, "warnings": warnings}, indent=2))
    else:
        _tell(problems)
        _tell(warnings)
        if not problems:
            click.echo("the settings are right")
    sys.exit(2 if problems else 0)


@config.command()
@click.option("--format", "form", type=click.Choice(["text", "markdown"]), default="text", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="A JSON array of objects.")
def reference(form: str, *, as_json: bool) -> None:
    """Every variable there is, with default, unit and meaning. The README carries the markdown form."""
    from taskflow.settings import reference as every_variable  # noqa: PLC0415

    leaves = every_variable()
    if as_json:
        rows = [dict(zip(_COLUMNS, _described(leaf), strict=True)) for leaf in leaves]
        click.echo(json.dumps(rows, indent=2))
    elif form == "markdown":
        click.echo(markdown_table(leaves))
    else:
        for leaf in leaves:
            default = f"{leaf.default} {leaf.unit}".rstrip() if leaf.default != "not set" else leaf.default
            click.echo(f"{leaf.name} ({default})\n    {leaf.description}")


def markdown_table(leaves: Iterable[Leaf]) -> str:
    """The README's table of settings."""
    lines = [_markdown_row(_COLUMNS), _markdown_row(["---"] * len(_COLUMNS))]
    for leaf in leaves:
        name, default, unit, meaning = _described(leaf)
        lines.append(_markdown_row([f"`{name}`", default, unit, meaning]))
    return "\n".join(lines)


def _described(leaf: Leaf) -> tuple[str, str, str, str]:
    return leaf.name, leaf.default, leaf.unit, leaf.description


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _table(rows: Sequence[tuple[str, str, str]]) -> None:
    """Aligned columns; the last one is not padded."""
    first = max(len(row[0]) for row in rows)
    second = max(len(row[1]) for row in rows)
    for name, value, source in rows:
        click.echo(f"{name:<{first}}  {value:<{second}}  {source}")


def _tell(messages: Iterable[str]) -> None:
    for message in messages:
        click.echo(message, err=True)


def _find(app: str | None, settings: Settings) -> tuple[TaskFlow | None, ConfigError | None]:
    """The app, if one is named, or why there is none."""
    if not (app or settings.app):
        return None, None
    from taskflow.cli.loading import load_app  # noqa: PLC0415

    try:
        return load_app(app, settings), None
    except ConfigError as error:
        return None, error


def _policies(flow: TaskFlow) -> Policies:
    from taskflow.cli.policies import policies  # noqa: PLC0415

    found = policies(flow)
    _tell(found.warnings)
    if found.unknown:
        _tell([found.unknown])
    return found


def _policies_json(found: Policies | None) -> dict[str, Any]:
    """`gates` are those that an operator changed or that are held; null if the broker did not tell."""
    if found is None:
        return {"tasks": {}, "gates": []}
    from taskflow.cli.standing import gate_json  # noqa: PLC0415

    now = time.time()
    tasks = {
        name: {leaf.name: {"value": leaf.value, "source": leaf.source, "variable": leaf.variable} for leaf in leaves}
        for name, leaves in found.tasks.items()
    }
    gates = [gate_json(found.gates[name], found.gates, now) for name in found.changed]
    return {"tasks": tasks, "gates": None if found.unknown else gates}


def _print_policies(found: Policies) -> None:
    from taskflow.cli.shown import one_line  # noqa: PLC0415
    from taskflow.cli.standing import in_words  # noqa: PLC0415

    for name, leaves in found.tasks.items():
        click.echo(f"\ntask {name}")
        _table([(f"  {leaf.name}", leaf.value, leaf.source) for leaf in leaves])
    if found.changed:
        now = time.time()
        click.echo("\ngates that an operator changed, or that are held (taskflow gate list)")
        for name in found.changed[:_MOST_GATES]:
            click.echo(f"  {one_line(name)}  {in_words(found.gates[name], found.gates, now)}")
        if len(found.changed) > _MOST_GATES:
            click.echo(f"  and {len(found.changed) - _MOST_GATES:,} more")


def _check(app: str | None) -> tuple[list[str], list[str]]:
    """All problems, and all that is merely suspicious."""
    from taskflow.settings import Settings, unknown_variables  # noqa: PLC0415

    try:
        settings = Settings.from_env()
    except ConfigError as error:
        problems = str(error).splitlines()
        misspelt = [str(word) for word in unknown_variables()]
        return problems, [word for word in misspelt if word not in problems]
    flow, problem = _find(app, settings)
    if problem is not None:
        return str(problem).splitlines(), list(settings.warnings)
    if flow is None:
        return [], list(settings.warnings)
    from taskflow.cli.review import review  # noqa: PLC0415

    found = review(flow)
    return found.problems, [*flow.settings.warnings, *found.warnings]
