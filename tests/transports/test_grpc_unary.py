"""The short way of a unary call, and the public one where grpcio has no such."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from resilient_client import (
    ClientProxy,
    ConnectionLost,
    Context,
    DeadlineExceeded,
    RemoteError,
    Server,
)
from resilient_client.transports.grpc import _unary


@pytest.fixture(params=["short", "public"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "public":
        monkeypatch.setattr(_unary, "rpc_error", None)
    return str(request.param)


class Unlike:
    """A release of grpcio that has it otherwise."""

    async def unary_unary(self) -> None: ...


def begin_unlike(*arguments: Any) -> Unlike:
    if len(arguments) > 4:
        raise TypeError
    return Unlike()


def begin_otherwise(**arguments: Any) -> None: ...


@pytest.mark.parametrize("begin", [begin_unlike, begin_otherwise])
def test_a_release_that_has_it_otherwise_is_noticed(begin: Any) -> None:
    assert _unary._arguments(begin, b"/a/b") is None


@asynccontextmanager
async def pair() -> AsyncGenerator[tuple[asyncio.Event, ClientProxy]]:
    server = Server("grpc://127.0.0.1:0", telemetry=False, grace=0.5)
    cancelled = asyncio.Event()

    @server.message_pattern("add")
    async def add(numbers: list[int]) -> int:
        return sum(numbers)

    @server.message_pattern("header")
    async def header(name: str, context: Context) -> str | None:
        return context.headers.get(name)

    @server.message_pattern("fail")
    async def fail(payload: Any) -> None:
        raise RemoteError("no", code="NO")

    @server.message_pattern("slow")
    async def slow(payload: Any) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with server:
        client = ClientProxy(server.addresses[0], policies=(), telemetry=False)
        async with client:
            yield cancelled, client


def connection(client: ClientProxy) -> Any:
    transport: Any = client._transports[0]
    return transport._link.current


async def test_values_headers_and_errors_are_the_same_either_way(way: str) -> None:
    async with pair() as (_, client):
        assert await client.send("add", [1, 2, 3]) == 6
        assert await client.send("header", "x-tenant", headers={"x-tenant": "acme"}) == "acme"
        with pytest.raises(RemoteError, match="no") as caught:
            await client.send("fail")
        assert caught.value.code == "NO"
        known = [each is not None for each in connection(client)._unaries.values()]
        assert known == [way == "short"]
        assert not connection(client)._under_way


async def test_an_expired_call_is_cancelled_at_the_server(way: str) -> None:
    async with pair() as (cancelled, client):
        with pytest.raises(DeadlineExceeded):
            await client.send("slow", timeout=0.1)
        await asyncio.wait_for(cancelled.wait(), 2.0)
        assert not connection(client)._under_way


async def test_a_cancelled_call_is_cancelled_at_the_server(way: str) -> None:
    async with pair() as (cancelled, client):
        task = asyncio.ensure_future(client.send("slow"))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(cancelled.wait(), 2.0)
        assert not connection(client)._under_way


async def test_a_call_cancelled_before_it_began_leaves_nothing(way: str) -> None:
    async with pair() as (_, client):
        task = asyncio.ensure_future(client.send("add", [1]))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await client.send("add", [1, 2]) == 3


async def test_closing_the_client_ends_what_is_under_way(way: str) -> None:
    async with pair() as (_, client):
        task = asyncio.ensure_future(client.send("slow"))
        await asyncio.sleep(0.1)
        await client.aclose()
        with pytest.raises(ConnectionLost):
            await asyncio.wait_for(task, 2.0)
