"""What every broker promises of months: what is kept for a batch that nobody finishes. The clock is the test's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from taskflow.brokers.base import Accepted
from taskflow.core.decision import Bury, Complete
from tests.brokers.conftest import TravelClock
from tests.brokers.words import BOOM, KEEP, claim, eventually, job, reclaim, settle, submit

if TYPE_CHECKING:
    from taskflow.brokers.base import FullBroker

pytestmark = pytest.mark.anyio
DAY_S = 86_400.0
MONTH_S = 30 * DAY_S


@pytest.fixture
def clock() -> TravelClock:
    return TravelClock()


async def test_batch_that_nobody_finishes_is_kept_for_a_month_after_it_was_last_submitted(
    broker: FullBroker, clock: TravelClock
) -> None:
    one, dead, other = job(batch="run"), job(batch="run"), job()
    await submit(broker, one, dead, other)
    done, bad, rest = await claim(broker)
    await settle(broker, done, Complete(b"1"))
    await settle(broker, bad, Bury(BOOM))
    await settle(broker, rest, Complete(b"1"))

    async def are_kept(*job_ids: str) -> bool:
        await reclaim(broker)
        return set(await broker.states([one.id, dead.id, other.id])) == {*job_ids}

    clock.ahead_s = MONTH_S - DAY_S
    await eventually(lambda: are_kept(one.id, dead.id))
    (resumed,) = await submit(broker, one)  # as a `run` does that goes on
    clock.ahead_s += MONTH_S - DAY_S
    assert await are_kept(one.id, dead.id)
    clock.ahead_s += DAY_S + 60

    await eventually(are_kept)
    assert resumed.accepted is Accepted.SAME_ID
    assert KEEP.batch_s == MONTH_S


async def test_job_that_joins_a_batch_that_was_given_up_is_of_an_unfinished_one(
    broker: FullBroker, clock: TravelClock
) -> None:
    first, second = job(batch="run"), job(batch="run")
    await submit(broker, first)
    (done,) = await claim(broker)
    await settle(broker, done, Complete(None))

    async def is_gone(job_id: str) -> bool:
        await reclaim(broker)
        return await broker.states([job_id]) == {}

    clock.ahead_s = MONTH_S + 60
    await eventually(lambda: is_gone(first.id))
    await submit(broker, second)
    (done,) = await claim(broker)
    await settle(broker, done, Complete(None))
    clock.ahead_s += MONTH_S - DAY_S
    assert not await is_gone(second.id)
    await broker.finish_batch("run")

    await eventually(lambda: is_gone(second.id))


async def test_finished_batch_gives_back_all_its_rows_however_many(broker: FullBroker, clock: TravelClock) -> None:
    jobs = [job(batch="run") for _ in range(30)]
    few = KEEP._replace(rows=4)
    await submit(broker, *jobs)
    for number, one in enumerate(await claim(broker)):
        await settle(broker, one, Bury(BOOM) if number % 3 == 0 else Complete(b"1"))
    clock.ahead_s = 20 * DAY_S
    for _ in range(30):
        await reclaim(broker, retention=few)  # what is old enough waits aside
    await broker.finish_batch("run")
    clock.ahead_s += 20 * DAY_S

    async def all_gone() -> bool:
        await reclaim(broker, retention=few)
        return await broker.states([one.id for one in jobs]) == {}

    await eventually(all_gone)
