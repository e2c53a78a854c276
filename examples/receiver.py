"""A hard little receiver of webhooks: it fails on purpose, and remembers who behaved.

    python -m examples.receiver --bad 0.3 --seed 7          # its address is the first line on stdout, as JSON

Of all requests a share (`--bad`) gets a bad answer: a 500, a 503 or 429 with `Retry-After` (as seconds or as a date),
silence, a connection reset, a reset *after* the webhook was accepted (so that it comes twice), or an answer that drips.
Some payloads (`--refuse`) are answered with 422, and always the same ones. `GET /ledger` tells what happened; a request
in a time for which a pause was asked is a violation. What an honest receiver does is here too: it verifies the
signature, and deduplicates by `webhook-id`.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import hmac
import json
import math
import random
import signal
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aiohttp import web

_TOLERANCE_S = 300.0  # how old a signature may be: what the Standard Webhooks libraries allow
_PATIENCE = 5  # bad answers to one webhook; after that it is served, so that a run of bad luck ends


class Reply(StrEnum):
    """What the receiver did with a request."""

    OK = "200"
    ERROR = "500"
    UNAVAILABLE = "503"
    THROTTLED = "429"
    REFUSED = "422"
    FORGED = "401"
    HANG = "hang"
    RESET = "reset"
    LOST_REPLY = "lost_reply"  # accepted, and then the connection is reset
    DRIP = "drip"  # accepted, and then the answer never seems to end


# How the bad answers divide. Pauses are few, since each stops all deliveries for about a second.
_BAD = {
    Reply.ERROR: 24,
    Reply.RESET: 12,
    Reply.LOST_REPLY: 8,
    Reply.DRIP: 5,
    Reply.HANG: 5,
    Reply.THROTTLED: 1,
    Reply.UNAVAILABLE: 1,
}


@dataclass(frozen=True, slots=True)
class Mood:
    """How hard to be. Shares are in [0, 1], durations in seconds."""

    bad: float = 0.3
    refuse: float = 0.0
    seed: int = 0
    pause_s: int = 1
    hang_s: float = 60.0
    # Requests that were under way when a pause was asked for are no violation: answers travel, and holds do.
    grace_s: float = 0.5


@dataclass(slots=True)
class Ledger:
    """Everything that happened, in memory, and as JSON lines in a file if one is given."""

    file: Path | None = None
    replies: Counter[Reply] = field(default_factory=Counter)
    accepted: dict[str, Any] = field(default_factory=dict)  # webhook-id → payload
    refused: set[str] = field(default_factory=set)
    bad_by_id: Counter[str] = field(default_factory=Counter)
    duplicates: int = 0
    violations: int = 0

    def load(self) -> None:
        """Go on where an earlier run of the file ended. A last line that was cut off is ignored."""
        if self.file is None or not self.file.exists():
            return
        for line in self.file.read_text().splitlines():
            with suppress(ValueError, KeyError):
                entry = json.loads(line)
                self._count(Reply(entry["reply"]), entry["id"], entry.get("payload"), violation=entry["violation"])

    def add(self, reply: Reply, webhook_id: str, payload: Any = None, *, violation: bool = False) -> None:
        """Note one request."""
        self._count(reply, webhook_id, payload, violation=violation)
        if self.file is not None:
            entry = {"at": time.time(), "id": webhook_id, "reply": reply, "violation": violation, "payload": payload}
            with self.file.open("a") as lines:
                lines.write(json.dumps(entry) + "\n")

    def summary(self) -> dict[str, Any]:
        """What `GET /ledger` shows."""
        requests = self.replies.total()
        good = self.replies[Reply.OK] + self.replies[Reply.REFUSED]
        return {
            "requests": requests,
            "accepted": len(self.accepted),
            "duplicates": self.duplicates,
            "refused": len(self.refused),
            "bad": requests - good,
            "pauses": self.replies[Reply.THROTTLED] + self.replies[Reply.UNAVAILABLE],
            "violations": self.violations,
            "replies": {str(reply): self.replies[reply] for reply in Reply if self.replies[reply]},
        }

    def _count(self, reply: Reply, webhook_id: str, payload: Any, *, violation: bool) -> None:
        self.replies[reply] += 1
        self.violations += violation
        match reply:
            case Reply.OK | Reply.DRIP | Reply.LOST_REPLY:
                self.duplicates += webhook_id in self.accepted
                self.accepted.setdefault(webhook_id, payload)
            case Reply.REFUSED:
                self.refused.add(webhook_id)
        if reply in _BAD:
            self.bad_by_id[webhook_id] += 1


class Receiver:
    """`async with Receiver(...) as receiver:` serves on loopback; `receiver.url` takes webhooks.

    `secrets` are those that it accepts, as in `WEBHOOK_SECRET`; without any it believes everybody.
    """

    def __init__(
        self, mood: Mood | None = None, *, secrets: str = "", ledger: Path | None = None, port: int = 0
    ) -> None:
        self.mood = mood or Mood()
        self.ledger = Ledger(ledger)
        self.port = port
        self._keys = [base64.b64decode(secret.removeprefix("whsec_")) for secret in secrets.split()]
        self._random = random.Random(self.mood.seed)
        self._pause: tuple[float, float] = (0.0, 0.0)  # when it was asked for, and until when
        self._closing = asyncio.Event()
        app = web.Application()
        app.router.add_post("/{path:.*}", self._receive)
        app.router.add_get("/ledger", self._show)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1.0, access_log=None)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    def refuses(self, body: bytes) -> bool:
        """Whether this payload is one that is refused for good."""
        return int.from_bytes(hashlib.sha256(body).digest()[:4]) < self.mood.refuse * 2**32

    async def __aenter__(self) -> Self:
        self.ledger.load()
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        await self._runner.cleanup()

    async def _show(self, _request: web.Request) -> web.Response:
        return web.json_response(self.ledger.summary())

    async def _receive(self, request: web.Request) -> web.StreamResponse:
        now = time.time()
        webhook_id = request.headers.get("webhook-id", "")
        body = await request.read()
        reply = self._choose(webhook_id, request.headers, body, now)
        asked_at, until = self._pause
        early = asked_at + self.mood.grace_s < now < until
        payload = json.loads(body) if reply in (Reply.OK, Reply.DRIP, Reply.LOST_REPLY) else None
        self.ledger.add(reply, webhook_id, payload, violation=early)
        return await self._answer(reply, request, now)

    def _choose(self, webhook_id: str, headers: Mapping[str, str], body: bytes, now: float) -> Reply:
        if self._keys and not is_genuine(self._keys, headers, body, now=now):
            return Reply.FORGED
        if now < self._pause[1]:
            return Reply.THROTTLED
        if self.refuses(body):
            return Reply.REFUSED
        unlucky = self._random.random() < self.mood.bad
        if not unlucky or self.ledger.bad_by_id[webhook_id] >= _PATIENCE:
            return Reply.OK
        return self._random.choices(list(_BAD), weights=list(_BAD.values()))[0]

    async def _answer(self, reply: Reply, request: web.Request, now: float) -> web.StreamResponse:
        match reply:
            case Reply.THROTTLED | Reply.UNAVAILABLE:
                return web.Response(status=int(reply), headers={"Retry-After": self._ask_for_pause(now)})
            case Reply.HANG:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self.mood.hang_s):
                        await self._closing.wait()
                return web.Response(status=504)
            case Reply.RESET | Reply.LOST_REPLY:
                _reset(request)
                return web.Response()
            case Reply.DRIP:
                return await self._drip(request)
            case _:
                return web.json_response({"reply": reply}, status=int(reply))

    def _ask_for_pause(self, now: float) -> str:
        """The value of a `Retry-After`. A pause that is under way is repeated, not prolonged."""
        if self._pause[1] <= now:
            if self._random.random() < 0.5 and self.mood.pause_s:
                until = float(math.ceil(now) + self.mood.pause_s)  # a date has whole seconds
                self._pause = (now, until)
                return formatdate(until, usegmt=True)
            self._pause = (now, now + self.mood.pause_s)
        return str(math.ceil(self._pause[1] - now))

    async def _drip(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        with suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(self.mood.hang_s):
                while not self._closing.is_set():
                    await response.write(b".")
                    await asyncio.sleep(0.1)
        return response


def is_genuine(keys: list[bytes], headers: Mapping[str, str], body: bytes, *, now: float) -> bool:
    """Whether one of the signatures is of one of `keys`, and young enough that nobody replays it."""
    webhook_id, timestamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not timestamp.isdigit() or abs(now - int(timestamp)) > _TOLERANCE_S:
        return False
    content = f"{webhook_id}.{timestamp}.".encode() + body
    wanted = [b"v1," + base64.b64encode(hmac.digest(key, content, "sha256")) for key in keys]
    given = headers.get("webhook-signature", "").encode().split()
    return any(hmac.compare_digest(one, other) for one in wanted for other in given)


def _reset(request: web.Request) -> None:
    """Cut the connection the hard way: with SO_LINGER of 0 s closing sends a TCP reset."""
    if request.transport is not None:
        connection = request.transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.transport.abort()


async def _serve(options: argparse.Namespace) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    mood = Mood(bad=options.bad, refuse=options.refuse, seed=options.seed, pause_s=options.pause)
    async with Receiver(mood, secrets=options.secret, ledger=options.ledger, port=options.port) as receiver:
        print(json.dumps({"url": receiver.url, "ledger": f"http://127.0.0.1:{receiver.port}/ledger"}), flush=True)
        with suppress(TimeoutError):
            async with asyncio.timeout(options.stop_after):
                await stop.wait()
        print(json.dumps(receiver.ledger.summary()), flush=True)


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.receiver", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--port", type=int, default=0, help="0 takes any free one")
    parser.add_argument("--bad", type=float, default=0.3, help="share of requests that get a bad answer")
    parser.add_argument("--refuse", type=float, default=0.0, help="share of payloads that get a 422, always")
    parser.add_argument("--seed", type=int, default=0, help="the same seed, the same sequence of answers")
    parser.add_argument("--pause", type=int, default=1, metavar="S", help="seconds that a Retry-After asks for")
    parser.add_argument("--secret", default="", help="WEBHOOK_SECRET of the sender; none: signatures are not checked")
    parser.add_argument("--ledger", type=Path, help="file for one JSON line a request")
    parser.add_argument("--stop-after", type=float, metavar="S", help="end by itself after S seconds")
    asyncio.run(_serve(parser.parse_args(arguments)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
