"""When rows expire, kept by the second: a batch of jobs costs one `extend`, and not a place in a heap for each."""

from __future__ import annotations

import heapq
from collections import deque
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from taskflow.brokers.memory.lanes import Row

_SWEEP_FROM = 64  # rows that ended, below which sweeping is not worth it
_expires_at = attrgetter("expires_at")
_LAST = 1e15  # seconds: what expires later never does


class Expiries:
    """Rows by the instant at which they expire. One that ends before stays until it is swept, or its time comes."""

    def __init__(self) -> None:
        self._by_second: dict[int, list[Row]] = {}
        self._seconds: list[int] = []  # heap of its keys
        self._due: deque[Row] = deque()  # their second is over
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, rows: Sequence[Row]) -> None:
        """To be called whenever rows get an instant to expire at, or could have missed it."""
        for expires_at, alike in groupby(rows, _expires_at):  # a batch has one, as a rule
            second = int(min(expires_at, _LAST))
            of_second = self._by_second.get(second)
            if of_second is None:
                of_second = self._by_second[second] = []
                heapq.heappush(self._seconds, second)
            of_second.extend(alike)
        self._size += len(rows)

    def take_due(self, now: float, most: int) -> list[Row]:
        """At most `most` rows whose instant has come, in its order, then that of submission. Rows may come twice."""
        this_second = int(now)
        while self._seconds and self._seconds[0] <= this_second:
            second = self._seconds[0]
            rows = [row for row in self._by_second[second] if row.finished_at is None]
            due = [row for row in rows if row.expires_at <= now]
            due.sort(key=lambda row: (row.expires_at, row.seq))
            self._due.extend(due)
            left = [row for row in rows if row.expires_at > now and int(min(row.expires_at, _LAST)) == second]
            self._size -= len(self._by_second[second]) - len(due) - len(left)
            if left:  # of the second that is under way
                self._by_second[second] = left
                break
            del self._by_second[heapq.heappop(self._seconds)]
        taken = [self._due.popleft() for _ in range(min(most, len(self._due)))]
        self._size -= len(taken)
        return taken

    def sweep(self, alive: int) -> None:
        """Let go of rows that ended, once they are most of what is here. `alive` is how many rows have not."""
        if self._size <= 2 * alive + _SWEEP_FROM:
            return
        self._due = deque(row for row in self._due if row.finished_at is None)
        kept = {second: [row for row in rows if row.finished_at is None] for second, rows in self._by_second.items()}
        self._by_second = {second: rows for second, rows in kept.items() if rows}
        self._seconds = sorted(self._by_second)
        self._size = len(self._due) + sum(map(len, self._by_second.values()))
