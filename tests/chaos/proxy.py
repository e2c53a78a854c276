"""A TCP proxy on loopback, between workers and their server, that is as bad as a network can be: and goes on again.

It lives in a thread of its own, so that whoever commands it may block or stand still.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit, urlunsplit

if TYPE_CHECKING:
    from collections.abc import Callable

_START_S = 5.0
_CHUNK = 65_536
_AT_ONCE = struct.pack("ii", 1, 0)  # SO_LINGER: close with RST, not FIN


class Proxy:
    """Forwards to `port` on loopback. Every fault lasts until `mend()`."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="chaos proxy", daemon=True)
        self._links: set[_Link] = set()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self.accepted = 0  # connections, over its life
        self._delay_s = 0.0
        self._is_cut = False
        self._flows = asyncio.Event()  # clear: no byte moves, and no connection breaks
        self._swallows_replies = False

    def url(self, url: str) -> str:
        """The same server, through this proxy."""
        parts = urlsplit(url)
        user, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{user}{at}127.0.0.1:{self.port}"))

    # ---- faults ----

    def delay(self, seconds: float) -> None:
        """Each way takes `seconds` longer, whatever is sent; nothing is lost."""
        self._do(lambda: setattr(self, "_delay_s", seconds))

    def drop(self) -> None:
        """A black hole: connections stay open and new ones are accepted, but nothing arrives."""
        self._do(self._flows.clear)

    def swallow_replies(self) -> None:
        """Requests get through, replies vanish; `mend` breaks the connections that miss some."""
        self._do(lambda: setattr(self, "_swallows_replies", True))

    def strand(self) -> None:
        """Nothing arrives any more on the connections that are open now, and nobody is told; new ones work.

        As after a failover, when the address moves to another machine.
        """

        def strand() -> None:
            for link in self._links:
                link.is_stranded = True

        self._do(strand)

    def point_at(self, port: int) -> None:
        """New connections go there, those that are open stay where they are: as when a name or an address moves."""
        self._do(lambda: setattr(self, "_to", port))

    def reset(self) -> None:
        """Break every open connection, once; new ones are welcome."""
        self._do(self._break)

    def cut(self) -> None:
        """Break every connection, and refuse new ones."""

        def cut() -> None:
            self._is_cut = True
            self._break()

        self._do(cut)

    def mend(self) -> None:
        """As if nothing had been."""

        def mend() -> None:
            self._is_cut, self._swallows_replies, self._delay_s = False, False, 0.0
            self._flows.set()
            self._break(only=lambda link: link.has_lost)

        self._do(mend)

    # ---- life ----

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._serve(), self._loop).result(_START_S)
        self._do(self._flows.set)
        return self

    def __exit__(self, *exc: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(_START_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_START_S)
        self._loop.close()

    def _do(self, change: Callable[[], Any]) -> None:
        """Change something in the proxy's own thread, and return when it is done."""

        async def do() -> None:
            change()

        asyncio.run_coroutine_threadsafe(do(), self._loop).result(_START_S)

    async def _serve(self) -> None:
        self._server = await asyncio.start_server(self._accept, sock=self._listening)

    async def _end(self) -> None:
        self._server.close()
        self._flows.set()
        self._break()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if others:
            await asyncio.wait(others, timeout=_START_S / 2)

    def _break(self, only: Callable[[_Link], bool] = lambda _: True) -> None:
        for link in [link for link in self._links if only(link)]:
            link.reset()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        link = _Link(writer)
        self._links.add(link)
        try:
            if self._is_cut:
                return
            with suppress(OSError):
                their_reader, their_writer = await asyncio.open_connection("127.0.0.1", self._to)
                link.add(their_writer)
                ways = {
                    asyncio.ensure_future(self._forward(reader, their_writer, link, is_reply=False)),
                    asyncio.ensure_future(self._forward(their_reader, writer, link, is_reply=True)),
                }
                try:
                    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for way in ways:
                        way.cancel()
                    await asyncio.gather(*ways, return_exceptions=True)
        finally:
            link.reset()
            self._links.discard(link)

    async def _forward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link: _Link, *, is_reply: bool
    ) -> None:
        """One direction. What is under way is delivered in order, each chunk when its time has come."""
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(1_000)

        async def deliver() -> None:
            while True:
                due_at, chunk = await under_way.get()
                await asyncio.sleep(max(0.0, due_at - self._loop.time()))
                await self._flows.wait()
                if not chunk:
                    return
                if link.is_stranded:
                    link.has_lost = True
                    continue
                if is_reply and self._swallows_replies:
                    link.has_lost = True
                    continue
                writer.write(chunk)
                await writer.drain()

        async def take() -> None:
            while chunk := await reader.read(_CHUNK):
                await under_way.put((self._loop.time() + self._delay_s, chunk))
            await under_way.put((self._loop.time() + self._delay_s, b""))

        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(take())
                both.create_task(deliver())
        except* OSError:
            pass  # broken: so is the other way


class _Link:
    """One connection through the proxy: both of its ends."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writers = [writer]
        self.has_lost = False
        self.is_stranded = False

    def add(self, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)

    def reset(self) -> None:
        """RST to both ends, what is under way is lost."""
        for writer in self._writers:
            with suppress(OSError):
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
            writer.transport.abort()
