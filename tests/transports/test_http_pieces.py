"""The parts of http:// that need no network: addresses, streams, answers, errors."""

from __future__ import annotations

import dataclasses
import enum
import gzip
import inspect
import ssl
import time
import zlib
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilient_client.codecs import JsonCodec
from resilient_client.errors import (
    NO_HANDLER_MESSAGE,
    ConfigurationError,
    ConnectError,
    DeadlineExceeded,
    InvalidPayloadError,
    NoHandlerError,
    Outcome,
    PayloadError,
    ProtocolError,
    RemoteError,
    Throttled,
)
from resilient_client.message import NO_VALUE
from resilient_client.patterns import route
from resilient_client.transports.http._answers import (
    Text,
    error_of,
    retry_after,
    unpacked,
    value_of,
)
from resilient_client.transports.http._errors import NEVER_SENT, SENT, map_error
from resilient_client.transports.http._events import (
    END,
    EventReader,
    JsonLinesReader,
    error_event,
    value_event,
)
from resilient_client.transports.http._fields import Fields, FieldsCodec, fields
from resilient_client.transports.http._items import stream_reader
from resilient_client.transports.http._requests import header, plain_target, prepare, rest_template
from resilient_client.transports.http._routing import Found, Router, path_segments

CODEC = JsonCodec()
OURS = {"x-resilient-client": "1", "content-type": "application/json"}
JSON = {"content-type": "application/json"}
# what UTF-8 can carry
text = st.text(st.characters(exclude_categories=["Cs"]))


class Registered:
    """As much of a server as a router looks at."""

    def __init__(self, *requests: str, events: tuple[str, ...] = ()) -> None:
        self.requests = list(requests)
        self.events = list(events)

    def handles(self, route: str) -> bool:
        return route in self.requests

    def receivers(self, route: str) -> int:
        return self.events.count(route)

    def subscriptions(self) -> list[Any]:
        made = dataclasses.make_dataclass("Subscription", ["route", "is_event"])
        return [made(r, False) for r in self.requests] + [made(r, True) for r in self.events]


def scope(target: str, **more: Any) -> dict[str, Any]:
    """What an ASGI server makes of a request's target."""
    parts = urlsplit("http://host" + target)
    return {"path": unquote(parts.path), "raw_path": parts.path.encode(), **more}


# ----------------------------------------------------------------------------- plain patterns


@given(text)
def test_a_server_reads_the_very_route_that_a_client_wrote(pattern: str):
    target = plain_target(pattern)
    assert target.startswith("/")
    assert target.isascii()
    assert not set(target) & set(' ?#"<>\\^`{|}')
    url = httpx.URL("http://host/base" + target)  # which tidies up what it can
    segments = path_segments(scope(url.raw_path.decode()), "/base")
    assert segments is not None
    assert "/".join(segments) == pattern


@given(st.dictionaries(text, st.one_of(text, st.integers(), st.booleans()), max_size=4))
def test_a_mapping_travels_as_its_route(pattern: dict[str, Any]):
    target = plain_target(route(pattern))
    assert "/".join(path_segments(scope(target), "") or []) == route(pattern)


def test_readable_routes_stay_readable():
    assert plain_target("users/create") == "/users/create"
    assert plain_target("users.create:v1") == "/users.create:v1"
    assert plain_target("a/../b") == "/a%2F..%2Fb"
    assert plain_target("..") == "/%2E%2E"
    assert plain_target('{"cmd":"sum"}') == "/%7B%22cmd%22:%22sum%22%7D"
    assert plain_target("100%") == "/100%25"
    with pytest.raises(PayloadError):
        plain_target("\ud800")


# ------------------------------------------------------------------------------ REST patterns


def test_the_path_takes_its_parameters_and_leaves_the_rest():
    get = prepare("GET /users/{id}", {"id": 7, "page": 2, "tag": ["a", "b"], "no": None}, CODEC)
    assert get == ("GET", "/users/7?page=2&tag=a&tag=b", None, False)
    put = prepare("PUT /users/{id}", {"id": "x/y z", "name": "Zoë"}, CODEC)
    assert put == ("PUT", "/users/x%2Fy%20z", '{"name":"Zoë"}'.encode(), False)
    assert prepare("POST /users", [1], CODEC).content == b"[1]"
    assert prepare("POST /users", None, CODEC).content is None
    assert prepare("DELETE /users/{id}", {"id": 1}, CODEC) == ("DELETE", "/users/1", None, False)
    assert prepare("GET /a?b=c", {"d": True}, CODEC).target == "/a?b=c&d=true"
    assert prepare("GET /größe", None, CODEC).target == "/gr%C3%B6%C3%9Fe"
    assert prepare("GET /a%20b", None, CODEC).target == "/a%20b"


