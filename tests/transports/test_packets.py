from __future__ import annotations

import json
from contextlib import suppress
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilient_client.errors import ProtocolError
from resilient_client.transports._metadata import sanitised
from resilient_client.transports._packets import (
    end_packet,
    error_packet,
    event_packet,
    no_handler_packet,
    read_request,
    read_response,
    request_packet,
    text_event,
    truthy,
    value_packet,
)

NO_HANDLER = "There is no matching message handler defined in the remote service."


def test_requests_and_events_are_written_as_nest_writes_them() -> None:
    assert (
        request_packet(b'{"cmd":"sum"}', b"[1,2]", None, "1")
        == b'{"pattern":{"cmd":"sum"},"data":[1,2],"id":"1"}'
    )
    assert request_packet(b"7", b"null", {}, b"ab") == b'{"pattern":7,"data":null,"id":"ab"}'
    assert (
        request_packet(b'"x"', b"1", {"traceparent": "00", "n": 'q"ë'}, "1")
        == '{"pattern":"x","data":1,"metadata":{"traceparent":"00","n":"q\\"ë"},"id":"1"}'.encode()
    )
    assert (
        event_packet(b'"user_created"', b'{"id":1}')
        == b'{"pattern":"user_created","data":{"id":1}}'
    )
    assert (
        event_packet(b'"x"', b"1", MappingProxyType({"a": "\ud800"}))
        == b'{"pattern":"x","data":1,"metadata":{"a":"\\ud800"}}'
    )


def test_responses_are_written_as_nest_writes_them() -> None:
    id_json = b'"7"'
    assert value_packet(id_json, b"3") == b'{"response":3,"isDisposed":true,"id":"7"}'
    assert value_packet(id_json, b"3", False) == b'{"response":3,"id":"7"}'
    assert value_packet(None, b"3") == b'{"response":3,"isDisposed":true}'
    assert value_packet(None, b"3", False) == b'{"response":3}'
    assert end_packet(id_json) == b'{"isDisposed":true,"id":"7"}'
    assert end_packet(None) == b'{"isDisposed":true}'
    assert error_packet(id_json, b'["a"]') == b'{"err":["a"],"isDisposed":true,"id":"7"}'
    assert error_packet(None, b'"x"') == b'{"err":"x","isDisposed":true}'
    assert no_handler_packet(id_json) == (
        f'{{"id":"7","status":"error","err":"{NO_HANDLER}"}}'.encode()
    )


@pytest.mark.parametrize("falsy", [b"null", b'""', b"0", b"false", b"-0", b"0.0e5"])
def test_an_error_that_javascript_takes_for_success_is_wrapped(falsy: bytes) -> None:
    packet = error_packet(b"1", falsy)
    assert read_response(packet).err == b'{"status":"error","message":%b}' % falsy


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("null", False), ("false", False), ("0", False), ("-0", False), ("0.000", False),
        ("0e9", False), ("1e-999", False), ('""', False),
        ("true", True), ("1", True), ("-1", True), ("0.1", True), ("1e999", True), ('" "', True),
        ('"0"', True), ("{}", True), ("[]", True),
    ],
)  # fmt: skip
def test_truth_is_javascripts(text: str, expected: bool) -> None:
    assert truthy(text.encode()) is expected


