from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from resilient_client import ClientProxy, Retry
from resilient_client.errors import (
    ConfigurationError,
    ConnectError,
    ConnectionLost,
    DeadlineExceeded,
    NoHandlerError,
    Overloaded,
    PayloadError,
    RemoteError,
    ReplyTimeout,
)
from resilient_client.message import NO_VALUE, Receipt, Reply
from resilient_client.policies import Timeout
from resilient_client.policies.circuit_breaker import CircuitBreaker
from resilient_client.testing import NEVER, Delayed, FakeClock, ScriptedTransport, Streamed


def client_of(answers, *policies, **given):
    peer = ScriptedTransport(answers, **given)
    clock = FakeClock(autojump=True)
    return ClientProxy(peer, policies=policies, clock=clock, telemetry=False), peer, clock


async def test_values_come_back_typed_as_from_a_real_peer():
    client, peer, _ = client_of([[1, 2], "text", NO_VALUE, None])
    async with client:
        assert await client.send("p", returns=list[int]) == [1, 2]
        with pytest.raises(PayloadError):
            await client.send("p", returns=int)
        assert await client.send("p") is None
        assert await client.send("p") is None
    assert client.status == "closed"
    assert [request.outcome for request in peer.requests] == ["answered"] * 4


async def test_it_remembers_what_it_was_asked():
    client, peer, _ = client_of([1, Receipt("stored", 2)])
    await client.send({"cmd": "sum"}, [1, 2], headers={"x-a": "b"}, timeout=5)
    assert await client.emit("event", 1) == Receipt("stored", 2)
    asked, told = peer.requests
    assert (asked.kind, asked.route, asked.data) == ("send", '{"cmd":"sum"}', [1, 2])
    assert (asked.metadata["x-a"], asked.metadata["x-deadline-ms"]) == ("b", "5000")
    assert (asked.attempt, asked.at, asked.remaining, asked.limit) == (1, 1000, 5, 5)
    assert (told.kind, told.route) == ("emit", "event")


async def test_errors_say_what_was_sent():
    client, _, _ = client_of([ConnectError("refused"), ConnectionLost, ValueError("bug")])
    for error, sent in ((ConnectError, False), (ConnectionLost, True)):
        with pytest.raises(error) as caught:
            await client.send("p")
        assert caught.value.sent is sent
    with pytest.raises(ValueError, match="bug"):
        await client.send("p")


@pytest.mark.parametrize("kind", ["send", "stream"])
async def test_an_attempt_that_took_a_while_to_be_never_sent_was_not(kind):
    nobody = NoHandlerError("nobody is subscribed", sent=False)
    first = Delayed(1, nobody) if kind == "send" else Streamed(Delayed(1, nobody))
    client, *_ = client_of([first, Overloaded("full")], Retry())
    with pytest.raises(Overloaded) as caught:
        await (client.send("p") if kind == "send" else anext(client.stream("p")))
    assert not caught.value.sent
    assert [attempt.sent for attempt in caught.value.attempts] == [False, False]


async def test_answers_take_their_time_and_deadlines_are_obeyed():
    client, peer, clock = client_of([Delayed(4, 1), NEVER, Delayed(6, 1), Delayed(6, 1)])
    assert await client.send("p", timeout=5) == 1
    assert clock.now() == 1004
    for _ in range(2):
        with pytest.raises(DeadlineExceeded) as caught:
            await client.send("p", timeout=5)
        assert caught.value.sent
    assert clock.now() == 1014
    assert clock.sleeps == []
    assert peer.requests[-1].outcome == "DeadlineExceeded"


async def test_an_attempts_own_limit_is_obeyed_while_connecting_and_while_waiting():
    client, _, clock = client_of(
        [Delayed(2, 1), Delayed(2, 1, connecting=True)], CircuitBreaker(), Timeout(1)
    )
    with pytest.raises(ReplyTimeout):
        await client.send("p")
    with pytest.raises(ConnectError) as caught:
        await client.send("p")
    assert not caught.value.sent
    assert clock.now() == 1002


async def test_streams_play_values_delays_and_errors():
    client, peer, clock = client_of(
        [Streamed(1, Delayed(3, 2), RemoteError("torn")), Streamed(), Streamed(RemoteError("no"))]
    )
    got = []
    with pytest.raises(RemoteError, match="torn"):
        async for item in client.stream("p", returns=int):
            got.append(item)  # noqa: PERF401  (what came before the error)
    assert (got, clock.now()) == ([1, 2], 1003)
    assert [item async for item in client.stream("p")] == []
    with pytest.raises(RemoteError, match="no"):
        await anext(client.stream("p"))
    assert peer.open_streams == 0


