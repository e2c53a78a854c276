"""What is in force for a gate that several tasks share, and where an override made them disagree, or made the gate.

Declarations agree, as one name has one spec. An override names one task; but the gate is one for all of them, so the
override wins over what is declared, and of overrides that differ the smaller one does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from taskflow.core import specs
from taskflow.core.gate import Declare, Rate
from taskflow.settings import TASK_LEAVES, Settings, TaskOverride
from taskflow.settings.reference import env_name, task_key
from taskflow.settings.tuning import TaskPolicy, resolve

Tasks = Mapping[str, Mapping[str, Any]]  # what the decorator of each task says, by the task's name
_GATED = ("breaker", "bulkhead", "rate")
_Word = tuple[bool, float]  # whether an override says it, and what


def shared_gates(settings: Settings, tasks: Tasks) -> dict[str, Declare]:
    """The limit and the rate of every gate that `tasks` make, by the gate's name, sorted."""
    limits: dict[str, list[_Word]] = {}
    intervals: dict[str, list[_Word]] = {}
    bursts: dict[str, list[_Word]] = {}
    names: set[str] = set()
    for task, policy in _policies(settings, tasks).items():
        override = settings.tasks.get(task_key(task), TaskOverride())
        names |= {spec.name for spec in _specs(policy)}
        if (bulkhead := policy.bulkhead) is not None:
            limits.setdefault(bulkhead.name, []).append((override.bulkhead.limit is not None, bulkhead.limit))
        if (rate := policy.rate) is not None:
            intervals.setdefault(rate.name, []).append((override.rate.limit is not None, rate.interval_s))
            bursts.setdefault(rate.name, []).append((override.rate.burst is not None, rate.burst or 1))
    return {
        name: Declare(
            int(_in_force(limits[name])) if name in limits else None,
            Rate(_in_force(intervals[name], max), int(_in_force(bursts[name]))) if name in intervals else None,
        )
        for name in sorted(names)
    }


def disagreements(settings: Settings, tasks: Tasks) -> list[str]:
    """One line for each shared policy that, because of an override, tasks no longer mean the same by."""
    gates = shared_gates(settings, tasks)
    first: dict[tuple[str, str], tuple[str, Any]] = {}
    found: dict[tuple[str, str], str] = {}
    for task, policy in _policies(settings, tasks).items():
        for spec in _specs(policy):
            kind = type(spec).__name__
            other, known = first.setdefault((kind, spec.name), (task, spec))
            if known != spec:
                found.setdefault(
                    (kind, spec.name),
                    f"{kind} {spec.name!r}: tasks {other!r} and {task!r} give it different values, and only one can "
                    f"hold for both: {known} and {spec}; {_says(spec, gates[spec.name])}override it for all of them",
                )
    return list(found.values())


def made_by_overrides(settings: Settings, tasks: Tasks) -> list[str]:
    """One line for each gate that only the environment makes: it is fixed at submit, maybe in another environment."""
    found = []
    for task, declared in sorted(tasks.items()):
        in_code = [declared[key] for key in _GATED if declared.get(key) is not None]
        if any(spec.name == task and not spec.per_lane for spec in in_code):
            continue  # every job of the task has that gate
        made = [path for path in TASK_LEAVES if path[0] in _GATED and declared.get(path[0]) is None]
        paths = [("tasks", task_key(task), *path) for path in made]
        variables = [env_name(path) for path in paths if settings.source(path) not in ("default", "code")]
        if variables:
            found.append(
                f"{', '.join(variables)}: code declares no gate {task!r} for this task; jobs submitted without "
                f"{'it' if len(variables) == 1 else 'them'} do not have that gate: set "
                f"{'it' if len(variables) == 1 else 'them'} for submitters too"
            )
    return found


def _policies(settings: Settings, tasks: Tasks) -> dict[str, TaskPolicy]:
    return {name: resolve(settings, name, declared) for name, declared in sorted(tasks.items())}


def _specs(policy: TaskPolicy) -> list[specs.CircuitBreaker | specs.Bulkhead | specs.RateLimit]:
    return [spec for spec in (policy.breaker, policy.bulkhead, policy.rate) if spec is not None]


def _in_force(words: list[_Word], least: Callable[[list[float]], float] = min) -> float:
    """The least of what overrides say; of what is declared if none says anything. For intervals `least` is `max`."""
    overrides = [value for is_override, value in words if is_override]
    return least(overrides or [value for _, value in words])


def _says(spec: object, gate: Declare) -> str:
    if isinstance(spec, specs.Bulkhead):
        return f"a limit of {gate.limit} is in force; "
    if isinstance(spec, specs.RateLimit) and gate.rate is not None:
        return f"a start every {gate.rate.interval_s:g} s, {gate.rate.burst} at once, is in force; "
    return ""
