"""`deliver`, called plainly, against servers on loopback: what is sent, what each answer means, what is refused."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import socket
import time
import traceback
from email.utils import formatdate
from typing import Any

import pytest
from aiohttp import web
from yarl import URL

from taskflow import GiveUp, PayloadError, Snooze
from taskflow.errors import ConfigError
from workers.http import _lane, deliver
from workers.webhook.sender import DeliveryFailed, _redirected, open_sender
from workers.webhook.settings import WebhookSettings

pytestmark = pytest.mark.anyio

KEY = b"a key that only the tests know.."
SECRET = "whsec_" + base64.b64encode(KEY).decode()
ELSEWHERE = "127.0.0.2"  # all of 127.0.0.0/8 is loopback on Linux: a second host for free


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker's environment that may speak to loopback."""
    monkeypatch.setenv("WEBHOOK_SECRET", SECRET)
    monkeypatch.setenv("WEBHOOK_ALLOW_PRIVATE", "1")


class Inbox:
    """Keeps every request, and answers as told."""

    def __init__(self, status: int = 200, body: str = "", headers: dict[str, str] | None = None) -> None:
        self.requests: list[web.Request] = []
        self.bodies: list[bytes] = []
        self.answer = {"status": status, "text": body, "headers": headers}

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        self.bodies.append(await request.read())
        return web.Response(**self.answer)


# --- what is sent ------------------------------------------------------------------------------------------------


async def test_payload_is_posted_as_json_with_a_signature_that_verifies(serve):
    inbox = Inbox()
    payload = {"type": "user.created", "data": {"name": "Ada ✓", "tags": [1, None, "x"]}}

    async with serve(inbox) as url:
        result = await deliver(url, payload)

    (request,), (body,) = inbox.requests, inbox.bodies
    assert request.method == "POST"
    assert request.content_type == "application/json"
    assert json.loads(body) == payload
    webhook_id, timestamp = request.headers["webhook-id"], request.headers["webhook-timestamp"]
    content = webhook_id.encode() + b"." + timestamp.encode() + b"." + body
    wanted = base64.b64encode(hmac.new(KEY, content, hashlib.sha256).digest()).decode()
    assert request.headers["webhook-signature"] == f"v1,{wanted}"
    assert abs(int(timestamp) - time.time()) < 5
    assert result == {"status": 200, "webhook_id": webhook_id}


async def test_webhook_outside_a_job_has_a_fresh_id_without_a_full_stop(serve):
    inbox = Inbox()

    async with serve(inbox) as url:
        await deliver(url, 1)
        await deliver(url, 1)

    first, second = (request.headers["webhook-id"] for request in inbox.requests)
    assert first != second
    assert "." not in first  # it would make two readings of the signed content


async def test_event_and_headers_are_added(serve):
    inbox = Inbox()

    async with serve(inbox) as url:
        await deliver(url, {}, "user.created", headers={"Authorization": "Bearer t", "X-Tenant": "acme"})

    sent = inbox.requests[0].headers
    assert (sent["webhook-event"], sent["Authorization"], sent["X-Tenant"]) == ("user.created", "Bearer t", "acme")


@pytest.mark.parametrize(
    "headers",
    [
        {"Webhook-Signature": "v1,forged"},
        {"webhook-id": "1"},
        {"HOST": "example.org"},
        {"Content-Length": "1"},
        {"X-Note": "a\r\nwebhook-id: 1"},
        {"X Note": "a"},
        {"": "a"},
        {"X-Note": "\udc80"},
    ],
)
async def test_header_that_is_ours_or_breaks_http_is_given_up(serve, headers: dict[str, str]):
    inbox = Inbox()

    async with serve(inbox) as url:
        with pytest.raises(GiveUp):
            await deliver(url, {}, headers=headers)

    assert not inbox.requests


async def test_event_that_breaks_http_is_given_up(serve):
    async with serve(Inbox()) as url:
        with pytest.raises(GiveUp, match="event"):
            await deliver(url, {}, "a\r\nb")


async def test_payload_that_is_no_json_is_given_up(serve):
    async with serve(Inbox()) as url:
        with pytest.raises(GiveUp, match="JSON"):
            await deliver(url, {"rate": float("nan")})


