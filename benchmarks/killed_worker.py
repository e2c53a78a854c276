"""kill -9 of a worker at default settings: what becomes of its jobs, and how soon.

    python -m benchmarks.killed_worker [--only BROKER]... [--runs 3]

200 jobs of 0.2 s, 10 at a time. The worker process is killed once 80 have ended, and another is started at once; the
last job has to wait until the dead one's lease (10 s) is over. *in flight*: started and not ended at the kill; *lost*:
not executed within 90 s.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.chaos.fleet import Fleet, until
from tests.chaos.places import DURABLE, Place, on_postgres, on_redis, on_sqlite
from tests.chaos.proxy import Proxy
from tests.servers.postgres import PostgresServer
from tests.servers.valkey import ValkeyServer

JOBS, SECONDS, SLOTS, KILLED_AFTER = 200, 0.2, 10, 80
GIVE_UP_S = 90


@contextmanager
def made(name: str, folder: Path, *, fsync: str = "everysec", valkey: tuple[str, ...] = ()) -> Iterator[Place]:
    """The broker of this name, as durable as it should be in production. `fsync` is the AOF's, `valkey` its options."""
    if name == "sqlite":
        yield on_sqlite(folder)
        return
    server = ValkeyServer(aof=True, fsync=fsync, options=valkey) if name == "redis" else PostgresServer(fsync=True)
    with server, Proxy(server.port) as proxy:
        place = (on_redis if name == "redis" else on_postgres)(folder, server, proxy)  # type: ignore[arg-type]
        place.worker_url = place.url  # nothing in between
        yield place


async def measure(place: Place) -> tuple[object, ...]:
    flow = place.flow()
    with Fleet(place, WORKER__LEASE_S=10) as fleet:
        async with flow:
            work = flow.find("work")
            await work.submit_many([work.call(number, SECONDS) for number in range(JOBS)])
        worker = fleet.start("-c", str(SLOTS))
        await until(lambda: len(ended(fleet)) >= KILLED_AFTER, seconds=60, what="the first jobs have ended")
        fleet.kill(worker)
        killed_at = time.time()
        started = {line.number for line in fleet.lines() if line.event == "start"}
        in_flight = len(started - ended(fleet).keys())
        fleet.start("-c", str(SLOTS))
        await until(lambda: len(ended(fleet)) == JOBS, seconds=GIVE_UP_S, what="all jobs have ended")
        last_at = max(line.at for line in fleet.lines() if line.event == "end")
        starts = Counter(line.number for line in fleet.lines() if line.event == "start")
        executed = ended(fleet)
    return (
        place.name,
        len(executed),
        JOBS - len(executed),
        in_flight,
        sum(count > 1 for count in starts.values()),
        sum(count > 1 for count in executed.values()),
        f"{last_at - killed_at:.1f}",
    )


def ended(fleet: Fleet) -> Counter[int]:
    return Counter(line.number for line in fleet.lines() if line.event == "end")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=DURABLE)
    parser.add_argument("--runs", type=int, default=1)
    arguments = parser.parse_args()
    head = ("broker", "executed of 200", "lost", "in flight", "started twice", "finished twice", "all done after s")
    print("  ".join(head))
    for name in arguments.only or DURABLE:
        for _ in range(arguments.runs):
            with tempfile.TemporaryDirectory() as folder, made(name, Path(folder)) as place:
                cells = asyncio.run(measure(place))
            print("  ".join(str(cell).rjust(len(title)) for cell, title in zip(cells, head, strict=True)))
            sys.stdout.flush()


if __name__ == "__main__":
    main()