def test_values_in_a_url_read_as_in_json():
    class Color(enum.Enum):
        RED = "red"

    @dataclasses.dataclass
    class Query:
        color: Color
        when: datetime
        ratio: float

    data = Query(Color.RED, datetime(2026, 1, 2, tzinfo=UTC), 1.5)
    target = prepare("GET /things/{color}", data, CODEC).target
    assert target == "/things/red?when=2026-01-02T00%3A00%3A00Z&ratio=1.5"


@pytest.mark.parametrize(
    "data",
    [
        *(None, {}, {"id": None}, {"id": ""}, {"id": ".."}, {"id": "."}, {"id": [1]}, [1], 5),
        *({"id": "../admin"}, {"id": "a/../../b"}, {"id": "a\\.."}, {"id": "./"}),
    ],
)
def test_a_path_parameter_that_would_name_another_resource_is_refused(data: Any):
    with pytest.raises(PayloadError) as caught:
        prepare("DELETE /users/{id}", data, CODEC)
    assert not caught.value.sent


def test_a_query_holds_no_objects():
    with pytest.raises(PayloadError, match="query"):
        prepare("GET /a", {"where": {"a": 1}}, CODEC)
    with pytest.raises(PayloadError, match="not a mapping"):
        prepare("GET /a", [1], CODEC)


def test_a_broken_template_is_a_mistake():
    for pattern in ("GET /a/{}", "GET /a/{1}", "GET /a/{b", "GET /{a}/{a}", "GET /a?b={b}"):
        with pytest.raises(ConfigurationError):
            rest_template(pattern)
    for pattern in ("get /a", "GET a", "FETCH /a", "GET", "GET  /a", "users"):
        assert rest_template(pattern) is None


scalars = st.one_of(
    text.filter(lambda t: t and not {".", ".."} & set(t.replace("\\", "/").split("/"))),
    st.integers(),
    st.booleans(),
)


@given(scalars, text, st.lists(text, min_size=2, max_size=3))
def test_path_and_query_come_back_as_they_went(value: Any, one: str, several: list[str]):
    request = prepare("GET /a/{id}/b", {"id": value, "one": one, "several": several}, CODEC)
    url = httpx.URL("http://host" + request.target)
    path, _, query = url.raw_path.partition(b"?")
    router = Router(Registered("GET /a/{id}/b"))  # type: ignore[arg-type]
    found = router.find("GET", path_segments(scope(path.decode()), "") or [], event=False)
    assert isinstance(found, Found)
    assert found.parameters is not None
    payload = fields(found.parameters, query, b"", CODEC)
    written = value if isinstance(value, str) else str(value).lower()
    assert payload.values == {"id": written, "one": one, "several": several}


# ------------------------------------------------------------------------------------ routing


def test_literals_come_before_parameters():
    router = Router(Registered("GET /users/{id}", "GET /users/me", "POST /users", "plain"))  # type: ignore[arg-type]

    def find(method: str, path: str, *, event: bool = False) -> Any:
        found = router.find(method, path_segments(scope(path), "") or [], event=event)
        return (found.route, found.parameters) if isinstance(found, Found) else found

    assert find("GET", "/users/me") == ("GET /users/me", {})
    assert find("GET", "/users/7") == ("GET /users/{id}", {"id": "7"})
    assert find("HEAD", "/users/7") == ("GET /users/{id}", {"id": "7"})
    assert find("GET", "/users/a%2Fb") == ("GET /users/{id}", {"id": "a/b"})
    assert find("POST", "/users") == ("POST /users", {})
    assert find("POST", "/plain") == ("plain", None)
    assert find("PUT", "/users/7") == ["GET", "HEAD"]
    assert find("GET", "/plain") == ["POST"]
    assert find("GET", "/users/7/x") == []
    assert find("GET", "/users/") == []
    assert find("POST", "/GET%20/users/me") == [], "a way past the method"


