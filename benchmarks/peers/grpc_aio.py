"""grpc.aio's two ends with bytes for messages: `grpc_aio.py server`, `grpc_aio.py client ...`."""

from __future__ import annotations

import asyncio
import json
import sys

import grpc.aio

from benchmarks._contest import rate

METHOD = "/bench.Math/Sum"


async def serve() -> None:
    async def add(request: bytes, context: object) -> bytes:
        return b"%d" % sum(json.loads(request))

    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(add)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("bench.Math", {"Sum": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"READY grpc://127.0.0.1:{port}", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(0)


async def call(url: str, seconds: float, in_flight: list[int]) -> None:
    async with grpc.aio.insecure_channel(url.partition("://")[2]) as channel:
        add = channel.unary_unary(METHOD)

        async def send() -> None:
            assert await add(b"[1,2,3]", timeout=10) == b"6"

        await rate(send, 64, 0.5)
        print(json.dumps({number: await rate(send, number, seconds) for number in in_flight}))


if __name__ == "__main__":
    if sys.argv[1] == "server":
        asyncio.run(serve())
    else:
        asyncio.run(call(sys.argv[2], float(sys.argv[3]), [int(each) for each in sys.argv[4:]]))
