"""What is in force for a task, leaf by leaf, and who said it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from pydantic import ValidationError

from taskflow.core import specs
from taskflow.errors import ConfigError
from taskflow.nearest import nearest
from taskflow.settings import TASK_LEAVES, Settings
from taskflow.settings.reference import LeafPath, env_name, problems, task_key, text_of
from taskflow.settings.sections import LOADING, BreakerSettings, RetrySettings, TaskOverride, TaskSettings
from taskflow.settings.spelling import Misspelt


@dataclass(frozen=True, slots=True)
class TaskPolicy:
    """What is in force for one task: every policy, every leaf decided."""

    timeout_s: float
    deadline_s: float | None
    max_wait_s: float
    priority: int
    queue: str
    retry: specs.Retry
    breaker: specs.CircuitBreaker | None
    bulkhead: specs.Bulkhead | None
    rate: specs.RateLimit | None


class PolicyLeaf(NamedTuple):
    """One decided leaf. `variable` is what overrides it for this task; empty if nothing in the environment can."""

    name: str
    value: str
    source: str
    variable: str


def resolve(
    settings: Settings, name: str, declared: Mapping[str, Any], options: Mapping[str, Any] = MappingProxyType({})
) -> TaskPolicy:
    """The policies of task `name`.

    Leaf by leaf: `TASKFLOW_TASKS__…` > `options` > `declared` > the sections `task`, `retry` and `breaker` > default.
    Both mappings have the decorator's keys (timeout, deadline, max_wait, priority, queue, retry, breaker, bulkhead,
    rate) and only those that were said; None counts as not said. Of a `Retry` or `CircuitBreaker` the fields count
    that its constructor was given (`said`), also where they equal a default.
    Raises `ConfigError` for values that do not fit.
    """
    return _Resolution(settings, name, declared, options).policy()


def explain(
    settings: Settings, name: str, declared: Mapping[str, Any], options: Mapping[str, Any] = MappingProxyType({})
) -> list[PolicyLeaf]:
    """What `resolve` decides, with the source of each leaf."""
    resolution = _Resolution(settings, name, declared, options)
    resolution.policy()
    return resolution.decided


def unknown_tasks(settings: Settings, known: Iterable[str]) -> list[Misspelt]:
    """The per-task variables whose task is not among `known`."""
    names = {task_key(name) for name in known}
    found = []
    for task in sorted(settings.tasks.keys() - names):
        near = nearest(task, sorted(names))
        for path in TASK_LEAVES:
            if settings.source(("tasks", task, *path)) != "default":
                right = env_name(("tasks", near, *path)) if near else None
                found.append(Misspelt(env_name(("tasks", task, *path)), right))
    return found


_DEFAULT = specs.Retry()
_Spec = TypeVar("_Spec", specs.Retry, specs.RetryBudget, specs.CircuitBreaker, specs.Bulkhead, specs.RateLimit)


class _Resolution:
    """One run of `resolve`, which remembers what it decided."""

    def __init__(self, settings: Settings, name: str, declared: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        self.settings = settings
        self.name = name
        self.key = task_key(name)
        self.override = settings.tasks.get(self.key, TaskOverride())
        self.code = (("options()", options), ("decorator", declared))
        self.decided: list[PolicyLeaf] = []

    def policy(self) -> TaskPolicy:
        plain = {field: self._plain(field) for field in TaskSettings.model_fields}
        return TaskPolicy(
            **plain, retry=self._retry(), breaker=self._breaker(), bulkhead=self._bulkhead(), rate=self._rate()
        )

    def _plain(self, field: str) -> Any:
        key = field.removesuffix("_s")
        candidates = []
        for source, said in self.code:
            if said.get(key) is not None:
                candidates.append((source, self._checked(field, said[key], source)))
        return self._pick(("task", field), (field,), candidates)

    def _checked(self, field: str, value: object, source: str) -> Any:
        try:
            return getattr(TaskSettings.model_validate({field: value}, context=LOADING), field)
        except ValidationError as error:
            text = problems(TaskSettings, error)[0][1]
        raise ConfigError(f"task {self.name!r}, {source}: {field.removesuffix('_s')} {text}")

    def _pick(
        self, section: LeafPath | None, tail: LeafPath, candidates: list[tuple[str, Any]], fallback: Any = None
    ) -> Any:
        """Decide one leaf, and remember it."""
        path = ("tasks", self.key, *tail)
        part: Any = self.override
        for step in tail[:-1]:
            part = getattr(part, step)
        if tail[-1] in part.model_fields_set:
            value = getattr(part, tail[-1])
            source = self._named(path)
        elif candidates:
            source, value = candidates[0]
        elif section is not None:
            value = getattr(getattr(self.settings, section[0]), section[1])
            source = self._named(section)
        else:
            source, value = "default", fallback
        self.decided.append(PolicyLeaf(".".join(tail), text_of(value), source, env_name(path)))
        return value

    def _decide(self, name: str, value: str, source: str) -> None:
        """Remember a leaf that the environment cannot say."""
        self.decided.append(PolicyLeaf(name, value, source, ""))

    def _named(self, path: LeafPath) -> str:
        source = self.settings.source(path)
        return source if source == "default" else f"{source}: {env_name(path)}"

    def _in_code(self, key: str, kind: type[_Spec]) -> list[tuple[str, _Spec]]:
        """The specs that code gives under `key`, options first."""
        found = []
        for source, said in self.code:
            spec = said.get(key)
            if isinstance(spec, kind):
                found.append((source, spec))
            elif spec is not None:
                raise ConfigError(f"task {self.name!r}, {source}: {key} must be a {kind.__name__}, got {spec!r}")
        return found

    def _build(self, tail: str, kind: type[_Spec], values: Mapping[str, Any]) -> _Spec:
        try:
            return kind(**values)
        except ConfigError as error:
            raise ConfigError(f"task {self.name!r} (see {env_name(('tasks', self.key, tail))}__…): {error}") from None

    def _retry(self) -> specs.Retry:
        given = self._in_code("retry", specs.Retry)
        values: dict[str, Any] = {}
        for field in RetrySettings.model_fields:
            key = field.removesuffix("_s")
            said = [(source, getattr(spec, key)) for source, spec in given if key in spec.said]
            values[key] = self._pick(("retry", field), ("retry", field), said)
        for key in ("on", "never", "delay"):  # Python objects: the environment cannot say them
            said = [(source, getattr(spec, key)) for source, spec in given if key in spec.said]
            source, values[key] = said[0] if said else ("default", getattr(_DEFAULT, key))
            self._decide(f"retry.{key}", _named(values[key]), source)
        values["budget"] = self._budget(given)
        return self._build("retry", specs.Retry, values)

    def _budget(self, given: list[tuple[str, specs.Retry]]) -> specs.RetryBudget | None:
        found = [(source, spec.budget) for source, spec in given if spec.budget is not None]
        if not found and not self.override.retry.budget.model_fields_set:
            return None
        source, spec = found[0] if found else ("the task's name", specs.RetryBudget(self.name))
        self._decide("retry.budget.name", spec.name, source)
        values: dict[str, Any] = {"name": spec.name}
        for key in ("ratio", "cap"):
            said = [(source, getattr(spec, key))] if found else []
            values[key] = self._pick(None, ("retry", "budget", key), said, getattr(spec, key))
        return self._build("retry", specs.RetryBudget, values)

    def _breaker(self) -> specs.CircuitBreaker | None:
        given = self._in_code("breaker", specs.CircuitBreaker)
        if not given and not self.override.breaker.model_fields_set:
            return None
        values = self._identity("breaker", given)
        for field in BreakerSettings.model_fields:
            key = field.removesuffix("_s")
            said = [(source, getattr(spec, key)) for source, spec in given if key in spec.said]
            values[key] = self._pick(("breaker", field), ("breaker", field), said)
        return self._build("breaker", specs.CircuitBreaker, values)

    def _bulkhead(self) -> specs.Bulkhead | None:
        given = self._in_code("bulkhead", specs.Bulkhead)
        if not given and self.override.bulkhead.limit is None:
            return None
        values = self._identity("bulkhead", given)
        values["limit"] = self._pick(None, ("bulkhead", "limit"), [(source, spec.limit) for source, spec in given])
        if given:
            values["wait"] = self._first("bulkhead", given, "wait")
        return self._build("bulkhead", specs.Bulkhead, values)

    def _rate(self) -> specs.RateLimit | None:
        given = self._in_code("rate", specs.RateLimit)
        override = self.override.rate
        if not given and override.limit is None:
            if override.burst is not None:
                prefix = env_name(("tasks", self.key, "rate"))
                raise ConfigError(f"{prefix}__BURST: the task has no rate limit; set {prefix}__LIMIT too")
            return None
        values = self._identity("rate", given)
        values["rate"] = self._pick(None, ("rate", "limit"), [(source, spec.rate) for source, spec in given])
        burst = [(source, spec.burst) for source, spec in given if spec.burst is not None]
        values["burst"] = self._pick(None, ("rate", "burst"), burst)
        if given:
            values["wait"] = self._first("rate", given, "wait")
        return self._build("rate", specs.RateLimit, values)

    def _identity(self, tail: str, given: list[tuple[str, Any]]) -> dict[str, Any]:
        """A policy's name: its own, or the task's if only the environment asks for it."""
        if not given:
            self._decide(f"{tail}.name", self.name, "the task's name")
            return {"name": self.name}
        source, spec = given[0]
        self._decide(f"{tail}.name", spec.name, source)
        return {"name": spec.name, "per_lane": self._first(tail, given, "per_lane")}

    def _first(self, tail: str, given: list[tuple[str, Any]], key: str) -> Any:
        """A field that only code can say: of whoever says it, or the default."""
        source, spec = next(((source, spec) for source, spec in given if key in spec.said), ("default", given[0][1]))
        self._decide(f"{tail}.{key}", text_of(getattr(spec, key)), source)
        return getattr(spec, key)


def _named(value: Any) -> str:
    """Classes and functions as people name them."""
    if isinstance(value, tuple):
        return ", ".join(map(_named, value)) or "none"
    return "none" if value is None else str(getattr(value, "__name__", value))
