"""A server that ends tells those who wait; started again, it is as good as new."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from resilient_client import ClientProxy, RemoteError, Server

pytestmark = [pytest.mark.broker, pytest.mark.timeout(120)]

DIRECT = ["memory", "tcp", "http", "grpc"]
BROKERS = {
    "redis": "redis_broker",
    "nats": "nats_broker",
    "amqp": "rabbitmq_broker",
    "mqtt": "mqtt_broker",
    "kafka": "kafka_broker",
}


@pytest.mark.parametrize("scheme", ["redis", "nats", "amqp", "mqtt"])
async def test_the_callers_of_what_a_servers_end_cuts_short_are_told_over_a_broker(
    scheme: str, request: pytest.FixtureRequest, unique: str
) -> None:
    url = request.getfixturevalue(BROKERS[scheme]).url
    options = {"queue": unique, "ack": False} if scheme == "amqp" else {}
    server = Server(url, telemetry=False, grace=0.1, **options)
    begun: asyncio.Queue[str] = asyncio.Queue()

    @server.message_pattern(f"{unique}.slow")
    async def slow() -> None:
        begun.put_nowait("slow")
        await asyncio.sleep(30)

    @server.message_pattern(f"{unique}.items")
    async def items() -> AsyncIterator[int]:
        yield 1
        begun.put_nowait("items")
        await asyncio.sleep(30)

    async with ClientProxy(url, policies=(), telemetry=False, **options) as client:
        async with server:

            async def second() -> None:
                stream = client.stream(f"{unique}.items")
                assert await anext(stream) == 1
                await anext(stream)

            calls = [asyncio.ensure_future(client.send(f"{unique}.slow", timeout=20)),
                     asyncio.ensure_future(second())]  # fmt: skip
            assert {await begun.get(), await begun.get()} == {"slow", "items"}
        for call in calls:
            with pytest.raises(RemoteError, match="The server was stopped") as caught:
                await asyncio.wait_for(call, 5)
            assert (caught.value.status, caught.value.sent) == (503, True)


@pytest.mark.parametrize("scheme", [*DIRECT, *BROKERS])
async def test_a_server_may_be_started_again(
    scheme: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url = "memory://again" if scheme == "memory" else f"{scheme}://127.0.0.1:0"
    if scheme in BROKERS:
        url = request.getfixturevalue(BROKERS[scheme]).url
    options = {"queue": "again"} if scheme == "amqp" else {}
    server = Server(url, telemetry=False, grace=5.0, **options)
    begun = asyncio.Event()

    @server.message_pattern("again.slow")
    async def slow(seconds: float) -> str:
        begun.set()
        await asyncio.sleep(seconds)
        return "answered"

    for life in range(2):
        begun.clear()
        await server.start()
        where = server.addresses[0] if scheme in DIRECT else url
        async with ClientProxy(where, policies=(), telemetry=False, **options) as client:
            assert await client.send("again.slow", 0.0) == "answered", life
            begun.clear()
            call = asyncio.ensure_future(client.send("again.slow", 0.3))
            await begun.wait()
            await server.aclose()
            assert await call == "answered", f"life {life}: it drains"
