"""Threads of sync handlers: bounded, used again, and never in the way of the exit."""

from __future__ import annotations

import asyncio
import contextvars
import subprocess
import sys
import threading
import time
from functools import partial
from typing import NoReturn

import pytest

from taskflow.runtime.threads import NoThread, ThreadSlots

pytestmark = pytest.mark.anyio


async def test_work_runs_in_a_copy_of_the_callers_context() -> None:
    variable = contextvars.ContextVar("variable", default="outside")
    variable.set("caller")
    slots = ThreadSlots(1)
    await slots.places.take()

    def work() -> str:
        before = variable.get()
        variable.set("thread")
        return before

    assert await slots.start(work) == "caller"
    assert variable.get() == "caller"
    slots.close()


async def test_no_more_threads_than_slots_ever_start_and_they_are_used_again() -> None:
    slots = ThreadSlots(2)
    names: set[str] = set()

    async def one() -> None:
        await slots.places.take()
        names.add(await slots.start(lambda: threading.current_thread().name))
        slots.places.give_back()

    await asyncio.gather(*[one() for _ in range(50)])

    assert len(names) <= 2
    slots.close()


@pytest.mark.parametrize("error", [StopIteration("stop"), SystemExit(2), KeyboardInterrupt(), asyncio.CancelledError()])
async def test_what_is_raised_in_a_thread_never_stops_the_loop(error: BaseException) -> None:
    slots = ThreadSlots(1)
    await slots.places.take()

    def work() -> NoReturn:
        raise error

    with pytest.raises(RuntimeError, match=type(error).__name__) as raised:
        await slots.start(work)

    assert raised.value.__cause__ is error
    slots.close()


async def test_work_that_gets_no_thread_is_refused_and_never_runs_later(monkeypatch: pytest.MonkeyPatch) -> None:
    slots = ThreadSlots(1)
    await slots.places.take()
    ran: list[str] = []

    def refuse(_thread: threading.Thread) -> NoReturn:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(NoThread, match="can't start new thread"):
            slots.start(lambda: ran.append("refused"))
    await slots.start(lambda: ran.append("next"))

    assert ran == ["next"]
    slots.close()


async def test_idle_threads_end_when_the_pool_is_closed() -> None:
    slots = ThreadSlots(1)
    await slots.places.take()
    thread = await slots.start(threading.current_thread)

    slots.close()
    await asyncio.to_thread(thread.join, 10)

    assert not thread.is_alive()


async def test_a_thread_holds_nothing_of_its_last_job() -> None:
    import gc
    import weakref

    class Large:
        pass

    slots = ThreadSlots(1)
    await slots.places.take()
    things = [Large()]
    seen = weakref.ref(things[0])

    await slots.start(partial(id, things[0]))
    things.clear()
    await asyncio.sleep(0)
    end = time.monotonic() + 10
    while seen() is not None and time.monotonic() < end:
        gc.collect()
        await asyncio.sleep(0.001)

    assert seen() is None
    slots.close()


def test_a_thread_that_hangs_does_not_hold_up_the_exit() -> None:
    program = """
import asyncio, threading
from taskflow import Settings, TaskFlow
from taskflow.settings import BrokerSettings
flow = TaskFlow(settings=Settings(broker=BrokerSettings(url="memory://")))
started = threading.Event()
@flow.task(timeout=0.05)
def hangs() -> None:
    started.set()
    threading.Event().wait()
async def main():
    async with flow.worker(drain=0):
        await hangs.submit()
        while not started.is_set():
            await asyncio.sleep(0.001)
    print("left")
asyncio.run(main())
"""

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)

    assert done.stderr == ""
    assert done.stdout == "left\n"
    assert done.returncode == 0
