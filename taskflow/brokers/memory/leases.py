"""A worker's lease and its beats: the claims that it vouches for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskflow.brokers.base import BeatReply
from taskflow.clock import NEVER

if TYPE_CHECKING:
    from collections.abc import Mapping

    from taskflow.brokers.base import Presence
    from taskflow.brokers.memory.store import Store


def beat(
    store: Store, worker: str, tokens: Mapping[str, int], lease_s: float, presence: Presence | None, now: float
) -> BeatReply:
    """As `Broker.beat`."""
    if presence is not None:
        store.presences[worker] = (now, lease_s, presence)
    holder = store.worker(worker)
    holder.lease_until = now + lease_s
    holder.beats += 1
    lost: list[str] = []
    cancel: list[str] = []
    for job_id, token in tokens.items():
        row = holder.claims.get(job_id)
        if row is None or row.token != token:
            lost.append(job_id)
            continue
        row.vouched = holder.beats
        if row.cancel_requested:
            cancel.append(job_id)
    return BeatReply(tuple(lost), tuple(cancel))


def leave(store: Store, worker: str) -> None:
    """As `Broker.leave`: the lease ends now, the next `reclaim` takes what is left."""
    store.presences.pop(worker, None)
    holder = store.workers.get(worker)
    if holder is None:
        return
    holder.lease_until = -NEVER
    if not holder.claims:
        del store.workers[worker]
