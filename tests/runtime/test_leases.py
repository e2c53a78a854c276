"""A worker vouches for what it holds, and stops trusting itself before the broker does."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pytest

from taskflow.brokers.base import BeatReply, ClaimRequest, Presence, Retention, Settlement, WorkerState
from taskflow.brokers.memory import MemoryBroker
from taskflow.core import events
from taskflow.core.decision import Complete, Release
from taskflow.errors import BrokerUnavailable
from taskflow.runtime.calls import BrokerCalls
from taskflow.runtime.leases import Leases
from taskflow.runtime.walk import Walk
from taskflow.testing import Faults, VirtualClock, all_blocked
from tests.runtime.made import make_claim, put

if TYPE_CHECKING:
    from taskflow.core.job import Claim

pytestmark = pytest.mark.anyio

LEASE_S = 9.0
CLAIMING = WorkerState.CLAIMING


class Bench:
    """Leases over a memory broker, and what they say."""

    def __init__(self, broker: Any = None, clock: Any = None, lease_s: float = LEASE_S) -> None:
        self.clock = VirtualClock() if clock is None else clock
        self.memory = MemoryBroker(self.clock)
        self.faults = Faults(self.memory)
        self.events: list[Any] = []
        self.lost: list[dict[str, int]] = []
        self.cancelled: list[dict[str, int]] = []
        self.distrusted_at: list[float] = []
        self.leases = Leases(
            self.faults if broker is None else broker(self.memory),
            BrokerCalls(self.clock, random.Random(1), self.events.append),
            self.clock,
            worker="w",
            lease_s=lease_s,
            on_lost=lambda claims: self.lost.append(dict(claims)),
            on_cancel=lambda claims: self.cancelled.append(dict(claims)),
            on_distrust=lambda: self.distrusted_at.append(self.clock.now()),
            presence=lambda: Presence("host", 1, "0", self.clock.now(), {}, 1, len(self.leases.claims), CLAIMING),
        )

    async def claim(self, *ids: str, worker: str = "w") -> list[Claim]:
        await put(self.memory, *ids)
        claims = await self.memory.claim(ClaimRequest(worker, ("default",), 100, 100, 1, LEASE_S))
        if worker == "w":
            for claim in claims:
                self.leases.claims[claim.job_id] = Walk(claim, self.clock.now())
        return claims

    async def reclaim(self) -> list[str]:
        return [job.job_id for job in await self.memory.reclaim(max_lost=3, retention=Retention())]


async def test_claims_are_kept_as_long_as_the_worker_beats() -> None:
    bench = Bench()
    await bench.leases.start()
    await bench.claim("a")

    taken: list[str] = []
    for _ in range(100):
        await bench.clock.advance(LEASE_S / 3)
        taken += await bench.reclaim()

    assert taken == []
    assert bench.leases.is_trusted
    await bench.leases.close()


async def test_a_worker_that_cannot_beat_stops_trusting_itself_before_the_broker_stops_trusting_it() -> None:
    bench = Bench()
    await bench.leases.start()
    await bench.claim("a")
    await bench.clock.advance(1)
    bench.faults.cut("beat")

    while not bench.distrusted_at:
        await bench.clock.advance(0.05)
    taken = await bench.reclaim()

    assert not bench.leases.is_trusted
    assert bench.distrusted_at[0] <= LEASE_S
    assert taken == []
    await bench.leases.close()


async def test_trust_counts_from_when_the_beat_was_sent_not_from_its_answer() -> None:
    clock = VirtualClock()

    class Slow(Faults):
        async def beat(self, *args: Any) -> BeatReply:
            reply = await self._broker.beat(*args)
            if args[1]:
                await clock.sleep(8.0)
            return reply

    bench = Bench(Slow, clock)
    await bench.leases.start()
    await bench.claim("a")

    await clock.advance(LEASE_S / 3 + 8.0)  # the second beat was sent at 3, and is answered at 11
    trusted_at_11 = bench.leases.is_trusted
    await clock.advance(0.2)
    trusted_at_11_2 = bench.leases.is_trusted

    assert trusted_at_11
    assert not trusted_at_11_2
    await bench.leases.close()


async def test_a_broker_that_takes_a_third_of_a_lease_to_answer_is_still_trusted() -> None:
    clock = VirtualClock()

    class Slow(Faults):
        async def beat(self, *args: Any) -> BeatReply:
            reply = await self._broker.beat(*args)
            await clock.sleep(LEASE_S / 3)
            return reply

    bench = Bench(Slow, clock)
    starting = asyncio.create_task(bench.leases.start())
    await clock.advance(20 * LEASE_S)
    await starting

    assert bench.leases.is_trusted
    assert bench.distrusted_at == []
    await bench.leases.close()


async def test_trust_comes_back_with_the_first_beat_after_an_outage() -> None:
    bench = Bench()
    await bench.leases.start()
    bench.faults.cut("beat")
    await bench.clock.advance(60)
    failures = sum(isinstance(event, events.BrokerFailed) for event in bench.events)
    bench.faults.mend()

    await bench.clock.advance(LEASE_S / 12)

    assert bench.leases.is_trusted
    assert failures <= 60 / (LEASE_S / 12)
    assert any(isinstance(event, events.BrokerRecovered) for event in bench.events)
    await bench.leases.close()


async def test_a_lost_claim_is_told_with_its_token() -> None:
    bench = Bench()
    await bench.leases.start()
    (claim,) = await bench.claim("a")
    await bench.memory.settle([Settlement("a", claim.token, Release())])

    await bench.clock.advance(LEASE_S / 3)

    assert bench.lost == [{"a": claim.token}]
    await bench.leases.close()


async def test_what_was_settled_or_claimed_anew_while_the_beat_was_under_way_is_not_lost() -> None:
    clock = VirtualClock()

    class Slow(Faults):
        async def beat(self, *args: Any) -> BeatReply:
            reply = await self._broker.beat(*args)
            if args[1]:
                await clock.sleep(1.0)
            return reply

    bench = Bench(Slow, clock)
    await bench.leases.start()
    first, again = await bench.claim("settled", "again")
    await bench.memory.settle([Settlement(claim.job_id, claim.token, Release()) for claim in (first, again)])

    await clock.advance(LEASE_S / 3 + 0.5)  # the beat is on its way back: both are lost, as it saw them
    bench.leases.drop([bench.leases.claims[first.job_id]])
    (newer,) = [claim for claim in await bench.claim() if claim.job_id == "again"]
    await clock.advance(1.0)

    assert bench.lost == []
    assert bench.leases.find("again", newer.token) is not None
    assert bench.leases.find("again", again.token) is None
    await bench.leases.close()


async def test_a_cancel_is_told_to_the_worker_that_runs_the_job() -> None:
    bench = Bench()
    await bench.leases.start()
    (claim,) = await bench.claim("a")
    await bench.memory.cancel(["a"])

    await bench.clock.advance(LEASE_S / 3)

    assert bench.cancelled == [{"a": claim.token}]
    await bench.leases.close()


async def test_who_has_only_just_come_judges_nobody_before_all_have_beaten_again() -> None:
    bench = Bench()
    await bench.claim("a", worker="other")
    taken: list[str] = []
    bench.clock._wall += 3_600  # the broker's clock is stepped just after the other's beat
    await bench.leases.start()

    async def judge_for(seconds: float) -> None:
        for _ in range(round(seconds / 0.1)):
            await bench.clock.advance(0.1)
            if bench.leases.is_judge:
                taken.extend(await bench.reclaim())

    await judge_for(LEASE_S / 3)
    await bench.memory.beat("other", {"a": 1}, LEASE_S)
    await judge_for(LEASE_S / 3)
    before = list(taken)
    await judge_for(LEASE_S)

    assert before == []
    assert taken == ["a"]
    await bench.leases.close()


async def test_a_job_that_runs_for_too_long_is_no_longer_vouched_for() -> None:
    bench = Bench()
    await bench.leases.start()
    await bench.claim("stuck", "fine")
    bench.leases.claims["stuck"].vouched_until = bench.clock.now() + 40
    bench.leases.claims["fine"].vouched_until = bench.clock.now() + 1_030

    await bench.clock.advance(40)
    before = await bench.reclaim()
    await bench.clock.advance(2 * LEASE_S / 3)
    after = await bench.reclaim()

    assert before == []
    assert after == ["stuck"]
    await bench.leases.close()


async def test_a_claim_is_vouched_for_until_the_broker_knows_what_became_of_it() -> None:
    bench = Bench()
    await bench.leases.start()
    (claim,) = await bench.claim("a")

    await bench.clock.advance(1_000)  # an outage of the settlements, say

    assert await bench.reclaim() == []
    (reply,) = await bench.memory.settle([Settlement("a", claim.token, Complete())])
    assert reply.answer == "applied"
    await bench.leases.close()


async def test_a_word_about_an_old_claim_does_not_touch_the_new_one() -> None:
    bench = Bench()
    old, new = Walk(make_claim("a", 1), 0.0), Walk(make_claim("a", 2), 0.0)
    bench.leases.claims["a"] = new

    bench.leases.drop([old])

    assert bench.leases.find("a", 2) is new
    assert bench.leases.find("a", 1) is None


async def test_the_beats_outlive_an_error_that_no_broker_translated() -> None:
    class Broken(Faults):
        broken = 0

        async def beat(self, *args: Any) -> BeatReply:
            if self.broken:
                self.broken -= 1
                raise ZeroDivisionError
            return await self._broker.beat(*args)

    bench = Bench(Broken)
    await bench.leases.start()
    bench.leases._broker.broken = 1  # type: ignore[attr-defined]

    await bench.clock.advance(60)

    assert bench.leases.is_trusted
    (failed,) = [event for event in bench.events if isinstance(event, events.BrokerFailed)]
    assert "ZeroDivisionError" in failed.message
    assert "test_leases.py" in failed.message
    await bench.leases.close()


class Beats:
    """A beat over a connection of its own, which can break."""

    def __init__(self) -> None:
        self.seen: list[dict[str, int]] = []
        self.said: list[Presence] = []
        self.threads: set[str] = set()
        self.error: Exception | None = None
        self.closed = threading.Event()

    def beat(self, _worker: str, tokens: Mapping[str, int], _lease_s: float, presence: Presence) -> BeatReply:
        self.threads.add(threading.current_thread().name)
        if self.error is not None:
            raise self.error
        self.seen.append(dict(tokens))
        self.said.append(presence)
        return BeatReply()

    def close(self) -> None:
        self.closed.set()


class OtherProcess(Faults):
    """A broker that wants its beats from a thread."""

    beats: Beats

    def sync_beat(self) -> Beats:
        self.beats = Beats()
        return self.beats


async def until(holds: Any) -> None:
    end = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < end
        await asyncio.sleep(0.001)


async def test_a_handler_that_blocks_the_loop_does_not_stop_the_beats() -> None:
    from taskflow.clock import LoopClock

    bench = Bench(OtherProcess, LoopClock(), lease_s=1.2)
    await bench.leases.start()
    beats: Beats = bench.leases._broker.beats  # type: ignore[attr-defined]

    end = time.monotonic() + 10
    while len(beats.seen) < 4 and time.monotonic() < end:
        time.sleep(0.01)  # noqa: ASYNC251 - this is the handler that blocks
    await all_blocked()

    assert len(beats.seen) >= 4  # more than a lease
    assert bench.distrusted_at == []
    assert bench.leases.is_trusted
    await bench.leases.close()
    assert beats.closed.is_set()


@pytest.mark.parametrize("error", [BrokerUnavailable("gone"), OSError("a driver's own")])
async def test_the_beating_thread_outlives_whatever_its_connection_raises(error: Exception) -> None:
    from taskflow.clock import LoopClock

    bench = Bench(OtherProcess, LoopClock(), lease_s=0.2)
    await bench.leases.start()
    beats: Beats = bench.leases._broker.beats  # type: ignore[attr-defined]

    beats.error = error
    await until(lambda: bench.distrusted_at)
    beats.error = None
    await until(lambda: bench.leases.is_trusted)

    assert any(isinstance(event, events.BrokerFailed) for event in bench.events)
    assert any(isinstance(event, events.BrokerRecovered) for event in bench.events) == isinstance(
        error, BrokerUnavailable
    )
    await bench.leases.close()
    assert beats.threads == {"taskflow-beats"}


async def test_a_worker_without_claims_says_with_each_beat_what_it_is() -> None:
    bench = Bench()

    await bench.leases.start()
    (first,) = await bench.memory.workers()
    await bench.clock.advance(10 * LEASE_S)
    (last,) = await bench.memory.workers()
    await bench.claim("a", "b")
    await bench.clock.advance(LEASE_S / 3)
    (busy,) = await bench.memory.workers()

    assert (first.worker, first.silent_s, first.said.busy) == ("w", 0.0, 0)
    assert not last.is_silent
    assert last.said.up_s - first.said.up_s > 9 * LEASE_S
    assert busy.said.busy == 2
    await bench.leases.close()


async def test_the_beating_thread_says_what_the_worker_is() -> None:
    from taskflow.clock import LoopClock

    bench = Bench(OtherProcess, LoopClock(), lease_s=0.2)
    await bench.leases.start()
    beats: Beats = bench.leases._broker.beats  # type: ignore[attr-defined]

    await bench.claim("a")
    await until(lambda: beats.said and beats.said[-1].busy == 1)

    await bench.leases.close()
