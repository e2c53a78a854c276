"""A plain function that never ends cannot be stopped in a thread. In a child process it is killed.

    python -m examples.killable

Ten reports are made; one of them hangs, one brings its whole process down. The other eight arrive, and nothing is left
running.
"""

from __future__ import annotations

import asyncio
import os
import sys

from taskflow import JobFailed, Retry, TaskFlow
from taskflow.settings import BrokerSettings, Settings, WorkerSettings

flow = TaskFlow(settings=Settings(broker=BrokerSettings(url="memory://"), worker=WorkerSettings(concurrency=4)))


@flow.task(isolation="process", timeout=0.5, retry=Retry(attempts=1))
def make_report(number: int) -> str:
    """As a library in C may do: hang, or crash."""
    while number == 3:
        pass
    if number == 7:
        os._exit(139)
    return f"report {number}"


async def main() -> bool:
    """The ten reports. True if it is what the README promises."""
    made, failed = [], []
    async with flow.worker():
        jobs = await make_report.submit_many([make_report.call(number) for number in range(10)])
        for job in jobs:
            try:
                made.append(await job.result(timeout=10))
            except JobFailed as error:
                failed.append(str(error))
    print(f"{len(made)} reports were made; {len(failed)} were not:", *failed, sep="\n  ")
    return len(made) == 8 and "its timeout of 0.5 s" in failed[0] and "exit code 139" in failed[1]


if __name__ == "__main__":
    sys.exit(0 if asyncio.run(main()) else 1)
