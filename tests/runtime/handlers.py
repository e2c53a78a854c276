"""Handlers that run in child processes, which import this module."""

from __future__ import annotations

import asyncio
import ctypes
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from loguru import logger
from pydantic import BaseModel

from taskflow import BulkheadFull, GiveUp, RetryLater, Snooze, current_job
from taskflow.telemetry.context import current_correlation_id


class Point(BaseModel):
    x: int
    y: int = 0


class OutOfPaper(Exception):
    """An error of this module."""


class Jam(OutOfPaper):
    """One more."""


def pid() -> int:
    return os.getpid()


def double(number: int) -> int:
    return 2 * number


def mirrored(point: Point) -> Point:
    assert type(point) is Point
    return Point(x=point.y, y=point.x)


def nothing() -> None:
    pass


def no_json() -> Any:
    return threading.Lock()


def large(size: int) -> str:
    return "x" * size


def where_am_i() -> dict[str, Any]:
    job = current_job()
    return {
        "id": job.id,
        "task": job.task,
        "attempt": job.attempt,
        "lane": job.lane,
        "token": job.token > 0,
        "left": 0 < job.remaining_s() <= 40,
        "cid": (job.correlation_id, current_correlation_id()),
        "main": threading.current_thread() is threading.main_thread(),
        "checkpoint": job.last_checkpoint,
    }


def hang(file: str) -> None:
    """Write the pid into `file`, and never end; not even for those who ask."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Path(file).write_text(str(os.getpid()))
    while True:
        time.sleep(60)


def hang_hard(file: str) -> None:
    """As `hang`, in a C function that never lets go of the interpreter: no other thread of the process can run."""
    Path(file).write_text(str(os.getpid()))
    ctypes.PyDLL(None).sleep(600)


def hang_with_a_program(file: str) -> None:
    """As `hang`, with a program that it started."""
    program = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(file).write_text(str(program.pid))
    program.wait()


def leave_a_program_and_die(file: str) -> None:
    """The program holds the pipe to the worker open."""
    program = os.fork()
    if program == 0:
        time.sleep(600)
    Path(file).write_text(str(program))
    os._exit(7)


def throttle(retry_after: str) -> None:
    from tests.runtime.made import http_error  # it takes a while, and only this needs it

    raise http_error(429, retry_after)


def fail(name: str, message: str = "no luck") -> None:
    raise {
        "Jam": Jam(message),
        "ValueError": ValueError(message),
        "OSError": OSError(message),
        "group": ExceptionGroup(message, [Jam("one"), ValueError("two")]),
        "jams": ExceptionGroup(message, [Jam("one"), Jam("two")]),
        "SystemExit": SystemExit(3),
        "KeyboardInterrupt": KeyboardInterrupt(),
        "RetryLater": RetryLater(30, message),
        "GiveUp": GiveUp(message),
        "Snooze": Snooze(60, message, hold="printer"),
        "BulkheadFull": BulkheadFull(message, retry_after_s=7),
    }[name]


def die(how: str) -> None:
    match how:
        case "exit":
            os._exit(7)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "segfault":
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            ctypes.string_at(0)


def close_all_files() -> None:
    """As a daemon does at its start."""
    os.closerange(3, 100)


def babble() -> None:
    """Write into all that is open."""
    for number in range(3, 100):
        with suppress(OSError):
            os.write(number, b"\xff" * 100)
    time.sleep(600)


def allocate(size: int) -> int:
    return len(bytearray(size))


def spin(seconds: float) -> float:
    """Use up CPU time, and say how much this process has used in all."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
    return time.process_time()


def note() -> Any:
    job = current_job()
    if job.last_checkpoint is not None:
        return job.last_checkpoint
    asyncio.run(job.progress({"done": 1}))
    asyncio.run(job.checkpoint({"offset": 42}))
    raise OSError("again")


def write(text: str) -> None:
    print(text)
    print(text, file=sys.stderr)
    logger.info(text)


def arguments() -> list[str]:
    return [*sys.argv, *sys.path]


def be_told_to_stop() -> str:
    """What a service manager sends to each process of a service."""
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    return "still here"


def impostor() -> None:
    """Not what it seems: the name stands for another function."""


registered_impostor = impostor


def impostor() -> None:  # type: ignore[no-redef]
    pass
