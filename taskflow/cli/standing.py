"""How a gate stands, in words and as JSON: held until when and by whom, recovering or admitting; its limit and rate."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from taskflow.cli.shown import count_of, instant, one_line
from taskflow.core.gate import Gate, Rate, cause_of, family, limit_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# A hold without an end, as a number that every engine and JSON can carry: thirty years.
ENDLESS_S = 1e9
_ENDLESS_FROM_S = ENDLESS_S / 2  # left of a hold that was without an end: far longer than any breaker's
_OPERATOR = "operator"
_THROTTLED = "throttled"  # the reason that they give when a job of theirs was told to come back later
_SAID = ("name", "tat", "limit", "limit_override", "rate", "rate_override")  # fields that JSON tells otherwise
_PERIODS = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}

T = TypeVar("T")


class InForce(NamedTuple, Generic[T]):
    """A limit or rate, and who said it: "operator", "code" (and environment), or nobody.

    `code` is what code and environment say, whoever wins. `gate` is where it is said: this gate, or its family.
    """

    value: T | None
    source: str
    code: T | None
    gate: str


def operators_reason(text: str | None) -> str:
    """What the broker keeps as the reason of an operator's hold."""
    return f"{_OPERATOR}: {text}" if text else _OPERATOR


def parent_of(gate: Gate, gates: Mapping[str, Gate]) -> Gate | None:
    """The family of a keyed gate, if anything is kept of it."""
    return None if family(gate.name) == gate.name else gates.get(family(gate.name))


def is_held(gate: Gate, now: float) -> bool:
    return gate.held_until > now


def is_endless(gate: Gate, now: float) -> bool:
    """Whether only a release ends its hold."""
    return gate.held_until - now > _ENDLESS_FROM_S


def is_operators(gate: Gate) -> bool:
    """Whether its hold is an operator's."""
    return gate.reason.partition(":")[0] == _OPERATOR


def held(gate: Gate, now: float) -> str:
    """By whom and until when a held gate is: "held by its breaker until …"."""
    until = "released" if is_endless(gate, now) else instant(gate.held_until, now)
    if is_operators(gate):
        text = gate.reason.partition(": ")[2]
        return f"held by an operator until {until}{f': {one_line(text)}' if text else ''}"
    if (cause := cause_of(gate.reason)) is not None:
        return f"held by its breaker until {until}{f', the last call met {one_line(cause)}' if cause else ''}"
    if gate.reason == _THROTTLED:
        return f"held until {until}, as the other side asked"
    return f"held until {until}{f', because of {one_line(gate.reason)}' if gate.reason else ''}"


def state(gate: Gate, parent: Gate | None, now: float) -> str:
    """One word for JSON: held, recovering or admitting. Not "open", which of a circuit breaker means the contrary."""
    if is_held(gate, now) or (parent is not None and is_held(parent, now)):
        return "held"
    return "admitting" if gate.ramp is None else "recovering"


def told(gate: Gate, parent: Gate | None, now: float) -> str:
    """The same in words."""
    if is_held(gate, now):
        return held(gate, now)
    if parent is not None and is_held(parent, now):
        return f"held with all of gate {one_line(parent.name)!r}: {held(parent, now)}"
    return "admitting" if gate.ramp is None else f"recovering, {gate.ramp} at once"


def limit_in_force(gate: Gate, parent: Gate | None) -> InForce[int]:
    """The limit of live claims, without what a recovery makes of it."""
    own = (gate.name, gate.limit_override, gate.limit)
    return _in_force(own, None if parent is None else (parent.name, parent.limit_override, parent.limit))


def rate_in_force(gate: Gate, parent: Gate | None) -> InForce[Rate]:
    """The rate of starts."""
    own = (gate.name, gate.rate_override, gate.rate)
    return _in_force(own, None if parent is None else (parent.name, parent.rate_override, parent.rate))


def _in_force(own: tuple[str, T | None, T | None], parents: tuple[str, T | None, T | None] | None) -> InForce[T]:
    """The nearest word wins, an operator's first: as `core.gate.limit_of` and `rate_of` have it."""
    said = [own] if parents is None else [own, parents]
    by_operator = [(name, override) for name, override, _ in said if override is not None]
    in_code = [(name, value) for name, _, value in said if value is not None]
    code = in_code[0][1] if in_code else None
    if by_operator:
        name, override = by_operator[0]
        return InForce(override, _OPERATOR, code, name)
    return InForce(code, "code", code, in_code[0][0]) if in_code else InForce(None, "", None, own[0])


def rate_text(rate: Rate) -> str:
    """A rate as people write it: 100/m; with what is allowed at once, if that is more than 1."""
    counts = {unit: period_s / rate.interval_s for unit, period_s in _PERIODS.items()}
    whole = [unit for unit, count in counts.items() if count >= 1 - 1e-9 and abs(count - round(count)) < 1e-6 * count]
    unit = whole[0] if whole else next((unit for unit, count in counts.items() if count >= 1), "d")
    text = f"{counts[unit]:.6g}/{unit}"
    return text if rate.burst == 1 else f"{text}, {rate.burst} at once"


def limit_text(found: InForce[int]) -> str:
    """`3 (operator; code: 10)`, `10 (code)`, or nothing."""
    return _told_with_source(found, lambda limit: f"{limit:,}")


def rate_in_words(found: InForce[Rate]) -> str:
    """`50/m (operator; code: 100/m)`, `100/m (code)`, or nothing."""
    return _told_with_source(found, rate_text)


def _told_with_source(found: InForce[T], text: Any) -> str:
    if found.value is None:
        return ""
    source = found.source
    if source == _OPERATOR:
        source += f"; code: {'none' if found.code is None else text(found.code)}"
    return f"{text(found.value)} ({source})"


def in_words(gate: Gate, gates: Mapping[str, Gate], now: float) -> str:
    """Everything about a gate on one line."""
    parent = parent_of(gate, gates)
    words = [told(gate, parent, now)]
    if text := limit_text(limit_in_force(gate, parent)):
        words.append(f"limit {text}")
    if text := rate_in_words(rate_in_force(gate, parent)):
        words.append(f"rate {text}")
    return ", ".join([*words, f"{count_of(gate.live, 'job')} running"])


def gate_json(gate: Gate, gates: Mapping[str, Gate], now: float) -> dict[str, Any]:
    """All that is kept of a gate, and what follows from it. Instants are seconds since 1970.

    `limit` and `rate` are in force, a recovery's limit included; `…_code` and `…_operator` are what was said. Of a
    hold without an end `held_until` is null.
    """
    parent = parent_of(gate, gates)
    limit, rate = limit_in_force(gate, parent), rate_in_force(gate, parent)
    kept = {key: value for key, value in asdict(gate).items() if key not in _SAID}
    return {
        "gate": gate.name,
        "state": state(gate, parent, now),
        **kept,
        "held_until": gate.held_until if is_held(gate, now) and not is_endless(gate, now) else None,
        "limit": limit_of(gate, parent),
        "limit_source": limit.source or None,
        "limit_code": gate.limit,
        "limit_operator": gate.limit_override,
        "rate": _rate_json(rate.value),
        "rate_source": rate.source or None,
        "rate_code": _rate_json(gate.rate),
        "rate_operator": _rate_json(gate.rate_override),
    }


def _rate_json(rate: Rate | None) -> dict[str, Any] | None:
    return None if rate is None else {"rate": rate_text(Rate(rate.interval_s)), **asdict(rate)}


def by_name(gates: Iterable[Gate]) -> dict[str, Gate]:
    return {gate.name: gate for gate in gates}
