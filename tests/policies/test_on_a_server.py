"""The policies that a server takes, around its handlers."""

from __future__ import annotations

import asyncio

import pytest

from resilient_client import (
    Bulkhead,
    ClientProxy,
    DeadlineExceeded,
    RemoteError,
    Reply,
    Server,
    Throttled,
    Timeout,
)


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


@pytest.mark.parametrize(
    "url",
    ["memory://policies-late", "tcp://127.0.0.1:0", "http://127.0.0.1:0", "grpc://127.0.0.1:0"],
)
async def test_a_timeout_ends_a_stream_and_its_reader_hears_of_it(url):
    server = Server(url, policies=[Timeout(0.2)], telemetry=False)
    cancelled = asyncio.Event()

    @server.message_pattern("slow")
    async def slow():
        yield 1
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.set()

    async with server, ClientProxy(server.addresses[0], policies=(), telemetry=False) as client:
        got = []
        with pytest.raises(DeadlineExceeded, match="at the peer"):
            async for item in client.stream("slow", idle_timeout=30):
                got.append(item)  # noqa: PERF401
        assert got == [1]
        await asyncio.wait_for(cancelled.wait(), 10)
        await gone(server)


class Answers:
    """A policy that answers without asking the handler."""

    def __init__(self, answer):
        self.answer = answer

    def wrap(self, handler, clock, /):
        async def answers(call):
            return self.answer

        return answers


class Values:
    """A stream of a policy's own."""

    def __init__(self, *values):
        self.values = iter(values)
        self.closed = False

    async def receive(self, deadline):
        for value in self.values:
            return value
        raise StopAsyncIteration

    async def aclose(self):
        self.closed = True


@pytest.mark.parametrize("url", ["memory://policies-own-answer", "tcp://127.0.0.1:0"])
async def test_an_answer_of_a_policys_own_reaches_the_caller(url):
    values = Values({"n": 1}, {"n": 2})
    policy = Answers(Reply({"level": 3}, decoded=True))
    server = Server(url, policies=[policy], telemetry=False)

    @server.message_pattern("level")
    async def level() -> int:
        return 0

    async with server, ClientProxy(server.addresses[0], policies=(), telemetry=False) as client:
        for _ in range(2):  # the same object again, as a cache would give it
            assert await client.send("level") == {"level": 3}
        policy.answer = Reply(decoded=True)
        assert [item async for item in client.stream("level")] == []
        policy.answer = Reply(items=values, decoded=True)
        assert [item async for item in client.stream("level")] == [{"n": 1}, {"n": 2}]
        assert values.closed


@pytest.mark.parametrize("answer", [None, Reply({1}.__iter__, decoded=True)])
async def test_an_answer_that_a_policy_cannot_give_is_told_at_once(answer, caplog):
    server, client = pair("policies-no-answer", Answers(answer))

    @server.message_pattern("level")
    async def level() -> int:
        return 0

    async with server, client:
        with pytest.raises(RemoteError, match="Internal server error"):
            await client.send("level")
    assert "handler" in caplog.text


async def test_a_policy_sees_the_kind_of_a_call_and_its_idempotency_key():
    seen = []

    class Look:
        def wrap(self, handler, clock, /):
            def look(call):
                seen.append((call.kind, call.idempotency_key, call.idempotent))
                return handler(call)

            return look

    server, client = pair("policies-key", Look())

    @server.message_pattern("pay")
    async def pay() -> None: ...

    @server.event_pattern("paid")
    async def paid() -> None: ...

    async with server, client:
        await client.send("pay", idempotency_key="k")
        await client.send("pay")
        await client.emit("paid")
        await gone(server)
    assert seen == [("send", "k", True), ("send", None, False), ("emit", None, False)]
