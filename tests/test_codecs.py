from __future__ import annotations

import enum
import json
import subprocess
import sys
from collections import OrderedDict, UserDict, deque
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from types import MappingProxyType, ModuleType
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, TypedDict, TypeVar
from uuid import UUID

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilient_client.codecs import JsonCodec, _cached_reader
from resilient_client.errors import ConfigurationError, PayloadError

codec = JsonCodec()


@dataclass
class Item:
    price: float
    tags: list[str]


@dataclass
class Order:
    items: list[Item]
    note: str | None = None


class User(msgspec.Struct):
    name: str
    age: int = 0


class Address(TypedDict):
    city: str


class Point(NamedTuple):
    x: int
    y: int


class Model(pydantic.BaseModel):
    name: str
    age: int = 0
    born: datetime | None = None


class Strict(pydantic.BaseModel, strict=True):
    born: datetime


class Holder(msgspec.Struct):
    model: Model
    models: list[Model] = []


class Pictured(pydantic.BaseModel, strict=True):
    name: str
    picture: bytes


class StrictNumber(pydantic.BaseModel, strict=True):
    number: int


class StrictHolder(msgspec.Struct):
    model: Strict


T = TypeVar("T")


class Page(msgspec.Struct, Generic[T]):
    items: list[T]


BORN = datetime(2020, 1, 2, tzinfo=UTC)


@dataclass
class Circle:
    radius: float


@dataclass
class Square:
    side: float


class Color(enum.Enum):
    RED = "red"


class Size(enum.IntEnum):
    SMALL = 1


class Text(str):
    __slots__ = ()


class Number(int):
    pass


class Real(float):
    pass


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "null"),
        ("Zoë 😀", '"Zoë 😀"'),
        ({"b": 1, "a": [True, 1.5]}, '{"b":1,"a":[true,1.5]}'),
        ([float("nan"), float("inf"), float("-inf")], "[null,null,null]"),
        (2**64 + 1, "18446744073709551617"),
        (Order([Item(1.5, ["x"])]), '{"items":[{"price":1.5,"tags":["x"]}],"note":null}'),
        (User("a"), '{"name":"a","age":0}'),
        (Model(name="a"), '{"name":"a","age":0,"born":null}'),
        ([Model(name="a", born=datetime(2020, 1, 2, tzinfo=UTC))],
         '[{"name":"a","age":0,"born":"2020-01-02T00:00:00Z"}]'),
        ({"in": {"a": Model(name="b")}}, '{"in":{"a":{"name":"b","age":0,"born":null}}}'),
        (Point(1, 2), "[1,2]"),
        (datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC), '"2020-01-02T03:04:05Z"'),
        (date(2020, 1, 2), '"2020-01-02"'),
        (timedelta(seconds=90), '"PT90S"'),
        (UUID(int=1), '"00000000-0000-0000-0000-000000000001"'),
        (Decimal("1.10"), '"1.10"'),
        (b"hi", '"aGk="'),
        ((1, 2), "[1,2]"),
        (frozenset([1]), "[1]"),
        (deque([1, 2]), "[1,2]"),
        (MappingProxyType({"a": 1}), '{"a":1}'),
        (UserDict(a=1), '{"a":1}'),
        (OrderedDict(a=1), '{"a":1}'),
        ({1: "a", 1.5: "b"}, '{"1":"a","1.5":"b"}'),
        ([Color.RED, Size.SMALL], '["red",1]'),
        ([Text("x"), Number(3), Real(1.5)], '["x",3,1.5]'),
        ({"__proto__": 1, "constructor": 2}, '{"__proto__":1,"constructor":2}'),
    ],
)  # fmt: skip
def test_values_become_compact_json(value: Any, expected: str) -> None:
    assert codec.encode(value) == expected.encode()


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (object(), "object"),
        ({"a": [1, object()]}, "object"),
        (1j, "complex"),
        (int, "type"),
        ((x for x in ()), "generator"),
        ({(1, 2): 3}, "dict"),
        (ValueError("x"), "ValueError"),
        ({"a": "\ud800", "b": object()}, "object"),
        ([10**5000], "list"),
    ],
)
def test_what_has_no_json_form_is_refused_by_the_name_of_its_type(value: Any, named: str) -> None:
    with pytest.raises(PayloadError, match=named) as caught:
        codec.encode(value)
    assert isinstance(caught.value, ValueError)
    assert caught.value.sent is False


@pytest.mark.parametrize("hint", [User, Item, Model, Address])
def test_a_misfit_names_the_type_as_people_write_it(hint: type) -> None:
    with pytest.raises(PayloadError, match=f"the value is not {hint.__name__}: "):
        codec.decode(b"5", hint)


