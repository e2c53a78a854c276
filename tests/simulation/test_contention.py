"""What backoff does to a crowd that wants the same row: see `benchmarks/contention.py`."""

from __future__ import annotations

import pytest

from benchmarks.contention import mean, spec
from taskflow import Retry


def test_the_default_backoff_spreads_a_crowd_with_few_calls_and_soon() -> None:
    ended = mean(spec(Retry().jitter), clients=100, runs=60)

    assert ended.calls <= 900
    assert ended.completion_ms <= 5_600


def test_without_jitter_a_crowd_meets_again_and_again() -> None:
    ended = mean(spec("none"), clients=100, runs=60)

    assert ended.calls == pytest.approx(1_850, rel=0.05)
    assert ended.completion_ms > 10 * 5_600
