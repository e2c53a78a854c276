"""A restart of the server under load: jobs a second before and after, and whether any job was lost.

    python -m benchmarks.restart [--only redis|postgres] [--rounds 3] [--crash] [--fsync always] [--jobs 150000]

One worker of 100 slots runs jobs that write two lines to a ledger; the server is stopped in order (or, with `--crash`,
killed) and started at once. *before*: the seconds up to the stop. *after*: as many seconds, from a second and a half
after the first job that ended again. Each round has a control beside it, the same without a restart: on a machine that
others use too, the rate changes by itself. Valkey logs every write (AOF, everysec, or as `--fsync` says; always with
`--crash`, as everysec may forget two seconds then); PostgreSQL syncs.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks.killed_worker import made
from taskflow.core.job import JobState
from tests.chaos.fleet import Fleet, until
from tests.chaos.places import SERVERS, Place

WINDOW_S, SETTLED_S = 3.0, 1.5
SLOTS = 100


class Measured(NamedTuple):
    """Rates in jobs a second."""

    before: float
    after: float
    away_s: float  # without an end
    again: int  # run again

    @property
    def ratio(self) -> float:
        return self.after / self.before


async def measure(place: Place, *, jobs: int, end: Callable[[], None] | None) -> Measured:
    """`end` ends the server, which is started at once; None leaves it alone. Ends the program when a job was lost."""
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
            if end is not None:
                await asyncio.to_thread(end)
            down_at = time.time()
            if end is not None:
                await asyncio.to_thread(place.server.start)

            async def all_done() -> bool:
                counts = await flow.broker.counts()
                if not counts:
                    raise SystemExit(f"{place.name}: the server that was started again knows of no queue")
                return not any(one.ready + one.scheduled + one.running for one in counts)

            await until(all_done, seconds=180, what="all jobs are final")
            states: Counter[str] = Counter()
            for start in range(0, jobs, 1_000):
                states.update((await flow.broker.states(ids[start : start + 1_000])).values())
        at = ends(fleet)
        numbers = Counter(line.number for line in fleet.lines() if line.event == "end")
    if states != {JobState.SUCCEEDED: jobs} or len(numbers) != jobs:
        raise SystemExit(
            f"{place.name}: LOST JOBS: {len(numbers):,} of {jobs:,} were executed, they are {dict(states)}"
        )
    back_at = next((moment for moment in at if moment > down_at + 0.05), float("inf"))
    from_at = back_at + SETTLED_S
    if at[-1] < from_at + WINDOW_S:
        raise SystemExit(f"{place.name}: all jobs were done before the end of the measurement; give more --jobs")
    before = sum(stopped_at - WINDOW_S < moment <= stopped_at for moment in at) / WINDOW_S
    after = sum(from_at < moment <= from_at + WINDOW_S for moment in at) / WINDOW_S
    return Measured(before, after, back_at - down_at, numbers.total() - jobs)


def ends(fleet: Fleet) -> list[float]:
    return sorted(line.at for line in fleet.lines() if line.event == "end")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=SERVERS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=150_000)
    parser.add_argument("--crash", action="store_true")
    parser.add_argument("--fsync", choices=("everysec", "always"))
    arguments = parser.parse_args()
    fsync = arguments.fsync or ("always" if arguments.crash else "everysec")
    for name in arguments.only or SERVERS:
        ratios: dict[bool, list[float]] = {True: [], False: []}
        for is_restarted in [True, False] * arguments.rounds:
            with tempfile.TemporaryDirectory() as folder, made(name, Path(folder), fsync=fsync) as place:
                assert place.server is not None
                end = place.server.kill if arguments.crash else place.server.stop
                found = asyncio.run(measure(place, jobs=arguments.jobs, end=end if is_restarted else None))
            ratios[is_restarted].append(found.ratio)
            print(
                f"{name}{'' if is_restarted else ', no restart'}: {found.before:,.0f} jobs/s before, "
                f"{found.after:,.0f} after ({found.ratio:.0%}); no job ended for {found.away_s:.1f} s; "
                f"{found.again} run again"
            )
            sys.stdout.flush()
        print(
            f"{name}: all jobs were executed, none was lost; median {statistics.median(ratios[True]):.0%} of before, "
            f"without a restart {statistics.median(ratios[False]):.0%}"
        )


if __name__ == "__main__":
    main()
