"""A server that was closed may be started again, on every transport, and is as good as new."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from resilient_client import ClientProxy, Server

pytestmark = [pytest.mark.broker, pytest.mark.timeout(120)]

DIRECT = ["memory", "tcp", "http", "grpc"]
BROKERS = {
    "redis": "redis_broker",
    "nats": "nats_broker",
    "amqp": "rabbitmq_broker",
    "mqtt": "mqtt_broker",
    "kafka": "kafka_broker",
}


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
