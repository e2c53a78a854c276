"""What the workers say of themselves with their beats, over every broker."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from taskflow.brokers.base import FORGOTTEN, WorkerState
from taskflow.brokers.presence import worker_infos
from tests.brokers.conftest import TravelClock
from tests.brokers.words import claim, job, presence, reclaim, submit

if TYPE_CHECKING:
    from taskflow.brokers.base import FullBroker, WorkerInfo

pytestmark = pytest.mark.anyio

LEASE_S = 60.0


@pytest.fixture
def clock() -> TravelClock:
    return TravelClock()


async def names(broker: FullBroker) -> list[str]:
    return [info.worker for info in await broker.workers()]


async def one(broker: FullBroker) -> WorkerInfo:
    (only,) = await broker.workers()
    return only


async def stored(broker: Any) -> int:
    """Workers of which anything is kept, shown or not."""
    match broker.name:
        case "memory":
            return len(broker._store.presences)
        case "sqlite":
            return await broker.read(lambda file: file.execute("SELECT count(*) FROM presence").fetchone()[0])
        case "redis":
            keys = [f"{broker._link.prefix}{name}" for name in ("presences", "said")]
            return await broker._link.ask("ZCARD", keys[0]) + await broker._link.ask("HLEN", keys[1])
        case _:
            return await broker._pool.value("SELECT count(*) FROM ~.presence")


async def test_a_worker_is_shown_as_it_says_with_its_beat(broker: FullBroker) -> None:
    assert await broker.workers() == []

    await broker.beat("w2", {}, 60.0, presence(busy=0))
    await broker.beat("w1", {}, 30.0, presence())
    first, second = await broker.workers()

    assert (first.worker, first.lease_s, first.said) == ("w1", 30.0, presence())
    assert (second.worker, second.lease_s, second.said) == ("w2", 60.0, presence(busy=0))
    assert 0 <= first.silent_s < 10
    assert not first.is_silent


async def test_each_beat_tells_anew_how_the_worker_is(broker: FullBroker) -> None:
    await broker.beat("w1", {}, 60.0, presence())
    later = presence(up_s=15.9, busy=100, state=WorkerState.DRAINING)

    await broker.beat("w1", {}, 60.0, later)

    assert (await one(broker)).said == later


async def test_the_beat_from_a_thread_says_it_too(broker: FullBroker) -> None:
    sync = broker.sync_beat()
    if sync is None:
        assert broker.name == "memory"
        return

    try:
        await asyncio.to_thread(sync.beat, "w1", {}, 60.0, presence(state=WorkerState.PAUSED))
    finally:
        sync.close()

    assert (await one(broker)).said == presence(state=WorkerState.PAUSED)


async def test_a_beat_that_says_nothing_of_the_worker_changes_nothing_that_is_shown(broker: FullBroker) -> None:
    await broker.beat("w1", {}, 60.0, presence())

    await broker.beat("w1", {}, 60.0)
    await broker.beat("tool", {}, 60.0)

    assert (await one(broker)).said == presence()


async def test_a_worker_that_leaves_is_gone_at_once(broker: FullBroker) -> None:
    await submit(broker, job())
    await claim(broker, "w1")
    for worker in ("w1", "w2"):
        await broker.beat(worker, {}, 60.0, presence())

    await broker.leave("w1")  # holding a job
    assert await names(broker) == ["w2"]
    await broker.leave("w2")
    assert await names(broker) == []

    assert await stored(broker) == 0


async def test_a_worker_that_missed_two_beats_is_silent_and_shown_beyond_its_lease(
    broker: FullBroker, clock: TravelClock
) -> None:
    await broker.beat("w1", {}, LEASE_S, presence())

    clock.ahead_s += 0.6 * LEASE_S
    missed_one = await one(broker)
    clock.ahead_s += 0.1 * LEASE_S
    missed_two = await one(broker)
    clock.ahead_s += LEASE_S
    await reclaim(broker)
    beyond = await one(broker)

    assert [info.is_silent for info in (missed_one, missed_two, beyond)] == [False, True, True]
    assert 0.7 * LEASE_S <= missed_two.silent_s < 0.8 * LEASE_S
    assert 1.7 * LEASE_S <= beyond.silent_s < 1.8 * LEASE_S
    assert beyond.said == presence()


async def test_a_silent_worker_is_forgotten_whether_there_is_upkeep_or_not(
    broker: FullBroker, clock: TravelClock
) -> None:
    await broker.beat("w1", {}, LEASE_S, presence())

    clock.ahead_s += (FORGOTTEN - 0.1) * LEASE_S
    shown = await names(broker)
    clock.ahead_s += 0.2 * LEASE_S
    then = await names(broker)

    assert (shown, then) == (["w1"], [])


async def test_upkeep_keeps_nothing_of_a_forgotten_worker_and_leaves_the_others(
    broker: FullBroker, clock: TravelClock
) -> None:
    await broker.beat("lives", {}, 100 * LEASE_S, presence())
    others = await stored(broker)
    await broker.beat("dies", {}, LEASE_S, presence())
    assert await stored(broker) > others

    clock.ahead_s += (FORGOTTEN + 0.1) * LEASE_S
    await reclaim(broker)

    assert await stored(broker) == others
    assert await names(broker) == ["lives"]


async def test_a_worker_that_was_given_up_is_back_with_its_next_beat(broker: FullBroker, clock: TravelClock) -> None:
    await broker.beat("w1", {}, LEASE_S, presence())
    clock.ahead_s += (FORGOTTEN + 0.1) * LEASE_S
    await reclaim(broker)
    assert await names(broker) == []

    await broker.beat("w1", {}, LEASE_S, presence())

    assert not (await one(broker)).is_silent


def test_what_a_worker_of_a_newer_version_says_can_be_read() -> None:
    newer = presence()._asdict() | {"state": "resting", "mood": "good"}

    (info,) = worker_infos([("w1", 1.0, LEASE_S, json.dumps(newer))])

    assert info.said == presence(state="resting")
