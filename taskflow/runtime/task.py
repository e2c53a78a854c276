"""A registered function: its name, its codec, and the policies that are in force for one attempt."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from taskflow.core import specs
from taskflow.core.job import MAX_GATES, MAX_LANE_BYTES
from taskflow.errors import ConfigError, PayloadError
from taskflow.runtime.codec import Codec
from taskflow.runtime.importing import Where, where_is
from taskflow.runtime.importing import check as check_where
from taskflow.settings.tuning import TaskPolicy, resolve

if TYPE_CHECKING:
    from collections.abc import Iterable

    from taskflow.settings import Settings

Named = specs.CircuitBreaker | specs.Bulkhead | specs.RateLimit


@dataclass(slots=True)
class TaskDef:
    """One task, as code declares it. `declared` holds only what the decorator says explicitly."""

    name: str
    fn: Callable[..., Any]
    declared: Mapping[str, Any]
    lane: Callable[..., str] | None = None
    isolation: str | None = None  # "thread" (also where it is None) or "process"; of plain functions only
    where: Where | None = field(init=False, default=None)  # of a function that runs in a child process
    codec: Codec = field(init=False)
    is_async: bool = field(init=False)
    start: Callable[..., Any] = field(init=False)  # the function, which takes all of its arguments by name
    _policies: dict[Any, TaskPolicy] = field(default_factory=dict)
    _settings: Settings | None = None  # those that `_policies` were made of

    def __post_init__(self) -> None:
        if not self.name or "__" in self.name or not self.name.isprintable():
            raise ConfigError(f"a task's name must be printable and without '__', got {self.name!r}")
        if inspect.isgeneratorfunction(self.fn) or inspect.isasyncgenfunction(self.fn):
            raise ConfigError(f"task {self.name!r}: {self.fn!r} is a generator; a task returns one result")
        if isinstance(retry := self.declared.get("retry"), specs.Retry) and retry.on_result is not None:
            raise ConfigError(
                f"task {self.name!r}: Retry(on_result=) is for calls; a handler that wants another attempt raises "
                "RetryLater, or any error that on= covers"
            )
        self.codec = Codec(self.name, self.fn)
        self.is_async = is_async(self.fn)
        self.start = self.codec.by_name(self.fn)
        self._check_isolation()
        self._check_lane()

    def _check_isolation(self) -> None:
        if self.isolation not in (None, "thread", "process"):
            raise ConfigError(f"task {self.name!r}: isolation= takes 'thread' or 'process', got {self.isolation!r}")
        if self.isolation is not None and self.is_async:
            raise ConfigError(
                f"task {self.name!r}: isolation={self.isolation!r} is for plain functions; an async one runs in the "
                f"event loop and is cancelled there: leave isolation= out, or write `def` instead of `async def`"
            )
        if self.isolation == "process":
            self.where = where_is(self.fn, self.name)

    def _check_lane(self) -> None:
        """`lane=` takes what the handler takes: said here, and not by a TypeError at the first job."""
        if self.lane is None:
            return
        names = [one.name for one in inspect.signature(self.fn).parameters.values() if one.kind is not one.VAR_KEYWORD]
        try:
            inspect.signature(self.lane).bind(**dict.fromkeys(names))
        except TypeError as error:
            raise ConfigError(
                f"task {self.name!r}: lane= is called with all arguments of the task by name "
                f"({', '.join(names) or 'none'}), and this function does not take them: {error}"
            ) from None
        except ValueError:  # a builtin that does not tell what it takes
            return

    def check_found(self) -> None:
        """Raise `ConfigError` if a child process would not find the function. Once all modules are imported."""
        if self.where is not None:
            check_where(self.fn, self.where, self.name)

    def policy(self, settings: Settings, options: Mapping[str, Any] | None = None) -> TaskPolicy:
        """What is in force, leaf by leaf; remembered for each set of options."""
        if not options and settings is self._settings and (plain := self._policies.get(None)) is not None:
            return plain
        if options and "retry" in options and not isinstance(options["retry"], specs.Retry):
            options = {**options, "retry": _carried_retry(self.name, options["retry"])}
        if settings is not self._settings:  # what other settings said is no longer in force
            self._settings, self._policies = settings, {}
        key = tuple(sorted(_by_what_is_said(options))) if options else None
        try:
            found = self._policies.get(key)
        except TypeError:  # an option that is not hashable is not worth remembering
            return resolve(settings, self.name, self.declared, options or {})
        if found is None:
            found = resolve(settings, self.name, self.declared, options or {})
            if len(self._policies) < 1_000:  # bounded: options come from submitters
                self._policies[key] = found
        return found

    def lane_of(self, args: Mapping[str, Any]) -> str:
        """The lane key of a job with these arguments, which fit. `lane=` sees them as the handler will.

        A `PayloadError` of `lane=` is a refusal in its own words.
        """
        if self.lane is None:
            return ""
        try:
            lane = self.lane(**{**self.codec.defaults, **self.codec.converted(args)})
        except PayloadError:
            raise  # the user's own words, for these arguments
        except Exception as error:  # noqa: BLE001 - the user's code; what it says, and where, may show an argument
            raise PayloadError(f"{self.name}(): lane= raised {type(error).__name__} for these arguments") from None
        if not is_lane(lane):
            got = f"one of {len(lane)} characters" if isinstance(lane, str) else type(lane).__name__
            raise PayloadError(
                f"{self.name}(): lane= must return a string of at most {MAX_LANE_BYTES} bytes of valid UTF-8 without "
                f"NUL, got {got}"
            )
        return lane


def is_lane(value: object) -> bool:
    """Whether `value` can be a lane key: a string without lone surrogates and NUL, of at most `MAX_LANE_BYTES`."""
    try:
        return isinstance(value, str) and len(value.encode()) <= MAX_LANE_BYTES and "\0" not in value
    except UnicodeEncodeError:
        return False


def _carried_retry(task: str, numbers: object) -> specs.Retry:
    """The `options(retry=)` that travelled in a payload: its numbers by name, only those that were said."""
    if not isinstance(numbers, dict) or not numbers.keys() <= set(specs.RETRY_NUMBERS):
        raise ConfigError(
            f"{task}(): the retry= that came with the job must be an object with some of "
            f"{', '.join(specs.RETRY_NUMBERS)}"
        )
    return specs.Retry(**numbers)


def _by_what_is_said(options: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """To look up by: equal specs of which other fields were said do not mean the same."""
    for name, value in options.items():
        yield name, (value, value.said) if isinstance(value, specs.Retry) else value


def is_async(fn: Callable[..., Any]) -> bool:
    """Whether calling `fn` gives an awaitable: a coroutine function, a partial of one, or an object with one."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(getattr(fn, "__call__", None))  # noqa: B004


def gate_names(policies: Iterable[Named | None], lane: str) -> tuple[str, ...]:
    """The gates of a job: one for each policy name, keyed by the lane where the policy says so; sorted."""
    names = {f"{policy.name}/{lane}" if policy.per_lane and lane else policy.name for policy in policies if policy}
    if len(names) > MAX_GATES:
        raise ConfigError(f"a job has at most {MAX_GATES} gates, got {sorted(names)}")
    return tuple(sorted(names))
