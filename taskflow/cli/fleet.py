"""The workers of a deployment, as they last said with their beats: a table, JSON, and what a queue lacks of them."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from taskflow.brokers.base import WorkerState
from taskflow.cli.running import print_table
from taskflow.cli.shown import count_of, one_line, span

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from taskflow.brokers.base import QueueCounts, WorkerInfo

_HEAD = ["WORKER", "STATE", "BUSY", "UP", "QUEUES", "VERSION"]
_NAME = 100  # characters of a worker's name: a host's may have 64


def print_workers(workers: Sequence[WorkerInfo]) -> None:
    """A table of workers on stdout."""
    print_table(
        _HEAD,
        [
            [
                one_line(info.worker, _NAME),
                silence(info) if info.is_silent else info.said.state,
                f"{info.said.busy} of {info.said.concurrency}",
                span(info.said.up_s),
                _queues(info.said.queues),
                one_line(info.said.version),
            ]
            for info in workers
        ],
    )


def how_many(workers: Sequence[WorkerInfo]) -> str:
    """How many are there, in words."""
    silent = sum(info.is_silent for info in workers)
    live = len(workers) - silent
    words = [f"{live:,} live" if live else "no worker is running"]
    return ", ".join([*words, f"{silent:,} silent"] if silent else words)


def silence(info: WorkerInfo) -> str:
    """For how long a silent worker has been so."""
    return f"silent for {span(info.silent_s)}"


def worker_json(info: WorkerInfo) -> dict[str, Any]:
    """All that a worker said. `up_s`, `busy` and `state` were so `silent_s` ago."""
    return {
        "worker": info.worker,
        **info.said._asdict(),
        "silent": info.is_silent,
        "silent_s": info.silent_s,
        "lease_s": info.lease_s,
    }


def unserved(counts: Sequence[QueueCounts], workers: Sequence[WorkerInfo]) -> list[tuple[QueueCounts, str]]:
    """The queues whose jobs wait for a worker that is not there, each with what it lacks."""
    waiting = [queue for queue in counts if queue.ready or queue.scheduled]
    return [(queue, words) for queue in waiting if (words := lack(queue.queue, workers))]


def lack(queue: str, workers: Sequence[WorkerInfo]) -> str:
    """Why no worker takes jobs of this queue, or nothing if one does."""
    if _claiming(queue, workers):
        return ""
    serving = [info for info in workers if queue in info.said.queues]
    live = [info for info in serving if not info.is_silent]
    if live:
        states = Counter(str(info.said.state) for info in live)
        told = " and ".join(
            f"{count_of(count, 'worker')} of it {_is(count)} {state}" for state, count in states.items()
        )
        return f"no worker claims from queue {queue!r}: {told}"
    nobody = f"no live worker serves queue {queue!r}"
    if serving:
        last = min(serving, key=lambda info: info.silent_s)
        return f"{nobody}: {one_line(last.worker, _NAME)} did, and is {silence(last)}"
    return nobody if any(not info.is_silent for info in workers) else f"{nobody}: no worker is running"


def fullness(queue: str, workers: Sequence[WorkerInfo]) -> str:
    """That all slots for this queue are taken, or nothing if one is free."""
    claiming = _claiming(queue, workers)
    if not claiming or any(info.said.busy < info.said.concurrency for info in claiming):
        return ""
    taken, slots = sum(info.said.busy for info in claiming), sum(info.said.concurrency for info in claiming)
    where = count_of(len(claiming), "worker")
    return f"all slots were taken at the last beat: {taken:,} of {slots:,} in {where}"


def _claiming(queue: str, workers: Sequence[WorkerInfo]) -> list[WorkerInfo]:
    return [
        info
        for info in workers
        if not info.is_silent and info.said.state is WorkerState.CLAIMING and queue in info.said.queues
    ]


def _is(count: int) -> str:
    return "is" if count == 1 else "are"


def _queues(weights: Mapping[str, int]) -> str:
    """As TASKFLOW_WORKER__QUEUES has them."""
    return one_line(",".join(name if weight == 1 else f"{name}:{weight}" for name, weight in weights.items()))
