from __future__ import annotations

import asyncio
import selectors
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskflow import clock as clocks
from taskflow.clock import LoopClock, Timer, TimerHeap, sleep_on

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

BEGAN_AT = 1_000.0


def nothing() -> None:
    pass


def boom() -> None:
    raise RuntimeError("boom")


# ---- the heap ----


def test_timers_fire_in_the_order_of_their_instants() -> None:
    heap, fired = TimerHeap(), []
    for when in (3.0, 1.0, 2.0):
        heap.push(when, lambda when=when: fired.append(when))

    heap.fire(3.0)

    assert fired == [1.0, 2.0, 3.0]


def test_timers_of_one_instant_fire_in_the_order_of_their_making() -> None:
    heap, fired = TimerHeap(), []
    for name in "abc":
        heap.push(1.0, lambda name=name: fired.append(name))

    heap.fire(1.0)

    assert fired == ["a", "b", "c"]


def test_a_timer_fires_at_its_instant_not_before_and_only_once() -> None:
    heap, fired = TimerHeap(), []
    heap.push(2.0, lambda: fired.append("due"))

    heap.fire(1.999)
    assert fired == []
    heap.fire(2.0)
    heap.fire(3.0)
    assert fired == ["due"]


def test_a_cancelled_timer_never_fires() -> None:
    heap, fired = TimerHeap(), []
    timer = heap.push(1.0, lambda: fired.append("cancelled"))
    heap.push(1.0, lambda: fired.append("kept"))

    timer.cancel()
    heap.fire(1.0)

    assert fired == ["kept"]


def test_the_earliest_is_the_next_that_still_counts() -> None:
    heap = TimerHeap()
    first, second = heap.push(1.0, nothing), heap.push(2.0, nothing)
    heap.push(3.0, nothing)

    assert heap.earliest() == 1.0
    first.cancel()
    second.cancel()
    assert heap.earliest() == 3.0
    heap.fire(3.0)
    assert heap.earliest() is None


def test_cancelling_twice_or_too_late_is_harmless() -> None:
    heap = TimerHeap()
    cancelled, fired = heap.push(1.0, nothing), heap.push(1.0, nothing)

    cancelled.cancel()
    cancelled.cancel()
    heap.fire(1.0)
    cancelled.cancel()
    fired.cancel()

    assert (heap.earliest(), heap._dead) == (None, 0)


def test_a_callback_may_cancel_one_that_is_due_with_it() -> None:
    heap, fired, due = TimerHeap(), [], []
    heap.push(1.0, lambda: [timer.cancel() for timer in due])
    due.append(heap.push(1.0, lambda: fired.append("cancelled")))

    heap.fire(1.0)

    assert fired == []


def test_a_callback_may_cancel_so_many_that_the_heap_is_swept_under_it() -> None:
    heap, fired = TimerHeap(), []
    many = [heap.push(2.0, nothing) for _ in range(500)]
    heap.push(1.0, lambda: [timer.cancel() for timer in many])
    heap.push(1.5, lambda: fired.append("kept"))

    heap.fire(2.0)

    assert fired == ["kept"]
    assert heap.earliest() is None


def test_a_callback_may_push_one_that_is_due_already() -> None:
    heap, fired = TimerHeap(), []
    heap.push(1.0, lambda: heap.push(0.5, lambda: fired.append("pushed")))

    heap.fire(1.0)

    assert fired == ["pushed"]


def test_a_callback_that_raises_loses_none_of_the_others() -> None:
    heap, fired = TimerHeap(), []
    heap.push(1.0, boom)
    heap.push(1.0, lambda: fired.append("with it"))
    heap.push(2.0, lambda: fired.append("later"))

    with pytest.raises(RuntimeError, match="boom"):
        heap.fire(1.0)

    heap.fire(2.0)
    assert fired == ["with it", "later"]


def test_a_timer_knows_nothing_of_its_callback_once_it_is_over() -> None:
    heap = TimerHeap()
    fired, cancelled = heap.push(1.0, nothing), heap.push(1.0, nothing)

    heap.fire(1.0)
    cancelled.cancel()

    assert (fired.callback, cancelled.callback) == (None, None)


@pytest.mark.parametrize("live", [0, 1, 100])
def test_the_heap_stays_as_small_as_its_use(live: int) -> None:
    heap = TimerHeap()
    for number in range(live):
        heap.push(2.0 + number, nothing)

    for _ in range(10_000):  # a deadline for every job; nearly all are cancelled long before they are due
        heap.push(1.0, nothing).cancel()
        assert len(heap._heap) <= 2 * live + 66

    assert heap.earliest() == (2.0 if live else None)