async def test_without_a_secret_nothing_is_sent(serve, monkeypatch: pytest.MonkeyPatch):
    inbox = Inbox()
    monkeypatch.delenv("WEBHOOK_SECRET")

    async with serve(inbox) as url:
        with pytest.raises(ConfigError, match="WEBHOOK_SECRET is not set"):
            await deliver(url, {})

    assert not inbox.requests


# --- what the answer means -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
async def test_any_2xx_is_a_delivery(serve, status: int):
    async with serve(Inbox(status)) as url:
        assert (await deliver(url, {}))["status"] == status


@pytest.mark.parametrize("status", [408, 425, 500, 502, 503, 504, 507, 599])
async def test_trouble_of_the_receiver_is_tried_again(serve, status: int):
    async with serve(Inbox(status, "out of order")) as url:
        with pytest.raises(DeliveryFailed, match=f"answered {status}: out of order"):
            await deliver(url, {})


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 410, 413, 415, 422, 451])
async def test_refusal_goes_to_the_dead_letters_with_status_and_excerpt(serve, status: int):
    async with serve(Inbox(status, '{"error": "unknown field"}')) as url:
        with pytest.raises(GiveUp, match=f'answered {status}: {{"error": "unknown field"}}'):
            await deliver(url, {})


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304])
async def test_redirect_that_would_lose_the_body_is_given_up(serve, status: int):
    inbox = Inbox(status, headers={"Location": "/other"})

    async with serve(inbox) as url:
        with pytest.raises(GiveUp, match=f"answered {status}.*307 and 308"):
            await deliver(url, {})

    assert len(inbox.requests) == 1


@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_in_seconds_makes_the_whole_host_wait(serve, status: int):
    async with serve(Inbox(status, headers={"Retry-After": "17"})) as url:
        with pytest.raises(Snooze) as caught:
            await deliver(url, {})

    assert (caught.value.seconds, caught.value.hold, caught.value.reason) == (17.0, "http", f"http_{status}")


@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_as_a_date_makes_the_whole_host_wait(serve, status: int):
    now = 1_700_000_000
    headers = {"Retry-After": formatdate(now + 17, usegmt=True), "Date": formatdate(now, usegmt=True)}

    async with serve(Inbox(status, headers=headers)) as url:
        with pytest.raises(Snooze) as caught:
            await deliver(url, {})

    assert (caught.value.seconds, caught.value.hold) == (17.0, "http")


async def test_retry_after_is_clamped_to_an_hour(serve):
    async with serve(Inbox(429, headers={"Retry-After": "999999999"})) as url:
        with pytest.raises(Snooze) as caught:
            await deliver(url, {})

    assert caught.value.seconds == 3600


@pytest.mark.parametrize("headers", [{}, {"Retry-After": "0"}, {"Retry-After": "later"}])
async def test_429_that_does_not_say_how_long_waits_five_seconds(serve, headers: dict[str, str]):
    async with serve(Inbox(429, headers=headers)) as url:
        with pytest.raises(Snooze) as caught:
            await deliver(url, {})

    assert (caught.value.seconds, caught.value.hold) == (5.0, "http")


@pytest.mark.parametrize("headers", [{"Retry-After": "0"}, {"Retry-After": "later"}])
async def test_503_that_does_not_say_how_long_is_an_ordinary_retry(serve, headers: dict[str, str]):
    async with serve(Inbox(503, headers=headers)) as url:
        with pytest.raises(DeliveryFailed):
            await deliver(url, {})


async def test_refused_connection_is_tried_again():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]

    with pytest.raises(DeliveryFailed, match=f"^http://127.0.0.1:{port}: Connect call failed"):
        await deliver(f"http://127.0.0.1:{port}/hook", {})


