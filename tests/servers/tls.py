"""A relay that ends TLS before a server that speaks none, with a certificate of a CA of the test's own."""

from __future__ import annotations

import asyncio
import ssl
import struct
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Self

import trustme

if TYPE_CHECKING:
    from pathlib import Path

_START_S = 5.0
_CHUNK = 65_536
_ASK_POSTGRES = struct.pack("!II", 8, 80_877_103)  # its protocol's SSLRequest: a length, and a number of its own


class Authority:
    """A CA, and files in `folder` for whoever trusts it, or has to show a certificate."""

    def __init__(self, folder: Path) -> None:
        self._ca = trustme.CA()
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(self.file)

    def certificate(self, *names: str) -> tuple[Path, Path]:
        """A certificate for these hosts, and its key, as files."""
        made = self._ca.issue_cert(*names)
        cert, key = self._folder / f"{names[0]}.pem", self._folder / f"{names[0]}.key"
        made.cert_chain_pems[0].write_to_path(cert)
        made.private_key_pem.write_to_path(key)
        return cert, key

    def context(self, *names: str, wants_client: bool = False) -> ssl.SSLContext:
        """What a server with such a certificate listens with; with `wants_client` it asks for one of this CA."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*self.certificate(*names))
        if wants_client:
            self._ca.configure_trust(context)
            context.verify_mode = ssl.CERT_REQUIRED
        return context


class TlsRelay:
    """Listens on a free port of loopback with TLS, and forwards to `port`. In a thread of its own.

    With `asked` it waits to be asked for TLS in clear first, as PostgreSQL's clients do, and takes nothing else.
    """

    def __init__(self, port: int, context: ssl.SSLContext, *, asked: bool = False) -> None:
        self._to, self._context, self._asked = port, context, asked
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tls relay", daemon=True)
        self._open: set[asyncio.StreamWriter] = set()
        self.accepted = 0  # handshakes that succeeded
        self.port = 0

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._serve(), self._loop).result(_START_S)
        return self

    def __exit__(self, *exc: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(_START_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_START_S)
        self._loop.close()

    async def _serve(self) -> None:
        context = None if self._asked else self._context
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=context)
        self.port = self._server.sockets[0].getsockname()[1]
        self._loop.set_exception_handler(lambda _loop, _context: None)  # a client that refuses us is a test's own doing

    async def _end(self) -> None:
        self._server.close()
        for writer in self._open:
            writer.transport.abort()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if others:
            await asyncio.wait(others, timeout=_START_S / 2)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            if self._asked:
                if await reader.readexactly(len(_ASK_POSTGRES)) != _ASK_POSTGRES:
                    writer.close()
                    return
                writer.write(b"S")
                await writer.start_tls(self._context)
            self.accepted += 1
            their_reader, their_writer = await asyncio.open_connection("127.0.0.1", self._to)
            self._open |= {writer, their_writer}
            try:
                await asyncio.gather(_forward(reader, their_writer), _forward(their_reader, writer))
            finally:
                for one in (writer, their_writer):
                    one.transport.abort()
                    self._open.discard(one)


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while chunk := await reader.read(_CHUNK):
            writer.write(chunk)
            await writer.drain()
    with suppress(OSError):
        writer.close()
