"""Vouches for the claims of one worker, and stops trusting them in time.

Beats go out every third of a lease, from a thread of their own over a connection of their own, so that no handler
that blocks the loop is taken for a dead worker; they go on until the last draining job has ended. A job that runs
`OVERTIME_S` past its timeout is no longer vouched for. Trust counts from when the last answered beat was *sent*.
"""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from typing import TYPE_CHECKING

from taskflow.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from taskflow.brokers.base import BeatReply, Broker, Presence, SyncBeat
    from taskflow.clock import Clock
    from taskflow.runtime.calls import BrokerCalls
    from taskflow.runtime.walk import Walk

OVERTIME_S = 30.0
_BEATS_PER_LEASE = 3
_HURRY = 4  # times as often while no beat gets through: trust is running out
# Stop trusting a little before the broker does: the reclaimer must find our handlers already cancelled.
_TRUST = 0.9
# A gap this long between two beats, in leases: in a shorter outage nobody's lease ended. After it, the others need a
# moment to beat again before anybody may say that they are dead. Who has only just come needs to see all beat: it does
# not know whether the server's clock was stepped a moment ago, and their leases stand in the old time.
_OUTAGE, _GRACE, _NEW = 2 / 3, 1 / 4, 2 / 5
_TURN_S = 0.01
_JOIN_S = 5.0


