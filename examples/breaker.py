"""Resilience lives in the queue: while a dependency is down its jobs wait, spend nothing, and all else keeps flowing.

    python -m examples.breaker

An outage of ten minutes, told on the virtual clock of `taskflow.testing`: it takes a second. 200 mails wait for the
mail server meanwhile. A breaker inside each job would burn their three attempts within a minute.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter

from taskflow import CircuitBreaker, JobState, Retry, TaskFlow

flow = TaskFlow()
calls: Counter[str] = Counter()
mail_server_is_up = asyncio.Event()


@flow.task(retry=Retry(attempts=3), breaker=CircuitBreaker("smtp"))
async def send_mail(number: int) -> None:
    """A job that needs the mail server."""
    calls["in the outage" if not mail_server_is_up.is_set() else "after it"] += 1
    if not mail_server_is_up.is_set():
        raise ConnectionError(f"mail {number}: the mail server is down")


@flow.task
async def resize(number: int) -> int:
    """A job that does not."""
    return number


async def story() -> bool:
    """The outage, and what became of the jobs. True if it is what the README promises."""
    async with flow.test() as t:
        mails = await send_mail.submit_many(send_mail.call(number) for number in range(200))
        images = await resize.submit_many(resize.call(number) for number in range(200))

        await t.advance(600)
        resized = [await image.status() for image in images].count(JobState.SUCCEEDED)
        print(
            f"ten minutes of outage: {calls['in the outage']} calls reached the mail server; {resized} images resized"
        )

        mail_server_is_up.set()
        await t.advance(600)
        states = Counter([await mail.status() for mail in mails])
        print(f"ten minutes later: {calls['after it']} calls more; mails: {dict(states)}")
        return resized == states[JobState.SUCCEEDED] == 200 and calls["in the outage"] < 50


if __name__ == "__main__":
    sys.exit(0 if asyncio.run(story()) else 1)
