"""A web service that runs its own worker: submit in the request, answer at once, work in the background.

    python -m examples.embedded

`async with flow.worker()` in the service's own loop is all. This program is its own visitor too: it sends a few
requests, one of them with a number that no job can work with, waits for the jobs, and ends.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator

from aiohttp import ClientSession, web

from taskflow import GiveUp, JobNotFound, JobState, TaskFlow

flow = TaskFlow()


@flow.task(timeout=10)
async def factor(number: int) -> list[int]:
    """The prime factors of a number."""
    if number < 1:
        raise GiveUp(f"{number} has no prime factors")
    factors, rest, candidate = [], number, 2
    while candidate * candidate <= rest:
        while rest % candidate == 0:
            factors.append(candidate)
            rest //= candidate
        candidate += 1
    return [*factors, rest] if rest > 1 else factors


async def worker(_app: web.Application) -> AsyncIterator[None]:
    """Runs jobs for as long as the service is up; then what runs may end, and the rest stays in the queue."""
    async with flow.worker(concurrency=10):
        yield


async def submit(request: web.Request) -> web.Response:
    """POST /factor/{number} → 202 and where to look."""
    job = await factor.submit(int(request.match_info["number"]))
    return web.json_response({"job": job.id}, status=202, headers={"Location": f"/jobs/{job.id}"})


async def show(request: web.Request) -> web.Response:
    """GET /jobs/{id} → its state, and its result when there is one."""
    job = flow.job(request.match_info["id"], factor)
    try:
        state = await job.status()
    except JobNotFound as error:
        return web.json_response({"code": error.code, "detail": str(error)}, status=404)
    done = state is JobState.SUCCEEDED
    return web.json_response({"state": state, "result": await job.result() if done else None})


def service() -> web.Application:
    """The application, ready for `web.run_app`."""
    app = web.Application()
    app.router.add_post(r"/factor/{number:-?\d+}", submit)
    app.router.add_get("/jobs/{id}", show)
    app.cleanup_ctx.append(worker)
    return app


async def visit() -> bool:
    """Start the service, use it as a visitor would, stop it. True if every answer was right."""
    runner = web.AppRunner(service())
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        base = f"http://127.0.0.1:{runner.addresses[0][1]}"
        async with ClientSession(base) as session:
            answers = [await ask(session, number) for number in (600_851_475_143, 97, 0)]
    finally:
        await runner.cleanup()
    return [answer["state"] for answer in answers] == ["succeeded", "succeeded", "dead"]


async def ask(session: ClientSession, number: int) -> dict[str, object]:
    """Submit one number, and look until its job is final."""
    async with session.post(f"/factor/{number}") as accepted:
        where = accepted.headers["Location"]
    while True:
        async with session.get(where) as response:
            answer: dict[str, object] = await response.json()
        if JobState(str(answer["state"])) in (JobState.SUCCEEDED, JobState.DEAD):
            print(f"{number}: {answer['state']} {answer['result'] or ''}")
            return answer
        await asyncio.sleep(0.05)


if __name__ == "__main__":
    os.environ.setdefault("TASKFLOW_BROKER__URL", "memory://")  # a demonstration leaves no file behind
    sys.exit(0 if asyncio.run(visit()) else 1)
