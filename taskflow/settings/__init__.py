"""All settings, from the environment or from code, checked and frozen. The only reader of the environment.

`TASKFLOW_` + section + `__` + key: `TASKFLOW_WORKER__CONCURRENCY` is `settings.worker.concurrency`. Constructing
`Settings(...)` reads nothing; `Settings.from_env()` does, through pydantic-settings.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, Field, PrivateAttr, ValidationError, field_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict

from taskflow.errors import ConfigError
from taskflow.settings.reference import (
    PREFIX,
    InOurWords,
    Leaf,
    LeafPath,
    Source,
    describe,
    env_name,
    leaf_fields,
    problem_line,
    problems,
    task_key,
    text_of,
)
from taskflow.settings.sections import (
    DEFAULT_HTTP_PORT,
    LOADING,
    BreakerSettings,
    BrokerSettings,
    BulkheadOverride,
    Environment,
    HttpSettings,
    LogSettings,
    QueueSettings,
    RateOverride,
    RetentionSettings,
    RetrySettings,
    Section,
    TaskOverride,
    TaskSettings,
    WorkerSettings,
    any_case,
    leaf,
)
from taskflow.settings.spelling import Misspelt, Spelling

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

__all__ = [
    "DEFAULT_HTTP_PORT",
    "LEAVES",
    "TASK_LEAVES",
    "BreakerSettings",
    "BrokerSettings",
    "BulkheadOverride",
    "HttpSettings",
    "LogSettings",
    "QueueSettings",
    "RateOverride",
    "RetentionSettings",
    "RetrySettings",
    "Settings",
    "TaskOverride",
    "TaskSettings",
    "WorkerSettings",
    "reference",
    "unknown_variables",
]


# Elsewhere an empty variable counts as not set. Of these, one that nobody filled in would put the jobs in another place
# than was meant, in a new file or among another deployment's, without a word.
_WHERE_JOBS_LIVE: tuple[LeafPath, ...] = (("broker", "url"), ("broker", "namespace"))


class Settings(Section):
    """Everything that can be configured; frozen. Construct it in tests, or call `from_env`."""

    app: str | None = leaf(None, "The application, as module:attribute, for commands that name none.", shown="none")
    environment: Annotated[Environment, any_case(Environment)] = leaf(
        "dev", "Sets the defaults of the log: dev for people (console), prod for machines (json)."
    )
    strict_env: bool = leaf(False, "A misspelt TASKFLOW_ variable is an error, not a warning.")
    env_file: str | None = leaf(
        None, "File of NAME=value lines; the environment wins over it. None is read unless named.", shown="none"
    )
    broker: BrokerSettings = BrokerSettings()
    worker: WorkerSettings = WorkerSettings()
    queue: QueueSettings = QueueSettings()
    task: TaskSettings = TaskSettings()
    retry: RetrySettings = RetrySettings()
    breaker: BreakerSettings = BreakerSettings()
    retention: RetentionSettings = RetentionSettings()
    log: LogSettings = LogSettings()
    http: HttpSettings = HttpSettings()
    tasks: Mapping[str, TaskOverride] = Field(default_factory=dict)

    _origin: Mapping[LeafPath, Source] = PrivateAttr(default_factory=dict)
    _warnings: tuple[str, ...] = PrivateAttr(default=())

    @field_validator("tasks", mode="before")
    @classmethod
    def _key_tasks(cls, value: object) -> object:
        return {task_key(str(name)): said for name, said in value.items()} if isinstance(value, Mapping) else value

    def _finish(self) -> None:
        if self.breaker.max_open_for_s < self.breaker.open_for_s:
            raise InOurWords(
                f"TASKFLOW_BREAKER__MAX_OPEN_FOR_S: must be at least TASKFLOW_BREAKER__OPEN_FOR_S "
                f"({text_of(self.breaker.open_for_s)}), got {text_of(self.breaker.max_open_for_s)}"
            )
        if self.broker.scheme == "memory" and self.worker.processes > 1:
            raise InOurWords(
                "TASKFLOW_WORKER__PROCESSES: must be 1 with memory://, whose jobs live in one process, "
                f"got {self.worker.processes}"
            )
        said = self.log.model_fields_set
        by_environment = self.log.format if "format" in said else ("json" if self.environment == "prod" else "console")
        # Not `LogSettings(...)`: what the environment implies was not said, and `leaves` must know the difference.
        self.__dict__["log"] = LogSettings.model_construct(
            _fields_set=set(said), level=self.log.level, format=by_environment
        )

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> Settings:
        """Settings from `env`, or from the process's environment, and from the file that `TASKFLOW_ENV_FILE` names.

        Raises one `ConfigError` with a line for each problem. Misspelt names are in `warnings`, for the caller to
        print; under `TASKFLOW_STRICT_ENV=1` they are problems too.
        """
        env = os.environ if env is None else env
        said, unknown = _spelling.read(env)
        given_file: dict[str, str] = {}
        in_file: dict[str, str] = {}
        wrong: list[str] = []
        if (file := said.get(env_name(("env_file",)).lower())) is not None:
            given_file = _read_env_file(file, wrong)
            in_file, unknown_in_file = _spelling.read(given_file)
            unknown += [word for word in unknown_in_file if word not in unknown]
        nested = _Given({**in_file, **said})()
        texts = dict(_texts(nested))
        here = dict(_texts(_Given(said)())) if in_file else texts

        wrong += _left_empty({name.upper() for name in (*env, *given_file)}, texts)

        settings = None
        try:
            settings = cls.model_validate(nested, context=LOADING)
        except ValidationError as error:
            wrong += [problem_line(env_name(path), text) for path, text in problems(cls, error, texts)]
        if texts.get(("strict_env",), "").lower() in ("1", "true", "t", "yes", "y", "on"):
            wrong += [str(word) for word in unknown]
        if wrong or settings is None:
            raise ConfigError("\n".join(wrong))
        origin: dict[LeafPath, Source] = {path: "environment" if path in here else "env file" for path in texts}
        return settings._remember(origin, tuple(str(word) for word in unknown))  # noqa: SLF001

    @property
    def warnings(self) -> tuple[str, ...]:
        """One line for each misspelt variable that was met while loading."""
        return self._warnings

    def replace(self, **changes: Any) -> Settings:
        """A checked copy with some leaves from code: `settings.replace(worker={"concurrency": 5}, app="mail")`."""
        said = self.model_dump(exclude_unset=True)
        changed: set[LeafPath] = set()
        for name, change in changes.items():
            if isinstance(change, Mapping) and isinstance(getattr(self, name, None), BaseModel):
                said[name] = {**said.get(name, {}), **change}
                changed |= {(name, key) for key in change}
            else:
                said[name] = change
                changed |= {path for path in self._origin if path[0] == name}
        kept = {path: source for path, source in self._origin.items() if path not in changed}
        return Settings(**said)._remember(kept, self._warnings)  # noqa: SLF001

    def _remember(self, origin: Mapping[LeafPath, Source], warnings: tuple[str, ...]) -> Settings:
        """Where values came from: not a setting, so not a field."""
        self._origin, self._warnings = dict(origin), warnings
        return self

    def source(self, path: LeafPath) -> Source:
        """Where the leaf at `path`, such as `("worker", "concurrency")`, has its value from."""
        if (origin := self._origin.get(path)) is not None:
            return origin
        part: Any = self
        for name in path[:-1]:
            part = part.get(name) if isinstance(part, Mapping) else getattr(part, name)
            if part is None:  # a task without overrides
                return "default"
        return "code" if path[-1] in part.model_fields_set else "default"

    def leaves(self) -> list[Leaf]:
        """Every setting with its value and source, secrets masked; of `tasks` only what is set."""
        found = [self._leaf_at(path, field) for path, field in LEAVES.items()]
        for name in sorted(self.tasks):
            rows = [self._leaf_at(("tasks", name, *path), field) for path, field in TASK_LEAVES.items()]
            found += [row for row in rows if row.source != "default"]
        return found

    def _leaf_at(self, path: LeafPath, field: FieldInfo) -> Leaf:
        value: Any = self
        for name in path:
            value = value[name] if isinstance(value, Mapping) else getattr(value, name)
        text = self.broker.shown_url if path == ("broker", "url") else text_of(value)
        return Leaf(env_name(path), text, self.source(path), *describe(path, field))


class _Variables(Settings, BaseSettings):
    """The fields of `Settings`, and how variables spell them, for pydantic-settings. There is never an instance."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        enable_decoding=False,  # no JSON in variables: lists are written as mail:5,default
        defer_build=True,
    )


