from __future__ import annotations

import dataclasses
from typing import Any, get_args

from taskflow.core import events
from taskflow.core.decision import Release
from taskflow.core.job import JobState


def test_an_event_is_a_fact_that_cannot_be_changed() -> None:
    for kind in get_args(events.Event):
        if dataclasses.is_dataclass(kind):
            assert kind.__dataclass_params__.frozen, kind  # type: ignore[attr-defined]
        else:
            assert issubclass(kind, tuple), kind


def test_every_event_is_one_of_the_union_that_listeners_match() -> None:
    defined = {kind for kind in vars(events).values() if isinstance(kind, type) and kind.__module__ == events.__name__}
    protocols = {kind for kind in defined if getattr(kind, "_is_protocol", False)}
    singles = {single for single, _ in events.BATCHES.values()}

    assert defined - protocols - singles == set(get_args(events.Event))
    assert set(events.BATCHES) <= defined


def test_a_batch_gives_the_events_of_single_jobs() -> None:
    claim: Any = object()
    started = events.AttemptStarted(claim, "cid")
    ended = events.AttemptEnded(claim, "cid", "failed", 1.5, None)
    settled = events.JobSettled(claim, "cid", Release(), JobState.READY, 2.5)

    for batch, single in (
        (events.AttemptsStarted([started]), started),
        (events.AttemptsEnded([ended]), ended),
        (events.JobsSettled([settled]), settled),
    ):
        single_type, take_out = events.BATCHES[type(batch)]
        assert list(take_out(batch)) == [single]
        assert isinstance(single, single_type)


def test_no_event_has_a_field_for_arguments_or_results() -> None:
    for kind in get_args(events.Event):
        assert not {"payload", "args", "kwargs", "arguments", "result"} & set(kind.__annotations__), kind
