"""Gates and the lanes that wait at them: parked when the gate does not admit, open again when it may."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

from taskflow.brokers.memory.lanes import Ring
from taskflow.clock import NEVER
from taskflow.core import gate as gating

if TYPE_CHECKING:
    from taskflow.brokers.memory.lanes import GateLine, Lane, Left, Queue
    from taskflow.brokers.memory.store import Store

_STIRS = 1_000  # gates whose hold is over that one claim looks at: ten thousand holds may end in one instant


def change_gate(store: Store, name: str, change: gating.GateChange, generation: int | None, now: float) -> gating.Gate:
    """As `Broker.gate`."""
    gate = store.gate(name)
    if generation is None or generation == gate.record.generation:
        gate.record = gating.change(gate.record, change, now=now)
        stir(gate)
        for child in gate.children:
            stir(child)
    return gate.record


def room_of(lane: Lane, now: float) -> int:
    """How many of the lane's jobs all of its gates admit now."""
    rooms = [gating.admit(gate.record, gate.parent_record, now=now).room for gate in lane.gates]
    return min((room for room in rooms if room is not None), default=lane.size)


def park(store: Store, queue: Queue, lane: Lane, now: float) -> None:
    """The lane leaves the open ones, and waits at the first gate that does not admit it."""
    for gate in lane.gates:
        admission = gating.admit(gate.record, gate.parent_record, now=now)
        if admission.room == 0:
            break
    assert lane.ring is not None
    lane.ring.remove(lane)
    ring = gate.waiting.get(queue)
    if ring is None:
        ring = gate.waiting[queue] = Ring()
    ring.add(lane, queue.next_turn())
    _look_again(store, gate, admission.look_again_at)


def wake_lanes(store: Store, queue: Queue, left: Left, now: float) -> None:
    """Lanes whose gate has opened are open again: no more than it has room for, the highest priority first."""
    for gate in list(queue.stirred):
        if left.wake <= 0:
            return
        ring = gate.waiting.get(queue)
        admission = gating.admit(gate.record, gate.parent_record, now=now)
        room = left.wake if admission.room is None else min(left.wake, admission.room)
        while ring and room > 0:
            lane = ring.head()
            ring.remove(lane)
            queue.open[lane.kind].add(lane, queue.next_turn())
            room -= 1
            left.wake -= 1
        if not ring:
            gate.waiting.pop(queue, None)
            del queue.stirred[gate]
        elif admission.room == 0:
            del queue.stirred[gate]
            _look_again(store, gate, admission.look_again_at)


def give_room(store: Store, freed: dict[str, list[int]]) -> None:
    """Claims have ended: by gate, how many, and how many of them unused."""
    for name, (ended, unused) in freed.items():
        gate = store.gate(name)
        gate.record = gating.give_back(gate.record, ended, unused, gate.parent_record)
        stir(gate)


def stir_due(store: Store, now: float) -> None:
    """Stir the gates whose instant has come."""
    openings = store.openings
    for _ in range(_STIRS):
        if not openings or openings[0][0] > now:
            return
        gate = heapq.heappop(openings)[2]
        gate.opens_at = NEVER
        stir(gate)


def stir(gate: GateLine) -> None:
    """The gate may have opened: the next claim from each queue with lanes waiting at it looks."""
    for queue, ring in gate.waiting.items():
        if ring:
            queue.stirred[gate] = None
            queue.wake_waiters()


def _look_again(store: Store, gate: GateLine, at: float | None) -> None:
    """Stir the gate at `at`, unless it is stirred earlier anyway."""
    if at is not None and at < gate.opens_at:
        gate.opens_at = at
        store.openings_made += 1
        heapq.heappush(store.openings, (at, store.openings_made, gate))
