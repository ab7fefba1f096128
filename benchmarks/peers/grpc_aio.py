"""grpc.aio, bytes or messages: `grpc_aio KIND server`, `grpc_aio KIND client URL SECONDS N..`."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import grpc.aio
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from benchmarks._contest import rate

METHOD = "/bench.Math/Sum"


def messages() -> tuple[Any, Any]:
    """The classes that protoc would generate."""
    file = descriptor_pb2.FileDescriptorProto(name="bench.proto", package="bench", syntax="proto3")
    field = descriptor_pb2.FieldDescriptorProto
    file.message_type.add(name="Numbers").field.add(
        name="values", number=1, type=field.TYPE_INT32, label=field.LABEL_REPEATED
    )
    file.message_type.add(name="Total").field.add(
        name="total", number=1, type=field.TYPE_INT64, label=field.LABEL_OPTIONAL
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    numbers, total = (
        message_factory.GetMessageClass(pool.FindMessageTypeByName(f"bench.{name}"))
        for name in ("Numbers", "Total")
    )
    return numbers, total


async def serve(kind: str) -> None:
    if kind == "bytes":

        async def add(request: bytes, context: object) -> bytes:
            return b"%d" % sum(json.loads(request))

        handler = grpc.unary_unary_rpc_method_handler(add)
    else:
        numbers, total = messages()

        async def add_message(request: Any, context: object) -> Any:
            return total(total=sum(request.values))

        handler = grpc.unary_unary_rpc_method_handler(
            add_message,
            request_deserializer=numbers.FromString,
            response_serializer=total.SerializeToString,
        )
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("bench.Math", {"Sum": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"READY grpc://127.0.0.1:{port}", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(0)


async def call(kind: str, url: str, seconds: float, in_flight: list[str]) -> None:
    async with grpc.aio.insecure_channel(url.partition("://")[2]) as channel:
        if kind == "bytes":
            add = channel.unary_unary(METHOD)

            async def send() -> None:
                assert await add(b"[1,2,3]", timeout=10) == b"6"
        else:
            numbers, total = messages()
            add = channel.unary_unary(
                METHOD,
                request_serializer=numbers.SerializeToString,
                response_deserializer=total.FromString,
            )

            async def send() -> None:
                assert (await add(numbers(values=[1, 2, 3]), timeout=10)).total == 6

        await rate(send, 64, 0.5)
        print(json.dumps({number: await rate(send, int(number), seconds) for number in in_flight}))


if __name__ == "__main__":
    _, kind, role, *rest = sys.argv
    if role == "server":
        asyncio.run(serve(kind))
    else:
        asyncio.run(call(kind, rest[0], float(rest[1]), rest[2:]))
