"""How settings are written down: the variable of a leaf, its value as text, what it takes, what is wrong with it.

A leaf is one setting, at a path such as `("worker", "concurrency")`. Nothing here knows a particular setting.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeGuard, get_args, get_origin

from pydantic import BaseModel, SecretStr, ValidationError

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

PREFIX = "TASKFLOW_"
# Plain, TLS, a Unix socket: as the redis package writes them; and by way of sentinels.
REDIS_SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel")
SCHEMES = ("memory", "sqlite", *REDIS_SCHEMES, "postgresql", "postgres")  # may be shown where the rest of a URL may not

Source = Literal["default", "environment", "env file", "code"]
LeafPath = tuple[str, ...]


class Leaf(NamedTuple):
    """One setting, as tables print it. `name` is the environment variable; `value` is masked text."""

    name: str
    value: str
    source: Source
    default: str
    unit: str
    description: str


class InOurWords(ValueError):
    """A problem that a validator words itself; about any other, `wants` says what is allowed."""


def env_name(path: LeafPath) -> str:
    """The environment variable of the leaf at `path`."""
    return PREFIX + "__".join(path).upper()


def task_key(name: str) -> str:
    """A task's name as variables spell it: no case, and "_" for what a shell does not allow in a name."""
    return re.sub(r"[^a-z0-9_]", "_", name.lower())


def leaf_fields(model: type[BaseModel], path: LeafPath = ()) -> Iterator[tuple[LeafPath, FieldInfo]]:
    """Every leaf of `model` that has a fixed path, in the order of its fields."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if _is_section(kind):
            yield from leaf_fields(kind, (*path, name))
        elif get_origin(kind) is not Mapping:
            yield (*path, name), field


def describe(path: LeafPath, field: FieldInfo) -> tuple[str, str, str]:
    """Default, unit, and meaning with bounds."""
    unit = _extra(field, "unit") or ("seconds" if path[-1].endswith("_s") else "")
    bounds = wants(path[-1], field)
    sentence = "" if bounds == "text" else f" Takes {bounds}."
    return _extra(field, "shown") or text_of(field.default), unit, f"{field.description}{sentence}"


def wants(name: str, field: FieldInfo) -> str:
    """What a field takes, in words: "a whole number of at least 1"."""
    if said := _extra(field, "wants"):
        return said
    kinds = get_args(field.annotation) or (field.annotation,)
    if isinstance(kinds[0], str):
        return f"{', '.join(kinds[:-1])} or {kinds[-1]}"
    if bool in kinds:
        return "true or false"
    if str in kinds or SecretStr in kinds:
        return "text"
    noun = "a duration" if name.endswith("_s") else "a whole number" if int in kinds else "a number"
    limits = {
        word: getattr(item, word)
        for item in field.metadata
        for word in ("ge", "gt", "le")
        if getattr(item, word, None) is not None
    }
    low = f"of at least {text_of(limits['ge'])}" if "ge" in limits else f"above {text_of(limits['gt'])}"
    if "le" not in limits:
        return f"{noun} {low}"
    if "ge" in limits:
        return f"{noun} from {text_of(limits['ge'])} to {text_of(limits['le'])}"
    return f"{noun} {low}, at most {text_of(limits['le'])}"


def problems(
    model: type[BaseModel], error: ValidationError, said: Mapping[LeafPath, str] = MappingProxyType({})
) -> list[tuple[LeafPath, str]]:
    """Where and what, for each problem; never the value of a secret. `said` is the text before it was parsed."""
    found = []
    for item in error.errors(include_url=False):
        path, field = _field_at(model, item["loc"])
        cause = item.get("ctx", {}).get("error")
        words = str(cause) if isinstance(cause, InOurWords) else ""
        if item["type"] == "extra_forbidden":
            words = "there is no such setting"
        elif field is not None:
            value = said.get(path, item["input"])
            got = "(value hidden)" if _is_secret(field) or _looks_secret(value) else f"got {value!r}"
            form = " (seconds, or 250ms, 90s, 5m, 1h)" if path[-1].endswith("_s") else ""
            must = words or f"must be {wants(path[-1], field)}{form}"
            words = f"{must} {got}" if got.startswith("(") else f"{must}, {got}"
        found.append((path, words or "is not valid"))
    return found


def problem_line(name: str, text: str) -> str:
    """One problem. A text about several settings brings the name with it."""
    return text if text.startswith(PREFIX) else f"{name}: {text}"


def text_of(value: object) -> str:
    """A value as tables show it."""
    match value:
        case None:
            return "not set"
        case SecretStr():
            return "***"
        case bool():
            return str(value).lower()
        case float():
            return str(int(value)) if value.is_integer() else repr(value)
        case tuple():
            return ",".join(name if weight == 1 else f"{name}:{weight}" for name, weight in value) or "not set"
        case _:
            return str(value) if str(value).isprintable() else repr(value)


def _extra(field: FieldInfo, key: str) -> str:
    extra = field.json_schema_extra
    return str(extra.get(key, "")) if isinstance(extra, dict) else ""


def _is_section(kind: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _field_at(model: type[BaseModel], location: tuple[int | str, ...]) -> tuple[LeafPath, FieldInfo | None]:
    """The path of an error, and the leaf it is about, if it is about one."""
    path: LeafPath = ()
    within: Any = model
    field: FieldInfo | None = None
    for step in location:
        path = (*path, str(step))
        if _is_section(within):
            field = within.model_fields.get(str(step))
            within = field.annotation if field else None
        else:  # a mapping of sections
            field, within = None, get_args(within)[1]
        if not _is_section(within) and get_origin(within) is not Mapping:
            return path, field
    return path, None


def _is_secret(field: FieldInfo) -> bool:
    return SecretStr in (get_args(field.annotation) or (field.annotation,))


def _looks_secret(value: object) -> bool:
    """A DSN that was put into the wrong variable, or too much to print."""
    return "@" in repr(value) or len(repr(value)) > 200
