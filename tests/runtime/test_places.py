"""Places of sync handlers: bounded, in order of arrival, and none is lost to a cancellation."""

from __future__ import annotations

import asyncio

import pytest

from taskflow.runtime.places import Places

pytestmark = pytest.mark.anyio


async def test_places_are_handed_on_in_order_of_arrival() -> None:
    places = Places(1, "busy")
    order: list[int] = []

    async def take(number: int) -> None:
        await places.take()
        order.append(number)
        places.give_back()

    assert places.try_take()
    tasks = [asyncio.create_task(take(number)) for number in range(5)]
    await asyncio.sleep(0)
    places.give_back()
    await asyncio.gather(*tasks)

    assert order == [0, 1, 2, 3, 4]
    assert places.taken == 0


async def test_whoever_comes_new_does_not_overtake_those_who_wait() -> None:
    places = Places(1, "busy")
    await places.take()
    waiting = asyncio.create_task(places.take())
    await asyncio.sleep(0)

    places.give_back()

    assert not places.try_take()
    await waiting


async def test_a_place_handed_over_in_the_moment_of_a_cancellation_is_passed_on() -> None:
    places = Places(1, "busy")
    await places.take()
    first, second = (asyncio.create_task(places.take()) for _ in range(2))
    await asyncio.sleep(0)

    places.give_back()
    first.cancel()
    await asyncio.wait([first, second])

    assert first.cancelled()
    assert second.done()
    assert places.taken == 1


async def test_a_waiter_that_is_cancelled_just_before_a_place_is_free_ends_by_that_cancellation() -> None:
    places = Places(1, "busy")
    await places.take()
    first, second = (asyncio.create_task(places.take()) for _ in range(2))
    await asyncio.sleep(0)

    first.cancel()
    places.give_back()
    await asyncio.wait([first, second])

    assert first.cancelled()
    assert not second.cancelled()
    assert places.taken == 1
