"""Our two ends as processes: `ours server LOOP [URL]`, `ours client LOOP URL STACK SECONDS WHAT..`.

WHAT is a number of calls in flight; `cmd:` before it means an object for a pattern, `emit:` events.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from benchmarks._contest import rate
from resilient_client import ClientProxy, Server

OBJECT = {"cmd": "sum"}


async def serve(url: str) -> None:
    server = Server(url)

    if url.startswith("grpc"):

        @server.message_pattern("interop.Math/Sum")
        async def add_message(numbers: dict[str, list[int]]) -> dict[str, int]:
            return {"total": sum(numbers["values"])}

    @server.message_pattern(["bench.sum"] if url.startswith("kafka") else ["bench.sum", OBJECT])
    async def add(numbers: list[int]) -> int:
        return sum(numbers)

    if not url.startswith("kafka"):  # there the broker alone acknowledges: leave the cores to that

        @server.event_pattern("bench.event")
        async def event(numbers: list[int]) -> None: ...

    async with server:
        query = url.partition("?")[2]
        print("READY", f"{server.addresses[0]}?{query}".rstrip("?"), flush=True)
        await asyncio.to_thread(sys.stdin.read)


async def call(url: str, stack: str, seconds: float, whats: list[str]) -> None:
    settings: dict[str, Any] = {} if stack == "full" else {"policies": (), "telemetry": False}
    async with ClientProxy(url, **settings) as client:

        async def send() -> None:
            assert await client.send("bench.sum", [1, 2, 3], returns=int) == 6

        async def send_message() -> None:
            assert (await client.send("interop.Math/Sum", {"values": [1, 2, 3]}))["total"] == 6

        if url.startswith("grpc"):
            send = send_message

        async def send_object() -> None:
            assert await client.send(OBJECT, [1, 2, 3], returns=int) == 6

        async def emit() -> None:
            await client.emit("bench.event", [1, 2, 3])

        await rate(send, 64, 0.5)
        rates = {}
        for what in whats:
            kind, _, number = what.rpartition(":")
            work = {"emit": emit, "cmd": send_object}.get(kind, send)
            rates[what] = await rate(work, int(number), seconds)
        print(json.dumps(rates))


def main() -> None:
    role, loop, *rest = sys.argv[1:]
    factory = None
    if loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        if role == "server":
            runner.run(serve(rest[0] if rest else "tcp://127.0.0.1:0"))
        else:
            url, stack, seconds, *whats = rest
            runner.run(call(url, stack, float(seconds), whats))


if __name__ == "__main__":
    main()
