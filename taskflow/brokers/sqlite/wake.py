"""Wake-up across processes: whoever waits listens on a UDP port of the loopback, whoever commits sends a datagram.

A datagram is only a hint: it may be lost, and a stranger's is ignored. What it hints at is always read from the file,
and a slow poll stands behind it.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

    from taskflow.brokers.sqlite.tx import Effects, Tx

WORK, FINALS = 1, 2  # kinds of listeners, as bits

LISTEN_S = 30.0  # a listener's row ends this long after its process last renewed it
RENEW_S = 10.0
_PAUSE_S = 0.001  # between two datagrams to one port
_MOST_BYTES = 8_000  # of one datagram
_MOST_DATAGRAMS = 4  # of jobs that ended; with more to say one says "look at all": a socket holds only so much


class Hint:
    """What one port is still owed."""

    __slots__ = ("finals", "has_finals", "queues", "sent_at")

    def __init__(self) -> None:
        self.queues: set[int] = set()
        self.finals: list[str] = []
        self.has_finals = False
        self.sent_at = 0.0

    def datagrams(self, magic: bytes) -> list[bytes]:
        """What to send. Empty afterwards."""
        sent: list[bytes] = []
        if self.queues:
            sent.append(magic + b"w" + struct.pack(f"<{len(self.queues)}I", *self.queues)[:_MOST_BYTES])
        if self.has_finals:
            ids = [job_id.encode(errors="replace") for job_id in self.finals]
            at_once = _MOST_BYTES // (max(map(len, ids)) + 1)
            if len(ids) > _MOST_DATAGRAMS * at_once:
                sent.append(magic + b"f")
            else:
                sent += [magic + b"f" + b"\n".join(ids[n : n + at_once]) for n in range(0, len(ids), at_once)]
        self.queues, self.finals, self.has_finals = set(), [], False
        return sent


class Bell:
    """Rings at other processes. Used by the writer's thread alone."""

    def __init__(self) -> None:
        self.own_port = 0
        self._socket: socket.socket | None = None
        self._owed: dict[int, Hint] = {}
        self._magic = b""

    def listeners(self, connection: sqlite3.Connection, effects: Effects) -> list[tuple[int, int]]:
        """Who is to hear of these effects: (port, kinds). Read inside the transaction."""
        wanted = (WORK if effects.work else 0) | (FINALS if effects.finals else 0)
        if not wanted:
            return []
        found = connection.execute(
            "SELECT port, kinds & ?1 FROM listener WHERE kinds & ?1 AND port <> ?2 AND expires_at > ?3",
            (wanted, self.own_port, time.time()),
        ).fetchall()
        if found and not self._magic:
            self._magic = magic_of(connection)
        return found

    def ring(self, listeners: list[tuple[int, int]], effects: Effects) -> None:
        """Tell them, now or in a moment."""
        for port, kinds in listeners:
            hint = self._owed.get(port)
            if hint is None:
                hint = self._owed[port] = Hint()
            if kinds & WORK:
                hint.queues |= effects.work
            if kinds & FINALS:
                hint.has_finals = True
                if len(hint.finals) < _MOST_BYTES:
                    hint.finals += effects.finals
        if listeners:
            self.ring_late()

    def late_s(self) -> float | None:
        """Seconds until a datagram that was put off is due; None when none was."""
        return _PAUSE_S if any(hint.queues or hint.has_finals for hint in self._owed.values()) else None

    def ring_late(self, *, is_end: bool = False) -> None:
        """Send what is due; at the end, all."""
        now = time.monotonic()
        for port, hint in list(self._owed.items()):
            if now - hint.sent_at < _PAUSE_S and not is_end:
                continue
            datagrams = hint.datagrams(self._magic)
            if not datagrams and now - hint.sent_at > LISTEN_S:
                del self._owed[port]
            for datagram in datagrams:
                self._send(datagram, port)
                hint.sent_at = now

    def _send(self, datagram: bytes, port: int) -> None:
        with contextlib.suppress(OSError):  # the poll behind it finds the work
            if self._socket is None:
                self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                self._socket.setblocking(False)
            self._socket.sendto(datagram, ("127.0.0.1", port))

    def close(self) -> None:
        self.ring_late(is_end=True)
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class Ear:
    """Hears datagrams in the loop. `heard` gets the numbers of queues, or the ids of final jobs (empty: any)."""

    def __init__(
        self, magic: bytes, heard_work: Callable[[set[int]], None], heard_finals: Callable[[list[str]], None]
    ) -> None:
        self._magic, self._heard_work, self._heard_finals = magic, heard_work, heard_finals
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self._socket.setblocking(False)
            self._socket.bind(("127.0.0.1", 0))
        except OSError:
            self._socket.close()
            raise
        self.port: int = self._socket.getsockname()[1]

    def fileno(self) -> int:
        return self._socket.fileno()

    def hear(self) -> None:
        """Take all that has come."""
        work: set[int] = set()
        finals: list[str] = []
        has_finals = any_final = False
        with contextlib.suppress(OSError):  # BlockingIOError: that was all
            while True:
                datagram = self._socket.recv(65_536)
                if not datagram.startswith(self._magic):
                    continue  # a stranger's
                kind, said = datagram[8:9], datagram[9:]
                if kind == b"w":
                    work.update(number for (number,) in struct.iter_unpack("<I", said[: len(said) // 4 * 4]))
                elif kind == b"f":
                    has_finals = True
                    any_final = any_final or not said
                    finals += said.decode(errors="replace").split("\n")
        if work:
            self._heard_work(work)
        if has_finals:
            self._heard_finals([] if any_final else finals)

    def close(self) -> None:
        self._socket.close()


def magic_of(connection: sqlite3.Connection) -> bytes:
    """What all datagrams about this file begin with."""
    (number,) = connection.execute("SELECT value FROM meta WHERE name = 'magic'").fetchone()
    return struct.pack("<q", number)


def register(tx: Tx, port: int, kinds: int) -> None:
    """From now on, and for `LISTEN_S`, this port is told."""
    now = time.time()
    tx.execute(
        "INSERT OR REPLACE INTO listener (port, kinds, expires_at) VALUES (?, ?, ?)", (port, kinds, now + LISTEN_S)
    )
    tx.execute("DELETE FROM listener WHERE expires_at <= ?", (now,))


def unregister(tx: Tx, port: int) -> None:
    """Nobody is there any more."""
    tx.execute("DELETE FROM listener WHERE port = ?", (port,))
