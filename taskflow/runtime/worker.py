"""A worker: claims jobs in batches, runs them in long-lived slots, settles them in batches, drains, hands back.

    claimer → buffer → slots → settler
                 ↑ beats vouch for all of it; upkeep takes back what dead workers held

Here is its life: what it is put together from, how it starts and ends, and what it does when the beats say that jobs
are lost or cancelled.
"""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from taskflow.brokers.base import Presence, WorkerState
from taskflow.clock import NEVER
from taskflow.core import events
from taskflow.core.decision import Cancel, Release
from taskflow.core.job import JobState
from taskflow.errors import BrokerError
from taskflow.runtime.attempt import Attempts
from taskflow.runtime.bell import Bell, ring
from taskflow.runtime.breakers import Breakers
from taskflow.runtime.calls import BrokerCalls
from taskflow.runtime.claim import Claimer
from taskflow.runtime.leases import Leases
from taskflow.runtime.processes import Processes
from taskflow.runtime.settle import Settler
from taskflow.runtime.slot import CANCELLED, LEASE_LOST, SHUTDOWN
from taskflow.runtime.slots import Slots
from taskflow.runtime.threads import ThreadSlots
from taskflow.runtime.upkeep import Upkeep
from taskflow.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from taskflow.clock import Timer
    from taskflow.runtime.parts import WorkerParts
    from taskflow.runtime.walk import Walk

_TICK_S = 0.25
# From the end of the drain, all that is left to do has this long in all. Of that, the last part is for what the broker
# has to be told, and its last for the end of loops, threads and processes: what is done early leaves more to the next.
END_S, _TELL_S, _CLOSE_S = 3.5, 1.5, 0.5
_JOIN_S = 0.2  # for tasks, and the thread of the beats: those that end do so at once


@dataclass(slots=True)
class Stopped:
    """How a worker ended: jobs that were cut off and handed back, and settlements that the broker never heard."""

    handed_back: int = 0
    unsettled: int = 0


