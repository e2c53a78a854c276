"""Every policy of every task, for `config show APP`: what is in force and who said it, operators included."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, NamedTuple

from taskflow.cli.operating import is_made
from taskflow.cli.review import review
from taskflow.cli.running import open_broker, run_async
from taskflow.cli.standing import by_name, is_held, rate_text
from taskflow.core.gate import Rate, family
from taskflow.errors import BrokerError, ConfigError
from taskflow.settings.tuning import PolicyLeaf, explain

if TYPE_CHECKING:
    from collections.abc import Mapping

    from taskflow.app import TaskFlow
    from taskflow.core.gate import Gate
    from taskflow.core.specs import Bulkhead, CircuitBreaker, RateLimit
    from taskflow.settings import Settings
    from taskflow.settings.tuning import TaskPolicy

_ASK_S = 2.0  # for a locked file; twice that for a broker that does not answer at all


class Policies(NamedTuple):
    """`tasks`: of each task the leaves of its policies, as they are in force.

    `gates` are all that the broker keeps, `changed` the names of those of these tasks and their lane keys that an
    operator changed or that are held. `unknown` says why nobody knows, if the broker did not tell.
    """

    tasks: dict[str, list[PolicyLeaf]]
    gates: dict[str, Gate]
    changed: list[str]
    warnings: list[str]
    unknown: str = ""


def policies(flow: TaskFlow) -> Policies:
    """Resolve all, and ask the broker what operators said. Raises `ConfigError` for policies that are not valid."""
    found = review(flow)
    if found.problems:
        raise ConfigError("\n".join(found.problems))
    gates: dict[str, Gate] = {}
    unknown = ""
    try:
        gates = run_async(_gates(flow.settings))
    except (BrokerError, ConfigError) as error:
        unknown = f"what operators changed (`taskflow gate`) is not shown: {error}"
    tasks = {}
    for name, policy in found.policies.items():
        words = _operators_words(policy, gates)
        leaves = explain(flow.settings, name, flow.tasks[name].declared)
        known = {leaf.name for leaf in leaves}
        leaves += [PolicyLeaf(leaf, "not set", "default", "") for leaf in words if leaf not in known]
        tasks[name] = [words[leaf.name].over(leaf) if leaf.name in words else leaf for leaf in leaves]
    return Policies(tasks, gates, _changed(found.policies, gates, time.time()), found.warnings, unknown)


async def _gates(settings: Settings) -> dict[str, Gate]:
    """All gates by name. Raises `BrokerError` or `ConfigError` if the broker does not tell, or not in time.

    Where nothing can be yet (no file, no schema, or memory, which lives in another process) there are none.
    """
    if settings.broker.scheme == "memory":
        return {}
    # A locked file is waited for in a thread, which no timeout of ours ends.
    patience_s = min(_ASK_S, settings.broker.busy_timeout_s)
    hasty = settings.model_copy(update={"broker": settings.broker.model_copy(update={"busy_timeout_s": patience_s})})
    try:
        async with asyncio.timeout(2 * _ASK_S):
            if not await is_made(hasty):
                return {}
            async with open_broker(hasty) as broker:
                return by_name(await broker.gates())
    except TimeoutError:
        raise BrokerError(f"no answer within {2 * _ASK_S:g} s from {settings.broker.shown_url}") from None


class _Word(NamedTuple):
    """What an operator said of a gate."""

    value: str
    gate: str

    def over(self, leaf: PolicyLeaf) -> PolicyLeaf:
        """The leaf that it replaces, as it is in force."""
        source = f"operator: gate {self.gate!r}, instead of {leaf.value} ({leaf.source})"
        return leaf._replace(value=self.value, source=source)


def _operators_words(policy: TaskPolicy, gates: Mapping[str, Gate]) -> dict[str, _Word]:
    """By the name of the leaf that each replaces."""
    found: dict[str, _Word] = {}
    for spec in _specs(policy):
        gate = gates.get(spec.name)
        if gate is not None and gate.limit_override is not None:
            found["bulkhead.limit"] = _Word(str(gate.limit_override), gate.name)
        if gate is not None and gate.rate_override is not None:
            found["rate.limit"] = _Word(rate_text(Rate(gate.rate_override.interval_s)), gate.name)
            found["rate.burst"] = _Word(str(gate.rate_override.burst), gate.name)
    return found


def _changed(found: Mapping[str, TaskPolicy], gates: Mapping[str, Gate], now: float) -> list[str]:
    names = {spec.name for policy in found.values() for spec in _specs(policy)}
    return [
        name
        for name, gate in gates.items()
        if family(name) in names
        and (gate.limit_override is not None or gate.rate_override is not None or is_held(gate, now))
    ]


def _specs(policy: TaskPolicy) -> list[CircuitBreaker | Bulkhead | RateLimit]:
    return [spec for spec in (policy.breaker, policy.bulkhead, policy.rate) if spec is not None]
