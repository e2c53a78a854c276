"""Claims jobs for one worker: no more than there is room for, and gives back what it claimed too far ahead.

Jobs without gates are claimed ahead of need (no more than will start within a second; given back when they have not);
jobs with gates are claimed only into slots that are free, or are about to be.
"""

from __future__ import annotations

import asyncio
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING

from taskflow.brokers.base import ClaimRequest, WorkerState
from taskflow.clock import NEVER
from taskflow.core import events
from taskflow.core.decision import Release
from taskflow.core.job import SUSPECT_AFTER
from taskflow.errors import BrokerError, BrokerUnavailable
from taskflow.runtime.turns import QueueTurns
from taskflow.runtime.walk import Walk

if TYPE_CHECKING:
    from collections.abc import Callable

    from taskflow.core.job import Claim
    from taskflow.runtime.attempt import Attempts
    from taskflow.runtime.bell import Bell
    from taskflow.runtime.calls import BrokerCalls
    from taskflow.runtime.leases import Leases
    from taskflow.runtime.parts import WorkerParts
    from taskflow.runtime.settle import Settler
    from taskflow.runtime.slots import Slots

_UNSTARTED_S = 1.0  # a prefetched job that has not started by then goes back, for whoever has a free slot
_SOON_S = 0.1  # the wait for a slot that is worth a place at a gate
_IDLE_WAIT_S = 30.0  # a wait at the broker; it wakes up by itself when there is work
_FRUITLESS = 20  # claims in a row that find nothing though the broker says there may be something: then breathe
_BREATH_S = 0.05


class Claimer:
    """Fills the slots. `room` is what it waits for: whoever makes some rings it, if it is wanted.

    `is_waiting`: the broker has nothing for it now: the last claim found none, and no word of more has come since.
    """

    def __init__(
        self,
        parts: WorkerParts,
        *,
        calls: BrokerCalls,
        leases: Leases,
        settler: Settler,
        attempts: Attempts,
        slots: Slots,
        room: Bell,
        state: Callable[[], WorkerState],
    ) -> None:
        self._name = parts.name
        self._broker = parts.broker
        self._clock = parts.clock
        self._rng = parts.rng
        self._emit = parts.bus.emit
        self._wants = parts.bus.wants
        self._concurrency = parts.concurrency
        self._prefetch = parts.prefetch
        self._lease_s = parts.settings.worker.lease_s
        self._turns = QueueTurns(dict(parts.queues))
        self._calls = calls
        self._leases = leases
        self._settler = settler
        self._attempts = attempts
        self._slots = slots
        self._room = room
        self._state = state
        self._ended_per_s = 0
        self.is_waiting = False

    async def run(self) -> None:
        """Claim until the worker drains. What a claim brings that was under way then goes back at once."""
        fruitless = 0
        pauses = self._calls.pauses()
        while not self._is_draining():
            request = self._request()
            # Before it claims: what ends meanwhile makes room that the request did not ask for.
            room = self._room.expect(is_wanted=request is None or not request.gated or not request.suspects)
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
            elif not self._is_draining():
                waited = room.done() or await self._wait_for_work(request, room)
                fruitless = 0 if waited else fruitless + 1
                if fruitless >= _FRUITLESS:
                    await self._clock.sleep(_BREATH_S)

    def keep_pace(self, over_s: float) -> None:
        """To be called every `over_s` seconds.

        Measure, hand back what lies here unstarted, and look whether there is room (or trust) again.
        """
        self._ended_per_s = (self._ended_per_s + int(self._attempts.ended / over_s)) // 2
        self._attempts.ended = 0
        if self._slots.buffer and self._slots.busy >= self._concurrency:
            self.give_back_unstarted(self._clock.now() - _UNSTARTED_S)
        self._room.ring_if_wanted()

    def give_back_unstarted(self, before: float = NEVER) -> None:
        """Hand back what came here before `before` and has not started: it keeps its place in the line."""
        for walk in self._slots.take_out(lambda walk: walk.at <= before):
            self._attempts.settle_unstarted(walk, Release())
            self._ended_per_s = 0  # so much for being ahead of need

    def _is_draining(self) -> bool:
        return self._state() is WorkerState.DRAINING

    def _request(self) -> ClaimRequest | None:
        """What could be claimed now; None when there is no room, or no trust."""
        slots = self._slots
        free = self._concurrency - slots.busy
        buffered = len(slots.buffer)
        prefetch = min(self._prefetch, self._ended_per_s)  # no more than will start in the next second
        limit = free + prefetch - buffered
        if (
            limit <= 0
            or buffered > prefetch // 2  # refill by halves: few, large batches
            or self._state() is not WorkerState.CLAIMING
            or not self._leases.is_trusted
            or self._settler.unsettled > 2 * (self._concurrency + self._prefetch)
        ):
            return None
        unused = max(0, free - buffered)
        gated = 0
        if not self._settler.is_holding:
            # Where what was claimed ahead takes every slot as it becomes free, there is never one for a job with a
            # gate. It goes to the front, and has the next.
            waiting = sum(1 for _ in takewhile(lambda walk: walk.claim.gates, slots.buffer))
            gated = max(unused, min(prefetch, max(1, int(self._ended_per_s * _SOON_S))) - waiting)
        suspects = 1 if unused and gated and not slots.suspects else 0
        return ClaimRequest(self._name, self._turns.next(), limit, gated, suspects, self._lease_s)

    def _take_in(self, claims: list[Claim]) -> None:
        now = self._clock.now()
        held = self._leases.claims
        ahead: list[Walk] = []
        gated: list[Walk] = []
        for claim in claims:
            walk = held[claim.job_id] = Walk(claim, now)
            if claim.gates or claim.lost >= SUSPECT_AFTER:
                gated.append(walk)
            else:
                ahead.append(walk)
        # A place at the gate is the whole fleet's: those with one have the free slots, what is ahead of need waits.
        self._slots.put(ahead, first=gated)
        self._attempts.is_watched = self._wants(events.AttemptStarted)
        self._emit(events.BatchClaimed(claims[0].queue, len(claims)))
        if self._is_draining():
            self.give_back_unstarted()
        self._slots.wake()

    async def _wait_for_work(self, request: ClaimRequest, room: asyncio.Future[None]) -> bool:
        """Until the broker may have work for `request`, or there is more room than it asked for.

        False if the broker said so at once.
        """
        waiting = asyncio.ensure_future(self._broker.wait(request, _IDLE_WAIT_S))
        try:
            await asyncio.sleep(0)
            if waiting.done() and not waiting.cancelled() and waiting.exception() is None:
                return False
            self.is_waiting = True
            await asyncio.wait([waiting, room], return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                waiting.result()
        except BrokerUnavailable:
            await self._clock.sleep(0.05 + self._rng.random() / 10)  # the next claim announces it and backs off
        finally:
            self.is_waiting = False
            if not waiting.done():
                waiting.cancel()
                await asyncio.wait([waiting])
        return True
