"""The broker is away and comes back: what ran is not run again, nobody is called dead, and what waited is told first."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from taskflow.core import events
from taskflow.core.job import JobState
from taskflow.errors import BrokerUnavailable
from tests.runtime.fleet import EVERYTHING, Fleet, Member

if TYPE_CHECKING:
    from taskflow import TaskFlow

pytestmark = pytest.mark.anyio

LEASE_S = 10.0  # the default


class Site:
    """A fleet whose jobs take half a second of its clock, and what its workers announce."""

    def __init__(self, seed: int = 0) -> None:
        self.runs: Counter[int] = Counter()
        self.heard: list[Any] = []
        self.fleet = Fleet(self._register, seed=seed)

    def _register(self, flow: TaskFlow) -> None:
        @flow.task
        async def work(number: int, seconds: float = 0.5) -> None:
            self.runs[number] += 1
            await flow.clock.sleep(seconds)

        flow.listen(self.heard.append, events.BrokerAnswered, events.BrokerFailed)

    async def submit(self, numbers: range, seconds: float = 0.5) -> None:
        flow = self.fleet.make_flow(self.fleet.broker)
        async with flow:
            work = flow.find("work")
            await work.submit_many([work.call(number, seconds) for number in numbers])

    def cut(self, *members: Member) -> None:
        for member in members or self.fleet.members:
            member.faults.cut(*EVERYTHING, "gates")

    def mend(self, *members: Member) -> None:
        for member in members or self.fleet.members:
            member.faults.mend()

    async def states(self) -> Counter[JobState]:
        return Counter(job.state for job in await self.fleet.broker.jobs(limit=10_000))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("outage_s", [5, 9, 12, 300])
async def test_what_ended_while_nobody_reached_the_broker_is_run_by_nobody_again(seed: int, outage_s: float) -> None:
    site = Site(seed)
    await site.submit(range(20))
    for _ in range(4):
        await site.fleet.start(concurrency=5)
    await site.fleet.clock.advance(0.2)

    site.cut()
    await site.fleet.clock.advance(outage_s)
    site.mend()
    await site.fleet.clock.advance(30)

    await site.fleet.stop()

    assert site.runs == dict.fromkeys(range(20), 1)
    assert await site.states() == {JobState.SUCCEEDED: 20}


async def test_a_worker_that_died_during_the_outage_is_noticed_soon_after_it() -> None:
    site = Site()
    await site.submit(range(10), seconds=1_000)
    dead = await site.fleet.start(concurrency=10)
    await site.fleet.clock.advance(1)
    await site.fleet.start(concurrency=10)
    site.cut()
    dead.crash()
    await site.fleet.clock.advance(120)

    site.mend(site.fleet.members[1])
    await site.fleet.clock.advance(LEASE_S / 12 + LEASE_S / 4 + 2)
    runs = site.runs.copy()
    await site.fleet.members[1].stop()

    assert runs == dict.fromkeys(range(10), 2)


async def test_after_an_outage_a_worker_claims_nothing_before_its_lease_stands_and_what_ended_is_told() -> None:
    site = Site()
    await site.submit(range(40))
    await site.fleet.start(concurrency=10)
    await site.fleet.clock.advance(0.2)
    site.cut()
    await site.fleet.clock.advance(300)
    site.heard.clear()

    site.mend()
    await site.fleet.clock.advance(LEASE_S / 12)

    answered = [one.operation for one in site.heard if isinstance(one, events.BrokerAnswered)]
    done = (await site.states())[JobState.SUCCEEDED]
    await site.fleet.stop()

    assert answered.index("settle") < answered.index("claim")
    assert answered.index("beat") < answered.index("claim")
    assert done == 10


async def test_what_no_broker_takes_does_not_spin_though_the_rest_works() -> None:
    site = Site()
    member = await site.fleet.start(concurrency=2)
    member.faults.cut("settle", "wait", "reclaim", "gates")
    await site.submit(range(100), seconds=0.01)

    await site.fleet.clock.advance(100)

    failed = Counter(one.operation for one in site.heard if isinstance(one, events.BrokerFailed))
    site.mend()
    await site.fleet.stop()

    assert 100 / 5 <= failed["settle"] <= 100 / 2.5 + 10
    assert failed["reclaim"] <= 100 / 2.5 + 10


async def test_whoever_submits_hears_when_to_come_back() -> None:
    assert BrokerUnavailable("away").retry_after_s == 1.0
    site = Site()
    member = await site.fleet.start()
    site.cut()
    began = site.fleet.clock.now()
    with pytest.raises(BrokerUnavailable) as caught:
        await site.fleet.clock.run(member.flow.find("work").submit(1))
    took_s = site.fleet.clock.now() - began
    site.mend()
    await site.fleet.stop()

    assert took_s <= 3
    assert caught.value.retry_after_s is not None
    assert caught.value.retry_after_s > 0
