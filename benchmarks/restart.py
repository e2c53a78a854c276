"""A restart of the server under load: jobs a second before and after, and whether any job was lost.

    python -m benchmarks.restart [--only redis|postgres] [--rounds 3] [--crash] [--fsync always] [--rewrites]

One worker of 100 slots runs jobs that write two lines to a ledger; the server is stopped in order (or, with `--crash`,
killed) and started at once. *before*: the ten seconds up to the stop, of a worker that has run for five by then.
*after*: ten seconds, from two after the first job that ended again. Nobody asks the server anything meanwhile. Each
round has a control beside it, the same without a restart: on a machine that others use too, the rate changes by
itself. *CPU*: what worker and server spent on a job, which others change less. Valkey logs every write (AOF, everysec,
or as `--fsync` says; always with `--crash`, as everysec may forget two seconds then); PostgreSQL syncs.

Valkey rewrites its AOF in the background when that has doubled, restart or not, and runs at half its rate for the three
seconds that this takes (of 500 MB). Where that falls is a matter of the log's size, so it is put off here; with
`--rewrites` it is not.
"""

from __future__ import annotations

import argparse
import asyncio
import bisect
import itertools
import statistics
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks.killed_worker import made
from benchmarks.processes import cpu_s
from taskflow.core.job import JobState
from tests.chaos.fleet import Fleet, until
from tests.chaos.places import SERVERS, Place, Server

WARM_S, SETTLED_S, WINDOW_S = 5.0, 2.0, 10.0
SLOTS = 100
DRAINED_S = 300.0


class Window(NamedTuple):
    """From when to when, and the CPU seconds of worker and server between."""

    from_at: float
    to_at: float
    cpu_s: float


class Measured(NamedTuple):
    """Jobs a second, microseconds of CPU a job."""

    before: float
    after: float
    before_us: float
    after_us: float
    away_s: float  # without an end
    again: int  # run again

    @property
    def ratio(self) -> float:
        return self.after / self.before

    def __str__(self) -> str:
        return (
            f"{self.before:,.0f} jobs/s before, {self.after:,.0f} after ({self.ratio:.0%}); CPU a job "
            f"{self.before_us:.0f} and {self.after_us:.0f} us; no job ended for {self.away_s:.2f} s; "
            f"{self.again} run again"
        )


async def measure(place: Place, *, jobs: int, end: Callable[[], None] | None) -> Measured:
    """`end` ends the server, which is started at once; None leaves it alone. Ends the program when a job was lost."""
    server = place.server
    assert server is not None
    flow = place.flow()
    with Fleet(place, WORKER__LEASE_S=10) as fleet:
        async with flow:
            work = flow.find("work")
            ids: list[str] = []
            for start in range(0, jobs, 5_000):
                some = await work.submit_many([work.call(one, 0.0) for one in range(start, min(jobs, start + 5_000))])
                ids += [job.id for job in some]
            worker = fleet.start("-c", str(SLOTS))
            await until(lambda: fleet.ledger.stat().st_size, seconds=30, what="it runs")
            await asyncio.sleep(WARM_S)
            before = await window(worker, server)
            if end is not None:
                await asyncio.to_thread(end)
            down_at, written = time.time(), fleet.ledger.stat().st_size
            if end is not None:
                await asyncio.to_thread(server.start)
            await until(lambda: fleet.ledger.stat().st_size > written, seconds=60, what="it runs again")
            await asyncio.sleep(SETTLED_S)
            after = await window(worker, server)

            async def all_done() -> bool:
                counts = await flow.broker.counts()
                if not counts:
                    raise SystemExit(f"{place.name}: the server that was started again knows of no queue")
                return not any(one.ready + one.scheduled + one.running for one in counts)

            if await all_done():
                raise SystemExit(
                    f"{place.name}: all jobs were done before the end of the measurement; give more --jobs"
                )
            await until(all_done, seconds=DRAINED_S, what="all jobs are final")
            states: Counter[str] = Counter()
            for start in range(0, jobs, 1_000):
                states.update((await flow.broker.states(ids[start : start + 1_000])).values())
        lines = [line for line in fleet.lines() if line.event == "end"]
    at, executed = sorted(line.at for line in lines), len({line.number for line in lines})
    if states != {JobState.SUCCEEDED: jobs} or executed != jobs:
        raise SystemExit(f"{place.name}: LOST JOBS: {executed:,} of {jobs:,} were executed, they are {dict(states)}")
    ended = [bisect.bisect(at, one.to_at) - bisect.bisect(at, one.from_at) for one in (before, after)]
    gap_s = max(late - early for early, late in itertools.pairwise(at) if down_at - 1.0 < late <= after.from_at)
    return Measured(
        ended[0] / (before.to_at - before.from_at),
        ended[1] / (after.to_at - after.from_at),
        before.cpu_s / ended[0] * 1e6,
        after.cpu_s / ended[1] * 1e6,
        gap_s,
        len(lines) - jobs,
    )


async def window(worker: subprocess.Popen[bytes], server: Server) -> Window:
    """Let them work. Both are the same processes all the while."""
    from_at, spent_s = time.time(), cpu_s(worker.pid) + cpu_s(server.pid)
    await asyncio.sleep(WINDOW_S)
    return Window(from_at, time.time(), cpu_s(worker.pid) + cpu_s(server.pid) - spent_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=SERVERS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--crash", action="store_true")
    parser.add_argument("--fsync", choices=("everysec", "always"))
    parser.add_argument("--rewrites", action="store_true")
    arguments = parser.parse_args()
    fsync = arguments.fsync or ("always" if arguments.crash else "everysec")
    valkey = () if arguments.rewrites else ("--auto-aof-rewrite-percentage", "0")
    for name in arguments.only or SERVERS:
        found: dict[bool, list[Measured]] = {True: [], False: []}
        for is_restarted in [True, False] * arguments.rounds:
            with tempfile.TemporaryDirectory() as folder, made(name, Path(folder), fsync=fsync, valkey=valkey) as place:
                assert place.server is not None
                end = place.server.kill if arguments.crash else place.server.stop
                one = asyncio.run(measure(place, jobs=arguments.jobs, end=end if is_restarted else None))
            found[is_restarted].append(one)
            print(f"{name}{'' if is_restarted else ', no restart'}: {one}", flush=True)
        rates, cpu = (
            [statistics.median(of(one) for one in found[is_restarted]) for is_restarted in (True, False)]
            for of in (lambda one: one.ratio, lambda one: one.after_us / one.before_us)
        )
        print(
            f"{name}: all jobs were executed, none was lost; median {rates[0]:.0%} of the rate before, without a "
            f"restart {rates[1]:.0%}; CPU a job {cpu[0]:.0%} of before, without a restart {cpu[1]:.0%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