async def test_broken_connection_is_tried_again(serve):
    async def cut(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async with serve(cut) as url:
        with pytest.raises(DeliveryFailed):
            await deliver(url, {})


async def test_silence_ends_with_the_total_timeout(serve, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WEBHOOK_TIMEOUT_S", "0.2")

    async with serve(_silence) as url:
        with pytest.raises(TimeoutError, match=r"no answer within 0\.2 s"):
            await deliver(url, {})


async def test_total_timeout_spans_redirects(serve, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WEBHOOK_TIMEOUT_S", "0.3")

    async def slow_circle(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.1)
        return web.Response(status=307, headers={"Location": "/hook"})

    async with serve(slow_circle) as url:
        with pytest.raises(TimeoutError):
            await deliver(url, {})


async def test_connection_that_does_not_come_about_has_a_timeout_of_its_own(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WEBHOOK_CONNECT_TIMEOUT_S", "0.2")

    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)  # nobody accepts: once its backlog is full, the system leaves further callers without an answer
        for caller in (first, second):
            caller.setblocking(False)
            caller.connect_ex(full.getsockname())
        with pytest.raises(TimeoutError, match=r"no connection within 0\.2 s"):
            await deliver(f"http://127.0.0.1:{full.getsockname()[1]}/hook", {})


@pytest.mark.parametrize(("status", "error"), [(200, None), (422, GiveUp), (500, DeliveryFailed)])
async def test_body_that_drips_for_ever_does_not_hold_up_what_the_status_says(
    serve, status: int, error: type[Exception] | None
):
    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=status)
        await response.prepare(request)
        await response.write(b"drop ")
        return await _silence(request)

    async with serve(drip) as url:
        async with asyncio.timeout(5):
            if error is None:
                assert (await deliver(url, {}))["status"] == status
            else:
                with pytest.raises(error, match="drop"):
                    await deliver(url, {})


async def test_excerpt_is_short_and_printable(serve):
    body = "\x1b[31mno\x00\n\n  such\tthing \u202e" + "z" * 1_000_000

    async with serve(Inbox(400, body)) as url:
        with pytest.raises(GiveUp) as caught:
            await deliver(url, {})

    excerpt = str(caught.value).partition(": ")[2]
    assert excerpt.startswith("[31mno such thing ")
    assert excerpt.isprintable()
    assert len(excerpt) <= 200


async def _silence(request: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError("unreachable")


# --- redirects -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [307, 308])
async def test_redirect_that_keeps_method_and_body_is_followed(serve, status: int):
    inbox = Inbox()

    async with serve(inbox) as last, serve(Inbox(status, headers={"Location": last})) as url:
        await deliver(url, {"n": 1}, "e")

    assert inbox.requests[0].method == "POST"
    assert json.loads(inbox.bodies[0]) == {"n": 1}
    assert inbox.requests[0].headers["webhook-event"] == "e"
    assert inbox.requests[0].headers["webhook-signature"].startswith("v1,")


async def test_another_origin_does_not_get_the_headers_of_the_first(serve):
    inbox, first = Inbox(), Inbox(308)

    async with serve(inbox) as last, serve(first) as url:
        first.answer["headers"] = {"Location": last}
        await deliver(url, {}, headers={"Authorization": "Bearer t"})

    assert first.requests[0].headers["Authorization"] == "Bearer t"
    assert "Authorization" not in inbox.requests[0].headers


async def test_relative_redirect_keeps_the_headers(serve):
    seen: list[tuple[str, str | None]] = []

    async def redirect(request: web.Request) -> web.StreamResponse:
        seen.append((request.path, request.headers.get("Authorization")))
        return web.Response(status=307, headers={"Location": "/new"}) if request.path == "/hook" else web.Response()

    async with serve(redirect) as url:
        await deliver(url, {}, headers={"Authorization": "Bearer t"})

    assert seen == [("/hook", "Bearer t"), ("/new", "Bearer t")]


async def test_circle_of_redirects_is_given_up_after_five(serve):
    inbox = Inbox(307, headers={"Location": "/hook"})

    async with serve(inbox) as url:
        with pytest.raises(GiveUp, match="more than 5 redirects"):
            await deliver(url, {})

    assert len(inbox.requests) == 6


@pytest.mark.parametrize("location", ["", "ftp://example.org/", "file:///etc/passwd", "http://", "http://[", "//:80"])
async def test_redirect_to_nowhere_is_given_up(serve, location: str):
    async with serve(Inbox(307, headers={"Location": location})) as url:
        with pytest.raises(GiveUp):
            await deliver(url, {})


def test_redirect_away_from_tls_is_given_up():
    with pytest.raises(GiveUp, match="from https to http"):
        _redirected(URL("https://example.org/a?token=t"), "http://example.org/a")


# --- addresses that are refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "LOCALHOST.",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "0.0.0.0",
        "127.1",
        "2130706433",
        "0x7f.0.0.1",
        "0177.0.0.1",
        "127.0.0.1.",
        "user:password@127.0.0.1",
        "127.0.0.1%2f",
        "①②⑦.0.0.1",
    ],
)
async def test_no_spelling_of_loopback_is_reached(serve, monkeypatch: pytest.MonkeyPatch, host: str):
    monkeypatch.delenv("WEBHOOK_ALLOW_PRIVATE")
    inbox = Inbox()

    async with serve(inbox) as url:
        with pytest.raises((GiveUp, DeliveryFailed)):  # a spelling that the system does not know is no such host
            await deliver(f"http://{host}:{URL(url).port}/hook", {})

    assert not inbox.requests


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "100.64.0.1", "[::1]", "[fe80::1]", "[::ffff:10.0.0.1]"]
)
async def test_refused_address_is_dead_at_once_and_says_why(monkeypatch: pytest.MonkeyPatch, address: str):
    monkeypatch.delenv("WEBHOOK_ALLOW_PRIVATE")

    with pytest.raises(GiveUp, match="private, local or reserved; WEBHOOK_ALLOW_PRIVATE=1 permits it"):
        await deliver(f"http://{address}/hook", {})


