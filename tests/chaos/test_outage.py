"""Promise 5 with real processes on each durable broker: an outage costs a dependency a few calls, its jobs nothing."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from taskflow.core.job import JobState
from tests.chaos.fleet import Fleet, Line, until

if TYPE_CHECKING:
    from tests.chaos.places import Place

pytestmark = pytest.mark.anyio

WORKERS, SLOTS, JOBS = 3, 5, 60
KNOWN_S = 1.0  # after the first refusal: by then every worker has heard, and the first hold (1.5 s) is not over
PROBES = 3


def late_calls(fleet: Fleet) -> list[tuple[float, float]]:
    """When each call of the outage began and ended that is no longer one of those that were under way."""
    lines = fleet.lines()
    known_at = min((line.at for line in lines if line.event == "refused"), default=float("inf")) + KNOWN_S
    began: dict[tuple[int, int], Line] = {}
    found = []
    for line in lines:
        if line.event == "call":
            began[line.number, line.token] = line
        elif line.event == "refused" and began[line.number, line.token].at > known_at:
            found.append((began[line.number, line.token].at, line.at))
    return found


@pytest.mark.timeout(90)
async def test_a_fleet_probes_what_is_down_one_call_at_a_time_and_no_job_pays_for_it(place: Place) -> None:
    flow = place.flow()
    down = place.folder / "ledger.down"
    down.touch()
    with Fleet(place) as fleet:
        async with flow:
            needs, work = flow.find("needs"), flow.find("work")
            await needs.submit_many([needs.call(number) for number in range(JOBS)])
            others = await work.submit_many([work.call(JOBS + number, 0.01) for number in range(JOBS)])
            for _ in range(WORKERS):
                fleet.start("-c", str(SLOTS))
            await until(lambda: len(late_calls(fleet)) >= PROBES, seconds=40, what="the fleet probes")
            others_done = {await job.status() for job in others}
            down.unlink()

            async def is_done() -> bool:
                return {job.state for job in await flow.broker.jobs(task="needs", limit=JOBS)} == {JobState.SUCCEEDED}

            await until(is_done, seconds=40, what="all jobs came through")
            jobs = await flow.broker.jobs(task="needs", limit=JOBS)
        lines, probes = fleet.lines(), late_calls(fleet)

    refused = [line for line in lines if line.event == "refused"]
    served_at = min(line.at for line in lines if line.event == "served")
    assert others_done == {JobState.SUCCEEDED}
    assert all(ended <= began for (_, ended), (began, _) in pairwise(probes)), "never two at once"
    assert len(refused) - len(probes) <= WORKERS * SLOTS + WORKERS * 2
    assert sum(job.attempts for job in jobs) == JOBS + len(refused) - len(probes)
    assert max(line.at for line in refused) < served_at, "no second collapse"
