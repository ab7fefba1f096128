"""The service of the fault suite, a process of its own: `python -m tests.contract.service`."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from resilient_client import Context, Server
from resilient_client.loops import fast_loop_factory


def make(url: str, journal: str, options: dict[str, Any]) -> Server:
    server = Server(url, telemetry=False, grace=1.0, **options)

    def note(kind: str, value: Any) -> None:
        with Path(journal).open("ab", buffering=0) as file:
            file.write(json.dumps([kind, value]).encode() + b"\n")

    @server.message_pattern("fault.echo")
    async def echo(payload: Any) -> Any:
        return payload

    @server.message_pattern("fault.attempt")
    async def attempt(payload: Any, context: Context) -> list[Any]:
        return [payload, context.attempt]

    @server.message_pattern("fault.slow")
    async def slow(seconds: float, context: Context) -> float:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            note("cancelled", context.correlation_id)
            raise
        note("finished", context.correlation_id)
        return seconds

    @server.message_pattern("fault.count")
    async def count(n: int) -> Any:
        for i in range(n):
            yield i
            await asyncio.sleep(0.02)

    @server.message_pattern("fault.memory")
    async def memory() -> int:
        with Path("/proc/self/statm").open() as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    @server.event_pattern("fault.event")
    async def event(payload: Any) -> None:
        note("event", payload)

    @server.event_pattern("fault.slow_event")
    async def slow_event(payload: Any) -> None:
        note("slow_event_started", payload)
        await asyncio.sleep(0.5)
        note("slow_event", payload)

    return server


async def main(url: str, journal: str, options: dict[str, Any]) -> None:
    server = make(url, journal, options)
    async with server:
        print("READY", server.addresses[0], flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    _, url, journal, options, loop = sys.argv
    factory = fast_loop_factory() if loop == "uvloop" else None
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main(url, journal, json.loads(options)))
