"""The order in which jobs are claimed: priority, lanes in turn, the line within a lane, queues as they are named."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from taskflow.brokers.base import QUOTA
from taskflow.core.decision import Release
from tests.brokers.words import AGAIN, claim, claim_one, eventually, ids, job, settle, settle_all, submit

if TYPE_CHECKING:
    from taskflow.brokers.base import FullBroker

pytestmark = pytest.mark.anyio


async def test_higher_priority_goes_first(broker: FullBroker) -> None:
    low, high, middle = job(priority=0), job(priority=9, lane="b"), job(priority=5, lane="c")
    await submit(broker, low, high, middle)

    assert ids(await claim(broker)) == [high.id, middle.id, low.id]


async def test_higher_priority_goes_first_when_it_came_later(broker: FullBroker) -> None:
    await submit(broker, *(job(lane="a") for _ in range(5)))
    urgent = job(lane="a", priority=9)
    await claim(broker, limit=1)
    await submit(broker, urgent)

    assert ids(await claim(broker, limit=1)) == [urgent.id]


async def test_within_a_lane_the_order_of_submission_decides(broker: FullBroker) -> None:
    jobs = [job() for _ in range(20)]
    await submit(broker, *jobs[:7])
    await submit(broker, *jobs[7:])

    in_two = ids(await claim(broker, limit=8)) + ids(await claim(broker))

    assert in_two == [one.id for one in jobs]


async def test_within_a_lane_the_one_due_earlier_goes_first(broker: FullBroker) -> None:
    delayed, later = job(delay_s=0.05), job()
    await submit(broker, delayed)
    await submit(broker, later)

    claims = await eventually(lambda: _two_at_once(broker))

    assert ids(claims) == [later.id, delayed.id]


async def _two_at_once(broker: FullBroker) -> list:
    """Both jobs in one claim, or none: what was claimed alone goes back to its place."""
    claims = await claim(broker)
    if len(claims) == 2:
        return claims
    await settle_all(broker, claims, Release())
    return []


async def test_released_job_is_at_the_front_of_the_line_again(broker: FullBroker) -> None:
    first, second = job(), job()
    await submit(broker, first, second)

    await settle(broker, await claim_one(broker, limit=1), Release())

    assert ids(await claim(broker)) == [first.id, second.id]


async def test_retried_job_goes_behind_those_that_are_due_already(broker: FullBroker) -> None:
    first, second = job(), job()
    await submit(broker, first, second)

    await settle(broker, await claim_one(broker, limit=1), AGAIN)

    assert ids(await claim(broker)) == [second.id, first.id]


async def test_lanes_have_their_turns(broker: FullBroker) -> None:
    await submit(broker, *(job(lane=lane) for lane in "aaaaaaaaaaaabbbbbbbbbbbbcccccccccccc"))

    claims = await claim(broker, limit=3 * QUOTA)

    assert Counter(got.lane for got in claims) == {"a": QUOTA, "b": QUOTA, "c": QUOTA}


async def test_few_lanes_share_a_large_claim(broker: FullBroker) -> None:
    await submit(broker, *(job(lane=lane) for lane in "a" * 30 + "b" * 30))

    claims = await claim(broker, limit=20)

    assert Counter(got.lane for got in claims) == {"a": 10, "b": 10}


async def test_lane_with_a_long_line_does_not_hold_up_the_next_one(broker: FullBroker) -> None:
    await submit(broker, *(job(lane="long") for _ in range(50)))
    await submit(broker, job(lane="short"))

    lanes = [(await claim_one(broker, limit=1)).lane for _ in range(QUOTA + 1)]

    assert "short" in lanes


async def test_lanes_with_and_without_gates_have_their_turns(broker: FullBroker) -> None:
    await submit(broker, *(job(gates=("smtp",), lane=lane) for lane in "aaaaaaaaabbbbbbbbb"))
    await submit(broker, *(job(lane=lane) for lane in "ccccccccc"))

    claims = await claim(broker, limit=3 * QUOTA)
    small = [(await claim_one(broker, limit=1)).lane for _ in range(2 * QUOTA + 1)]

    assert Counter(got.lane for got in claims) == {"a": QUOTA, "b": QUOTA, "c": QUOTA}
    assert {*small} == {"a", "b", "c"}


async def test_lane_alone_gets_the_whole_claim(broker: FullBroker) -> None:
    await submit(broker, *(job(lane="only") for _ in range(30)))

    assert len(await claim(broker, limit=30)) == 30


async def test_claim_takes_second_turns_until_its_limit(broker: FullBroker) -> None:
    await submit(broker, *(job(lane="long") for _ in range(50)), *(job(lane=str(number)) for number in range(9)))

    claims = await claim(broker, limit=50)

    assert Counter(got.lane for got in claims)["long"] == 41


async def test_priority_decides_before_the_turn(broker: FullBroker) -> None:
    await submit(broker, *(job(lane="urgent", priority=9) for _ in range(12)), *(job(lane="calm") for _ in range(12)))

    assert {got.lane for got in await claim(broker, limit=12)} == {"urgent"}


async def test_queues_are_asked_in_the_order_named(broker: FullBroker) -> None:
    await submit(broker, job(queue="a", priority=9), job(queue="b", priority=0))

    assert [got.queue for got in await claim(broker, queues=("b", "a"))] == ["b", "a"]
