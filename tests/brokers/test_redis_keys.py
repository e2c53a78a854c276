"""Every key has a bound or a time to live: what is left after retention does not grow with what there was."""

from __future__ import annotations

import asyncio
import re
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import pytest

from taskflow.brokers.base import Note, Settlement
from taskflow.brokers.redis import RedisBroker
from taskflow.core import gate as gating
from taskflow.core.decision import Bury, Complete, Expire, Release, Retry, Snooze
from taskflow.core.job import JobState
from taskflow.core.specs import CircuitBreaker
from tests.servers.valkey import forget_namespace, new_namespace, valkey_url

from .conftest import TravelClock
from .words import BOOM, ask, claim, eventually, ids, job, presence, reclaim, submit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from taskflow.core.decision import Decision
    from taskflow.core.job import Job

pytestmark = pytest.mark.anyio
DAY_S = 86_400.0
QUEUES = ("q", "other", "seldom")
SIZES = {b"hash": "HLEN", b"zset": "ZCARD", b"set": "SCARD", b"list": "LLEN", b"string": "STRLEN"}
ENDS: tuple[Decision, ...] = (
    Complete(b'"done"'),
    Bury(BOOM),
    Retry(0.0, BOOM),
    Retry(60.0, BOOM),
    Snooze(5.0, "busy", BOOM),
    Release(),
    Expire("deadline"),
    Complete(None),
)


@pytest.fixture
def clock() -> TravelClock:
    return TravelClock()


@pytest.fixture
async def broker(clock: TravelClock) -> AsyncIterator[RedisBroker]:
    namespace = new_namespace()
    broker = RedisBroker(valkey_url(), namespace=namespace, wall=clock.wall)
    await broker.open()
    yield broker
    await broker.close()
    forget_namespace(namespace)


async def names(broker: RedisBroker) -> list[str]:
    prefix = broker._link.prefix
    return [key.decode().removeprefix(prefix) for key in await broker._link.ask("KEYS", f"{prefix}*")]


async def left(broker: RedisBroker) -> dict[str, int]:
    """The size of each key that has no time to live."""
    found = {}
    for name in await names(broker):
        key = broker._link.prefix + name
        if await broker._link.ask("PTTL", key) < 0:
            kind = await broker._link.ask("TYPE", key)
            found[name] = await broker._link.ask(SIZES[kind], key)
    return found


def all_that_scripts_name() -> set[str]:
    """The first part of every key."""
    scripts = files("taskflow.brokers.redis") / "scripts"
    text = "".join(script.read_text() for script in scripts.iterdir())
    channels, never_made = {"work", "ends"}, {"nothing"}
    return {*re.findall(r"P \.\. '([a-z-]+)", text)} - channels - never_made


def all_kinds(number: int) -> list[Job]:
    """Names that no other number has, for everything that has a name, but for the queues."""
    name = f"n{number}"
    kinds: list[dict[str, Any]] = [
        {}, {"lane": name}, {"lane": name, "priority": 9}, {"key": name}, {"batch": name}, {"delay_s": 60.0},
        {"gates": (name,)}, {"gates": ("limited",), "lane": name}, {"gates": (f"http/{name}", "limited"), "lane": name},
        {"gates": (f"held/{name}",), "lane": name}, {"gates": (f"held/{name}",), "expires_s": 30.0},
        {"lane": name, "expires_s": 30.0}, {"task": "poison", "lane": name}, {"batch": f"done-{name}", "key": f"b{name}"},
        {"delay_s": 60.0, "lane": name, "gates": (f"http/{name}",)}, {"delay_s": 600.0, "expires_s": 20.0},
    ]  # fmt: skip
    return [job(queue=queue, **kind) for kind in kinds for queue in QUEUES]


