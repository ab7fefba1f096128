"""Our client against a REST service as NestJS writes one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from resilient_client import (
    ClientProxy,
    DeadlineExceeded,
    ProtocolError,
    RemoteError,
    Retry,
    Throttled,
    Timeout,
)
from tests.peers.brokers import require_peer
from tests.peers.nest import NestServer, nest_missing

pytestmark = [pytest.mark.interop, pytest.mark.timeout(120)]


@dataclass
class User:
    id: str
    name: str


@asynccontextmanager
async def service(**settings: object) -> AsyncIterator[ClientProxy]:
    require_peer(nest_missing(12))
    async with NestServer("http") as nest:
        settings = {"policies": (), "telemetry": False, **settings}
        async with ClientProxy(f"http://127.0.0.1:{nest.port}", **settings) as client:  # type: ignore[arg-type]
            yield client


async def test_a_nest_controller_answers_our_client() -> None:
    async with service() as client:
        assert await client.send("GET /users/{id}", {"id": 1}, returns=User) == User(
            "1", "Zo\u00eb"
        )
        seen = await client.send("GET /users/{id}", {"id": 1, "full": "yes"})
        assert seen["query"] == {"full": "yes"}
        created = await client.send("POST /users", {"name": "Ada"}, returns=User)
        assert await client.send("GET /users/{id}", {"id": created.id}, returns=User) == created
        replaced = await client.send("PUT /users/{id}", {"id": created.id, "name": "Grace"})
        assert replaced == {"id": created.id, "name": "Grace"}
        assert await client.send("DELETE /users/{id}", {"id": created.id}) is None
        # Express sends a bare number as text/html: with a method it is taken for text
        assert await client.send("POST /sum", [1, 2, 3]) == "6"
        assert await client.send("POST /sum", [1, 2, 3], returns=int) == 6
        with pytest.raises(ProtocolError, match="not JSON"):
            await client.send("sum", [1, 2, 3])
        assert await client.send("echo", {"a": 1}) == {"a": 1}
        assert await client.send("GET /text", returns=str) == "gr\u00fc\u00dfe \U0001f600"
        assert await client.send("GET /empty") is None
        big = await client.send("GET /big/{size}", {"size": 1_000_000})
        assert len(big["text"]) == 1_000_000
        trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        headers = await client.send("GET /headers", headers={"traceparent": trace})
        assert headers["traceparent"] == trace


async def test_its_errors_are_told_apart() -> None:
    async with service() as client:
        for pattern, data, status, message in (
            ("GET /users/{id}", {"id": "none"}, 404, "no user none"),
            ("POST /users", {}, 400, "name must be a string"),
            ("GET /crash", None, 500, "Internal server error"),
        ):
            with pytest.raises(RemoteError) as caught:
                await client.send(pattern, data)
            assert type(caught.value) is RemoteError
            assert caught.value.status == status
            assert message in str(caught.value)
        with pytest.raises(Throttled) as throttled:
            await client.send("GET /busy/{seconds}", {"seconds": 2})
        assert throttled.value.retry_after == 2


async def test_a_failing_get_is_repeated() -> None:
    async with service(policies=[Timeout(10), Retry(attempts=3, factor=0.01)]) as client:
        assert await client.send("GET /flaky/{key}", {"key": "g", "failures": 2}) == {"calls": 3}


async def test_its_server_sent_events_are_a_stream() -> None:
    async with service() as client:
        values = [each async for each in client.stream("GET /count/{n}", {"n": 3})]
        assert values == [{"value": 0}, {"value": 1}, {"value": 2}]


async def test_leaving_a_call_closes_its_connection() -> None:
    async with service() as client:
        with pytest.raises(DeadlineExceeded):
            await client.send("GET /slow/{ms}", {"ms": 500}, timeout=0.2)
        await asyncio.sleep(0.6)
        assert await client.send("GET /streams") == {"started": 1, "ended": 0}
