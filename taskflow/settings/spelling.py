"""Which variables are settings, and what a misspelt one was meant to be."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from taskflow.nearest import nearest
from taskflow.settings.reference import PREFIX, LeafPath, env_name, task_key

# What Kubernetes injects for a Service called taskflow or taskflow-…, and never is a setting.
_KUBERNETES = re.compile(r"_SERVICE_HOST$|_SERVICE_PORT(_|$)|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?$")


@dataclass(frozen=True, slots=True)
class Misspelt:
    """A variable that means nothing, and the nearest one that does."""

    name: str
    suggestion: str | None = None

    def __str__(self) -> str:
        """One line for people."""
        hint = f"did you mean {self.suggestion}?" if self.suggestion else "`taskflow config reference` lists them all"
        return f"{self.name}: there is no such setting; {hint}"


class Spelling:
    """The names of all variables, from the paths of all leaves and of the leaves that each task has."""

    def __init__(self, leaves: Iterable[LeafPath], task_leaves: Iterable[LeafPath]) -> None:
        self._names = {"__".join(path) for path in leaves}
        self._tails = sorted(("__".join(path) for path in task_leaves), key=len, reverse=True)
        # The name of a task may begin and end with "_", but two in a row within it would be a delimiter.
        self._of_task = re.compile(rf"tasks__(?P<task>_*[^_]+(?:_[^_]+)*_*|_+)__(?P<tail>{'|'.join(self._tails)})")

    def read(self, env: Mapping[str, str]) -> tuple[dict[str, str], list[Misspelt]]:
        """The settings in `env`, by their names in lower case, and what is misspelt. Space around a value goes."""
        said: dict[str, str] = {}
        unknown: list[Misspelt] = []
        for name, raw in sorted(env.items(), key=lambda item: (item[0].isupper(), item[0])):  # upper case wins
            value = raw.strip()  # files that become variables often end in a newline
            if not name.upper().startswith(PREFIX) or not value:
                continue
            rest = name[len(PREFIX) :].lower()
            if rest in self._names:
                said[f"{PREFIX}{rest}".lower()] = value
            elif (found := self._of_task.fullmatch(rest)) is not None:
                # As "." the "_" of a task's name cannot be taken for a part of the delimiter: in `A___TIMEOUT_S` the
                # task is `a_`, but pydantic-settings would split after "A".
                task = task_key(found["task"]).replace("_", ".")
                said[f"{PREFIX}tasks__{task}__{found['tail']}".lower()] = value
            elif not _KUBERNETES.search(name) and not (name.endswith("_PORT") and "://" in value):
                unknown.append(Misspelt(name, self._suggest(rest)))
        return said, unknown

    def _suggest(self, rest: str) -> str | None:
        """The nearest variable. One underscore for two is the mistake that people make most."""
        flat = rest.replace("__", "_")
        if flat.startswith("tasks_"):
            return self._suggest_in_task(rest, flat.removeprefix("tasks_"))
        same = (known for known in self._names if known.replace("__", "_") == flat)
        near = next(same, None) or nearest(rest, sorted(self._names))
        return env_name((near,)) if near else None

    def _suggest_in_task(self, rest: str, flat: str) -> str | None:
        for tail in self._tails:
            task = flat.removesuffix("_" + tail.replace("__", "_"))
            if task and len(task) < len(flat):
                return env_name(("tasks", task, tail))
        task, _, typed = rest.removeprefix("tasks").strip("_").partition("__")
        near = nearest(typed, self._tails)
        return env_name(("tasks", task, near)) if near and task else None
