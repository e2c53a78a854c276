"""Tells the broker what became of jobs: in batches, fenced, and until it has been heard.

Settlements are values: when the broker does not answer they are kept and told again, with capped jittered backoff,
while the beats keep the claims alive. Whatever piles up during one round trip is the next batch; what the listeners
are told goes by batches, too.
"""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial
from typing import TYPE_CHECKING

from taskflow.brokers.base import Settled, Settlement
from taskflow.core import events
from taskflow.core.decision import Complete
from taskflow.core.gate import Hold
from taskflow.core.job import JobState
from taskflow.runtime.words import GateWord

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from taskflow.brokers.base import Broker
    from taskflow.clock import Clock
    from taskflow.core.gate import Gate
    from taskflow.runtime.calls import BrokerCalls
    from taskflow.runtime.walk import Walk
    from taskflow.runtime.words import GateHold


_MOST_BYTES = 2**20  # about, of results and errors in one round trip: it has seconds, on whatever line there is
_TRIES = 2  # of a settlement that is refused, each before a broker that hears others
_NOBODYS = Settlement("nobody's", 0, Complete())  # stale for every broker

_STALE, _SUCCEEDED = Settled.STALE, JobState.SUCCEEDED  # an enum's member costs as much as a call on Python 3.11


class Settler:
    """Collects what started and what ended; `run` announces it, and tells the broker."""

    def __init__(
        self,
        broker: Broker,
        calls: BrokerCalls,
        clock: Clock,
        emit: Callable[[events.Event], None],
        forget: Callable[[Sequence[Walk]], None],
        on_told: Callable[[], None],
        on_word: Callable[[GateWord, Gate], None],
    ) -> None:
        self._broker = broker
        self._calls = calls
        self._clock = clock
        self._emit = emit
        self._forget = forget
        self._on_told = on_told
        self._on_word = on_word
        self._words: deque[GateWord] = deque()
        self._holds: dict[str, GateHold] = {}  # gates that are to be closed, for the longest time that was asked for
        self._started: list[Walk] = []  # handlers that the listeners have not heard of
        self._ended: list[Walk] = []
        self._unsure: list[Walk] = []  # ended too; whether they succeeded depends on a transaction of their handler's
        self._pending: list[Walk] = []
        self._telling: list[Walk] = []
        self._apart: list[Walk] = []  # completed by their handlers: to be told one batch at a time, beside the others
        self._telling_apart: asyncio.Task[None] | None = None
        self._wake: asyncio.Future[None] | None = None
        self._quiet: list[asyncio.Future[None]] = []

    @property
    def unsettled(self) -> int:
        """Jobs that ended here and that the broker does not know of yet."""
        return len(self._pending) + len(self._telling) + len(self._apart)

    @property
    def is_holding(self) -> bool:
        """Whether a gate is still to be told something: until then, no job that has one may be claimed."""
        return bool(self._holds or self._words)

    def started(self, walk: Walk) -> None:
        """Its handler is about to run. The listeners hear of it within a turn of the loop, or a tick."""
        self._started.append(walk)
        if self._wake is not None:
            self._wake_up(self._wake)

    def push(self, walk: Walk, *, was_run: bool = False) -> None:
        """Settle this soon: its `decision` is made. Never waits. `was_run`: a handler has ended."""
        if was_run:
            (self._ended if walk.completion is None else self._unsure).append(walk)
        self._pending.append(walk)
        hold = walk.hold
        if hold is None:
            pass
        elif isinstance(hold, GateWord):
            self._words.append(hold)
        elif hold.gate not in self._holds or hold.for_s > self._holds[hold.gate].for_s:
            self._holds[hold.gate] = hold
        if self._wake is not None:
            self._wake_up(self._wake)

    def _wake_up(self, wake: asyncio.Future[None]) -> None:
        if not wake.done():
            wake.set_result(None)
        self._wake = None

    def announce(self) -> None:
        """Tell the listeners what started and ended since the last time."""
        if self._started:
            batch, self._started = self._started, []
            self._emit(events.AttemptsStarted(batch))
        if self._ended:
            batch, self._ended = self._ended, []
            self._emit(events.AttemptsEnded(batch))

    def _announce_unsure(self, told: list[Walk]) -> None:
        """Tell the listeners of those among `told` that had to wait for the broker's word."""
        self._ended += [walk for walk in self._unsure if walk in told]
        self._unsure = [walk for walk in self._unsure if walk not in told]
        self.announce()

    async def run(self) -> None:
        """Settle for ever. What it had in hand when it is cancelled is kept, and another `run` goes on with it."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                self.announce()
                if not self._pending:
                    self._wake = loop.create_future()
                    await self._wake
                    continue
                batch = _batch_of(self._pending)
                self._pending = self._pending[len(batch) :]
                if self._unsure:
                    batch = self._set_apart(batch)
                self._telling = batch
                try:
                    await self._tell(batch)
                except Exception:  # noqa: BLE001
                    # No outage that we know (those are waited out): one of them is refused, or breaks the driver. Find
                    # it; the rest must get through.
                    await self._tell_each(batch)
                self._telling = []
                self._on_told()  # a claim may have waited for it: no worker runs far ahead of what it told
                if self._apart and self._telling_apart is None:
                    self._telling_apart = asyncio.create_task(self._tell_apart(), name="taskflow settle apart")
                if not self.unsettled:
                    self._announce_quiet()
        finally:
            if self._telling_apart is not None:
                self._telling_apart.cancel()
                self._telling_apart = None
            self._pending[:0] = self._telling + self._apart
            self._telling, self._apart = [], []

    def _set_apart(self, batch: list[Walk]) -> list[Walk]:
        """What is left of the batch without the jobs that their handlers completed.

        A handler that has not ended its transaction keeps its job's row locked: nobody else must wait for that.
        """
        self._apart += [walk for walk in batch if walk.completion is not None]
        return [walk for walk in batch if walk.completion is None]

    async def _tell_apart(self) -> None:
        """Until none is left. Their gates were told with the batch that they came from."""
        while self._apart:
            batch = _batch_of(self._apart)
            try:
                await self._settle(batch)
            except Exception:  # noqa: BLE001 - as in `run`
                await self._tell_each(batch)
            del self._apart[: len(batch)]
        self._telling_apart = None
        if not self.unsettled:
            self._announce_quiet()

    async def idle(self) -> None:
        """Wait until everything that ended has been told."""
        while self.unsettled:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._quiet.append(future)
            await future

    def _announce_quiet(self) -> None:
        waiting, self._quiet = self._quiet, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def _tell(self, batch: list[Walk]) -> None:
        if self._holds or self._words:
            await self._tell_gates()
        if batch:
            await self._settle(batch)

    async def _settle(self, batch: list[Walk]) -> None:
        new = tuple.__new__  # the constructor of a NamedTuple is one more call
        settlements = [new(Settlement, (w.claim.job_id, w.claim.token, w.decision)) for w in batch]
        replies = await self._calls.until_heard("settle", lambda: self._broker.settle(settlements))
        self._forget(batch)
        settled: list[Walk] = []
        for walk, (answer, state) in zip(batch, replies, strict=True):
            if state is _SUCCEEDED and type(walk.decision) is not Complete:
                # Its transaction committed, by `complete_in`: what came after that is of no account.
                walk.decision, walk.outcome = Complete(), "succeeded"
            if answer is _STALE or state is None:
                claim = walk.claim
                self._emit(events.SettlementStale(claim.job_id, claim.task, claim.queue, claim.token))
            else:  # APPLIED, or ALREADY: an earlier try of this very batch got through and its reply was lost
                walk.state = state
                settled.append(walk)
        if self._unsure:
            self._announce_unsure(batch)
        if settled:
            self._emit(events.JobsSettled(settled))

    async def _tell_gates(self) -> None:
        """A gate that cannot be told is no reason to lose what became of jobs."""
        while self._words:
            word = self._words[0]
            try:
                answer = await self._calls.until_heard("gate", partial(self._broker.gate, *word))
            except Exception as error:  # noqa: BLE001 - refused, or no broker translated it
                self._calls.failed("gate", error, 0.0)
            else:
                self._on_word(word, answer)
            self._words.popleft()
        while self._holds:
            hold = next(iter(self._holds.values()))
            gate, for_s, reason = hold
            try:
                await self._calls.until_heard("gate", partial(self._broker.gate, gate, Hold(for_s, reason)))
            except Exception as error:  # noqa: BLE001 - refused, or no broker translated it
                self._calls.failed("gate", error, 0.0)
            else:
                self._emit(events.GateHeld(gate, for_s, reason))
            if self._holds[gate] is hold:  # no longer one was asked for meanwhile
                del self._holds[gate]
        self._on_told()

    async def _tell_each(self, batch: list[Walk]) -> None:
        """One by one: none keeps the others. What is refused twice by a broker that hears others meanwhile is given up.

        A broker in trouble (a pooler that is full, a disk that is going) may refuse in words that nobody knows as an
        outage: then all of it is kept, and told again.
        """
        pauses = self._calls.pauses()
        refused: dict[Walk, Exception] = {}
        tries = 0
        left = batch
        while left:
            if not await self._calls.is_heard("settle", self._settle_nothing, pauses):
                tries = 0
                continue
            if tries == _TRIES:
                for walk in left:
                    self._forget([walk])  # its lease will end, and another worker has a try
                    self._announce_unsure([walk])
                    self._calls.failed("settle", refused[walk], 0.0)
                return
            refused = {}
            for walk in left:
                try:
                    await self._settle([walk])
                except Exception as error:  # noqa: BLE001 - as in `run`
                    refused[walk] = error
            left = list(refused)
            tries += 1

    async def _settle_nothing(self) -> None:
        await self._broker.settle([_NOBODYS])


def _batch_of(walks: list[Walk]) -> list[Walk]:
    """The first of `walks`: as many as fit into one round trip."""
    size = 0
    for place, walk in enumerate(walks):
        decision = walk.decision
        if type(decision) is Complete:
            if decision.result is not None:
                size += len(decision.result)
        elif (error := getattr(decision, "error", None)) is not None:
            size += len(error.message) + len(error.stack)
        if size > _MOST_BYTES and place:
            return walks[:place]
    return walks[:]
