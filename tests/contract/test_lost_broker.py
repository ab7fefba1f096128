"""A server that loses its broker for a while: what it had to say is said, and nothing left out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from resilient_client import ClientProxy, RemoteError, Server
from tests.calls import outcome
from tests.peers.brokers import Peer
from tests.peers.proxy import TcpProxy
from tests.waiting import eventually

pytestmark = [pytest.mark.broker]


@pytest.fixture(params=["redis", "nats", "mqtt"])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def broker(scheme: str, request: pytest.FixtureRequest) -> Peer:
    found: Peer = request.getfixturevalue(f"{scheme}_broker")
    return found


def client_of(scheme: str, broker: Peer, **options: Any) -> ClientProxy:
    return ClientProxy(f"{scheme}://127.0.0.1:{broker.port}", policies=(), **options)


async def test_a_reply_waits_for_a_broker_that_is_away_for_a_moment(
    scheme: str, broker: Peer, unique: str
) -> None:
    begun, done = asyncio.Event(), asyncio.Event()
    async with TcpProxy(broker.port) as way:
        server = Server(f"{scheme}://127.0.0.1:{way.port}")

        @server.message_pattern(unique)
        async def slow(n: int) -> int:
            begun.set()
            await done.wait()
            return n

        async with server, client_of(scheme, broker) as client:
            call = asyncio.create_task(client.send(unique, 7, timeout=20))
            await begun.wait()
            way.refuse()
            way.cut()
            listener: Any = server._listeners[0]
            await eventually(lambda: listener._link.current is None)
            done.set()
            await eventually(lambda: listener._link.dials > 3)  # and none of them has found it
            way.accept()
            assert await call == 7


async def test_a_stream_whose_server_lost_its_broker_ends_with_an_error_and_without_a_gap(
    scheme: str, broker: Peer, unique: str
) -> None:
    got: list[int] = []
    steps: asyncio.Queue[int] = asyncio.Queue()
    async with TcpProxy(broker.port) as way:
        server = Server(f"{scheme}://127.0.0.1:{way.port}")

        @server.message_pattern(unique)
        async def count() -> AsyncIterator[int]:
            while True:
                yield await steps.get()

        async with server, client_of(scheme, broker) as client:

            async def read() -> None:
                async for n in client.stream(unique, timeout=20):
                    got.append(n)  # noqa: PERF401  (one by one)

            reading = asyncio.create_task(outcome(read()))
            steps.put_nowait(1)
            await eventually(lambda: got == [1])
            way.blackhole("up")
            steps.put_nowait(2)  # which is written, and lost
            await eventually(steps.empty)
            await asyncio.sleep(0)
            listener: Any = server._listeners[0]
            connection = listener._link.current
            way.heal()
            await eventually(lambda: listener._link.current not in (None, connection))
            steps.put_nowait(3)
            error = await reading
    assert isinstance(error, RemoteError)
    assert error.status == 503
    assert got == [1]
