"""Policies for any awaitable: async shells over the pure core. `Pipeline` is the front door."""

from __future__ import annotations

from taskflow.policies.classes import classify, register_classifier
from taskflow.policies.deadline import Deadline
from taskflow.policies.orders import PolicyOrderWarning
from taskflow.policies.pipeline import Pipeline
from taskflow.policies.registry import Registry
from taskflow.policies.retry_after import retry_after_s

__all__ = [
    "Deadline",
    "Pipeline",
    "PolicyOrderWarning",
    "Registry",
    "classify",
    "register_classifier",
    "retry_after_s",
]
