"""A server whose clock is stepped makes nobody dead who beats, and hides nobody who is dead, over the brokers on servers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from taskflow.core.job import JobState
from tests.brokers.conftest import BROKERS, TravelClock
from tests.brokers.words import claim_one, job, presence, reclaim, submit

if TYPE_CHECKING:
    from taskflow.brokers.base import FullBroker
    from taskflow.core.job import Claim

pytestmark = [
    pytest.mark.anyio,
    # The others have the clock of the worker's own machine, which the runtime watches.
    pytest.mark.parametrize("broker", [name for name in ("redis", "postgres") if name in BROKERS], indirect=True),
]

LEASE_S = 60.0
THIRD_S = LEASE_S / 3
A_LITTLE_S = 1.0


@pytest.fixture
def clock() -> TravelClock:
    return TravelClock()


class Fleet:
    """Two workers with a job each. One goes on beating, as a worker does."""

    def __init__(self, broker: FullBroker, clock: TravelClock) -> None:
        self.broker, self.clock = broker, clock
        self.taken: list[str] = []
        self.live: Claim
        self.dead: Claim

    async def start(self) -> Fleet:
        await submit(self.broker, job(), job())
        self.live = await claim_one(self.broker, "live", limit=1, lease_s=LEASE_S)
        self.dead = await claim_one(self.broker, "dead", limit=1, lease_s=LEASE_S)
        await self.judge()
        return self

    async def judge(self) -> None:
        """More than once from beat to beat, as workers do."""
        for _ in range(3):
            self.taken += [moved.job_id for moved in await reclaim(self.broker)]

    async def beat(self, name: str = "live") -> None:
        claim = self.live if name == "live" else self.dead
        await self.broker.beat(name, {claim.job_id: claim.token}, LEASE_S)

    async def live_on(self, seconds: float) -> None:
        """Reclaims come first: the others' beats may be late by a third of a lease."""
        while seconds > 0:
            await self.judge()
            self.clock.ahead_s += min(seconds, THIRD_S)
            seconds -= THIRD_S
            await self.judge()
            await self.beat()
        await self.judge()


@pytest.mark.parametrize("by_s", [LEASE_S / 2, LEASE_S + 1, 3_600.0, 86_400.0])
async def test_a_step_forward_kills_nobody_who_beats(broker: FullBroker, clock: TravelClock, by_s: float) -> None:
    fleet = await Fleet(broker, clock).start()
    clock.ahead_s += THIRD_S

    clock.step(by_s)
    await fleet.judge()
    await fleet.beat("dead")
    await fleet.live_on(LEASE_S - A_LITTLE_S)

    assert fleet.taken == []
    await fleet.live_on(2 * LEASE_S)
    assert fleet.taken == [fleet.dead.job_id]
    assert (await broker.states([fleet.live.job_id])) == {fleet.live.job_id: JobState.RUNNING}


async def test_who_died_before_a_step_is_noticed_when_its_lease_is_over(broker: FullBroker, clock: TravelClock) -> None:
    fleet = await Fleet(broker, clock).start()
    await fleet.live_on(2 * THIRD_S)

    clock.step(3_600)
    await fleet.live_on(THIRD_S - A_LITTLE_S)
    before = list(fleet.taken)
    await fleet.live_on(2 * A_LITTLE_S)

    assert before == []
    assert fleet.taken == [fleet.dead.job_id]


async def test_who_dies_after_a_step_is_noticed_when_its_lease_is_over(broker: FullBroker, clock: TravelClock) -> None:
    fleet = await Fleet(broker, clock).start()
    clock.step(3_600)
    await fleet.judge()

    await fleet.beat("dead")
    await fleet.live_on(LEASE_S - A_LITTLE_S)
    before = list(fleet.taken)
    await fleet.live_on(2 * A_LITTLE_S)

    assert before == []
    assert fleet.taken == [fleet.dead.job_id]


async def test_a_second_step_soon_after_the_first_kills_nobody_who_beats(
    broker: FullBroker, clock: TravelClock
) -> None:
    fleet = await Fleet(broker, clock).start()
    clock.step(3_600)
    await fleet.beat()
    await fleet.live_on(LEASE_S - A_LITTLE_S)
    before = list(fleet.taken)

    clock.step(3_600)
    await fleet.live_on(3 * LEASE_S)

    assert before == fleet.taken[:-1] == []
    assert fleet.taken == [fleet.dead.job_id]


async def test_a_step_back_kills_nobody_nor_does_its_correction(broker: FullBroker, clock: TravelClock) -> None:
    fleet = await Fleet(broker, clock).start()
    clock.step(-3_600)
    await fleet.beat("dead")
    await fleet.live_on(THIRD_S)

    clock.step(3_600)
    await fleet.judge()
    before = list(fleet.taken)
    await fleet.live_on(LEASE_S)

    assert before == []
    assert fleet.taken == [fleet.dead.job_id]


async def test_a_worker_with_a_longer_lease_has_its_own_time_to_beat_after_a_step(
    broker: FullBroker, clock: TravelClock
) -> None:
    fleet = await Fleet(broker, clock).start()
    await submit(broker, job())
    patient = await claim_one(broker, "patient", lease_s=LEASE_S)
    beats = broker.sync_beat()
    assert beats is not None

    def beat() -> None:  # as another process does
        beats.beat("patient", {patient.job_id: patient.token}, 5 * LEASE_S, presence())

    await asyncio.to_thread(beat)
    clock.step(86_400)
    await fleet.live_on(5 * LEASE_S - A_LITTLE_S)
    before = list(fleet.taken)
    await asyncio.to_thread(beat)
    await fleet.live_on(2 * LEASE_S)
    await asyncio.to_thread(beats.close)

    assert before == fleet.taken == [fleet.dead.job_id]


async def test_a_step_while_the_broker_was_closed_counts(broker: FullBroker, clock: TravelClock) -> None:
    fleet = await Fleet(broker, clock).start()
    await broker.close()
    clock.step(3_600)

    await broker.open()
    await fleet.judge()

    assert fleet.taken == []
