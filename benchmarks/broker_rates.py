"""How many jobs a second a broker takes, and claims and settles. `python -m benchmarks.broker_rates URL` (Redis)."""

from __future__ import annotations

import asyncio
import resource
import sys
import time

from taskflow.brokers.base import ClaimRequest, Settlement
from taskflow.core.decision import Complete
from taskflow.core.job import Job

JOBS, PUT, TAKE = 40_000, 500, 100
PAYLOAD = b'{"v":1,"args":{"url":"https://example.org/hook","number":1234567},"correlation_id":"0123456789abcdef"}'


def cpu_s() -> float:
    return sum(resource.getrusage(resource.RUSAGE_SELF)[:2])


async def rates(broker, lanes: int, gates: tuple[str, ...] = ()) -> None:
    request = ClaimRequest("w", ("q",), TAKE, TAKE, 0, 60.0)
    jobs = [
        Job(
            id=f"{time.time_ns():x}{n:016x}"[-32:],
            task="work",
            queue="q",
            payload=PAYLOAD,
            lane=str(n % lanes),
            gates=gates,
        )
        for n in range(JOBS)
    ]
    began, used = time.perf_counter(), cpu_s()
    for at in range(0, JOBS, PUT):
        await broker.submit(jobs[at : at + PUT], {"q": JOBS * 4})
    took, cpu = time.perf_counter() - began, cpu_s() - used
    print(
        f"{lanes:6} lanes {len(gates)} gates  submit {JOBS / took:9,.0f}/s, client {cpu / JOBS * 1e6:5.1f} us a job",
        end="   ",
    )
    began, used, done = time.perf_counter(), cpu_s(), 0
    while claims := await broker.claim(request):
        await broker.settle([Settlement(one.job_id, one.token, Complete(b"1")) for one in claims])
        done += len(claims)
    took, cpu = time.perf_counter() - began, cpu_s() - used
    assert done == JOBS, done
    print(f"claim+settle {JOBS / took:9,.0f}/s, client {cpu / JOBS * 1e6:5.1f} us a job", flush=True)


async def main() -> None:
    from taskflow.brokers.redis import RedisBroker

    broker = RedisBroker(sys.argv[1], namespace="benchmark")
    await broker.open()
    await rates(broker, 1)
    await rates(broker, 1_000)
    await rates(broker, 10_000)
    await rates(broker, 100, ("smtp",))
    await broker.close()


asyncio.run(main())