def test_a_few_cancelled_timers_are_not_worth_a_sweep() -> None:
    heap = TimerHeap()
    timers = [heap.push(1.0, nothing) for _ in range(64)]

    for timer in timers:
        timer.cancel()

    assert len(heap._heap) == 64


def test_a_heap_that_is_mostly_alive_is_not_swept() -> None:
    heap = TimerHeap()
    timers = [heap.push(1.0, nothing) for _ in range(1_000)]

    for timer in timers[:500]:
        timer.cancel()
    assert len(heap._heap) == 1_000
    timers[500].cancel()
    assert (len(heap._heap), heap._dead) == (499, 0)


@given(
    st.lists(
        st.tuples(st.just("push"), st.integers(0, 20))
        | st.tuples(st.just("cancel"), st.integers(0, 200))
        | st.tuples(st.just("fire"), st.integers(0, 20)),
        max_size=200,
    )
)
def test_a_heap_does_what_a_sorted_list_would(steps: list[tuple[str, int]]) -> None:
    heap, timers, fired = TimerHeap(), [], []
    waiting: dict[int, int] = {}  # number of the timer → its instant
    for what, number in steps:
        if what == "push":
            name = len(timers)
            timers.append(heap.push(number, lambda name=name: fired.append(name)))
            waiting[name] = number
        elif what == "cancel" and timers:
            timers[number % len(timers)].cancel()
            waiting.pop(number % len(timers), None)
        elif what == "fire":
            due = sorted((name for name, when in waiting.items() if when <= number), key=lambda name: waiting[name])
            fired.clear()
            heap.fire(number)

            assert fired == due
            waiting = {name: when for name, when in waiting.items() if name not in due}
        assert heap.earliest() == min(waiting.values(), default=None)
        assert len([entry for entry in heap._heap if entry[2].callback is not None]) == len(waiting)
        assert heap._dead == len(heap._heap) - len(waiting)


# ---- the clock on an event loop whose time is the test's ----


class SkippingSelector(selectors.SelectSelector):
    """Instead of waiting it puts the clock forward: hours pass at once, and every instant is exact."""

    now = BEGAN_AT

    def select(self, timeout: float | None = None) -> list[Any]:
        assert timeout is not None, "nothing would ever wake the loop"
        self.now += max(0.0, timeout)
        return super().select(0)


class SkippingLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.selector = SkippingSelector()
        super().__init__(self.selector)

    def time(self) -> float:
        return self.selector.now

    def alarms(self) -> int:
        return sum(not handle.cancelled() for handle in self._scheduled)  # type: ignore[attr-defined]


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Iterator[SkippingLoop]:
    loop = SkippingLoop()
    monkeypatch.setattr(clocks.LoopClock, "now", staticmethod(loop.time))
    yield loop
    loop.close()


def on(loop: SkippingLoop, play: Callable[[LoopClock], Coroutine[Any, Any, None]]) -> None:
    loop.run_until_complete(play(LoopClock()))


def test_a_call_comes_at_its_instant(loop: SkippingLoop) -> None:
    fired: list[tuple[str, float]] = []

    async def play(clock: LoopClock) -> None:
        for name, after_s in (("c", 7_200.0), ("a", 0.0), ("b", 3.0)):
            clock.call_at(clock.now() + after_s, lambda name=name: fired.append((name, clock.now())))
        await clock.sleep(7_200)

    on(loop, play)

    assert fired == [("a", BEGAN_AT), ("b", BEGAN_AT + 3), ("c", BEGAN_AT + 7_200)]


def test_an_instant_that_is_over_is_called_at_once(loop: SkippingLoop) -> None:
    fired: list[float] = []

    async def play(clock: LoopClock) -> None:
        clock.call_at(clock.now() - 60, lambda: fired.append(clock.now()))
        await clock.sleep(0)

    on(loop, play)

    assert fired == [BEGAN_AT]


def test_all_timers_share_one_alarm(loop: SkippingLoop) -> None:
    async def play(clock: LoopClock) -> None:
        for after_s in (50, 10, 90, 5, 70):
            clock.call_at(clock.now() + after_s, nothing)
            assert loop.alarms() == 1

    on(loop, play)


def test_no_alarm_is_left_when_there_is_nothing_to_wait_for(loop: SkippingLoop) -> None:
    async def play(clock: LoopClock) -> None:
        timer = clock.call_at(clock.now() + 5, nothing)
        clock.call_at(clock.now() + 9, nothing).cancel()
        await clock.sleep(6)

        assert (loop.alarms(), timer.callback) == (0, None)

    on(loop, play)


