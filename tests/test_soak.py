"""Many calls at once and many in a row: memory stays flat and nothing is left. `make soak`."""

from __future__ import annotations

import asyncio
import gc
import os
from pathlib import Path

import pytest

from resilient_client import Bulkhead, ClientProxy, Server, standard

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def resident() -> int:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def echo_server() -> Server:
    server = Server(
        "tcp://127.0.0.1:0", max_calls=20_000, max_calls_per_connection=20_000, telemetry=False
    )

    @server.message_pattern("echo")
    async def echo(payload: int) -> int:
        return payload

    @server.message_pattern("wait")
    async def wait(payload: int) -> int:
        await gate.wait()
        return payload

    gate = asyncio.Event()
    server.open_gate = gate.set  # type: ignore[attr-defined]
    return server


async def test_ten_thousand_pending_calls_are_held_and_all_answered() -> None:
    server = echo_server()
    async with server:
        stack = standard(bulkhead=Bulkhead(pending=20_000), timeout=300, attempt_timeout=None)
        async with ClientProxy(server.addresses[0], policies=stack) as client:
            await client.send("echo", 1)
            before = resident()
            calls = [asyncio.ensure_future(client.send("wait", n)) for n in range(10_000)]
            await asyncio.sleep(3)
            held = resident() - before
            server.open_gate()  # type: ignore[attr-defined]
            assert await asyncio.gather(*calls) == list(range(10_000))
            assert held < 200 * 1024 * 1024, f"{held / 10_000:.0f} bytes for each of both ends"
            del calls
            assert len(client._transports[0]._link.current.replies) == 0  # type: ignore[attr-defined]


async def test_two_hundred_thousand_calls_in_a_row_leave_memory_flat_and_no_task() -> None:
    async with echo_server() as server, ClientProxy(server.addresses[0]) as client:
        tasks = asyncio.all_tasks()

        async def calls(number: int) -> None:
            for n in range(number):
                assert await client.send("echo", n) == n

        await asyncio.gather(*(calls(500) for _ in range(20)))
        before = resident()
        await asyncio.gather(*(calls(10_000) for _ in range(20)))
        assert resident() - before < 16 * 1024 * 1024
        assert asyncio.all_tasks() == tasks