class Worker:
    """Runs jobs between `start` and `stop`."""

    def __init__(self, parts: WorkerParts) -> None:
        self.name = parts.name
        self.concurrency = parts.concurrency
        self._host = socket.gethostname()
        self._made_at = parts.clock.now()
        self._broker = parts.broker
        self._task_names = tuple(sorted(parts.tasks))
        self._emit = emit = parts.bus.emit
        self._clock = clock = parts.clock
        self._weights = dict(parts.queues)
        self._calls = calls = BrokerCalls(clock, parts.rng, emit)
        self._leases = Leases(
            parts.broker,
            calls,
            clock,
            worker=self.name,
            lease_s=parts.settings.worker.lease_s,
            on_lost=self._on_lost,
            on_cancel=self._on_cancel,
            on_distrust=self._on_distrust,
            presence=self.presence,
        )
        self._room = room = Bell()  # it may claim more than it could until now
        self._less = Bell()  # something ended, while draining
        breakers = Breakers(clock, emit, parts.rng)
        self._settler = Settler(
            parts.broker, calls, clock, emit, self._leases.drop, room.ring_if_wanted, breakers.heard
        )
        self._threads = ThreadSlots(parts.threads)
        children = min(parts.settings.worker.children, parts.concurrency)
        self._processes = Processes(children, parts.settings, clock, emit)
        self._attempts = Attempts(
            broker=parts.broker,
            calls=calls,
            tasks=parts.tasks,
            settings=parts.settings,
            clock=clock,
            rng=parts.rng,
            emit=emit,
            leases=self._leases,
            settler=self._settler,
            breakers=breakers,
            threads=self._threads,
            processes=self._processes,
        )
        self._upkeep = Upkeep(
            parts.broker,
            calls,
            clock,
            settings=parts.settings,
            rng=parts.rng,
            emit=emit,
            on_sample=parts.on_sample,
            is_judge=lambda: self._leases.is_judge,
        )
        self._slots = Slots(
            parts.concurrency, clock, self._attempts, room=room, less=self._less, is_ending=self._is_ending
        )
        self._state = WorkerState.CLAIMING
        self._claimer = Claimer(
            parts,
            calls=calls,
            leases=self._leases,
            settler=self._settler,
            attempts=self._attempts,
            slots=self._slots,
            room=room,
            state=lambda: self._state,
        )
        self._loops: dict[str, asyncio.Task[None]] = {}
        self._is_cut_off = False
        self._end_at = NEVER
        self._phase: tuple[asyncio.Future[None], float] | None = None
        self._timer: Timer | None = None
        self._cancelled: asyncio.CancelledError | None = None  # while it stopped

    # --- what others ask ---------------------------------------------

    @property
    def in_flight(self) -> int:
        """Handlers that run now."""
        return len(self._attempts.running)

    @property
    def is_draining(self) -> bool:
        """Whether it is on its way out."""
        return self._state is WorkerState.DRAINING

    @property
    def is_claiming(self) -> bool:
        """Neither paused nor on its way out."""
        return self._state is WorkerState.CLAIMING

    @property
    def is_paused(self) -> bool:
        """Told to stop claiming, without draining."""
        return self._state is WorkerState.PAUSED

    @property
    def abandoned_threads(self) -> int:
        """Threads of sync handlers that ran out of time and have not ended."""
        return self._threads.places.abandoned

    @property
    def is_idle(self) -> bool:
        """Nothing runs, waits here, or is to be settled. Threads that were given up on do not count."""
        return not self._attempts.running and not self._slots.buffer and not self._settler.unsettled

    @property
    def is_waiting(self) -> bool:
        """The broker has nothing for it now: the last claim found none, and no word of more has come since."""
        return self._claimer.is_waiting

    def presence(self) -> Presence:
        """What it says of itself with each beat. Any thread may ask."""
        return Presence(
            host=self._host,
            pid=os.getpid(),
            version=__version__,
            up_s=self._clock.now() - self._made_at,
            queues=self._weights,
            concurrency=self.concurrency,
            busy=self._slots.busy,
            state=self._state,
        )

    def longest_running_s(self) -> float:
        """Age of the oldest handler that runs now."""
        now = self._clock.now()
        return now - min((walk.started_at for walk in self._attempts.running), default=now)

    def pause(self) -> None:
        """Stop claiming; what is here goes on."""
        if self._state is WorkerState.CLAIMING:
            self._state = WorkerState.PAUSED

    # --- life --------------------------------------------------------

    async def start(self) -> None:
        """Take up work. Raises `BrokerError` if the broker cannot be reached now; then nothing runs."""
        await self._leases.start()
        self._emit(events.WorkerStarted(self.name, tuple(self._weights), self.concurrency, self._task_names))
        for name, loop in (
            ("claim", self._claimer.run),
            ("settle", self._settler.run),
            ("tick", self._tick),
            ("reclaim", self._upkeep.run),
        ):
            self._keep_up(name, loop)

    def _keep_up(self, name: str, loop: Callable[[], Any]) -> None:
        self._loops[name] = asyncio.create_task(self._calls.keep_up(name, loop), name=f"taskflow {name}")

    async def _tick(self) -> None:
        while True:
            await self._clock.sleep(_TICK_S)
            self._settler.announce()
            self._claimer.keep_pace(_TICK_S)

    async def stop(self, drain_s: float) -> Stopped:
        """Stop claiming, let what runs end within `drain_s`, cut off the rest and hand it back: no attempt is spent.

        It takes `END_S` seconds more at most, broker or no broker: what matters most comes first.
        To be called once. Cancelled meanwhile, it hurries: it cuts off what runs, hands it back, and raises that then.
        """
        self._state = WorkerState.DRAINING
        self._emit(events.WorkerDraining(self.name, self.in_flight, drain_s))
        self._room.ring()
        self._claimer.give_back_unstarted()
        now = self._clock.now()
        self._end_at = now + END_S if self._is_cut_off else now + drain_s + END_S
        await self._before_last(END_S, self._drained)
        cut_off = list(self._attempts.running)
        if cut_off:
            self.cut_off()
        self._hurry()
        # A claim that is under way is waited for: cut short, its jobs would be ours without our knowing.
        await self._before_last(_TELL_S, self._nothing_runs)
        self._loops["claim"].cancel()
        ending = asyncio.create_task(self._processes.close(self._left_s()), name="taskflow processes")
        for running in list(self._attempts.running):  # handlers that do not stop
            self._attempts.hand_back(running)
            cut_off.append(self._leases.claims.get(running.claim.job_id, running))
        if self._loops["settle"].done():  # somebody cancelled all tasks of the loop, this worker's too
            self._keep_up("settle", self._settler.run)
        is_told = await self._before_last(_CLOSE_S, self._settler.idle)
        stopped = Stopped(
            self._attempts.cut_off - sum(map(_is_cancelled, cut_off)), 0 if is_told else self._settler.unsettled
        )
        await self._before_last(0.0, self._close)
        await self._before_last(-NEVER, lambda: asyncio.wait([ending]))  # bounded, in the real time of processes
        ending.result()
        self._emit(events.WorkerStopped(self.name, stopped.handed_back))
        if self._cancelled is not None:
            raise self._cancelled
        return stopped

    def cut_off(self) -> int:
        """Cancel what runs, to be handed back, and start nothing more. Returns how many."""
        self.pause()
        self._is_cut_off = True
        self._claimer.give_back_unstarted()
        running = list(self._attempts.running)
        for walk in running:
            walk.slot.stop(SHUTDOWN)
        self._less.ring()
        self._hurry()
        return len(running)

    def _hurry(self) -> None:
        """The drain is over."""
        self._end_at = min(self._end_at, self._clock.now() + END_S)
        if self._phase is not None:
            self._time_phase(*self._phase)

    def _left_s(self) -> float:
        return max(0.0, self._end_at - self._clock.now())

    async def _close(self) -> None:
        tasks = [*self._loops.values(), *self._slots.tasks]
        for task in tasks:
            task.cancel()
        self._threads.close()
        await self._let_end(tasks)
        await self._leases.close(max(_JOIN_S, self._left_s() - _CLOSE_S))
        with suppress(BrokerError):  # announced; its lease will end by itself
            await self._calls.once("leave", lambda: self._broker.leave(self.name))

    async def _let_end(self, tasks: list[asyncio.Task[None]]) -> None:
        """A handler may not stop even then."""
        waits = [asyncio.create_task(asyncio.wait(tasks)), asyncio.create_task(self._clock.sleep(_JOIN_S))]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _drained(self) -> None:
        while (self._attempts.running or self._slots.buffer) and not self._is_cut_off:
            await self._less.expect()

    async def _nothing_runs(self) -> None:
        await asyncio.wait([self._loops["claim"]])
        while self._attempts.running:
            await self._less.expect()

    async def _before_last(self, last_s: float, work: Callable[[], Coroutine[Any, Any, Any]]) -> bool:
        """Whether `await work()` ended before the last `last_s` seconds of the time to stop in began.

        Cancelled, it hurries, and waits on.
        """
        task = asyncio.create_task(work())
        due: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._time_phase(due, last_s)
        await self._first_of(task, due)
        self._phase = None
        if self._timer is not None:
            self._timer.cancel()
        if not task.done():
            task.cancel()
            # A driver whose server hangs takes its time to be cancelled.
            await self._first_of(task, asyncio.create_task(self._clock.sleep(_JOIN_S)))
        if not task.done() or task.cancelled():
            return False
        task.result()
        return True

    async def _first_of(self, task: asyncio.Task[Any], other: asyncio.Future[None]) -> None:
        try:
            while not task.done() and not other.done():
                try:
                    await asyncio.wait([task, other], return_when=asyncio.FIRST_COMPLETED)
                except asyncio.CancelledError as error:
                    self._cancelled = error
                    self.cut_off()
        finally:
            other.cancel()

    def _time_phase(self, due: asyncio.Future[None], last_s: float) -> None:
        """`due` is done in time: as it is now, for whoever hurries has less."""
        if self._timer is not None:
            self._timer.cancel()
        self._phase = due, last_s
        self._timer = self._clock.call_at(self._end_at - last_s, partial(ring, due))

    def _is_ending(self) -> bool:
        """Whether a slot that is cancelled by nobody we know is the end of this worker, or of the whole loop."""
        return self.is_draining or any(task.done() or task.cancelling() for task in self._loops.values())

    # --- what the beats say ------------------------------------------

    def _on_lost(self, lost: Mapping[str, int]) -> None:
        """Another worker may have them: stop what runs of them, forget what has not started.

        But not a handler that has completed its job by itself: that is why the broker counts it as running no more.
        """
        completed = {walk.claim.job_id for walk in self._running_of(lost) if walk.completion is not None}
        stopped = self._stop_holding({job_id: token for job_id, token in lost.items() if job_id not in completed})
        if stopped:
            self._emit(events.LeaseLost(self.name, stopped, "the broker gave them to others, or has lost them"))

    def _on_distrust(self) -> None:
        """No beat got through in time: others may have all our jobs by now. Stop touching the world."""
        here = [*self._attempts.running, *self._slots.buffer]
        stopped = self._stop_holding({walk.claim.job_id: walk.claim.token for walk in here})
        if stopped:
            self._emit(events.LeaseLost(self.name, stopped, "no beat got through in time"))

    def _stop_holding(self, claims: Mapping[str, int]) -> tuple[str, ...]:
        """Stop these, by job id and token. What has ended here already waits for the broker's own word about it."""
        stopped = self._slots.take_out(lambda walk: claims.get(walk.claim.job_id) == walk.claim.token)
        for walk in self._running_of(claims):
            walk.slot.stop(LEASE_LOST)
            stopped.append(walk)
        self._leases.drop(stopped)
        return tuple(sorted(walk.claim.job_id for walk in stopped))

    def _running_of(self, claims: Mapping[str, int]) -> list[Walk]:
        """What runs here of these, by job id and token, and is still ours."""
        found = [self._leases.find(*key) for key in claims.items()]
        return [walk for walk in found if walk is not None and walk in self._attempts.running]

    def _on_cancel(self, cancelled: Mapping[str, int]) -> None:
        """A person cancelled them: stop what runs, and settle what has not started."""
        for walk in self._running_of(cancelled):
            walk.slot.stop(CANCELLED)
        for walk in self._slots.take_out(lambda walk: cancelled.get(walk.claim.job_id) == walk.claim.token):
            self._attempts.settle_unstarted(walk, Cancel())


def _is_cancelled(walk: Walk) -> bool:
    """Whether a job that was handed back is nobody's any more: a person had cancelled it, and no handler heeded it."""
    return getattr(walk, "state", None) is JobState.CANCELLED and type(walk.decision) is Release
