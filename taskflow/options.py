"""What one submission says beyond the function's arguments, checked before anything is sent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from taskflow.clock import NEVER
from taskflow.core import specs
from taskflow.core.job import MAX_LANE_BYTES
from taskflow.errors import PayloadError
from taskflow.runtime.task import is_lane
from taskflow.telemetry.context import MAX_ID


@dataclass(frozen=True, slots=True)
class Options:
    """What one submission says beyond the function's arguments. None leaves it to the task. Durations are seconds."""

    delay: float = 0.0
    key: str | None = None
    priority: int | None = None
    queue: str | None = None
    timeout: float | None = None
    deadline: float | None = None
    max_wait: float | None = None
    retry: specs.Retry | None = None
    lane: str | None = None
    correlation_id: str | None = None
    job_id: str | None = None
    batch: str = ""

    def __post_init__(self) -> None:
        def check(ok: bool, name: str, wants: str) -> None:
            if not ok:
                raise PayloadError(f"options({name}=): must be {wants}, got {getattr(self, name)!r}")

        check(_is_number(self.delay) and 0 <= self.delay < NEVER, "delay", "seconds from 0 on")
        check(self.priority is None or (type(self.priority) is int and 0 <= self.priority <= 9), "priority", "0 to 9")
        for name, most in (("key", 255), ("queue", 100), ("job_id", 100), ("correlation_id", MAX_ID)):
            value = getattr(self, name)
            ok = value is None or (isinstance(value, str) and 0 < len(value) <= most and value.isprintable())
            check(ok, name, f"1 to {most} printable characters")
        ok = self.lane is None or is_lane(self.lane)
        check(ok, "lane", f"a string of at most {MAX_LANE_BYTES} bytes without NUL")
        for name in ("timeout", "deadline", "max_wait"):
            value = getattr(self, name)
            check(value is None or (_is_number(value) and 0 < value < NEVER), name, "more than 0 seconds")
        if self.retry is not None and not isinstance(self.retry, specs.Retry):
            raise PayloadError(f"options(retry=): takes a Retry, as in Retry(attempts=5), got {self.retry!r}")
        if self.retry is not None and not self.retry.said <= set(specs.RETRY_NUMBERS):
            raise PayloadError(
                "options(retry=): only its numbers travel with a job; on=, never= and budget= belong in @flow.task "
                "(dataclasses.replace() says them all: write Retry(...))"
            )

    def carried(self) -> dict[str, Any]:
        """What the worker has to know at each attempt, as JSON can carry it."""
        found: dict[str, Any] = {}
        if self.timeout is not None:
            found["timeout"] = self.timeout
        if self.retry is not None and self.retry.said:
            found["retry"] = {
                name: getattr(self.retry, name) for name in specs.RETRY_NUMBERS if name in self.retry.said
            }
        return found

    def policy_options(self) -> dict[str, Any]:
        """What counts where the task's policies are resolved."""
        named = ("timeout", "deadline", "max_wait", "priority", "queue", "retry")
        return {name: value for name in named if (value := getattr(self, name)) is not None}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
