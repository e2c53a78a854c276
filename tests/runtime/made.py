"""What the tests of the runtime make: flows, claims, and lists of what was announced."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, TypeVar

import aiohttp
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from taskflow import Settings, TaskFlow
from taskflow.core.job import Claim, Job
from taskflow.settings import BrokerSettings

if TYPE_CHECKING:
    from taskflow.brokers.base import FullBroker

E = TypeVar("E")


def make_flow(seed: int = 0, **settings: Any) -> TaskFlow:
    """A flow that reads no environment: `make_flow(worker={"lease_s": 5})`."""
    made = Settings(broker=BrokerSettings(url="memory://"), **settings)  # type: ignore[arg-type]
    return TaskFlow(settings=made, rng=random.Random(seed))


def make_claim(job_id: str = "a", token: int = 1, **changes: Any) -> Claim:
    claim = Claim(
        job_id, token, "task", "default", b'{"v":1,"args":{}}', "", (), 4, 0, 0, 0, 0, 0, 1e9, "max_wait", None
    )
    return claim._replace(**changes)


def http_error(status: int, retry_after: str | None = None) -> aiohttp.ClientResponseError:
    """What `raise_for_status` of aiohttp raises."""
    headers = CIMultiDict() if retry_after is None else CIMultiDict({"Retry-After": retry_after})
    url = URL("https://api.example.org")
    asked = aiohttp.RequestInfo(url, "GET", CIMultiDictProxy(CIMultiDict()), url)
    return aiohttp.ClientResponseError(asked, (), status=status, message="no", headers=CIMultiDictProxy(headers))


def heard(flow: TaskFlow, *types: type[E]) -> list[E]:
    """What the flow announces from now on, of these types."""
    found: list[E] = []
    flow.listen(found.append, *types)
    return found


async def put(broker: FullBroker, *ids: str, **changes: Any) -> None:
    """Submit a job for each id."""
    jobs = [Job(job_id, "task", "default", b'{"v":1,"args":{}}')._replace(**changes) for job_id in ids]
    await broker.submit(jobs, {})
