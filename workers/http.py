"""Webhooks that arrive: `deliver(url, payload)` POSTs JSON, signed as Standard Webhooks, at least once.

    export WEBHOOK_SECRET="whsec_$(openssl rand -base64 32)"
    taskflow worker workers.http:flow
    taskflow submit workers.http:flow deliver '{"url": "https://example.org/hook", "payload": {"type": "user.created"}}'

What the receiver answers decides: 2xx is delivered; 429, and 503 with `Retry-After`, make all deliveries to that host
wait (no attempt is spent); 408, 425, other 5xx, timeouts and broken connections are tried again; any other answer
goes to the dead letters at once. A receiver deduplicates by `webhook-id`, which stays the same over all attempts.

Environment: `WEBHOOK_SECRET` (several between spaces while rotating, newest first), `WEBHOOK_RATE` ("100/m", for each
host), `WEBHOOK_CONNECT_TIMEOUT_S` (5), `WEBHOOK_TIMEOUT_S` (30), `WEBHOOK_ALLOW_PRIVATE` (1 permits private and
loopback addresses, which are refused otherwise).
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from contextvars import ContextVar
from typing import Any

from taskflow import Bulkhead, CircuitBreaker, GiveUp, PayloadError, Retry, Snooze, TaskFlow, current_job
from workers.webhook.sender import Answer, DeliveryFailed, Sender, open_sender, parse_url
from workers.webhook.settings import read_rate, read_settings

__all__ = ["deliver", "flow", "sending"]

flow = TaskFlow()

_THROTTLED_S = 5.0  # for a 429 that does not say how long
# Headers of ours and of the connection: the submitter may not replace them.
_RESERVED = frozenset(
    {"host", "connection", "content-length", "content-type", "transfer-encoding", "expect", "upgrade"}
)

_sender: ContextVar[Sender | None] = ContextVar("webhook_sender", default=None)


@flow.lifespan
async def sending() -> AsyncIterator[None]:
    """One session for the worker's life. A flow of your own that calls `deliver` says `flow.lifespan(sending)` too."""
    async with open_sender(read_settings(os.environ)) as sender:
        _sender.set(sender)
        yield


def _lane(url: str, **_others: object) -> str:
    """The host. Raises `PayloadError` for a URL that can never be delivered to, so that it is refused at submit."""
    try:
        host = (parse_url(url).raw_host or "").rstrip(".")
    except ValueError as error:
        raise PayloadError(f"deliver(): {error}") from None
    return host[-200:]  # names have up to 253 characters, lanes 200; the end tells who it is


@flow.task(
    # Seven waits of up to 0.5, 1, 2 … 32 s: about half a minute of real trouble. Longer trouble opens the breaker,
    # and then the jobs wait without spending attempts.
    retry=Retry(attempts=8, on=(OSError,), base=0.5, max_delay=60),
    # A receiver that fails now and then is worth every attempt; one that is down is left alone. The defaults would
    # open for a host that fails every third time, and then keep it waiting for minutes.
    breaker=CircuitBreaker("http", failure_rate=0.8, min_calls=20, consecutive=10, per_lane=True),
    bulkhead=Bulkhead("http", 10, per_lane=True),
    rate=read_rate(os.environ),
    lane=_lane,
)
async def deliver(
    url: str, payload: Any, event: str = "", headers: dict[str, str] | None = None
) -> dict[str, int | str]:
    """POST `payload` as JSON to `url`. `event` goes into the header `webhook-event`, `headers` are added.

    Returns the status and the webhook id. Called plainly it does the same once, without queue and policies.
    """
    try:
        target = parse_url(url)
        body = json.dumps(payload, separators=(",", ":"), allow_nan=False).encode()
        _check_headers(event, headers or {})
    except ValueError as error:
        raise GiveUp(str(error)) from None
    webhook_id = _webhook_id(url, event, body)
    async with AsyncExitStack() as stack:
        sender = _sender.get()
        if sender is None or sender.is_closed:
            sender = await stack.enter_async_context(open_sender(read_settings(os.environ)))
        answer = await sender.post(target, body, webhook_id=webhook_id, event=event, headers=headers or {})
    problem = _problem(answer)
    if problem is not None:
        raise problem
    return {"status": answer.status, "webhook_id": webhook_id}


def _problem(answer: Answer) -> Exception | None:
    """What to raise for `answer`; None if it is a delivery. A pause of 0 s is no request to wait."""
    what = f"{answer.origin} answered {answer.status}" + (f": {answer.excerpt}" if answer.excerpt else "")
    throttled = f"http_{answer.status}"  # a word, not the message: reasons of snoozes are a metric's label
    match answer.status:
        case status if 200 <= status < 300:
            return None
        case 429:
            return Snooze(answer.retry_after_s or _THROTTLED_S, throttled, hold="http")
        case 503 if answer.retry_after_s:
            return Snooze(answer.retry_after_s, throttled, hold="http")
        case status if status in (408, 425) or status >= 500:
            return DeliveryFailed(what)
        case status if 300 <= status < 400:
            return GiveUp(f"{what} (of redirects only 307 and 308 are followed: submit the url that they lead to)")
        case _:
            return GiveUp(what)


def _webhook_id(url: str, event: str, body: bytes) -> str:
    """The job's id: the same over all its attempts. Outside a job it is fresh.

    In a job of another task, which may send several webhooks, a digest of the message tells them apart.
    """
    try:
        job = current_job()
    except LookupError:
        return uuid.uuid4().hex
    if job.task == "deliver":
        return job.id
    message = hashlib.sha256(f"{url}\0{event}\0".encode() + body)
    return f"{job.id}-{message.hexdigest()[:16]}"


def _check_headers(event: str, headers: Mapping[str, str]) -> None:
    """Raise `ValueError` for a header that is ours to set, or that HTTP cannot carry."""
    if not event.isprintable():
        raise ValueError("the event has a control character")
    for name, value in headers.items():
        if name.lower() in _RESERVED or name.lower().startswith("webhook-"):
            raise ValueError(f"the header {name.lower()!r} cannot be set")
        if not (name.isascii() and name.replace("-", "").replace("_", "").isalnum()):
            raise ValueError("the name of a header has letters, digits, '-' and '_' only")
        if not value.isprintable():
            raise ValueError(f"the header {name.lower()!r} has a control character")
