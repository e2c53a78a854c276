"""Housekeeping that any worker does for all: take back what dead workers held, expire, prune, sample the queues."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from taskflow.brokers.base import Reclaimed, Retention
from taskflow.core import events
from taskflow.core.job import JobState
from taskflow.errors import BrokerError, BrokerUnavailable

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from taskflow.brokers.base import FullBroker, QueueCounts
    from taskflow.clock import Clock
    from taskflow.core.gate import Gate
    from taskflow.runtime.calls import BrokerCalls
    from taskflow.settings import Settings

_EVERY_S = 1.0  # and at least four times a lease: a dead worker is noticed within its lease and a little
_SAMPLE_S = 5.0


class Upkeep:
    """One worker's share of the housekeeping. Jittered, so that a fleet does not do it all at once."""

    def __init__(
        self,
        broker: FullBroker,
        calls: BrokerCalls,
        clock: Clock,
        *,
        settings: Settings,
        rng: random.Random,
        emit: Callable[[events.Event], None],
        on_sample: Callable[[list[QueueCounts], list[Gate]], None],
        is_judge: Callable[[], bool],
    ) -> None:
        self._broker = broker
        self._calls = calls
        self._clock = clock
        self._rng = rng
        self._emit = emit
        self._on_sample = on_sample
        self._is_judge = is_judge
        self._max_lost = settings.worker.max_lost
        keep = settings.retention
        self._retention = Retention(keep.result_s, keep.finished_s, keep.dead_s)
        self._lease_s = settings.worker.lease_s
        self._pause_s = min(_EVERY_S, settings.worker.lease_s / 4)

    async def run(self) -> None:
        """Keep house for ever."""
        pauses = self._calls.pauses()
        sampled_at = float("-inf")
        ahead_s = self._ahead_s()
        judges_from = 0.0
        while True:
            try:
                if self._ahead_s() - ahead_s > self._lease_s / 2:
                    # The wall clock jumped (a suspended machine, a corrected clock), and leases with it: nobody is dead
                    # before all had the time to beat again.
                    judges_from = self._clock.now() + self._lease_s
                ahead_s = self._ahead_s()
                if self._is_judge() and self._clock.now() >= judges_from:
                    with suppress(BrokerUnavailable):  # announced, and waited out: is it still a judge?
                        for job in await self._calls.or_pause("reclaim", self._reclaim, pauses):
                            self._announce(job)
                if self._clock.now() - sampled_at >= _SAMPLE_S:
                    counts = await self._calls.until_heard("counts", self._broker.counts)
                    self._on_sample(counts, await self._calls.until_heard("gates", self._broker.gates))
                    sampled_at = self._clock.now()
            except BrokerError as error:
                self._calls.failed("reclaim", error, self._pause_s)
            await self._clock.sleep(self._pause_s * (0.75 + self._rng.random() / 2))

    def _ahead_s(self) -> float:
        return self._clock.wall() - self._clock.now()

    async def _reclaim(self) -> list[Reclaimed]:
        return await self._broker.reclaim(max_lost=self._max_lost, retention=self._retention)

    def _announce(self, job: Reclaimed) -> None:
        match job.state:
            case JobState.READY:
                self._emit(events.JobRedelivered(job.job_id, job.task, job.queue, job.lost))
            case JobState.DEAD:
                self._emit(events.JobBuried(job.job_id, job.task, job.queue, job.lost))
            case JobState.EXPIRED:
                self._emit(events.JobExpired(job.job_id, job.task, job.queue, job.reason))
            case _:  # cancelled: it was asked for while its worker died
                self._emit(events.JobCancelled(job.job_id, job.task, job.queue))
