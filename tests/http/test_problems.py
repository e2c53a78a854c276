from __future__ import annotations

import json

import pytest

from taskflow.http.problems import CODES, problem


@pytest.mark.parametrize("status", sorted(CODES))
def test_every_status_has_its_code(status: int) -> None:
    answer = problem(status, "why")
    document = json.loads(answer.body)

    assert answer.content_type == "application/problem+json"
    assert document["status"] == answer.status == status
    assert document["code"] == CODES[status]
    assert set(document) == {"type", "title", "status", "detail", "code"}


def test_a_code_of_ours_replaces_that_of_the_status() -> None:
    assert json.loads(problem(503, "why", code="queue_full").body)["code"] == "queue_full"


@pytest.mark.parametrize(("wait_s", "header"), [(0.2, "1"), (1.0, "1"), (2.1, "3"), (30, "30")])
def test_retry_after_is_told_twice_in_whole_seconds_and_exactly(wait_s: float, header: str) -> None:
    answer = problem(429, "why", retry_after_s=wait_s)

    assert answer.headers["Retry-After"] == header
    assert json.loads(answer.body)["retry_after_s"] == wait_s
