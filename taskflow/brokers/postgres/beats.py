"""Beats over a connection of their own, from a thread that no handler can block."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING

from taskflow.brokers.base import BeatReply
from taskflow.brokers.patience import Patience
from taskflow.brokers.postgres import errors, schema
from taskflow.brokers.presence import presence_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import asyncpg

    from taskflow.brokers.base import Presence
    from taskflow.brokers.postgres.connection import Address


class PostgresBeat:
    """See `SyncBeat`. The driver speaks asyncio: it gets a loop of its own, which turns during a beat."""

    def __init__(self, address: Address, namespace: str, fixed_at: Callable[[], float | None]) -> None:
        self._address, self._fixed_at = address, fixed_at
        # Tokens go as text: for an array of numbers the driver asks the server eight times what that is.
        name = schema.quoted(namespace)
        self._statement = f"SELECT * FROM {name}.beat_v1($1, $2, $3::text[]::bigint[], $4, $5, $6)"  # noqa: S608 - our schema's name
        self._lock = threading.Lock()
        self._patience = Patience()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connection: asyncpg.Connection | None = None

    def beat(
        self, worker: str, tokens: Mapping[str, int], lease_s: float, presence: Presence | None = None
    ) -> BeatReply:
        """As `Broker.beat`."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
            try:
                with errors.in_our_words(self._address.where):
                    return self._loop.run_until_complete(self._beat(worker, tokens, lease_s, presence))
            except BaseException:  # whatever it was, the connection may be in the middle of an answer
                self._drop()
                self._patience.failed()
                raise

    async def _beat(
        self, worker: str, tokens: Mapping[str, int], lease_s: float, presence: Presence | None
    ) -> BeatReply:
        if self._connection is None or self._connection.is_closed():
            async with asyncio.timeout(self._patience.connect_s(lease_s)):
                self._connection = await self._address.connect()
        began = time.monotonic()
        async with asyncio.timeout(self._patience.answer_s(lease_s)):
            row = await self._connection.fetchrow(
                self._statement,
                worker,
                list(tokens),
                [str(token) for token in tokens.values()],
                lease_s,
                self._fixed_at(),
                presence_text(presence),
            )
        self._patience.answered(time.monotonic() - began, lease_s)
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
