from __future__ import annotations

import enum
import json
import random
import shutil
import subprocess
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from resilient_client.errors import ConfigurationError
from resilient_client.patterns import _sort_key, lookup_route, number_text, pattern_json, route


class Command(enum.StrEnum):
    SUM = "sum"


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ({"cmd": "sum"}, '{"cmd":"sum"}'),
        (
            {"svc": "n", "b": 2, "a": {"d": "x", "c": 1}},
            '{"a":{"c":1,"d":"x"},"b":2,"svc":"n"}',
        ),
        ({"n": 1.50, "m": 1e21}, '{"m":1e+21,"n":1.5}'),
        ([1, "a", {"z": 1, "b": 2}], '{"0":1,"1":"a","2":{"b":2,"z":1}}'),
        ({"a": True, "b": False, "c": None}, '{"a":true,"b":false,"c":null}'),
        ({"a": 'q"uo\\te'}, '{"a":"q\\"uo\\\\te"}'),
        ({'k"ey': "x"}, '{"k\\"ey":"x"}'),
        ({"a": "line\nbreak", "b": "é"}, '{"a":"line\nbreak","b":"é"}'),
        (
            {"_": 2, "1": 3, "10": 4, "2": 5, "A": 1, "a": 0, "é": 6, "f": 7, "Z": "q"},
            '{"_":2,"1":3,"10":4,"2":5,"a":0,"A":1,"é":6,"f":7,"Z":"q"}',
        ),
        ("user_created", "user_created"),
        ("", ""),
        (42, "42"),
        (4.5, "4.5"),
        (1e21, "1e+21"),
        (-0.0, "0"),
        (1.0, "1"),
        ({}, "{}"),
        ((1, 2), '{"0":1,"1":2}'),
        (MappingProxyType({"b": 1, "a": 2}), '{"a":2,"b":1}'),
        (Command.SUM, "sum"),
        ({"cmd": Command.SUM}, '{"cmd":"sum"}'),
    ],
)
def test_a_pattern_has_the_route_that_nest_gives_it(pattern: Any, expected: str) -> None:
    assert route(pattern) == expected
    assert type(route(pattern)) is str
    assert route(pattern) == expected  # from the cache


def test_a_string_is_returned_itself() -> None:
    pattern = "user_created"
    assert route(pattern) is pattern


def test_what_is_nested_too_deeply_or_has_too_many_keys_is_replaced() -> None:
    deep: dict[str, Any] = {"x": 1}
    for _ in range(6):
        deep = {"a": deep}
    levels = '{"a":' * 6
    assert route(deep) == levels + "[MAX_DEPTH_REACHED]" + "}" * 6
    assert route(deep["a"]) == '{"a":' * 5 + '{"x":1}' + "}" * 5
    keys = {f"k{i}": i for i in range(21)}
    assert route(keys) == "[TOO_MANY_KEYS]"
    assert route({"a": keys}) == '{"a":[TOO_MANY_KEYS]}'
    assert route(list(range(21))) == "[TOO_MANY_KEYS]"
    assert route(dict(list(keys.items())[:20])).startswith('{"k0":0,"k1":1,"k10":10')


def test_the_cache_tells_equal_values_of_different_types_apart() -> None:
    assert route({"a": 1, "b": 1}) == '{"a":1,"b":1}'
    assert route({"a": True, "b": 1}) == '{"a":true,"b":1}'
    assert route({"a": 1.0, "b": True}) == '{"a":1,"b":true}'
    assert route({"a": 0, "b": None}) == '{"a":0,"b":null}'
    assert route({"a": False, "b": None}) == '{"a":false,"b":null}'


def test_a_changed_mapping_has_another_route() -> None:
    pattern = {"a": 1, "b": 2}
    assert route(pattern) == '{"a":1,"b":2}'
    pattern["b"] = 3
    assert route(pattern) == '{"a":1,"b":3}'


@pytest.mark.parametrize(
    "pattern",
    [
        None,
        True,
        False,
        float("nan"),
        float("inf"),
        {"a": float("nan")},
        {"a": [{"b": float("inf")}]},
        b"bytes",
        {"a": b"bytes"},
        {1: "a"},
        {None: 1, "b": 2},
        object(),
        {"a": {1, 2}},
    ],
)
def test_what_cannot_be_a_pattern_is_refused_with_words(pattern: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        route(pattern)
    assert "pattern" in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_a_mapping_that_contains_itself_is_refused_by_its_json() -> None:
    pattern: dict[str, Any] = {}
    pattern["self"] = pattern
    assert route(pattern).count("self") == 6
    with pytest.raises(ConfigurationError, match="contains itself"):
        pattern_json(pattern)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ('{"svc":"n","b":2,"a":{"d":"x","c":1}}', '{"a":{"c":1,"d":"x"},"b":2,"svc":"n"}'),
        ('{ "b" : 2, "a":1 }', '{"a":1,"b":2}'),
        ("42", "42"),
        ("42.0", "42"),
        ("null", None),
        ("true", None),
        ("false", None),
        ('"echo"', "echo"),
        ("042", "042"),
        ("NaN", "NaN"),
        ("user_created", "user_created"),
        ("", ""),
        ("users.one", "users.one"),
        ("12345678901234567890", "12345678901234567000"),
        ("1e400", "Infinity"),
        ("[1]", '{"0":1}'),
        ('{"__proto__":1,"constructor":2}', '{"__proto__":1,"constructor":2}'),
        ('{"a":1,"a":2}', '{"a":2}'),
        ("[" * 100_000, None),
        ("[" * 10_000, "[" * 10_000),
    ],
)
def test_an_incoming_key_is_parsed_before_it_is_looked_up(key: str, expected: str | None) -> None:
    assert lookup_route(key) == expected
    assert lookup_route(key) == expected


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (b'"user_created"', "user_created"),
        (b'"42"', "42"),
        (b"42", "42"),
        (b"4.50", "4.5"),
        (b'{"cmd":"sum"}', '{"cmd":"sum"}'),
        (b'"{\\"b\\":1,\\"a\\":2}"', '{"a":2,"b":1}'),  # as Nest's TCP client emits
        (b"null", None),
        (b'"null"', None),
        (b'"\\ud800"', "\ud800"),
        (b"not json", "not json"),
        (b"\xff", None),
    ],
)
def test_a_packets_pattern_is_looked_up_like_its_text(pattern: bytes, expected: str | None) -> None:
    assert lookup_route(pattern) == expected


