"""Arguments in, JSON bytes in the queue, arguments out: validated by the function's own annotations, both ways.

Arguments travel by name, so that a parameter that is added with a default stays compatible with jobs that wait.
The envelope is `{"v": 1, "args": {...}}`, with `cid` (correlation id), `tp` (traceparent) and `opt` where they are set.
"""

from __future__ import annotations

import functools
import inspect
import json
import types
import typing
from typing import (
    TYPE_CHECKING,
    Any,
    NotRequired,  # pydantic's own dependency: before 3.12 it takes no other
)

from pydantic import (
    ConfigDict,
    PydanticSchemaGenerationError,
    PydanticUserError,
    SecretBytes,
    SecretStr,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import CoreConfig, PydanticSerializationError, SchemaSerializer, from_json, to_json
from typing_extensions import TypedDict

from taskflow.errors import ConfigError, PayloadError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

VERSION = 1
_BARE = b'{"v":1,"args":'
ENVELOPE_END = b"}"
_WITHIN_BARE = slice(len(_BARE), -len(ENVELOPE_END))
_KINDS = inspect.Parameter
# Bytes as base64, infinity as words: JSON has neither. Said twice, since pydantic's serializer of a TypedDict leaves
# out the first, and those of dataclasses within it leave out the second.
_CONFIG = ConfigDict(
    ser_json_bytes="base64", val_json_bytes="base64", ser_json_inf_nan="strings", populate_by_name=True
)
_SERIALIZER = CoreConfig(ser_json_bytes="base64", ser_json_inf_nan="strings")


# What a worker reads from a job's payload: arguments, correlation id, traceparent, options.
Envelope = tuple[dict[str, Any], str | None, str | None, dict[str, Any] | None]


class NewerEnvelope(Exception):
    """The payload was written by a newer version: a deploy is under way."""


class Codec:
    """Reads and writes the arguments and the result of one function."""

    __slots__ = (
        "_accepts_more",
        "_args_to_json",
        "_dump_result",
        "_is_plain",
        "_load_args",
        "_names",
        "_positional_only",
        "_read",
        "_result",
        "_valid_args",
        "defaults",
        "name",
    )

    def __init__(self, name: str, fn: Callable[..., Any]) -> None:
        self.name = name
        try:
            signature = inspect.signature(fn)
            hints = typing.get_type_hints(_function_of(fn), include_extras=True)
        except (NameError, TypeError, ValueError) as error:
            raise ConfigError(f"task {name!r}: cannot read the signature of {fn!r}: {error}") from error
        fields: dict[str, Any] = {}
        self._names: tuple[str, ...] = ()
        self._positional_only: dict[str, Any] = {}  # name → default
        self._accepts_more = False
        self.defaults: dict[str, Any] = {}
        for parameter in signature.parameters.values():
            if parameter.kind is _KINDS.VAR_POSITIONAL:
                raise ConfigError(
                    f"task {name!r}: *{parameter.name} cannot be stored, since arguments travel by name; "
                    f"take a list parameter instead"
                )
            if parameter.kind is _KINDS.VAR_KEYWORD:
                self._accepts_more = True
                continue
            kind = hints.get(parameter.name, Any)
            fields[parameter.name] = kind if parameter.default is _KINDS.empty else NotRequired[kind]
            if parameter.default is not _KINDS.empty:
                self.defaults[parameter.name] = parameter.default
            if parameter.kind is not _KINDS.KEYWORD_ONLY:
                self._names += (parameter.name,)
            if parameter.kind is _KINDS.POSITIONAL_ONLY:
                self._positional_only[parameter.name] = parameter.default
        extra: typing.Literal["allow", "forbid"] = "allow" if self._accepts_more else "forbid"
        args = _typed_dict("Arguments", fields, extra)
        envelope = _typed_dict(
            "Envelope",
            {
                "v": int,
                "cid": NotRequired[str],
                "tp": NotRequired[str],
                "opt": NotRequired[dict[str, Any]],
                "args": args,
            },
            "forbid",
        )
        returns = hints.pop("return", Any)
        self._is_plain = all(_is_plain(kind) for kind in hints.values())
        try:
            of_args: TypeAdapter[Any] = TypeAdapter(args)
            self._read: TypeAdapter[Any] = TypeAdapter(envelope)
            self._result = _result_adapter(returns)
        except (PydanticSchemaGenerationError, PydanticUserError) as error:
            raise ConfigError(
                f"task {name!r}: an annotation of {fn!r} is not one that JSON can carry: {str(error).splitlines()[0]}"
            ) from error
        if secret := next((name for name, kind in hints.items() if _is_secret(kind)), None):
            raise ConfigError(
                f"task {name!r}: {secret} is a secret, which JSON would carry as asterisks; pass the secret's name, "
                f"and look it up in the handler"
            )
        # Bound once: each job passes through these three.
        self._valid_args, self._load_args = of_args.validator.validate_python, of_args.validator.validate_json
        self._args_to_json = SchemaSerializer(of_args.core_schema, _SERIALIZER).to_json
        self._dump_result = SchemaSerializer(self._result.core_schema, _SERIALIZER)

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """All arguments by name. Raises `PayloadError` for too many, or one that is given twice."""
        if not args:
            return dict(kwargs)
        if len(args) > len(self._names):
            raise PayloadError(
                f"{self.name}() takes at most {len(self._names)} positional arguments, {len(args)} were given"
            )
        bound = {self._names[0]: args[0]} if len(args) == 1 else dict(zip(self._names, args, strict=False))
        for name in kwargs:
            if name in bound:
                raise PayloadError(f"{self.name}() got argument {name!r} twice")
        bound.update(kwargs)
        return bound

    def dump(self, bound: Mapping[str, Any]) -> bytes:
        """JSON of arguments that were validated, and that can be read again.

        Raises `PayloadError` that names each argument that does not fit.
        """
        try:
            valid = self._valid_args(bound)
            if self._is_plain:
                return self._args_to_json(valid)  # without options: each one costs more than the dump itself
            data = self._args_to_json(valid, warnings="error", round_trip=True, by_alias=True)
            self._load_args(data)  # models may write what they do not read
        except ValidationError as error:
            raise PayloadError(f"{self.name}(): {_problems(error)}") from None
        except PydanticSerializationError as error:
            raise PayloadError(f"{self.name}(): an argument is no JSON: {_plain(error)}") from None
        except Exception as error:
            raise PayloadError(f"{self.name}(): validating an argument raised {type(error).__name__}") from error
        return data

    def converted(self, bound: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments that fit, as their annotations say: what the handler will get."""
        valid: dict[str, Any] = self._valid_args(bound)
        return valid

    def load(self, payload: bytes) -> Envelope:
        """The envelope, its arguments validated. Raises `PayloadError`, or `NewerEnvelope`."""
        try:
            if payload.startswith(_BARE) and payload.endswith(ENVELOPE_END):  # as most of them are written
                try:
                    return self._load_args(payload[_WITHIN_BARE]), None, None, None
                except ValidationError:  # more than arguments, or they do not fit: the whole can tell
                    read = self._read.validator.validate_json(payload)
            else:
                read = self._read.validator.validate_json(payload)
        except Exception as error:
            if (version := version_of(payload)) is not None and version > VERSION:
                raise NewerEnvelope from None
            if isinstance(error, ValidationError):
                raise PayloadError(f"{self.name}(): {_problems(error)}") from None
            raise PayloadError(f"{self.name}(): validating an argument raised {type(error).__name__}") from error
        if read["v"] > VERSION:
            raise NewerEnvelope
        get = read.get
        return read["args"], get("cid"), get("tp"), get("opt")

    def by_name(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """`fn`, called with all of its arguments by name: as they travel."""
        if not self._positional_only:
            return fn

        def call(**args: Any) -> Any:
            positional = [args.pop(name, default) for name, default in self._positional_only.items()]
            return fn(*positional, **args)

        return call

    def dump_result(self, result: Any, *, max_bytes: int) -> bytes | None:
        """JSON of what the handler returned; None for None. Raises `PayloadError` if it is no JSON, or too large."""
        if result is None:
            return None
        try:
            if type(result) in _SCALARS:  # the serializer's options cost more than its work
                data = to_json(result)
            else:
                data = self._dump_result.to_json(result, warnings="none", round_trip=True, by_alias=True)
        except Exception as error:  # noqa: BLE001 - a model's own serializer may raise anything
            kind = type(result).__name__
            article = "an" if kind[0] in "aeiouAEIOU" else "a"
            raise PayloadError(f"{self.name}() returned {article} {kind} that is no JSON: {_plain(error)}") from None
        if len(data) > max_bytes:
            raise PayloadError(
                f"{self.name}() returned {len(data):,} bytes of JSON; at most {max_bytes:,} are kept "
                f"(TASKFLOW_RETENTION__RESULT_MAX_BYTES). Store it elsewhere and return where it is"
            )
        return data

    def load_result(self, data: bytes | None) -> Any:
        """What `dump_result` wrote, as the function's return annotation says."""
        if data is None:
            return None
        try:
            return self._result.validator.validate_json(data)
        except Exception:  # noqa: BLE001 - the annotation changed since the job ran: the plain JSON says more than an error
            return from_json(data)


def envelope_head(
    correlation_id: str | None = None, traceparent: str | None = None, options: bytes | None = None
) -> bytes:
    """What stands before the JSON of the arguments in a job's payload; `ENVELOPE_END` stands behind it."""
    if correlation_id is None and traceparent is None and options is None:
        return _BARE
    head = [b'{"v":1']
    if correlation_id is not None:
        head.append(b',"cid":' + to_json(correlation_id))
    if traceparent is not None:
        head.append(b',"tp":' + to_json(traceparent))
    if options is not None:
        head.append(b',"opt":' + options)
    return b"".join((*head, b',"args":'))


def version_of(payload: bytes) -> int | None:
    """The envelope's version, where it can be read at all."""
    try:
        version = json.loads(payload).get("v")
    except (ValueError, AttributeError):
        return None
    return version if isinstance(version, int) else None


def _typed_dict(name: str, fields: dict[str, Any], extra: typing.Literal["allow", "forbid"]) -> Any:
    make: Any = TypedDict  # the functional form, with names that are known only now
    made = make(name, fields)
    made.__pydantic_config__ = ConfigDict(**_CONFIG, extra=extra)
    return made


def _result_adapter(kind: Any) -> TypeAdapter[Any]:
    if kind in (None, typing.NoReturn, typing.Never):
        return TypeAdapter(Any)
    try:
        return TypeAdapter(kind, config=_CONFIG)
    except PydanticUserError:  # a model has its own configuration
        return TypeAdapter(kind)


def _function_of(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Where the annotations of `fn` stand, if it is a partial or an object that can be called."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    return fn if inspect.isroutine(fn) or inspect.isclass(fn) or hasattr(fn, "__wrapped__") else type(fn).__call__


_SCALARS = frozenset({int, str, bool})
_PLAIN = _SCALARS | {float, type(None)}


def _is_plain(kind: Any) -> bool:
    """Whether JSON reads every value of this kind as it was written."""
    if typing.get_origin(kind) in (list, dict, typing.Union, types.UnionType):
        return all(_is_plain(part) for part in typing.get_args(kind))
    return isinstance(kind, type) and kind in _PLAIN


def _is_secret(kind: Any) -> bool:
    return kind in (SecretStr, SecretBytes) or any(_is_secret(part) for part in typing.get_args(kind))


def _problems(error: ValidationError) -> str:
    """Each argument that does not fit, and why; never its value."""
    found = []
    for item in error.errors(include_url=False, include_context=False, include_input=False):
        where = ".".join(str(part) for part in item["loc"] if part != "args") or "arguments"
        found.append(f"{where}: {item['msg']}")
    return "; ".join(found)


def _plain(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
