"""A client that is closed leaves its calls, and their handlers are stopped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from resilient_client import ClientProxy, ConnectionLost, Server
from tests.waiting import eventually


@pytest.mark.broker
@pytest.mark.parametrize(
    "broker",
    [None, "redis_broker", "nats_broker", "mqtt_broker", "rabbitmq_broker", "kafka_broker"],
)
async def test_closing_a_client_stops_the_handlers_of_its_calls(
    broker: str | None, unique: str, request: pytest.FixtureRequest
) -> None:
    url = f"memory://{unique}" if broker is None else request.getfixturevalue(broker).url
    options: dict[str, Any] = {"queue": unique} if broker == "rabbitmq_broker" else {}
    server = Server(url, telemetry=False, grace=0.1, **options)
    began: list[str] = []

    @server.message_pattern(f"{unique}.values")
    async def values() -> AsyncIterator[int]:
        began.append("values")
        yield 1
        await asyncio.Event().wait()

    @server.message_pattern(f"{unique}.wait")
    async def wait() -> None:
        began.append("wait")
        await asyncio.Event().wait()

    async with server:
        client = ClientProxy(url, policies=(), telemetry=False, **options)

        async def read() -> None:
            async for _ in client.stream(f"{unique}.values"):
                continue

        calls = [
            asyncio.ensure_future(read()),
            asyncio.ensure_future(client.send(f"{unique}.wait", timeout=600)),
        ]
        await eventually(lambda: sorted(began) == ["values", "wait"])
        await client.aclose()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(each, ConnectionLost) for each in results), results
        await eventually(lambda: not server._app.running)
