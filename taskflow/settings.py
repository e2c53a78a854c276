"""All settings, from the environment or from code, checked and frozen. The only reader of the environment.

`TASKFLOW_` + section + `__` + key: `TASKFLOW_WORKER__CONCURRENCY` is `settings.worker.concurrency`. Constructing
`Settings(...)` reads nothing; `Settings.from_env()` does. `resolve` says which policies one task has.

The sections come first, with the reason of every default; then the loader; then `resolve`.
"""

from __future__ import annotations

import dataclasses
import difflib
import ipaddress
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Self, TypeVar, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from taskflow.core import specs
from taskflow.errors import ConfigError

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

PREFIX = "TASKFLOW_"
DEFAULT_HTTP_PORT = 9464  # the port that OpenTelemetry's Prometheus exporter uses; asked for by the worker command
SCHEMES = ("memory", "sqlite", "redis", "rediss", "postgresql")

Source = Literal["default", "environment", "env file", "code"]
LeafPath = tuple[str, ...]

_DURATION = re.compile(r"([0-9][0-9._]*(?:[eE][+-]?[0-9]+)?|\.[0-9]+)\s*(ms|s|m|h|d)?")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_LOADING = {"loading": True}  # validation context: let pydantic collect every problem, `from_env` words them


class _InOurWords(ValueError):
    """A problem that a validator words itself; about any other, `_wants` says what is allowed."""


def _parse_seconds(value: object) -> object:
    """Seconds from a number, or from text such as 90, 90s, 5m, 1h, 250ms."""
    if isinstance(value, str):
        found = _DURATION.fullmatch(value.strip())
        if found is None:
            raise ValueError
        value = float(found[1]) * _UNITS[found[2] or "s"]
    if isinstance(value, bool) or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError
    return value


def _parse_seconds_or_none(value: object) -> object:
    return None if isinstance(value, str) and value.strip().lower() in ("none", "off") else _parse_seconds(value)


def _any_case(words: Any) -> BeforeValidator:
    """The words of a Literal, however they are written."""
    known = {word.lower(): word for word in get_args(words)}
    return BeforeValidator(lambda value: known.get(value.strip().lower(), value) if isinstance(value, str) else value)


