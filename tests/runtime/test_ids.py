"""Job ids sort by the time at which they were made, and are never made twice."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable

import pytest

from taskflow.runtime.ids import derived_job_id, new_job_id, new_job_ids


def test_ids_are_in_order_and_unique() -> None:
    ids = [new_job_id() for _ in range(10_000)]

    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)


def test_ids_of_batches_are_in_order_and_unique_among_all_others() -> None:
    ids = []
    for count in (0, 1, 2, 3, 500, 1, 20_000):
        batch = new_job_ids(count)
        assert len(batch) == count
        ids += [*batch, new_job_id()]

    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("make", [new_job_id, lambda: new_job_ids(1)[0], lambda: new_job_ids(100_000)[-1]])
def test_an_id_is_a_uuid_of_version_7_that_tells_when_it_was_made(make: Callable[[], str]) -> None:
    before = time.time() - 0.01

    made = uuid.UUID(make())

    assert made.version == 7
    assert made.variant == uuid.RFC_4122
    assert before <= (made.int >> 80) / 1_000 <= time.time() + 1


def test_a_derived_id_is_the_same_for_the_same_parts_and_no_other() -> None:
    made = derived_job_id("file", "1")

    assert made == derived_job_id("file", "1")
    assert made != derived_job_id("file1", "")
    assert made != derived_job_id("file", "11")
    assert uuid.UUID(made).version == 8