NEST_RESPONSES: list[tuple[str, dict[str, Any]]] = [
    # what a Nest server sends
    ('{"response":1,"id":"I"}', {"value": b"1", "ended": False}),
    ('{"response":1,"isDisposed":true,"id":"I"}', {"value": b"1", "ended": True}),
    ('{"response":null,"isDisposed":true,"id":"I"}', {"value": b"null", "ended": True}),
    ('{"isDisposed":true,"id":"I"}', {"value": None, "ended": True}),
    (
        '{"err":{"status":"error","message":"boom"},"isDisposed":true,"id":"I"}',
        {"err": b'{"status":"error","message":"boom"}', "ended": True},
    ),
    (
        f'{{"id":"I","status":"error","err":"{NO_HANDLER}"}}',
        {"err": f'"{NO_HANDLER}"'.encode(), "ended": True, "no_handler": True},
    ),
    # a foreign key makes it no packet: the envelope itself is the value
    (
        '{"response":1,"isDisposed":true,"id":"I","traceparent":"t"}',
        {"external": True, "ended": True},
    ),
    ('{"err":"bad","isDisposed":true,"id":"I","traceparent":"t"}', {"external": True, "err": None}),
    ('{"response":1,"id":"I","meta":{}}', {"external": True, "ended": True}),
    # no value, and more to come
    ('{"id":"I"}', {"value": None, "ended": False}),
    ('{"status":"error","id":"I"}', {"value": None, "ended": False}),
    # falsy errors are none
    ('{"err":null,"response":5,"isDisposed":true,"id":"I"}', {"value": b"5", "err": None}),
    ('{"err":"","response":5,"isDisposed":true,"id":"I"}', {"value": b"5", "err": None}),
    ('{"err":0,"response":5,"isDisposed":true,"id":"I"}', {"value": b"5", "err": None}),
    ('{"err":false,"response":5,"isDisposed":true,"id":"I"}', {"value": b"5", "err": None}),
    ('{"err":"","isDisposed":true,"id":"I"}', {"value": None, "err": None, "ended": True}),
    ('{"err":"","response":5,"id":"I"}', {"value": b"5", "err": None, "ended": False}),
    ('{"err":"X","response":5,"id":"I"}', {"err": b'"X"', "ended": True}),
    # the end is any truthy isDisposed
    ('{"response":1,"isDisposed":1,"id":"I"}', {"value": b"1", "ended": True}),
    ('{"response":1,"isDisposed":"false","id":"I"}', {"value": b"1", "ended": True}),
    ('{"response":1,"isDisposed":{},"id":"I"}', {"value": b"1", "ended": True}),
    ('{"response":1,"isDisposed":0,"id":"I"}', {"value": b"1", "ended": False}),
    ('{"response":1,"isDisposed":null,"id":"I"}', {"value": b"1", "ended": False}),
    # order and blanks mean nothing
    (' { "id" : "I" , "isDisposed" : true , "response" : [ 1 ] } ', {"value": b"[ 1 ]"}),
    ('{"id":"x","response":1,"response":2,"id":"I"}', {"value": b"2"}),
]


@pytest.mark.parametrize(("text", "expected"), NEST_RESPONSES)
def test_a_response_is_read_as_a_nest_client_reads_it(text: str, expected: dict[str, Any]) -> None:
    response = read_response(text.encode())
    assert response.id == "I"
    assert {name: getattr(response, name) for name in expected} == expected
    if response.external:
        assert response.value == text.encode()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"response":1,"id":"I","at":2}', {"value": b"1", "ended": False}),
        ('{"response":1,"isDisposed":true,"id":"I","at":2}', {"value": b"1", "ended": True}),
        ('{"isDisposed":true,"id":"I","at":2}', {"value": None, "ended": True}),
        ('{"err":"bad","isDisposed":true,"id":"I","at":2}', {"err": b'"bad"', "ended": True}),
        (
            f'{{"id":"I","status":"error","err":"{NO_HANDLER}","at":2}}',
            {"no_handler": True, "ended": True},
        ),
    ],
)
def test_where_ids_are_looked_up_a_foreign_key_makes_an_error_no_value(
    text: str, expected: dict[str, Any]
) -> None:
    response = read_response(text.encode(), by_id=True)
    assert response.id == "I"
    assert not response.external
    assert {name: getattr(response, name) for name in expected} == expected
    for other in ('{"hello":1,"id":"I"}', '{"response":1,"at":2}', "[1]"):
        assert read_response(other.encode(), by_id=True).external


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("5", None),
        ("[1,2]", None),
        ('"text"', None),
        ("null", None),
        ("{}", None),
        ('{"id":"I","hello":1}', "I"),
        ('{"hello":1}', None),
        ('{"metadata":{"a":"1"}}', None),
        ('{"__proto__":{"response":1},"id":"I"}', "I"),
        ('{"constructor":1,"isDisposed":true}', None),
    ],
)
def test_what_is_no_packet_is_a_value_and_the_end(text: str, key: str | None) -> None:
    response = read_response(text.encode())
    assert (response.id, response.value, response.err) == (key, text.encode(), None)
    assert response.external
    assert response.ended


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('{"response":1,"id":5}', "5"),
        ('{"response":1,"id":[1, 2]}', "[1, 2]"),
        ('{"response":1,"id":null}', None),
        ('{"response":1}', None),
        ('{"response":1,"id":""}', ""),
        ('{"response":1,"id":"\\ud800"}', "\ud800"),
    ],
)
def test_any_kind_of_id_is_a_key_that_can_be_looked_up(text: str, key: str | None) -> None:
    response = read_response(text.encode())
    assert response.id == key
    assert response.value == b"1"
    assert not response.external
    hash(response.id)