def test_a_handler_that_is_registered_late_is_found():
    app = Registered("GET /a")
    router = Router(app)  # type: ignore[arg-type]
    assert router.find("GET", ["b"], event=False) == []
    app.requests.append("GET /b")
    assert isinstance(router.find("GET", ["b"], event=False), Found)


def test_a_segment_may_hold_several_parameters():
    router = Router(Registered("GET /files/{name}.{ext}", "GET /v{major}/x"))  # type: ignore[arg-type]
    found = router.find("GET", ["files", "a.tar"], event=False)
    assert isinstance(found, Found)
    assert found.parameters == {"name": "a", "ext": "tar"}
    assert isinstance(router.find("GET", ["v2", "x"], event=False), Found)
    assert router.find("GET", ["2", "x"], event=False) == []


@pytest.mark.parametrize(
    ("more", "target"),
    [
        ({}, "/a/b"),
        ({"root_path": "/mount"}, "/mount/a/b"),
        ({"root_path": "/mount"}, "/a/b"),  # servers that leave it out of the path
        ({"root_path": "/proxy/mount", "app_root_path": "/proxy"}, "/mount/a/b"),
        ({"root_path": "/proxy/mount", "app_root_path": "/proxy"}, "/proxy/mount/a/b"),
    ],
)
def test_what_the_application_stands_below_comes_off(more: dict[str, Any], target: str):
    assert path_segments(scope(target, **more), "") == ["a", "b"]
    without = scope(target, **more)
    del without["raw_path"]
    assert path_segments(without, "") == ["a", "b"]


def test_outside_the_base_there_is_nothing():
    assert path_segments(scope("/apix/a"), "/api") is None
    assert path_segments(scope("/api/a"), "/api") == ["a"]


def test_fields_become_what_the_handler_asks_for():
    @dataclasses.dataclass
    class Wanted:
        id: int
        tags: list[str]
        deep: bool = False
        more: dict[str, int] | None = None

    codec = FieldsCodec(CODEC)
    payload = fields({"id": "7"}, b"tags=a&deep=true", b'{"id":1,"more":{"x":1}}', CODEC)
    assert codec.decode(payload, Wanted) == Wanted(7, ["a"], True, {"x": 1})
    assert codec.decode(Fields({"id": "7"}), Any) == {"id": "7"}
    assert codec.decode(fields({}, b"", b"", CODEC)) is None
    with pytest.raises(PayloadError):
        codec.decode(Fields({"id": "x", "tags": "a"}), Wanted)
    with pytest.raises(PayloadError):
        fields({"id": "7"}, b"", b"[1]", CODEC)
    with pytest.raises(PayloadError):
        fields({}, b"a=1&" * 2000, b"", CODEC)


# ------------------------------------------------------------------------------------ streams


@given(st.lists(st.one_of(text, st.integers(), st.lists(st.none()))), st.data())
def test_a_stream_is_read_whatever_the_cuts(values: list[Any], data: st.DataObject):
    wire = b"".join(value_event(CODEC.encode(value)) for value in values)
    wire += error_event(b'"no"') + END
    reader = EventReader(10_000)
    events = []
    while wire:
        cut = data.draw(st.integers(1, len(wire)))
        events += reader.feed(wire[:cut])
        wire = wire[cut:]
    assert [CODEC.decode(event.data) for event in events[:-2]] == values
    assert events[-2] == ("error", b'"no"')
    assert events[-1].type == "end"


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_every_kind_of_line_end_is_one(end: bytes, size: int):
    lines = [b"\xef\xbb\xbf: a comment", b"event: odd", b"id: 4", b"data: a", b"data:b", b""]
    lines += [b"data", b"", b"retry: 5", b"", b"data: c", b"", b""]
    wire = end.join(lines)
    reader = EventReader(100)
    events = []
    for i in range(0, len(wire), size):
        events += reader.feed(wire[i : i + size])
    assert events == [("odd", b"a\nb"), ("", b""), ("", b"c")]


def test_a_line_without_an_end_is_bounded():
    reader = EventReader(1000)
    with pytest.raises(PayloadError, match="max_size"):
        for _ in range(100):
            reader.feed(b"data: " + b"x" * 100)
    with pytest.raises(PayloadError, match="max_size"):
        EventReader(1000).feed((b"data: " + b"x" * 400 + b"\n") * 3)
    with pytest.raises(PayloadError, match="max_size"):
        JsonLinesReader(1000).feed(b"x" * 2000 + b"\n")
    assert len(EventReader(1000).feed(value_event(b"x" * 1000))) == 1


