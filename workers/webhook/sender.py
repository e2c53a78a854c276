"""One signed POST over a session that outlives it: redirects by hand, every wait bounded, errors without secrets.

A URL may hold secrets in its user part, its path and its query: errors name its origin only. aiohttp's own errors
can quote the whole URL, so they are translated here and not chained.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

import aiohttp
from yarl import URL

from taskflow import GiveUp, retry_after_s
from workers.webhook.public_address import AddressRefused, guarded_socket, is_public
from workers.webhook.signature import signature_headers

if TYPE_CHECKING:
    from workers.webhook.settings import WebhookSettings

_MAX_REDIRECTS = 5
# As much of the answer as is read: room for a short body, after which the connection can be used again.
_MAX_BODY_BYTES, _BODY_S = 4096, 1.0
_EXCERPT_CHARS = 200


class DeliveryFailed(ConnectionError):
    """The receiver could not be reached, or had trouble of its own: worth another attempt."""


class Answer(NamedTuple):
    """What came back, and from which origin. `retry_after_s` is None where the receiver did not ask for a pause."""

    origin: str
    status: int
    retry_after_s: float | None = None
    excerpt: str = ""


def parse_url(url: str) -> URL:
    """`url`, if it can be delivered to. Raises `ValueError`, which does not quote it."""
    try:
        target = URL(url)
        host = target.host
    except ValueError:
        raise ValueError("the url cannot be parsed") from None
    if target.scheme not in ("http", "https") or not host:
        raise ValueError("the url must start with http:// or https:// and a host")
    return target


class Sender:
    """The session and the settings of a worker's life."""

    def __init__(self, settings: WebhookSettings, session: aiohttp.ClientSession) -> None:
        self._settings = settings
        self._session = session

    @property
    def is_closed(self) -> bool:
        """The worker that it belonged to has ended."""
        return self._session.closed

    async def post(self, url: URL, body: bytes, *, webhook_id: str, event: str, headers: Mapping[str, str]) -> Answer:
        """The final answer to the JSON `body`, signed, POSTed to `url`.

        Raises `DeliveryFailed` and `TimeoutError` where another attempt may help, `GiveUp` where none will.
        """
        own = {
            "Content-Type": "application/json",
            **({"webhook-event": event} if event else {}),
            **signature_headers(self._settings.keys, webhook_id=webhook_id, timestamp=int(time.time()), body=body),
        }
        deadline = asyncio.get_running_loop().time() + self._settings.timeout_s
        for _ in range(1 + _MAX_REDIRECTS):
            response = await self._send(url, body, {**headers, **own}, deadline)
            async with response:
                if response.status not in (307, 308):  # the redirects that keep method and body
                    return await _read(url, response)
                target = _redirected(url, response.headers.get("Location", ""))
            if target.origin() != url.origin():
                headers = {}  # they were meant for the first receiver, and may hold its credentials
            url = target
        raise GiveUp(f"{_origin(url)}: more than {_MAX_REDIRECTS} redirects")

    async def _send(self, url: URL, body: bytes, headers: Mapping[str, str], deadline: float) -> aiohttp.ClientResponse:
        """The response, as soon as its headers are here."""
        origin, settings = _origin(url), self._settings
        try:
            async with asyncio.timeout_at(deadline):
                return await self._session.post(url, data=body, headers=headers, allow_redirects=False)
        except aiohttp.ConnectionTimeoutError:
            raise TimeoutError(f"{origin}: no connection within {settings.connect_timeout_s:g} s") from None
        except TimeoutError:
            raise TimeoutError(f"{origin}: no answer within {settings.timeout_s:g} s") from None
        except (aiohttp.InvalidURL, UnicodeError):
            raise GiveUp(f"{origin}: no such host can exist") from None
        except (aiohttp.ClientError, OSError) as error:
            cause = getattr(error, "os_error", error)
            if isinstance(cause, AddressRefused):
                raise GiveUp(f"{origin}: {cause}; WEBHOOK_ALLOW_PRIVATE=1 permits it") from None
            raise DeliveryFailed(f"{origin}: {_reason(cause)}") from None


@asynccontextmanager
async def open_sender(
    settings: WebhookSettings, *, is_permitted: Callable[[str], bool] = is_public
) -> AsyncIterator[Sender]:
    """A sender; its session is closed at the end. Without cookies, proxies and decompression: none is needed here.

    Unless the settings allow private addresses, it connects to addresses that are permitted, and to no other.
    """
    connector = aiohttp.TCPConnector(
        limit=0,  # the gate and the worker's concurrency bound the connections; a second line would only be a wait
        socket_factory=None if settings.allow_private else guarded_socket(is_permitted),
    )
    async with aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=settings.connect_timeout_s),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
        headers={"Accept-Encoding": "identity", "User-Agent": "taskflow-webhooks"},
    ) as session:
        yield Sender(settings, session)


def _redirected(url: URL, location: str) -> URL:
    try:
        target = parse_url(str(url.join(URL(location))))
    except ValueError:
        raise GiveUp(f"{_origin(url)} redirects to what is no http or https url") from None
    if url.scheme == "https" and target.scheme == "http":
        raise GiveUp(f"{_origin(url)} redirects from https to http, which would show the payload to the network")
    return target


async def _read(url: URL, response: aiohttp.ClientResponse) -> Answer:
    headers = response.headers
    pause_s = retry_after_s(headers.get("Retry-After"), now=time.time(), date=headers.get("Date"))
    return Answer(_origin(url), response.status, pause_s, _excerpt(await _start_of(response)))


async def _start_of(response: aiohttp.ClientResponse) -> bytes:
    """The first bytes of the body. The status is known: a body that drips, breaks or never ends changes nothing."""
    data = b""
    with contextlib.suppress(TimeoutError, aiohttp.ClientError, OSError):
        async with asyncio.timeout(_BODY_S):
            while len(data) < _MAX_BODY_BYTES and (chunk := await response.content.read(_MAX_BODY_BYTES - len(data))):
                data += chunk
    return data


def _excerpt(body: bytes) -> str:
    """One printable line of `body`."""
    text = " ".join(body.decode(errors="replace").split())
    return "".join(char for char in text if char.isprintable())[:_EXCERPT_CHARS]


def _origin(url: URL) -> str:
    return str(url.origin())


def _reason(error: BaseException) -> str:
    """What went wrong, in words that hold no URL."""
    if isinstance(error, OSError) and error.strerror and not isinstance(error, aiohttp.ClientError):
        return error.strerror
    return type(error).__name__
