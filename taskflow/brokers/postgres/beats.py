"""Beats over a connection of their own, from a thread that no handler can block."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

from taskflow.brokers.base import BeatReply
from taskflow.brokers.postgres import errors, schema

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import asyncpg

    from taskflow.brokers.postgres.connection import Address


class PostgresBeat:
    """See `SyncBeat`. The driver speaks asyncio: it gets a loop of its own, which turns during a beat."""

    def __init__(self, address: Address, namespace: str, fixed_at: Callable[[], float | None]) -> None:
        self._address, self._name, self._fixed_at = address, schema.quoted(namespace), fixed_at
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connection: asyncpg.Connection | None = None

    def beat(self, worker: str, tokens: Mapping[str, int], lease_s: float) -> BeatReply:
        """As `Broker.beat`; waits no longer than a third of the lease, when the next beat is due."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
            try:
                return self._loop.run_until_complete(self._beat(worker, tokens, lease_s))
            except BaseException as error:
                self._drop()
                if errors.is_translated(error):
                    raise errors.translated(error, self._address.where) from error
                raise

    async def _beat(self, worker: str, tokens: Mapping[str, int], lease_s: float) -> BeatReply:
        async with asyncio.timeout(lease_s / 3):
            if self._connection is None or self._connection.is_closed():
                self._connection = await self._address.connect()
            row = await self._connection.fetchrow(
                f"SELECT * FROM {self._name}.beat_v1($1, $2, $3, $4, $5)",  # noqa: S608 - our schema's name
                worker,
                list(tokens),
                list(tokens.values()),
                lease_s,
                self._fixed_at(),
            )
        return BeatReply(tuple(row[0]), tuple(row[1]))

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()

    def close(self) -> None:
        """Give the connection back. Idempotent."""
        with self._lock:
            loop, self._loop = self._loop, None
            if loop is None:
                return
            ending = threading.Thread(target=self._end, args=(loop,))  # whoever closes may have a loop that runs
            ending.start()
            ending.join()

    def _end(self, loop: asyncio.AbstractEventLoop) -> None:
        self._drop()
        loop.run_until_complete(asyncio.sleep(0))  # the transport closes in the loop's next turn
        loop.close()
