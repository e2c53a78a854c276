"""The sections of the settings: frozen, checked, and with the reason of every default."""

from __future__ import annotations

import ipaddress
import math
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from taskflow.core import specs
from taskflow.errors import ConfigError
from taskflow.nearest import nearest
from taskflow.settings.masking import mask_url
from taskflow.settings.reference import SCHEMES, InOurWords, problem_line, problems

DEFAULT_HTTP_PORT = 9464  # the port that OpenTelemetry's Prometheus exporter uses; asked for by the worker command
LOADING = {"loading": True}  # validation context: let pydantic collect every problem; whoever asked words them

_DURATION = re.compile(r"([0-9][0-9._]*(?:[eE][+-]?[0-9]+)?|\.[0-9]+)\s*(ms|s|m|h|d)?")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


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


def any_case(words: Any) -> BeforeValidator:
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


def leaf(default: Any, meaning: str, *, unit: str = "", shown: str = "", wants: str = "", **bounds: Any) -> Any:
    """One setting. `shown` replaces the default in tables, `wants` the sentence about what is allowed."""
    return Field(
        default, description=meaning, json_schema_extra={"unit": unit, "shown": shown, "wants": wants}, **bounds
    )


class Section(BaseModel):
    """Frozen, closed, and never telling its input in an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, data: Any, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo) -> Self:
        try:
            made = handler(data)
            cls._finish(made)
        except ValidationError as error:
            if info.context is LOADING:
                raise
            found = problems(cls, error)
        except InOurWords as error:
            if info.context is LOADING:
                raise
            found = [((), str(error))]
        else:
            return made
        # Outside of `except`: the ValidationError holds the input, which may be a secret.
        raise ConfigError("\n".join(problem_line(".".join((cls.__name__, *path)), text) for path, text in found))

    def _finish(self) -> None:
        """What one field's validator cannot see: defaults that follow from other fields, contradictions."""


# What other programs write where we say it otherwise.
_SCHEMES_OF_OTHERS = {
    "postgres": "postgresql",
    "psql": "postgresql",
    "pgsql": "postgresql",
    "valkey": "redis",
    "valkeys": "rediss",
}


def _scheme_meant(scheme: str) -> str | None:
    """The one of `SCHEMES` that `scheme` was most likely meant to be."""
    base, _, more = scheme.partition("+")  # as in "postgresql+asyncpg" of SQLAlchemy
    if nearest(more, ("sentinel", "sentinels")):
        return "rediss+sentinel" if base in {"rediss", "valkeys"} or more.endswith("s") else "redis+sentinel"
    found = base if base in _SCHEMES_OF_OTHERS else nearest(base, SCHEMES)
    return None if found is None else _SCHEMES_OF_OTHERS.get(found, found)