def test_a_callback_may_ask_for_another_call_sooner_or_later_than_the_next(loop: SkippingLoop) -> None:
    fired: list[tuple[str, float]] = []

    def note(name: str, clock: LoopClock) -> Callable[[], None]:
        return lambda: fired.append((name, clock.now() - BEGAN_AT))

    async def play(clock: LoopClock) -> None:
        clock.call_at(BEGAN_AT + 1, lambda: clock.call_at(BEGAN_AT + 2, note("sooner", clock)))
        clock.call_at(BEGAN_AT + 1, lambda: clock.call_at(BEGAN_AT + 9, note("later", clock)))
        clock.call_at(BEGAN_AT + 5, note("next", clock))
        await clock.sleep(10)

    on(loop, play)

    assert fired == [("sooner", 2), ("next", 5), ("later", 9)]


def test_a_callback_that_raises_is_reported_and_the_others_are_called(loop: SkippingLoop) -> None:
    reported: list[Any] = []
    fired: list[tuple[str, float]] = []
    loop.set_exception_handler(lambda _, context: reported.append(context["exception"]))

    async def play(clock: LoopClock) -> None:
        clock.call_at(BEGAN_AT + 1, boom)
        clock.call_at(BEGAN_AT + 1, lambda: fired.append(("with it", clock.now())))
        clock.call_at(BEGAN_AT + 2, lambda: fired.append(("later", clock.now())))
        await clock.sleep(3)

    on(loop, play)

    assert [str(error) for error in reported] == ["boom"]
    assert fired == [("with it", BEGAN_AT + 1), ("later", BEGAN_AT + 2)]


@pytest.mark.parametrize(("seconds", "slept_s"), [(0, 0), (-5, 0), (0.25, 0.25), (86_400, 86_400)])
def test_a_sleep_lasts_as_long_as_asked(loop: SkippingLoop, seconds: float, slept_s: float) -> None:
    async def play(clock: LoopClock) -> None:
        await clock.sleep(seconds)

        assert clock.now() == BEGAN_AT + slept_s

    on(loop, play)


def test_a_sleep_that_is_cancelled_leaves_no_timer(loop: SkippingLoop) -> None:
    async def play(clock: LoopClock) -> None:
        sleeper = asyncio.ensure_future(clock.sleep(60))
        await asyncio.sleep(0)
        sleeper.cancel()
        await asyncio.wait([sleeper])

        assert sleeper.cancelled()
        assert clock._timers.earliest() is None

    on(loop, play)


def test_a_sleep_that_is_due_and_cancelled_at_once_ends_cancelled(loop: SkippingLoop) -> None:
    class Hand:
        """A clock whose timers the test fires."""

        heap = TimerHeap()

        def now(self) -> float:
            return 0.0

        def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
            return self.heap.push(when, callback)

    async def play(_: LoopClock) -> None:
        hand = Hand()
        sleeper = asyncio.ensure_future(sleep_on(hand, 1))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        sleeper.cancel()
        hand.heap.fire(1)
        await asyncio.wait([sleeper])

        assert sleeper.cancelled()

    on(loop, play)


def test_a_clock_that_is_used_in_another_loop_starts_with_no_timers(loop: SkippingLoop) -> None:
    clock, fired = LoopClock(), []

    async def leave() -> None:
        clock.call_at(clock.now() + 5, lambda: fired.append("of the loop before"))

    async def begin_again() -> None:
        await clock.sleep(60)
        fired.append("slept")

    other = SkippingLoop()
    other.run_until_complete(leave())
    loop.run_until_complete(begin_again())
    other.close()

    assert fired == ["slept"]


def test_an_alarm_of_the_loop_before_disturbs_nobody(loop: SkippingLoop) -> None:
    clock, fired = LoopClock(), []
    other = SkippingLoop()

    async def leave() -> None:
        clock.call_at(clock.now() + 5, nothing)

    async def begin_again() -> None:
        clock.call_at(clock.now() + 60, lambda: fired.append("called"))

    other.run_until_complete(leave())
    loop.run_until_complete(begin_again())
    loop.selector.now += 60
    other.run_until_complete(asyncio.sleep(10))  # the alarm of `leave` rings here
    other.close()

    assert fired == []
    loop.run_until_complete(asyncio.sleep(1))
    assert fired == ["called"]


def test_the_clock_tells_monotonic_seconds_and_those_of_the_wall() -> None:
    clock = LoopClock()

    assert time.monotonic() <= clock.now() <= time.monotonic()
    assert time.time() <= clock.wall() <= time.time()
