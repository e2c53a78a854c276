"""Policies for any awaitable: `Pipeline(Timeout(30), Retry(), CircuitBreaker("github"))`, left = outermost."""

from __future__ import annotations

import functools
import inspect
import math
import warnings
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, ParamSpec, TypeVar, overload

from taskflow.core.specs import Bulkhead, Chaos, CircuitBreaker, RateLimit, Retry, Timeout
from taskflow.errors import ConfigError
from taskflow.policies import orders
from taskflow.policies.body import Body, plain
from taskflow.policies.bulkhead import Slots
from taskflow.policies.chaos import ChaosGuard
from taskflow.policies.circuit import Circuit, CircuitGuard
from taskflow.policies.orders import Once, Policy, PolicyOrderWarning
from taskflow.policies.rate import Turns
from taskflow.policies.registry import Registry, Tokens, default_registry
from taskflow.policies.retry import Retrying
from taskflow.policies.runner import Guarded, Guarding
from taskflow.policies.timeout import TimeoutGuard

if TYPE_CHECKING:
    from taskflow.policies.guard import Guard

P = ParamSpec("P")
T = TypeVar("T")


class RunsOnce:
    """The kind of a pipeline whose policies run the body at most once: `async with pipeline.guard():` works."""


class MayRepeat:
    """The kind of a pipeline with a `Retry`: it has to call the body itself."""


Kind = TypeVar("Kind", RunsOnce, MayRepeat, covariant=True)  # noqa: PLC0105 - reads as what it is


class _Bound(NamedTuple):
    """A pipeline in its registry: how calls run, and what they run through."""

    registry: Registry
    evictions: int
    run: Body
    guards: tuple[Guard, ...]  # all of them, if there is no strategy
    circuits: tuple[Circuit, ...]
    bulkheads: tuple[Slots, ...]
    rates: tuple[Turns, ...]