class Leases:
    """`on_lost` and `on_cancel` are called in the loop, with job ids and tokens; `on_distrust` when the lease may have
    ended, and again as long as it may.

    `claims` is what this worker vouches for, by job id: whoever takes a claim in puts it there. While its handler runs
    it is vouched for until `OVERTIME_S` past its deadline (`Walk.vouched_until`); before and after that until the
    broker knows what became of it, however long that takes. `presence` says what it is, in any thread.
    """

    def __init__(
        self,
        broker: Broker,
        calls: BrokerCalls,
        clock: Clock,
        *,
        worker: str,
        lease_s: float,
        on_lost: Callable[[Mapping[str, int]], None],
        on_cancel: Callable[[Mapping[str, int]], None],
        on_distrust: Callable[[], None],
        presence: Callable[[], Presence],
    ) -> None:
        self._broker = broker
        self._calls = calls
        self._clock = clock
        self._worker = worker
        self._lease_s = lease_s
        self._on_lost = on_lost
        self._on_cancel = on_cancel
        self._on_distrust = on_distrust
        self._presence = presence
        self.claims: dict[str, Walk] = {}
        self.trusted_until = 0.0
        self._beat_at = float("-inf")  # when the last beat that was answered was sent
        self._judges_from = 0.0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def is_trusted(self) -> bool:
        """Whether the broker has surely not given our claims to another worker."""
        return self._clock.now() < self.trusted_until

    @property
    def is_judge(self) -> bool:
        """Whether this worker may say who is dead.

        Whoever could not beat for most of a lease (the broker was away, the machine stood still) may not: the others
        were no better off. Each needs the time to beat again, or what it holds, and what ended meanwhile, runs twice.
        """
        now = self._clock.now()
        return now - self._beat_at <= self._lease_s * _OUTAGE and now >= self._judges_from

    def drop(self, walks: Iterable[Walk]) -> None:
        """They are settled, or lost."""
        claims = self.claims
        for walk in walks:
            job_id = walk.claim.job_id
            if claims.get(job_id) is walk:
                del claims[job_id]

    def find(self, job_id: str, token: int) -> Walk | None:
        """The claim, if it is still believed to be ours."""
        walk = self.claims.get(job_id)
        return walk if walk is not None and walk.claim.token == token else None

    async def start(self) -> None:
        """Beat once, so that the lease stands before the first claim, and then for ever. Raises `BrokerError`."""
        sent_at = self._clock.now()
        reply = await self._calls.once("beat", partial(self._beat, {}))
        self._trust(sent_at)
        self._heard({}, reply)
        beat = self._broker.sync_beat()
        loops = {"lease watch": self._watch}
        if beat is None:
            loops["beats"] = self._beat_here
        for name, loop in loops.items():
            self._tasks.append(asyncio.create_task(self._calls.keep_up("beat", loop), name=f"taskflow {name}"))
        if beat is not None:
            self._thread = threading.Thread(
                target=self._beat_there, args=(beat, asyncio.get_running_loop()), name="taskflow-beats", daemon=True
            )
            self._thread.start()

    async def close(self, within_s: float = _JOIN_S) -> None:
        """Stop beating. A beat that is under way is waited for, in real seconds."""
        self._stop.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._thread is not None:
            # The thread ends by itself; it is only waited for as long as a beat may take.
            await asyncio.to_thread(self._thread.join, min(within_s, self._lease_s / _BEATS_PER_LEASE))

    def _vouched(self) -> dict[str, int]:
        now = self._clock.now()
        claims = self.claims.copy()  # one C call: safe beside a loop that goes on changing it
        return {job_id: walk.claim.token for job_id, walk in claims.items() if now < walk.vouched_until}

    def _trust(self, sent_at: float) -> None:
        """A beat that was sent then was answered. For the thread, too: a loop that is blocked does not lose trust."""
        if sent_at - self._beat_at > self._lease_s * _OUTAGE:
            is_new = self._beat_at == float("-inf")
            self._judges_from = self._clock.now() + self._lease_s * (_NEW if is_new else _GRACE)
        self._beat_at = sent_at
        self.trusted_until = sent_at + self._lease_s * _TRUST

    def _heard(self, sent: Mapping[str, int], reply: BeatReply) -> None:
        # A claim that ended, or was made anew, while the beat was under way is not what the reply speaks of.
        if reply.lost and (lost := self._still_held(reply.lost, sent)):
            self._on_lost(lost)
        if reply.cancel and (cancel := self._still_held(reply.cancel, sent)):
            self._on_cancel(cancel)

    def _still_held(self, job_ids: tuple[str, ...], sent: Mapping[str, int]) -> dict[str, int]:
        return {job_id: sent[job_id] for job_id in job_ids if job_id in sent and self.find(job_id, sent[job_id])}

    def _until_next_s(self, sent_at: float) -> float:
        """From beat to beat, not from answer to beat: a slow server must not be asked more seldom than a quick one."""
        return max(0.0, sent_at + self._lease_s / _BEATS_PER_LEASE - self._clock.now())

    async def _beat(self, tokens: Mapping[str, int]) -> BeatReply:
        return await self._broker.beat(self._worker, tokens, self._lease_s, self._presence())

    async def _beat_here(self) -> None:
        """For a broker that lives in this process: a loop that is blocked blocks the broker, too."""
        pause_s = self._until_next_s(self._beat_at)
        while True:
            await self._clock.sleep(pause_s)
            sent_at, tokens = self._clock.now(), self._vouched()
            try:
                reply = await self._calls.once("beat", partial(self._beat, tokens))
            except BrokerError:
                pause_s = self._lease_s / (_BEATS_PER_LEASE * _HURRY)
                continue
            self._trust(sent_at)
            self._heard(tokens, reply)
            pause_s = self._until_next_s(sent_at)

    async def _watch(self) -> None:
        """Notice that no beat got through in time."""
        while True:
            left_s = self.trusted_until - self._clock.now()
            await self._clock.sleep(max(_TURN_S, left_s))  # a loop that stood still has its own beat still before it
            if left_s <= 0 and not self.is_trusted:
                self._on_distrust()
                await self._clock.sleep(self._lease_s / _BEATS_PER_LEASE)

    def _beat_there(self, beat: SyncBeat, loop: asyncio.AbstractEventLoop) -> None:
        """The thread. It only ever talks to its own connection, and tells the loop what it heard."""
        pause_s = 0.0  # to connect takes time, of which there is more now than when a beat is due
        try:
            while not self._stop.wait(pause_s):
                sent_at, tokens = self._clock.now(), self._vouched()
                try:
                    reply = beat.beat(self._worker, tokens, self._lease_s, self._presence())
                except Exception as error:  # noqa: BLE001 - whatever a driver raises, the next beat must be tried
                    pause_s = self._lease_s / (_BEATS_PER_LEASE * _HURRY)
                    loop.call_soon_threadsafe(self._calls.failed, "beat", error, pause_s)
                    continue
                self._trust(sent_at)
                pause_s = self._until_next_s(sent_at)
                loop.call_soon_threadsafe(self._calls.answered, "beat", self._clock.now() - sent_at)
                loop.call_soon_threadsafe(self._heard, tokens, reply)
        except RuntimeError:
            return  # the loop is closed
        finally:
            beat.close()
