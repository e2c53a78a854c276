"""A restart of the server under load: jobs a second before and after, and whether any job was lost.

    python -m benchmarks.restart [--only redis|postgres] [--rounds 3] [--crash] [--jobs 150000]

One worker of 100 slots runs jobs that write two lines to a ledger; the server is stopped in order (or, with `--crash`,
killed) and started at once. *before*: the seconds up to the stop. *after*: as many seconds, from a second and a half
after the first job that ended again. Valkey logs every write (AOF, everysec; always with `--crash`); PostgreSQL syncs.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from benchmarks.killed_worker import made
from taskflow.core.job import JobState
from tests.chaos.fleet import Fleet, until
from tests.chaos.places import SERVERS, Place

WINDOW_S, SETTLED_S = 3.0, 1.5
SLOTS = 100


async def measure(place: Place, *, jobs: int, crash: bool) -> tuple[float, float, float, int, int]:
    """Rates before and after, seconds without an end, jobs lost, jobs run again."""
    assert place.server is not None
    flow = place.flow()
    with Fleet(place, WORKER__LEASE_S=10) as fleet:
        async with flow:
            work = flow.find("work")
            ids: list[str] = []
            for start in range(0, jobs, 5_000):
                some = await work.submit_many([work.call(one, 0.0) for one in range(start, min(jobs, start + 5_000))])
                ids += [job.id for job in some]
            fleet.start("-c", str(SLOTS))
            await until(lambda: ends(fleet), seconds=30, what="it runs")
            await asyncio.sleep(SETTLED_S + WINDOW_S)
            stopped_at = time.time()
            await asyncio.to_thread(place.server.kill if crash else place.server.stop)
            down_at = time.time()
            await asyncio.to_thread(place.server.start)

            async def all_done() -> bool:
                return not any(one.ready + one.scheduled + one.running for one in await flow.broker.counts())

            await until(all_done, seconds=180, what="all jobs are final")
            states: Counter[str] = Counter()
            for start in range(0, jobs, 1_000):
                states.update((await flow.broker.states(ids[start : start + 1_000])).values())
        at = ends(fleet)
        numbers = Counter(line.number for line in fleet.lines() if line.event == "end")
    back_at = next((moment for moment in at if moment > down_at + 0.05), float("inf"))
    from_at = back_at + SETTLED_S
    if at[-1] < from_at + WINDOW_S:
        raise SystemExit(
            f"{place.name}: all jobs were done before the end of the measurement ({len(numbers):,} of {jobs:,} ended, "
            f"{dict(states)}); give more --jobs"
        )
    before = sum(stopped_at - WINDOW_S < moment <= stopped_at for moment in at) / WINDOW_S
    after = sum(from_at < moment <= from_at + WINDOW_S for moment in at) / WINDOW_S
    lost = jobs - len(numbers) + jobs - states[JobState.SUCCEEDED]
    return before, after, back_at - down_at, lost, numbers.total() - len(numbers)


def ends(fleet: Fleet) -> list[float]:
    return sorted(line.at for line in fleet.lines() if line.event == "end")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=SERVERS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=150_000)
    parser.add_argument("--crash", action="store_true")
    arguments = parser.parse_args()
    fsync = "always" if arguments.crash else "everysec"
    for name in arguments.only or SERVERS:
        ratios = []
        for _ in range(arguments.rounds):
            with tempfile.TemporaryDirectory() as folder, made(name, Path(folder), fsync=fsync) as place:
                before, after, away_s, lost, again = asyncio.run(
                    measure(place, jobs=arguments.jobs, crash=arguments.crash)
                )
            ratios.append(after / before)
            print(
                f"{name}: {before:,.0f} jobs/s before, {after:,.0f} after ({after / before:.0%}); "
                f"no job ended for {away_s:.1f} s; {lost} lost, {again} run again"
            )
            sys.stdout.flush()
        print(f"{name}: median {statistics.median(ratios):.0%} of before")


if __name__ == "__main__":
    main()
