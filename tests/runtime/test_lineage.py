"""What the worker says of an error by its names is what `Retry` says of the error itself."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from taskflow import Retry
from taskflow.core.specs import ErrorClass
from taskflow.policies.classes import classify
from taskflow.runtime.lineage import covers, lineage

CLASSES: tuple[type[BaseException] | ErrorClass, ...] = (
    *ErrorClass,
    BaseException,
    Exception,
    OSError,
    ConnectionResetError,
    ValueError,
    KeyboardInterrupt,
    BaseExceptionGroup,
    ExceptionGroup,
)
leaves = st.sampled_from([OSError(), ConnectionResetError(), ValueError(), KeyboardInterrupt(), KeyError()])
errors = st.recursive(
    leaves, lambda inner: st.lists(inner, min_size=1, max_size=3).map(lambda some: BaseExceptionGroup("some", some))
)
classes = st.lists(st.sampled_from(CLASSES), max_size=3).map(tuple)


@given(errors, classes, classes)
def test_names_decide_as_the_classes_do(error: BaseException, on: Any, never: Any) -> None:
    retry = Retry(on=on, never=never)

    told = json.loads(json.dumps(lineage(error)))

    assert covers(retry, told) == retry.covers(error, classify)


def test_a_class_that_each_process_makes_anew_is_known_by_its_name() -> None:
    ours, theirs = (type("NoSuchKey", (Exception,), {"__module__": "botocore.errorfactory"}) for _ in range(2))

    assert covers(Retry(on=(ours,)), lineage(theirs()))
    assert not covers(Retry(never=(ours,)), lineage(theirs()))


def test_a_class_of_the_script_is_of_main_in_the_worker() -> None:
    ours = type("Jam", (Exception,), {"__module__": "__main__"})
    theirs = type("Jam", (Exception,), {"__module__": "__mp_main__"})

    assert covers(Retry(on=(ours,)), lineage(theirs(), "__mp_main__"))
    assert not covers(Retry(on=(ours,)), lineage(theirs()))


def test_a_large_group_is_told_in_few_words() -> None:
    assert len(lineage(ExceptionGroup("many", [OSError(number) for number in range(1_000)]))) == 2