async def test_a_silent_stream_ends_by_the_idle_limit_and_a_left_one_is_closed():
    client, peer, clock = client_of([Streamed(1, NEVER), Streamed(1, 2), Streamed(NEVER)])
    with pytest.raises(ReplyTimeout):
        [item async for item in client.stream("p", idle_timeout=2)]
    assert clock.now() == 1002
    async with client.stream("p") as items:
        assert await anext(items) == 1
        assert peer.open_streams == 1
    assert peer.open_streams == 0
    with pytest.raises(ReplyTimeout):
        await anext(client.stream("p", idle_timeout=2))
    assert peer.open_streams == 0


async def test_a_stream_answers_a_send_with_its_first_value_and_a_value_a_stream():
    client, _, _ = client_of([Streamed(7, 8), Streamed(), 9])
    assert await client.send("p") == 7
    assert await client.send("p") is None
    assert [item async for item in client.stream("p")] == [9]


async def test_a_function_decides_by_the_call():
    async def slow(call):
        await asyncio.sleep(0)
        return call.data + 1

    client, _, _ = client_of(
        [lambda call: call.data * 2, slow, lambda call: Delayed(1, call.data), Reply(b"5")]
    )
    assert [await client.send("p", 4) for _ in range(4)] == [8, 5, 4, 5]


async def test_a_script_that_is_over_fails_the_test_unless_it_goes_on_for_ever():
    client, _, _ = client_of([1])
    assert await client.send("p") == 1
    with pytest.raises(AssertionError, match="no answer is left for request 2"):
        await client.send("p")
    client, _, _ = client_of([1, 2], forever=True)
    assert [await client.send("p") for _ in range(4)] == [1, 2, 2, 2]
    error = ConnectError("refused")
    client, _, _ = client_of([error], forever=True)
    raised = []
    for _ in range(2):
        with pytest.raises(ConnectError) as caught:
            await client.send("p")
        raised.append(caught.value)
    assert raised[0] is not raised[1]


async def test_a_cancelled_call_is_noted_as_left():
    client, peer, _ = client_of([Delayed(5, 1)])
    peer_clock = FakeClock()
    client = ClientProxy(peer, policies=(), clock=peer_clock, telemetry=False)
    task = asyncio.ensure_future(client.send("p"))
    await peer_clock.advance(1)
    assert peer.requests[0].outcome is None
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert peer.requests[0].outcome == "left"
    assert peer_clock.waiting == 0


@pytest.mark.parametrize("answers", [{"sum": 3}, "three", 3])
def test_a_script_is_a_list(answers: Any) -> None:
    with pytest.raises(ConfigurationError, match="must be a list"):
        ScriptedTransport(answers)


@pytest.mark.parametrize("kind", ["send", "emit", "stream", "later"])
async def test_closing_the_client_fails_what_the_script_keeps_waiting(kind):
    peer = ScriptedTransport([Streamed(1, NEVER) if kind == "later" else NEVER])
    client = ClientProxy(peer, clock=FakeClock(), telemetry=False)

    async def stream():
        return [value async for value in client.stream("p")]

    call = stream() if kind in ("stream", "later") else getattr(client, kind)("p")
    task = asyncio.ensure_future(call)
    await asyncio.sleep(0)
    await client.aclose()
    with pytest.raises(ConnectionLost, match="the client was closed"):
        await asyncio.wait_for(task, 5)
    assert peer.open_streams == 0


async def test_closing_while_the_script_connects_says_that_nothing_was_sent():
    peer = ScriptedTransport([Delayed(1, 1, connecting=True)])
    client = ClientProxy(peer, clock=FakeClock(), telemetry=False)
    task = asyncio.ensure_future(client.send("p"))
    await asyncio.sleep(0)
    await client.aclose()
    with pytest.raises(ConnectError, match="the client is closed") as caught:
        await asyncio.wait_for(task, 5)
    assert not caught.value.sent


async def test_observers_hear_of_the_scripted_connection():
    news = []
    peer = ScriptedTransport([ConnectError("refused"), 1, ConnectionLost("cut"), 2])
    client = ClientProxy(peer, policies=(), telemetry=False, observers=[news.append])
    seen = []
    for _ in range(4):
        with contextlib.suppress(ConnectError, ConnectionLost):
            await client.send("p")
        seen.append(client.status)
    await client.aclose()
    assert seen == ["idle", "connected", "reconnecting", "connected"]
    assert [(change.old, change.new, change.reason.split(" ")[0]) for change in news] == [
        ("idle", "connected", ""),
        ("connected", "reconnecting", "cut"),
        ("reconnecting", "connected", ""),
        ("connected", "closed", ""),
    ]
