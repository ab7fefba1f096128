"""gRPC against a real NestJS, both ways: every case of the mapping of fields, errors, streams.

Nest's gRPC shares nothing with its other transports (no patterns, no packets), so that it has its
own tests instead of a line in `nest_rigs`.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from resilient_client import (
    ClientProxy,
    ConnectError,
    ConnectionLost,
    Context,
    DeadlineExceeded,
    NoHandlerError,
    RemoteError,
    Server,
    Throttled,
)
from tests.calls import error_of
from tests.peers.certificates import certificates
from tests.peers.nest import FOLDER, NestClient, NestServer, server_tls_options, tls_options

pytestmark = [pytest.mark.interop, pytest.mark.timeout(180)]

PROTO = str(FOLDER / "shared" / "interop.proto")
UNICODE = "gr\u00fc\u00dfe \U0001f600 \u65e5\u672c"
EMPTY: dict[str, Any] = {
    "textField": "", "bytesField": b"", "int32Field": 0, "int64Field": 0, "uint64Field": 0,
    "sint32Field": 0, "fixed64Field": 0, "floatField": 0.0, "doubleField": 0.0, "boolField": False,
    "color": "COLOR_UNSPECIFIED", "repeatedField": [], "nestedList": [], "mapField": {},
    "nestedMap": {},
}  # fmt: skip
CASES: list[dict[str, Any]] = [
    {},
    {"textField": UNICODE},
    {"bytesField": bytes(range(256))},
    {"int32Field": -(2**31)},
    {"int64Field": -(2**63)},
    {"int64Field": 2**53 + 1},
    {"uint64Field": 2**64 - 1},
    {"sint32Field": -1},
    {"fixed64Field": 2**64 - 1},
    {"floatField": 0.5, "doubleField": 0.1},
    {"doubleField": float("inf")},
    {"boolField": True},
    {"color": "COLOR_BLUE"},
    {"nestedField": {"name": "a", "inner": {"name": "b", "inner": {"name": ""}}}},
    {"nestedField": {"name": ""}},
    {"repeatedField": ["a", "", UNICODE]},
    {"nestedList": [{"name": "x"}, {"name": "", "inner": {"name": "y"}}]},
    {"mapField": {"a": 1, "": 0}},
    {"nestedMap": {1: {"name": "one"}, -2: {"name": ""}}},
    {"maybeText": ""},
    {"maybeInt": 0},
    {"choiceText": ""},
    {"choiceInt": 0},
    {"choiceNested": {"name": "n"}},
]


@asynccontextmanager
async def calling_nest(version: int = 12, **settings: Any) -> AsyncIterator[ClientProxy]:
    options = settings.pop("client", {"proto": PROTO})
    async with NestServer("grpc", version=version, **settings) as server:
        scheme = "grpcs" if "tls" in settings else "grpc"
        url = f"{scheme}://localhost:{server.port}" if "tls" in settings else server.url
        async with ClientProxy(url, policies=(), telemetry=False, **options) as client:
            yield client


async def numbers(*values: int) -> AsyncIterator[dict[str, int]]:
    for value in values:
        yield {"value": value}


async def test_every_field_goes_through_a_nest_server_and_comes_back_as_it_went() -> None:
    async with calling_nest() as client:
        for case in CASES:
            assert await client.send("interop.Math/Echo", case) == EMPTY | case, case
        assert (await client.send("Math/Echo", {"color": 2}))["color"] == "COLOR_BLUE"
        assert (await client.send("Math/Echo", {"color": 77}))["color"] == 77
        assert await client.send("Math/Sum", {"values": list(range(1000))}) == {"total": 499500}
        assert len((await client.send("Math/Big", {"size": 3_000_000}))["text"]) == 3_000_000


async def test_every_kind_of_method_of_a_nest_server() -> None:
    async with calling_nest() as client:
        for name in ("Gather", "GatherCall"):
            assert await client.send(f"Math/{name}", numbers(1, 2, 3)) == {"total": 6}
            assert await client.send(f"Math/{name}", []) == {"total": 0}
        doubled = [n["value"] async for n in client.stream("Math/Double", numbers(1, 2, 3))]
        assert doubled == [2, 4, 6]
        counted = [n["value"] async for n in client.stream("Math/Count", {"n": 200})]
        assert counted == list(range(200))
        assert [n async for n in client.stream("Math/Count", {"n": 0})] == []
        values = []
        with pytest.raises(RemoteError) as caught:
            async for n in client.stream("Math/Count", {"n": 2, "fail": True}):
                values.append(n["value"])  # noqa: PERF401
        assert (values, caught.value.status) == ([0, 1], 5)
        before = await client.send("Math/Streams", {})
        async with client.stream("Math/Count", {"n": 1000, "ms": 5}) as items:
            await anext(items)
        for _ in range(250):
            after = await client.send("Math/Streams", {})
            if after["ended"] == before["ended"] + 1:
                break
            await asyncio.sleep(0.02)
        assert after["ended"] == before["ended"] + 1, "leaving did not stop Nest's stream"


async def test_a_nest_servers_errors() -> None:
    async with calling_nest() as client:
        for data, status, message in (
            ({"kind": "string", "message": "boom"}, 2, "boom"),
            ({"code": 5, "message": "nope"}, 5, "nope"),
            ({"kind": "details", "code": 9, "message": "m", "details": UNICODE}, 9, UNICODE),
            ({"kind": "error", "message": "secret"}, 2, "Internal server error"),
            ({"kind": "http", "message": "secret"}, 2, "Internal server error"),
            ({"code": 14, "message": "later"}, 14, "later"),
        ):
            error = await error_of(client.send("Math/Fail", data))
            assert type(error) is RemoteError, error
            assert (error.status, error.message) == (status, message), data
            assert error.payload == {"code": status, "message": message}, data
            assert error.sent
        data = {"kind": "trailers", "code": 7, "message": "m", "details": "d"}
        error = await error_of(client.send("Math/Fail", data))
        assert error.code == "PERMISSION_DENIED"
        assert error.payload["metadata"] == {"retry-after-ms": "250", "reason-bin": b"d"}
        error = await error_of(client.send("Math/Fail", {"code": 8, "message": "slow down"}))
        assert isinstance(error, Throttled)
        error = await error_of(client.send("Math/Nothing", {}))
        assert error.status == 13
        error = await error_of(client.send("Math/Delay", {"ms": 5000}, timeout=0.3))
        assert isinstance(error, DeadlineExceeded)
        for name in ("Math/Unimplemented", "nobody"):
            assert isinstance(await error_of(client.send(name, {})), NoHandlerError)
        assert (await client.ping()).reachable


async def test_a_nest_server_sees_our_metadata_and_passes_it_on() -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    headers = {"traceparent": trace, "x-correlation-id": "abc", "blob-bin": "AP8="}
    seen: list[Any] = []
    server = Server("grpc://127.0.0.1:0", telemetry=False, proto=PROTO)

    @server.message_pattern("Math/Sum")
    async def add(payload: dict[str, Any], context: Context) -> dict[str, int]:
        seen.append(dict(context.headers))
        return {"total": sum(payload["values"])}

    async with server, calling_nest() as client:
        values = (await client.send("Math/Metadata", {}, headers=headers))["values"]
        assert values.items() >= headers.items()
        assert "x-deadline-ms" not in values, "gRPC has a timeout of its own"
        port = int(server.addresses[0].rpartition(":")[2])
        data = {"host": "127.0.0.1", "port": port, "values": [1, 2]}
        assert await client.send("Math/Forward", data, headers=headers) == {"total": 3}
        assert seen[0]["traceparent"] == trace
        assert seen[0]["x-correlation-id"] == "abc"


async def test_a_nest_server_killed_frozen_and_started_again() -> None:
    async with NestServer("grpc") as server:
        options = {"proto": PROTO, "keepalive": 0.5, "keepalive_timeout": 0.5}
        async with ClientProxy(server.url, policies=(), telemetry=False, **options) as client:

            async def streamed() -> list[int]:
                got = []
                with pytest.raises(ConnectionLost):
                    async for n in client.stream("Math/Count", {"n": 10_000, "ms": 5}):
                        got.append(n["value"])  # noqa: PERF401
                return got

            for stop in (server.kill, server.freeze):
                unary = asyncio.ensure_future(
                    error_of(client.send("Math/Delay", {"ms": 60_000}, timeout=60))
                )
                items = asyncio.ensure_future(streamed())
                await asyncio.sleep(0.5)
                await asyncio.to_thread(stop)
                error = await asyncio.wait_for(unary, 10)
                assert isinstance(error, ConnectionLost), error
                assert error.sent
                got = await asyncio.wait_for(items, 10)
                assert got
                assert got == list(range(len(got)))
                if server.frozen:
                    server.thaw()
                else:
                    down = await error_of(client.send("Math/Sum", {}, timeout=2))
                    assert isinstance(down, ConnectError)
                    assert not down.sent
                    await server.restart_async()
                assert await client.send("Math/Sum", {"values": [1]}, timeout=5) == {"total": 1}


async def test_tls_and_client_certificates_with_nest() -> None:
    files = certificates()
    own = {"proto": PROTO, "ca": str(files.authority), "cert": str(files.client),
           "key": str(files.client_key)}  # fmt: skip
    tls = server_tls_options(client_required=True)
    async with calling_nest(tls=tls, client=own) as client:
        assert await client.send("Math/Sum", {"values": [1]}) == {"total": 1}
    server = math_server(
        "grpcs://localhost:0", ca=str(files.authority), cert=str(files.server),
        key=str(files.server_key),
    )  # fmt: skip
    async with server:
        port = int(server.addresses[0].rpartition(":")[2])
        async with NestClient("grpc", port=port, host="localhost", tls=tls_options()) as client:
            assert (await client.send("Sum", {"values": [1]})).value["total"] is not None


# ------------------------------------------------------------------- a Nest client, our server


def math_server(url: str = "grpc://127.0.0.1:0", **options: Any) -> Server:
    server = Server(url, telemetry=False, grace=0.5, proto=PROTO, **options)

    @server.message_pattern("Math/Sum")
    async def add(payload: dict[str, list[int]]) -> dict[str, int]:
        return {"total": sum(payload["values"])}

    @server.message_pattern("interop.Math/Echo")
    async def echo(payload: Any) -> Any:
        return payload

    @server.message_pattern("Math/Fail")
    async def fail(payload: dict[str, Any]) -> None:
        if payload["kind"] == "bug":
            raise KeyError("a secret")
        if payload["kind"] == "trailers":
            metadata = {"a": "b", "c-bin": b"\0\1"}
            raise RemoteError(payload={"code": 7, "message": "m", "metadata": metadata})
        if "code" in payload:
            raise RemoteError(payload={"code": payload["code"], "message": payload["message"]})
        raise RemoteError(payload["message"], code="E42")

    @server.message_pattern("Math/Delay")
    async def delay(payload: dict[str, int]) -> dict[str, int]:
        await asyncio.sleep(payload["ms"] / 1000)
        return {"total": payload["value"]}

    @server.message_pattern("Math/Metadata")
    async def metadata(context: Context) -> dict[str, Any]:
        return {"values": dict(context.headers)}

    @server.message_pattern("Math/Nothing")
    async def nothing() -> None:
        return None

    @server.message_pattern("Math/Count")
    async def count(payload: dict[str, Any]) -> AsyncIterator[dict[str, int]]:
        for i in range(payload["n"]):
            yield {"value": i}
        if payload["fail"]:
            raise RemoteError(payload={"code": 5, "message": "nope"})

    @server.message_pattern("Math/Gather")
    async def gather(given: AsyncIterator[dict[str, int]]) -> dict[str, int]:
        return {"total": sum([number["value"] async for number in given])}

    @server.message_pattern("Math/Double")
    async def double(given: AsyncIterator[dict[str, int]]) -> AsyncIterator[dict[str, int]]:
        async for number in given:
            yield {"value": 2 * number["value"]}

    return server


# What protobufjs makes of our bytes, with everything spelt out, and how it is written in JSON.
LOADER = {"longs": "String", "enums": "String", "bytes": "String"}


def as_nest(case: dict[str, Any]) -> dict[str, Any]:
    seen = {key: value for key, value in case.items() if value != EMPTY.get(key)}
    for key in ("int64Field", "uint64Field", "fixed64Field"):
        if key in seen:
            seen[key] = str(seen[key])
    if "bytesField" in seen:
        seen["bytesField"] = base64.b64encode(seen["bytesField"]).decode()
    if "nestedMap" in seen:
        seen["nestedMap"] = {str(key): value for key, value in seen["nestedMap"].items()}
    return seen


@asynccontextmanager
async def called_by_nest(version: int = 12, **settings: Any) -> AsyncIterator[NestClient]:
    async with math_server() as server:
        port = int(server.addresses[0].rpartition(":")[2])
        async with NestClient("grpc", port=port, version=version, **settings) as client:
            yield client


def without_defaults(value: Any) -> Any:
    """protobufjs leaves out what is empty; how deep it does so is its affair."""
    if isinstance(value, dict):
        cleaned = {key: without_defaults(item) for key, item in value.items()}
        return {key: item for key, item in cleaned.items() if item not in ("", 0, [], {}, None)}
    return [without_defaults(item) for item in value] if isinstance(value, list) else value


async def test_every_field_of_a_nest_clients_call_arrives_and_comes_back() -> None:
    async with called_by_nest(options={"loader": LOADER}) as client:
        for case in CASES:
            if case.get("doubleField") == float("inf"):
                continue  # the driver speaks JSON
            seen = (await client.send("Echo", as_nest(case))).value
            for field in ("maybeText", "maybeInt", "choiceText", "choiceInt"):
                if field in case:
                    assert seen[field] == case[field], case
            assert without_defaults(seen) == without_defaults(as_nest(case)), case


async def test_every_kind_of_method_of_ours_for_a_nest_client() -> None:
    async with called_by_nest(options={"loader": LOADER | {"defaults": True}}) as client:
        assert (await client.send("Sum", {"values": [1, 2, 3]})).value == {"total": "6"}
        record = {"requests": [{"value": 1}, {"value": 2}]}
        assert (await client.send("Gather", None, record=record)).value == {"total": "3"}
        doubled = await client.send("Double", None, record=record)
        assert doubled.values == [{"value": 2}, {"value": 4}]
        counted = await client.send("Count", {"n": 100})
        assert [each["value"] for each in counted.values] == list(range(100))
        assert (await client.send("Count", {"n": 0})).values == []
        assert (await client.send("Nothing", {})).value == {"total": "0"}
        torn = await client.send("Count", {"n": 2, "fail": True})
        assert ([each["value"] for each in torn.values], torn.error["code"]) == ([0, 1], 5)
        seen = await client.send(
            "Metadata", {}, metadata={"x-correlation-id": "n", "m": ["a", "b"]}
        )
        assert seen.value["values"]["x-correlation-id"] == "n"
        assert seen.value["values"]["m"] == "a, b"


async def test_our_errors_as_a_nest_client_sees_them() -> None:
    async with called_by_nest() as client:
        for data, code, details in (
            ({"message": "boom"}, 2, "boom"),
            ({"code": 5, "message": UNICODE}, 5, UNICODE),
            ({"kind": "bug"}, 2, "Internal server error"),
            ({"kind": "trailers"}, 7, "m"),
        ):
            answer = await client.send("Fail", data)
            assert answer.error["code"] == code, answer
            assert answer.error["message"].endswith(details), answer
        refused = await client.send("Sum", {})
        assert refused.complete, "an absent repeated field is an empty list"
        unknown = await client.send("Unimplemented", {})
        assert unknown.error["code"] == 12
        late = await client.send("Delay", {"ms": 5000}, record={"deadline": 200})
        assert late.error["code"] == 4


@pytest.mark.parametrize("version", [10, 11])
async def test_older_versions_of_nest_speak_the_same_both_ways(version: int) -> None:
    async with calling_nest(version) as client:
        case = {"int64Field": 2**53 + 1, "color": "COLOR_RED", "choiceInt": 0, "maybeText": ""}
        assert await client.send("Math/Echo", case) == EMPTY | case
        assert [n["value"] async for n in client.stream("Math/Count", {"n": 3})] == [0, 1, 2]
        assert await client.send("Math/Gather", numbers(1, 2)) == {"total": 3}
        error = await error_of(client.send("Math/Fail", {"code": 5, "message": "nope"}))
        assert (error.status, error.message) == (5, "nope")
    async with called_by_nest(version, options={"loader": LOADER}) as client:
        assert (await client.send("Sum", {"values": [1, 2, 3]})).value == {"total": "6"}
        assert (await client.send("Fail", {"code": 5, "message": "nope"})).error["code"] == 5
        assert len((await client.send("Count", {"n": 3})).values) == 3
