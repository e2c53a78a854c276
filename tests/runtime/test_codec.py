"""What is submitted is what the handler gets, or it is refused at submit with the reason."""

from __future__ import annotations

import functools
import math
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal, Never, NoReturn, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, Json, SecretStr, computed_field, field_serializer, field_validator

from taskflow.errors import ConfigError, PayloadError
from taskflow.runtime.codec import ENVELOPE_END, Codec, NewerEnvelope, envelope_head


def envelope(args: bytes, *head: Any) -> bytes:
    return envelope_head(*head) + args + ENVELOPE_END


def carry(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What `fn` returns in a worker, when it was submitted with these arguments."""
    codec = Codec("task", fn)
    payload = envelope(codec.dump(codec.bind(args, kwargs)))
    args, *_ = codec.load(payload)
    return codec.by_name(fn)(**args)


class Colour(Enum):
    RED = "red"


class Address(BaseModel):
    street: str
    zip: Annotated[str, Field(min_length=5)] = "00000"


class Aliased(BaseModel):
    model_config = ConfigDict(extra="forbid")
    size: int = Field(alias="Size")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def double(self) -> int:
        return 2 * self.size


@dataclass
class Point:
    x: float
    data: bytes = b""


class OneWay(BaseModel):
    number: int

    @field_serializer("number")
    def words(self, _number: int) -> str:
        return "a number"


class Picky(BaseModel):
    number: int

    @field_validator("number")
    @classmethod
    def check(cls, value: int) -> int:
        raise KeyError(value)


MOMENT = datetime(2024, 2, 29, 12, 30, 15, 123456, tzinfo=UTC)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (int, 2**70),
        (float, 0.1),
        (float, math.inf),
        (float, -math.inf),
        (str, "naïve ☃ \0 \x1f"),
        (bytes, b"\x00\xff\xfe plain"),
        (bytes, b"abcd"),  # is base64 of something else
        (list[bytes], [b"abcd", b"\xff"]),
        (bool, True),
        (Optional[int], None),  # noqa: UP045
        (int | None, 3),
        (datetime, MOMENT),
        (timedelta, timedelta(days=3, microseconds=1)),
        (Decimal, Decimal("0.1000")),
        (uuid.UUID, uuid.UUID(int=7)),
        (Colour, Colour.RED),
        (Literal["a", "b"], "b"),
        (tuple[int, str], (1, "a")),
        (set[int], {1, 2}),
        (frozenset[str], frozenset("ab")),
        (dict[str, list[int]], {"a": [1]}),
        (dict[int, datetime], {1: MOMENT}),
        (Address, Address(street="Main")),
        (list[Address], [Address(street="Main", zip="12345")]),
        (Aliased, Aliased(Size=3)),
        (Point, Point(1.5, b"abcd\xff")),
        (Json[list[int]], [1, 2]),
        (Any, {"a": [1, None, "x"]}),
        (Annotated[int, Field(gt=0)], 1),
    ],
)
def test_what_goes_in_comes_out(kind: Any, value: Any) -> None:
    def handler(it):  # type: ignore[no-untyped-def]
        return it

    handler.__annotations__ = {"it": kind}

    sent = "[1,2]" if kind == Json[list[int]] else value
    assert carry(handler, sent) == value
    assert carry(handler, it=sent) == value


def test_not_a_number_is_still_none() -> None:
    def handler(it: float) -> float:
        return it

    assert math.isnan(carry(handler, math.nan))


TEXT = st.text(st.characters(exclude_categories=["Cs"]))  # half of a surrogate pair is no text


@given(st.recursive(st.none() | st.booleans() | st.integers() | TEXT, lambda of: st.lists(of) | st.dictionaries(TEXT, of)))  # fmt: skip
def test_any_json_goes_through_unchanged(value: Any) -> None:
    def handler(it: Any) -> Any:
        return it

    assert carry(handler, value) == value


@given(st.binary(), st.floats(allow_nan=False), st.datetimes())
def test_bytes_floats_and_instants_go_through_unchanged(data: bytes, number: float, moment: datetime) -> None:
    def handler(data: bytes, number: float, moment: datetime) -> tuple[bytes, float, datetime]:
        return data, number, moment

    assert carry(handler, data, number, moment) == (data, number, moment)


def test_arguments_travel_by_name_and_defaults_are_the_functions_own_when_it_runs() -> None:
    def submitted(a: int, b: int = 1) -> None: ...

    def deployed(a: int, new: str = "new", b: int = 7) -> tuple[int, str, int]:
        return a, new, b

    payload = envelope(Codec("task", submitted).dump(Codec("task", submitted).bind((5,), {})))
    args, *_ = Codec("task", deployed).load(payload)

    assert deployed(**args) == (5, "new", 7)


def test_a_parameter_that_was_removed_is_named() -> None:
    def submitted(a: int, gone: str) -> None: ...

    def deployed(a: int) -> None: ...

    payload = envelope(Codec("task", submitted).dump({"a": 1, "gone": "secret value"}))

    with pytest.raises(PayloadError, match="gone") as refused:
        Codec("task", deployed).load(payload)
    assert "secret value" not in str(refused.value)


def test_a_newer_envelope_is_told_from_a_bad_one() -> None:
    def handler(a: int) -> None: ...

    codec = Codec("task", handler)

    for payload in (b'{"v":2,"args":{"a":1}}', b'{"v":99,"anything":[]}'):
        with pytest.raises(NewerEnvelope):
            codec.load(payload)
    for payload in (b'{"v":1,"anything":[]}', b'{"v":"2","args":{}}', b"[]", b"\xff", b""):
        with pytest.raises(PayloadError):
            codec.load(payload)


def test_positional_only_and_keyword_only_and_further_arguments() -> None:
    def handler(a: int, b: int = 2, /, c: int = 3, *, d: int, **more: int) -> tuple[Any, ...]:
        return a, b, c, d, more

    assert carry(handler, 1, d=4) == (1, 2, 3, 4, {})
    assert carry(handler, 1, 5, 6, d=4, e=7) == (1, 5, 6, 4, {"e": 7})
    assert carry(handler, a=1, d=4) == (1, 2, 3, 4, {})  # a file of jobs names them all


def test_a_positional_only_argument_that_is_left_out_does_not_shift_the_next() -> None:
    def handler(a: int = 1, b: int = 2, /) -> tuple[int, int]:
        return a, b

    assert carry(handler, b=5) == (1, 5)


@pytest.mark.parametrize(
    ("args", "kwargs", "words"),
    [
        ((1, 2, 3), {}, "at most 2 positional arguments, 3 were given"),
        ((1,), {"a": 2}, "got argument 'a' twice"),
        ((), {}, "a: Field required"),
        ((1,), {"z": 2}, "z: Extra inputs are not permitted"),
        (("no",), {}, "a: Input should be a valid integer"),
        ((1, "tiny"), {}, "b.zip: String should have at least 5"),
        ((object(),), {}, "a: "),
    ],
)
def test_arguments_that_do_not_fit_are_refused_at_submit_by_name(
    args: tuple[Any, ...], kwargs: dict[str, Any], words: str
) -> None:
    def handler(a: int, b: Address | None = None) -> None: ...

    codec = Codec("task", handler)
    fixed = tuple({"street": "x", "zip": arg} if arg == "tiny" else arg for arg in args)

    with pytest.raises(PayloadError) as refused:
        codec.dump(codec.bind(fixed, kwargs))
    assert str(refused.value).startswith("task()")
    assert words in str(refused.value)
    assert refused.value.code == "bad_payload"


def test_no_value_is_ever_in_an_error() -> None:
    def handler(password: int) -> None: ...

    codec = Codec("task", handler)

    with pytest.raises(PayloadError) as refused:
        codec.dump({"password": "hunter2"})
    with pytest.raises(PayloadError) as unread:
        codec.load(b'{"v":1,"args":{"password":"hunter2"}}')

    for error in (refused.value, unread.value):
        assert "hunter2" not in str(error)
        assert error.__cause__ is None
        assert error.__suppress_context__


def test_an_argument_that_is_no_json_is_refused() -> None:
    def handler(it: Any) -> None: ...

    with pytest.raises(PayloadError, match="no JSON"):
        Codec("task", handler).dump({"it": object()})


def test_a_model_that_writes_what_it_does_not_read_is_refused_at_submit() -> None:
    def handler(it: OneWay) -> None: ...

    with pytest.raises(PayloadError, match="number"):
        Codec("task", handler).dump({"it": OneWay(number=1)})


def test_whatever_a_models_own_validator_raises_is_a_payload_error() -> None:
    def handler(it: Picky) -> None: ...

    codec = Codec("task", handler)

    with pytest.raises(PayloadError, match="KeyError"):
        codec.dump({"it": {"number": 1}})
    with pytest.raises(PayloadError, match="KeyError"):
        codec.load(b'{"v":1,"args":{"it":{"number":1}}}')


def starred(*args: int) -> None: ...
def secretive(password: SecretStr) -> None: ...
def secretive_within(passwords: list[SecretStr] | None) -> None: ...
def unknown_type(it: Missing) -> None: ...  # type: ignore[name-defined] # noqa: F821
def no_json(it: Callable[[], int], other: object.__class__) -> None: ...  # type: ignore[name-defined]


class Opaque: ...


def opaque(it: Opaque) -> None: ...


@pytest.mark.parametrize(
    ("fn", "words"),
    [
        (starred, "take a list parameter instead"),
        (secretive, "password is a secret"),
        (secretive_within, "passwords is a secret"),
        (unknown_type, "Missing"),
        (opaque, "JSON can carry"),
    ],
)
def test_a_signature_that_json_cannot_carry_is_refused_when_the_task_is_registered(
    fn: Callable[..., Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        Codec("task", fn)


def test_partials_and_objects_that_can_be_called_have_signatures_too() -> None:
    def add(a: int, b: int, c: int = 0) -> int:
        return a + b + c

    class Adder:
        def __call__(self, a: int, b: int) -> int:
            return a + b

    class Holder:
        def add(self, a: int, b: int) -> int:
            return a + b

    @functools.wraps(add)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return add(*args, **kwargs)

    assert carry(functools.partial(add, c=5), 1, 2) == 8
    assert carry(Adder(), 1, b=2) == 3
    assert carry(Holder().add, 1, b=2) == 3
    assert carry(wrapped, 1, b=2) == 3
    with pytest.raises(PayloadError, match="a: Input should be a valid integer"):
        carry(Adder(), "x", 1)


@pytest.mark.parametrize(
    ("kind", "result"),
    [
        (int, 1),
        (bytes, b"\xff\x00"),
        (float, math.inf),
        (Address, Address(street="Main")),
        (list[Point], [Point(1.0, b"\xff")]),
        (datetime, MOMENT),
        (None, None),
        (int | None, None),
        (Any, {"a": 1}),
        (Aliased, Aliased(Size=3)),
        (dict[str, bytes], {"a": b"abcd"}),
    ],
)
def test_a_result_comes_back_as_its_annotation_says(kind: Any, result: Any) -> None:
    def handler():  # type: ignore[no-untyped-def]
        return None

    handler.__annotations__ = {"return": kind}
    codec = Codec("task", handler)

    assert codec.load_result(codec.dump_result(result, max_bytes=1_000)) == result


def test_a_result_that_no_longer_fits_its_annotation_is_plain_json() -> None:
    def before() -> dict[str, int]: ...  # type: ignore[empty-body]
    def after() -> int: ...  # type: ignore[empty-body]

    data = Codec("task", before).dump_result({"a": 1}, max_bytes=100)

    assert Codec("task", after).load_result(data) == {"a": 1}


def test_handlers_that_never_return_can_be_tasks() -> None:
    def fails() -> NoReturn:
        raise OSError

    def never() -> Never:
        raise OSError

    for fn in (fails, never):
        assert Codec("task", fn).load(envelope(b"{}"))[0] == {}


def test_the_envelope_carries_ids_and_options() -> None:
    def handler(a: int) -> None: ...

    payload = envelope(b'{"a":1}', 'c"1', "00-ab", b'{"timeout":3}')
    read = Codec("task", handler).load(payload)

    assert read == ({"a": 1}, 'c"1', "00-ab", {"timeout": 3})
