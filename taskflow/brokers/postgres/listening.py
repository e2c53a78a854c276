"""LISTEN on a connection of its own, while somebody waits here; a slow poll behind it, which alone would do."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from typing import TYPE_CHECKING, Any

from taskflow.brokers.postgres import errors
from taskflow.errors import BrokerError

if TYPE_CHECKING:
    import asyncpg

    from taskflow.brokers.postgres.connection import Address, Pool
    from taskflow.brokers.postgres.waiting import Waiters

WORK, FINALS = 1, 2  # what is listened for, as bits

_POLL_S = 1.0  # behind LISTEN: a notification of the moment in which we connect is lost
_DEAF_POLL_S = 0.25  # without it
_LISTEN_S = 60.0  # a listener is told this long after it last said that it is there
_RENEW_S = 20.0
_AGAIN_S = 1.0  # between two tries to connect


class Listening:
    """One broker object's ear."""

    def __init__(self, address: Address, pool: Pool, waiters: Waiters) -> None:
        self._address, self._pool, self._waiters = address, pool, waiters
        self._id = uuid.uuid4().hex
        self._kinds = 0
        self._renewed_at = self._tried_at = -_LISTEN_S
        self._connection: asyncpg.Connection | None = None
        self._registering: asyncio.Lock = asyncio.Lock()
        self._looking: asyncio.Task[None] | None = None
        self._is_closed = False

    @property
    def is_heard(self) -> bool:
        return self._connection is not None and not self._connection.is_closed()

    async def listen(self, kind: int, fixed_at: float | None) -> float:
        """Be told of `kind` from now on. Seconds after which to look anyway."""
        if not self._address.listens:
            return _DEAF_POLL_S
        now = time.monotonic()
        if not (self.is_heard and self._kinds & kind and now - self._renewed_at < _RENEW_S):
            async with self._registering:
                await self._register(kind, fixed_at)
        return _POLL_S if self.is_heard else _DEAF_POLL_S

    async def _register(self, kind: int, fixed_at: float | None) -> None:
        now = time.monotonic()
        if self._is_closed or (self.is_heard and self._kinds & kind and now - self._renewed_at < _RENEW_S):
            return
        if not self.is_heard and now - self._tried_at < _AGAIN_S:
            return
        self._tried_at = now
        kinds = self._kinds | kind
        channel = await self._pool.value("SELECT ~.listen_v1($1, $2, $3, $4)", self._id, kinds, _LISTEN_S, fixed_at)
        try:
            if not self.is_heard:
                await self._connect(channel)
        except Exception as error:
            if not errors.is_translated(error):
                raise
            return  # deaf for now: the poll goes on, and the next look tries again
        self._kinds, self._renewed_at = kinds, now

    async def _connect(self, channel: str) -> None:
        connection = await self._address.connect()
        try:
            await connection.add_listener(channel, self._hear)
        except BaseException:  # cancelled, too: nobody else knows of this connection
            connection.terminate()
            raise
        if self._is_closed:  # meanwhile: nobody would ever end it
            connection.terminate()
            return
        connection.add_termination_listener(self._lost)
        self._connection = connection

    def _hear(self, _connection: Any, _pid: int, _channel: str, said: Any) -> None:
        if said == "w":
            self._waiters.tell_work()
        elif said == "f":
            self._waiters.finals.tell_all()
        else:
            self._waiters.finals.tell(said[1:].split("\n"))

    def _lost(self, _connection: Any) -> None:
        self._connection = None
        if not self._is_closed:
            self._waiters.tell_all()  # they look, and listen again

    def look_for_finals(self, fixed_at: float | None) -> None:
        """One slow look for all who wait for jobs to end, while somebody does."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.get_running_loop().create_task(self._look(fixed_at))

    async def _look(self, fixed_at: float | None) -> None:
        while self._waiters.finals and not self._is_closed:
            with contextlib.suppress(BrokerError):  # those who wait meet it themselves
                await asyncio.sleep(await self.listen(FINALS, fixed_at))
                waiting = list(self._waiters.finals)
                ended = await self._pool.fetch(
                    "SELECT a.id FROM unnest($1::text[]) a(id) LEFT JOIN ~.job j ON j.id = a.id"
                    " LEFT JOIN ~.finished f ON f.seq = j.seq WHERE j.seq IS NULL OR f.seq IS NOT NULL",
                    waiting,
                )
                self._waiters.finals.tell(row[0] for row in ended)

    async def close(self) -> None:
        """Before the pool closes."""
        self._is_closed = True
        if self._looking is not None:
            self._looking.cancel()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()
        if self._kinds:
            with contextlib.suppress(BrokerError):  # its row ends by itself
                await self._pool.fetch("DELETE FROM ~.listener WHERE id = $1", self._id)
