"""What a worker and its child processes say to each other: JSON, never pickles.

A frame is two lengths, a head (a JSON object) and a body: arguments, results or states as the broker keeps them, which
are JSON already.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic_core import from_json, to_json

if TYPE_CHECKING:
    import asyncio
    import socket

_LENGTHS = struct.Struct("!II")
_MOST = 2**30 + 2**20  # bytes; the largest result that settings allow, and some


class Frame(NamedTuple):
    """One word of either side."""

    head: dict[str, Any]
    body: bytes = b""

    def dump(self) -> bytes:
        """As it goes through the pipe."""
        head = to_json(self.head)
        return _LENGTHS.pack(len(head), len(self.body)) + head + self.body


async def receive(reader: asyncio.StreamReader) -> Frame:
    """The next frame. Raises `EOFError`, `ConnectionError`, or `ValueError` for what is none."""
    sizes = _sizes(await reader.readexactly(_LENGTHS.size))
    return Frame(_head(await reader.readexactly(sizes[0])), await reader.readexactly(sizes[1]))


def receive_blocking(pipe: socket.socket) -> Frame:
    """As `receive`, in a thread."""
    sizes = _sizes(_exactly(pipe, _LENGTHS.size))
    return Frame(_head(_exactly(pipe, sizes[0])), bytes(_exactly(pipe, sizes[1])))


def _exactly(pipe: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    view, got = memoryview(data), 0
    while got < size:
        count = pipe.recv_into(view[got:])
        if not count:
            raise EOFError
        got += count
    return data


def _sizes(data: bytes | bytearray) -> tuple[int, int]:
    head, body = _LENGTHS.unpack(data)
    if head + body > _MOST:
        raise ValueError(f"a frame of {head + body:,} bytes")
    return head, body


def _head(data: bytes | bytearray) -> dict[str, Any]:
    head = from_json(data)
    if not isinstance(head, dict):
        raise ValueError("a frame without a head")  # noqa: TRY004 - as what is no JSON at all
    return head
