"""What stops in a slot, stops; what ends in it leaves nothing behind for the next job."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import anyio
import pytest

from taskflow.runtime.slot import CANCELLED, LEASE_LOST, SHUTDOWN, TIMEOUT, Failure, Slot, Stopped
from taskflow.testing import VirtualClock, all_blocked

pytestmark = pytest.mark.anyio

Work = Callable[[], Awaitable[Any]]


class Runs:
    """A slot in a task of its own that runs `works` one after the other; `ends` is what came of each."""

    def __init__(self, clock: VirtualClock, *works: Work, timeout_s: float = 100.0, is_ending: bool = False) -> None:
        self.slot = Slot(clock, lambda: is_ending)
        self.ends: list[Any] = []
        self.spent: list[bool] = []
        self.task = asyncio.create_task(self._serve(clock, works, timeout_s))

    async def _serve(self, clock: VirtualClock, works: tuple[Work, ...], timeout_s: float) -> None:
        self.slot.bind()
        for work in works:
            try:
                self.ends.append(await self.slot.run(work(), clock.now() + timeout_s))
            except Exception as error:
                self.ends.append(error)
            self.spent.append(self.slot.is_spent)


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


async def one() -> int:
    await asyncio.sleep(0)
    return 1


async def under_timeout() -> None:
    async with asyncio.timeout(1_000):
        await forever()


async def under_task_group() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(forever())
        group.create_task(forever())


async def under_anyio_group() -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(forever)
        await forever()


async def under_fail_after() -> None:
    with anyio.fail_after(1_000):
        await forever()


async def under_all_of_them() -> None:
    async with asyncio.TaskGroup() as group, asyncio.timeout(1_000):
        group.create_task(under_anyio_group())
        with anyio.move_on_after(1_000):
            await under_task_group()


async def cleaning_up() -> None:
    try:
        await forever()
    finally:
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    "handler",
    [
        forever,
        under_timeout,
        under_task_group,
        under_anyio_group,
        under_fail_after,
        under_all_of_them,
        cleaning_up,
    ],
)
async def test_a_stopped_handler_ends_and_the_next_job_hears_nothing_of_it(handler: Work) -> None:
    clock = VirtualClock()
    runs = Runs(clock, handler, one)

    await clock.advance(99)
    before = list(runs.ends)
    await clock.advance(1)
    await runs.task

    assert before == []
    assert isinstance(runs.ends[0], Stopped)
    assert runs.ends[0].why == TIMEOUT
    assert runs.ends[1] == 1
    assert runs.task.cancelling() == 0
    assert not runs.slot.is_spent


async def test_what_stopped_shows_where_the_handler_was() -> None:
    clock = VirtualClock()
    runs = Runs(clock, forever)

    await clock.advance(100)

    cause = runs.ends[0].__cause__
    places = []
    trace = cause.__traceback__
    while trace is not None:
        places.append(trace.tb_frame.f_code.co_name)
        trace = trace.tb_next
    assert "forever" in places


@pytest.mark.parametrize("is_alarm_first", [True, False])
async def test_a_deadline_in_the_turn_in_which_the_handler_ends_stops_that_job_or_none(is_alarm_first: bool) -> None:
    clock = VirtualClock()
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def handler() -> str:
        return await ready

    if not is_alarm_first:
        clock.call_at(100, lambda: ready.set_result("done"))
    runs = Runs(clock, handler, one)
    await all_blocked()
    if is_alarm_first:
        clock.call_at(100, lambda: ready.done() or ready.set_result("done"))
    await clock.advance(100)
    await runs.task

    assert runs.ends[0] == "done" or runs.ends[0].why == TIMEOUT
    assert runs.ends[1] == 1
    assert runs.task.cancelling() == 0


async def test_a_handler_that_finishes_although_it_was_stopped_has_its_result() -> None:
    clock = VirtualClock()

    async def finishes() -> str:
        try:
            await forever()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
        return "all the same"

    runs = Runs(clock, finishes, one)
    await clock.advance(100)
    await runs.task

    assert runs.ends == ["all the same", 1]
    assert runs.task.cancelling() == 0


async def test_a_handler_that_goes_on_is_stopped_again_ten_seconds_later_and_not_before() -> None:
    clock = VirtualClock()
    asked_at: list[float] = []

    async def stubborn() -> None:
        while len(asked_at) < 3:
            try:
                await forever()
            except asyncio.CancelledError:
                asked_at.append(clock.now())

    runs = Runs(clock, stubborn, one)
    await clock.advance(200)
    await runs.task

    assert asked_at == [100, 110, 120]
    assert runs.ends == [None, 1]


async def test_asking_again_with_every_beat_does_not_interrupt_the_clean_up() -> None:
    clock = VirtualClock()
    cleaned: list[str] = []

    async def handler() -> None:
        try:
            await forever()
        finally:
            await clock.sleep(5)
            cleaned.append("all of it")

    runs = Runs(clock, handler)
    await all_blocked()
    runs.slot.stop(CANCELLED)
    await clock.advance(3)
    runs.slot.stop(CANCELLED)
    runs.slot.stop(LEASE_LOST)
    await clock.advance(3)

    assert cleaned == ["all of it"]
    assert runs.ends[0].why == CANCELLED


async def test_an_error_of_the_clean_up_is_raised_and_the_slot_knows_why_it_came() -> None:
    clock = VirtualClock()

    async def handler() -> None:
        try:
            await forever()
        finally:
            raise OSError("the connection is gone")

    runs = Runs(clock, handler)
    await all_blocked()
    runs.slot.stop(SHUTDOWN)
    await all_blocked()

    assert isinstance(runs.ends[0], OSError)
    assert runs.slot.stopped == SHUTDOWN
    assert runs.task.cancelling() == 0


async def test_a_timeout_of_the_handlers_own_is_the_handlers_own() -> None:
    clock = VirtualClock()

    async def handler() -> None:
        async with asyncio.timeout(0):
            await forever()

    runs = Runs(clock, handler, one)
    await runs.task

    assert isinstance(runs.ends[0], TimeoutError)
    assert runs.slot.stopped is None
    assert runs.ends[1] == 1


async def test_both_timeouts_in_one_turn_are_ours_and_leave_nothing_behind() -> None:
    clock = VirtualClock()
    entered = asyncio.Event()

    async def handler() -> None:
        async with asyncio.timeout(1_000) as inner:
            entered.inner = inner  # type: ignore[attr-defined]
            await forever()

    runs = Runs(clock, handler, one)
    await all_blocked()
    entered.inner.reschedule(asyncio.get_running_loop().time() - 1)  # type: ignore[attr-defined]
    runs.slot.stop(TIMEOUT)
    await runs.task

    assert isinstance(runs.ends[0], Stopped)
    assert runs.ends[1] == 1
    assert runs.task.cancelling() == 0


async def test_a_handler_that_raises_cancelled_error_by_itself_has_failed() -> None:
    async def handler() -> None:
        raise asyncio.CancelledError

    runs = Runs(VirtualClock(), handler, one)
    await runs.task

    assert isinstance(runs.ends[0], Failure)
    assert isinstance(runs.ends[0].__cause__, asyncio.CancelledError)
    assert runs.ends[1] == 1


async def test_a_handler_that_awaits_what_somebody_else_cancelled_has_failed() -> None:
    async def handler() -> None:
        other = asyncio.create_task(forever())
        await asyncio.sleep(0)
        other.cancel()
        await other

    runs = Runs(VirtualClock(), handler, one)
    await runs.task

    assert isinstance(runs.ends[0], Failure)
    assert runs.ends[1] == 1


async def test_a_handler_that_cancels_its_own_task_has_failed_and_the_task_is_spent() -> None:
    async def handler() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    runs = Runs(VirtualClock(), handler)
    await runs.task

    assert isinstance(runs.ends[0], Failure)
    assert runs.slot.is_spent


async def test_a_cancellation_that_a_library_leaks_spends_the_task_not_the_job() -> None:
    async def handler() -> str:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0)
        return "done"

    runs = Runs(VirtualClock(), handler)
    await runs.task

    assert runs.ends == ["done"]
    assert runs.slot.is_spent


async def test_a_job_is_still_stopped_in_a_task_with_a_leaked_cancellation() -> None:
    clock = VirtualClock()

    async def handler() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            await forever()

    runs = Runs(clock, handler)
    await clock.advance(100)

    assert runs.ends[0].why == TIMEOUT


async def test_the_end_of_the_loop_is_a_shutdown_for_the_job() -> None:
    runs = Runs(VirtualClock(), forever, is_ending=True)
    await all_blocked()

    runs.task.cancel()
    await all_blocked()

    assert runs.ends[0].why == SHUTDOWN
    assert runs.slot.is_spent


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (SystemExit(3), "sys.exit(3)"),
        (BaseExceptionGroup("two", [SystemExit()]), "ExceptionGroup"),
        (KeyboardInterrupt(), "KeyboardInterrupt, which is no Exception"),
        (GeneratorExit(), "GeneratorExit, which is no Exception"),
    ],
)
async def test_what_is_no_exception_is_a_failure_of_the_job(error: BaseException, words: str) -> None:
    async def handler() -> None:
        raise error

    before = signal.signal(signal.SIGINT, lambda *_: None)  # signals are handled, as in a worker
    try:
        runs = Runs(VirtualClock(), handler, one)
        await runs.task
    finally:
        signal.signal(signal.SIGINT, before)

    assert isinstance(runs.ends[0], Failure)
    assert words in str(runs.ends[0])
    assert runs.ends[0].__cause__ is error
    assert runs.ends[1] == 1


async def test_a_keyboard_interrupt_is_the_persons_where_it_may_come_from_anywhere() -> None:
    slot = Slot(VirtualClock())
    slot.bind()

    async def handler() -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            slot.run(handler(), 100.0).send(None)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_persons_second_ctrl_c_ends_a_handler_that_does_not_wait(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(_BUSY)
    process = subprocess.Popen(
        [sys.executable, str(program)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "busy\n"

    process.send_signal(signal.SIGINT)  # cancels, which is not heard
    assert process.stdout.readline() == "told once\n"
    process.send_signal(signal.SIGINT)
    out, said = process.communicate(timeout=20)

    assert out == ""  # no failure of the handler
    assert "KeyboardInterrupt" in said


_BUSY = """
import asyncio, signal
from taskflow.runtime.slot import Slot
from taskflow.testing import VirtualClock

