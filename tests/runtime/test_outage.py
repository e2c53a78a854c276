"""A fleet whose dependency fails: its jobs wait at the gate, one probe at a time goes to look, and all come through."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from taskflow import CircuitBreaker, Retry, TaskFlow
from taskflow.core import events
from taskflow.core.gate import Gate, Hold, Release
from taskflow.core.job import JobState
from taskflow.runtime.control import Snooze
from tests.runtime.fleet import Fleet
from tests.runtime.made import http_error, make_flow

if TYPE_CHECKING:
    from taskflow.clock import Clock

pytestmark = pytest.mark.anyio


@dataclass
class Dependency:
    """What the jobs call. It takes a tenth of a second, well or not."""

    is_down: bool = False
    hangs_s: float = 0.1
    now: int = 0
    calls: list[tuple[float, bool]] = field(default_factory=list)  # when, and whether it went well
    most: Counter[int] = field(default_factory=Counter)  # second → most calls at once

    async def call(self, clock: Clock) -> None:
        self.now += 1
        at = int(clock.now())
        self.most[at] = max(self.most[at], self.now)
        is_down = self.is_down
        self.calls.append((clock.now(), not is_down))
        try:
            await clock.sleep(self.hangs_s if is_down else 0.1)
        finally:
            self.now -= 1
        if is_down:
            raise OSError("connection refused")


SPEC = CircuitBreaker("smtp", consecutive=5, open_for=10, max_open_for=20, close_after=2)
PATIENT = Retry(attempts=3, base=0.5, jitter="none")


def fleet_of(depends: Dependency, heard: list[events.BreakerMoved] | None = None, **options: Any) -> Fleet:
    """Tasks `send` (needs the dependency) in queue `mail`, `post` (too) in queue `letters`, and `other`."""

    def register(flow: TaskFlow) -> None:
        policies = {"breaker": SPEC, "retry": PATIENT, **options}

        @flow.task(queue="mail", **policies)
        async def send() -> None:
            await depends.call(flow.clock)

        @flow.task(queue="letters", **policies)
        async def post() -> None:
            await depends.call(flow.clock)

        @flow.task(queue="mail")
        async def other() -> None:
            await flow.clock.sleep(0.1)

        if heard is not None:
            flow.listen(heard.append, events.BreakerMoved)

    return Fleet(register)


async def submit(fleet: Fleet, **counts: int) -> None:
    flow = fleet.make_flow(fleet.broker)
    async with flow:
        for name, count in counts.items():
            task = flow.find(name)
            await task.submit_many([task.call() for _ in range(count)])


async def states(fleet: Fleet) -> Counter[JobState]:
    return Counter(job.state for job in await fleet.broker.jobs(limit=100_000))


async def gate(fleet: Fleet) -> Gate:
    (found,) = [one for one in await fleet.broker.gates() if one.name == "smtp"]
    return found


async def test_the_fleet_sends_one_probe_not_one_each_and_no_job_pays_for_the_outage() -> None:
    depends, moved = Dependency(is_down=True), list[events.BreakerMoved]()
    fleet = fleet_of(depends, moved)
    await submit(fleet, send=300, post=300, other=300)
    for _ in range(4):
        await fleet.start(concurrency=10)

    await fleet.clock.advance(60)
    while_down = list(depends.calls)
    infos = await fleet.broker.jobs(limit=10_000)
    depends.is_down = False
    await fleet.clock.advance(60)

    probes = [at for at, _ in while_down if at > 5]
    attempts = sum(info.attempts for info in infos if info.task != "other")
    assert len(while_down) <= 40 + len(probes)
    assert [round(later - at) for at, later in pairwise(probes)] == [20] * (len(probes) - 1)
    assert max(depends.most[second] for second in range(5, 60)) == 1
    assert attempts == len(while_down) - len(probes)
    assert sum(info.state is JobState.SUCCEEDED for info in infos) == 300
    assert await states(fleet) == {JobState.SUCCEEDED: 900}
    assert all(went_well for at, went_well in depends.calls if at > 60)
    to = [one.to for one in moved]
    assert (to.count("open"), to.count("closed"), to[0], to[-1]) == (1 + len(probes), 1, "open", "closed")
    await fleet.stop()


async def test_after_the_outage_the_fleet_ramps_up_and_does_not_stampede() -> None:
    depends = Dependency(is_down=True)
    fleet = fleet_of(depends)
    await submit(fleet, send=500)
    for _ in range(4):
        await fleet.start(concurrency=25)
    await fleet.clock.advance(9)
    depends.is_down = False
    depends.most.clear()

    widths = []
    for _ in range(60):
        await fleet.clock.advance(0.05)
        widths.append(depends.now)

    steps = [width for at, width in enumerate(widths) if at == 0 or width != widths[at - 1]]
    assert max(widths[: widths.index(2)]) == 1
    assert all(after <= 2 * max(1, before) or after == 100 for before, after in pairwise(steps))
    await fleet.clock.advance(30)
    assert await states(fleet) == {JobState.SUCCEEDED: 500}
    await fleet.stop()


async def test_a_dependency_with_a_single_job_does_not_kill_it() -> None:
    depends = Dependency(is_down=True)
    fleet = fleet_of(depends, breaker=CircuitBreaker("smtp", consecutive=1, open_for=5, max_open_for=10))
    await submit(fleet, send=1)
    await fleet.start(concurrency=10)

    await fleet.clock.advance(300)
    (info,) = await fleet.broker.jobs()
    depends.is_down = False
    await fleet.clock.advance(30)

    assert len(depends.calls) > 20
    assert info.attempts == 1
    assert info.snoozes >= 20
    assert await states(fleet) == {JobState.SUCCEEDED: 1}
    await fleet.stop()


async def test_a_lone_job_survives_though_its_breaker_has_seen_too_little_to_trip() -> None:
    depends = Dependency(is_down=True)
    fleet = fleet_of(depends)
    await submit(fleet, send=1)
    for _ in range(4):
        await fleet.start(concurrency=10)

    await fleet.clock.advance(120)
    (info,) = await fleet.broker.jobs()
    depends.is_down = False
    await fleet.clock.advance(30)

    assert info.attempts == 2
    assert len(depends.calls) <= 3 + 120 // 20 + 2
    assert await states(fleet) == {JobState.SUCCEEDED: 1}
    await fleet.stop()


async def test_waiting_for_a_dependency_is_bounded_by_the_longest_wait() -> None:
    depends = Dependency(is_down=True)
    fleet = fleet_of(depends, breaker=CircuitBreaker("smtp", consecutive=1), max_wait=100)
    await submit(fleet, send=3)
    await fleet.start(concurrency=10)

    await fleet.clock.advance(150)

    assert {(info.state, info.reason) for info in await fleet.broker.jobs()} == {(JobState.EXPIRED, "max_wait")}
    await fleet.stop()


async def test_a_lost_probe_gives_way_to_the_next_when_its_lease_is_over() -> None:
    depends = Dependency(is_down=True, hangs_s=0.1)
    fleet = fleet_of(depends)
    await submit(fleet, send=50)
    first = await fleet.start(concurrency=10)
    await fleet.clock.advance(9)
    depends.hangs_s = 1_000
    await fleet.clock.advance(2)
    assert (depends.now, (await gate(fleet)).live) == (1, 1)

    first.crash()
    depends.is_down = False
    await fleet.start(concurrency=10)
    await fleet.clock.advance(60)

    assert await states(fleet) == {JobState.SUCCEEDED: 50}
    await fleet.stop()


async def test_a_hung_probe_is_over_at_its_timeout() -> None:
    depends = Dependency(is_down=True)
    fleet = fleet_of(depends, timeout=3)
    await submit(fleet, send=20)
    await fleet.start(concurrency=10)
    await fleet.clock.advance(9)
    depends.hangs_s = 1_000

    await fleet.clock.advance(3)
    probing = depends.now
    await fleet.clock.advance(3)

    assert (probing, depends.now) == (1, 0)
    assert (await gate(fleet)).failed == 2
    await fleet.stop()


async def test_a_probe_that_a_shutdown_interrupts_leaves_the_gate_as_it_was() -> None:
    depends = Dependency(is_down=True)
    fleet = fleet_of(depends)
    await submit(fleet, send=20)
    first = await fleet.start(concurrency=10, drain=0.0)
    await fleet.clock.advance(9)
    depends.hangs_s = 1_000
    await fleet.clock.advance(2)
    before = await gate(fleet)
    assert before.live == 1

    await first.stop()

    after = await gate(fleet)
    assert (after.era, after.ramp, after.good, after.bad, after.failed, after.live) == (1, 1, 0, 0, 1, 0)
    await fleet.stop()


async def test_one_throttled_job_has_all_wait_and_is_no_failure_of_the_dependency() -> None:
    calls: list[float] = []

    def register(flow: TaskFlow) -> None:
        @flow.task(breaker=CircuitBreaker("api", consecutive=1))
        async def call() -> None:
            calls.append(flow.clock.now())
            await flow.clock.sleep(0.1)
            if len(calls) == 1:
                raise Snooze(30, "rate_limited", hold="api")

    fleet = Fleet(register)
    await submit(fleet, call=1)
    await fleet.start(concurrency=10)
    await fleet.clock.advance(1)
    await submit(fleet, call=40)
    for _ in range(3):
        await fleet.start(concurrency=10)

    await fleet.clock.advance(20)
    held = len(calls)
    (found,) = await fleet.broker.gates()
    await fleet.clock.advance(20)

    assert held == 1
    assert (found.era, found.ramp) == (0, None)
    assert await states(fleet) == {JobState.SUCCEEDED: 41}
    assert calls[1:11] == [calls[1]] * 10  # no ramp: all at once
    await fleet.stop()


@pytest.mark.parametrize(("status", "retry_after", "waits_s"), [(429, "30", 30), (429, None, 5), (503, "30", 30)])
async def test_a_retry_after_is_obeyed_by_all_and_spends_no_attempt(
    status: int, retry_after: str | None, waits_s: float
) -> None:
    calls: list[float] = []

    def register(flow: TaskFlow) -> None:
        @flow.task(breaker=CircuitBreaker("api", consecutive=1))
        async def call() -> None:
            calls.append(flow.clock.now())
            await flow.clock.sleep(0.1)
            if len(calls) == 1:
                raise http_error(status, retry_after)

    fleet = Fleet(register)
    await submit(fleet, call=1)
    await fleet.start(concurrency=10)
    await fleet.clock.advance(1)
    await submit(fleet, call=10)
    await fleet.start(concurrency=10)

    await fleet.clock.advance(waits_s - 1.5)
    held = len(calls)
    (found,) = await fleet.broker.gates()
    await fleet.clock.advance(waits_s)
    (throttled,) = [job for job in await fleet.broker.jobs() if job.snoozes]

    assert held == 1
    assert (found.era, found.ramp) == (0, None)  # it lives, and counts
    assert await states(fleet) == {JobState.SUCCEEDED: 11}
    assert (throttled.attempts, throttled.snoozes) == (1, 1)
    assert throttled.errors[0].kind == "throttled"
    await fleet.stop()


async def test_an_error_that_retry_does_not_cover_is_the_end_though_the_other_side_asks_to_wait() -> None:
    flow = make_flow()

    @flow.task(retry=Retry(never=(aiohttp.ClientResponseError,)))
    async def call() -> None:
        raise http_error(429, "30")

    async with flow.test() as t:
        job = await call.submit()
        await t.run_until_idle()

        assert await job.status() == "dead"


async def test_a_person_opens_and_closes_whatever_the_breaker_says() -> None:
    depends = Dependency(is_down=True)
    fleet = fleet_of(depends)
    await submit(fleet, send=100)
    for _ in range(2):
        await fleet.start(concurrency=10)
    await fleet.clock.advance(2)
    depends.is_down = False

    await fleet.broker.gate("smtp", Hold(1_000, "by hand"))
    await fleet.clock.advance(500)
    held = len([at for at, _ in depends.calls if at > 2])
    await fleet.broker.gate("smtp", Release())
    await fleet.clock.advance(0.05)
    opened = depends.now
    await fleet.clock.advance(20)

    assert held == 0
    assert opened == 20
    assert await states(fleet) == {JobState.SUCCEEDED: 100}
    await fleet.stop()


async def test_one_lane_that_fails_is_probed_alone() -> None:
    calls: Counter[str] = Counter()

    def register(flow: TaskFlow) -> None:
        @flow.task(
            breaker=CircuitBreaker("http", consecutive=2, open_for=10, max_open_for=10, per_lane=True),
            lane=lambda host: host,
        )
        async def call(host: str) -> None:
            calls[host] += 1
            await flow.clock.sleep(0.1)
            if host == "down":
                raise OSError

    fleet = Fleet(register)
    flow = fleet.make_flow(fleet.broker)
    async with flow:
        task = flow.find("call")
        await task.submit_many([task.call(host) for host in ("down", "up") for _ in range(100)])
    for _ in range(4):
        await fleet.start(concurrency=10)

    await fleet.clock.advance(35)

    ramps = {one.name: (one.ramp, one.era) for one in await fleet.broker.gates() if "/" in one.name}
    assert calls["up"] == 100
    assert calls["down"] <= 40 + 3
    assert ramps["http/down"] == (1, 4)
    assert ramps.get("http/up", (None, 0)) == (None, 0)
    await fleet.stop()