class BrokerSettings(Section):
    """Where jobs live."""

    url: SecretStr = leaf(
        SecretStr("sqlite:///taskflow.db"),
        "Where jobs live: memory://, sqlite:///relative.db, sqlite:////absolute.db, "
        "redis://[USER:PASSWORD@]HOST[:PORT][/DB], rediss:// (TLS), unix:///SOCKET[?db=N] (Redis too), "
        "redis+sentinel://HOST,HOST/SERVICE[?db=N], rediss+sentinel:// (TLS) or "
        "postgresql://[USER[:PASSWORD]@]HOST[:PORT]/DATABASE (or postgres://). "
        "One file needs no server and survives kill -9.",
        shown="sqlite:///taskflow.db",
    )
    namespace: str = leaf(
        "taskflow",
        "Keeps deployments that share one server apart: the hash tag of all keys in Redis, the schema in PostgreSQL; "
        "memory and SQLite have none, and no use for it.",
        pattern=r"^[A-Za-z0-9_.-]{1,64}$",
        wants="1 to 64 letters, digits, '_', '.' or '-'",
    )
    synchronous: Annotated[Synchronous, any_case(Synchronous)] = leaf(
        "FULL", "SQLite only. FULL survives a power cut; NORMAL is faster and may lose the last commits in one."
    )
    busy_timeout_s: Seconds = leaf(
        10.0,
        "SQLite only. How long one statement waits for another writer before the broker counts as unavailable; "
        "a healthy writer holds the lock for milliseconds.",
        gt=0,
        le=300,
    )

    if TYPE_CHECKING:  # pydantic takes a str too, which no type checker can know

        def __init__(
            self,
            *,
            url: str | SecretStr = ...,
            namespace: str = ...,
            synchronous: Synchronous = ...,
            busy_timeout_s: float = ...,
        ) -> None: ...

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: SecretStr) -> SecretStr:
        scheme, separator, rest = url.get_secret_value().partition("://")
        if not separator or scheme not in SCHEMES:
            meant = _scheme_meant(scheme.lower()) if separator else None
            raise InOurWords(
                "must be memory://, sqlite:///FILE, redis://HOST, rediss://HOST, unix:///SOCKET (Redis too), "
                "redis+sentinel://HOST,HOST/SERVICE, rediss+sentinel://HOST,HOST/SERVICE "
                f"or postgresql://HOST/DATABASE{f'; did you mean {meant}://?' if meant else ''}"
            )
        if scheme == "sqlite" and (not rest.startswith("/") or rest.endswith("/") or "?" in rest):
            raise InOurWords("must name a file, without ?options: sqlite:///relative.db or sqlite:////absolute/path.db")
        return url

    @property
    def scheme(self) -> str:
        """What the URL starts with: one of `SCHEMES`."""
        return self.url.get_secret_value().partition("://")[0]

    @property
    def shown_url(self) -> str:
        """The URL as logs, banners and `config show` may print it: without the password."""
        return mask_url(self.url.get_secret_value())

    @property
    def placed_url(self) -> str:
        """The same, a relative file in the current folder: what tells two processes on two files apart."""
        file = self.url.get_secret_value().partition(":///")[2]
        return f"sqlite:///{Path(file).absolute()}" if self.scheme == "sqlite" else self.shown_url


