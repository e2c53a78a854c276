"""What a worker says of itself, as text that a server or a file keeps."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from taskflow.brokers.base import Presence, WorkerInfo, WorkerState

if TYPE_CHECKING:
    from collections.abc import Iterable

_STATES = frozenset(map(str, WorkerState))


def presence_text(presence: Presence | None) -> str | None:
    """JSON by names, so that workers and commands of another version can read it."""
    return None if presence is None else json.dumps(presence._asdict())


def worker_infos(rows: Iterable[tuple[str, float, float, str | bytes]]) -> list[WorkerInfo]:
    """By name, from rows of name, `silent_s`, `lease_s` and text."""
    found = [WorkerInfo(worker, max(0.0, silent_s), lease_s, _read(text)) for worker, silent_s, lease_s, text in rows]
    return sorted(found, key=lambda info: info.worker)


def _read(text: str | bytes) -> Presence:
    said = {name: value for name, value in json.loads(text).items() if name in Presence._fields}
    if said["state"] in _STATES:
        said["state"] = WorkerState(said["state"])
    return Presence(**said)