class _Given(EnvSettingsSource):
    """pydantic-settings reading these variables, named in lower case, where it would read the process's."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        super().__init__(_Variables)
        self.env_vars = variables

    def __call__(self) -> dict[str, Any]:
        """The texts, nested as the fields are."""
        nested = super().__call__()
        if "tasks" in nested:
            nested["tasks"] = {task_key(name): said for name, said in nested["tasks"].items()}
        return nested


def _read_env_file(name: str, wrong: list[str]) -> dict[str, str]:
    # Ours, because pydantic-settings passes over a missing file and a broken line, and expands ${…} in passwords.
    from dotenv.parser import parse_stream  # noqa: PLC0415  only who names a file pays for it

    try:
        with Path(name).open(encoding="utf-8") as stream:
            lines = list(parse_stream(stream))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        wrong.append(f"TASKFLOW_ENV_FILE: cannot read {name!r}: {reason}")
        return {}
    wrong += [f"{name}, line {line.original.line}: must be NAME=value" for line in lines if line.error]
    return {line.key: line.value for line in lines if line.key and line.value is not None}


def _left_empty(given: Collection[str], texts: Mapping[LeafPath, str]) -> Iterator[str]:
    """One line for each variable that may not be empty, and is: it is given, and no text is left of it."""
    for path in _WHERE_JOBS_LIVE:
        name = env_name(path)
        if name in given and path not in texts:
            yield f"{name}: is empty; set it, or unset it for {describe(path, LEAVES[path])[0]}"


def _texts(nested: Mapping[str, Any], path: LeafPath = ()) -> Iterator[tuple[LeafPath, str]]:
    """Every text with its path."""
    for name, value in nested.items():
        if isinstance(value, Mapping):
            yield from _texts(value, (*path, name))
        else:
            yield (*path, name), value


def unknown_variables(env: Mapping[str, str] | None = None) -> list[Misspelt]:
    """The `TASKFLOW_*` variables of `env`, or of the process's environment, that are no settings."""
    return _spelling.read(os.environ if env is None else env)[1]


def reference() -> list[Leaf]:
    """Every variable there is, with its default: the README's table. `<TASK>` stands for a task's name."""
    rows = Settings().leaves()
    for path, field in TASK_LEAVES.items():
        _, unit, meaning = describe(path, field)
        shared = path if len(path) > 1 else ("task", *path)
        if shared in LEAVES:
            meaning = f"{env_name(shared)} for one task."
        rows.append(
            Leaf(f"{PREFIX}TASKS__<TASK>__{'__'.join(path).upper()}", "not set", "default", "not set", unit, meaning)
        )
    return rows


LEAVES = dict(leaf_fields(Settings))
TASK_LEAVES = dict(leaf_fields(TaskOverride))
_spelling = Spelling(LEAVES, TASK_LEAVES)
