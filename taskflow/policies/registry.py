"""Where the state of named policies lives: by kind, name and key; bounded; with the clock and the randomness.

One registry belongs to one thread's event loop: decisions are not locked, since nothing comes between them there. The
default one is a thread's own.
"""

from __future__ import annotations

import random
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from taskflow.clock import LoopClock
from taskflow.core.budget import Budget
from taskflow.core.specs import Bulkhead, CircuitBreaker, RateLimit, RetryBudget
from taskflow.errors import ConfigError, Rejected
from taskflow.policies.bulkhead import Slots
from taskflow.policies.circuit import Circuit
from taskflow.policies.rate import Turns

if TYPE_CHECKING:
    from taskflow.clock import Clock

Named = CircuitBreaker | Bulkhead | RateLimit | RetryBudget

_SEARCHED = 100  # keyed states that are looked at for one to forget
_FULL_RETRY_S = 1.0


class Tokens:
    """The retry budget of one dependency, shared by all pipelines of its registry that name it."""

    __slots__ = ("_budget", "placed_at", "spec", "used_at")

    def __init__(self, spec: RetryBudget, clock: Clock) -> None:
        self.spec = spec
        self.placed_at = self.used_at = clock.now()
        self._budget = Budget(spec)

    @property
    def tokens(self) -> float:
        """Retries that may be sent now."""
        return self._budget.tokens

    def is_idle(self, now: float, idle_s: float) -> bool:
        """Whether nothing is lost by forgetting it: a new one would be full."""
        return self._budget.tokens >= self.spec.cap or now - self.used_at >= idle_s

    def deposit(self, now: float) -> None:
        """A first attempt is made."""
        self.used_at = now
        self._budget.deposit()

    def try_withdraw(self, now: float) -> bool:
        """Whether one retry may be sent now."""
        self.used_at = now
        return self._budget.try_withdraw()


class State(Protocol):
    """What a named policy remembers under one key."""

    placed_at: float  # when it came to its place in line, or was last moved to the end
    used_at: float

    @property
    def spec(self) -> Any: ...
    def is_idle(self, now: float, idle_s: float) -> bool:
        """Whether nothing is lost by forgetting it. Long unused is `idle_s`."""
        ...


_S = TypeVar("_S", Circuit, Slots, Turns, Tokens)


class Registry:
    """States of named policies, one for each key.

    Keys come from the outside world, so at most `max_keys` are kept: the least recently used goes first, and any that
    was not used for `idle_s` seconds; never one that is in use, open, or under a person's word. If all are, a new key
    is turned away. Names without a key come from the code, and stay.
    """

    def __init__(
        self,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        *,
        max_keys: int = 10_000,
        idle_s: float = 3600,
    ) -> None:
        if max_keys < 1:
            raise ConfigError(f"Registry: max_keys must be at least 1, got {max_keys!r}")
        self.clock: Clock = LoopClock() if clock is None else clock
        self.rng = rng or random.Random()  # noqa: S311 - for jitter, not for secrets
        self.evictions = 0
        self._max_keys = max_keys
        self._idle_s = idle_s
        self._named: dict[tuple[type, str], State] = {}
        self._keyed: OrderedDict[tuple[type, str, str], State] = OrderedDict()

    @property
    def keys(self) -> int:
        """How many states with a key there are."""
        return len(self._keyed)

    def find(self, spec: Named, key: str, kind: type[_S]) -> _S:
        """The state of `spec` under `key`. Raises `ConfigError` where its name means something else already."""
        named = self._named.get((kind, spec.name))
        if named is None:
            named = self._named[(kind, spec.name)] = kind(spec, self.clock)  # type: ignore[arg-type]
        elif named.spec != spec:
            raise ConfigError(
                f"{type(spec).__name__}: {spec.name!r} is {named.spec} already, and cannot be {spec} too: one "
                "dependency has one record; use one spec, or two names"
            )
        found = self._find_keyed(spec, key, kind) if key else named
        assert isinstance(found, kind)
        return found

    def _find_keyed(self, spec: Named, key: str, kind: type[_S]) -> State:
        place = (kind, spec.name, key)
        found = self._keyed.get(place)
        if found is None:
            self._make_room()
            found = self._keyed[place] = kind(spec, self.clock)  # type: ignore[arg-type]
        return found

    def _make_room(self) -> None:
        """Forget what is long unused, and one more if there is no room; of the oldest, within reason."""
        now = self.clock.now()
        for _ in range(min(_SEARCHED, len(self._keyed))):
            place, state = next(iter(self._keyed.items()))
            is_full = len(self._keyed) >= self._max_keys
            if not is_full and now - max(state.used_at, state.placed_at) < self._idle_s:
                return
            # A second chance for what was used since it came to its place: to note each use would cost every call.
            is_used = state.used_at > state.placed_at and now - state.used_at < self._idle_s
            if not is_used and state.is_idle(now, self._idle_s):
                del self._keyed[place]
                self.evictions += 1
                if is_full:
                    return
            else:
                state.placed_at = now
                self._keyed.move_to_end(place)
        if len(self._keyed) >= self._max_keys:
            raise Rejected(
                f"all {self._max_keys} keys of the policies' registry are in use: no room for another",
                retry_after_s=_FULL_RETRY_S,
            )


class _Default(threading.local):
    registry: Registry | None = None


_default = _Default()


def default_registry() -> Registry:
    """The registry of pipelines that name none: one for each thread."""
    found = _default.registry
    if found is None:
        found = _default.registry = Registry()
    return found


@contextmanager
def as_default(registry: Registry) -> Iterator[Registry]:
    """Make `registry` this thread's default for as long as the block lasts."""
    before, _default.registry = _default.registry, registry
    try:
        yield registry
    finally:
        _default.registry = before
