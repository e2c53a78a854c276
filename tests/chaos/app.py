"""The app under fire. Its ledger is a file outside the broker: one line at the start and one at the end of every run."""

from __future__ import annotations

import asyncio
import os
import signal
import time

from taskflow import CircuitBreaker, Retry, TaskFlow, current_job

flow = TaskFlow()


def write(event: str, number: int) -> None:
    """Append one line in one write: lines of several processes never mix, and a kill loses nothing that was written."""
    line = f"{event} {number} {os.getpid()} {current_job().token} {time.time():.6f}\n"
    ledger = os.open(os.environ["CHAOS_LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(ledger, line.encode())
    finally:
        os.close(ledger)


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
