"""grpc:// with peers nobody here wrote: gRPC's own interoperability tests in Go, and grpcurl.

https://github.com/grpc/grpc/blob/master/doc/interop-test-descriptions.md
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from resilient_client import (
    ClientProxy,
    Context,
    DeadlineExceeded,
    NoHandlerError,
    Receipt,
    RemoteError,
    Server,
)
from tests.calls import error_of
from tests.peers.brokers import require_peer
from tests.peers.gogrpc import GoServer, go_missing, run

from .test_grpc import math_server

PROTO = Path(__file__).parent.parent / "interop" / "shared" / "testing.proto"
SERVICE = "grpc.testing.TestService"

pytestmark = pytest.mark.interop


@pytest.fixture(autouse=True)
def _go() -> None:
    require_peer(go_missing())


def interop_server() -> Server:
    """`TestService` as the interoperability tests want it."""
    server = Server("grpc://127.0.0.1:0", telemetry=False, proto=PROTO)

    async def echo_metadata(context: Context) -> None:
        initial = context.headers.get("x-grpc-test-echo-initial")
        if initial is not None:
            await context.raw.send_initial_metadata((("x-grpc-test-echo-initial", initial),))
        trailing = context.headers.get("x-grpc-test-echo-trailing-bin")
        if trailing is not None:
            value = base64.b64decode(trailing)
            context.raw.set_trailing_metadata((("x-grpc-test-echo-trailing-bin", value),))

    def fail_if_told(request: dict[str, Any]) -> None:
        if "responseStatus" in request:
            raise RemoteError(payload=request["responseStatus"])

    def zeros(size: int) -> dict[str, Any]:
        return {"payload": {"body": bytes(size)}}

    @server.message_pattern(f"{SERVICE}/EmptyCall")
    async def empty() -> None:
        return None

    @server.message_pattern(f"{SERVICE}/UnaryCall")
    async def unary(request: dict[str, Any], context: Context) -> dict[str, Any]:
        await echo_metadata(context)
        fail_if_told(request)
        return zeros(request["responseSize"])

    @server.message_pattern(f"{SERVICE}/StreamingOutputCall")
    async def streaming(request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        for wanted in request["responseParameters"]:
            yield zeros(wanted["size"])

    @server.message_pattern(f"{SERVICE}/StreamingInputCall")
    async def gathering(requests: AsyncIterator[dict[str, Any]]) -> dict[str, int]:
        return {"aggregatedPayloadSize": sum([len(r["payload"]["body"]) async for r in requests])}

    @server.message_pattern(f"{SERVICE}/FullDuplexCall")
    async def duplex(
        requests: AsyncIterator[dict[str, Any]], context: Context
    ) -> AsyncIterator[dict[str, Any]]:
        await echo_metadata(context)
        async for request in requests:
            fail_if_told(request)
            for wanted in request["responseParameters"]:
                await asyncio.sleep(wanted["intervalUs"] / 1_000_000)
                yield zeros(wanted["size"])

    return server


@pytest.mark.parametrize(
    "case",
    """empty_unary large_unary client_streaming server_streaming ping_pong empty_stream
    timeout_on_sleeping_server cancel_after_begin cancel_after_first_response
    status_code_and_message special_status_message custom_metadata unimplemented_method
    unimplemented_service""".split(),
)
async def test_our_server_passes_grpcs_interoperability_tests(case: str) -> None:
    async with interop_server() as server:
        port = server.addresses[0].rpartition(":")[2]
        code, output = await run(
            "client", "-server_host=127.0.0.1", f"-server_port={port}", f"-test_case={case}"
        )
    assert code == 0, output
    assert "done" in output.lower(), output


async def test_our_client_passes_them_against_the_go_server() -> None:
    server = GoServer()
    try:
        await server.start_async()
        url = f"grpc://127.0.0.1:{server.port}"
        async with ClientProxy(url, policies=(), telemetry=False, proto=PROTO) as client:
            assert await client.send(f"{SERVICE}/EmptyCall", {}) == {}
            assert await client.emit(f"{SERVICE}/EmptyCall", {}) == Receipt("accepted")
            assert (await client.emit(f"{SERVICE}/UnimplementedCall", {})).receivers == 0
            large = {"responseSize": 314159, "payload": {"body": bytes(271828)}}
            answer = await client.send("TestService/UnaryCall", large)
            assert answer["payload"]["body"] == bytes(314159)
            sizes = [27182, 8, 1828, 45904]
            chunks = [{"payload": {"body": bytes(size)}} for size in sizes]
            answer = await client.send(f"{SERVICE}/StreamingInputCall", chunks)
            assert answer == {"aggregatedPayloadSize": sum(sizes)}
            wanted = {"responseParameters": [{"size": size} for size in sizes]}
            got = client.stream(f"{SERVICE}/StreamingOutputCall", wanted)
            assert [len(each["payload"]["body"]) async for each in got] == sizes

            async def pings() -> AsyncIterator[dict[str, Any]]:
                for size in sizes:
                    yield {"responseParameters": [{"size": size}]}

            got = client.stream(f"{SERVICE}/FullDuplexCall", pings())
            assert [len(each["payload"]["body"]) async for each in got] == sizes
            assert [each async for each in client.stream(f"{SERVICE}/FullDuplexCall", [])] == []
            text = "\t\ntest with whitespace\r\nand Unicode BMP \u263a and non-BMP \U0001f608\t\n"
            for message in ("test status message", text):
                status = {"responseStatus": {"code": 2, "message": message}}
                error = await error_of(client.send(f"{SERVICE}/UnaryCall", status))
                assert (error.status, error.message) == (2, message)
            # Go's server knows no deadline of its own: the answer would take a second
            slow = {"responseParameters": [{"size": 1, "intervalUs": 1_000_000}]}
            error = await error_of(client.send(f"{SERVICE}/StreamingOutputCall", slow, timeout=0.1))
            assert isinstance(error, DeadlineExceeded)
            error = await error_of(client.send(f"{SERVICE}/UnimplementedCall", {}))
            assert isinstance(error, NoHandlerError)
            assert (await client.ping()).reachable
    finally:
        server.stop()


async def test_grpcurl_lists_describes_calls_and_asks_for_health() -> None:
    async with math_server() as server:
        address = server.addresses[0].removeprefix("grpc://")

        async def grpcurl(*arguments: str, data: Any = None) -> tuple[int, str]:
            told = () if data is None else ("-d", json.dumps(data))
            return await run("grpcurl", "-plaintext", *told, address, *arguments)

        assert (await grpcurl("list"))[1].split() == [
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection",
            "grpc.reflection.v1alpha.ServerReflection",
            "interop.Math",
            "resilient_client.Patterns",
        ]
        for symbol, text in (
            ("interop.Math", "rpc Double ( stream .interop.Number ) returns ( stream"),
            ("interop.Math.Sum", "rpc Sum ( .interop.Numbers ) returns ( .interop.Total )"),
            ("interop.Everything", "map<int32, .interop.Nested> nested_map = 16"),
            ("resilient_client.Patterns", "rpc Send"),
            ("grpc.reflection.v1.ServerReflection", "rpc ServerReflectionInfo"),
        ):
            code, output = await grpcurl("describe", symbol)
            assert code == 0, output
            assert text in output
        assert json.loads((await grpcurl("interop.Math/Sum", data={"values": [1, 2]}))[1]) == {
            "total": "3"
        }
        code, output = await grpcurl("interop.Math/Fail", data={"kind": "rich"})
        assert "FailedPrecondition" in output
        assert '"reason": "R"' in output
        for service in ("", "interop.Math"):
            code, output = await grpcurl("grpc.health.v1.Health/Check", data={"service": service})
            assert json.loads(output) == {"status": "SERVING"}
        code, output = await grpcurl("grpc.health.v1.Health/Check", data={"service": "x"})
        assert "NotFound" in output