class Pipeline(Generic[Kind]):
    """Policies around any awaitable. The first is the outermost: it sees what all others make of the call.

        github = Pipeline(
            Timeout(30), Retry(), CircuitBreaker("github"), Bulkhead("github", 20), Timeout(5)
        )
        data = await github.call(fetch, url)      # or @github above `async def fetch`

    A `Timeout` outside the `Retry` limits all attempts together, one inside each of them. Policies of the same name in
    the same `registry` share their state; `with_key` gives each key a state of its own. `name` is how errors call it
    (else the first name among its policies). What comes out is the call's own last error, with notes; `Rejected` if it
    was not made at all, `DeadlineExceeded` if its time was over.
    Warns (`PolicyOrderWarning`) of orders that hardly anybody means; raises `ConfigError` if a name means two things.
    """

    __slots__ = ("_bound", "_key", "_policies", "_registry", "name")

    @overload
    def __init__(
        self: Pipeline[RunsOnce], *policies: Once, name: str = "", registry: Registry | None = None
    ) -> None: ...
    @overload
    def __init__(
        self: Pipeline[MayRepeat], *policies: Policy, name: str = "", registry: Registry | None = None
    ) -> None: ...
    def __init__(self, *policies: Policy, name: str = "", registry: Registry | None = None) -> None:
        orders.check(policies)
        for doubt in orders.doubts(policies):
            warnings.warn(doubt, PolicyOrderWarning, stacklevel=2)
        self._policies = policies
        self._registry = registry
        self._key = ""
        self.name = name or next((p.name for p in policies if isinstance(p, CircuitBreaker | Bulkhead | RateLimit)), "")
        self._bound = self._bind(default_registry() if registry is None else registry)

    def call(self, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T]:
        """Await `fn(*args, **kwargs)` under the policies. `fn`, not what it returns: that can be awaited only once."""
        if not callable(fn):
            raise TypeError(f"call() takes the function and its arguments, as in call(fetch, url); got {fn!r}")
        return self._now_bound().run(fn, args, kwargs)

    def __call__(self, fn: Callable[P, Awaitable[T]], /) -> Callable[P, Coroutine[Any, Any, T]]:
        """`fn` under the policies, with the same signature."""
        if inspect.isasyncgenfunction(fn) or inspect.isgeneratorfunction(fn):
            raise TypeError(f"{fn!r} is a generator: policies would end before its items are made; wrap what it awaits")
        if not callable(fn):
            raise TypeError(f"a pipeline decorates an async function, got {fn!r}")

        @functools.wraps(fn)
        async def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
            return await self._now_bound().run(fn, args, kwargs)  # type: ignore[no-any-return]

        return wrapped

    def guard(self: Pipeline[RunsOnce], key: str = "") -> AbstractAsyncContextManager[None]:
        """`async with pipeline.guard():` for a block that runs at most once.

        Raises `TypeError` for a pipeline with a `Retry`: a block cannot be run again.
        """
        if any(isinstance(policy, Retry) for policy in self._policies):
            raise TypeError(
                f"{self!r} has a Retry, and a block cannot be run again: use `await pipeline.call(fn, ...)` or "
                "decorate the function; guard() is for pipelines without one"
            )
        pipeline = self.with_key(key) if key else self
        bound = pipeline._now_bound()  # noqa: SLF001 - our own kind
        return Guarding(bound.guards, bound.registry.clock)

    def with_key(self, key: str) -> Pipeline[Kind]:
        """The same policies with a state of their own for `key`: a host, a tenant. Bounded: see `Registry`."""
        if not isinstance(key, str):
            raise TypeError(f"with_key() takes a string, got {key!r}")
        twin: Pipeline[Kind] = object.__new__(type(self))
        twin._policies, twin._registry, twin._key, twin.name = self._policies, self._registry, key, self.name
        twin._bound = twin._bind(self._bound.registry)
        return twin

    @property
    def breaker(self) -> Circuit:
        """Its circuit: `isolate()`, `close()`, `disable()`, `metrics_only()`, `snapshot()`."""
        return self._the_only(self._now_bound().circuits, "CircuitBreaker")

    @property
    def bulkhead(self) -> Slots:
        """Its bulkhead: `in_use`, `waiting`, `limit`, `set_limit()`."""
        return self._the_only(self._now_bound().bulkheads, "Bulkhead")

    @property
    def rate_limit(self) -> Turns:
        """Its rate limit: `pause()`."""
        return self._the_only(self._now_bound().rates, "RateLimit")

    def _the_only(self, states: tuple[T, ...], kind: str) -> T:
        if len(states) != 1:
            raise ConfigError(f"{self!r} has {len(states) or 'no'} {kind}")
        return states[0]

    def __repr__(self) -> str:
        of = f" of {self.name!r}" if self.name else ""
        return f"<Pipeline{of}: {' > '.join(type(policy).__name__ for policy in self._policies) or 'empty'}>"

    # ---- binding ----

    def _now_bound(self) -> _Bound:
        """How calls run now: bound anew if the registry is another, or has forgotten keyed states."""
        bound = self._bound
        registry = default_registry() if self._registry is None else self._registry
        if bound.registry is not registry or (self._key and bound.evictions != registry.evictions):
            bound = self._bound = self._bind(registry)
        return bound

    def _bind(self, registry: Registry) -> _Bound:
        clock, key = registry.clock, self._key
        name = self.name or "pipeline"
        own_s = min((policy.seconds for policy in self._policies if isinstance(policy, Timeout)), default=math.inf)
        is_failure = next((p.on_result for p in self._policies if isinstance(p, Retry) and p.on_result), None)
        circuits: list[Circuit] = []
        bulkheads: list[Slots] = []
        rates: list[Turns] = []
        guards: list[Guard] = []
        body: Body = plain
        for policy in reversed(self._policies):
            match policy:
                case Timeout():
                    guards.append(TimeoutGuard(policy.seconds, name, clock))
                case CircuitBreaker():
                    circuits.append(registry.find(policy, key, Circuit))
                    guards.append(CircuitGuard(circuits[-1], clock, own_s=own_s, is_failure=is_failure))
                case Bulkhead():
                    bulkheads.append(registry.find(policy, key, Slots))
                    guards.append(bulkheads[-1])
                case RateLimit():
                    rates.append(registry.find(policy, key, Turns))
                    guards.append(rates[-1])
                case Chaos():
                    guards.append(ChaosGuard(policy, clock, registry.rng))
                case Retry():
                    if guards:
                        body = Guarded(tuple(reversed(guards)), body, clock).run
                        guards = []
                    budget = registry.find(policy.budget, key, Tokens) if policy.budget is not None else None
                    of = f"{self.name}/{key}" if self.name else f"{id(self._policies)}/{key}"
                    body = Retrying(policy, body, of=of, name=name, clock=clock, rng=registry.rng, budget=budget).run
        outer = tuple(reversed(guards))
        run = Guarded(outer, body, clock).run if outer else body
        return _Bound(registry, registry.evictions, run, outer, tuple(circuits), tuple(bulkheads), tuple(rates))
