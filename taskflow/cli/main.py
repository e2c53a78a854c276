"""`taskflow`: one command, groups that are imported when they are used. stdout is data, stderr is messages."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from typing import Any

import click

from taskflow.cli.exits import HELP, OWN_PROCESS, Exit, code_of
from taskflow.errors import TaskflowError

_DISTRIBUTION = "resilient-taskflow"

# name → where its click command is, and the line that `taskflow --help` shows without importing it
_COMMANDS = {
    "worker": ("taskflow.cli.worker:worker", "Run jobs until told to stop."),
    "submit": ("taskflow.cli.submit:submit", "Put one job, or a file of jobs, in the queue."),
    "run": ("taskflow.cli.run:run", "Submit a file of jobs and work until all are done."),
    "job": ("taskflow.cli.job:job", "Look at jobs, cancel and retry them."),
    "queue": ("taskflow.cli.queue:queue", "Look at queues, pause, resume and purge them."),
    "gate": ("taskflow.cli.gate:gate", "Look at gates, hold and release them, change their limits and rates."),
    "dead": ("taskflow.cli.dead:dead", "Look at dead letters, retry and purge them."),
    "status": ("taskflow.cli.status:status", "Everything at a glance."),
    "health": ("taskflow.cli.health:health", "Ask a running worker whether it is live, or ready."),
    "check": ("taskflow.cli.check:check", "Check configuration, app and broker, and change nothing."),
    "db": ("taskflow.cli.db:db", "Bring the broker's schema up to date, or look whether it is."),
    "config": ("taskflow.cli.config:config", "Show, check and explain the configuration."),
}


class Commands(click.Group):
    """Imports a command when it is asked for, and turns our errors into one line and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in _COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except TaskflowError as error:
            for line in str(error).splitlines():
                click.echo(f"taskflow: {line}", err=True)
            ctx.exit(code_of(error))
        except BrokenPipeError:
            sys.stderr.close()  # whoever read our output has gone: that is no error, and nothing to talk about
            ctx.exit(Exit.DONE)


def _version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        from taskflow.version import __version__  # noqa: PLC0415

        click.echo(__version__)
        ctx.exit()


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=HELP,
)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version.")
def cli() -> None:
    """Run Python functions as jobs, and survive production.

    APP is module:attribute (attribute defaults to "flow"), or TASKFLOW_APP. The current folder is importable.
    Everything else is configured from the environment: see `taskflow config reference`.
    """


def main() -> None:
    """The console script."""
    clash = other_owner()
    if clash:
        click.echo(
            f"taskflow: the package 'taskflow' in this environment is shared with the distribution {clash!r}, which "
            f"has overwritten files of ours. Uninstall it, then reinstall: pip uninstall {clash} && "
            f"pip install --force-reinstall {_DISTRIBUTION}",
            err=True,
        )
        sys.exit(Exit.USAGE)
    cli(obj=OWN_PROCESS)


def other_owner() -> str | None:
    """Another distribution that installs a package of our name (OpenStack's does), or None."""
    try:
        importlib.metadata.distribution("taskflow")
    except importlib.metadata.PackageNotFoundError:
        return None
    return "taskflow"