class WorkerSettings(Section):
    """How one worker works."""

    concurrency: int = leaf(
        100, "Jobs that one worker process runs at the same time; they mostly wait for others.", ge=1, le=100_000
    )
    queues: tuple[Weighted, ...] = leaf(
        (),
        "Queues to work, as mail:5,default; the number from 1 to 100 is a weight, 1 unless said.",
        shown="all queues of the registered tasks",
        wants="queue names with optional weights from 1 to 100, each once, as in mail:5,default",
    )
    processes: int = leaf(1, "Worker processes; more than 1 for jobs that keep a CPU busy.", ge=1, le=256)
    threads: int = leaf(
        32,
        "Slots for plain `def` tasks, which run in threads; Python's own default pool has 32 at most.",
        shown="the smaller of concurrency and 32",
        ge=1,
        le=1_000,
    )
    children: int = leaf(
        4,
        'Child processes of each worker process, for tasks with isolation="process"; more than CPUs only take turns.',
        shown="the smaller of concurrency and the CPUs",
        ge=1,
        le=1_000,
    )
    child_memory_bytes: int | None = leaf(
        None,
        "Address space of a child process (RLIMIT_AS); beyond it, allocating raises MemoryError. Python and taskflow "
        "alone take up to 200 MB of it.",
        unit="bytes",
        shown="no limit",
        ge=2**28,
        le=2**50,
    )
    child_cpu_s: OptionalSeconds = leaf(
        None,
        "CPU time of one job in a child process (RLIMIT_CPU), counted in whole seconds; then the child is killed.",
        shown="none",
        ge=1,
        le=2_592_000,
    )
    child_jobs: int | None = leaf(
        None,
        "Jobs after which a child process ends and another takes its place: against what leaks.",
        shown="no limit",
        ge=1,
    )
    lease_s: Seconds = leaf(
        10.0,
        "A claim is lost when its worker has not beaten for this long; it beats every third of it, "
        "so two beats may fail.",
        ge=0.1,
        le=3_600,
    )
    drain_s: Seconds = leaf(
        25.0,
        "Time for running jobs to end after SIGTERM, before they are handed back; the process is gone 4.5 s later at "
        "the latest; Kubernetes kills after 30 s.",
        ge=0,
        le=86_400,
    )
    max_lost: int = leaf(
        3, "Losses as a suspect (claimed alone) after which a job is buried as poison.", ge=1, le=1_000
    )
    prefetch: int | None = leaf(
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
        if "children" not in self.model_fields_set:
            self.__dict__["children"] = min(self.concurrency, _cpus())
        if self.prefetch is not None and self.prefetch > self.concurrency:
            raise InOurWords(
                f"TASKFLOW_WORKER__PREFETCH: must be at most the concurrency ({self.concurrency}), got {self.prefetch}"
            )


def _cpus() -> int:
    """Those that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


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


class QueueSettings(Section):
    """The bound of every queue."""

    max_size: int = leaf(
        100_000,
        "Bound of each queue (ready and scheduled jobs); one gate may fill half of it. Some hours of backlog, "
        "and still a small file.",
        ge=1,
        le=100_000_000,
    )
    on_full: Annotated[OnFull, any_case(OnFull)] = leaf(
        "wait", "What submit does when the queue is full: wait up to wait_s, or refuse at once with QueueFull."
    )
    wait_s: Seconds = leaf(
        30.0, "How long submit waits for room before QueueFull; a usual HTTP client gives up then too.", ge=0, le=3_600
    )
    arguments_max_bytes: int = leaf(
        1_048_576,
        "Larger arguments of a job are refused at submit: a queue is no blob store. Store them elsewhere, pass where.",
        unit="bytes",
        ge=1_024,
        le=2**28,
    )


class TaskSettings(Section):
    """Defaults for every task."""

    timeout_s: Seconds = leaf(
        300.0, "Limit of one attempt. Longer than any sane request, short enough to free the slot.", gt=0, le=2_592_000
    )
    deadline_s: OptionalSeconds = leaf(
        None, "Limit of a job from when it was first due, over all attempts; then it expires.", shown="none", gt=0
    )
    max_wait_s: Seconds = leaf(
        604_800.0, "Limit of waiting that is nobody's failure (held gates, snoozes): a week, then it expires.", gt=0
    )
    priority: int = leaf(4, "Higher first, strictly; 4 leaves room on both sides.", ge=0, le=9)
    queue: Annotated[str, BeforeValidator(lambda v: _check_name(v) if isinstance(v, str) else v)] = leaf(
        "default", "Queue of tasks that name none.", wants="a printable name of at most 100 characters"
    )


class RetrySettings(Section):
    """Defaults for the retries of every task."""

    attempts: int = leaf(3, "Runs of a job in all, the first one included.", ge=1, le=10_000)
    base_s: Seconds = leaf(0.5, "Bound of the wait after the first failed attempt.", ge=0, le=86_400)
    factor: float = leaf(2.0, "Growth of that bound with every further attempt.", ge=1, le=100, allow_inf_nan=False)
    max_delay_s: Seconds = leaf(60.0, "Cap of that bound: an attempt a minute is kind to any dependency.", ge=0)
    jitter: Annotated[specs.Jitter, any_case(specs.Jitter)] = leaf(
        "full", "full: anything from 0 to the bound, so that a crowd does not come back together."
    )


class BreakerSettings(Section):
    """Defaults for the circuit breakers that tasks declare; they make none."""

    failure_rate: float = leaf(0.5, "Opens when this share of calls failed.", gt=0, le=1)
    min_calls: int = leaf(10, "Calls in the window before the rate means anything.", ge=1, le=1_000_000)
    window_s: Seconds = leaf(60.0, "Calls are counted over this window.", gt=0, le=86_400)
    consecutive: int = leaf(5, "Opens after this many failures in a row; quick where there are few calls.", ge=1)
    slow_call_s: OptionalSeconds = leaf(None, "A call that takes longer is slow; none: no call is.", shown="none", gt=0)
    slow_rate: float = leaf(0.8, "Opens when this share of calls was slow.", gt=0, le=1)
    open_for_s: Seconds = leaf(10.0, "Time until the first probe.", gt=0)
    max_open_for_s: Seconds = leaf(
        300.0, "The time until the next probe grows up to this; what a recovered dependency costs at most.", gt=0
    )
    window_calls: int | None = leaf(
        None,
        "Counts the last so many calls instead of those in window_s; at least min_calls.",
        shown="none",
        ge=1,
        le=100_000,
    )
    close_after: int = leaf(2, "Good probes in a row that close it; one may be luck.", ge=1, le=1_000)


class BulkheadOverride(Section):
    """The limit of one task's bulkhead."""

    limit: int | None = leaf(
        None, "Jobs of the bulkhead that run at once; makes one named after the task if it has none.", ge=1
    )


class RateOverride(Section):
    """The rate of one task's rate limit."""

    limit: str | None = leaf(
        None,
        "Starts per s, m, h or d, as 100/m; makes a rate limit named after the task if it has none.",
        wants="a count per s, m, h or d, as in 100/m",
    )
    burst: int | None = leaf(None, "Starts at once, before they are spaced evenly.", ge=1)

    @field_validator("limit")
    @classmethod
    def _check_rate(cls, text: str | None) -> str | None:
        try:
            return text if text is None or specs.parse_rate(text) else None
        except ConfigError:
            raise ValueError from None


class BudgetOverride(Section):
    """The retry budget of one task."""

    ratio: float | None = leaf(
        None,
        "Retries may add this share of the first attempts' load; makes a budget named after the task if it has none.",
        ge=0,
        le=1_000,
    )
    cap: float | None = leaf(None, "Retries that are saved up at most.", ge=1, le=1_000_000)


class RetryOverride(RetrySettings):
    """The retries of one task."""

    budget: BudgetOverride = BudgetOverride()


class TaskOverride(TaskSettings):
    """What the environment says about one task. Only what was set counts (`model_fields_set`), not the defaults."""

    retry: RetryOverride = RetryOverride()
    breaker: BreakerSettings = BreakerSettings()
    bulkhead: BulkheadOverride = BulkheadOverride()
    rate: RateOverride = RateOverride()


class RetentionSettings(Section):
    """How long what is over is kept."""

    result_s: Seconds = leaf(3_600.0, "A result is kept this long; whoever awaits it comes soon.", ge=0)
    result_max_bytes: int = leaf(
        1_048_576, "A larger result is an error of the job: a queue is no blob store.", unit="bytes", ge=0, le=2**30
    )
    finished_s: Seconds = leaf(86_400.0, "Finished jobs are kept this long: a day to look into them.", ge=0)
    dead_s: Seconds = leaf(2_592_000.0, "Dead letters are kept this long: a month, holidays included.", ge=0)


class LogSettings(Section):
    """What the command line logs. Embedded, taskflow is silent until asked."""

    level: Annotated[LogLevel, any_case(LogLevel)] = leaf(
        "INFO", "Least level that is logged; success is DEBUG, a retry INFO, a failure WARNING."
    )
    format: Annotated[LogFormat, any_case(LogFormat)] = leaf(
        "console",
        "json: one flat object a line, for machines; console: for people.",
        shown="console in dev, json in prod",
    )


class HttpSettings(Section):
    """Metrics, health and the API of a worker."""

    host: str = leaf("127.0.0.1", "Address to listen on; one that others reach needs a token.")
    port: int | None = leaf(
        None,
        "Port; 0 takes any free one. Embedded and in `run` there is no server unless this is set.",
        shown=f"{DEFAULT_HTTP_PORT} for `taskflow worker`, else off",
        ge=0,
        le=65_535,
    )
    token: SecretStr | None = leaf(
        None, "Bearer token of the API; required when the host is not a loopback address.", shown="none"
    )

    if TYPE_CHECKING:  # as in BrokerSettings

        def __init__(self, *, host: str = ..., port: int | None = ..., token: str | SecretStr | None = ...) -> None: ...

    def _finish(self) -> None:
        if not is_loopback(self.host) and not (self.token and self.token.get_secret_value()):
            raise InOurWords(
                f"TASKFLOW_HTTP__TOKEN: must be set, because TASKFLOW_HTTP__HOST {self.host!r} can be reached from "
                "other machines (or set the host to 127.0.0.1)"
            )
