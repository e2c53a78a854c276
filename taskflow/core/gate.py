"""A gate: one dependency's admission record, kept in the broker, one for the whole deployment.

`admit` answers the two questions of a claim: how many jobs may be claimed now, and when to look again. `change`
computes the next record; the broker compares generations and stores. All instants are the broker's.

A keyed gate (`http/api.example.org`) takes what it does not say itself from its family (`http`).

A circuit breaker's state is the gate's, so that the whole deployment has one. Workers count outcomes, each its own,
and tell the gate only what changes it:

*   A worker's breaker trips (`Trip`): the gate is held for `open_for` seconds, doubling with every recovery that
    fails, up to `max_open_for`. When the hold is over, at most `ramp` = 1 claim is live: the probe.
*   Each claim of a recovery ends in a `Word`. `close_after` good ones widen the ramp to 2; from then on as many as it
    is wide double it, until it no longer matters: `WIDEST`, or the gate's own limit. That ends the recovery.
*   As many bad words in a row as the ramp is wide, at most the breaker's `consecutive`, trip the gate again. So one
    failed probe does, and one failure among four does not.
*   `era` is the fence: it grows when what was known of the dependency is void (a trip, a person's release), and a word
    from another era changes nothing. A claim carries the era that it belongs to (`recoveries_of`).
*   A probe that says nothing (cancelled, bad data, its worker died) gives its live claim back: the next one probes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, assert_never

from taskflow.core import bucket
from taskflow.core.backoff import exponential
from taskflow.core.breaker import BreakerState
from taskflow.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from taskflow.core.specs import CircuitBreaker

TRIPPED = "circuit_open"  # the reason of a breaker's hold; `circuit_open: CAUSE` where the cause is known
FORGET_S = 86_400.0  # a recovery that nobody goes on with for so long was of something that nobody needs
WIDEST = 64  # a ramp this wide has shown what it was to show: six rounds without a collapse


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

    `generation` grows with every change of the hold and of the recovery: a change that was computed from an older
    record is refused. `ramp` is the limit of live claims while the dependency recovers, None when it does not; then
    `good`, `bad` and `failed` are 0. `word` is the last word that counted: told twice, it counts once.
    """

    name: str
    generation: int = 0
    held_until: float = 0.0
    reason: str = ""
    era: int = 0  # 0: no breaker ever tripped it
    ramp: int | None = None
    good: int = 0  # words since the ramp was widened
    bad: int = 0  # words in a row
    failed: int = 0  # trips since the last recovery that succeeded
    word: int = 0
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


class Recovery(NamedTuple):
    """What a claim knows of one of its gates that a breaker has tripped before: what the gate was at the claim.

    `ramp` is None once the recovery is over; at 1 the claim is the probe.
    """

    gate: str
    era: int
    ramp: int | None
    failed: int


@dataclass(frozen=True, slots=True)
class Hold:
    """Close for `for_s` seconds. It never shortens a hold: for that, release first."""

    for_s: float
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Release:
    """Open now, and fully: a recovery that was under way is over."""


@dataclass(frozen=True, slots=True)
class Trip:
    """A breaker tripped over claims of `era`. Counts only while no recovery is under way: the fleet trips once.

    `word` is any number that is not 0 and that no other word has, so that whoever sends it can see that it counted.
    `cause` is what the last call met, for whoever reads why the gate is held: the type of an error, never its text.
    """

    era: int
    word: int
    spec: CircuitBreaker
    cause: str = ""


@dataclass(frozen=True, slots=True)
class Word:
    """How a call of the recovery `era` went. `word` and `cause` as in `Trip`.

    Counts only while that recovery is under way.
    """

    era: int
    word: int
    is_good: bool
    spec: CircuitBreaker
    cause: str = ""


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


GateChange = Hold | Release | Trip | Word | Declare | OverrideLimit | OverrideRate


def from_row(row: Sequence[Any]) -> Gate:
    """The record of a row, as `as_row` makes it."""
    name, generation, held_until, reason, era, ramp, good, bad, failed, word, limit, override, *rates, live, tat = row
    interval_s, burst, interval2_s, burst2 = rates
    return Gate(
        name,
        generation,
        held_until,
        reason,
        era,
        ramp,
        good,
        bad,
        failed,
        word,
        limit,
        override,
        None if interval_s is None else Rate(interval_s, burst),
        None if interval2_s is None else Rate(interval2_s, burst2),
        live,
        tat,
    )


