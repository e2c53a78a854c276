"""Vouches for the claims of one worker, and stops trusting them in time.

Beats go out every third of a lease, from a thread of their own over a connection of their own, so that no handler
that blocks the loop is taken for a dead worker; they go on until the last draining job has ended. A job that runs
`_OVERTIME_S` past its timeout is no longer vouched for. Trust counts from when the last answered beat was *sent*.
"""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from typing import TYPE_CHECKING

from taskflow.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from taskflow.brokers.base import BeatReply, Broker, SyncBeat
    from taskflow.clock import Clock
    from taskflow.runtime.calls import BrokerCalls

_OVERTIME_S = 30.0
_BEATS_PER_LEASE = 3
# Stop trusting a little before the broker does: the reclaimer must find our handlers already cancelled.
_TRUST = 0.9


class Leases:
    """`on_lost` and `on_cancel` are called in the loop, with job ids; `on_distrust` when the lease may have ended."""

    def __init__(
        self,
        broker: Broker,
        calls: BrokerCalls,
        clock: Clock,
        *,
        worker: str,
        lease_s: float,
        on_lost: Callable[[tuple[str, ...]], None],
        on_cancel: Callable[[tuple[str, ...]], None],
        on_distrust: Callable[[], None],
    ) -> None:
        self._broker = broker
        self._calls = calls
        self._clock = clock
        self._worker = worker
        self._lease_s = lease_s
        self._on_lost = on_lost
        self._on_cancel = on_cancel
        self._on_distrust = on_distrust
        self._claims: dict[str, tuple[int, float]] = {}  # job id → token, vouched for until
        self._trusted_until = 0.0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def is_trusted(self) -> bool:
        """Whether the broker has surely not given our claims to another worker."""
        return self._clock.now() < self._trusted_until

    @property
    def count(self) -> int:
        """Claims that this worker vouches for."""
        return len(self._claims)

    def hold(self, job_id: str, token: int) -> None:
        """Vouch for a claim from now on."""
        self._claims[job_id] = (token, float("inf"))

    def limit(self, job_id: str, token: int, timeout_at: float) -> None:
        """The claim's handler has started, and has to end by `timeout_at`."""
        self._claims[job_id] = (token, timeout_at + _OVERTIME_S)

    def drop(self, job_id: str, token: int) -> None:
        """The claim is settled, or lost."""
        held = self._claims.get(job_id)
        if held is not None and held[0] == token:
            del self._claims[job_id]

    def holds(self, job_id: str, token: int) -> bool:
        """Whether the claim is still believed to be ours."""
        held = self._claims.get(job_id)
        return held is not None and held[0] == token

    async def start(self) -> None:
        """Beat once, so that the lease stands before the first claim, and then for ever."""
        self._loop = asyncio.get_running_loop()
        sent_at = self._clock.now()
        reply = await self._calls.once("beat", lambda: self._broker.beat(self._worker, {}, self._lease_s))
        self._heard(sent_at, {}, reply)
        beat = self._broker.sync_beat()
        if beat is None:
            self._task = asyncio.create_task(self._beat_here(), name="taskflow beats")
            return
        self._task = asyncio.create_task(self._watch(), name="taskflow lease watch")
        self._thread = threading.Thread(target=self._beat_there, args=(beat,), name="taskflow-beats", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        """Stop beating."""
        self._stop.set()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._thread is not None:
            # The thread ends by itself; it is only waited for as long as a beat may take.
            await asyncio.to_thread(self._thread.join, self._lease_s / _BEATS_PER_LEASE)

    def _vouched(self) -> dict[str, int]:
        now = self._clock.now()
        claims = self._claims.copy()  # one C call: safe beside a loop that goes on changing it
        return {job_id: token for job_id, (token, until) in claims.items() if now < until}

    def _heard(self, sent_at: float, sent: dict[str, int], reply: BeatReply) -> None:
        self._trusted_until = max(self._trusted_until, sent_at + self._lease_s * _TRUST)
        # A claim that ended, or was made anew, while the beat was under way is not what the reply speaks of.
        lost = tuple(job_id for job_id in reply.lost if self.holds(job_id, sent[job_id]))
        cancel = tuple(job_id for job_id in reply.cancel if self.holds(job_id, sent[job_id]))
        if lost:
            self._on_lost(lost)
        if cancel:
            self._on_cancel(cancel)

    async def _beat_here(self) -> None:
        """For a broker that lives in this process: a loop that is blocked blocks the broker, too."""
        while True:
            await self._clock.sleep(self._lease_s / _BEATS_PER_LEASE)
            sent_at, tokens = self._clock.now(), self._vouched()
            reply = await self._calls.until_heard(
                "beat", partial(self._broker.beat, self._worker, tokens, self._lease_s)
            )
            self._heard(sent_at, tokens, reply)

    async def _watch(self) -> None:
        """Notice that no beat got through in time."""
        while True:
            left_s = self._trusted_until - self._clock.now()
            if left_s <= 0:
                self._on_distrust()
                left_s = self._lease_s / _BEATS_PER_LEASE
            await self._clock.sleep(max(0.01, left_s))

    def _beat_there(self, beat: SyncBeat) -> None:
        """The thread. It only ever talks to its own connection, and tells the loop what it heard."""
        assert self._loop is not None
        pause_s = self._lease_s / _BEATS_PER_LEASE
        try:
            while not self._stop.wait(pause_s):
                sent_at, tokens = self._clock.now(), self._vouched()
                try:
                    reply = beat.beat(self._worker, tokens, self._lease_s)
                except BrokerError:
                    # The loop's own calls announce the outage. Try again sooner: trust is running out.
                    pause_s = self._lease_s / (_BEATS_PER_LEASE * 4)
                    continue
                pause_s = self._lease_s / _BEATS_PER_LEASE
                try:
                    self._loop.call_soon_threadsafe(self._heard, sent_at, tokens, reply)
                except RuntimeError:
                    return  # the loop is closed
        finally:
            beat.close()
