"""Orders of policies that do not do what their author means."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from taskflow.core.specs import Bulkhead, Chaos, CircuitBreaker, RateLimit, Retry, RetryBudget, Timeout
from taskflow.errors import ConfigError

Once = Timeout | CircuitBreaker | Bulkhead | RateLimit | Chaos
Policy = Once | Retry


class PolicyOrderWarning(UserWarning):
    """The policies of a pipeline stand in an order that hardly anybody means."""


def check(policies: Sequence[object]) -> None:
    """Raise for what is no policy, and for one that is there twice."""
    for policy in policies:
        if isinstance(policy, RetryBudget):
            raise TypeError(f"{policy} is no policy of its own: give it to a retry, as in Retry(budget=...)")
        if not isinstance(policy, Policy):
            raise TypeError(f"a pipeline takes policies, as in Pipeline(Timeout(30), Retry()), got {policy!r}")
    named = [(type(p), p.name) for p in policies if isinstance(p, CircuitBreaker | Bulkhead | RateLimit)]
    for kind, name in named:
        if named.count((kind, name)) > 1:
            raise ConfigError(f"{kind.__name__}: {name!r} is in this pipeline twice: each call would take it twice")


def doubts(policies: Sequence[Policy]) -> Iterator[str]:
    """What is wrong with the order; the first policy is the outermost."""
    retries = [index for index, policy in enumerate(policies) if isinstance(policy, Retry)]
    if len(retries) > 1:
        yield "two Retry: the inner one does nothing, since the outer one repeats it; keep one"
    for policy in policies[: retries[-1] if retries else 0]:
        match policy:
            case CircuitBreaker():
                yield (
                    "Retry inside CircuitBreaker: the breaker sees one failure for all attempts, and lets them go on "
                    "when it is open; put the Retry outside"
                )
            case Bulkhead():
                yield "Bulkhead outside Retry: a slot is held while the retry sleeps; put the Retry outside"
            case RateLimit():
                yield "RateLimit outside Retry: only first attempts are counted; put the Retry outside"
            case _:
                pass
    if any(isinstance(policy, Chaos) for policy in policies[:-1]):
        yield "Chaos is not the innermost: what stands inside it never sees its faults; put it last"
    for outer, inner in pairwise(policy for policy in policies if isinstance(policy, Timeout)):
        if inner.seconds >= outer.seconds:
            yield f"Timeout({inner.seconds:g}) inside Timeout({outer.seconds:g}): it never ends first; make it shorter"
