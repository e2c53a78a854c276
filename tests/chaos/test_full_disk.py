"""A full disk, played by a file-size limit: writes beyond it fail as on a disk without space. Nothing accepted is lost."""

from __future__ import annotations

import asyncio
import resource
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from taskflow.core.job import JobState
from tests.chaos.fleet import REPO, Fleet, until

if TYPE_CHECKING:
    from tests.chaos.places import Place

pytestmark = pytest.mark.anyio

NO_SPACE = 65_536  # bytes: less than the log of the database has by then, more than the ledger will


def submit(fleet: Fleet, *, limit: int | None) -> subprocess.CompletedProcess[str]:
    """`taskflow submit` in a process that may not write beyond `limit` bytes of any file."""
    command = [sys.executable, "-m", "taskflow", "submit", "tests.chaos.app", "work", '{"number": 0, "seconds": 0}']
    return subprocess.run(
        command,
        env=fleet.env,
        cwd=REPO,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, -1)) if limit else None,
        timeout=30,
        check=False,
    )


async def test_a_submit_that_finds_no_space_says_so_and_a_worker_goes_on_once_there_is_some(
    file: Place,
) -> None:
    flow = file.flow()
    with Fleet(file) as fleet:
        async with flow:
            work = flow.find("work")
            accepted = await work.submit_many([work.call(number, 0.01) for number in range(1, 201)])
            worker = fleet.start("-c", "10")
            await until(lambda: len(fleet.starts()) > 20, seconds=15, what="the worker is at it")

            resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (NO_SPACE, -1))
            refused = await asyncio.to_thread(submit, fleet, limit=NO_SPACE)
            await until(lambda: '"kind":"full"' in fleet.logs().replace(" ", ""), seconds=15, what="it says so")
            still_there = worker.poll() is None
            resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (-1, -1))

            async def all_done() -> bool:
                states = await flow.broker.states([job.id for job in accepted])
                return Counter(states.values()) == {JobState.SUCCEEDED: len(accepted)}

            await until(all_done, seconds=30, what="all accepted jobs are done")
            again = await asyncio.to_thread(submit, fleet, limit=None)

        assert refused.returncode == 3, refused
        assert "Free space on its disk" in refused.stderr
        assert "Traceback" not in refused.stderr
        assert still_there
        assert again.returncode == 0, again
