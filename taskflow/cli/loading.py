"""Finds the app that a command is about."""

from __future__ import annotations

import importlib
import json
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import click

from taskflow.app import TaskFlow
from taskflow.cli.review import review, unfed
from taskflow.errors import ConfigError
from taskflow.nearest import nearest
from taskflow.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def load_app(spec: str | None, settings: Settings | None = None) -> TaskFlow:
    """The flow that `spec` names: `module:attribute`, `attribute` being "flow" unless said; None means TASKFLOW_APP.

    Raises `ConfigError` that says what is missing.
    """
    spec = spec or (settings or Settings.from_env()).app
    if not spec:
        raise ConfigError("no app: say which, as in `taskflow worker module:flow`, or set TASKFLOW_APP")
    module_name, _, attribute = spec.partition(":")
    attribute = attribute or "flow"
    if not all(part.isidentifier() for part in module_name.split(".")):
        raise ConfigError(f"app {spec!r}: {module_name!r} is no name of a module{_as_module(module_name)}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ConfigError:
        raise
    except SystemExit as error:
        raise ConfigError(
            f"app {spec!r} cannot be imported: it calls sys.exit({error.code!r}); what starts a program belongs under "
            f'if __name__ == "__main__":'
        ) from error
    except ModuleNotFoundError as error:
        if error.name != module_name.partition(".")[0] and error.name != module_name:
            raise _broken(spec, error) from error
        raise ConfigError(
            f"app {spec!r}: there is no module {error.name!r} in {here} or on the path; "
            f"say module:attribute, from the folder that holds the module{_as_module(module_name)}"
        ) from None
    except Exception as error:
        raise _broken(spec, error) from error
    flow = getattr(module, attribute, None)
    if not isinstance(flow, TaskFlow):
        flows = [name for name, value in vars(module).items() if isinstance(value, TaskFlow)]
        hint = f"; it has {', '.join(f'{module_name}:{name}' for name in flows)}" if flows else ""
        raise ConfigError(f"app {spec!r}: {attribute!r} in module {module_name!r} is no TaskFlow{hint}")
    return flow


def _as_module(name: str) -> str:
    """A did-you-mean for a file's name, if the file is there."""
    file = Path(name)
    if file.suffix != ".py" or file.is_absolute() or not file.is_file():
        return ""
    return f"; did you mean '{'.'.join(file.with_suffix('').parts)}:flow'?"


def _broken(spec: str, error: BaseException) -> ConfigError:
    if isinstance(error, SyntaxError):
        message, file, line = error.msg, error.filename, error.lineno
    else:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        message, file, line = str(error), frame.filename, frame.lineno
    return ConfigError(f"app {spec!r} cannot be imported: {type(error).__name__}: {message} ({file}, line {line})")


def warn_about(flow: TaskFlow, *, queues: Mapping[str, int] | None = None) -> None:
    """Tell, on stderr, of variables that look misspelt, are of no task, make a gate or make tasks disagree about one.

    With the `queues` that a worker works, also of an app without tasks, and of queues that no task goes to.

    Raises `ConfigError` for policies that are not valid, and for overrides of unknown tasks under
    TASKFLOW_STRICT_ENV=1.
    """
    found = review(flow)
    if found.problems:
        raise ConfigError("\n".join(found.problems))
    of_queues = [] if queues is None else unfed(flow, found, queues)
    for warning in (*flow.settings.warnings, *found.warnings, *of_queues):
        click.echo(f"taskflow: warning: {warning}", err=True)


def refuse_memory(flow: TaskFlow, command: str) -> None:
    """A broker that dies with its process is of no use between processes."""
    if flow.settings.broker.scheme == "memory":
        raise ConfigError(
            f"TASKFLOW_BROKER__URL: `taskflow {command}` refuses memory://, whose jobs die with this very process; "
            f"use sqlite:///taskflow.db (the default)"
        )


def split_app(words: Sequence[str], *, wants: int, app: str | None) -> tuple[str | None, list[str]]:
    """Which of `words` is APP: the first, unless TASKFLOW_APP (`app`) stands in for it.

    `wants` is how many words the command needs besides APP; what follows them is optional.
    """
    rest = list(words)
    if app is None or len(rest) > wants + 1 or (rest and ":" in rest[0]):
        return (rest[0] if rest else None), rest[1:]
    if len(rest) == wants + 1 and not _is_json(rest[-1]):
        return rest[0], rest[1:]
    return None, rest


def _is_json(word: str) -> bool:
    try:
        return isinstance(json.loads(word), dict | list)
    except ValueError:
        return False


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """A did-you-mean for messages, or nothing."""
    near = nearest(name, known)
    return f"; did you mean {near!r}?" if near else ""
