"""A server that asks grpcio for several calls at once; grpcio's own where that cannot be had."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from resilient_client import ClientProxy, Context, Server
from resilient_client.transports.grpc import _accepting
from resilient_client.transports.grpc._library import aio, grpc
from tests.transports.test_grpc import PROTO

_CALLERS = 60
NUMBERS = b"\x0a\x03\x01\x02\x03"  # {"values": [1, 2, 3]}


@pytest.fixture(params=["several", "public"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "public":
        monkeypatch.setattr(_accepting, "_fits", lambda: False)
    return str(request.param)


def test_the_pinned_release_of_grpcio_has_what_it_takes() -> None:
    assert _accepting._fits()


async def test_a_release_that_has_it_otherwise_gets_the_public_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Otherwise:
        def _make_request_call_future(self, how: str, many: int) -> None: ...

    def is_public() -> bool:
        return type(_accepting.new_server([], None)) is type(aio.server())

    assert not is_public()
    with monkeypatch.context() as patch:
        patch.setattr(_accepting, "cygrpc", None)
        assert is_public()
    with monkeypatch.context() as patch:
        patch.setattr(_accepting.cygrpc, "_handle_rpc", Otherwise()._make_request_call_future)
        assert is_public()
    with monkeypatch.context() as patch:  # only its constructor tells

        def refuse(*arguments: object) -> None:
            raise TypeError("it takes 7 arguments")

        patch.setattr(_accepting, "_Accepting", refuse)
        assert is_public()


async def test_calls_of_every_shape_are_answered_side_by_side(way: str) -> None:
    server = Server("grpc://127.0.0.1:0", telemetry=False)

    @server.message_pattern("add")
    async def add(numbers: list[int], context: Context) -> int:
        await asyncio.sleep(0.01 * (numbers[0] % 3))
        return sum(numbers)

    @server.message_pattern("count")
    async def count(n: int) -> Any:
        for i in range(n):
            yield i

    heard: Counter[int] = Counter()

    @server.event_pattern("heard")
    async def event(number: int) -> None:
        heard[number] += 1

    async with server, ClientProxy(server.addresses[0]) as client:
        answers = await asyncio.gather(*(client.send("add", [i, 1]) for i in range(300)))
        assert answers == [i + 1 for i in range(300)]

        async def values(n: int) -> list[int]:
            return [value async for value in client.stream("count", n)]

        streams = await asyncio.gather(*(values(n) for n in range(30)))
        assert streams == [list(range(n)) for n in range(30)]
        await asyncio.gather(*(client.emit("heard", i) for i in range(100)))
    assert heard == Counter(range(100))


async def test_a_server_that_stops_under_load_tells_the_truth_to_foreign_callers() -> None:
    """Who was answered was handled, and who was handled is answered; the others may ask again."""
    handled = 0
    server = Server(f"grpc://127.0.0.1:0?proto={PROTO}", telemetry=False)

    @server.message_pattern("interop.Math/Sum")
    async def add(numbers: dict[str, list[int]]) -> dict[str, int]:
        nonlocal handled
        handled += 1
        return {"total": sum(numbers["values"])}

    told: Counter[str] = Counter()
    details: set[str] = set()
    begun = asyncio.Event()
    async with aio.insecure_channel(await _started(server)) as channel:
        call = channel.unary_unary("/interop.Math/Sum")

        async def caller() -> None:
            try:
                while True:
                    await call(NUMBERS, timeout=5.0)
                    told["OK"] += 1
                    if told["OK"] > 200:
                        begun.set()
            except aio.AioRpcError as error:
                told[error.code().name] += 1
                details.add(str(error.details()))

        callers = [asyncio.create_task(caller()) for _ in range(_CALLERS)]
        await begun.wait()
        await server.aclose()
        await asyncio.wait_for(asyncio.gather(*callers), 6.0)
    assert told["OK"] == handled
    assert told["RESOURCE_EXHAUSTED"] > 0
    assert "Cancelling all calls" not in details  # some were cut off instead of refused
    # the library cuts off a stream that begins while it shuts down; it was not handled either
    assert set(told) <= {"OK", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "CANCELLED"}
    assert told.total() - told["OK"] == _CALLERS


async def test_what_arrived_but_was_not_looked_at_is_refused_when_the_server_stops(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of any shape: also where the caller has not sent a message yet."""
    # what is asked for is kept from the main loop, as if that were late
    monkeypatch.setattr(_accepting._Accepting, "_waiting", lambda self: None)
    server = Server("grpc://127.0.0.1:0", telemetry=False)
    async with aio.insecure_channel(await _started(server)) as channel:
        unary = channel.unary_unary("/any.Service/Unary")(b"")
        stream = channel.stream_stream("/any.Service/Stream")()
        await stream.wait_for_connection()
        while len(_core(server)._arrived) < 2:
            await asyncio.sleep(0.01)
        monkeypatch.undo()
        await server.aclose()
        for each in (unary, stream):
            assert await each.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert ("grpc-retry-pushback-ms", "100") in tuple(await each.trailing_metadata())


async def test_no_task_stays_behind(way: str) -> None:
    before = asyncio.all_tasks()
    server = Server("grpc://127.0.0.1:0", telemetry=False)
    async with server, ClientProxy(server.addresses[0]) as client:
        await client.ping()
    assert asyncio.all_tasks() == before


async def _started(server: Server) -> str:
    await server.start()
    return server.addresses[0].partition("://")[2].partition("?")[0]


def _core(server: Server) -> Any:
    [listener] = server._listeners
    return listener._server._server