def test_a_value_that_contains_itself_is_refused() -> None:
    value: list[Any] = ["\ud800"]
    value.append(value)
    for looped in (value, value[1:]):
        with pytest.raises(PayloadError, match="contains itself"):
            codec.encode(looped)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("\ud800", '"\\ud800"'),
        ({"\udfff": ["a", "\ud83d", "😀"]}, '{"\\udfff":["a","\\ud83d","\\ud83d\\ude00"]}'),
        (
            ["\ud800", float("nan"), {"x": float("inf")}, (1.5, 2**70)],
            '["\\ud800",null,{"x":null},[1.5,1180591620717411303424]]',
        ),
        (Item(1.5, ["\ud800"]), '{"price":1.5,"tags":["\\ud800"]}'),
        ([Model.model_construct(name="\ud800")], '[{"name":"\\ud800","age":0,"born":null}]'),
        ({1: "\ud800", "d": UUID(int=1)},
         '{"1":"\\ud800","d":"00000000-0000-0000-0000-000000000001"}'),
    ],
)  # fmt: skip
def test_lone_surrogates_are_sent_as_javascript_sends_them(value: Any, expected: str) -> None:
    assert codec.encode(value) == expected.encode()


@pytest.mark.parametrize(
    ("body", "hint", "expected"),
    [
        (b'{"a":[1,2.5,null,true]}', Any, {"a": [1, 2.5, None, True]}),
        (b"18446744073709551617", Any, 2**64 + 1),
        (b"18446744073709551617", int, 2**64 + 1),
        (b"15", int, 15),
        (b"15", float, 15.0),
        (b"null", type(None), None),
        (b"null", int | None, None),
        (b"[1,2]", list[int], [1, 2]),
        (b"[1,2]", tuple[int, int], (1, 2)),
        (b"[1,1]", set[int], {1}),
        (b'{"1":2}', dict[int, int], {1: 2}),
        (b'{"items":[{"price":1,"tags":[]}]}', Order, Order([Item(1.0, [])])),
        (b'[{"name":"a"}]', list[User], [User("a")]),
        (b'{"city":"X"}', Address, {"city": "X"}),
        (b"[1,2]", Point, Point(1, 2)),
        (b'"red"', Color, Color.RED),
        (b'"a"', Literal["a", "b"], "a"),
        (b"3", Annotated[int, msgspec.Meta(ge=1)], 3),
        (b"3", NewType("Id", int), 3),
        (b'"aGk="', bytes, b"hi"),
        (b'"2020-01-02T03:04:05Z"', datetime, datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC)),
        (b'"00000000-0000-0000-0000-000000000001"', UUID, UUID(int=1)),
        (b'"1.10"', Decimal, Decimal("1.10")),
        (b'{"a":1}', object, {"a": 1}),
        (b'{"name":"a","age":"3"}', Model, Model(name="a", age=3)),
        (b'[{"name":"a"}]', list[Model], [Model(name="a")]),
        (b'{"x":[{"name":"a"},null]}', dict[str, list[Model | None]],
         {"x": [Model(name="a"), None]}),
        (b"null", Model | None, None),
        (b"5", Model | int, 5),
        (b'{"model":{"name":"a"},"models":[{"name":"b"}]}', Holder,
         Holder(Model(name="a"), [Model(name="b")])),
        (b"5", Annotated[int, pydantic.Field(gt=3)], 5),
        (b'{"born":"2020-01-02T00:00:00Z"}', Strict, Strict(born=BORN)),
        (b'{"model":{"born":"2020-01-02T00:00:00Z"}}', StrictHolder,
         StrictHolder(Strict(born=BORN))),
        (b'{"items":[{"name":"a"}]}', Page[Model], Page([Model(name="a")])),
        (b'[{"name":"a"},{"price":2,"tags":[]},{"items":[3]}]', tuple[Model, Item, Page[int]],
         (Model(name="a"), Item(2.0, []), Page([3]))),
        (b'{"side":2}', Circle | Square, Square(2.0)),  # only pydantic takes such a union
    ],
)  # fmt: skip
def test_json_is_decoded_into_a_type(body: bytes, hint: Any, expected: Any) -> None:
    for _ in range(2):  # the second time with the kept decoder
        assert codec.decode(body, hint) == expected


