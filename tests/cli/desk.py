"""The operator's desk: `taskflow …` in this process, a shop of tasks on a real SQLite file, and a look at its broker."""

import asyncio
import json
import os
from types import SimpleNamespace

from click.testing import CliRunner

from taskflow import Bulkhead, CircuitBreaker, RateLimit, Retry, Settings, TaskFlow
from taskflow.brokers.base import ClaimRequest
from taskflow.cli.main import cli


def sit_down(folder, monkeypatch):
    """The file that all commands of a test talk to, in the current folder. It does not exist yet."""
    for name in list(os.environ):
        if name.startswith("TASKFLOW_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TASKFLOW_BROKER__URL", "sqlite:///jobs.db")
    return folder / "jobs.db"


def run(*words):
    """What `taskflow …` prints, and how it exits. Never with a traceback."""
    result = CliRunner().invoke(cli, words)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return SimpleNamespace(code=result.exit_code, out=result.stdout, err=result.stderr)


def shown(*words):
    """The JSON that `taskflow … --json` prints."""
    result = run(*words, "--json")
    return json.loads(result.out)


def shop(mail_task="send_mail"):
    """A flow on the test's file, and its tasks; the first one may have another name."""
    flow = TaskFlow(settings=Settings.from_env())

    @flow.task(queue="mail", name=mail_task)
    async def send_mail(to: str, password: str = "") -> str:
        return f"sent to {to}"

    @flow.task(queue="mail", retry=Retry(attempts=2, base=0))
    async def fail(why: str = "no route") -> None:
        raise ConnectionError(why)

    @flow.task(queue="mail", retry=Retry(attempts=2, base=600, max_delay=600, jitter="none"))
    async def stumble() -> None:
        raise ConnectionError("no route")

    @flow.task(queue="bulk", retry=Retry(attempts=1))
    async def refuse() -> None:
        raise ValueError("not an address")

    @flow.task(queue="mail", breaker=CircuitBreaker("smtp"), bulkhead=Bulkhead("smtp", 1))
    async def gated() -> None: ...

    @flow.task(queue="bulk", rate=RateLimit("api", "1/h"))
    async def rated() -> None: ...

    @flow.task(queue="bulk", bulkhead=Bulkhead("http", 10, per_lane=True))
    async def fetch() -> None: ...

    return flow


def declared():
    """Let a worker start and end, that claims nothing: it says what code and environment say of gates."""

    async def declare():
        flow = shop()
        async with flow.worker(queues=["nothing"]):
            pass

    asyncio.run(declare())


def submitted(task, *args, count=1, **options):
    """Ids of jobs of `task` that wait now."""

    async def submit():
        flow = shop()
        async with flow:
            chosen = flow.tasks[task].options(**options)
            return [(await chosen.submit(*args)).id for _ in range(count)]

    return asyncio.run(submit())


def work(until=lambda counts: not any(queue.ready + queue.scheduled + queue.running for queue in counts), **names):
    """Run a worker until nothing waits; of a shop with these names."""

    async def go():
        flow = shop(**names)
        async with flow.worker(queues=["mail", "bulk"]), asyncio.timeout(20):
            while not until(await flow.broker.counts()):  # noqa: ASYNC110 - a file: there is no event to wait for
                await asyncio.sleep(0.01)

    asyncio.run(go())


def dead(task="fail", *args, **options):
    """The id of a job that died."""
    (job_id,) = submitted(task, *args, **options)
    work()
    assert state_of(job_id) == "dead"
    return job_id


def at_broker(ask):
    """What a coroutine function says that is given the open broker."""

    async def go():
        flow = shop()
        async with flow:
            return await ask(flow.broker)

    return asyncio.run(go())


def state_of(job_id):
    return at_broker(lambda broker: broker.states([job_id])).get(job_id)


def claimed(count=1, queue="mail"):
    """Let a worker that is still alive claim jobs."""
    claims = at_broker(lambda broker: broker.claim(ClaimRequest("host-1", (queue,), count, count, 0, 60.0)))
    assert len(claims) == count