async def handler():
    print("busy", flush=True)
    task = asyncio.current_task()
    while not task.cancelling():
        pass
    print("told once", flush=True)
    while True:
        pass

async def main():
    slot = Slot(VirtualClock())
    slot.bind()
    try:
        await slot.run(handler(), 100.0)
    except Exception as error:
        print("swallowed", repr(error))

asyncio.run(main())
"""


async def test_the_end_of_the_loop_is_no_failure_of_the_handler() -> None:
    slot = Slot(VirtualClock())
    slot.bind()
    work = slot.run(asyncio.sleep(1), 100.0)
    work.send(None)

    thrown = await asyncio.create_task(_thrown(work))

    assert isinstance(thrown, GeneratorExit)


async def _thrown(work: Coroutine[Any, Any, Any]) -> BaseException | None:
    """What throwing `work` away raises in it: by another task than its own."""
    try:
        work.throw(GeneratorExit)
    except BaseException as error:
        return error
    return None


async def test_stopping_a_slot_in_which_nothing_runs_does_nothing() -> None:
    clock = VirtualClock()
    runs = Runs(clock, one)
    await runs.task

    runs.slot.stop(SHUTDOWN)
    await clock.advance(1_000)

    assert runs.ends == [1]
    assert runs.task.cancelling() == 0


@pytest.mark.parametrize("awaits_again", [True, False])
async def test_a_handler_that_has_itself_stopped_does_not_stop_the_next_job(awaits_again: bool) -> None:
    stops: list[Slot] = []

    async def handler() -> str:
        stops[0].stop(SHUTDOWN)
        if awaits_again:
            await asyncio.sleep(0)
        return "went on"

    runs = Runs(VirtualClock(), handler)
    stops.append(runs.slot)
    await asyncio.wait([runs.task])

    assert runs.ends[0] == "went on" or runs.ends[0].why == SHUTDOWN
    assert runs.slot.is_spent


async def test_a_context_variable_that_a_job_leaves_changed_spends_the_task() -> None:
    variable = contextvars.ContextVar("variable", default=0)

    async def leaves_it() -> None:
        variable.set(1)

    async def puts_it_back() -> None:
        token = variable.set(1)
        await asyncio.sleep(0)
        variable.reset(token)

    runs = Runs(VirtualClock(), puts_it_back, leaves_it)
    await runs.task

    assert runs.spent == [False, True]


async def test_one_timer_serves_a_slot_for_life() -> None:
    clock = VirtualClock()
    runs = Runs(clock, *[one] * 1_000)

    await runs.task

    assert len(clock._timers._heap) == 1
    runs.slot.unbind()
    assert clock._timers.earliest() is None


async def test_the_alarm_of_an_earlier_job_does_not_stop_a_later_one() -> None:
    clock = VirtualClock()

    async def takes(seconds: float) -> float:
        await clock.sleep(seconds)
        return seconds

    runs = Runs(clock, lambda: takes(60), lambda: takes(60), lambda: takes(100.5))
    await clock.advance(1_000)

    assert runs.ends[:2] == [60, 60]
    assert runs.ends[2].why == TIMEOUT
