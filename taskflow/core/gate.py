"""A gate: one dependency's admission record, kept in the broker, one for the whole deployment.

`admit` answers the two questions of a claim: how many jobs may be claimed now, and when to look again. `change`
computes the next record; the broker compares generations and stores. All instants are the broker's.

A keyed gate (`http/api.example.org`) takes what it does not say itself from its family (`http`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple, assert_never

from taskflow.core import bucket
from taskflow.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Rate:
    """One start every `interval_s` seconds, `burst` at once. Raises `ConfigError` for what cannot be counted."""

    interval_s: float
    burst: int = 1

    def __post_init__(self) -> None:
        if not bucket.is_countable(self.interval_s, self.burst):
            raise ConfigError(
                f"Rate: interval_s must be at least {bucket.LEAST_INTERVAL_S:g} seconds, burst at least 1, and both "
                f"multiplied at most {bucket.MOST_DEBT_S:g} seconds; got {self.interval_s!r} and {self.burst!r}"
            )


@dataclass(frozen=True, slots=True)
class Gate:
    """`limit` and `rate` are what code and environment say; `…_override` is an operator's word, which wins.

    `generation` grows with every hold, release and ramp: a change that was computed from an older record is refused.
    `ramp` is the limit during recovery after a hold; None when there is none.
    """

    name: str
    generation: int = 0
    held_until: float = 0.0
    reason: str = ""
    ramp: int | None = None
    limit: int | None = None
    limit_override: int | None = None
    rate: Rate | None = None
    rate_override: Rate | None = None
    live: int = 0
    tat: float = 0.0


class Admission(NamedTuple):
    """At most `room` now (None: no bound).

    At no room, `look_again_at` is the instant at which there may be some, or None when only a settle or a change of
    the gate can make it.
    """

    room: int | None
    look_again_at: float | None = None


@dataclass(frozen=True, slots=True)
class Hold:
    """Close for `for_s` seconds. It never shortens a hold: for that, release first."""

    for_s: float
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Release:
    """Open now."""


@dataclass(frozen=True, slots=True)
class Ramp:
    """At most `limit` live claims during recovery; None ends it."""

    limit: int | None


@dataclass(frozen=True, slots=True)
class Declare:
    """What code and environment say. The last worker to start wins."""

    limit: int | None = None
    rate: Rate | None = None


@dataclass(frozen=True, slots=True)
class OverrideLimit:
    """An operator's limit; None takes it back."""

    limit: int | None


@dataclass(frozen=True, slots=True)
class OverrideRate:
    """An operator's rate; None takes it back."""

    rate: Rate | None


GateChange = Hold | Release | Ramp | Declare | OverrideLimit | OverrideRate


def family(name: str) -> str:
    """The gate whose limit and rate a keyed gate inherits: `http` for `http/api.example.org`; itself if unkeyed."""
    return name.partition("/")[0]


def limit_of(gate: Gate, parent: Gate | None = None) -> int | None:
    """Live claims that the gate admits in all: the nearest word wins, an operator's first; a ramp lowers it."""
    words = [gate.limit_override, gate.limit]
    if parent is not None:
        words = [gate.limit_override, parent.limit_override, gate.limit, parent.limit]
    limit = next((word for word in words if word is not None), None)
    if gate.ramp is None:
        return limit
    return gate.ramp if limit is None else min(limit, gate.ramp)


def rate_of(gate: Gate, parent: Gate | None = None) -> Rate | None:
    """The rate in force: the nearest word wins, an operator's first."""
    words = [gate.rate_override, gate.rate]
    if parent is not None:
        words = [gate.rate_override, parent.rate_override, gate.rate, parent.rate]
    return next((word for word in words if word is not None), None)


def admit(gate: Gate, parent: Gate | None = None, *, now: float) -> Admission:
    """How many jobs may be claimed through `gate` at `now`, and when to look again if that is none."""
    held_until = gate.held_until if parent is None else max(gate.held_until, parent.held_until)
    if held_until > now:
        return Admission(0, held_until)
    limit = limit_of(gate, parent)
    room = None if limit is None else max(0, limit - gate.live)
    if room == 0:
        return Admission(0, None)
    rate = rate_of(gate, parent)
    if rate is None:
        return Admission(room)
    tokens = bucket.available(gate.tat, now=now, interval_s=rate.interval_s, burst=rate.burst)
    if tokens == 0:
        return Admission(0, bucket.next_at(gate.tat, now=now, interval_s=rate.interval_s, burst=rate.burst))
    return Admission(tokens if room is None else min(room, tokens))


def take(gate: Gate, count: int, parent: Gate | None = None, *, now: float) -> Gate:
    """The record after `count` jobs were claimed through it."""
    rate = rate_of(gate, parent)
    tat = gate.tat
    if rate is not None:
        tat = bucket.take(tat, count, now=now, interval_s=rate.interval_s, burst=rate.burst)
    return replace(gate, live=gate.live + count, tat=tat)


def give_back(gate: Gate, ended: int, unused: int, parent: Gate | None = None) -> Gate:
    """The record after `ended` claims ended, of which `unused` never started and give their rate tokens back."""
    rate = rate_of(gate, parent)
    tat = gate.tat
    if rate is not None:
        tat = bucket.give_back(tat, unused, interval_s=rate.interval_s)
    return replace(gate, live=max(0, gate.live - ended), tat=tat)


def change(gate: Gate, asked: GateChange, *, now: float) -> Gate:
    """The record after `asked`."""
    match asked:
        case Hold(for_s, reason):
            until = now + max(0.0, for_s)
            if until <= gate.held_until:  # a sibling was told to wait longer
                return replace(gate, generation=gate.generation + 1)
            return replace(gate, held_until=until, reason=reason, generation=gate.generation + 1)
        case Release():
            return replace(gate, held_until=0.0, reason="", generation=gate.generation + 1)
        case Ramp(limit):
            return replace(gate, ramp=limit, generation=gate.generation + 1)
        case Declare(limit, rate):
            return replace(gate, limit=limit, rate=rate)
        case OverrideLimit(limit):
            return replace(gate, limit_override=limit)
        case OverrideRate(rate):
            return replace(gate, rate_override=rate)
        case _:
            assert_never(asked)
