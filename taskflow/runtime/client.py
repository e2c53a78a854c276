"""The submitting half: hands jobs to the broker, waits while a queue is full, waits for results."""

from __future__ import annotations

from collections import Counter
from operator import attrgetter
from typing import TYPE_CHECKING

from taskflow.brokers.base import Accepted, Cancelled, Transactional
from taskflow.clock import NEVER
from taskflow.core import events
from taskflow.errors import KEY_HELD, BrokerUnavailable, ConfigError, QueueFull, ResultTimeout
from taskflow.runtime.together import Together, batches

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Mapping, Sequence

    from taskflow.brokers.base import Final, FullBroker, Receipt
    from taskflow.clock import Clock
    from taskflow.core.job import Job
    from taskflow.runtime.results import Results
    from taskflow.settings import Settings

BATCH = 500  # jobs in one round trip: past that, larger batches gain little and hold the broker up longer
_BATCH_HERE = 5_000  # where the jobs live in this process: there is no trip, and nobody else to hold up
_LONGEST_WAIT_S = 3_600.0
_LOOK_S = 1.0  # between two tries to get into a full queue
_NEW = Accepted.NEW  # an enum's member costs as much as a call on Python 3.11
_ALL_NEW = {_NEW}
_accepted = attrgetter("accepted")  # these run in C: each job passes here
_id, _queue, _queue_and_task = attrgetter("id"), attrgetter("queue"), attrgetter("queue", "task")
_key = attrgetter("key")
_REFUSED = frozenset({Accepted.QUEUE_FULL, Accepted.GATE_FULL, Accepted.KEY_HELD})
_KNOWN = frozenset({Accepted.SAME_ID, Accepted.SAME_KEY})
# A reply that was lost on its way looks like an outage. Asking again with the same ids tells, and submits nothing
# twice; a caller who asks again has other ids.
_SURE_S = 1.0
_FIRST_PAUSE_S, _MOST_PAUSE_S = 0.05, 2.0