def test_a_lone_surrogate_does_not_lose_the_envelope() -> None:
    response = read_response(b'{"response":{"a":"\\ud800"},"isDisposed":true,"id":"I"}')
    assert (response.id, response.value, response.ended) == ("I", b'{"a":"\\ud800"}', True)
    response = read_response(b'{"err":{"message":"\\ud800","n":123456789012345678901},"id":"I"}')
    assert response.err == b'{"message":"\\ud800","n":123456789012345678901}'
    request = read_request(
        b'{"pattern":"x","data":["\\udfff"],"metadata":{"a":"b"},"id":"\\ud800"}'
    )
    assert (request.route, request.data, request.id) == ("x", b'["\\udfff"]', b'"\\ud800"')
    assert request.metadata == {"a": "b"}


REQUESTS: list[tuple[str, dict[str, Any]]] = [
    (
        '{"pattern":{"cmd":"sum"},"data":[1,2],"id":"1"}',
        {"route": '{"cmd":"sum"}', "data": b"[1,2]", "id": b'"1"'},
    ),
    ('{"pattern":"user_created","data":{}}', {"route": "user_created", "id": None}),
    ('{"pattern":"{\\"b\\":1,\\"a\\":2}","data":1}', {"route": '{"a":2,"b":1}'}),
    ('{"pattern":7,"data":1,"id":"1"}', {"route": "7", "pattern": b"7"}),
    ('{"pattern":null,"data":1,"id":"1"}', {"route": None, "pattern": b"null", "id": b'"1"'}),
    ('{"pattern":true,"data":1,"id":"1"}', {"route": None}),
    # any id makes it a request, and is sent back as it came
    ('{"pattern":"x","data":1,"id":null}', {"id": b"null"}),
    ('{"pattern":"x","data":1,"id":""}', {"id": b'""'}),
    ('{"pattern":"x","data":1,"id":0}', {"id": b"0"}),
    ('{"pattern":"x","data":1,"id":{"a": 1}}', {"id": b'{"a": 1}'}),
    # one of pattern and data is enough
    ('{"pattern":"x","id":"1"}', {"route": "x", "data": b"null", "external": False}),
    ('{"data":1,"id":"1"}', {"route": None, "pattern": None, "data": b"1", "external": False}),
    # foreign keys are ignored
    (
        '{"pattern":"x","data":1,"id":"1","headers":{},"__proto__":{"id":2}}',
        {"route": "x", "id": b'"1"', "external": False},
    ),
]


@pytest.mark.parametrize(("text", "expected"), REQUESTS)
def test_a_request_is_read_as_a_nest_server_reads_it(text: str, expected: dict[str, Any]) -> None:
    request = read_request(text.encode())
    assert {name: getattr(request, name) for name in expected} == expected


@pytest.mark.parametrize(
    "text",
    ['{"hello":1,"id":"1"}', "{}", "[1]", "5", "null", '"x"', '{"metadata":{"a":"1"}}',
     '{"hello":"\\ud800"}', '"\\ud800"'],
)  # fmt: skip
def test_an_external_message_is_an_event_even_with_an_id(text: str) -> None:
    request = read_request(text.encode())
    assert request.external
    assert (request.pattern, request.route, request.id) == (None, None, None)
    assert request.data == text.encode()


def test_a_message_that_is_text_becomes_an_event_with_the_text() -> None:
    assert text_event("plain ë".encode()).data == '"plain ë"'.encode()
    assert json.loads(text_event(b"\xff\x00").data) == "�\x00"
    assert text_event(b"").data == b'""'
    assert text_event(b"x").external


GARBAGE = [
    b"",
    b"{",
    b"hello",
    b'{"pattern":"x","data":}',
    b'{"pattern":"x","data":NaN}',
    b'{"pattern":"x"}}',
    b'{"pattern":"x","data":1,"id":"1"',
    b"\xff\xfe",
    b'{"pattern":"x","data":' + b"[" * 100_000,
    b'{"pattern":"x","data":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"response":' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}",
    b'{"response":"\\ud800","err":' + b"[" * 100_000,
    b'{"\\ud800":NaN}',
]


@pytest.mark.parametrize("raw", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_and_depth_bombs_are_protocol_errors(raw: bytes) -> None:
    for read in (read_request, read_response):
        with pytest.raises(ProtocolError):
            read(raw)


def test_a_response_whose_id_is_no_text_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError):
        read_response(b'{"response":1,"id":"\xff"}')