def _check_name(value: str) -> str:
    if not value or not value.isprintable() or len(value) > 100:
        raise ValueError
    return value


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`. An empty host is every address."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


Seconds = Annotated[float, BeforeValidator(_parse_seconds)]
OptionalSeconds = Annotated[float | None, BeforeValidator(_parse_seconds_or_none)]
Weighted = tuple[str, int]
Environment = Literal["dev", "prod"]
Synchronous = Literal["FULL", "NORMAL"]
OnFull = Literal["wait", "reject"]
LogLevel = Literal["TRACE", "DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
LogFormat = Literal["json", "console"]


def _leaf(default: Any, meaning: str, *, unit: str = "", shown: str = "", wants: str = "", **bounds: Any) -> Any:
    """One setting. `shown` replaces the default in tables, `wants` the sentence about what is allowed."""
    return Field(
        default, description=meaning, json_schema_extra={"unit": unit, "shown": shown, "wants": wants}, **bounds
    )


class _Section(BaseModel):
    """Frozen, closed, and never telling its input in an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, data: Any, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo) -> Self:
        try:
            made = handler(data)
            cls._finish(made)
        except ValidationError as error:
            if info.context is _LOADING:
                raise
            problems = _problems(cls, error)
        except _InOurWords as error:
            if info.context is _LOADING:
                raise
            problems = [((), str(error))]
        else:
            return made
        # Outside of `except`: the ValidationError holds the input, which may be a secret.
        raise ConfigError("\n".join(_line(".".join((cls.__name__, *path)), text) for path, text in problems))

    def _finish(self) -> None:
        """What one field's validator cannot see: defaults that follow from other fields, contradictions."""


class BrokerSettings(_Section):
    """Where jobs live."""

    url: SecretStr = _leaf(
        SecretStr("sqlite:///taskflow.db"),
        "Where jobs live: memory://, sqlite:///relative.db, sqlite:////absolute.db, redis://, postgresql://. "
        "One file needs no server and survives kill -9.",
        shown="sqlite:///taskflow.db",
    )
    namespace: str = _leaf(
        "taskflow",
        "Keeps deployments that share one server apart; all Redis keys carry it as their hash tag.",
        pattern=r"^[A-Za-z0-9_.-]{1,64}$",
        wants="1 to 64 letters, digits, '_', '.' or '-'",
    )
    synchronous: Annotated[Synchronous, _any_case(Synchronous)] = _leaf(
        "FULL", "SQLite only. FULL survives a power cut; NORMAL is faster and may lose the last commits in one."
    )
    busy_timeout_s: Seconds = _leaf(
        10.0,
        "SQLite only. How long one statement waits for another writer before the broker counts as unavailable; "
        "a healthy writer holds the lock for milliseconds.",
        gt=0,
        le=300,
    )

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: SecretStr) -> SecretStr:
        scheme, separator, rest = url.get_secret_value().partition("://")
        if not separator or scheme not in SCHEMES:
            raise _InOurWords(f"must start with one of {', '.join(f'{known}://' for known in SCHEMES)}")
        if scheme == "sqlite" and (not rest.startswith("/") or rest.endswith("/") or "?" in rest):
            raise _InOurWords(
                "must name a file, without ?options: sqlite:///relative.db or sqlite:////absolute/path.db"
            )
        return url

    @property
    def scheme(self) -> str:
        """What the URL starts with: one of `SCHEMES`."""
        return self.url.get_secret_value().partition("://")[0]

    @property
    def shown_url(self) -> str:
        """The URL as logs, banners and `config show` may print it: without the password."""
        return mask_url(self.url.get_secret_value())


class WorkerSettings(_Section):
    """How one worker works."""

    concurrency: int = _leaf(
        100, "Jobs that one worker process runs at the same time; they mostly wait for others.", ge=1, le=100_000
    )
    queues: tuple[Weighted, ...] = _leaf(
        (),
        "Queues to work, as mail:5,default; the number from 1 to 100 is a weight, 1 unless said.",
        shown="all queues of the registered tasks",
        wants="queue names with optional weights from 1 to 100, each once, as in mail:5,default",
    )
    processes: int = _leaf(1, "Worker processes; more than 1 for jobs that keep a CPU busy.", ge=1, le=256)
    threads: int = _leaf(
        32,
        "Slots for plain `def` tasks, which run in threads; Python's own default pool has 32 at most.",
        shown="the smaller of concurrency and 32",
        ge=1,
        le=1_000,
    )
    lease_s: Seconds = _leaf(
        10.0,
        "A claim is lost when its worker has not beaten for this long; it beats every third of it, "
        "so two beats may fail.",
        ge=0.1,
        le=3_600,
    )
    drain_s: Seconds = _leaf(
        25.0,
        "Time for running jobs to end after SIGTERM, before they are handed back; Kubernetes kills after 30 s.",
        ge=0,
        le=86_400,
    )
    max_lost: int = _leaf(
        3, "Losses as a suspect (claimed alone) after which a job is buried as poison.", ge=1, le=1_000
    )
    prefetch: int | None = _leaf(
        None,
        "Jobs without gates that are claimed ahead of a free slot; given back after 1 s unstarted.",
        shown="concurrency",
        ge=0,
        le=100_000,
    )

    @field_validator("queues", mode="before")
    @classmethod
    def _parse_queues(cls, value: object) -> object:
        parts = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
        if not isinstance(parts, list | tuple):
            raise ValueError  # noqa: TRY004  pydantic wants a ValueError
        weighted = tuple(_parse_queue(part) for part in parts if part)
        if len({name for name, _ in weighted}) < len(weighted):
            raise ValueError
        return weighted

    def _finish(self) -> None:
        if "threads" not in self.model_fields_set:
            self.__dict__["threads"] = min(self.concurrency, 32)
        if self.prefetch is not None and self.prefetch > self.concurrency:
            raise _InOurWords(
                f"TASKFLOW_WORKER__PREFETCH: must be at most the concurrency ({self.concurrency}), got {self.prefetch}"
            )


def _parse_queue(part: object) -> Weighted:
    """A name and its weight, from `mail:5`, `default` or `("mail", 5)`."""
    if isinstance(part, str):
        name, _, number = part.rpartition(":") if ":" in part else (part, "", "1")
    elif isinstance(part, tuple | list) and len(part) == 2:
        name, number = part
    else:
        raise ValueError
    weight = int(number)  # the ValueError of a bad number is what we want
    if not 1 <= weight <= 100:
        raise ValueError
    return _check_name(str(name).strip()), weight


class QueueSettings(_Section):
    """The bound of every queue."""

    max_size: int = _leaf(
        100_000,
        "Bound of each queue (ready and scheduled jobs); one gate may fill half of it. Some hours of backlog, "
        "and still a small file.",
        ge=1,
        le=100_000_000,
    )
    on_full: Annotated[OnFull, _any_case(OnFull)] = _leaf(
        "wait", "What submit does when the queue is full: wait up to wait_s, or refuse at once with QueueFull."
    )
    wait_s: Seconds = _leaf(
        30.0, "How long submit waits for room before QueueFull; a usual HTTP client gives up then too.", ge=0, le=3_600
    )


class TaskSettings(_Section):
    """Defaults for every task."""

    timeout_s: Seconds = _leaf(
        300.0, "Limit of one attempt. Longer than any sane request, short enough to free the slot.", gt=0, le=2_592_000
    )
    deadline_s: OptionalSeconds = _leaf(
        None, "Limit of a job from when it was first due, over all attempts; then it expires.", shown="none", gt=0
    )
    max_wait_s: Seconds = _leaf(
        604_800.0, "Limit of waiting that is nobody's failure (held gates, snoozes): a week, then it expires.", gt=0
    )
    priority: int = _leaf(4, "Higher first, strictly; 4 leaves room on both sides.", ge=0, le=9)
    queue: Annotated[str, BeforeValidator(lambda v: _check_name(v) if isinstance(v, str) else v)] = _leaf(
        "default", "Queue of tasks that name none.", wants="a printable name of at most 100 characters"
    )


class RetrySettings(_Section):
    """Defaults for the retries of every task."""

    attempts: int = _leaf(3, "Runs of a job in all, the first one included.", ge=1, le=10_000)
    base_s: Seconds = _leaf(0.5, "Bound of the wait after the first failed attempt.", ge=0, le=86_400)
    factor: float = _leaf(2.0, "Growth of that bound with every further attempt.", ge=1, le=100, allow_inf_nan=False)
    max_delay_s: Seconds = _leaf(60.0, "Cap of that bound: an attempt a minute is kind to any dependency.", ge=0)
    jitter: Annotated[specs.Jitter, _any_case(specs.Jitter)] = _leaf(
        "full", "full: anything from 0 to the bound, so that a crowd does not come back together."
    )


class BreakerSettings(_Section):
    """Defaults for the circuit breakers that tasks declare; they make none."""

    failure_rate: float = _leaf(0.5, "Opens when this share of calls failed.", gt=0, le=1)
    min_calls: int = _leaf(10, "Calls in the window before the rate means anything.", ge=1, le=1_000_000)
    window_s: Seconds = _leaf(60.0, "Calls are counted over this window.", gt=0, le=86_400)
    consecutive: int = _leaf(5, "Opens after this many failures in a row; quick where there are few calls.", ge=1)
    slow_call_s: OptionalSeconds = _leaf(
        None, "A call that takes longer is slow; none: no call is.", shown="none", gt=0
    )
    slow_rate: float = _leaf(0.8, "Opens when this share of calls was slow.", gt=0, le=1)
    open_for_s: Seconds = _leaf(10.0, "Time until the first probe.", gt=0)
    max_open_for_s: Seconds = _leaf(
        300.0, "The time until the next probe grows up to this; what a recovered dependency costs at most.", gt=0
    )
    close_after: int = _leaf(2, "Good probes in a row that close it; one may be luck.", ge=1, le=1_000)


class BulkheadOverride(_Section):
    """The limit of one task's bulkhead."""

    limit: int | None = _leaf(
        None, "Jobs of the bulkhead that run at once; makes one named after the task if it has none.", ge=1
    )


class RateOverride(_Section):
    """The rate of one task's rate limit."""

    limit: str | None = _leaf(
        None,
        "Starts per s, m, h or d, as 100/m; makes a rate limit named after the task if it has none.",
        wants="a count per s, m, h or d, as in 100/m",
    )
    burst: int | None = _leaf(None, "Starts at once, before they are spaced evenly.", ge=1)

    @field_validator("limit")
    @classmethod
    def _check_rate(cls, text: str | None) -> str | None:
        try:
            return text if text is None or specs.parse_rate(text) else None
        except ConfigError:
            raise ValueError from None


class TaskOverride(TaskSettings):
    """What the environment says about one task. Only what was set counts (`model_fields_set`), not the defaults."""

    retry: RetrySettings = RetrySettings()
    breaker: BreakerSettings = BreakerSettings()
    bulkhead: BulkheadOverride = BulkheadOverride()
    rate: RateOverride = RateOverride()


class RetentionSettings(_Section):
    """How long what is over is kept."""

    result_s: Seconds = _leaf(3_600.0, "A result is kept this long; whoever awaits it comes soon.", ge=0)
    result_max_bytes: int = _leaf(
        1_048_576, "A larger result is an error of the job: a queue is no blob store.", unit="bytes", ge=0, le=2**30
    )
    finished_s: Seconds = _leaf(86_400.0, "Finished jobs are kept this long: a day to look into them.", ge=0)
    dead_s: Seconds = _leaf(2_592_000.0, "Dead letters are kept this long: a month, holidays included.", ge=0)


class LogSettings(_Section):
    """What the command line logs. Embedded, taskflow is silent until asked."""

    level: Annotated[LogLevel, _any_case(LogLevel)] = _leaf(
        "INFO", "Least level that is logged; success is DEBUG, a retry INFO, a failure WARNING."
    )
    format: Annotated[LogFormat, _any_case(LogFormat)] = _leaf(
        "console",
        "json: one flat object a line, for machines; console: for people.",
        shown="console in dev, json in prod",
    )


class HttpSettings(_Section):
    """Metrics, health and the API of a worker."""

    host: str = _leaf("127.0.0.1", "Address to listen on; one that others reach needs a token.")
    port: int | None = _leaf(
        None,
        "Port; 0 takes any free one. Embedded and in `run` there is no server unless this is set.",
        shown=f"{DEFAULT_HTTP_PORT} for `taskflow worker`, else off",
        ge=0,
        le=65_535,
    )
    token: SecretStr | None = _leaf(
        None, "Bearer token of the API; required when the host is not a loopback address.", shown="none"
    )

    def _finish(self) -> None:
        if not is_loopback(self.host) and not (self.token and self.token.get_secret_value()):
            raise _InOurWords(
                f"TASKFLOW_HTTP__TOKEN: must be set, because TASKFLOW_HTTP__HOST {self.host!r} can be reached from "
                "other machines (or set the host to 127.0.0.1)"
            )


class Settings(_Section):
    """Everything that can be configured; frozen. Construct it in tests, or call `from_env`."""

    app: str | None = _leaf(None, "The application, as module:attribute, for commands that name none.", shown="none")
    environment: Annotated[Environment, _any_case(Environment)] = _leaf(
        "dev", "Sets the defaults of the log: dev for people (console), prod for machines (json)."
    )
    strict_env: bool = _leaf(False, "A misspelt TASKFLOW_ variable is an error, not a warning.")
    env_file: str | None = _leaf(
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
            raise _InOurWords(
                f"TASKFLOW_BREAKER__MAX_OPEN_FOR_S: must be at least TASKFLOW_BREAKER__OPEN_FOR_S "
                f"({_text(self.breaker.open_for_s)}), got {_text(self.breaker.max_open_for_s)}"
            )
        if self.broker.scheme == "memory" and self.worker.processes > 1:
            raise _InOurWords(
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
        said, unknown = _scan(os.environ if env is None else env)
        problems: list[str] = []
        if (file := said.get(("env_file",))) is not None:
            from_file, unknown_in_file = _scan(_read_env_file(file, problems))
            unknown = [*unknown, *(word for word in unknown_in_file if word not in unknown)]
        else:
            from_file = {}
        values = {**from_file, **said}
        origin: dict[LeafPath, Source] = {path: "environment" if path in said else "env file" for path in values}

        settings = None
        try:
            settings = cls.model_validate(_nest(values), context=_LOADING)
        except ValidationError as error:
            problems += [_line(env_name(path), text) for path, text in _problems(cls, error, values)]
        if values.get(("strict_env",), "").lower() in ("1", "true", "t", "yes", "y", "on"):
            problems += [str(word) for word in unknown]
        if problems or settings is None:
            raise ConfigError("\n".join(problems))
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
        found = [self._leaf_at(path, field) for path, field in _leaf_fields(Settings)]
        for name in sorted(self.tasks):
            rows = [self._leaf_at(("tasks", name, *path), field) for path, field in _leaf_fields(TaskOverride)]
            found += [leaf for leaf in rows if leaf.source != "default"]
        return found

    def _leaf_at(self, path: LeafPath, field: FieldInfo) -> Leaf:
        value: Any = self
        for name in path:
            value = value[name] if isinstance(value, Mapping) else getattr(value, name)
        text = self.broker.shown_url if path == ("broker", "url") else _text(value)
        return Leaf(env_name(path), text, self.source(path), *_describe(path, field))


# ------------------------------------------------------------------------------------------------- tables


class Leaf(NamedTuple):
    """One setting, as tables print it. `name` is the environment variable; `value` is masked text."""

    name: str
    value: str
    source: Source
    default: str
    unit: str
    description: str


def reference() -> list[Leaf]:
    """Every variable there is, with its default: the README's table. `<TASK>` stands for a task's name."""
    rows = Settings().leaves()
    for path, field in _leaf_fields(TaskOverride):
        _, unit, meaning = _describe(path, field)
        shared = path if len(path) > 1 else ("task", *path)
        if shared in _LEAVES:
            meaning = f"{env_name(shared)} for one task."
        rows.append(
            Leaf(f"{PREFIX}TASKS__<TASK>__{'__'.join(path).upper()}", "not set", "default", "not set", unit, meaning)
        )
    return rows


def env_name(path: LeafPath) -> str:
    """The environment variable of the leaf at `path`."""
    return PREFIX + "__".join(path).upper()


def task_key(name: str) -> str:
    """A task's name as variables spell it: no case, and "_" for what a shell does not allow in a name."""
    return re.sub(r"[^a-z0-9_]", "_", name.lower())


# A user is shown only beside a password: alone, it may be one. No "@" further on, and a port in digits: otherwise
# where the password ends is a guess.
_HOST = r"(?:\[[0-9a-fA-F:.]+\]|[\w.-]*)(?::\d{1,5})?"
_PLAIN_URL = re.compile(
    r"[a-z]+://"
    r"(?:(?P<user>[\w.-]*)(?P<colon>:?)[^@/?#]*@)?"
    rf"(?P<where>{_HOST}(?:,{_HOST})*(?:/[\w.,/-]*)?)"
    r"(?P<query>\?[^@#]*)?"
)


def mask_url(url: str) -> str:
    """A broker's URL without its password; less is shown when it is not certain where that ends."""
    scheme, _, rest = url.partition("://")
    if scheme == "sqlite":
        return f"sqlite://{rest.partition('?')[0]}"
    found = _PLAIN_URL.fullmatch(url)
    if found is None:
        return f"{scheme}://***" if scheme in SCHEMES else "***"
    who = ""
    if "@" in url:
        who = f"{found['user']}:***@" if found["user"] and found["colon"] else "***@"
    return f"{scheme}://{who}{found['where']}{'?***' if found['query'] else ''}"


def _text(value: object) -> str:
    """A value as tables show it."""
    match value:
        case None:
            return "not set"
        case SecretStr():
            return "***"
        case bool():
            return str(value).lower()
        case float():
            return str(int(value)) if value.is_integer() else repr(value)
        case tuple():
            return ",".join(name if weight == 1 else f"{name}:{weight}" for name, weight in value) or "not set"
        case _:
            return str(value) if str(value).isprintable() else repr(value)


def _extra(field: FieldInfo, key: str) -> str:
    extra = field.json_schema_extra
    return str(extra.get(key, "")) if isinstance(extra, dict) else ""


def _describe(path: LeafPath, field: FieldInfo) -> tuple[str, str, str]:
    """Default, unit, and meaning with bounds."""
    unit = _extra(field, "unit") or ("seconds" if path[-1].endswith("_s") else "")
    bounds = _wants(path[-1], field)
    sentence = "" if bounds == "text" else f" Takes {bounds}."
    return _extra(field, "shown") or _text(field.default), unit, f"{field.description}{sentence}"


def _leaf_fields(model: type[BaseModel], path: LeafPath = ()) -> Iterator[tuple[LeafPath, FieldInfo]]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, _Section):
            yield from _leaf_fields(kind, (*path, name))
        elif name != "tasks":
            yield (*path, name), field


# ------------------------------------------------------------------------------------------------- problems


def _wants(name: str, field: FieldInfo) -> str:
    """What a field takes, in words: "a whole number of at least 1"."""
    if said := _extra(field, "wants"):
        return said
    kinds = get_args(field.annotation) or (field.annotation,)
    if isinstance(kinds[0], str):
        return f"{', '.join(kinds[:-1])} or {kinds[-1]}"
    if bool in kinds:
        return "true or false"
    if str in kinds or SecretStr in kinds:
        return "text"
    noun = "a duration" if name.endswith("_s") else "a whole number" if int in kinds else "a number"
    limits = {
        word: getattr(item, word)
        for item in field.metadata
        for word in ("ge", "gt", "le")
        if getattr(item, word, None) is not None
    }
    low = f"of at least {_text(limits['ge'])}" if "ge" in limits else f"above {_text(limits['gt'])}"
    if "le" not in limits:
        return f"{noun} {low}"
    if "ge" in limits:
        return f"{noun} from {_text(limits['ge'])} to {_text(limits['le'])}"
    return f"{noun} {low}, at most {_text(limits['le'])}"


def _problems(
    model: type[BaseModel], error: ValidationError, said: Mapping[LeafPath, str] = MappingProxyType({})
) -> list[tuple[LeafPath, str]]:
    """Where and what, for each problem; never the value of a secret. `said` is the text before it was parsed."""
    found = []
    for item in error.errors(include_url=False):
        path, field = _field_at(model, item["loc"])
        cause = item.get("ctx", {}).get("error")
        words = str(cause) if isinstance(cause, _InOurWords) else ""
        if item["type"] == "extra_forbidden":
            words = "there is no such setting"
        elif field is not None:
            value = said.get(path, item["input"])
            got = "(value hidden)" if _is_secret(field) or _looks_secret(value) else f"got {value!r}"
            form = " (seconds, or 250ms, 90s, 5m, 1h)" if path[-1].endswith("_s") else ""
            wants = words or f"must be {_wants(path[-1], field)}{form}"
            words = f"{wants} {got}" if got.startswith("(") else f"{wants}, {got}"
        found.append((path, words or "is not valid"))
    return found


def _line(name: str, text: str) -> str:
    """One problem. A text about several settings brings the name with it."""
    return text if text.startswith(PREFIX) else f"{name}: {text}"


def _field_at(model: type[BaseModel], location: tuple[int | str, ...]) -> tuple[LeafPath, FieldInfo | None]:
    """The path of an error, and the leaf it is about, if it is about one."""
    path: LeafPath = ()
    within: type[BaseModel] | None = model
    field: FieldInfo | None = None
    for step in location:
        if within is None:
            break
        path = (*path, str(step))
        if path == ("tasks",) and within is Settings:
            field = None
            continue
        if path[:1] == ("tasks",) and len(path) == 2 and within is Settings:
            within = TaskOverride
            continue
        field = within.model_fields.get(str(step))
        kind = field.annotation if field else None
        within = kind if isinstance(kind, type) and issubclass(kind, _Section) else None
        field = None if within else field
    return path, field


def _is_secret(field: FieldInfo) -> bool:
    return SecretStr in (get_args(field.annotation) or (field.annotation,))


def _looks_secret(value: object) -> bool:
    """A DSN that was put into the wrong variable, or too much to print."""
    return "@" in repr(value) or len(repr(value)) > 200


# ------------------------------------------------------------------------------------------------- loading


@dataclass(frozen=True, slots=True)
class Misspelt:
    """A variable that means nothing, and the nearest one that does."""

    name: str
    suggestion: str | None = None

    def __str__(self) -> str:
        """One line for people."""
        hint = f"did you mean {self.suggestion}?" if self.suggestion else "`taskflow config reference` lists them all"
        return f"{self.name}: there is no such setting; {hint}"


def unknown_variables(env: Mapping[str, str] | None = None) -> list[Misspelt]:
    """The `TASKFLOW_*` variables of `env`, or of the process's environment, that are no settings."""
    return _scan(os.environ if env is None else env)[1]


def unknown_tasks(settings: Settings, known: Iterable[str]) -> list[Misspelt]:
    """The per-task variables whose task is not among `known`."""
    names = {task_key(name) for name in known}
    found = []
    for task in sorted(settings.tasks.keys() - names):
        near = difflib.get_close_matches(task, sorted(names), n=1)
        for path, _ in _leaf_fields(TaskOverride):
            if settings.source(("tasks", task, *path)) != "default":
                right = env_name(("tasks", near[0], *path)) if near else None
                found.append(Misspelt(env_name(("tasks", task, *path)), right))
    return found


# What Kubernetes injects for a Service called taskflow or taskflow-…, and never is a setting.
_KUBERNETES = re.compile(r"_SERVICE_HOST$|_SERVICE_PORT(_|$)|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?$")


def _scan(env: Mapping[str, str]) -> tuple[dict[LeafPath, str], list[Misspelt]]:
    """The settings in `env` by path, and what is misspelt. An empty variable counts as not set."""
    said: dict[LeafPath, str] = {}
    unknown: list[Misspelt] = []
    for name, raw in sorted(env.items(), key=lambda item: (item[0].isupper(), item[0])):  # upper case wins
        value = raw.strip()  # files that become variables often end in a newline
        if not name.upper().startswith(PREFIX) or not value:
            continue
        path = _path_of(name)
        if path is not None:
            said[path] = value
        elif not _KUBERNETES.search(name) and not (name.endswith("_PORT") and "://" in value):
            unknown.append(Misspelt(name, _suggest(name)))
    return said, unknown


def _path_of(name: str) -> LeafPath | None:
    """The leaf that a variable sets, or None."""
    rest = name[len(PREFIX) :].lower()
    if not rest.startswith("tasks__"):
        path = tuple(rest.split("__"))
        return path if path in _LEAVES else None
    for tail in _TASK_LEAVES:
        task = rest.removeprefix("tasks__").removesuffix("__" + "__".join(tail))
        if task and len(task) < len(rest.removeprefix("tasks__")) and "__" not in task.strip("_"):
            return ("tasks", task_key(task), *tail)
    return None


def _suggest(name: str) -> str | None:
    """The nearest variable. One underscore for two is the mistake that people make most."""
    rest = name[len(PREFIX) :].lower()
    flat = rest.replace("__", "_")
    if flat.startswith("tasks_"):
        for tail in sorted(_TASK_LEAVES, key=len, reverse=True):
            task = flat.removeprefix("tasks_").removesuffix("_" + "_".join(tail))
            if task and len(task) < len(flat) - len("tasks_"):
                return env_name(("tasks", task, *tail))
        task, _, typed = rest.removeprefix("tasks").strip("_").partition("__")
        near = difflib.get_close_matches(typed, ["__".join(tail) for tail in _TASK_LEAVES], n=1)
        return env_name(("tasks", task, near[0])) if near and task else None
    names = {"__".join(path): path for path in _LEAVES}
    for known, path in names.items():
        if known.replace("__", "_") == flat:
            return env_name(path)
    near = difflib.get_close_matches(rest, names, n=1)
    return env_name(names[near[0]]) if near else None


def _read_env_file(name: str, problems: list[str]) -> dict[str, str]:
    from dotenv.parser import parse_stream  # noqa: PLC0415  only who names a file pays for it

    try:
        with Path(name).open(encoding="utf-8") as stream:
            lines = list(parse_stream(stream))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        problems.append(f"TASKFLOW_ENV_FILE: cannot read {name!r}: {reason}")
        return {}
    problems += [f"{name}, line {line.original.line}: must be NAME=value" for line in lines if line.error]
    return {line.key: line.value for line in lines if line.key and line.value is not None}


def _nest(values: Mapping[LeafPath, str]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for path, value in values.items():
        place = nested
        for step in path[:-1]:
            place = place.setdefault(step, {})
        place[path[-1]] = value
    return nested


_LEAVES = dict(_leaf_fields(Settings))
_TASK_LEAVES = dict(_leaf_fields(TaskOverride))


# ------------------------------------------------------------------------------------------------- one task


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
    rate) and only those that were said; None counts as not said. So does a field of a `Retry` or `CircuitBreaker`
    that equals the spec's own default, as a frozen value cannot tell the two apart.
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


_Spec = TypeVar("_Spec", specs.Retry, specs.CircuitBreaker, specs.Bulkhead, specs.RateLimit)


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
            return getattr(TaskSettings.model_validate({field: value}, context=_LOADING), field)
        except ValidationError as error:
            text = _problems(TaskSettings, error)[0][1]
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
        self.decided.append(PolicyLeaf(".".join(tail), _text(value), source, env_name(path)))
        return value

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
            said = [(source, getattr(spec, key)) for source, spec in given if key in _said(spec)]
            values[key] = self._pick(("retry", field), ("retry", field), said)
        for key in ("on", "never", "budget"):  # Python objects: the environment cannot say them
            for source, spec in given:
                if key in _said(spec):
                    values[key] = getattr(spec, key)
                    self.decided.append(PolicyLeaf(f"retry.{key}", _python_text(values[key]), source, ""))
                    break
        return self._build("retry", specs.Retry, values)

    def _breaker(self) -> specs.CircuitBreaker | None:
        given = self._in_code("breaker", specs.CircuitBreaker)
        if not given and not self.override.breaker.model_fields_set:
            return None
        values = self._identity("breaker", given)
        for field in BreakerSettings.model_fields:
            key = field.removesuffix("_s")
            said = [(source, getattr(spec, key)) for source, spec in given if key in _said(spec)]
            values[key] = self._pick(("breaker", field), ("breaker", field), said)
        return self._build("breaker", specs.CircuitBreaker, values)

    def _bulkhead(self) -> specs.Bulkhead | None:
        given = self._in_code("bulkhead", specs.Bulkhead)
        if not given and self.override.bulkhead.limit is None:
            return None
        values = self._identity("bulkhead", given)
        values["limit"] = self._pick(None, ("bulkhead", "limit"), [(source, spec.limit) for source, spec in given])
        if given:
            values["wait"] = given[0][1].wait
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
        return self._build("rate", specs.RateLimit, values)

    def _identity(self, tail: str, given: list[tuple[str, Any]]) -> dict[str, Any]:
        """A policy's name: its own, or the task's if only the environment asks for it."""
        name, per_lane = (given[0][1].name, given[0][1].per_lane) if given else (self.name, False)
        source = given[0][0] if given else "the task's name"
        self.decided.append(PolicyLeaf(f"{tail}.name", name, source, ""))
        return {"name": name, "per_lane": per_lane}


def _said(spec: specs.Retry | specs.CircuitBreaker) -> set[str]:
    """The fields that differ from the spec's own defaults."""
    return {field.name for field in dataclasses.fields(spec) if getattr(spec, field.name) != field.default}


def _python_text(value: object) -> str:
    return ", ".join(kind.__name__ for kind in value) if isinstance(value, tuple) else str(value)