def test_the_json_of_a_pattern_keeps_the_callers_order() -> None:
    assert pattern_json({"b": 1, "a": {"d": 1, "c": "é"}}) == '{"b":1,"a":{"d":1,"c":"é"}}'.encode()
    assert pattern_json("user_created") == b'"user_created"'
    assert pattern_json(7) == b"7"
    assert pattern_json([1, "a"]) == b'[1,"a"]'
    assert pattern_json("\ud800") == b'"\\ud800"'
    assert pattern_json(MappingProxyType({"b": 1, "a": 2})) == b'{"b":1,"a":2}'
    with pytest.raises(ConfigurationError):
        pattern_json(None)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_numbers_text_reads_back_as_the_same_number(number: float) -> None:
    assert float(number_text(number)) == number


names = st.text(st.characters(), max_size=6)
patterns = st.recursive(
    st.none() | st.booleans() | names | st.integers() | st.floats(-1e300, 1e300),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=6),
    max_leaves=20,
)


@given(st.dictionaries(names, st.integers() | names, max_size=6))
def test_the_route_does_not_depend_on_the_order_of_keys(pattern: dict[str, Any]) -> None:
    # keys that ICU takes for equal stay in the caller's order, as in Nest
    assume(len({repr(_sort_key(key)) for key in pattern}) == len(pattern))
    assert route(dict(reversed(pattern.items()))) == route(pattern)


@given(patterns.filter(lambda pattern: pattern is not None and not isinstance(pattern, bool)))
def test_a_server_looks_up_the_route_that_a_client_registered(pattern: Any) -> None:
    if not isinstance(pattern, str):
        assert lookup_route(pattern_json(pattern)) == route(pattern)


@given(st.text() | st.binary())
def test_looking_up_never_fails(key: str | bytes) -> None:
    assert isinstance(lookup_route(key), str | None)


NEST = """
const escape = s => s.replace(/\\\\/g, '\\\\\\\\').replace(/"/g, '\\\\"');
function route(p, depth = 0) {
  if (typeof p === 'string' || typeof p === 'number') return `${p}`;
  if (p === null || typeof p !== 'object') return p;
  if (depth > 5) return '[MAX_DEPTH_REACHED]';
  const keys = Object.keys(p);
  if (keys.length > 20) return '[TOO_MANY_KEYS]';
  return '{' + keys.sort((a, b) => ('' + a).localeCompare(b)).map(k => {
    const v = route(p[k], depth + 1);
    return `"${escape(k)}":` + (typeof p[k] === 'string' ? `"${escape(v)}"` : v);
  }).join(',') + '}';
}
function lookup(s) { let v = s; try { v = JSON.parse(s); } catch {} return route(v); }
const cases = JSON.parse(require('fs').readFileSync(0, 'utf8'));
console.log(JSON.stringify(cases.map(([kind, a]) => kind === 'route' ? route(a) : lookup(a))));
"""


def random_pattern(rng: random.Random, alphabet: str, depth: int = 0) -> Any:
    def text() -> str:
        return "".join(rng.choices(alphabet, k=rng.randint(0, 5)))

    kind = rng.random()
    if kind < 0.35 or depth > 8:
        return text()
    if kind < 0.45:
        return rng.choice([True, False, None])
    if kind < 0.65:
        number = rng.choice([rng.random(), rng.randint(-(2**70), 2**70), 1.5, -0.0, 1e21, 5e-324])
        return number * 10.0 ** rng.randint(-25, 25) if rng.random() < 0.5 else number
    if kind < 0.75:
        return [random_pattern(rng, alphabet, depth + 3) for _ in range(rng.randint(0, 12))]
    size = rng.randint(0, 25 if rng.random() < 0.1 else 6)
    return {text(): random_pattern(rng, alphabet, depth + 1) for _ in range(size)}


NODE = shutil.which("node")


@pytest.mark.skipif(NODE is None, reason="needs node, to compare with JavaScript")
def test_routes_are_those_of_javascript() -> None:
    rng = random.Random(20)
    ascii_text = "".join(map(chr, range(32, 127))) + "\t\n"
    accents = "aeinosuzAEINOSUZàáâãäåçèéêëìíîïñòóôõöùúûüýāăąćčďēěğīńňőřśšťůűźżž"
    cases: list[tuple[str, Any]] = []
    for index in range(2000):
        pattern = random_pattern(rng, accents if index % 4 == 0 else ascii_text)
        text = json.dumps(pattern, ensure_ascii=rng.random() < 0.5)
        if len(text) > 2000:
            continue
        cases.append(("route", pattern))
        cases.append(("lookup", text if rng.random() < 0.8 else text[:-1]))
    node = subprocess.run(
        [str(NODE), "-e", NEST],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
        env={"LC_ALL": "C"},
    )
    for (kind, value), expected in zip(cases, json.loads(node.stdout), strict=True):
        if kind == "lookup":
            assert lookup_route(value) == (expected if isinstance(expected, str) else None), value
        elif value is not None and not isinstance(value, bool):
            assert route(value) == expected, value
