"""Where a function is found by import: a child process looks there for what it runs."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import sys
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from taskflow.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

# A script is imported under another name, as by multiprocessing: `if __name__ == "__main__":` must not hold there.
SCRIPT = "__mp_main__"


# What a child process is importing now.
_finding: ContextVar[Where | None] = ContextVar("taskflow_finding", default=None)


class Where(NamedTuple):
    """A module, by its name or the file of the script that it is, and a name in it."""

    module: str
    qualname: str
    script: str | None = None
    is_main: bool = False  # whether the module is `__main__` in the worker


def where_is(fn: Callable[..., Any], task: str) -> Where:
    """Where another process finds `fn`. Raises `ConfigError` if it cannot."""
    module, qualname = getattr(fn, "__module__", None), getattr(fn, "__qualname__", None)
    if not inspect.isroutine(fn) or not module or not qualname:
        raise _unfindable(task, f"{fn!r} is no function of a module")
    if "<" in qualname:
        raise _unfindable(task, f"{qualname} is a lambda, or defined within a function")
    if module != "__main__":
        return Where(module, qualname)
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name != "__main__":  # of `python -m`
        return Where(spec.name, qualname, None, is_main=True)
    file = getattr(main, "__file__", None)
    if file is None or not Path(file).is_file():
        raise _unfindable(task, "the program that defines it is no file that could be imported")
    return Where(SCRIPT, qualname, str(Path(file).absolute()), is_main=True)


def check(fn: Callable[..., Any], where: Where, task: str) -> None:
    """Raise `ConfigError` unless what is found there is `fn`, once all modules are imported."""
    found = _walk(sys.modules.get("__main__" if where.is_main else where.module), where.qualname)
    if found is not fn and function_of(found) is not fn:
        raise _unfindable(task, f"{where.qualname} in module {where.module} is not the function that was registered")


def find(where: Where) -> Callable[..., Any]:
    """The function, imported. Raises whatever the import does, and `ConfigError` if it is not there."""
    before = _finding.set(where)
    try:
        module = _script(where.script) if where.script is not None else importlib.import_module(where.module)
    finally:
        _finding.reset(before)
    found: Callable[..., Any] | None = function_of(_walk(module, where.qualname))
    if found is None:
        raise ConfigError(f"there is no function {where.qualname} in module {where.module}")
    return found


def refuse_while_importing() -> None:
    """Raise `ConfigError` in the import of a child process: what opens a flow there would run all over again."""
    where = _finding.get()
    if where is not None:
        raise ConfigError(
            f"{where.script or where.module} opens a flow as soon as it is imported, and a child process imports it to "
            f'find {where.qualname}: put what it runs under `if __name__ == "__main__":`'
        )


def function_of(found: Any) -> Any:
    """The function that a name stands for: itself, or the one within the task that it was made."""
    definition = getattr(found, "definition", None)
    return getattr(definition, "fn", None) if definition is not None else found if callable(found) else None


def _walk(module: Any, qualname: str) -> Any:
    for step in qualname.split("."):
        module = getattr(module, step, None)
    return module


@functools.cache
def _script(path: str) -> Any:
    spec = importlib.util.spec_from_file_location(SCRIPT, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} cannot be imported: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[SCRIPT] = module
    spec.loader.exec_module(module)
    return module


def _unfindable(task: str, why: str) -> ConfigError:
    return ConfigError(
        f'task {task!r}: isolation="process" needs a function that a new process finds by import, and {why}; '
        f"define it with def at the top level of a module"
    )
