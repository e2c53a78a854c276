"""Many callers submit in few round trips, and none of them pays for another's mistake."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskflow import BrokerUnavailable
from taskflow.brokers.base import Accepted, Receipt
from taskflow.core.job import Job
from taskflow.errors import BrokerError
from taskflow.runtime.together import MOST_BYTES, Together, batches

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

pytestmark = pytest.mark.anyio


def job(name: str, size: int = 2) -> Job:
    return Job(name, "work", "default", bytes(size))


class Server:
    """Where submits take as long as the test says: `open` lets through all that came."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.open = asyncio.Event()
        self.raises: dict[str, Exception] = {}  # for a batch that has this job

    async def submit(self, jobs: Sequence[Job], _bounds: Mapping[str, int]) -> list[Receipt]:
        self.batches.append([one.id for one in jobs])
        await self.open.wait()
        for one in jobs:
            if one.id in self.raises:
                raise self.raises[one.id]
        return [Receipt(one.id, Accepted.NEW) for one in jobs]


async def submitting(together: Together, names: str) -> list[asyncio.Task[list[Receipt]]]:
    tasks = [asyncio.create_task(together.submit([job(name)], {"default": 10})) for name in names]
    await asyncio.sleep(0)  # each has its first turn: it has asked
    return tasks


async def test_what_comes_while_others_are_under_way_is_one_batch_and_each_gets_its_own_receipts() -> None:
    server = Server()
    together = Together(server.submit, 500)

    tasks = await submitting(together, "abcdefgh")
    server.open.set()
    receipts = await asyncio.gather(*tasks)

    assert server.batches == [["a"], ["b"], ["c", "d", "e", "f", "g", "h"]]
    assert [[one.job_id for one in mine] for mine in receipts] == [[name] for name in "abcdefgh"]


async def test_a_batch_of_several_callers_has_a_bound() -> None:
    server = Server()
    together = Together(server.submit, 3)

    tasks = await submitting(together, "abcdefgh")
    server.open.set()
    await asyncio.gather(*tasks)

    assert [len(batch) for batch in server.batches] == [1, 1, 3, 3]


async def test_a_job_that_is_refused_spoils_nobody_elses() -> None:
    server = Server()
    server.raises["e"] = BrokerError("no such thing")
    together = Together(server.submit, 500)

    tasks = await submitting(together, "abcdef")
    server.open.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)

    assert [name for name, answer in zip("abcdef", answers, strict=True) if isinstance(answer, BrokerError)] == ["e"]


async def test_in_an_outage_each_caller_has_an_error_of_its_own() -> None:
    server = Server()
    outage = server.raises["c"] = BrokerUnavailable("gone", retry_after_s=2.0, kind="connection")
    together = Together(server.submit, 500)

    tasks = await submitting(together, "abcd")
    server.open.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)

    first, second = answers[2:]
    assert isinstance(first, BrokerUnavailable)
    assert isinstance(second, BrokerUnavailable)
    assert first is not second
    assert (first.retry_after_s, first.kind, first.__cause__) == (2.0, "connection", outage)
    assert len(server.batches) == 3  # an outage is no reason to ask for each


async def test_a_caller_that_gives_up_holds_up_nobody() -> None:
    server = Server()
    together = Together(server.submit, 500)

    tasks = await submitting(together, "abcd")
    tasks[0].cancel()  # on its way
    tasks[2].cancel()  # still waiting
    server.open.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)

    assert [type(answer) for answer in answers] == [asyncio.CancelledError, list, asyncio.CancelledError, list]
    assert ["d"] in server.batches


@given(st.lists(st.sampled_from([2, MOST_BYTES // 3, MOST_BYTES, MOST_BYTES + 1]), max_size=12), st.integers(1, 5))
def test_batches_hold_each_job_once_in_order_and_no_more_than_a_server_can_take(sizes: list[int], most: int) -> None:
    payloads = {size: bytes(size) for size in set(sizes)}
    jobs = [Job(str(number), "work", "default", payloads[size]) for number, size in enumerate(sizes)]

    parts = list(batches(jobs, most))

    assert [one for part in parts for one in part] == jobs
    assert all(1 <= len(part) <= most for part in parts)
    assert all(len(part) == 1 or sum(len(one.payload) for one in part) <= MOST_BYTES for part in parts)
    if sum(sizes) <= MOST_BYTES:
        assert len(parts) == -(-len(jobs) // most)  # as few as can be


async def test_large_jobs_of_many_callers_do_not_share_one_round_trip() -> None:
    server = Server()
    together = Together(server.submit, 500)

    tasks = await submitting(together, "ab")
    large = [asyncio.create_task(together.submit([job(name, MOST_BYTES // 2)], {})) for name in "cdef"]
    await asyncio.sleep(0)  # each has asked
    server.open.set()
    await asyncio.gather(*tasks, *large)

    assert server.batches == [["a"], ["b"], ["c", "d"], ["e", "f"]]
