"""What the workers last said of themselves, and when."""

from __future__ import annotations

from taskflow.brokers.base import FORGOTTEN, Presence, WorkerInfo


class Presences:
    """By worker, until it leaves or is forgotten."""

    def __init__(self) -> None:
        self._said: dict[str, tuple[float, float, Presence]] = {}  # when, its lease, and what

    def say(self, worker: str, presence: Presence, lease_s: float, now: float) -> None:
        """With a beat."""
        self._said[worker] = (now, lease_s, presence)

    def leave(self, worker: str) -> None:
        """It said goodbye, or never was here."""
        self._said.pop(worker, None)

    def forget(self, now: float) -> None:
        """Those that were silent for too long."""
        for worker, (at, lease_s, _) in list(self._said.items()):
            if now - at >= FORGOTTEN * lease_s:
                del self._said[worker]

    def infos(self, now: float) -> list[WorkerInfo]:
        """As `Operator.workers`."""
        self.forget(now)
        return [
            WorkerInfo(worker, max(0.0, now - at), lease_s, presence)
            for worker, (at, lease_s, presence) in sorted(self._said.items())
        ]
