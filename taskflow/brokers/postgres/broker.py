"""The broker on PostgreSQL: the verbs. Each is one function in the database, and one round trip."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from taskflow.brokers.base import BeatReply, Cancelled, Reclaimed, Retried, Settlement
from taskflow.brokers.finals import FinalsReader
from taskflow.brokers.postgres import claim as claiming
from taskflow.brokers.postgres import gates, reading, settle, submit
from taskflow.brokers.postgres.beats import PostgresBeat
from taskflow.brokers.postgres.borrowed import Borrowed
from taskflow.brokers.postgres.connection import UPKEEP_S, Address, Pool, look
from taskflow.brokers.postgres.listening import FINALS, WORK, Listening
from taskflow.brokers.postgres.schema import STATE_NUMBER, VERSION
from taskflow.brokers.postgres.submit import storable
from taskflow.brokers.postgres.waiting import Waiters
from taskflow.brokers.presence import presence_text, worker_infos
from taskflow.brokers.server_clock import ServerClock
from taskflow.brokers.waiting import closed_meanwhile, settled
from taskflow.core import gate as gating
from taskflow.core.decision import Complete, Release
from taskflow.core.job import JobState
from taskflow.errors import BrokerError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from taskflow.brokers.base import (
        ClaimRequest,
        Final,
        JobInfo,
        Note,
        Presence,
        QueueCounts,
        Receipt,
        Retention,
        Settled,
        SettleReply,
        SyncBeat,
        WorkerInfo,
    )
    from taskflow.core.gate import Gate, GateChange
    from taskflow.core.job import Claim, Job

_PURGED_AT_ONCE = 1_000  # jobs of one transaction
_ENTERED = 1_000  # names of queues that are remembered
_CANCELLED = tuple(Cancelled)
_RETRIED = tuple(Retried)


class PostgresBroker:
    """Jobs in a schema of a PostgreSQL database (13 or newer), for any number of machines.

    `url` is libpq's: `postgresql://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=…`. With `listen=off` in it nothing needs a
    session (behind PgBouncer's transaction pooling): waiting polls four times a second then. The schema `namespace` is
    made, and brought up to date, by `open`. The server's clock makes the instants, unless a test's `wall` does; time
    passes by this machine's, which is never set, or by a test's `steady`: by its `wall`, if it says nothing else.
    """

    name = "postgres"
    is_durable = True
    newest_version = VERSION

    def __init__(
        self,
        url: str,
        *,
        namespace: str = "taskflow",
        wall: Callable[[], float] | None = None,
        steady: Callable[[], float] | None = None,
    ) -> None:
        self._address = Address(url)
        self._namespace = namespace
        self._pool = Pool(self._address, namespace)
        self._waiters = Waiters()
        self._turns = claiming.Turns()
        self._listening = Listening(self._address, self._namespace, self._pool, self._waiters)
        self._reader = FinalsReader(self._ask_finals, f"PostgreSQL at {self._address.where}")
        self._is_open = False
        self._entered: set[str] = set()  # queues that are known to be there
        self._wall = wall
        self._clock = ServerClock(steady or wall or time.monotonic)

    @property
    def doubts(self) -> tuple[str, ...]:
        """As `Doubtful.doubts`."""
        return self._pool.doubts

    async def open(self) -> None:
        """As `Broker.open`: makes the schema. Raises `ConfigError` where the server refuses us, too."""
        if self._is_open:
            return
        await self._pool.open()
        await self._hear_clock()
        self._listening = Listening(self._address, self._namespace, self._pool, self._waiters)
        self._is_open = True

    async def _hear_clock(self) -> None:
        sent_at = self._clock.steady()
        try:
            now = await self._pool.value("SELECT ~.now_s($1)", self._fixed_at())
        except BaseException:  # cancelled, too: what was opened is closed
            await self._pool.close()
            raise
        self._clock.heard(now, sent_at)

    async def version(self) -> int:
        """As `Versioned.version`."""
        version, self._pool.doubts = await look(self._address, self._namespace)
        return version

    async def close(self) -> None:
        """As `Broker.close`."""
        if not self._is_open:
            return
        self._is_open = False
        self._waiters.tell_all()
        try:
            await self._listening.close()
        finally:
            await self._pool.close()

    # ---- what the runtime asks ----

    async def submit(self, jobs: Sequence[Job], bounds: Mapping[str, int]) -> list[Receipt]:
        """As `Broker.submit`. A queue that `bounds` does not name has no bound."""
        if not jobs:
            return []
        receipts = await submit.submit(self._pool, jobs, bounds, self._fixed_at(), is_borrowed=False)
        self._waiters.tell_work()
        return receipts

    async def claim(self, request: ClaimRequest) -> list[Claim]:
        """As `Broker.claim`. Never repeated by itself: what a lost reply claimed is taken back by the beats."""
        self._clock.leased(request.lease_s)
        return await claiming.claim(self._pool, request, self._turns, self._fixed_at())

    async def wait(self, request: ClaimRequest, timeout_s: float) -> None:
        """As `Broker.wait`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while self._is_open:
            told: asyncio.Future[None] = loop.create_future()
            self._waiters.work.add(told)
            try:
                poll_s = await self._listening.listen(WORK, self._fixed_at())
                if not self._pool.is_open:
                    return
                next_s = await self._pool.value(
                    "SELECT ~.next_v1($1, $2, $3, $4)",
                    list(request.queues),
                    request.gated > 0,
                    request.suspects > 0,
                    self._fixed_at(),
                )
                left_s = deadline - loop.time()
                if left_s <= 0 or next_s == 0:
                    return
                await settled(told, min(left_s, poll_s, poll_s if next_s is None else next_s))
            finally:
                self._waiters.work.discard(told)

    async def settle(self, settlements: Sequence[Settlement]) -> list[SettleReply]:
        """As `Broker.settle`."""
        if not settlements:
            return []
        replies = await settle.settle(self._pool, settlements, self._fixed_at(), is_borrowed=False)
        self._waiters.finals.tell(one[0] for one in settlements)
        if any(type(one[2]) is Release for one in settlements):
            self._turns.forget_marks()
        self._waiters.tell_work()
        return replies

    async def beat(
        self, worker: str, tokens: Mapping[str, int], lease_s: float, presence: Presence | None = None
    ) -> BeatReply:
        """As `Broker.beat`."""
        self._clock.leased(lease_s)
        ((lost, cancelled),) = await self._pool.fetch(
            "SELECT * FROM ~.beat_v1($1, $2, $3, $4, $5, $6)",
            worker,
            list(tokens),
            list(tokens.values()),
            lease_s,
            self._fixed_at(),
            presence_text(presence),
        )
        return BeatReply(tuple(lost), tuple(cancelled))

    def sync_beat(self) -> SyncBeat | None:
        """As `Broker.sync_beat`."""
        return PostgresBeat(self._address, self._namespace, self._fixed_at)

    async def leave(self, worker: str) -> None:
        """As `Broker.leave`: the lease ends now, the next `reclaim` takes what is left."""
        await self._pool.fetch("SELECT ~.leave_v1($1)", worker)

    async def note(self, notes: Sequence[Note]) -> list[Settled]:
        """As `Broker.note`."""
        return await settle.note(self._pool, notes) if notes else []

    async def finals(self, job_ids: Sequence[str], timeout_s: float) -> dict[str, Final]:
        """As `Broker.finals`. Thousands may wait, each for its own job: they share what is asked and heard."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        is_last = timeout_s <= 0
        while job_ids:
            told: asyncio.Future[None] = loop.create_future()
            self._waiters.finals.add(job_ids, told)
            try:
                if not is_last:
                    await self._listening.listen(FINALS, self._fixed_at())
                found = await self._reader.read(job_ids, deadline - loop.time() if timeout_s > 0 else None)
                if found or is_last:
                    return found
                self._listening.look_for_finals(self._fixed_at())
                is_last = not await settled(told, deadline - loop.time())  # it may have ended, and the word got lost
                if not self._is_open:
                    raise closed_meanwhile(f"PostgreSQL at {self._address.where}")
            finally:
                self._waiters.finals.remove(job_ids, told)
        return {}

    async def _ask_finals(self, job_ids: list[str], _wait_s: float) -> dict[str, Final | None]:
        return await reading.finals(self._pool, job_ids)

    async def gate(self, name: str, change: GateChange, generation: int | None = None) -> Gate:
        """As `Broker.gate`."""
        gate = await gates.change_gate(self._pool, name, change, generation, self._fixed_at())
        self._waiters.tell_work()
        return gate

    async def reclaim(self, *, max_lost: int, retention: Retention) -> list[Reclaimed]:
        """As `Broker.reclaim`."""
        moved = await settle.reclaim(self._pool, self._clock, max_lost, retention, self._fixed_at())
        if moved:
            self._turns.forget_marks()
            self._waiters.tell_work()
            self._waiters.finals.tell(one.job_id for one in moved)
        try:
            await settle.prune(self._pool, retention, self._fixed_at())
        except (BrokerError, ConfigError):
            if not moved:  # what has moved must be told; the next call says it
                raise
        return moved

    async def counts(self) -> list[QueueCounts]:
        """As `Broker.counts`."""
        return await reading.counts(self._pool, self._fixed_at())

    # ---- what a person asks ----

    async def show(self, job_id: str) -> JobInfo | None:
        """As `Operator.show`."""
        return await reading.show(self._pool, job_id)

    async def states(self, job_ids: Sequence[str]) -> dict[str, JobState]:
        """As `Operator.states`."""
        return await reading.states(self._pool, job_ids)

    async def jobs(
        self, *, state: JobState | None = None, queue: str | None = None, task: str | None = None, limit: int = 100
    ) -> list[JobInfo]:
        """As `Operator.jobs`."""
        return await reading.jobs(self._pool, state, queue, task, limit)

    async def cancel(self, job_ids: Sequence[str]) -> list[Cancelled]:
        """As `Operator.cancel`."""
        answers = await self._pool.value("SELECT ~.cancel_v1($1, $2)", list(map(storable, job_ids)), self._fixed_at())
        self._waiters.finals.tell(job_ids)
        return [_CANCELLED[answer] for answer in answers]

    async def retry(self, job_ids: Sequence[str]) -> list[Retried]:
        """As `Operator.retry`."""
        answers = await self._pool.value("SELECT ~.retry_v1($1, $2)", list(map(storable, job_ids)), self._fixed_at())
        self._waiters.tell_work()
        return [_RETRIED[answer] for answer in answers]

    async def purge(self, *, state: JobState, queue: str | None = None, task: str | None = None) -> int:
        """As `Operator.purge`, in bounded transactions. What runs is not touched."""
        if state is JobState.RUNNING:
            return 0
        count = after = 0
        while True:
            ((n, next_after),) = await self._pool.fetch(
                "SELECT * FROM ~.purge_v1($1, $2, $3, $4, $5, $6)",
                STATE_NUMBER[state],
                None if queue is None else storable(queue),
                None if task is None else storable(task),
                after,
                _PURGED_AT_ONCE,
                self._fixed_at(),
                within_s=UPKEEP_S,
            )
            count += int(n)
            if next_after is None:
                return count
            after = next_after

    async def pause(self, queue: str) -> None:
        """As `Operator.pause`."""
        await self._pool.fetch("SELECT ~.pause_v1($1, true, $2)", storable(queue), self._fixed_at())

    async def resume(self, queue: str) -> None:
        """As `Operator.resume`."""
        await self._pool.fetch("SELECT ~.pause_v1($1, false, $2)", storable(queue), self._fixed_at())
        self._waiters.tell_work()

    async def gates(self) -> list[Gate]:
        """As `Operator.gates`, by name."""
        rows = await self._pool.fetch(f"SELECT {reading.GATE} FROM ~.gate g ORDER BY g.name")  # noqa: S608 - our own columns
        return [gating.from_row(row) for row in rows]

    async def workers(self) -> list[WorkerInfo]:
        """As `Operator.workers`, by name."""
        rows = await self._pool.fetch("SELECT * FROM ~.workers_v1($1)", self._fixed_at())
        return worker_infos(tuple(row) for row in rows)

    async def finish_batch(self, batch: str) -> None:
        """As `Operator.finish_batch`."""
        await self._pool.fetch("UPDATE ~.batch SET is_finished = true WHERE name = $1", storable(batch))

    # ---- in the caller's own transaction ----

    async def submit_in(self, connection: object, jobs: Sequence[Job], bounds: Mapping[str, int]) -> list[Receipt]:
        """As `Transactional.submit_in`, for a connection of asyncpg or psycopg to the same database."""
        if not jobs:
            return []
        borrowed = self._borrowed(connection)
        # A queue's row that the caller's transaction made would stop everybody else's submit until it commits.
        if queues := {job.queue for job in jobs} - self._entered:
            await self._pool.fetch("SELECT ~.enter_v1($1)", list(queues))
            self._entered = queues if len(self._entered) > _ENTERED else self._entered | queues
        return await submit.submit(borrowed, jobs, bounds, self._fixed_at(), is_borrowed=True)

    async def complete_in(self, connection: object, job_id: str, token: int, result: bytes | None) -> Settled:
        """As `Completing.complete_in`, with such a connection as `submit_in` takes."""
        settlement = Settlement(job_id, token, Complete(result))
        borrowed = self._borrowed(connection)
        ((answer, _),) = await settle.settle(borrowed, [settlement], self._fixed_at(), is_borrowed=True)
        return answer

    def _borrowed(self, connection: object) -> Borrowed:
        return Borrowed(connection, self._namespace, self._address.where)

    def _fixed_at(self) -> float | None:
        return None if self._wall is None else self._wall()