def test_the_last_line_of_ndjson_needs_no_end():
    reader = JsonLinesReader(100)
    assert reader.feed(b'{"a":1}\n\n[2') == [("", b'{"a":1}')]
    assert reader.feed(b"]") == []
    assert reader.rest() == [("", b"[2]")]
    assert reader.feed(b"3\r\n") == [("", b"3")]
    assert reader.rest() == []


@pytest.mark.parametrize("name", ["x-ndjson", "ndjson", "jsonl", "x-jsonlines", "stream+json"])
def test_ndjson_goes_by_several_names(name: str):
    assert isinstance(stream_reader(f"application/{name}; charset=utf-8", 100), JsonLinesReader)


# ------------------------------------------------------------------------------------ answers


def failed(
    status: int,
    content: bytes = b"",
    headers: dict[str, str] = JSON,
    *,
    plain: bool = True,
    reason: str = "",
) -> Any:
    return error_of(status, reason, headers, content, CODEC, plain=plain)


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (400, Outcome.SUCCESS),
        (401, Outcome.SUCCESS),
        (404, Outcome.SUCCESS),
        (408, Outcome.FAILURE),
        (409, Outcome.SUCCESS),
        (422, Outcome.SUCCESS),
        (429, Outcome.THROTTLED),
        (500, Outcome.FAILURE),
        (501, Outcome.SUCCESS),
        (502, Outcome.FAILURE),
        (503, Outcome.FAILURE),
        (504, Outcome.FAILURE),
        (302, Outcome.SUCCESS),
    ],
)
def test_a_status_is_an_outcome(status: int, outcome: Outcome):
    for headers in (JSON, {}):
        for content in (b"", b'{"message":"m"}'):
            error = failed(status, content, headers)
            assert error.outcome is outcome
            assert error.status == status
            assert error.sent
            assert str(error)


def test_what_the_peer_said_is_kept_untouched():
    error = failed(409, b'{"message":"m","code":"E","status":"error","x":[1]}')
    assert type(error) is RemoteError
    assert error.payload == {"message": "m", "code": "E", "status": "error", "x": [1]}
    assert (error.message, error.code, error.status) == ("m", "E", 409)
    assert failed(400, b"plain", {"content-type": "text/plain"}).payload == "plain"
    assert failed(400, b"{nope").payload == "{nope"
    assert failed(418, b"", {}).message == "418 I'm a Teapot"
    assert failed(400, b"", {}, reason="Because").message == "400 Because"
    assert failed(400, b'{"detail":"why"}').message == "why"


def test_a_page_for_a_browser_is_a_payload_but_no_message():
    page = b"<html><h1>502 Bad Gateway</h1></html>"
    error = failed(502, page, {"content-type": "text/html; charset=utf-8"}, reason="Bad Gateway")
    assert (error.message, error.payload) == ("502 Bad Gateway", page.decode())
    assert "<html>" not in str(error)
    text = failed(400, b" " + b"x" * 10_000, {"content-type": "text/plain"})
    assert (text.message, len(text.payload)) == ("x" * 500, 10_001)


def test_a_hint_says_where_a_service_has_gone_but_nothing_secret():
    moved = failed(302, b"", {"location": "https://me:word@elsewhere.test/a?signature=b#token=c"})
    assert moved.hint.endswith("redirects to https://***@elsewhere.test/a")
    assert "redirect" not in failed(304, b"", {}).hint


def test_only_our_own_server_says_that_nobody_handles_it():
    content = CODEC.encode(NO_HANDLER_MESSAGE)
    nobody = failed(404, content, OURS)
    assert type(nobody) is NoHandlerError
    assert nobody.status == 404
    for error in (
        failed(404, content, JSON),
        failed(404, content, OURS, plain=False),
        failed(400, content, OURS),
        failed(404, b'{"status":404,"message":"no such user"}', OURS),
    ):
        assert type(error) is RemoteError