@pytest.mark.parametrize(
    ("body", "hint", "where"),
    [
        (b'{"items":[{"price":"x","tags":[]}]}', Order, r"\$\.items\[0\]\.price"),
        (b'[{"name":"a"},{"age":1}]', list[User], r"missing required field `name` - at `\$\[1\]`"),
        (b'[1,"2"]', list[int], r"Expected `int`, got `str` - at `\$\[1\]`"),
        (b'"blue"', Color, "Invalid enum value"),
        (b"0", Annotated[int, msgspec.Meta(ge=1)], "Expected `int` >= 1"),
        (b"null", int, "Expected `int`, got `null`"),
        (b"1e400", float, "out of range"),
        (b'{"model":{"name":1}}', Holder, r"valid string - at `\$\.model\.name` - the"),
        (
            b'{"model":{"born":"soon"}}',
            StrictHolder,
            r"datetime.* - at `\$\.model\.born` - the",
        ),
        (
            b'{"items":[{"name":"a"},{"age":"x"}]}',
            Page[Model],
            r"required - at `\$\.items\[1\]\.name`; .* - at `\$\.items\[1\]\.age` - the",
        ),
        (b'[{"name":"a"},{"name":1,"age":"x"}]', list[Model], r"at `\$\[1\]\.name`.*\[1\]\.age"),
        (b"2", Annotated[int, pydantic.Field(gt=3)], "greater than 3"),
        (b'{"a":[' + b"1," * 9 + b'"x"]}', dict[str, list[int]], r"\$\[\.\.\.\]\[9\]"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_saying_where(
    body: bytes, hint: Any, where: str
) -> None:
    with pytest.raises(PayloadError, match=where):
        codec.decode(body, hint)


def test_what_a_model_refuses_is_counted_and_not_quoted() -> None:
    with pytest.raises(PayloadError, match="and 2 more") as caught:
        codec.decode(b'[{"name":7777},{"name":1},{"name":1},{"name":1},{}]', list[Model])
    assert "7777" not in str(caught.value)


BROKEN = [
    b"",
    b" ",
    b"{",
    b'{"a":}',
    b"[1,]",
    b"nul",
    b"NaN",
    b"Infinity",
    b"[1] x",
    b'"\xff"',
    b'"\xed\xa0\x80"',  # a lone surrogate in raw bytes is not UTF-8
    b'"\\q"',
    b'{"a":"\\ud800","b":NaN}',
    b'{"a":"\\ud800","b":}',
    b"\xef\xbb\xbf1",
    b"[" * 100_000,
    b"[" * 100_000 + b"]" * 100_000,
    b'["\\ud800",' + b"[" * 100_000,
    b"1" * 5000,
]


@pytest.mark.parametrize("body", BROKEN, ids=range(len(BROKEN)))
@pytest.mark.parametrize("hint", [Any, dict[str, int], list[Any], Model])
def test_what_is_not_json_or_a_depth_bomb_is_refused(body: bytes, hint: Any) -> None:
    with pytest.raises(PayloadError):
        codec.decode(body, hint)


def test_broken_json_is_refused_saying_at_which_byte() -> None:
    with pytest.raises(PayloadError, match="byte 5"):
        codec.decode(b'{"a":}')


@pytest.mark.parametrize(
    ("body", "hint", "expected"),
    [
        (b'"\\ud800"', Any, "\ud800"),
        (b'"\\uDFFFx"', str, "\udfffx"),
        (b'{"a":"\\ud83d","b":"\\ud83d\\ude00"}', Any, {"a": "\ud83d", "b": "😀"}),
        (b'{"price":1,"tags":["\\ud800"]}', Item, Item(1.0, ["\ud800"])),
        (b'{"1":"\\ud800"}', dict[int, str], {1: "\ud800"}),
        (b'["\\ud800","2020-01-02T00:00:00Z"]', tuple[str, datetime],
         ("\ud800", datetime(2020, 1, 2, tzinfo=UTC))),
        (b'{"name":"\\ud800"}', Model, Model.model_construct(name="\ud800")),
    ],
)  # fmt: skip
def test_lone_surrogates_from_javascript_arrive(body: bytes, hint: Any, expected: Any) -> None:
    assert codec.decode(body, hint) == expected


def test_a_value_with_lone_surrogates_is_checked_as_any_other() -> None:
    with pytest.raises(PayloadError, match=r"\$\.price"):
        codec.decode(b'{"price":"x","tags":["\\ud800"]}', Item)


class Opaque:
    pass


@pytest.mark.parametrize(
    "hint",
    [
        Opaque,
        list[Opaque],
        AsyncIterator[int],
        3,
        dict[str, Opaque | int],
        Model | Holder,
        tuple[Annotated[int, pydantic.Field(gt=3)], Holder],  # msgspec would not look at the note
    ],
)
def test_a_type_that_nothing_decodes_into_is_a_mistake_of_the_caller(hint: Any) -> None:
    with pytest.raises(ConfigurationError):
        codec.decode(b'{"a":1}' if hint != list[Opaque] else b"[1]", hint)


def test_a_hint_that_cannot_be_hashed_is_decoded_all_the_same() -> None:
    assert codec.decode(b"[1]", Annotated[list[int], {"not": "hashable"}]) == [1]


def test_the_kept_decoders_are_bounded() -> None:
    for size in range(300):
        assert codec.decode(b"1", Literal[1, size + 2]) == 1
    assert _cached_reader.cache_info().currsize == 256


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        ({"a": b"hi"}, Any, {"a": b"hi"}),
        ({"a": b"hi"}, dict[str, bytes], {"a": b"hi"}),
        ({"price": 2, "tags": ["x"]}, Item, Item(2.0, ["x"])),
        ([{"name": "a"}], list[Model], [Model(name="a")]),
        ({"model": {"name": "a"}}, Holder, Holder(Model(name="a"))),
        ({"model": Model(name="a")}, Holder, Holder(Model(name="a"))),
        (User("a"), User, User("a")),
        (Color.RED, Color, Color.RED),
        ({"side": 2}, Circle | Square, Square(2.0)),
        ({"born": "2020-01-02T00:00:00Z"}, Strict, Strict(born=BORN)),
        ({"born": BORN}, Strict, Strict(born=BORN)),
        (
            {"model": {"born": "2020-01-02T00:00:00Z"}},
            StrictHolder,
            StrictHolder(Strict(born=BORN)),
        ),
        ({"name": "a", "picture": b"a"}, Pictured, Pictured(name="a", picture=b"a")),
    ],
)
def test_objects_are_converted_into_a_type(value: Any, hint: Any, expected: Any) -> None:
    assert codec.convert(value, hint) == expected


def test_conversion_takes_text_for_a_number_only_when_asked_to() -> None:
    assert codec.convert("15", int, strict=False) == 15
    assert codec.convert({"a": ["1"]}, dict[str, list[int]], strict=False) == {"a": [1]}
    assert codec.convert({"number": "1"}, StrictNumber, strict=False) == StrictNumber(number=1)
    with pytest.raises(PayloadError, match=r"\$\.number"):
        codec.convert({"number": "1"}, StrictNumber)
    with pytest.raises(PayloadError, match=r"\$\.picture"):
        codec.convert({"name": b"a", "picture": "a"}, Pictured)
    with pytest.raises(PayloadError, match="Expected `int`, got `str`"):
        codec.convert("15", int)
    with pytest.raises(PayloadError, match=r"\$\[0\]\.name"):
        codec.convert([{"name": 1}], list[Model])
    with pytest.raises(ConfigurationError):
        codec.convert({}, Opaque)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec=None)), inner),
    max_leaves=15,
)


