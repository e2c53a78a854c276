"""The broker on Redis and Valkey: the verbs. Each is one script, atomic at the server, by the server's clock."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from typing import TYPE_CHECKING

from taskflow.brokers.base import BeatReply
from taskflow.brokers.finals import FinalsReader
from taskflow.brokers.patience import Patience
from taskflow.brokers.presence import presence_text, worker_infos
from taskflow.brokers.redis import wire
from taskflow.brokers.redis.doubts import doubts_about
from taskflow.brokers.redis.link import Link, SyncLink
from taskflow.brokers.redis.listening import Listening
from taskflow.brokers.server_clock import ServerClock
from taskflow.brokers.waiting import closed_meanwhile, settled
from taskflow.core import gate as gating
from taskflow.core.job import JobState
from taskflow.errors import BrokerUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from taskflow.brokers.base import (
        Cancelled,
        ClaimRequest,
        Final,
        JobInfo,
        Note,
        Presence,
        QueueCounts,
        Receipt,
        Reclaimed,
        Retention,
        Retried,
        Settled,
        Settlement,
        SettleReply,
        SyncBeat,
        WorkerInfo,
    )
    from taskflow.core.job import Claim, Job

_ROWS = 1_000  # that one script of an operator's verb looks at: others have their turn in between


class RedisBroker:
    """Jobs on one Redis (6.2 or newer) or Valkey server, shared by any number of machines.

    All keys begin with `{namespace}:`. As durable as the server: with `appendonly yes` jobs survive its restart.
    For tests alone: `wall` gives scripts another time than the server's, and `steady` is what time passes by, `wall` if
    it is not said, instead of this machine's clock that is never set.
    """

    name = "redis"
    is_durable = True

    def __init__(
        self,
        url: str,
        *,
        namespace: str = "taskflow",
        wall: Callable[[], float] | None = None,
        steady: Callable[[], float] | None = None,
    ) -> None:
        self._link = Link(url, namespace, wall)
        self._listening = Listening(self._link)
        self._reader = FinalsReader(self._ask_finals, self._link.where)
        self._doubts: tuple[str, ...] = ()
        self._clock = ServerClock(steady or wall or time.monotonic)

    @property
    def doubts(self) -> tuple[str, ...]:
        """As `Doubtful.doubts`."""
        return self._doubts

    async def open(self) -> None:
        """As `Broker.open`."""
        if self._link.is_open:
            return
        self._link.open()
        try:
            self._doubts = await doubts_about(self._link)
            sent_at = self._clock.steady()
            self._clock.heard(float(await self._link.run("hello")), sent_at)
        except BaseException:  # cancelled, too: what was opened is closed
            await self.close()
            raise

    async def close(self) -> None:
        """What was asked is still done; whoever waits returns."""
        self._link.shut()  # first: whoever wakes meanwhile must not begin anew
        await self._listening.close()
        await self._reader.close()
        await self._link.close()

    # ---- what the runtime asks ----

    async def submit(self, jobs: Sequence[Job], bounds: Mapping[str, int]) -> list[Receipt]:
        """As `Broker.submit`. A queue that `bounds` does not name has no bound."""
        receipts: list[Receipt] = []
        for at in range(0, len(jobs), _ROWS):
            some = jobs[at : at + _ROWS]
            receipts += wire.receipts(some, await self._link.run("submit", *wire.submission(some, bounds)))
        return receipts

    async def claim(self, request: ClaimRequest) -> list[Claim]:
        """As `Broker.claim`."""
        worker, queues, limit, gated, suspects, lease_s = request
        self._clock.leased(lease_s)
        answer = await self._link.run("claim", worker, wire.text(queues), limit, gated, suspects, repr(lease_s))
        return wire.claims(answer)

    async def wait(self, request: ClaimRequest, timeout_s: float) -> None:
        """As `Broker.wait`."""
        if timeout_s <= 0:
            return
        await self._listening.ready()
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._listening.add(woken, queues=request.queues)
        try:
            delay_s = float(
                await self._link.run(
                    "wait", wire.text(request.queues), request.gated, request.suspects, repr(timeout_s)
                )
            )
            if delay_s > 0:
                await asyncio.wait((woken,), timeout=delay_s)
        finally:
            self._listening.remove(woken, queues=request.queues)

    async def settle(self, settlements: Sequence[Settlement]) -> list[SettleReply]:
        """As `Broker.settle`."""
        replies: list[SettleReply] = []
        for at in range(0, len(settlements), _ROWS):
            words = wire.settlements(settlements[at : at + _ROWS])
            replies += wire.settle_replies(await self._link.run("settle", *words))
        return replies

    async def beat(
        self, worker: str, tokens: Mapping[str, int], lease_s: float, presence: Presence | None = None
    ) -> BeatReply:
        """As `Broker.beat`."""
        self._clock.leased(lease_s)
        return _beat_reply(tokens, await self._link.run("beat", *_beat_words(worker, tokens, lease_s, presence)))

    def sync_beat(self) -> SyncBeat | None:
        """As `Broker.sync_beat`."""
        return RedisBeat(self._link.sync)

    async def leave(self, worker: str) -> None:
        """As `Broker.leave`: the lease ends now, the next `reclaim` takes what is left."""
        await self._link.run("leave", worker)

    async def note(self, notes: Sequence[Note]) -> list[Settled]:
        """As `Broker.note`."""
        answer: bytes = await self._link.run("note", *wire.notes(notes))
        return [wire.SETTLED[letter] for letter in answer.decode()]

    async def finals(self, job_ids: Sequence[str], timeout_s: float) -> dict[str, Final]:
        """As `Broker.finals`. Thousands may wait, each for its own job: they share what is asked and heard."""
        if not job_ids:
            return {}
        if timeout_s <= 0:
            return await self._reader.read(job_ids, None)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        await self._listening.ready()
        is_last = False
        while True:
            told: asyncio.Future[None] = loop.create_future()
            self._listening.add(told, job_ids=job_ids)
            try:
                found = await self._reader.read(job_ids, max(0.0, deadline - loop.time()))
                if found or is_last:
                    return found
                is_last = not await settled(told, deadline - loop.time())  # it may have ended, and the word got lost
            finally:
                self._listening.remove(told, job_ids=job_ids)
            if not self._link.is_open:
                raise closed_meanwhile(self._link.where)
            if told.done():
                await self._listening.ready()

    async def _ask_finals(self, job_ids: list[str], wait_s: float) -> dict[str, Final | None]:
        """How these ended that are kept. The ends of others within `wait_s` are told on the channel."""
        return wire.finals(job_ids, await self._link.run("finals", wire.text(job_ids), repr(wait_s)))

    async def gate(self, name: str, change: gating.GateChange, generation: int | None = None) -> gating.Gate:
        """As `Broker.gate`."""
        now, record = await self._link.run("gate_read", name)
        while True:
            before = wire.gate(name, record)
            if generation is not None and generation != before.generation:
                return before
            after = gating.change(before, change, now=float(now))
            values = wire.text(wire.gate_change(before, after))
            record, is_stored = await self._link.run("gate_store", name, before.generation, values)
            if is_stored:
                return wire.gate(name, record)

    async def reclaim(self, *, max_lost: int, retention: Retention) -> list[Reclaimed]:
        """As `Broker.reclaim`."""
        result_s, finished_s, dead_s, rows, batch_s = retention
        kept_s = (repr(float(seconds)) for seconds in (result_s, finished_s, dead_s, batch_s))
        sent_at = self._clock.steady()
        judged_at = repr(self._clock.judged_at(sent_at))
        answer = await self._link.run("reclaim", max_lost, rows, *kept_s, judged_at)
        self._clock.heard(float(answer[2]), sent_at, float(answer[3]))
        return wire.reclaimed(answer)

    async def counts(self) -> list[QueueCounts]:
        """As `Broker.counts`."""
        return wire.queue_counts(await self._link.run("counts"))

    # ---- what a person asks ----

    async def show(self, job_id: str) -> JobInfo | None:
        """As `Operator.show`."""
        answer = await self._link.run("list", wire.text([job_id]), 0, "", "", 1, 0, 0)
        return next(iter(wire.infos(answer)), None)

    async def states(self, job_ids: Sequence[str]) -> dict[str, JobState]:
        """As `Operator.states`."""
        found = zip(job_ids, map(int, await self._letters("states", job_ids)), strict=True)
        return {job_id: state for job_id, digit in found if (state := wire.STATES[digit]) is not None}

    async def jobs(
        self, *, state: JobState | None = None, queue: str | None = None, task: str | None = None, limit: int = 100
    ) -> list[JobInfo]:
        """As `Operator.jobs`."""
        infos: list[JobInfo] = []
        below: str | bytes | int = 0
        number = 0 if state is None else wire.NUMBERS[state]
        while len(infos) < limit:
            some = min(_ROWS, limit - len(infos))
            answer = await self._link.run("list", "false", number, queue or "", task or "", some, below, _ROWS)
            infos += wire.infos(answer)
            below = answer[0]
            if below == 0:
                break
        return infos

    async def cancel(self, job_ids: Sequence[str]) -> list[Cancelled]:
        """As `Operator.cancel`."""
        return [wire.CANCELLED[letter] for letter in await self._letters("cancel", job_ids)]

    async def retry(self, job_ids: Sequence[str]) -> list[Retried]:
        """As `Operator.retry`."""
        return [wire.RETRIED[letter] for letter in await self._letters("retry", job_ids)]

    async def purge(self, *, state: JobState, queue: str | None = None, task: str | None = None) -> int:
        """As `Operator.purge`, in bounded steps. What runs is not touched."""
        if state is JobState.RUNNING:
            return 0
        count = after = 0
        while True:
            purged: int
            purged, after = await self._link.run("purge", wire.NUMBERS[state], queue or "", task or "", after, _ROWS)
            count += purged
            if after == 0:
                return count

    async def _letters(self, verb: str, job_ids: Sequence[str]) -> str:
        """What the script of this verb answers: a letter or digit for each id."""
        answers: list[str] = []
        for at in range(0, len(job_ids), _ROWS):
            answer: bytes = await self._link.run(verb, wire.text(job_ids[at : at + _ROWS]))
            answers.append(answer.decode())
        return "".join(answers)

    async def pause(self, queue: str) -> None:
        """As `Operator.pause`."""
        await self._link.run("pause", queue, 1)

    async def resume(self, queue: str) -> None:
        """As `Operator.resume`."""
        await self._link.run("pause", queue, 0)

    async def gates(self) -> list[gating.Gate]:
        """As `Operator.gates`, by name."""
        found = await self._link.run("gates")
        gates = [wire.gate(found[at].decode(), found[at + 1]) for at in range(0, len(found), 2)]
        return sorted(gates, key=lambda gate: gate.name)

    async def workers(self) -> list[WorkerInfo]:
        """As `Operator.workers`, by name."""
        return worker_infos(json.loads(await self._link.run("workers")))

    async def finish_batch(self, batch: str) -> None:
        """As `Operator.finish_batch`."""
        await self._link.run("finish_batch", batch, _ROWS)


class RedisBeat:
    """Beats over a connection of its own, from a thread that no handler can block. See `SyncBeat`."""

    def __init__(self, connect: Callable[[float], SyncLink]) -> None:
        self._connect = connect
        self._link: SyncLink | None = None
        self._answer_s = 0.0  # that the link was made with
        self._patience = Patience()
        self._lock = threading.Lock()

    def beat(
        self, worker: str, tokens: Mapping[str, int], lease_s: float, presence: Presence | None = None
    ) -> BeatReply:
        """As `Broker.beat`."""
        with self._lock:
            link = self._made(self._patience.answer_s(lease_s))
            began = time.monotonic()
            try:
                answer = link.run("beat", *_beat_words(worker, tokens, lease_s, presence))
            except BrokerUnavailable:
                self._patience.failed()
                raise
            self._patience.answered(time.monotonic() - began, lease_s)
            return _beat_reply(tokens, answer)

    def _made(self, answer_s: float) -> SyncLink:
        """The link. The driver knows one timeout for all of its life: another takes another."""
        if self._link is not None and self._answer_s != answer_s:
            self._link.close()
            self._link = None
        if self._link is None:
            self._link, self._answer_s = self._connect(answer_s), answer_s
        return self._link

    def close(self) -> None:
        """Give the connection back. Idempotent."""
        with self._lock:
            if self._link is not None:
                self._link.close()


def _beat_words(
    worker: str, tokens: Mapping[str, int], lease_s: float, presence: Presence | None
) -> tuple[str, str, str, str]:
    return worker, repr(float(lease_s)), wire.text(dict(tokens)), presence_text(presence) or ""


def _beat_reply(tokens: Mapping[str, int], answer: Sequence[Sequence[bytes]]) -> BeatReply:
    held, cancel = ({job_id.decode() for job_id in ids} for ids in answer)
    return BeatReply(
        tuple(job_id for job_id in tokens if job_id not in held),
        tuple(job_id for job_id in tokens if job_id in cancel),
    )
