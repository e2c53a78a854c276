"""Metrics and health over HTTP: real requests, on a free port of this machine."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from taskflow.core import events
from taskflow.errors import ConfigError
from taskflow.http.server import HealthServer
from taskflow.telemetry import logs
from taskflow.telemetry.bus import Bus
from taskflow.telemetry.health import Health
from taskflow.telemetry.metrics import Metrics
from taskflow.testing import VirtualClock
from tests.telemetry.made import Log

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

pytestmark = pytest.mark.anyio
STARTED = events.WorkerStarted("w1", ("mail",), 100, ("send",))


class Site:
    """A server under test, and a client that talks to it."""

    def __init__(self, client: aiohttp.ClientSession, metrics: Metrics, health: Health, bus: Bus) -> None:
        self.client = client
        self.metrics = metrics
        self.health = health
        self.bus = bus

    async def get(self, path: str, *, method: str = "GET", **headers: str) -> tuple[int, Any, str]:
        """Status, headers and text."""
        sent = {name.replace("_", "-"): text for name, text in headers.items()}
        async with self.client.request(method, path, headers=sent) as answer:
            return answer.status, answer.headers, await answer.text()


@asynccontextmanager
async def serving(token: str | None = None, **made: Any) -> AsyncIterator[Site]:
    bus = Bus()
    metrics = Metrics(version="1.2.3", python="3.11", broker="memory")
    metrics.declare({"mail": 10}, {"send": "mail"})
    metrics.subscribe(bus)
    health = Health(made.get("clock") or VirtualClock())
    health.subscribe(bus)
    server = HealthServer(metrics, health, "127.0.0.1", 0, token)
    port = await server.start()
    assert port is not None
    try:
        async with aiohttp.ClientSession(
            f"http://127.0.0.1:{port}", auto_decompress=True, timeout=aiohttp.ClientTimeout(10)
        ) as client:
            yield Site(client, metrics, health, bus)
    finally:
        await server.stop()


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with serving() as site:
        yield site


@pytest.fixture
def log() -> Iterator[Log]:
    log = Log()
    undo = logs.configure("DEBUG", "json", log)
    yield log
    undo()


async def test_metrics_are_served_as_text(site: Site) -> None:
    site.bus.emit(events.JobsSubmitted("mail", "send", 3))
    status, headers, text = await site.get("/metrics")

    assert status == 200
    assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert 'taskflow_jobs_submitted_total{queue="mail",task="send"} 3.0' in text
    assert list(parse_text(text))


async def test_metrics_are_served_as_openmetrics_to_whoever_asks(site: Site) -> None:
    accept = "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.3,*/*;q=0.1"
    _, headers, text = await site.get("/metrics", Accept=accept)

    assert headers["Content-Type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    assert list(parse_openmetrics(text))


async def test_metrics_are_compressed_only_for_whoever_can_read_it(site: Site) -> None:
    _, zipped, text = await site.get("/metrics", Accept_Encoding="gzip")
    _, plain, _ = await site.get("/metrics", Accept_Encoding="identity")

    assert zipped["Content-Encoding"] == "gzip"
    assert "Content-Encoding" not in plain
    assert int(zipped["Content-Length"]) < int(plain["Content-Length"]) / 4
    assert "taskflow_build_info" in text


async def test_metrics_are_rendered_in_a_thread(site: Site) -> None:
    asked_in: list[str] = []
    site.metrics.asked.in_flight = lambda: asked_in.append(threading.current_thread().name) or 0.0  # type: ignore[func-returns-value]

    await site.get("/metrics")

    assert asked_in == ["taskflow-scrape_0"]


async def test_too_many_scrapes_at_once_are_told_to_come_back(site: Site) -> None:
    go_on, is_asked = threading.Event(), threading.Event()

    def slow() -> float:
        is_asked.set()
        go_on.wait(10)
        return 0.0

    site.metrics.asked.in_flight = slow
    scrapes = [asyncio.create_task(site.get("/metrics")) for _ in range(12)]
    refused: list[Any] = []
    while len(refused) < 4:
        await asyncio.wait(scrapes, return_when=asyncio.FIRST_COMPLETED)
        refused = [task.result() for task in scrapes if task.done()]
        await asyncio.sleep(0)
    livez, *_ = await site.get("/livez")
    go_on.set()
    answers = await asyncio.gather(*scrapes)

    assert livez == 200
    assert sorted(status for status, *_ in answers) == [200] * 8 + [503] * 4
    status, headers, text = refused[0]
    assert (status, headers["Retry-After"], json.loads(text)["code"]) == (503, "1", "unavailable")


async def test_livez_fails_while_the_loop_was_stalled(site: Site) -> None:
    clock = site.health._clock
    assert isinstance(clock, VirtualClock)
    task = asyncio.create_task(site.health.run())
    await asyncio.sleep(0)
    before = await site.get("/livez")
    clock._now += 8.0
    clock._timers.fire(clock._now)
    await asyncio.sleep(0)
    after = await site.get("/livez")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    assert (before[0], json.loads(before[2])) == (200, {"status": "live", "reasons": []})
    assert after[0] == 503
    assert json.loads(after[2]) == {
        "status": "not live",
        "reasons": ["the event loop stood still for 8.0 s, 0.0 s ago"],
    }


async def test_readyz_says_why_not(site: Site) -> None:
    seen = []
    for event in (
        None,
        STARTED,
        events.BrokerFailed("claim", "timeout", "redis://app:hunter2@db", 0.5),
        events.BrokerRecovered("claim", 1.0),
        events.WorkerDraining("w1", 0, 25.0),
    ):
        if event is not None:
            site.bus.emit(event)
        status, headers, text = await site.get("/readyz")
        assert headers["Content-Type"].startswith("application/json")
        assert headers["Cache-Control"] == "no-store"
        seen.append((status, json.loads(text)["status"], json.loads(text)["reasons"]))

    assert seen == [
        (503, "not ready", ["the worker has not started yet"]),
        (200, "ready", []),
        (503, "not ready", ["the broker does not answer (claim: timeout)"]),
        (200, "ready", []),
        (503, "not ready", ["the worker is draining: it takes no more jobs"]),
    ]


@pytest.mark.parametrize("path", ["/", "/metric", "/metrics/", "/livez/x", "/%00", "/a%0d%0ab"])
async def test_an_unknown_path_is_a_problem_document(site: Site, path: str) -> None:
    status, headers, text = await site.get(path)

    assert status == 404
    assert headers["Content-Type"].startswith("application/problem+json")
    assert json.loads(text) == {
        "type": "about:blank",
        "title": "Not Found",
        "status": 404,
        "detail": "nothing is here; there are /metrics, /livez and /readyz",
        "code": "not_found",
    }


async def test_a_wrong_method_is_a_problem_document_that_names_the_right_ones(site: Site) -> None:
    status, headers, text = await site.get("/metrics", method="POST")

    assert (status, headers["Allow"]) == (405, "GET, HEAD")
    assert json.loads(text)["code"] == "method_not_allowed"


async def test_head_works_for_probes_that_want_no_body(site: Site) -> None:
    status, _, text = await site.get("/livez", method="HEAD")

    assert (status, text) == (200, "")


async def test_metrics_need_the_token_and_probes_do_not() -> None:
    async with serving("hunter2") as site:
        right = await site.get("/metrics", Authorization="Bearer hunter2")
        lower = await site.get("/metrics", Authorization="bearer hunter2")
        wrong = [
            await site.get("/metrics", **headers)
            for headers in (
                {},
                {"Authorization": "Bearer hunter3"},
                {"Authorization": "Bearer "},
                {"Authorization": "Basic hunter2"},
                {"Authorization": "hunter2"},
                {"Authorization": "Bearer hünter2"},
            )
        ]
        probes = [(await site.get(path))[0] for path in ("/livez", "/readyz")]

    assert (right[0], lower[0]) == (200, 200)
    assert [status for status, *_ in wrong] == [401] * 6
    for _, headers, text in wrong:
        assert headers["WWW-Authenticate"] == 'Bearer realm="taskflow"'
        assert json.loads(text)["code"] == "unauthorized"
        assert "hunter" not in text
        assert "taskflow_build_info" not in text
    assert probes == [200, 503]


@pytest.mark.parametrize("host", ["0.0.0.0", "", "::", "10.0.0.1", "example.org"])
async def test_an_address_that_others_reach_needs_a_token(host: str) -> None:
    metrics, health = Metrics(version="1", python="3", broker="memory"), Health(VirtualClock())

    with pytest.raises(ConfigError, match="TASKFLOW_HTTP__TOKEN"):
        HealthServer(metrics, health, host, 0, None)
    with pytest.raises(ConfigError, match="TASKFLOW_HTTP__TOKEN"):
        HealthServer(metrics, health, host, 0, "")
    HealthServer(metrics, health, host, 0, "hunter2")


async def test_a_taken_port_is_a_line_in_the_log_and_nothing_else(log: Log) -> None:
    metrics, health = Metrics(version="1", python="3", broker="memory"), Health(VirtualClock())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = HealthServer(metrics, health, "127.0.0.1", port)

        assert await server.start() is None
        await server.stop()

    assert (log.last()["event"], log.last()["level"], log.last()["port"]) == ("http.unavailable", "WARNING", port)


async def test_what_breaks_in_a_handler_is_told_and_does_not_stop_the_server(log: Log) -> None:
    async with serving() as site:
        site.metrics.render = lambda _accept="": 1 / 0  # type: ignore[assignment,method-assign,return-value]
        status, headers, text = await site.get("/metrics")
        livez, *_ = await site.get("/livez")

    assert (status, json.loads(text)["code"]) == (500, "internal_error")
    assert headers["Content-Type"].startswith("application/problem+json")
    assert "division" not in text
    assert livez == 200
    (line,) = [line for line in log.records() if line["event"] == "http.failed"]
    assert line["error"]["type"] == "ZeroDivisionError"
    assert "Traceback" in line["error"]["stack"]


async def test_requests_leave_no_line_in_the_log(log: Log) -> None:
    async with serving() as site:
        await site.get("/metrics")
        await site.get("/nowhere")

    assert [line["event"] for line in log.records()] == ["http.started"]


async def test_stop_frees_the_port_and_may_be_called_again() -> None:
    metrics, health = Metrics(version="1", python="3", broker="memory"), Health(VirtualClock())
    server = HealthServer(metrics, health)
    await server.stop()
    port = await server.start()
    assert port is not None
    await server.stop()
    await server.stop()

    second = HealthServer(metrics, health, "127.0.0.1", port)
    assert await second.start() == port
    await second.stop()


async def test_stop_does_not_wait_for_whoever_keeps_a_connection_open() -> None:
    metrics, health = Metrics(version="1", python="3", broker="memory"), Health(VirtualClock())
    server = HealthServer(metrics, health)
    port = await server.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    began = asyncio.get_running_loop().time()

    await server.stop()

    assert asyncio.get_running_loop().time() - began < 5.0
    writer.close()
    await writer.wait_closed()