def test_an_unprocessable_payload_is_ours_by_its_code():
    assert type(failed(422, b'{"code":"INVALID_PAYLOAD","message":"m"}')) is InvalidPayloadError
    assert type(failed(422, b'{"detail":[]}')) is RemoteError
    late = failed(504, b'{"code":"DEADLINE_EXCEEDED","status":504,"message":"m"}', OURS)
    assert isinstance(late, DeadlineExceeded)


def test_retry_after_is_a_number_or_a_date(monkeypatch: pytest.MonkeyPatch):
    assert retry_after("3", None) == 3.0
    assert retry_after(" 0 ", None) == 0.0
    soon = format_datetime(datetime.fromtimestamp(time.time() + 30, UTC), usegmt=True)
    assert 25 < (retry_after(soon, None) or 0) <= 31
    assert retry_after("Fri, 31 Dec 1999 23:59:59 GMT", None) == 0.0
    assert retry_after("Sat, 01 Jan 2050 00:00:07 GMT", "Sat, 01 Jan 2050 00:00:00 GMT") == 7.0
    for nonsense in ("", "soon", "-1", "1.5", "9" * 400, "\u00b2", "Fri, 99 Foo 1999 23:59:59 GMT"):
        assert retry_after(nonsense, None) is None, nonsense
    with monkeypatch.context() as patch:  # every date is GMT, also without saying so
        patch.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        try:
            assert retry_after("Sat Jan  1 00:00:07 2050", "Sat, 01 Jan 2050 00:00:00 GMT") == 7.0
        finally:
            patch.undo()
            time.tzset()
    throttled = failed(503, b"", {"retry-after": "2"})
    assert isinstance(throttled, Throttled)
    assert throttled.retry_after == 2
    assert failed(429, b"", {}).retry_after is None
    exact = failed(429, b'{"retry_after":0.25,"code":"THROTTLED"}', OURS | {"retry-after": "1"})
    assert exact.retry_after == 0.25


def test_a_value_is_json_or_for_rest_text():
    assert value_of(200, JSON, b"1", plain=True) == b"1"
    assert value_of(200, {}, b"1", plain=True) == b"1"
    assert value_of(200, {"content-type": "application/hal+json; x=y"}, b"1", plain=False) == b"1"
    assert value_of(204, JSON, b"", plain=True) is NO_VALUE
    assert value_of(200, {}, b"", plain=False) is NO_VALUE
    with pytest.raises(ProtocolError):
        value_of(200, {"content-type": "text/html"}, b"<p>", plain=True)
    page = value_of(200, {"content-type": "text/html; charset=latin-1"}, b"\xe9", plain=False)
    assert isinstance(page, Text)
    assert (page.decode(Any), page.decode(str), page.decode(bytes)) == ("é", "é", b"\xe9")
    assert Text(b"\x00", "image/png").decode(Any) == b"\x00"
    assert page.decode(str | None) == "é"
    assert page.decode(bytes | None) == b"\xe9"
    assert Text(b"a", "text/plain; charset=none-such").decode(str) == "a"
    with pytest.raises(PayloadError):
        page.decode(int)


@pytest.mark.parametrize(
    ("content", "media"),
    [
        (b"\xef\xbb\xbf" + '"é"'.encode(), "application/json"),
        (b'"\xe9"', "application/json; charset=ISO-8859-1"),
        ('"é"'.encode("utf-16"), "application/json; charset=utf-16"),
        ('"é"'.encode(), "application/json; charset=none-such"),
        ('"é"'.encode(), "application/json; charset=hex"),
    ],
)
def test_json_is_read_with_a_byte_order_mark_and_in_other_charsets(content: bytes, media: str):
    body = value_of(200, {"content-type": media}, content, plain=False)
    assert CODEC.decode(body) == "é"
    assert failed(400, content, {"content-type": media}).payload == "é"


@pytest.mark.parametrize("charset", ["punycode", "idna", "unicode_escape"])
def test_what_is_no_charset_is_not_used_as_one(charset: str):
    assert Text(b"a-b\\n", f"text/plain; charset={charset}").text() == "a-b\\n"