class Client:
    """Submits, and waits for what was submitted."""

    def __init__(
        self,
        broker: FullBroker,
        settings: Settings,
        clock: Clock,
        rng: random.Random,
        emit: Callable[[events.Event], None],
    ) -> None:
        self.broker = broker
        self.clock = clock
        self._settings = settings
        self._rng = rng
        self._emit = emit
        self._together = Together(broker.submit, BATCH)
        # Apart from those without: a key may be held by a transaction that somebody leaves open.
        self._keyed = Together(broker.submit, BATCH)
        self._batch = BATCH if broker.is_durable else _BATCH_HERE

    async def submit(self, jobs: Sequence[Job]) -> list[str]:
        """Ids of the accepted jobs, in order; for a key that is taken, the id of the job that has it.

        Waits while a queue is full (TASKFLOW_QUEUE__ON_FULL), then raises `QueueFull`, whose `accepted` holds the
        ids of the jobs that are in; the rest is not. Raises `BrokerUnavailable` in an outage, and for a key that an
        open transaction holds.
        """
        bounds = self._bounds(jobs)
        others: dict[str, str] = {}
        left = jobs
        give_up_at = self.clock.now() + (self._settings.queue.wait_s if self._settings.queue.on_full == "wait" else 0.0)
        while left:
            refused: list[Job] = []
            held: list[Job] = []
            wait_s, what = 0.0, Accepted.QUEUE_FULL
            heard = 0
            for chunk in batches(left, self._batch):
                try:
                    receipts = await self._send(chunk, bounds)
                except BrokerUnavailable as error:
                    missing = len(left) - heard + len(refused)
                    error.add_note(f"of {len(jobs):,} jobs, {len(jobs) - missing:,} are in")
                    raise
                heard += len(chunk)
                for job, receipt in self._heard(chunk, receipts, others):
                    if receipt.accepted is Accepted.KEY_HELD:
                        held.append(job)
                        continue
                    refused.append(job)
                    wait_s, what = max(wait_s, receipt.retry_after_s), receipt.accepted
            if held:
                raise _held(held, f"of {len(jobs):,} jobs, {len(jobs) - len(held) - len(refused):,} are in")
            left = refused
            if left and (patience_s := give_up_at - self.clock.now()) <= 0:
                raise self._full(jobs, left, wait_s, what, others)
            if left:
                # Jittered, so that those who wait do not all come back in the same moment.
                # And never long without a look: what a queue drains at is known only after a while.
                pause_s = min(_LOOK_S, max(0.01, wait_s)) * (0.5 + self._rng.random())
                await self.clock.sleep(min(patience_s, pause_s))
        return [others.get(job.id, job.id) for job in jobs] if others else list(map(_id, jobs))

    async def submit_in(self, connection: object, jobs: Sequence[Job]) -> list[str]:
        """As `submit`, within the transaction of `connection`, that the caller ends.

        Waits for nothing: raises `QueueFull` at once, and whatever the broker raises. What was accepted before that is
        in the transaction. Announced when it is accepted: a transaction that is rolled back later is not heard of.
        """
        if not isinstance(self.broker, Transactional):
            raise ConfigError(
                f"options(connection=): jobs live in {self.broker.name}, which knows no transactions; submit without "
                "it, or set TASKFLOW_BROKER__URL to the database of that connection"
            )
        bounds = self._bounds(jobs)
        others: dict[str, str] = {}
        heard = 0
        for chunk in batches(jobs, BATCH):
            heard += len(chunk)
            receipts = await self.broker.submit_in(connection, chunk, bounds)
            if refused := self._heard(chunk, receipts, others):
                left = [*(job for job, _ in refused), *jobs[heard:]]
                wait_s = max(receipt.retry_after_s for _, receipt in refused)
                raise self._full(jobs, left, wait_s, refused[-1][1].accepted, others)
        return [others.get(job.id, job.id) for job in jobs]

    def _bounds(self, jobs: Sequence[Job]) -> dict[str, int]:
        return dict.fromkeys(map(_queue, jobs), self._settings.queue.max_size)

    def _heard(
        self, chunk: Sequence[Job], receipts: Sequence[Receipt], others: dict[str, str]
    ) -> list[tuple[Job, Receipt]]:
        """Announce what the broker took; returns what it refused. `others`: submitted id → id of the job of its key."""
        if set(map(_accepted, receipts)) == _ALL_NEW:
            self._announce(events.JobsSubmitted, chunk)
            return []
        answers = list(zip(chunk, receipts, strict=True))
        others.update((job.id, r.job_id) for job, r in answers if r.accepted not in _REFUSED and r.job_id != job.id)
        self._announce(events.JobsSubmitted, [job for job, r in answers if r.accepted is _NEW])
        self._announce(events.JobsDeduplicated, [job for job, r in answers if r.accepted in _KNOWN])
        return [(job, receipt) for job, receipt in answers if receipt.accepted in _REFUSED]

    async def _send(self, jobs: Sequence[Job], bounds: dict[str, int]) -> list[Receipt]:
        """One round trip, and for a moment another. Raises `BrokerUnavailable`: nobody knows then what got through."""
        together = self._keyed if any(map(_key, jobs)) else self._together
        began = self.clock.now()
        pause_s = _FIRST_PAUSE_S
        is_first = True
        while True:
            try:
                receipts = await together.submit(jobs, bounds)
            except BrokerUnavailable:
                if self.clock.now() - began >= _SURE_S:
                    raise
                await self.clock.sleep(pause_s * (0.5 + self._rng.random() / 2))
                pause_s *= 2
                is_first = False
            else:
                # Those that are there already came with the reply that was lost.
                return receipts if is_first else [_as_new(receipt) for receipt in receipts]

    def _full(
        self, jobs: Sequence[Job], left: Sequence[Job], wait_s: float, what: Accepted, others: Mapping[str, str]
    ) -> QueueFull:
        """The error for those of `jobs` that are left; announces them."""
        queue = left[0].queue
        for name in {job.queue for job in left}:
            self._emit(events.JobsRejected(name, what, sum(job.queue == name for job in left)))
        share = "" if what is Accepted.QUEUE_FULL else f"the share of gate {left[0].gates} in "
        error = QueueFull(
            f"{share}queue {queue!r} is full ({self._settings.queue.max_size:,} jobs, TASKFLOW_QUEUE__MAX_SIZE); "
            f"try again in {wait_s:.2f} s, or start more workers",
            retry_after_s=wait_s,
        )
        out = {job.id for job in left}
        error.accepted = tuple(others.get(job.id, job.id) for job in jobs if job.id not in out)
        return error

    def _announce(self, event: type[events.JobsSubmitted | events.JobsDeduplicated], jobs: Sequence[Job]) -> None:
        for (queue, task), count in Counter(map(_queue_and_task, jobs)).items():
            self._emit(event(queue, task, count))

    async def cancel(self, job_id: str) -> Cancelled:
        """As `Operator.cancel`, for one job; tells of one that had not started."""
        info = await self.broker.show(job_id)  # before: once it is cancelled, nothing may fail
        (done,) = await self.broker.cancel([job_id])
        if info is not None and done is Cancelled.CANCELLED:
            self._emit(events.JobCancelled(job_id, info.task, info.queue))
        return done

    async def final(self, job_id: str, timeout: float | None, together: Results | None = None) -> Final:
        """How the job ended. Raises `ResultTimeout` if it has not in `timeout` seconds (None: wait for ever).

        An outage of the broker is waited out, within `timeout`; then `BrokerUnavailable` is raised. `together`: those
        of the jobs that were submitted with it.
        """
        left_s = NEVER if timeout is None else max(0.0, timeout)
        give_up_at = self.clock.now() + left_s
        if together is not None:
            if (final := await together.look(self.broker, job_id)) is not None:
                return final
            left_s = max(0.0, give_up_at - self.clock.now())
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                found = await self.broker.finals((job_id,), min(_LONGEST_WAIT_S, left_s))
            except BrokerUnavailable:
                left_s = give_up_at - self.clock.now()
                if left_s <= 0:
                    raise
                await self.clock.sleep(min(left_s, pause_s * (0.5 + self._rng.random() / 2)))
                pause_s = min(_MOST_PAUSE_S, pause_s * 2)
                left_s = max(0.0, give_up_at - self.clock.now())
                continue
            if found:
                return found[job_id]
            left_s = give_up_at - self.clock.now()
            if left_s <= 0:
                raise ResultTimeout(f"job {job_id} is not final after {timeout:g} s; it goes on, ask again later")


def _held(jobs: Sequence[Job], note: str) -> BrokerUnavailable:
    shown = ", ".join(f"{job.task} {job.key!r}" for job in jobs[:3]) + (", …" if len(jobs) > 3 else "")
    error = BrokerUnavailable(
        f"a transaction that is still open has submitted a job of the same key ({shown}): whether that counts is not "
        "known before it ends. Try again then",
        kind=KEY_HELD,
    )
    error.add_note(note)
    return error


def _as_new(receipt: Receipt) -> Receipt:
    return receipt._replace(accepted=Accepted.NEW) if receipt.accepted is Accepted.SAME_ID else receipt
