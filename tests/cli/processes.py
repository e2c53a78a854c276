"""Commands in processes of their own, in a folder with an app and a real SQLite file."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from taskflow import Settings
from taskflow.brokers.sqlite import SqliteBroker
from taskflow.cli.main import cli

# `ledger` tells who ran what; `outage` names verbs of the broker that do not answer while it is there, `broken` those
# that refuse; `looks` grows with each look at the counts; jobs of `wait` end once there is `let-go`.
APP = """
import asyncio, ctypes, os, pathlib, time
from concurrent.futures import ThreadPoolExecutor
from taskflow import Bulkhead, CircuitBreaker, Retry, TaskFlow, current_job
from taskflow.brokers.sqlite import SqliteBroker
from taskflow.errors import BrokerError, BrokerUnavailable

def words(name):
    try:
        return pathlib.Path(name).read_text().split()
    except FileNotFoundError:
        return []

def add_line(name, line):
    with open(name, "a") as file:
        file.write(line + "\\n")

def fragile(verb):
    async def call(self, *args):
        if verb == "counts":
            add_line("looks", "look")
        if verb in words("outage"):
            raise BrokerUnavailable(f"no answer to {verb}", kind="unreachable")
        if verb in words("broken"):
            raise BrokerError(f"{verb} refused")
        return await getattr(SqliteBroker, verb)(self, *args)
    return call

class Fragile(SqliteBroker):
    submit, finals, counts, finish_batch = map(fragile, ("submit", "finals", "counts", "finish_batch"))

flow = TaskFlow(broker=Fragile("jobs.db") if os.environ.get("FRAGILE") else None)

@flow.task
async def work(number: int, seconds: float = 0.0) -> int:
    add_line("ledger", f"start {number} {os.getpid()}")
    await asyncio.sleep(seconds)
    add_line("ledger", f"end {number} {os.getpid()}")
    return number

@flow.task
async def wait(number: int) -> None:
    add_line("ledger", f"start {number} {os.getpid()}")
    while not os.path.exists("let-go"):
        await asyncio.sleep(0.02)

@flow.task(queue="mail")
async def send_mail(to: str) -> dict[str, str]:
    add_line("ledger", f"end {to} {os.getpid()}")
    return {"to": to}

@flow.task(retry=Retry(attempts=1))
async def refuse(number: int) -> None:
    add_line("ledger", f"start {number} {os.getpid()}")
    if number % 2 == 0:
        raise ValueError(f"{number} is even")

@flow.task(retry=Retry(attempts=1))
async def interrupt(number: int) -> None:
    raise KeyboardInterrupt

@flow.task
async def stay(number: int, how: str) -> None:
    add_line("ledger", f"start {number} {os.getpid()}")
    if how == "in a thread":
        await asyncio.to_thread(time.sleep, 600)
    if how == "in a pool of its own":
        ThreadPoolExecutor().submit(time.sleep, 600)
        return
    if how == "in the loop":
        time.sleep(600)
    if how == "in C":  # it lets other threads run, but the main thread comes to no instruction
        libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
        for _ in range(2):
            libc.pthread_mutex_lock(mutex)
    if how == "with the interpreter":
        sum(range(10**12))
    while True:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            add_line("ledger", f"cancelled {number} {os.getpid()}")

@flow.task(breaker=CircuitBreaker("smtp"), bulkhead=Bulkhead("smtp", 2))
async def gated(number: int, seconds: float = 0.0) -> int:
    return await work(number, seconds)

@flow.task(retry=Retry(attempts=3, base=0.3, jitter="none"))
async def flaky(number: int) -> int:
    add_line("ledger", f"attempt-{current_job().attempt} {number} {os.getpid()}")
    if current_job().attempt < 3:
        raise OSError("not yet")
    return number
