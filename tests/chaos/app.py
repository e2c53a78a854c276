"""The app under fire. Its ledger is a file outside the broker: one line at the start and one at the end of every run."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import time
from contextlib import closing, suppress
from pathlib import Path

from taskflow import CircuitBreaker, Retry, TaskFlow, current_job
from taskflow.core.events import JobsSettled
from taskflow.core.job import JobState
from taskflow.errors import StaleClaim
from tests.chaos.pulse import Pulse

flow = TaskFlow()
if "CHAOS_LEDGER" in os.environ:  # a worker
    Pulse(Path(os.environ["CHAOS_LEDGER"] + ".still"), pid=os.getpid()).start()


def append(path: str, text: str) -> None:
    """In one write: lines of several processes never mix, and a kill loses nothing that was written."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(file, text.encode())
    finally:
        os.close(file)


def write(event: str, number: int) -> None:
    """One line of the ledger."""
    line = f"{event} {number} {os.getpid()} {current_job().token} {time.time():.6f}\n"
    append(os.environ["CHAOS_LEDGER"], line)


def write_told(event: JobsSettled) -> None:
    """What the broker has acknowledged: these claims have ended their jobs, for ever."""
    told = [f"{one.claim.job_id} {one.claim.token}\n" for one in event.jobs if one.state is JobState.SUCCEEDED]
    append(os.environ["CHAOS_LEDGER"] + ".told", "".join(told))


flow.listen(write_told, JobsSettled)


@flow.task(retry=Retry(attempts=1))
async def work(number: int, seconds: float) -> int:
    write("start", number)
    await asyncio.sleep(seconds)
    write("end", number)
    return os.getpid()


@flow.task(retry=Retry(attempts=1))
async def poison(number: int) -> None:
    write("start", number)
    os.kill(os.getpid(), signal.SIGKILL)


@flow.task
async def flaky(number: int) -> int:
    write("start", number)
    if current_job().attempt == 1:
        raise OSError("the first attempt fails")
    write("end", number)
    return number


@flow.task(
    breaker=CircuitBreaker("ledger", consecutive=3, open_for=1.5, max_open_for=1.5),
    retry=Retry(attempts=4, base=0.05),
)
async def needs(number: int) -> None:
    """Needs what is down while the ledger has a file `.down` beside it."""
    write("call", number)
    await asyncio.sleep(0.05)
    is_down = os.path.exists(f"{os.environ['CHAOS_LEDGER']}.down")  # noqa: ASYNC240, PTH110 - a moment
    write("refused" if is_down else "served", number)
    if is_down:
        raise OSError("it is down")


EFFECT = "INSERT INTO chaos_effects VALUES ({}, {})"


@flow.task(retry=Retry(attempts=1))
async def transfer(number: int, seconds: float) -> None:
    """Writes into its own database and is done, in one transaction. It does not stop when it is told to."""
    write("start", number)
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(seconds)
    database = os.environ["CHAOS_DATABASE"]
    effect = asyncio.create_task(
        (effect_in_file if database.startswith("sqlite") else effect_on_server)(database, number)
    )
    while not effect.done():
        with suppress(asyncio.CancelledError, StaleClaim):
            await asyncio.shield(effect)
    try:
        effect.result()
    except StaleClaim:
        write("stale", number)
        raise
    write("end", number)


async def effect_in_file(database: str, number: int) -> None:
    with closing(sqlite3.connect(database.removeprefix("sqlite:///"))) as connection, connection:
        connection.execute(EFFECT.format(number, current_job().token))
        await current_job().complete_in(connection, os.getpid())


async def effect_on_server(database: str, number: int) -> None:
    import asyncpg

    connection = await asyncpg.connect(database)
    try:
        async with connection.transaction():
            await connection.execute(EFFECT.format(number, current_job().token))
            await current_job().complete_in(connection, os.getpid())
    finally:
        await connection.close()
