"""Which queue is asked first: smooth weighted round robin (nginx), so that a weight of 5 gets 5 first turns in 6.

The others follow by weight, so that no slot stays empty while any queue has work.
"""

from __future__ import annotations


class QueueTurns:
    """The queues of one worker, with their weights."""

    def __init__(self, weights: dict[str, int]) -> None:
        self._weights = dict(weights)
        self._credit = dict.fromkeys(weights, 0)
        self._total = sum(weights.values())
        self._only = tuple(weights) if len(weights) == 1 else None

    def next(self) -> tuple[str, ...]:
        """All queues, in the order in which this claim asks them."""
        if self._only is not None:
            return self._only
        credit = self._credit
        for queue, weight in self._weights.items():
            credit[queue] += weight
        first = max(credit, key=lambda queue: credit[queue])
        order = tuple(sorted(credit, key=lambda queue: -credit[queue]))
        credit[first] -= self._total
        return order
