"""A worker: claims jobs in batches, runs them in long-lived slots, settles them in batches, drains, hands back.

    claimer → buffer → slots → settler
                 ↑ beats vouch for all of it; upkeep takes back what dead workers held

Jobs without gates are claimed ahead of need (no more than will start within a second; given back when they have not);
jobs with gates are claimed only into slots that are free, or are about to be. Slots wake each other one at a time: a
job that never waits costs no wake-up, and jobs that wait fill all slots within a few turns of the loop.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from taskflow.brokers.base import ClaimRequest, Presence, WorkerState
from taskflow.clock import NEVER
from taskflow.core import events
from taskflow.core.decision import Cancel, Decision, Release
from taskflow.core.job import SUSPECT_AFTER
from taskflow.errors import BrokerError, BrokerUnavailable
from taskflow.runtime.attempt import Attempts
from taskflow.runtime.breakers import Breakers
from taskflow.runtime.calls import BrokerCalls, Pauses
from taskflow.runtime.leases import Leases
from taskflow.runtime.processes import Processes
from taskflow.runtime.settle import Settler
from taskflow.runtime.slot import CANCELLED, LEASE_LOST, SHUTDOWN, Slot
from taskflow.runtime.threads import ThreadSlots
from taskflow.runtime.turns import QueueTurns
from taskflow.runtime.upkeep import Upkeep
from taskflow.runtime.walk import Walk
from taskflow.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from taskflow.brokers.base import FullBroker, QueueCounts
    from taskflow.clock import Clock
    from taskflow.core.gate import Gate
    from taskflow.core.job import Claim
    from taskflow.runtime.task import TaskDef
    from taskflow.settings import Settings
    from taskflow.telemetry.bus import Bus

_UNSTARTED_S = 1.0  # a prefetched job that has not started by then goes back, for whoever has a free slot
_SOON_S = 0.1  # the wait for a slot that is worth a place at a gate
_TICK_S = 0.25
_IDLE_WAIT_S = 30.0  # a wait at the broker; it wakes up by itself when there is work
_FLUSH_S = 5.0  # at the end: how long the last claim, cut-off handlers, and the last settlements may take, each
_FRUITLESS = 20  # claims in a row that find nothing though the broker says there may be something: then breathe
_BREATH_S = 0.05


def _ignore_sample(_counts: list[QueueCounts], _gates: list[Gate]) -> None:
    """Nobody asked for it."""


@dataclass(slots=True)
class Stopped:
    """How a worker ended: jobs that were cut off and handed back, and settlements that the broker never heard."""

    handed_back: int = 0
    unsettled: int = 0


@dataclass(slots=True)
class WorkerParts:
    """What a worker is made of; `TaskFlow.worker` puts it together."""

    name: str
    broker: FullBroker
    tasks: Mapping[str, TaskDef]
    settings: Settings
    bus: Bus
    clock: Clock
    queues: Mapping[str, int]
    concurrency: int
    prefetch: int
    threads: int
    rng: random.Random = field(default_factory=random.Random)
    on_sample: Callable[[list[QueueCounts], list[Gate]], None] = _ignore_sample


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
        self._wants = parts.bus.wants
        self._clock = clock = parts.clock
        self._rng = parts.rng
        self._queues = tuple(parts.queues)
        self._weights = dict(parts.queues)
        self._turns = QueueTurns(self._weights)
        self._prefetch = parts.prefetch
        self._lease_s = parts.settings.worker.lease_s
        self._calls = calls = BrokerCalls(clock, parts.rng, emit)
        self._leases = Leases(
            parts.broker,
            calls,
            clock,
            worker=self.name,
            lease_s=self._lease_s,
            on_lost=self._on_lost,
            on_cancel=self._on_cancel,
            on_distrust=self._on_distrust,
            presence=self.presence,
        )
        breakers = Breakers(clock, emit, parts.rng)
        self._settler = Settler(parts.broker, calls, clock, emit, self._leases.drop, self._ask_again, breakers.heard)
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
        self._buffer: deque[Walk] = deque()
        self._idle: deque[asyncio.Future[None]] = deque()
        self._waking = False  # one idle slot has been woken and has not taken a job yet
        self._slots: set[asyncio.Task[None]] = set()
        self._slots_made = 0
        self._loops: dict[str, asyncio.Task[None]] = {}
        self._busy = 0  # slots that run a job, or keep their place for an abandoned thread
        self._suspects = 0
        self._ended_per_s = 0
        self._room: asyncio.Future[None] | None = None  # what the claimer waits for
        self._wants_room = False  # whether a job that ends, or the next tick, might let it claim more
        self._is_claiming = True
        self._is_draining = False
        self._is_cut_off = False
        self._is_waiting = False
        self._cancelled: asyncio.CancelledError | None = None  # while it stopped
        self._less = asyncio.Event()  # something ended, while draining

    # --- what others ask ---------------------------------------------

    @property
    def in_flight(self) -> int:
        """Handlers that run now."""
        return len(self._attempts.running)

    @property
    def is_draining(self) -> bool:
        """Whether it is on its way out."""
        return self._is_draining

    @property
    def is_claiming(self) -> bool:
        """Neither paused nor on its way out."""
        return self._is_claiming

    @property
    def is_paused(self) -> bool:
        """Told to stop claiming, without draining."""
        return not self._is_claiming and not self._is_draining

    @property
    def abandoned_threads(self) -> int:
        """Threads of sync handlers that ran out of time and have not ended."""
        return self._threads.places.abandoned

    @property
    def is_idle(self) -> bool:
        """Nothing runs, waits here, or is to be settled. Threads that were given up on do not count."""
        return not self._attempts.running and not self._buffer and not self._settler.unsettled

    @property
    def is_waiting(self) -> bool:
        """The broker has nothing for it now: the last claim found none, and no word of more has come since."""
        return self._is_waiting

    def presence(self) -> Presence:
        """What it says of itself with each beat. Any thread may ask."""
        state = WorkerState.CLAIMING
        if not self._is_claiming:
            state = WorkerState.DRAINING if self._is_draining else WorkerState.PAUSED
        return Presence(
            host=self._host,
            pid=os.getpid(),
            version=__version__,
            up_s=self._clock.now() - self._made_at,
            queues=self._weights,
            concurrency=self.concurrency,
            busy=self._busy,
            state=state,
        )

    def longest_running_s(self) -> float:
        """Age of the oldest handler that runs now."""
        now = self._clock.now()
        return now - min((walk.started_at for walk in self._attempts.running), default=now)

    def pause(self) -> None:
        """Stop claiming; what is here goes on."""
        self._is_claiming = False

    # --- life --------------------------------------------------------

    async def start(self) -> None:
        """Take up work. Raises `BrokerError` if the broker cannot be reached now; then nothing runs."""
        await self._leases.start()
        self._emit(events.WorkerStarted(self.name, self._queues, self.concurrency, self._task_names))
        for name, loop in (
            ("claim", self._claim_jobs),
            ("settle", self._settler.run),
            ("tick", self._tick),
            ("reclaim", self._upkeep.run),
        ):
            self._keep_up(name, loop)

    def _keep_up(self, name: str, loop: Callable[[], Any]) -> None:
        self._loops[name] = asyncio.create_task(self._calls.keep_up(name, loop), name=f"taskflow {name}")

    async def stop(self, drain_s: float) -> Stopped:
        """Stop claiming, let what runs end within `drain_s`, cut off the rest and hand it back: no attempt is spent.

        To be called once. Cancelled meanwhile, it hurries: it cuts off what runs, hands it back, and raises that then.
        """
        self._is_claiming, self._is_draining = False, True
        self._emit(events.WorkerDraining(self.name, self.in_flight, drain_s))
        self._make_room()
        # A claim that is under way is waited for: cut short, its jobs would be ours without our knowing.
        await self._within(_FLUSH_S, lambda: asyncio.wait([self._loops["claim"]]))
        self._loops["claim"].cancel()
        self._give_back_unstarted()
        await self._within(drain_s, self._drained)
        if self._attempts.running:
            self.cut_off()
            await self._within(_FLUSH_S, self._nothing_runs)
        for running in list(self._attempts.running):  # handlers that do not stop
            self._attempts.hand_back(running)
        if self._loops["settle"].done():  # somebody cancelled all tasks of the loop, this worker's too
            self._keep_up("settle", self._settler.run)
        is_told = await self._within(_FLUSH_S, self._settler.idle)
        stopped = Stopped(self._attempts.cut_off, 0 if is_told else self._settler.unsettled)
        await self._within(2 * _FLUSH_S, self._close)
        await self._within(NEVER, self._processes.close)  # bounded, in the real time that processes live in
        self._emit(events.WorkerStopped(self.name, stopped.handed_back))
        if self._cancelled is not None:
            raise self._cancelled
        return stopped

    def cut_off(self) -> int:
        """Cancel what runs, to be handed back, and start nothing more. Returns how many."""
        self._is_claiming, self._is_cut_off = False, True
        self._give_back_unstarted()
        running = list(self._attempts.running)
        for walk in running:
            walk.slot.stop(SHUTDOWN)
        self._less.set()
        return len(running)

    async def _close(self) -> None:
        tasks = [*self._loops.values(), *self._slots]
        for task in tasks:
            task.cancel()
        await self._within(_FLUSH_S, lambda: asyncio.wait(tasks))  # a handler may not stop even then
        await self._leases.close()
        self._threads.close()
        with suppress(BrokerError):  # announced; its lease will end by itself
            await self._calls.once("leave", lambda: self._broker.leave(self.name))

    async def _drained(self) -> None:
        while (self._attempts.running or self._buffer) and not self._is_cut_off:
            self._less.clear()
            await self._less.wait()

    async def _nothing_runs(self) -> None:
        while self._attempts.running:
            self._less.clear()
            await self._less.wait()

    async def _within(self, seconds: float, work: Callable[[], Coroutine[Any, Any, Any]]) -> bool:
        """Whether `await work()` ended within `seconds` of the injected clock. Cancelled, it hurries, and waits on."""
        task = asyncio.create_task(work())
        timer = self._clock.call_at(self._clock.now() + seconds, task.cancel)
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError as error:
                self._cancelled = error
                self.cut_off()
        timer.cancel()
        if task.cancelled():
            return False
        task.result()
        return True

    # --- claiming ----------------------------------------------------

    async def _claim_jobs(self) -> None:
        fruitless = 0
        pauses = Pauses(self._rng)
        while not self._is_draining:
            request = self._request()
            # Before it claims: what ends meanwhile makes room that the request did not ask for.
            room = self._expect_room(is_wanted=request is None or not request.gated or not request.suspects)
            if request is None:
                await room
                continue
            try:
                claims = await self._calls.or_pause("claim", partial(self._broker.claim, request), pauses)
            except BrokerUnavailable:
                continue  # not the same request: by now this worker may hold more, or trust itself no longer
            except BrokerError as error:
                self._calls.failed("claim", error, 1.0)
                await self._clock.sleep(1.0)
                continue
            if claims:
                fruitless = 0
                self._take_in(claims)
                await asyncio.sleep(0)  # the slots' turn: on a broker that never waits, this loop must not either
            elif not self._is_draining:
                waited = room.done() or await self._wait_for_work(request, room)
                fruitless = 0 if waited else fruitless + 1
                if fruitless >= _FRUITLESS:
                    await self._clock.sleep(_BREATH_S)

    def _request(self) -> ClaimRequest | None:
        """What could be claimed now; None when there is no room, or no trust."""
        free = self.concurrency - self._busy
        buffered = len(self._buffer)
        prefetch = min(self._prefetch, self._ended_per_s)  # no more than will start in the next second
        limit = free + prefetch - buffered
        if (
            limit <= 0
            or buffered > prefetch // 2  # refill by halves: few, large batches
            or not self._is_claiming
            or not self._leases.is_trusted
            or self._settler.unsettled > 2 * (self.concurrency + self._prefetch)
        ):
            return None
        unused = max(0, free - buffered)
        gated = 0
        if not self._settler.is_holding:
            # Where what was claimed ahead takes every slot as it becomes free, there is never one for a job with a
            # gate. It goes to the front, and has the next.
            waiting = sum(1 for _ in takewhile(lambda walk: walk.claim.gates, self._buffer))
            gated = max(unused, min(prefetch, max(1, int(self._ended_per_s * _SOON_S))) - waiting)
        suspects = 1 if unused and gated and not self._suspects else 0
        return ClaimRequest(self.name, self._turns.next(), limit, gated, suspects, self._lease_s)

    def _take_in(self, claims: list[Claim]) -> None:
        now = self._clock.now()
        held, buffer = self._leases.claims, self._buffer
        gated: list[Walk] = []
        for claim in claims:
            walk = held[claim.job_id] = Walk(claim, now)
            if claim.gates or claim.lost >= SUSPECT_AFTER:
                gated.append(walk)
                self._suspects += claim.is_suspect
            else:
                buffer.append(walk)
        if gated:  # their place at the gate is the whole fleet's: they have the free slots, what is ahead of need waits
            buffer.extendleft(reversed(gated))
        self._attempts.is_watched = self._wants(events.AttemptStarted)
        self._emit(events.BatchClaimed(claims[0].queue, len(claims)))
        if self._is_draining:
            self._give_back_unstarted()
        self._wake_slot()

    def _expect_room(self, *, is_wanted: bool) -> asyncio.Future[None]:
        """Done when this worker may claim more than it could until now, if that is wanted."""
        self._wants_room = is_wanted
        self._room = room = asyncio.get_running_loop().create_future()
        return room

    async def _wait_for_work(self, request: ClaimRequest, room: asyncio.Future[None]) -> bool:
        """Until the broker may have work for `request`, or there is more room than it asked for.

        False if the broker said so at once.
        """
        waiting = asyncio.ensure_future(self._broker.wait(request, _IDLE_WAIT_S))
        try:
            await asyncio.sleep(0)
            if waiting.done() and not waiting.cancelled() and waiting.exception() is None:
                return False
            self._is_waiting = True
            await asyncio.wait([waiting, room], return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                waiting.result()
        except BrokerUnavailable:
            await self._clock.sleep(0.05 + self._rng.random() / 10)  # the next claim announces it and backs off
        finally:
            self._is_waiting = False
            if not waiting.done():
                waiting.cancel()
                await asyncio.wait([waiting])
        return True

    def _ask_again(self) -> None:
        if self._wants_room:
            self._make_room()

    def _make_room(self) -> None:
        self._wants_room = False
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    # --- slots -------------------------------------------------------

    def _wake_slot(self) -> None:
        """Get one slot going for what is in the buffer; it wakes the next one itself."""
        if self._waking or not self._buffer:
            return
        while self._idle:
            waiter = self._idle.popleft()
            if not waiter.done():
                self._waking = True
                waiter.set_result(None)
                return
        if len(self._slots) < self.concurrency:
            self._waking = True
            self._slots_made += 1
            task = asyncio.create_task(self._serve(), name=f"taskflow slot {self._slots_made}")
            self._slots.add(task)
            task.add_done_callback(self._slot_ended)

    def _slot_ended(self, task: asyncio.Task[None]) -> None:
        self._slots.discard(task)
        self._waking = False  # it may have been the one that was woken
        self._less.set()
        if not self._is_ending():
            self._wake_slot()
            self._ask_again()

    async def _serve(self) -> None:
        slot = Slot(self._clock, self._is_ending)
        slot.bind()
        loop = asyncio.get_running_loop()
        buffer, admit, run = self._buffer, self._attempts.admit, self._attempts.run
        try:
            while True:
                self._waking = False
                while buffer:
                    walk = buffer.popleft()
                    self._busy += 1
                    if buffer and not self._waking:
                        self._wake_slot()
                    try:
                        if admit(walk, slot):
                            await run(walk)
                    finally:
                        self._busy -= 1
                        if self._suspects and walk.claim.lost >= SUSPECT_AFTER:
                            self._suspects -= 1
                        if self._wants_room:
                            self._make_room()
                        if self._is_draining:
                            self._less.set()
                    if slot.is_spent:
                        return
                waiter = loop.create_future()
                self._idle.append(waiter)
                await waiter
        finally:
            slot.unbind()

    def _is_ending(self) -> bool:
        """Whether a slot that is cancelled by nobody we know is the end of this worker, or of the whole loop."""
        return self._is_draining or any(task.done() or task.cancelling() for task in self._loops.values())

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
        here = [*self._attempts.running, *self._buffer]
        stopped = self._stop_holding({walk.claim.job_id: walk.claim.token for walk in here})
        if stopped:
            self._emit(events.LeaseLost(self.name, stopped, "no beat got through in time"))

    def _stop_holding(self, claims: Mapping[str, int]) -> tuple[str, ...]:
        """Stop these, by job id and token. What has ended here already waits for the broker's own word about it."""
        stopped = self._take_out(lambda walk: claims.get(walk.claim.job_id) == walk.claim.token)
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
        for walk in self._take_out(lambda walk: cancelled.get(walk.claim.job_id) == walk.claim.token):
            self._settle_unstarted(walk, Cancel())

    # --- small loops -------------------------------------------------

    def _take_out(self, is_meant: Callable[[Walk], bool]) -> list[Walk]:
        """What has not started, and is meant, leaves the buffer."""
        found = [walk for walk in self._buffer if is_meant(walk)]
        if found:
            rest = [walk for walk in self._buffer if not is_meant(walk)]
            self._buffer.clear()
            self._buffer.extend(rest)
            self._suspects -= sum(walk.claim.is_suspect for walk in found)
        return found

    def _give_back_unstarted(self, before: float = NEVER) -> None:
        """Hand back what came here before `before` and has not started: it keeps its place in the line."""
        for walk in self._take_out(lambda walk: walk.at <= before):
            self._settle_unstarted(walk, Release())
            self._ended_per_s = 0  # so much for being ahead of need

    def _settle_unstarted(self, walk: Walk, decision: Decision) -> None:
        if self._leases.claims.get(walk.claim.job_id) is walk:
            self._attempts.settle(walk, decision)

    async def _tick(self) -> None:
        """Measure, hand back what lies here unstarted, and look whether there is room (or trust) again."""
        while True:
            await self._clock.sleep(_TICK_S)
            self._ended_per_s = (self._ended_per_s + int(self._attempts.ended / _TICK_S)) // 2
            self._attempts.ended = 0
            self._settler.announce()
            if self._buffer and self._busy >= self.concurrency:
                self._give_back_unstarted(self._clock.now() - _UNSTARTED_S)
            self._ask_again()
