"""All that the memory broker keeps. Rows stand here by id; `lanes` has what they stand in."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING

from taskflow.brokers.memory.expiries import Expiries
from taskflow.brokers.memory.lanes import GateLine, Holder, Queue
from taskflow.brokers.waiting import Awaited
from taskflow.core import gate as gating

if TYPE_CHECKING:
    from taskflow.brokers.base import Presence
    from taskflow.brokers.memory.lanes import Row

# What `reclaim` prunes, in the order in which it ended: of what may leave it before, by job id.
Line = deque["Row"] | dict[str, "Row"]


class Store:
    """Jobs, queues, gates and workers, by name. Nothing in here awaits, so each verb is atomic without a lock."""

    __slots__ = (
        "awaited",
        "batches",
        "dead",
        "expiries",
        "finished",
        "gates",
        "held_back",
        "keys",
        "openings",
        "openings_made",
        "presences",
        "queues",
        "results",
        "rows",
        "submitted",
        "token",
        "workers",
    )

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}  # in the order of submission
        self.keys: dict[tuple[str, str], str] = {}  # (task, key) → the job that is not final yet
        self.queues: dict[str, Queue] = {}
        self.gates: OrderedDict[str, GateLine] = OrderedDict()
        self.workers: dict[str, Holder] = {}
        self.presences: dict[str, tuple[float, float, Presence]] = {}  # worker → when it said so, its lease, and what
        self.submitted = 0
        self.token = 0
        self.openings: list[tuple[float, int, GateLine]] = []  # heap: when gates with waiting lanes may open
        self.openings_made = 0
        self.expiries = Expiries()
        self.awaited = Awaited()  # who waits for jobs to be final
        self.results: deque[Row] = deque()  # rows with a result
        self.finished: deque[Row] = deque()
        self.dead: dict[str, Row] = {}  # from here they may go on
        self.batches: dict[str, float] = {}  # that are not finished → when a submit named them last
        self.held_back: dict[str, list[tuple[Line, Row]]] = {}  # old enough, but of these

    def queue(self, name: str) -> Queue:
        """By name; made if there is none."""
        queue = self.queues.get(name)
        if queue is None:
            queue = self.queues[name] = Queue(name)
        return queue

    def gate(self, name: str) -> GateLine:
        """By name; made if there is none, with its family's."""
        gate = self.gates.get(name)
        if gate is None:
            family = gating.family(name)
            gate = self.gates[name] = GateLine(name, None if family == name else self.gate(family))
        return gate

    def worker(self, name: str) -> Holder:
        """By name; made if there is none."""
        worker = self.workers.get(name)
        if worker is None:
            worker = self.workers[name] = Holder(name)
        return worker
