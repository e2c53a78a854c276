"""What the tests of the policies share: a registry of their own, on a clock that they move."""

from __future__ import annotations

import random

import pytest

from taskflow.policies.registry import Registry
from taskflow.testing import VirtualClock


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def registry(clock: VirtualClock) -> Registry:
    return Registry(clock, random.Random(7))