"""


class Place(AbstractContextManager["Place"]):
    """A folder with an app in it, and the processes that were started there: they end with the block."""

    def __init__(self, folder: Path, **settings: object) -> None:
        self.folder = folder
        (folder / "app.py").write_text(APP)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TASKFLOW_")}
        self.env = {
            **inherited,
            "TASKFLOW_BROKER__URL": "sqlite:///jobs.db",
            "TASKFLOW_HTTP__PORT": "0",
            "TASKFLOW_LOG__FORMAT": "json",
            "TASKFLOW_WORKER__LEASE_S": "1",
            **{name if name == "FRAGILE" else f"TASKFLOW_{name}": str(value) for name, value in settings.items()},
        }
        self.processes: list[Process] = []

    def start(self, *words: str, **options: object) -> Process:
        """`taskflow …`, in a session of its own, as under a terminal."""
        process = Process(self, words, len(self.processes), options)
        self.processes.append(process)
        return process

    def run(self, *words: str, **options: object) -> SimpleNamespace:
        """`taskflow …` to its end: its exit code, and what it printed."""
        process = self.start(*words, **options)
        code = process.end()
        return SimpleNamespace(code=code, out=process.out, err=process.err)

    def here(self, *words: str) -> SimpleNamespace:
        """As `run`, but in this process: for what starts nothing, and costs half a second to start."""
        with pytest.MonkeyPatch.context() as patch:
            for name in [name for name in os.environ if name.startswith("TASKFLOW_")]:
                patch.delenv(name)
            for name, value in self.env.items():
                patch.setenv(name, value)
            patch.syspath_prepend(self.folder)
            patch.delitem(sys.modules, "app", raising=False)
            patch.chdir(self.folder)
            result = CliRunner().invoke(cli, words)
            sys.modules.pop("app", None)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return SimpleNamespace(code=result.exit_code, out=result.stdout, err=result.stderr)

    def file(self, *lines: str) -> str:
        (self.folder / "jobs.jsonl").write_text("".join(f"{line}\n" for line in lines))
        return "jobs.jsonl"

    def submit(self, task: str, *calls: tuple[object, ...]) -> None:
        """Jobs of these arguments, from this process: it costs less than a command."""
        app: dict = {}
        exec(APP, app)
        flow = app["flow"]
        flow.settings = Settings.from_env({"TASKFLOW_BROKER__URL": f"sqlite:///{self.folder / 'jobs.db'}"})

        async def submit():
            async with flow:
                await flow.find(task).submit_many([flow.find(task).call(*arguments) for arguments in calls])

        asyncio.run(submit())

    def let_go(self) -> None:
        """Jobs of `wait` may end."""
        (self.folder / "let-go").touch()

    def ledger(self, *events: str) -> list[str]:
        """Numbers of the jobs of which `events` were told, in order."""
        path = self.folder / "ledger"
        told = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        return [number for event, number, _ in told if not events or event in events]

    def pids(self) -> set[int]:
        """Who ran jobs."""
        return {int(line.split()[2]) for line in (self.folder / "ledger").read_text().splitlines()}

    def ask(self, call):
        """What the broker answers to `call(broker)`."""

        async def asked():
            broker = SqliteBroker(self.folder / "jobs.db")
            await broker.open()
            try:
                return await call(broker)
            finally:
                await broker.close()

        return asyncio.run(asked())

    def jobs(self):
        return self.ask(lambda broker: broker.jobs(limit=10_000))

    def states(self) -> Counter[str]:
        return Counter(str(job.state) for job in self.jobs())

    def __exit__(self, *exc: object) -> None:
        for process in self.processes:
            process.kill()


class Process:
    """One command. Its output goes to files, so that it never waits for us."""

    def __init__(self, place: Place, words: tuple[str, ...], number: int, options: dict) -> None:
        self._out = place.folder / f"out-{number}"
        self._err = place.folder / f"err-{number}"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "taskflow", *words],
                env=place.env, cwd=place.folder, start_new_session=True,
                **{"stdin": subprocess.DEVNULL, "stdout": out, "stderr": err, **options},
            )  # fmt: skip
        self.pid = self._process.pid
        self._children: set[int] = set()

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    @property
    def code(self) -> int | None:
        return self._process.poll()

    def children(self) -> set[int]:
        """Its own, that live."""
        try:
            found = {int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()}
        except (FileNotFoundError, ProcessLookupError):
            found = set()
        self._children |= found
        return {pid for pid in found if is_alive(pid)}

    def tell(self, signum: int) -> None:
        self._process.send_signal(signum)

    def press_ctrl_c(self) -> None:
        """As a terminal does it: the whole process group of the command gets the signal."""
        os.killpg(self.pid, signal.SIGINT)

    def end(self, seconds: float = 20.0) -> int:
        """Its exit code, once it has ended by itself."""
        return self._process.wait(seconds)

    def kill(self) -> None:
        self.children()
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pid in self._children:
            if is_ours(pid):
                os.kill(pid, signal.SIGKILL)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def is_ours(pid: int) -> bool:
    """Whether a worker of these tests still has this pid."""
    try:
        return b"taskflow\0worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


def until(condition, what: str, seconds: float = 20.0) -> None:
    """Poll until `condition()` holds; fail after `seconds`."""
    give_up_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up_at, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)
