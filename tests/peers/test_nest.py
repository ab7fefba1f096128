"""The NestJS peers themselves: each version serves and calls on each transport."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import pytest

from tests.peers.brokers import Mosquitto, Nats, Peer, Redis, require_peer
from tests.peers.nest import (
    VERSIONS,
    NestClient,
    NestServer,
    nest_missing,
    server_tls_options,
    tls_options,
)

# The suites of the transports would fail first: these say whose fault it is.
pytestmark = [pytest.mark.interop, pytest.mark.slow, pytest.mark.timeout(600)]

FIXTURES = {
    "redis": "redis_broker",
    "nats": "nats_broker",
    "rmq": "rabbitmq_broker",
    "mqtt": "mqtt_broker",
    "kafka": "kafka_broker",
}


def require_nest(version: int) -> None:
    require_peer(nest_missing(version))


def test_a_nest_server_answers_a_raw_socket() -> None:
    require_nest(12)
    with (
        NestServer("tcp") as server,
        socket.create_connection((server.host, server.port), 5) as raw,
    ):
        raw.sendall(b'47#{"pattern":{"cmd":"sum"},"data":[1,2],"id":"1"}')
        assert raw.recv(1000) == b'41#{"response":3,"isDisposed":true,"id":"1"}'


async def test_a_nest_server_is_killed_and_comes_back_on_its_port() -> None:
    require_nest(12)
    async with NestServer("tcp") as server, NestClient("tcp", port=server.port) as client:
        first = (await client.send({"cmd": "whoami"}, {})).value["pid"]
        assert first == server.pid
        server.kill()
        failed = await client.send({"cmd": "whoami"}, {})
        assert (failed.error_name, failed.values) == ("Error", [])
        await server.restart_async()
        assert (await client.send({"cmd": "whoami"}, {})).value["pid"] == server.pid != first


async def test_a_nest_client_reports_values_errors_and_timeouts() -> None:
    require_nest(12)
    async with NestServer("tcp") as server, NestClient("tcp", port=server.port) as client:
        slow = asyncio.create_task(client.send("delay", {"ms": 300, "value": "late"}))
        assert (await client.send("delay", {"ms": 0, "value": "soon"})).value == "soon"
        assert (await slow).value == "late"
        assert (await client.send("observable_late", {})).values == [1, 2, 3]
        empty = await client.send("observable_empty", {})
        assert (empty.values, empty.complete) == ([], True)
        broken = await client.send("observable_error", {})
        assert broken.values == [1, 2]
        assert broken.error == {"code": "E42", "message": "boom", "status": 422}
        assert broken.error_name is None
        assert (await client.send("bigint", {}, timeout=0.3)).error_name == "TimeoutError"
        assert (await client.send("count", 100, take=2)).values == [0, 1]
        assert (await client.send(42, {})).value == "forty-two"
        nested = {"b": 2, "svc": "n", "a": {"d": "x", "c": 1}}
        assert (await client.send(nested, {})).value == "nested"
        assert (await client.send("sum", None)).error_name == "Error"  # Nest refuses null


@pytest.mark.broker
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("transport", ["tcp", *FIXTURES])
async def test_a_nest_client_calls_a_nest_server(
    transport: str, version: int, unique: str, request: pytest.FixtureRequest
) -> None:
    require_nest(version)
    broker = None
    settings: dict[str, Any] = {"prefix": f"{unique}-"}
    if transport in FIXTURES:
        broker = request.getfixturevalue(FIXTURES[transport]).url
    if transport == "rmq":
        settings["queue"] = unique
    if transport == "kafka":
        settings["handlers"] = names = ["sum", "echo", "observable_late", "rpc_object", "metadata"]
        names += ["events", "user_created"]
    client_settings = dict(settings)
    if transport == "kafka":
        client_settings["patterns"] = [f"{unique}-{name}" for name in names[:-1]]
    async with NestServer(transport, broker, version=version, **settings) as server:
        port = server.port if broker is None else None
        async with NestClient(
            transport, broker, port=port, version=version, **client_settings
        ) as client:
            await exercise(client, transport, version, unique)
            assert not client.unhandled
    assert not server.running


async def exercise(client: NestClient, transport: str, version: int, unique: str) -> None:
    def named(name: str) -> Any:
        return f"{unique}-{name}" if transport == "kafka" else {"cmd": f"{unique}-{name}"}

    numbers_survive = transport != "kafka"
    total = (await client.send(named("sum"), [1, 2, 3])).value
    assert total == (6 if numbers_survive else "6")
    echo = {"text": "grüße 😀", "list": [1, None, {"deep": True}]}
    assert (await client.send(named("echo"), echo)).value == echo
    late = (await client.send(named("observable_late"), {})).values
    assert [int(value) for value in late if value is not None] == [1, 2, 3]
    failed = await client.send(named("rpc_object"), {})
    assert failed.error == {"code": "E42", "message": "boom", "status": 422}

    metadata = {"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"}
    seen = (await client.send(named("metadata"), {"x": 1}, metadata=metadata)).value
    readable = transport not in ("tcp", "redis") or version == 12
    assert seen.get("traceparent") == (metadata["traceparent"] if readable else None)

    event = f"{unique}-user_created"
    assert (await client.emit(event, {"run": unique, "name": "Zoë"}, metadata=metadata)).complete
    async with asyncio.timeout(10):
        while not (events := (await client.send(named("events"), {"run": unique})).value):
            await asyncio.sleep(0.02)
    (recorded,) = events
    assert recorded["data"] == {"run": unique, "name": "Zoë"}


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_nest_client_calls_a_nest_server_by_grpc(version: int) -> None:
    require_nest(version)
    async with (
        NestServer("grpc", version=version) as server,
        NestClient("grpc", port=server.port, version=version) as client,
    ):
        assert (await client.send("Sum", {"values": [1, 2, 3]})).value == {"total": "6"}
        numbers = [{"value": number} for number in (1, 2, 3)]
        assert (await client.send("Count", {"n": 4})).values[1:] == numbers
        doubled = await client.send("Double", record={"requests": numbers})
        assert [item["value"] for item in doubled.values] == [2, 4, 6]
        for method in ("Gather", "GatherCall"):
            gathered = await client.send(method, record={"requests": numbers})
            assert gathered.value == {"total": "6"}
        failed = await client.send("Fail", {"code": 5, "message": "nope"})
        assert (failed.error["code"], failed.error["details"]) == (5, "nope")
        failed = await client.send("Fail", {"code": 14, "message": "busy", "kind": "trailers"})
        assert failed.error["metadata"]["retry-after-ms"] == "250"
        assert (await client.send("Unimplemented", {})).error["code"] == 12
        late = await client.send("Delay", {"ms": 5000}, record={"deadline": 100})
        assert late.error["code"] == 4
        seen = await client.send("Metadata", {}, metadata={"x-one": "1", "x-two": ["a", "b"]})
        assert seen.value["values"]["x-two"] == "a, b"
        everything = {"textField": "grüße", "int64Field": "9007199254740993", "maybeInt": 0}
        everything |= {"color": "COLOR_BLUE", "choiceInt": 7, "mapField": {"a": 1}}
        echoed = (await client.send("Echo", everything)).value
        assert everything.items() <= echoed.items()


async def test_a_nest_service_passes_a_trace_on_to_the_next() -> None:
    require_nest(12)
    trace = {"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"}
    async with (
        NestServer("tcp") as last,
        NestServer("tcp") as first,
        NestClient("tcp", port=first.port) as client,
    ):
        to = {"transport": "tcp", "port": last.port}
        data = {"to": to, "pattern": {"cmd": "metadata"}, "data": {"x": 1}}
        assert (await client.send("forward", data, metadata=trace)).value == trace


async def test_the_rest_service_answers_and_fails_as_http_services_do() -> None:
    require_nest(12)
    async with NestServer("http") as server:
        status, headers, body = await get(server.port, "/users/1?full=yes")
        assert (status, body) == (200, {"id": "1", "name": "Zoë", "query": {"full": "yes"}})
        assert (await get(server.port, "/users/none"))[0] == 404
        assert (await get(server.port, "/crash"))[2]["message"] == "Internal server error"
        status, headers, body = await get(server.port, "/busy/2")
        assert (status, headers["retry-after"]) == (429, "2")
        assert [(await get(server.port, "/flaky/k?failures=1"))[0] for _ in "ab"] == [503, 200]
        status, _, body = await get(server.port, "/users", "POST", {"name": "Ada"})
        assert (status, body) == (201, {"name": "Ada", "id": "new-1"})
        assert (await get(server.port, "/users", "POST", {}))[0] == 400
        assert (await get(server.port, "/sum", "POST", [1, 2]))[2] == 3


async def get(
    port: int, path: str, method: str = "GET", body: Any = None
) -> tuple[int, dict[str, str], Any]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    content = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    writer.write(head.encode() + content)
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    top, _, rest = answer.partition(b"\r\n\r\n")
    status, *lines = top.decode().split("\r\n")
    headers = {key.lower(): value for key, value in (line.split(": ", 1) for line in lines)}
    return int(status.split()[1]), headers, json.loads(rest)


@pytest.mark.broker
@pytest.mark.parametrize("transport", ["tcp", "grpc", "redis", "nats", "mqtt", "rmq"])
async def test_nest_peers_speak_tls(
    transport: str, unique: str, request: pytest.FixtureRequest
) -> None:
    require_nest(12)
    kinds: dict[str, type[Peer]] = {"redis": Redis, "nats": Nats, "mqtt": Mosquitto}
    broker = None
    settings: dict[str, Any] = {"queue": unique, "prefix": f"{unique}-"}
    if transport == "rmq":
        broker = request.getfixturevalue("rabbitmq_broker").tls_url
    elif transport in kinds:
        options = {"tls": True, "client_certificates": True}
        broker = request.getfixturevalue("new_broker")(kinds[transport], **options).url
    server_tls = tls_options() if broker else server_tls_options(client_required=True)
    async with NestServer(transport, broker, tls=server_tls, **settings) as server:
        port = server.port if broker is None else None
        async with NestClient(
            transport, broker, port=port, tls=tls_options(), **settings
        ) as client:
            if transport == "grpc":
                assert (await client.send("Sum", {"values": [1, 2]})).value == {"total": "3"}
            else:
                answer = await client.send({"cmd": f"{unique}-sum"}, [1, 2], timeout=30)
                assert answer.value == 3