HOSTILE: list[tuple[str, dict[str, str]]] = [
    ('{"A":"1","b":"2"}', {"a": "1", "b": "2"}),
    ("[1]", {}),
    ('"x"', {}),
    ("null", {}),
    ("5", {}),
    ("{}", {}),
    ('{"a":1,"b":"x","c":null,"d":{"e":"f"},"g":["h"],"i":true}', {"b": "x"}),
    ('{"a":"line\\r\\nbreak","b":"nul\\u0000","c":"\\u007f","d":"ok"}', {"d": "ok"}),
    ('{"a":"\x7f","d":"ok"}', {"d": "ok"}),
    ('{"bad\\nname":"x","":"y","d":"ok"}', {"d": "ok"}),
    ('{"a":"\\ud800","\\ud800":"b","d":"ok"}', {"d": "ok"}),
    ('{"a":"\\"quoted\\"","b":"ë"}', {"a": '"quoted"', "b": "ë"}),
    ('{"__proto__":"x","constructor":"y"}', {"__proto__": "x", "constructor": "y"}),
    ('{"a":"' + "x" * 8193 + '","b":"' + "y" * 8192 + '"}', {"b": "y" * 8192}),
    ('{"' + "x" * 1025 + '":"a","b":"c"}', {"b": "c"}),
]


@pytest.mark.parametrize(("text", "expected"), HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_metadata_is_cut_down_to_printable_strings(
    text: str, expected: dict[str, str]
) -> None:
    request = read_request(f'{{"pattern":"x","data":1,"metadata":{text},"id":"1"}}'.encode())
    assert dict(request.metadata) == expected
    assert (request.route, request.id) == ("x", b'"1"')
    response = read_response(f'{{"response":1,"metadata":{text},"id":"1"}}'.encode())
    assert dict(response.metadata) == expected


def test_metadata_that_is_not_utf8_is_dropped() -> None:
    request = read_request(b'{"pattern":"x","data":1,"metadata":{"a":"\xff"},"id":"1"}')
    assert request.metadata == {}


def test_metadata_has_at_most_32_entries() -> None:
    many = {f"k{i}": "v" for i in range(1000)}
    packet = request_packet(b'"x"', b"1", many, "1")
    assert len(read_request(packet).metadata) == 32
    assert len(sanitised(many)) == 32
    few = {f"k{i}": "v" for i in range(32)}
    assert read_request(request_packet(b'"x"', b"1", few, "1")).metadata == few
    short = {f"k{i}": "v" for i in range(33)}  # read the quick way
    assert len(read_request(request_packet(b'"x"', b"1", short, "1")).metadata) == 32
    response = b'{"response":1,"metadata":%b,"id":"1"}' % json.dumps(short).encode()
    assert len(read_response(response).metadata) == 32


def test_this_packages_own_headers_arrive_behind_however_many_others() -> None:
    own = {"x-correlation-id": "c", "idempotency-key": "k", "x-deadline-ms": "250"}
    many = {f"k{i}": "v" for i in range(1000)} | own
    packet = request_packet(b'"x"', b"1", many, "1")
    for metadata in (read_request(packet).metadata, sanitised(many)):
        assert metadata.items() >= own.items()
        assert len(metadata) == 32 + len(own)
    assert sanitised({"k": "v", **own}) == {"k": "v", **own}


def test_a_tab_in_a_header_arrives() -> None:
    packet = request_packet(b'"x"', b"1", {"a": "b\tc", "d": "e\nf"}, "1")
    assert read_request(packet).metadata == {"a": "b\tc"}


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["id", "err", "response", "isDisposed", "pattern", "data", "metadata",
                         "__proto__", "status"]) | st.text(max_size=3),
        inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(values, st.booleans())
def test_whatever_json_arrives_is_read(value: Any, compact: bool) -> None:
    raw = json.dumps(value, separators=(",", ":") if compact else None).encode()
    request, response = read_request(raw), read_response(raw)
    for part in (request.data, request.id, request.pattern, response.value, response.err):
        if part is not None:
            json.loads(part)
    for metadata in (request.metadata, response.metadata):
        assert all(type(k) is type(v) is str and v.isprintable() for k, v in metadata.items())
    if isinstance(value, dict) and value.keys() & {"pattern", "data"}:
        assert json.loads(request.data) == value.get("data")
        assert (request.id is None) == ("id" not in value)
    else:
        assert request.external
        assert json.loads(request.data) == value


@given(st.binary(max_size=80))
def test_whatever_bytes_arrive_are_read_or_a_protocol_error(raw: bytes) -> None:
    for read in (read_request, read_response):
        with suppress(ProtocolError):
            read(raw)


packets = st.sampled_from([text.encode() for text, _ in NEST_RESPONSES + REQUESTS])


@given(packets, st.lists(st.tuples(st.integers(0, 100), st.binary(max_size=2)), max_size=4))
def test_a_damaged_packet_is_read_or_a_protocol_error(
    raw: bytes, damage: list[tuple[int, bytes]]
) -> None:
    data = bytearray(raw)
    for at, replacement in damage:
        data[at : at + 1] = replacement
    for read in (read_request, read_response):
        with suppress(ProtocolError):
            read(bytes(data))
