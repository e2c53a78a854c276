"""taskflow beside its peers on Redis/Valkey and PostgreSQL, in one run: drain, bulk submit, round trip.

    python -m benchmarks.peers [--rounds 3] [--scale 1.0] [--only NAME]... [--venvs DIR]

One worker process, its producer in a second one, the server in a third. Valkey (or redis-server) keeps nothing on
disk; PostgreSQL runs with fsync and synchronous commit on. Every contestant has a virtual environment of its own (their
pins conflict) and uvloop, and the settings that its module in `contestants` tells: the best that we know of each.

*drain*: jobs a second, from instants that the job bodies write, the first 5 % dropped; *CPU*: what the worker process
and the server spent for each of these jobs, which noise on a shared machine changes less. *submit*: a thousand at a
time where there is a way for that, else 32 singles in flight. *start* and *result*: one job at a time, the worker idle
before. Medians of the rounds, with their minimum and maximum; the contestants take turns, and the order rotates.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import venv
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.processes import COLUMNS, Processes, Rates
from tests.servers.postgres import PostgresServer
from tests.servers.valkey import ValkeyServer

_OURS = f"{Path(__file__).parents[2]}[redis,postgres,uvloop]"


@dataclass
class Entry:
    """One contestant: on which server, with which packages, by how many jobs, and what was measured."""

    name: str
    module: str
    engine: str
    packages: tuple[str, ...]
    jobs: int
    rates: Rates = field(default_factory=Rates)


ENTRIES = (
    Entry("taskflow", "with_taskflow", "redis", ("--editable", _OURS), 60_000),
    Entry("repid 2.1.4", "with_repid", "redis", ("repid[redis]==2.1.4", "typing_extensions"), 20_000),
    Entry("aiotaskqueue 0.18.0", "with_aiotaskqueue", "redis", ("aiotaskqueue[redis]==0.18.0", "msgspec"), 10_000),
    Entry("arq 0.28.0", "with_arq", "redis", ("arq==0.28.0",), 5_000),
    Entry("taskflow", "with_taskflow", "postgres", ("--editable", _OURS), 50_000),
    Entry("pgqueuer 1.6.0", "with_pgqueuer", "postgres", ("pgqueuer[asyncpg]==1.6.0",), 50_000),
    Entry(
        "procrastinate 3.10.0", "with_procrastinate", "postgres", ("procrastinate==3.10.0", "psycopg[binary]"), 2_000
    ),
)


def interpreter(entry: Entry, venvs: Path) -> Path:
    """Of the contestant's virtual environment, which is made when it is not there yet."""
    folder = venvs / entry.module
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        print(f"installing {entry.name} ...", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *entry.packages, "uvloop"], check=True, stderr=subprocess.DEVNULL)
        (folder / "ready").touch()
    return python


def show(entries: list[Entry]) -> None:
    print(f"| | {COLUMNS} |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for entry in entries:
        print(f"| {entry.name}, {entry.engine} | {entry.rates.row()} |")
    for ours in (entry for entry in entries if entry.name == "taskflow"):
        for peer in (entry for entry in entries if entry.engine == ours.engine and entry is not ours):
            by_rate = statistics.median(ours.rates.drain) / statistics.median(peer.rates.drain)
            by_cpu = statistics.median(peer.rates.cpu_us) / statistics.median(ours.rates.cpu_us)
            print(f"{ours.engine}: drain {by_rate:.2f} x {peer.name} ({by_cpu:.2f} by the worker's CPU)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of jobs")
    parser.add_argument("--trips", type=int, default=200, help="round trips in each round")
    parser.add_argument("--only", action="append", default=[], help="part of NAME/ENGINE; may repeat")
    parser.add_argument("--venvs", type=Path, help="where the environments are kept from run to run")
    options = parser.parse_args()
    entries = [
        entry
        for entry in ENTRIES
        if not options.only or any(word in f"{entry.name}/{entry.engine}" for word in options.only)
    ]
    with (
        tempfile.TemporaryDirectory() as folder,
        ValkeyServer() as valkey,
        PostgresServer(fsync=True, options=("shared_buffers=256MB",)) as postgres,
    ):
        venvs = options.venvs or Path(folder) / "venvs"
        processes = Processes(Path(folder))
        for number in range(options.rounds):
            turn = number % len(entries)
            for entry in entries[turn:] + entries[:turn]:
                python = interpreter(entry, venvs)
                if entry.engine == "redis":
                    valkey.ask("FLUSHALL")
                url = valkey.url if entry.engine == "redis" else postgres.database()
                jobs = max(100, int(entry.jobs * options.scale))
                server = (valkey if entry.engine == "redis" else postgres).pid
                processes.round(python, entry.module, url, jobs, options.trips, entry.rates, server)
                print(f"round {number + 1}: {entry.name} on {entry.engine}: {entry.rates.last}", file=sys.stderr)
    print(f"CPython {platform.python_version()}, {os.cpu_count()} CPUs, {options.rounds} rounds")
    show(entries)


if __name__ == "__main__":
    main()
