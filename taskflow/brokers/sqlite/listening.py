"""How a broker object hears of other processes' commits: its ear, its row among the listeners, a slow poll."""

from __future__ import annotations

import asyncio
import contextlib
import time
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

from taskflow.brokers.finals import Look
from taskflow.brokers.sqlite import reading, wake
from taskflow.errors import BrokerError, BrokerUnavailable

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

    from taskflow.brokers.sqlite.tx import Tx
    from taskflow.brokers.sqlite.waiting import Waiters

T = TypeVar("T")

_POLL_S = 1.0  # behind the datagrams, which may be lost
_DEAF_POLL_S = 0.1  # while there is no port, or no row among the listeners


class Lines(Protocol):
    """The way to the writer's and the reader's thread."""

    async def write(self, call: Callable[[Tx], T], *, rows: int = 1) -> T: ...

    async def read(self, call: Callable[[sqlite3.Connection], T]) -> T: ...


class Listening:
    """From the first wait until `close`."""

    def __init__(self, lines: Lines, waiters: Waiters, bell: wake.Bell) -> None:
        self._lines, self._waiters, self._bell = lines, waiters, bell
        self._ear: wake.Ear | None = None
        self._kinds = 0
        self._renewed_at = float("-inf")
        self._poll_s = _DEAF_POLL_S
        self._lock = asyncio.Lock()
        self._look = Look(waiters.finals, self._ended)
        self._is_closed = False

    async def listen(self, kind: int) -> float:
        """Be told by other processes of this kind of event; returns how often to look all the same."""
        if not self._is_heard(kind):
            async with self._lock:
                if not self._is_heard(kind):
                    await self._register(kind)
        return self._poll_s

    def _is_heard(self, kind: int) -> bool:
        return bool(self._kinds & kind) and time.monotonic() - self._renewed_at < wake.RENEW_S

    async def _register(self, kind: int) -> None:
        if self._is_closed:  # meanwhile: nobody would close the ear
            return
        self._kinds |= kind
        self._renewed_at = time.monotonic()
        try:
            if self._ear is None:
                magic = await self._lines.read(wake.magic_of)
                ear = wake.Ear(magic, self._waiters.tell_work, self._heard_finals)
                asyncio.get_running_loop().add_reader(ear.fileno(), ear.hear)
                self._ear = ear
            await self._lines.write(partial(wake.register, port=self._ear.port, kinds=self._kinds))
            self._bell.own_port = self._ear.port
            self._poll_s = _POLL_S
        except (OSError, NotImplementedError, BrokerUnavailable):  # no port, a loop that cannot, a full disk
            self._poll_s = _DEAF_POLL_S

    def _heard_finals(self, job_ids: list[str]) -> None:
        if job_ids:
            self._waiters.finals.tell(job_ids)
        else:
            self._look.at_once()

    def look_for_finals(self) -> None:
        """Look for all who wait for jobs to end, slowly, while somebody does."""
        self._look.begin(partial(self.listen, wake.FINALS))

    async def _ended(self, job_ids: list[str]) -> list[str]:
        return await self._lines.read(partial(reading.final_ids, job_ids=job_ids))

    async def close(self) -> None:
        """While the lines still work."""
        self._is_closed = True
        await self._look.close()
        async with self._lock:  # who registers ends first
            ear, self._ear = self._ear, None
            if ear is not None:
                asyncio.get_running_loop().remove_reader(ear.fileno())
                ear.close()
                with contextlib.suppress(BrokerError):  # its row ends by itself
                    await self._lines.write(partial(wake.unregister, port=ear.port))
