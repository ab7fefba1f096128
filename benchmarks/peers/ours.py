"""Our two ends as processes: `ours server LOOP`, `ours client LOOP URL STACK SECONDS N..`."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

from resilient_client import ClientProxy, Server


async def serve() -> None:
    server = Server("tcp://127.0.0.1:0")

    @server.message_pattern({"cmd": "sum"})
    async def add(numbers: list[int]) -> int:
        return sum(numbers)

    async with server:
        print("READY", server.addresses[0], flush=True)
        await asyncio.to_thread(sys.stdin.read)


async def call(url: str, stack: str, seconds: float, in_flight: list[int]) -> None:
    settings: dict[str, Any] = {} if stack == "full" else {"policies": (), "telemetry": False}
    async with ClientProxy(url, **settings) as client:

        async def run(number: int, seconds: float) -> float:
            began = time.perf_counter()
            end = began + seconds
            calls = 0

            async def caller() -> None:
                nonlocal calls
                while time.perf_counter() < end:
                    assert await client.send({"cmd": "sum"}, [1, 2, 3], returns=int) == 6
                    calls += 1

            await asyncio.gather(*(caller() for _ in range(number)))
            return calls / (time.perf_counter() - began)

        await run(64, 0.5)
        print(json.dumps({number: await run(number, seconds) for number in in_flight}))


def main() -> None:
    role, loop, *rest = sys.argv[1:]
    factory = None
    if loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        if role == "server":
            runner.run(serve())
        else:
            url, stack, seconds, *in_flight = rest
            runner.run(call(url, stack, float(seconds), [int(each) for each in in_flight]))


if __name__ == "__main__":
    main()