async def test_name_that_points_inside_is_dead_at_once(serve, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WEBHOOK_ALLOW_PRIVATE")
    inbox = Inbox()
    _resolve(monkeypatch, [["127.0.0.1", "10.0.0.1", "::1"]])

    async with serve(inbox) as url:
        with pytest.raises(GiveUp, match="private, local or reserved"):
            await deliver(f"http://inside.example.org:{URL(url).port}/hook", {})

    assert not inbox.requests


async def test_redirect_to_a_refused_address_is_not_followed(serve):
    inside = Inbox()

    async with serve(inside) as target, serve(Inbox(307, headers={"Location": target}), ELSEWHERE) as url:
        with pytest.raises(GiveUp, match="private, local or reserved"):
            await _post_guarded(url)

    assert not inside.requests


async def test_name_that_points_elsewhere_the_second_time_is_refused(serve, monkeypatch: pytest.MonkeyPatch):
    outside = Inbox()
    _resolve(monkeypatch, [[ELSEWHERE], ["127.0.0.1"]])

    async with serve(outside, ELSEWHERE) as url:
        port = URL(url).port
        await _post_guarded(f"http://rebind.example.org:{port}/hook")
        with pytest.raises(GiveUp, match="private, local or reserved"):
            await _post_guarded(f"http://rebind.example.org:{port}/hook")

    assert len(outside.requests) == 1


async def test_of_mixed_addresses_only_the_permitted_ones_are_reached(serve, monkeypatch: pytest.MonkeyPatch):
    outside = Inbox()
    _resolve(monkeypatch, [["127.0.0.1", ELSEWHERE]])

    async with serve(outside, ELSEWHERE) as url:
        await _post_guarded(f"http://mixed.example.org:{URL(url).port}/hook")

    assert len(outside.requests) == 1


def _resolve(monkeypatch: pytest.MonkeyPatch, answers: list[list[str]]) -> None:
    """Let name lookups give `answers`, one after the other."""
    rest = iter(answers)

    def getaddrinfo(host: Any, port: Any, *args: Any, **kwargs: Any) -> list[Any]:
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, port, 0, 0))
            if ":" in address
            else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in next(rest)
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


async def test_receiver_cannot_set_cookies(serve, monkeypatch: pytest.MonkeyPatch):
    inbox = Inbox(headers={"Set-Cookie": "seen=before; Path=/"})
    _resolve(monkeypatch, [["127.0.0.1"]])

    async with serve(inbox) as url, open_sender(WebhookSettings(keys=(KEY,), allow_private=True)) as sender:
        for webhook_id in ("1", "2"):
            target = URL(url).with_host("cookies.example.org")
            await sender.post(target, b"{}", webhook_id=webhook_id, event="", headers={})

    assert ["Cookie" in request.headers for request in inbox.requests] == [False, False]


