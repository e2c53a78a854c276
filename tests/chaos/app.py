"""The app under fire. Its ledger is a file outside the broker: one line at the start and one at the end of every run."""

from __future__ import annotations

import asyncio
import os
import signal
import time

from taskflow import Retry, TaskFlow, current_job

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
