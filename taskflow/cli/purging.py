"""What is asked before jobs are thrown away: how many they are, and whether that is meant."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from taskflow.cli.shown import count_of
from taskflow.core.job import JobState

if TYPE_CHECKING:
    from taskflow.brokers.base import FullBroker

_COUNTED = 1_000  # where the broker keeps no count, more are not looked at just to ask a question


async def how_many(
    broker: FullBroker, state: JobState, what: str, *, queue: str | None = None, task: str | None = None
) -> str:
    """The number of these jobs in words: `12 ready jobs`, where `what` is `ready job`."""
    if task is None and state in (JobState.READY, JobState.SCHEDULED, JobState.DEAD):
        counts = [count for count in await broker.counts() if queue in (None, count.queue)]
        return count_of(sum(int(getattr(count, state)) for count in counts), what)
    found = len(await broker.jobs(state=state, queue=queue, task=task, limit=_COUNTED + 1))
    return count_of(found, what) if found <= _COUNTED else f"more than {count_of(_COUNTED, what)}"


def ask(question: str) -> None:
    """Go on only if a person says yes; end with exit 1 on no, with exit 2 where nobody can be asked."""
    if not sys.stdin.isatty():
        raise click.UsageError(f"{question} There is nobody to ask: say --yes")
    click.confirm(question, abort=True, err=True)
