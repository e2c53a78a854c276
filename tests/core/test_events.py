from __future__ import annotations

import dataclasses
from typing import get_args

from taskflow.core import events


def test_an_event_is_a_fact_that_cannot_be_changed() -> None:
    for kind in get_args(events.Event):
        if dataclasses.is_dataclass(kind):
            assert kind.__dataclass_params__.frozen, kind  # type: ignore[attr-defined]
        else:
            assert issubclass(kind, tuple), kind


def test_every_event_is_one_of_the_union_that_listeners_match() -> None:
    defined = {kind for kind in vars(events).values() if isinstance(kind, type) and kind.__module__ == events.__name__}

    assert defined == set(get_args(events.Event))


def test_no_event_has_a_field_for_arguments_or_results() -> None:
    for kind in get_args(events.Event):
        assert not {"payload", "args", "kwargs", "arguments", "result"} & set(kind.__annotations__), kind