async def _post_guarded(url: str) -> None:
    """One POST by a sender for which 127.0.0.2 is the internet, and everything else is inside."""
    settings = WebhookSettings(keys=(KEY,))
    async with open_sender(settings, is_permitted=lambda address: address == ELSEWHERE) as sender:
        await sender.post(URL(url), b"{}", webhook_id="1", event="", headers={})


# --- urls and secrets ----------------------------------------------------------------------------------------------

BAD_URLS = [
    "",
    "example.org",
    "/hook",
    "ftp://example.org/",
    "file:///etc/passwd",
    "http://",
    "http://[::1",
    "http://h:x/",
]


@pytest.mark.parametrize("url", BAD_URLS)
async def test_url_that_cannot_be_delivered_to_is_given_up(url: str):
    with pytest.raises(GiveUp, match="the url"):
        await deliver(url, {})


@pytest.mark.parametrize("url", BAD_URLS)
def test_url_that_cannot_be_delivered_to_is_refused_at_submit(url: str):
    with pytest.raises(PayloadError, match="the url"):
        _lane(url=url, payload={})


@pytest.mark.parametrize(
    ("url", "lane"),
    [
        ("https://API.Example.org:8443/a?b#c", "api.example.org"),
        ("http://user:password@example.org./", "example.org"),
        ("http://[::1]:80/", "::1"),
        ("http://bücher.example/", "xn--bcher-kva.example"),
        ("http://" + "a." * 120 + "example/", ("a." * 120 + "example")[-200:]),
    ],
)
def test_lane_is_the_host(url: str, lane: str):
    assert _lane(url=url, payload={}, event="e") == lane


async def test_credentials_in_the_url_are_used(serve):
    inbox = Inbox()

    async with serve(inbox) as url:
        await deliver(url.replace("http://", "http://ada:s3cret@"), {})

    assert inbox.requests[0].headers["Authorization"] == "Basic " + base64.b64encode(b"ada:s3cret").decode()


@pytest.mark.parametrize(
    "trouble",
    ["refused", "cut", "silence", "500", "404", "301", "circle", "inside", "elsewhere", "no such host"],
)
async def test_no_error_shows_a_secret(serve, monkeypatch: pytest.MonkeyPatch, trouble: str):
    monkeypatch.setenv("WEBHOOK_TIMEOUT_S", "0.3")
    secrets = ["ada", "pa55word", "path-t0ken", "query-t0ken", SECRET, SECRET[6:], "payl0ad", "bearer-t0ken"]

    async def answer(request: web.Request) -> web.StreamResponse:
        match trouble:
            case "cut":
                assert request.transport is not None
                request.transport.abort()
            case "silence":
                await asyncio.Event().wait()
            case "circle":
                return web.Response(status=307, headers={"Location": str(request.rel_url)})
            case "elsewhere":
                return web.Response(status=307, headers={"Location": "ftp://ada:pa55word@h/path-t0ken"})
        return web.Response(status=int(trouble) if trouble.isdigit() else 500)

    async with serve(answer) as url:
        port = URL(url).port
        host = "127.0.0.1"
        if trouble == "refused":
            with socket.create_server(("127.0.0.1", 0)) as closed:
                port = closed.getsockname()[1]
        if trouble == "inside":
            monkeypatch.delenv("WEBHOOK_ALLOW_PRIVATE")
        if trouble == "no such host":
            host = "127.1"
        with pytest.raises((GiveUp, OSError)) as caught:
            await deliver(
                f"http://ada:pa55word@{host}:{port}/path-t0ken?key=query-t0ken",
                {"secret": "payl0ad"},
                headers={"X-Token": "bearer-t0ken"},
            )

    text = "".join(traceback.format_exception(caught.value))
    assert str(caught.value).startswith(f"http://{host}:{port}")
    assert [secret for secret in secrets if secret in text] == []
