"""The broker on one SQLite file: the verbs. Each is an op for the writer's or the reader's thread."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from taskflow.brokers.base import Settlement
from taskflow.brokers.sqlite import claim as claiming
from taskflow.brokers.sqlite import leases, operate, reading, settle, submit, wake
from taskflow.brokers.sqlite.borrowed import borrowed
from taskflow.brokers.sqlite.connection import Handle, look
from taskflow.brokers.sqlite.lines import Line, Op, nothing
from taskflow.brokers.sqlite.listening import Listening
from taskflow.brokers.sqlite.reader import Reader
from taskflow.brokers.sqlite.schema import VERSION
from taskflow.brokers.sqlite.settle import Settling
from taskflow.brokers.sqlite.upkeep import Upkeep
from taskflow.brokers.sqlite.waiting import Waiters, WorkWaiter
from taskflow.brokers.sqlite.writer import Writer
from taskflow.brokers.waiting import closed_meanwhile, not_kept, settled
from taskflow.core.decision import Complete
from taskflow.core.job import JobState
from taskflow.errors import BrokerError, ConfigError

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Mapping, Sequence

    from taskflow.brokers.base import (
        BeatReply,
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
        SettleReply,
        SyncBeat,
        WorkerInfo,
    )
    from taskflow.brokers.sqlite.tx import Effects, Tx
    from taskflow.core.gate import Gate, GateChange
    from taskflow.core.job import Claim, Job

T = TypeVar("T")


class SqliteBroker:
    """Jobs in one file, shared by any number of processes of one machine. The default: durable, and no server.

    `synchronous="FULL"` survives a power cut; `"NORMAL"` is faster, survives `kill -9`, and may lose the last commits
    of a power cut. A locked file is waited for up to `busy_timeout_s`. `wall` makes the instants: all processes of one
    file must share a clock. Never on a network file system; never used across a fork (make one broker a process).
    """

    name = "sqlite"
    is_durable = True
    newest_version = VERSION

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        synchronous: str = "FULL",
        busy_timeout_s: float = 10.0,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._path = os.fspath(path)
        if self._path in {"", ":memory:"}:
            raise ConfigError("SqliteBroker needs a file; for jobs that may die with the process use memory://")
        if synchronous not in {"FULL", "NORMAL", "EXTRA"}:
            raise ConfigError(f"synchronous is FULL (the default) or NORMAL, not {synchronous!r}")
        self._synchronous = synchronous
        self._busy_s = busy_timeout_s
        self._wall = wall
        self._loop: asyncio.AbstractEventLoop | None = None
        self._write_line: Line | None = None
        self._read_line: Line | None = None
        self._look_line: Line | None = None
        self._is_closing = False
        self._waiters = Waiters()
        self._turns: claiming.Turns = {}
        self._upkeep = Upkeep()

    async def open(self) -> None:
        """As `Broker.open`. Makes the file, but not its folder."""
        if self._write_line is not None:
            return
        self._loop = asyncio.get_running_loop()
        writer = Writer(self._new_handle(), wall=self._wall, committed=self._committed)
        bell = writer.bell
        self._listening = Listening(self, self._waiters, bell)
        self._write_line = Line(
            "taskflow-sqlite-write", writer.serve, writer.end, late_s=bell.late_s, serve_late=bell.ring_late
        )
        self._read_line = self._new_reader("taskflow-sqlite-read")
        self._is_closing = False
        try:
            await self.write(nothing)
            await self.read(nothing)
        except BaseException:
            await self.close()
            raise

    async def version(self) -> int:
        """As `Versioned.version`."""
        return await asyncio.to_thread(look, self._path, self._busy_s)

    async def close(self) -> None:
        """As `Broker.close`."""
        if self._write_line is None or self._is_closing:
            return
        self._is_closing = True
        try:
            await self._listening.close()
        finally:
            writer = self._write_line
            readers = [line for line in (self._read_line, self._look_line) if line is not None]
            self._write_line = self._read_line = self._look_line = None
            self._waiters.tell_all()
            try:
                await asyncio.gather(*(line.stop() for line in readers))
            finally:
                ended = writer.stop()  # last: whoever closes a file last, and alone, moves its log into it
        await ended
        for line in (*readers, writer):
            line.join()

    # ---- what the runtime asks ----

    async def submit(self, jobs: Sequence[Job], bounds: Mapping[str, int]) -> list[Receipt]:
        """As `Broker.submit`. A queue that `bounds` does not name has no bound."""
        if not jobs:
            return []
        return await self.write(lambda tx: submit.submit(tx, jobs, bounds), rows=len(jobs))

    async def claim(self, request: ClaimRequest) -> list[Claim]:
        """As `Broker.claim`."""
        return await self.write(lambda tx: claiming.claim(tx, request, self._turns), rows=request.limit)

    async def wait(self, request: ClaimRequest, timeout_s: float) -> None:
        """As `Broker.wait`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        waiter = WorkWaiter()
        self._waiters.work.add(waiter)
        try:
            while self._write_line is not None:
                poll_s = await self._listening.listen(wake.WORK)
                now = self._wall()
                at, queues = await self.read(partial(reading.next_instant, request=request, now=now))
                left_s = deadline - loop.time()
                if at <= now or left_s <= 0:
                    return
                waiter.queues = set(queues) if len(queues) == len(set(request.queues)) else None
                await settled(waiter.future, min(left_s, poll_s, at - now))
                waiter.again()
        finally:
            self._waiters.work.discard(waiter)

    async def settle(self, settlements: Sequence[Settlement]) -> list[SettleReply]:
        """As `Broker.settle`."""
        if not settlements:
            return []
        return await self.write(Settling(settlements), rows=len(settlements))

    async def beat(
        self, worker: str, tokens: Mapping[str, int], lease_s: float, presence: Presence | None = None
    ) -> BeatReply:
        """As `Broker.beat`."""
        return await self.write(lambda tx: leases.beat(tx, worker, tokens, lease_s, presence), rows=len(tokens))

    def sync_beat(self) -> SyncBeat | None:
        """As `Broker.sync_beat`."""
        return leases.SqliteBeat(self._new_handle(), self._wall)

    async def leave(self, worker: str) -> None:
        """As `Broker.leave`: the lease ends now, the next `reclaim` takes what is left."""
        await self.write(lambda tx: leases.leave(tx, worker))

    async def note(self, notes: Sequence[Note]) -> list[Settled]:
        """As `Broker.note`."""
        if not notes:
            return []
        return await self.write(lambda tx: settle.note(tx, notes), rows=len(notes))

    async def finals(self, job_ids: Sequence[str], timeout_s: float) -> dict[str, Final]:
        """As `Broker.finals`. Thousands may wait: what this process ends wakes only those who wait for it."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        is_last = timeout_s <= 0
        ended: asyncio.Future[None] = loop.create_future()
        self._waiters.finals.add(job_ids, ended)
        try:
            while job_ids:
                kept, found = await self.read(lambda connection: reading.finals(connection, job_ids))
                if found:
                    return found
                if not kept:
                    raise not_kept(job_ids)
                if is_last:
                    break
                await self._listening.listen(wake.FINALS)
                self._listening.look_for_finals()
                is_last = not await settled(ended, deadline - loop.time())  # it may have ended, and the word got lost
                if self._write_line is None:
                    raise closed_meanwhile(f"the broker on {self._path}")
                self._waiters.finals.remove(job_ids, ended)
                ended = loop.create_future()
                self._waiters.finals.add(job_ids, ended)
        finally:
            self._waiters.finals.remove(job_ids, ended)
        return {}

    async def gate(self, name: str, change: GateChange, generation: int | None = None) -> Gate:
        """As `Broker.gate`."""
        return await self.write(lambda tx: operate.change_gate(tx, name, change, generation))

    async def reclaim(self, *, max_lost: int, retention: Retention) -> list[Reclaimed]:
        """As `Broker.reclaim`."""
        return await self.write(lambda tx: self._upkeep.reclaim(tx, max_lost, retention), rows=retention.rows)

    async def counts(self) -> list[QueueCounts]:
        """As `Broker.counts`."""
        now = self._wall()
        return await self._look(lambda connection: reading.counts(connection, now))

    # ---- what a person asks ----

    async def show(self, job_id: str) -> JobInfo | None:
        """As `Operator.show`."""
        return await self._look(lambda connection: reading.show(connection, job_id))

    async def states(self, job_ids: Sequence[str]) -> dict[str, JobState]:
        """As `Operator.states`."""
        return await self.read(lambda connection: reading.states(connection, job_ids))

    async def jobs(
        self, *, state: JobState | None = None, queue: str | None = None, task: str | None = None, limit: int = 100
    ) -> list[JobInfo]:
        """As `Operator.jobs`."""
        return await self._look(lambda connection: reading.jobs(connection, state, queue, task, limit))

    async def cancel(self, job_ids: Sequence[str]) -> list[Cancelled]:
        """As `Operator.cancel`."""
        return await self.write(lambda tx: operate.cancel(tx, job_ids), rows=len(job_ids))

    async def retry(self, job_ids: Sequence[str]) -> list[Retried]:
        """As `Operator.retry`."""
        return await self.write(lambda tx: operate.retry(tx, job_ids), rows=len(job_ids))

    async def purge(self, *, state: JobState, queue: str | None = None, task: str | None = None) -> int:
        """As `Operator.purge`, in bounded transactions. What runs is not touched."""
        if state is JobState.RUNNING:
            return 0
        count, after = 0, 0
        while True:
            call = partial(operate.purge_some, state=state, queue=queue, task=task, after=after)
            purged, last = await self.write(call, rows=operate.PURGED_AT_ONCE)
            count += purged
            if last is None:
                return count
            after = last

    async def pause(self, queue: str) -> None:
        """As `Operator.pause`."""
        await self.write(lambda tx: operate.pause(tx, queue, is_paused=True))

    async def resume(self, queue: str) -> None:
        """As `Operator.resume`."""
        await self.write(lambda tx: operate.pause(tx, queue, is_paused=False))

    async def gates(self) -> list[Gate]:
        """As `Operator.gates`, by name."""
        return await self._look(reading.gates)

    async def workers(self) -> list[WorkerInfo]:
        """As `Operator.workers`, by name."""
        now = self._wall()
        return await self._look(lambda connection: reading.workers(connection, now))

    async def finish_batch(self, batch: str) -> None:
        """As `Operator.finish_batch`."""
        await self.write(lambda tx: operate.finish_batch(tx, batch))

    # ---- in the caller's own transaction ----

    async def submit_in(self, connection: object, jobs: Sequence[Job], bounds: Mapping[str, int]) -> list[Receipt]:
        """As `Transactional.submit_in`, for an `sqlite3.Connection` to the same file, in the thread that made it.

        Where the sqlite3 module opens transactions by itself, one is begun if need be. The file is locked for other
        writers until the caller's transaction ends: keep it short.
        """
        return self._write_in(connection, lambda tx: submit.submit(tx, jobs, bounds))

    async def complete_in(self, connection: object, job_id: str, token: int, result: bytes | None) -> Settled:
        """As `Completing.complete_in`, with such a connection as `submit_in` takes."""
        settlement = Settlement(job_id, token, Complete(result))
        ((answer, _),) = self._write_in(connection, lambda tx: settle.settle_each(tx, [settlement]))
        return answer

    def _write_in(self, connection: object, call: Callable[[Tx], T]) -> T:
        """What `call` answers, within the caller's transaction.

        Whoever waits is woken once that is over: until then the writer does not get the lock. Only a hint, as all of
        them: there may be nothing to find then, and if it takes too long the polls find it.
        """
        line, loop = self._write_line, self._loop
        if line is None or loop is None:
            raise self._not_open()
        with borrowed(connection, self._path, self._wall()) as tx:
            answer = call(tx)
        told = loop.create_future()
        told.add_done_callback(asyncio.Future.exception)  # nobody waits for it
        line.put(Op(lambda later: later.effects.add_hints(tx.effects), told))
        return answer

    # ---- to the threads and back ----

    async def write(self, call: Callable[[Tx], T], *, rows: int = 1) -> T:
        """What `call` answers, once it is committed. `rows` tells how much work it is."""
        return await self._ask(self._write_line, call, rows)

    async def read(self, call: Callable[[sqlite3.Connection], T]) -> T:
        """What `call` answers, soon: for what runs all day."""
        return await self._ask(self._read_line, call, 1)

    async def _look(self, call: Callable[[sqlite3.Connection], T]) -> T:
        """What `call` answers, in its time: lists for people may read a whole table, and hold up nobody."""
        if self._look_line is None and self._read_line is not None:
            self._look_line = self._new_reader("taskflow-sqlite-look")
        return await self._ask(self._look_line, call, 1)

    async def _ask(self, line: Line | None, call: Callable[[Any], T], rows: int) -> T:
        if line is None:
            raise self._not_open()
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        line.put(Op(call, future, rows))
        return await future

    def _not_open(self) -> BrokerError:
        return BrokerError(f"the broker on {self._path} is not open: call open() first, and nothing after close()")

    def _new_reader(self, name: str) -> Line:
        reader = Reader(self._new_handle())
        return Line(name, reader.serve, reader.end)

    def _new_handle(self) -> Handle:
        return Handle(self._path, synchronous=self._synchronous, busy_s=self._busy_s)

    def _committed(self, effects: Effects) -> None:
        """Called in the writer's thread: tell who waits in our loop."""
        loop = self._loop
        if loop is None:
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            if effects.work and self._waiters.work:
                loop.call_soon_threadsafe(self._waiters.tell_work, effects.work)
            if effects.finals and self._waiters.finals:
                loop.call_soon_threadsafe(self._waiters.finals.tell, effects.finals)