def test_a_packed_answer_is_read_whole_and_in_the_customary_ways():
    members = gzip.compress(b"[1,") + gzip.compress(b"2]")
    assert unpacked(members, "gzip", 100) == b"[1,2]"
    assert unpacked(members + b"\0\0", "x-gzip", 5) == b"[1,2]"
    assert unpacked(members, "gzip", 4) is None
    headless = zlib.compressobj(wbits=-15)
    assert unpacked(headless.compress(b"[1]") + headless.flush(), "deflate", 100) == b"[1]"
    large = gzip.compress(bytes(range(256)) * 4000, compresslevel=0)
    assert unpacked(large + large, "gzip", 2**22) == bytes(range(256)) * 8000
    with pytest.raises(ProtocolError, match="members"):
        unpacked(gzip.compress(b"") * 10_001, "gzip", 100)


def test_a_packed_answer_unpacks_within_the_limit():
    packed = zlib.compress(b"[1]")
    assert unpacked(packed, "deflate", 100) == b"[1]"
    bomb = zlib.compressobj(wbits=31)
    data = bomb.compress(b"0" * 10_000_000) + bomb.flush()
    assert len(data) < 20_000
    assert unpacked(data, "gzip", 1000) is None
    assert unpacked(b"", "gzip", 1000) == b""
    for content, encoding in ((packed[:-2], "deflate"), (b"nope", "gzip"), (b"x", "br")):
        with pytest.raises(ProtocolError):
            unpacked(content, encoding, 100)


# ------------------------------------------------------------------------------------- errors


def exceptions(module: Any) -> list[type[Exception]]:
    return [
        each
        for _, each in inspect.getmembers(module, inspect.isclass)
        if issubclass(each, Exception)
    ]


@pytest.mark.parametrize("cls", exceptions(httpx), ids=lambda cls: cls.__name__)
def test_every_exception_of_httpx_says_whether_anything_was_sent(cls: type[Exception]):
    assert (cls.__name__ in NEVER_SENT) != (cls.__name__ in SENT), "httpx has grown: decide"
    arguments: dict[str, Any] = {}
    if cls is httpx.HTTPStatusError:
        request = httpx.Request("GET", "http://host")
        arguments = {"request": request, "response": httpx.Response(503, request=request)}
    wanted = inspect.signature(cls).parameters
    error = map_error(cls(*(["text"] if "message" in wanted else []), **arguments))
    assert error is not None
    assert error.sent == (cls.__name__ in SENT)
    assert not (error.retryable and error.sent)


def test_the_tables_name_nothing_that_httpx_does_not_have():
    names = {cls.__name__ for cls in exceptions(httpx)}
    assert set(NEVER_SENT) | set(SENT) <= names
    assert not set(NEVER_SENT) & set(SENT)


def test_what_a_hook_refuses_is_told_without_its_url():
    request = httpx.Request("GET", "http://rest.example/a?token=secret")
    error = httpx.HTTPStatusError(
        f"for {request.url}", request=request, response=httpx.Response(404)
    )
    mapped = map_error(error)
    assert isinstance(mapped, RemoteError)
    assert mapped.status == 404
    assert "secret" not in str(mapped)


def test_httpx2_is_told_by_its_names():
    httpx2 = pytest.importorskip("httpx2")
    for cls in exceptions(httpx2):
        assert any(base.__name__ in NEVER_SENT | SENT for base in cls.__mro__), cls
    error = map_error(httpx2.ConnectTimeout("text"))
    assert isinstance(error, ConnectError)
    assert not error.sent


def test_a_class_of_a_newer_version_is_taken_for_its_base():
    class TlsError(httpx.ConnectError):
        pass

    assert isinstance(map_error(TlsError("x")), ConnectError)
    assert map_error(KeyError("not theirs")) is None


def test_a_certificate_that_is_not_trusted_is_a_setting_to_mend():
    error = httpx.ConnectError("x")
    error.__cause__ = ssl.SSLCertVerificationError("no")
    assert isinstance(map_error(error), ConfigurationError)


def test_headers_that_would_split_a_message_are_refused():
    assert header("x-a", " Zoë\t") == (b"x-a", "Zoë".encode())
    for name, value in (
        ("x-a", "a\r\nb: c"),
        ("x-a", "a\0"),
        ("x-a", "\x7f"),
        ("x-a", "\ud800"),
        ("x a", "b"),
        ("", "b"),
        ("x:a", "b"),
        ("content-length", "0"),
        ("transfer-encoding", "chunked"),
    ):
        with pytest.raises(PayloadError) as caught:
            header(name, value)
        assert not value or value not in str(caught.value)
