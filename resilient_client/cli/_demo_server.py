"""The demo's server process: `python -m resilient_client.cli._demo_server URL NAME OPTIONS`."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from typing import Any

from resilient_client.cli._demo_trace import Spans
from resilient_client.context import Context
from resilient_client.errors import RemoteError, ResilientClientError
from resilient_client.loops import fast_loop_factory
from resilient_client.server import Server

WORK = 0.08  # seconds that a call takes, so that a few are always in flight


def make(url: str, name: str, options: dict[str, Any]) -> Server:
    """The server: what a shop's stock service might answer."""
    spans = Spans(name)
    server = Server(url, telemetry=spans.telemetry, **options)
    orders = 0

    @server.message_pattern("demo.sum")
    async def add(numbers: list[int]) -> int:
        return sum(numbers)

    @server.message_pattern("demo.count")
    async def count(n: int) -> AsyncIterator[int]:
        for i in range(n):
            yield i

    @server.message_pattern("demo.read")
    async def read(item: int, context: Context) -> dict[str, Any]:
        await asyncio.sleep(WORK)
        return {"item": item, "by": name, "attempt": context.attempt}

    @server.message_pattern("demo.order")
    async def order(item: int, context: Context) -> dict[str, Any]:
        nonlocal orders
        await asyncio.sleep(WORK)
        orders += 1
        return {"item": item, "by": name, "attempt": context.attempt, "orders": orders}

    @server.message_pattern("demo.flaky")
    async def flaky(item: int, context: Context) -> int:
        if context.attempt == 1:
            raise RemoteError("come again", status=503)
        return item

    @server.event_pattern("demo.viewed")
    async def viewed(item: int) -> None:
        await asyncio.sleep(0)

    @server.message_pattern("demo.spans")
    async def told(trace_id: str) -> list[dict[str, Any]]:
        return spans.of(trace_id)

    @server.message_pattern("demo.who")
    async def who() -> dict[str, Any]:
        return {"name": name, "pid": os.getpid()}

    return server


async def main() -> None:
    """Serve until the demo's process, which holds standard input open, has gone."""
    url, name, options = sys.argv[1:]
    try:
        async with make(url, name, json.loads(options)) as server:
            print("READY", server.addresses[0], flush=True)
            await asyncio.to_thread(sys.stdin.read)
    except ResilientClientError as error:
        told = [type(error).__name__, str(error.args[0]), error.hint]
        print("FAILED", json.dumps(told), flush=True)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=fast_loop_factory()) as runner:
        runner.run(main())
