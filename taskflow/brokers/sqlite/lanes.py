"""Lanes: which are open, whose turn it is, which wait at a gate.

A lane has a row only while it has ready jobs, or was not found empty yet. `top` may be too high (its best job was
cancelled) but never too low; the claim that finds less than it asked for puts it right.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

from taskflow.brokers.base import WAKE
from taskflow.brokers.sqlite.schema import GATED, OPEN, PARKED, SUSPECT
from taskflow.brokers.sqlite.tx import NEVER
from taskflow.brokers.texts import gates_from
from taskflow.core import gate as gating

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from taskflow.brokers.sqlite.tx import Queue, Tx


class LaneName(NamedTuple):
    """What makes two jobs stand in one lane. `gates` is JSON, or empty."""

    queue: int
    key: str
    gates: str
    kind: int


class Lane(NamedTuple):
    """An open lane, at its turn."""

    id: int
    gates: tuple[str, ...]
    is_suspect: bool


def kind_of(gates: str, *, is_suspect: bool) -> int:
    return (GATED if gates else 0) | (SUSPECT if is_suspect else 0)


def add_ready(tx: Tx, name: LaneName, top: int) -> int:
    """The id of the lane that gets ready jobs up to priority `top`; it is made if need be. Tells who waits for work."""
    row = tx.execute(
        "SELECT id, top, stand FROM lane WHERE queue = ? AND key = ? AND gates = ? AND kind = ?", name
    ).fetchone()
    if row is None:
        tx.effects.work.add(name.queue)
        made = tx.execute(
            "INSERT INTO lane (queue, key, gates, kind, top, stand) VALUES (?, ?, ?, ?, ?, ?)", (*name, top, OPEN)
        )
        assert made.lastrowid is not None
        return made.lastrowid
    lane, old_top, stand = row
    if stand == OPEN:
        tx.effects.work.add(name.queue)
    if top > old_top:
        tx.execute("UPDATE lane SET top = ? WHERE id = ?", (top, lane))
    return int(lane)


def top_of(tx: Tx, queue: int, kinds: Sequence[int]) -> int | None:
    """The highest priority among the open lanes of these kinds."""
    one = "(SELECT max(top) FROM lane WHERE queue = ?1 AND kind = {} AND stand = 1)"
    tops = tx.execute("SELECT " + ", ".join(one.format(kind) for kind in kinds), (queue,)).fetchone()
    return max((top for top in tops if top is not None), default=None)


def in_turn(tx: Tx, queue: int, kinds: Sequence[int], top: int, *, after: int, most: int) -> list[Lane]:
    """At most `most` open lanes whose top priority is `top`: those after lane `after` first, then from the start."""
    rows = _open_lanes(tx, queue, kinds, top, (after, NEVER), most)
    if len(rows) < most and after > 0:
        rows += _open_lanes(tx, queue, kinds, top, (0, after + 1), most - len(rows))
    return [Lane(lane, gates_from(gates), bool(kind & SUSPECT)) for lane, gates, kind in rows]


def _open_lanes(
    tx: Tx, queue: int, kinds: Sequence[int], top: int, between: tuple[float, float], most: int
) -> list[tuple[int, str, int]]:
    if most <= 0:
        return []
    one = (
        "SELECT * FROM (SELECT id, gates, kind FROM lane INDEXED BY lane_open WHERE queue = ?1 AND kind = {}"
        " AND top = ?2 AND stand = 1 AND id > ?3 AND id < ?4 ORDER BY id LIMIT ?5)"
    )
    every = " UNION ALL ".join(one.format(kind) for kind in kinds)
    return tx.execute(f"{every} ORDER BY id LIMIT ?5", (queue, top, *between, most)).fetchall()


def settle_tops(tx: Tx, lanes: Iterable[int]) -> None:
    """These lanes answered short: their next priority is their top now; those without a ready job are no lanes."""
    asked = json.dumps(list(lanes))
    (answer,) = tx.execute(
        "SELECT json_group_array(json_array(value, (SELECT max(priority) FROM job WHERE lane = value AND state = 2)))"
        " FROM json_each(?)",
        (asked,),
    ).fetchone()
    tops = json.loads(answer)
    if empty := [lane for lane, top in tops if top is None]:
        tx.execute("DELETE FROM lane WHERE id IN (SELECT value FROM json_each(?))", (json.dumps(empty),))
    for lane, top in tops:
        if top is not None:
            tx.execute("UPDATE lane SET top = ? WHERE id = ?", (top, lane))


def room_of(tx: Tx, gates: tuple[str, ...]) -> int | None:
    """How many jobs all of these gates admit now; None when no bound is set."""
    rooms = (gating.admit(tx.gate(name), tx.parent(name), now=tx.now).room for name in gates)
    return min((room for room in rooms if room is not None), default=None)


def take_room(tx: Tx, gates: tuple[str, ...], count: int) -> None:
    """`count` jobs were claimed through these gates."""
    for name in gates:
        tx.put_gate(gating.take(tx.gate(name), count, tx.parent(name), now=tx.now))


def give_room(tx: Tx, ended: dict[str, list[int]]) -> None:
    """Claims ended: gate → [how many, of them never started]. Lanes that are parked there may go on."""
    tx.read_gates(ended)
    for name, (count, unused) in ended.items():
        tx.put_gate(gating.give_back(tx.gate(name), count, unused, tx.parent(name)))
        tx.stir(name)


def park(tx: Tx, queue: Queue, lanes: Sequence[Lane]) -> None:
    """These lanes leave the open ones, each to wait at the first of its gates that does not admit it."""
    wakes: dict[str, float] = {}
    stands: list[tuple[int, str, float, int]] = []
    for lane in lanes:
        for name in lane.gates:
            admission = gating.admit(tx.gate(name), tx.parent(name), now=tx.now)
            if admission.room == 0:
                break
        stands.append((PARKED, name, tx.now, lane.id))
        wakes[name] = NEVER if admission.look_again_at is None else admission.look_again_at
    tx.connection.executemany("UPDATE lane SET stand = ?, gate = ?, parked_at = ? WHERE id = ?", stands)
    tx.wake_no_later([(queue.id, name, at) for name, at in wakes.items()])


def wake(tx: Tx, queue: Queue, most: int) -> int:
    """Open the lanes of `queue` whose gate has opened: per gate no more than it has room for, the highest first.

    At most `most` in all; returns how many more it may be.
    """
    tx.stir_keyed(queue.id)
    due = tx.execute(
        "SELECT gate FROM queue_gate WHERE queue = ? AND wake_at BETWEEN 0 AND ? ORDER BY wake_at LIMIT ?",
        (queue.id, tx.now, WAKE),
    ).fetchall()
    if not due:
        return most
    tx.read_gates([name for (name,) in due])
    wakes: list[tuple[int, str, float | None]] = []
    for (name,) in due:
        if most <= 0:
            break
        admission = gating.admit(tx.gate(name), tx.parent(name), now=tx.now)
        room = most if admission.room is None else min(most, admission.room)
        woken = 0
        if room:
            woken = tx.execute(
                "UPDATE lane SET stand = 1, gate = NULL, parked_at = NULL WHERE id IN (SELECT id FROM lane"
                " INDEXED BY lane_parked WHERE queue = ? AND gate = ? AND stand = 2"
                " ORDER BY top DESC, parked_at, id LIMIT ?)",
                (queue.id, name, room),
            ).rowcount
        most -= woken
        at: float | None = tx.now  # behind the other gates that are due
        if woken < room:
            at = None  # all are awake
        elif admission.room == 0:
            at = NEVER if admission.look_again_at is None else admission.look_again_at
        wakes.append((queue.id, name, at))
    tx.set_wakes(wakes)
    return most