async def a_day(broker: RedisBroker, clock: TravelClock, number: int) -> set[str]:
    """Everything that can happen, once. Returns the first parts of all keys that there were meanwhile."""
    seen: set[str] = set()

    async def look() -> None:
        seen.update(name.partition(":")[0] for name in await names(broker))

    jobs = all_kinds(number)
    await submit(broker, *jobs)
    await broker.submit(jobs, dict.fromkeys(QUEUES, 1))  # the same again: refused
    await broker.submit([job(gates=(f"full-{number}",))], {"q": 0})
    await broker.gate("limited", gating.Declare(limit=5, rate=gating.Rate(0.001, burst=1_000)))
    await broker.gate("http", gating.Declare(limit=2))
    await broker.gate(f"held/n{number}", gating.Hold(3_600.0, "down"))
    await broker.gate(f"n{number}", gating.Trip(0, number + 1, CircuitBreaker(f"n{number}")))
    await broker.gate(f"lonely-{number}", gating.Hold(5.0, "nobody needs it"))
    for shift in range(4):
        worker = f"w{number}-{shift}"
        claims = await claim(broker, worker, queues=QUEUES if shift < 2 else QUEUES[:2], limit=100)
        notes = [Note(one.job_id, one.token, b"50", b'{"at": 1}') for one in claims]
        await broker.note(notes)
        await broker.beat(worker, {one.job_id: one.token for one in claims[::2]}, 60.0)
        await broker.beat(worker, {one.job_id: one.token for one in claims[::3]}, 60.0, presence())
        await look()
        await broker.cancel(ids(claims[::5]))
        told = [one for one in claims if one.task != "poison"][: -shift or None]
        await broker.settle(
            [Settlement(one.job_id, one.token, ENDS[n % len(ENDS)]) for n, one in enumerate(told, shift)]
        )
        await reclaim(broker, max_lost=1)
        await broker.wait(ask(worker, queues=("nothing",)), 0.001)
        await broker.finals([one.id for one in jobs], 0.001)
        await look()
        if shift % 2:
            await broker.leave(worker)
        clock.ahead_s += 70  # past its lease: it has died
        await reclaim(broker, max_lost=1)
    await broker.pause("other")
    await broker.gate(f"held/n{number}", gating.Release())
    await broker.cancel([one.id for one in jobs[::7]])
    dead = await broker.jobs(state=JobState.DEAD)
    await broker.retry([one.id for one in dead[::2]])
    await broker.purge(state=JobState.CANCELLED, queue="q")
    await broker.finish_batch(f"done-n{number}")
    await broker.finish_batch("never was")
    await broker.resume("other")
    waiting = asyncio.create_task(broker.finals([jobs[0].id, jobs[1].id], 3_600.0))

    async def is_registered() -> bool:
        return bool(await broker._link.ask("EXISTS", f"{broker._link.prefix}awaited"))

    assert await eventually(is_registered)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    clock.ahead_s += 2 * DAY_S
    await reclaim(broker)
    await look()
    return seen


async def once_all_is_forgotten(broker: RedisBroker, clock: TravelClock) -> dict[str, int]:
    """Two months of nothing but the upkeep of some worker that asks one queue."""
    for _ in range(65):
        clock.ahead_s += DAY_S
        await reclaim(broker)
        await broker.leave("janitor")
    await reclaim(broker)
    assert await broker.jobs() == []
    return await left(broker)


async def test_what_is_left_after_retention_does_not_grow_with_what_there_was(
    broker: RedisBroker, clock: TravelClock
) -> None:
    seen = await a_day(broker, clock, 0)
    first = await once_all_is_forgotten(broker, clock)
    for number in range(1, 6):
        await a_day(broker, clock, number)
    then = await once_all_is_forgotten(broker, clock)

    assert then == first
    # `gate:…`: what was declared stays until the gate's next declaration. `queues`: a field for each queue.
    assert {*then} == {"numbers", "queues", "gates", "gate:limited", "gate:http"}
    assert seen >= all_that_scripts_name()
