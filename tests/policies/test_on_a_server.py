"""The policies that a server takes, around its handlers."""

from __future__ import annotations

import asyncio

import pytest

from resilient_client import Bulkhead, ClientProxy, DeadlineExceeded, Server, Throttled, Timeout


def pair(name, *policies):
    server = Server(f"memory://{name}", policies=policies, telemetry=False)
    return server, ClientProxy(f"memory://{name}", policies=(), telemetry=False)


async def gone(server):
    """Wait until no handler runs."""
    async with asyncio.timeout(10):
        while server._app.running:
            await asyncio.sleep(0)


async def test_a_bulkhead_refuses_what_does_not_fit_as_throttled():
    server, client = pair("policies-bulkhead", Bulkhead(1))
    go, started = asyncio.Event(), asyncio.Event()

    @server.message_pattern("wait")
    async def wait() -> int:
        started.set()
        await go.wait()
        return 1

    async with server, client:
        first = asyncio.ensure_future(client.send("wait"))
        await asyncio.wait_for(started.wait(), 10)
        with pytest.raises(Throttled):
            await client.send("wait")
        go.set()
        assert await first == 1
        assert await client.send("wait") == 1


@pytest.mark.parametrize("leave", ["end", "error", "break"])
async def test_a_stream_holds_its_slot_until_it_has_ended(leave):
    server, client = pair(f"policies-stream-{leave}", Bulkhead(1))

    @server.message_pattern("count")
    async def count(n: int):
        for i in range(n):
            yield i
            await asyncio.sleep(0)
        if leave == "error":
            raise ValueError("torn")

    async with server, client:
        for _ in range(3):
            async with client.stream("count", 50) as items:
                assert await anext(items) == 0
                with pytest.raises(Throttled):
                    await client.send("count", 1)
                if leave == "end":
                    assert len([item async for item in items]) == 49
                elif leave == "error":
                    with pytest.raises(Exception, match="Internal server error"):
                        [item async for item in items]
            await gone(server)


async def test_an_event_handler_that_yields_holds_its_slot_until_it_has_ended():
    server, client = pair("policies-event", Bulkhead(1))
    seen = []

    @server.event_pattern("happened")
    async def happened(n: int):
        seen.append(n)
        yield n

    async with server, client:
        for n in range(3):
            await client.emit("happened", n)
            async with asyncio.timeout(10):
                while len(seen) <= n:
                    await asyncio.sleep(0)
            await gone(server)
    assert seen == [0, 1, 2]


async def test_a_timeout_cancels_the_handler_and_the_caller_hears_of_it():
    server, client = pair("policies-timeout", Timeout(0.05))
    cancelled = asyncio.Event()

    @server.message_pattern("slow")
    async def slow() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with server, client:
        with pytest.raises(DeadlineExceeded):
            await client.send("slow", timeout=30)
        await asyncio.wait_for(cancelled.wait(), 10)
