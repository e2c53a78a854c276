"""LISTEN on a connection of its own, while somebody waits here; a slow poll behind it, which alone would do."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from taskflow.brokers.finals import Look
from taskflow.brokers.postgres import errors, reading
from taskflow.brokers.postgres.schema import quoted
from taskflow.core.backoff import Pauses
from taskflow.errors import BrokerError, ConfigError

if TYPE_CHECKING:
    import asyncpg

    from taskflow.brokers.postgres.connection import Address, Pool
    from taskflow.brokers.postgres.waiting import Waiters

WORK, FINALS = 1, 2  # what is listened for, as bits

_POLL_S = 1.0  # behind LISTEN: a notification of the moment in which we connect is lost
_DEAF_POLL_S = 0.25  # without it
_LISTEN_S = 60.0  # a listener is told this long after it last said that it is there
_RENEW_S = 20.0
_ANSWER_S = 5.0  # a connection that takes longer to renew is dead: a failover, a router that forgot it
_AGAIN_S, _MOST_AGAIN_S = 1.0, 10.0  # between two tries to listen


class Listening:
    """One broker object's ear."""

    def __init__(self, address: Address, namespace: str, pool: Pool, waiters: Waiters) -> None:
        self._address, self._pool, self._waiters = address, pool, waiters
        self._register = f"SELECT {quoted(namespace)}.listen_v1($1, $2, $3, $4)"
        self._id = uuid.uuid4().hex
        self._wanted = self._kinds = 0
        self._renewed_at = self._again_at = float("-inf")
        self._pauses = Pauses(_AGAIN_S, _MOST_AGAIN_S, random.random)
        self._connection: asyncpg.Connection | None = None
        self._tuning: asyncio.Task[None] | None = None
        self._look = Look(waiters.finals, partial(reading.ended, pool))
        self._is_closed = False

    @property
    def is_heard(self) -> bool:
        return self._connection is not None and not self._connection.is_closed()

    async def listen(self, kind: int, fixed_at: float | None) -> float:
        """Be told of `kind` from now on, if that can be. Seconds after which to look anyway: it raises nothing."""
        if not self._address.listens or self._is_closed:
            return _DEAF_POLL_S
        self._wanted |= kind
        now = time.monotonic()
        is_fresh = self._hears(kind) and now - self._renewed_at < _RENEW_S
        is_tuning = self._tuning is not None and not self._tuning.done()
        if not is_fresh and not is_tuning and (self.is_heard or now >= self._again_at):
            self._tuning = asyncio.get_running_loop().create_task(self._tune(fixed_at))
        if self._tuning is not None and not self._hears(kind):  # whoever hears already waits for no renewal
            await asyncio.wait((self._tuning,), timeout=_DEAF_POLL_S)
        return _POLL_S if self._hears(kind) else _DEAF_POLL_S

    def _hears(self, kind: int) -> bool:
        return self.is_heard and bool(self._kinds & kind)

    async def _tune(self, fixed_at: float | None) -> None:
        """Connect, or ask the connection whether it lives: by what keeps our row among the listeners."""
        self._again_at = time.monotonic() + self._pauses.next_s()
        connection: Any = self._connection if self.is_heard else None
        is_tuned = False
        try:
            if connection is None:
                connection = await self._address.connect()
            while not is_tuned:
                wanted, now = self._wanted, time.monotonic()
                channel = await connection.fetchval(
                    self._register, self._id, wanted, _LISTEN_S, fixed_at, timeout=_ANSWER_S
                )
                if connection is not self._connection:
                    await connection.add_listener(channel, self._hear)
                    connection.add_termination_listener(self._lost)
                    self._connection = connection
                self._kinds, self._renewed_at = wanted, now
                is_tuned = wanted == self._wanted  # or somebody came meanwhile, who waits for the other kind
            self._pauses.reset()
        except Exception as error:
            if not errors.is_translated(error):
                raise
            # Deaf for now: the poll goes on, and a later look tries again.
        finally:
            if not is_tuned and connection is not None:  # cancelled, too: nobody else may know of it
                connection.terminate()

    def _hear(self, _connection: Any, _pid: int, _channel: str, said: Any) -> None:
        if said == "w":
            self._waiters.tell_work()
        elif said == "f":  # too many to name
            self._look.at_once()
        else:
            self._waiters.finals.tell(said[1:].split("\n"))

    def _lost(self, connection: Any) -> None:
        if connection is not self._connection:
            return
        self._connection = None
        if not self._is_closed:  # what was said meanwhile nobody knows
            self._waiters.tell_work()
            self._look.at_once()

    def look_for_finals(self, fixed_at: float | None) -> None:
        """Look for all who wait for jobs to end, slowly, while somebody does."""
        self._look.begin(partial(self.listen, FINALS, fixed_at))

    async def close(self) -> None:
        """Before the pool closes."""
        self._is_closed = True
        await self._look.close()
        if self._tuning is not None and not self._tuning.done():
            self._tuning.cancel()
            await asyncio.wait((self._tuning,))
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()
        if self._kinds:
            with suppress(BrokerError, ConfigError):  # its row ends by itself
                await self._pool.fetch("DELETE FROM ~.listener WHERE id = $1", self._id)
