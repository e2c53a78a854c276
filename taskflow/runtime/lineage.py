"""Whether a task's `Retry` covers an error that was raised in another process, where its class is.

Classes are compared by their names, all those that the error's class descends from: they may be made anew in each
process (`botocore` does), and need not be found in both. What the error's own process makes of it (its `ErrorClass`)
travels as one more name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskflow.core.specs import ErrorClass
from taskflow.policies.classes import classify

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from taskflow.core.specs import Retry

Kin = tuple[bool, list[str]]  # whether it is a group, and the names of the class and of what it descends from


def lineage(error: BaseException, main: str | None = None) -> list[Kin]:
    """The error, and what a group holds: each class once. `main` is the module that is `__main__` in the worker."""
    found: dict[tuple[type, ErrorClass], Kin] = {}
    for each in _each(error):
        said = classify(each)
        names = [*(_name(kind, main) for kind in type(each).__mro__), _name_of_class(said)]
        found[type(each), said] = (isinstance(each, BaseExceptionGroup), names)
    return list(found.values())


def covers(retry: Retry, kin: Sequence[Kin]) -> bool:
    """What `retry.covers` says of the error that `lineage` was made of."""
    on, never = _names(retry.on), _names(retry.never)
    return all(
        never.isdisjoint(names) and (is_group or ("builtins.Exception" in names and not on.isdisjoint(names)))
        for is_group, names in kin
    )


def _each(error: BaseException) -> Iterator[BaseException]:
    yield error
    if isinstance(error, BaseExceptionGroup):
        for leaf in error.exceptions:
            yield from _each(leaf)


def _names(kinds: tuple[type[BaseException] | ErrorClass, ...]) -> frozenset[str]:
    return frozenset(_name_of_class(kind) if isinstance(kind, ErrorClass) else _name(kind, None) for kind in kinds)


def _name_of_class(said: ErrorClass) -> str:
    return f"class {said}"  # no name of a class has a space


def _name(kind: type, main: str | None) -> str:
    module = "__main__" if kind.__module__ == main else kind.__module__
    return f"{module}.{kind.__qualname__}"
