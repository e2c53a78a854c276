"""An outage: half of the jobs need a dependency that is down for a minute. What becomes of it, of them, of the rest?

    python benchmarks/outage.py [--jobs N] [--down S] [--before S] [--workers N] [--slots N] [--call-ms MS]

One SQLite file, worker processes of their own, and the dependency D: an HTTP server in another process, which counts
every call that reaches it, and answers 503 while it is down. N jobs call D; N others take as long and do not; one job
more calls D behind a breaker of its own. Two arrangements, the same policies in both:

*   gate: the task says `breaker=CircuitBreaker("d")`, and the breaker is the fleet's.
*   inside: the usual one. The handler asks a breaker of its process, and raises while that is open; five retries.

A third run has no outage: the rate of the others is compared with it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from taskflow import CircuitBreaker, Retry, TaskFlow
from taskflow.brokers.sqlite import SqliteBroker
from taskflow.core.breaker import Breaker, Denied, Verdict
from taskflow.core.job import FINAL, JobState

SPEC = CircuitBreaker("d")
RETRY = Retry(attempts=6)
FIRST_S = 5.0  # calls that began by then were under way when D failed; later ones are probes
PATIENCE_S = 600.0
HERE = Path(__file__).resolve()

# ---- the app: what the workers run ----

flow = TaskFlow()
_url = os.environ.get("OUTAGE_URL", "")
_call_s = float(os.environ.get("OUTAGE_CALL_S", "0"))
_inside = Breaker(SPEC)
_sessions: list[aiohttp.ClientSession] = []


async def call_d(who: str) -> None:
    """Raises `OSError` when D is down."""
    if not _sessions:
        _sessions.append(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)))
    async with _sessions[0].get(f"{_url}/call", params={"who": who}) as answer:
        if answer.status != 200:
            raise OSError(f"D answers {answer.status}")


@flow.task(breaker=SPEC, retry=RETRY, queue="work")
async def behind_the_gate() -> None:
    await call_d("jobs")


@flow.task(breaker=CircuitBreaker("lonely"), queue="work")
async def lonely() -> None:
    await call_d("lonely")


@flow.task(retry=RETRY, queue="work")
async def breaker_inside() -> None:
    await through_own_breaker("jobs")


@flow.task(queue="work")
async def lonely_inside() -> None:
    await through_own_breaker("lonely")


async def through_own_breaker(who: str) -> None:
    permit = _inside.admit(now=time.monotonic(), lease_s=30)
    if isinstance(permit, Denied):
        raise ConnectionError(f"circuit open for {permit.retry_after_s:.1f} s")
    verdict = Verdict.FAILURE
    try:
        await call_d(who)
        verdict = Verdict.SUCCESS
    finally:
        _inside.report(permit, verdict, now=time.monotonic())


@flow.task(queue="work")
async def other() -> None:
    await asyncio.sleep(_call_s)


# ---- D ----


class Dependency:
    """Answers after `call_s`, well or not; remembers when each call began and ended."""

    def __init__(self, call_s: float) -> None:
        self.call_s = call_s
        self.is_down = False
        self.calls: list[tuple[str, float, float, bool]] = []

    async def call(self, request: web.Request) -> web.Response:
        began = time.time()
        await asyncio.sleep(self.call_s)
        self.calls.append((request.query["who"], began, time.time(), not self.is_down))
        return web.Response(status=503 if self.is_down else 200)

    async def turn(self, request: web.Request) -> web.Response:
        self.is_down = request.match_info["to"] == "down"
        return web.json_response(time.time())

    async def told(self, _request: web.Request) -> web.Response:
        return web.json_response(self.calls)


async def serve(call_s: float) -> None:
    """Print the port, and serve until killed."""
    dependency = Dependency(call_s)
    app = web.Application()
    app.router.add_get("/call", dependency.call)
    app.router.add_post("/{to:down|up}", dependency.turn)
    app.router.add_get("/calls", dependency.told)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


# ---- one run ----


@dataclass(frozen=True)
class Sizes:
    jobs: int
    before_s: float
    down_s: float
    workers: int
    slots: int
    call_s: float


@dataclass(frozen=True)
class Found:
    """What one run came to. Counts of calls and attempts are of the many; the single job has its own."""

    in_flight: int  # calls of the first seconds of the outage
    probes: int  # calls of the rest of it
    most_after: int  # calls at once, after the first seconds
    calls: int  # in all, before and after the outage too
    failed_after: int  # calls that failed once D was back
    attempts: int  # spent by all jobs of D
    states: dict[str, int]
    lonely: str
    lonely_calls: int
    others_per_s: float
    back_s: float  # from D's return until its last job had ended


@contextlib.contextmanager
def process(
    *command: str, env: dict[str, str] | None = None, log: Path | None = None
) -> Iterator[subprocess.Popen[str]]:
    with contextlib.ExitStack() as stack:
        err = subprocess.DEVNULL if log is None else stack.enter_context(log.open("w"))
        child = subprocess.Popen(
            [sys.executable, *command], env=env, cwd=HERE.parent, text=True, stdout=subprocess.PIPE, stderr=err
        )
        try:
            yield child
        finally:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(15)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


async def run(sizes: Sizes, arrangement: str, folder: Path) -> Found:
    """Submit, start the fleet, take D down and up again, and wait until all jobs have ended."""
    many = behind_the_gate if arrangement == "gate" else breaker_inside
    single = lonely if arrangement == "gate" else lonely_inside
    with contextlib.ExitStack() as stack:
        dependency = stack.enter_context(process(str(HERE), "--serve", str(sizes.call_s)))
        assert dependency.stdout is not None
        url = f"http://127.0.0.1:{dependency.stdout.readline().strip()}"
        env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("TASKFLOW_")},
            "TASKFLOW_BROKER__URL": f"sqlite:///{folder / 'jobs.db'}",
            "TASKFLOW_HTTP__PORT": "0",
            "TASKFLOW_LOG__LEVEL": "WARNING",
            "OUTAGE_URL": url,
            "OUTAGE_CALL_S": str(sizes.call_s),
        }
        client_flow = TaskFlow(broker=SqliteBroker(folder / "jobs.db"))
        for task in (many, single, other):
            client_flow.task(**task.definition.declared, name=task.definition.name)(task.definition.fn)
        async with aiohttp.ClientSession() as session, client_flow:
            await submit(client_flow, many.definition.name, sizes.jobs)
            for number in range(sizes.workers):
                command = ("-m", "taskflow", "worker", "outage", "-c", str(sizes.slots))
                stack.enter_context(process(*command, env=env, log=folder / f"worker-{number}.log"))
            while not await calls(session, url):  # noqa: ASYNC110 - another process is waited for
                await asyncio.sleep(0.1)
            down_at = up_at = time.time()
            if sizes.down_s:
                await asyncio.sleep(sizes.before_s)
                down_at = await told(session.post(f"{url}/down"))
                await client_flow.find(single.definition.name).submit()
                await asyncio.sleep(sizes.down_s)
                up_at = await told(session.post(f"{url}/up"))
            infos = await ended(client_flow.broker)
            return found(infos, await calls(session, url), many.definition.name, (down_at, up_at))


async def submit(client_flow: TaskFlow, many: str, jobs: int) -> None:
    """Those that need D and the others, in turn."""
    one, another = client_flow.find(many), client_flow.find("other")
    for start in range(0, jobs, 500):
        count = min(500, jobs - start)
        await one.submit_many([one.call() for _ in range(count)])
        await another.submit_many([another.call() for _ in range(count)])


async def ended(broker: Any) -> list[Any]:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        counts = await broker.counts()
        if not sum(one.ready + one.scheduled + one.running for one in counts):
            return list(await broker.jobs(limit=10_000_000))
        await asyncio.sleep(0.25)
    raise SystemExit(f"jobs are not ended after {PATIENCE_S:g} s: {counts}")


async def told(asked: Any) -> Any:
    async with asked as answer:
        return await answer.json()


async def calls(session: aiohttp.ClientSession, url: str) -> list[Any]:
    return list(await told(session.get(f"{url}/calls")))


def found(infos: list[Any], made: list[Any], many: str, outage: tuple[float, float]) -> Found:
    down_at, up_at = outage
    mine = [info for info in infos if info.task == many]
    others = [info for info in infos if info.task == "other"]
    of_many = [call for call in made if call[0] == "jobs"]
    # What D had not answered when it failed was in flight, as was what came before any breaker could know.
    while_down = [call for call in of_many if call[2] >= down_at and call[1] < up_at]
    early = [call for call in while_down if call[1] <= down_at + FIRST_S]
    late = [call for call in while_down if call[1] > down_at + FIRST_S]
    began = min(info.started_at for info in others)
    single = [info for info in infos if info.task.startswith("lonely")]
    return Found(
        in_flight=len(early),
        probes=len(late),
        most_after=at_once(late),
        calls=len(of_many),
        failed_after=sum(not well for _, began_at, _, well in of_many if began_at >= up_at),
        attempts=sum(info.attempts for info in mine),
        states={state: sum(info.state is state for info in mine) for state in FINAL},
        lonely=single[0].state if single else "-",
        lonely_calls=len(made) - len(of_many),
        others_per_s=len(others) / (max(info.finished_at for info in others) - began),
        back_s=max(info.finished_at for info in mine) - up_at,
    )


def at_once(made: list[Any]) -> int:
    """The most calls that were under way at the same time."""
    steps = sorted([(began, 1) for _, began, _, _ in made] + [(ended_at, -1) for _, _, ended_at, _ in made])
    now = most = 0
    for _, step in steps:
        now += step
        most = max(most, now)
    return most


def table(sizes: Sizes, plain: Found, runs: dict[str, Found]) -> list[str]:
    rows: list[tuple[str, list[object]]] = [
        ("calls to D while it was down", [one.in_flight + one.probes for one in runs.values()]),
        (f"... of the first {FIRST_S:g} s (in flight)", [one.in_flight for one in runs.values()]),
        ("... after that (probes)", [one.probes for one in runs.values()]),
        ("most at once after that", [one.most_after for one in runs.values()]),
        ("D jobs succeeded", [one.states[JobState.SUCCEEDED] for one in runs.values()]),
        ("D jobs dead", [one.states[JobState.DEAD] for one in runs.values()]),
        ("calls in all, minus failed probes", [one.calls - one.probes for one in runs.values()]),
        ("attempts spent", [one.attempts for one in runs.values()]),
        ("the single job", [f"{one.lonely} ({one.lonely_calls} calls)" for one in runs.values()]),
        ("others per second", [f"{one.others_per_s:.0f}" for one in runs.values()]),
        ("... of the rate without outage", [f"{one.others_per_s / plain.others_per_s:.2f}" for one in runs.values()]),
        ("calls that failed after D was back", [one.failed_after for one in runs.values()]),
        ("D jobs done after D was back, in s", [f"{one.back_s:.1f}" for one in runs.values()]),
    ]
    head = f"{sizes.jobs:,} + {sizes.jobs:,} jobs, {sizes.workers} x {sizes.slots} slots, D down for {sizes.down_s:g} s"
    lines = [f"| {head} | {' | '.join(runs)} |", f"|---|{'---:|' * len(runs)}"]
    return lines + [f"| {name} | {' | '.join(map(str, cells))} |" for name, cells in rows]


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--down", type=float, default=60.0)
    parser.add_argument("--before", type=float, default=3.0)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--slots", type=int, default=10)
    parser.add_argument("--call-ms", type=float, default=50.0)
    parser.add_argument("--arrangements", default="gate,inside")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    parser.add_argument("--serve", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve is not None:
        await serve(args.serve)
    sizes = Sizes(args.jobs, args.before, args.down, args.workers, args.slots, args.call_ms / 1_000)
    results = {}
    for name in ("plain", *args.arrangements.split(",")):
        with tempfile.TemporaryDirectory(prefix="outage-") as folder:
            one = sizes if name != "plain" else Sizes(sizes.jobs, 0, 0, sizes.workers, sizes.slots, sizes.call_s)
            results[name] = await run(one, "gate" if name == "plain" else name, Path(folder))
            print(f"{name}: done", file=sys.stderr)
    plain = results.pop("plain")
    if args.json:
        print(json.dumps({name: vars(one) for name, one in {"plain": plain, **results}.items()}))
    else:
        print("\n".join(table(sizes, plain, results)))


if __name__ == "__main__":
    asyncio.run(main())