def as_row(gate: Gate) -> tuple[Any, ...]:
    """The record as a row of a broker's table: a rate is two columns, interval and burst, None where there is none."""
    return (
        gate.name,
        gate.generation,
        gate.held_until,
        gate.reason,
        gate.era,
        gate.ramp,
        gate.good,
        gate.bad,
        gate.failed,
        gate.word,
        gate.limit,
        gate.limit_override,
        *((None, None) if gate.rate is None else (gate.rate.interval_s, gate.rate.burst)),
        *((None, None) if gate.rate_override is None else (gate.rate_override.interval_s, gate.rate_override.burst)),
        gate.live,
        gate.tat,
    )


def family(name: str) -> str:
    """The gate whose limit and rate a keyed gate inherits: `http` for `http/api.example.org`; itself if unkeyed."""
    return name.partition("/")[0]


def of_family(names: Iterable[str], policy: str) -> str | None:
    """Which of a job's gates its policy of this name made, if any."""
    return next((name for name in names if family(name) == policy), None)


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
            freed = replace(gate, held_until=0.0, reason="", generation=gate.generation + 1)
            return _ended(replace(freed, era=gate.era + 1)) if gate.era else freed
        case Trip(era, word, spec, cause):
            return _trip(gate, word, spec, cause, now) if era == gate.era and gate.ramp is None else gate
        case Word(era, word) as said:
            if era != gate.era or gate.ramp is None or word == gate.word:
                return gate
            return _judge(gate, gate.ramp, said, now=now)
        case Declare(limit, rate):
            return replace(gate, limit=limit, rate=rate)
        case OverrideLimit(limit):
            return replace(gate, limit_override=limit)
        case OverrideRate(rate):
            return replace(gate, rate_override=rate)
        case _:
            assert_never(asked)


def open_for_s(failed: int, spec: CircuitBreaker) -> float:
    """How long trip number `failed` of a recovery (the first is 1) closes the gate.

    Without jitter: one deployment sends one probe, there is no crowd to spread.
    """
    return exponential(failed, base_s=spec.open_for, factor=2, cap_s=spec.max_open_for)


def recoveries_of(gates: Iterable[Gate]) -> tuple[Recovery, ...]:
    """What a claim through these gates carries of them: nothing of those that were never tripped."""
    return tuple(Recovery(gate.name, gate.era, gate.ramp, gate.failed) for gate in gates if gate.era)


def is_idle(gate: Gate, *, now: float) -> bool:
    """Whether nothing would change if the gate were forgotten, as long as no job waits for it."""
    says = (gate.limit, gate.limit_override, gate.rate, gate.rate_override)
    over_at = gate.held_until if gate.ramp is None else gate.held_until + FORGET_S
    return gate.live == 0 and over_at <= now and gate.tat <= now and all(word is None for word in says)


def state_of(gate: Gate, *, now: float) -> BreakerState:
    """The gate as a circuit breaker. A hold that no breaker made leaves it closed: the current flows when it ends."""
    if gate.ramp is None:
        return BreakerState.CLOSED
    return BreakerState.OPEN if gate.held_until > now else BreakerState.HALF_OPEN


def cause_of(reason: str) -> str | None:
    """What made a breaker hold the gate, `""` if nobody knows; None of a hold that is no breaker's."""
    by, _, cause = reason.partition(": ")
    return cause if by == TRIPPED else None


def _trip(gate: Gate, word: int, spec: CircuitBreaker, cause: str, now: float) -> Gate:
    reason = f"{TRIPPED}: {cause}" if cause else TRIPPED
    held = change(gate, Hold(open_for_s(gate.failed + 1, spec), reason), now=now)
    return replace(held, era=gate.era + 1, ramp=1, good=0, bad=0, failed=gate.failed + 1, word=word)


def _judge(gate: Gate, ramp: int, said: Word, *, now: float) -> Gate:
    """The record after one more call of the recovery."""
    word, spec = said.word, said.spec
    if not said.is_good:
        if gate.bad + 1 >= min(ramp, spec.consecutive):
            return _trip(gate, word, spec, said.cause, now)
        return replace(gate, bad=gate.bad + 1, word=word, generation=gate.generation + 1)
    after = replace(gate, good=gate.good + 1, bad=0, word=word, generation=gate.generation + 1)
    if after.good < (spec.close_after if ramp == 1 else ramp):
        return after
    limit = limit_of(replace(gate, ramp=None))
    if 2 * ramp >= (WIDEST if limit is None else min(WIDEST, limit)):
        return _ended(after)
    return replace(after, ramp=2 * ramp, good=0)


def _ended(gate: Gate) -> Gate:
    """The record once its recovery is over."""
    return replace(gate, ramp=None, good=0, bad=0, failed=0)