@given(json_values)
def test_every_json_value_survives_the_round_trip(value: Any) -> None:
    body = codec.encode(value)
    assert codec.decode(body) == value
    assert json.loads(body) == value


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode), st.sampled_from(
    [Any, int, list[int], Order, Model, list[Model], dict[str, Any]]))  # fmt: skip
def test_whatever_arrives_is_a_value_or_a_payload_error(body: bytes, hint: Any) -> None:
    with suppress(PayloadError):
        codec.decode(body, hint)


def test_a_model_is_written_with_the_names_it_is_read_by() -> None:
    class User(pydantic.BaseModel):
        user_id: int = pydantic.Field(alias="userId")

    class Plain(User, serialize_by_alias=False):
        pass

    codec = JsonCodec()
    user = User(userId=1)
    assert codec.encode({"by": [user]}) == b'{"by":[{"userId":1}]}'
    assert codec.decode(codec.encode(user), User) == user
    assert codec.encode(Plain(userId=1)) == b'{"user_id":1}'


def test_a_model_of_pydantic_1_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    model = type("Old", (), {"__module__": "pydantic.main"})
    monkeypatch.setitem(sys.modules, "pydantic", ModuleType("pydantic"))
    with pytest.raises(ConfigurationError, match="from its version 2 on"):
        codec.decode(b"{}", model)


def test_pydantic_is_not_loaded_for_those_who_do_not_use_it() -> None:
    script = (
        "import sys; from resilient_client.codecs import JsonCodec; c = JsonCodec();"
        "assert c.decode(c.encode({'a': [1]}), dict[str, list[int]]) == {'a': [1]};"
        "assert 'pydantic' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=30)


def test_a_type_that_neither_library_reads_is_told_of_by_the_one_it_is_meant_for() -> None:
    with pytest.raises(ConfigurationError, match="more than one dict-like type"):
        JsonCodec().decode(b"{}", User | Item)
