"""`deliver` as a job: ids, pauses of a whole host, dead letters, one session. Virtual time, real sockets."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web
from yarl import URL

from taskflow import ConfigError, JobFailed, JobState, PayloadError, Retry, TaskFlow
from workers.http import deliver, flow, sending

pytestmark = pytest.mark.anyio

OTHER_HOST = "127.0.0.2"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEBHOOK_SECRET", SECRET)
    monkeypatch.setenv("WEBHOOK_ALLOW_PRIVATE", "1")


class Script:
    """Answers each path with its own list of statuses, the last one for ever; keeps what it saw."""

    def __init__(self, **answers: list[int]) -> None:
        self.answers = answers
        self.ids: dict[str, list[str]] = defaultdict(list)
        self.connections: set[Any] = set()

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        path = request.path.strip("/")
        self.ids[path].append(request.headers["webhook-id"])
        assert request.transport is not None
        self.connections.add(request.transport.get_extra_info("peername"))
        statuses = self.answers.get(path, [200])
        status = statuses.pop(0) if len(statuses) > 1 else statuses[0]
        return web.Response(status=status, headers={"Retry-After": "30"} if status in (429, 503) else {})


async def until(t: Any, what: Callable[[], bool], *, step_s: float = 0.01) -> None:
    """Let virtual time pass in small steps until `what()`; the sockets are real, and take their own time."""
    async with asyncio.timeout(20):
        while not what():
            await t.advance(step_s)
            await asyncio.sleep(0.001)


async def test_webhook_id_is_the_jobs_id_over_all_attempts(serve):
    script = Script(hook=[500, 408, 200])

    async with serve(script) as url, flow.test() as t:
        job = await deliver.submit(url, {"n": 1})
        await until(t, lambda: len(script.ids["hook"]) == 3, step_s=1)
        await t.run_until_idle()
        result = await job.result(timeout=1)

    assert script.ids["hook"] == [job.id] * 3
    assert result == {"status": 200, "webhook_id": job.id}


@pytest.mark.parametrize("status", [429, 503])
async def test_pause_that_one_delivery_was_asked_for_holds_the_whole_host(serve, status: int):
    script, other = Script(first=[status, 200], second=[200]), Script()

    async with serve(script) as url, serve(other, OTHER_HOST) as other_url, flow.test() as t:
        first = await deliver.submit(str(URL(url).with_path("/first")), {})
        await until(t, lambda: bool(script.ids["first"]))
        await until(t, lambda: t.running.worker.is_idle)
        asked_at = t.clock.now()
        second = await deliver.submit(str(URL(url).with_path("/second")), {})

        while t.clock.now() < asked_at + 28:
            seen = len(other.ids["hook"])
            await deliver.submit(other_url, {})
            await until(t, lambda seen=seen: len(other.ids["hook"]) > seen)  # the other host goes on
            await t.advance(1)

        assert (len(script.ids["first"]), len(script.ids["second"])) == (1, 0)
        await until(t, lambda: bool(script.ids["second"]) and len(script.ids["first"]) == 2, step_s=1)
        await t.run_until_idle()
        assert [await first.status(), await second.status()] == [JobState.SUCCEEDED, JobState.SUCCEEDED]


async def test_pause_spends_no_attempt(serve):
    script = Script(hook=[429] * 12 + [200])

    async with serve(script) as url, flow.test() as t:
        job = await deliver.submit(url, {})
        await until(t, lambda: len(script.ids["hook"]) == 13, step_s=5)
        await t.run_until_idle()

        assert await job.status() is JobState.SUCCEEDED


async def test_refused_payload_is_dead_at_once_with_status(serve):
    script = Script(hook=[422])

    async with serve(script) as url, flow.test() as t:
        job = await deliver.submit(url, {})
        await t.run_until_idle()

        with pytest.raises(JobFailed, match=r"dead after attempt 1: GiveUp: http://127.0.0.1:\d+ answered 422"):
            await job.result(timeout=1)


async def test_delivery_that_never_succeeds_is_dead_after_eight_attempts(serve):
    script = Script(hook=[500])

    async with serve(script) as url, flow.test() as t:
        job = await deliver.submit(url, {})
        ok = str(URL(url).with_path("/ok"))
        while len(script.ids["hook"]) < 8:
            seen = len(script.ids["hook"])
            for _ in range(2):  # enough good deliveries that the breaker stays closed
                await deliver.submit(ok, {})
            await until(t, lambda seen=seen: len(script.ids["hook"]) > seen, step_s=1)
        await t.run_until_idle()

        with pytest.raises(JobFailed, match="dead after attempt 8: DeliveryFailed"):
            await job.result(timeout=1)


async def test_one_session_serves_the_workers_life(serve):
    script = Script()

    async with serve(script) as url, flow.test() as t:
        for _ in range(5):
            await deliver.submit(url, {})
            await t.run_until_idle()

    assert len(script.ids["hook"]) == 5
    assert len(script.connections) == 1


async def test_plain_call_after_the_worker_has_ended_still_works(serve):
    script = Script()

    async with serve(script) as url:
        async with flow.test():
            pass
        assert (await deliver(url, {}))["status"] == 200


async def test_gate_and_lane_are_the_host():
    async with flow.test():
        job = deliver.prepare({"url": "https://API.example.org/a", "payload": 1}, deliver.call("", 1).options)

    assert (job.lane, job.gates) == ("api.example.org", ("http/api.example.org",))


async def test_url_that_cannot_be_delivered_to_is_refused_at_submit_without_being_shown():
    async with flow.test():
        with pytest.raises(PayloadError, match="the url must start with http") as caught:
            await deliver.submit("gopher://ada:pa55word@example.org/", {})

    assert "pa55word" not in str(caught.value)


async def test_malformed_secret_is_a_config_error_at_start(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WEBHOOK_SECRET", "hunter2")

    with pytest.raises(ConfigError, match="WEBHOOK_SECRET") as caught:
        async with flow.test():
            pass

    assert "hunter2" not in str(caught.value)


async def test_job_of_another_task_tells_its_webhooks_apart_over_retries(serve):
    script = Script(a=[200], b=[500, 200])
    own = TaskFlow()
    own.lifespan(sending)

    @own.task(retry=Retry(attempts=3))
    async def tell_both(url: str) -> None:
        await deliver(str(URL(url).with_path("/a")), {})
        await deliver(str(URL(url).with_path("/b")), {})

    async with serve(script) as url, own.test() as t:
        job = await tell_both.submit(url)
        await until(t, lambda: len(script.ids["b"]) == 2, step_s=1)
        await t.run_until_idle()

    assert len(set(script.ids["a"])) == len(set(script.ids["b"])) == 1
    assert script.ids["a"][0] != script.ids["b"][0]
    assert script.ids["a"][0].startswith(job.id)
