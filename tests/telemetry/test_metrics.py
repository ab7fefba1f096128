"""What the numbers are called, what they are labelled with, and that labels stay few."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from resilient_client import (
    Bulkhead,
    CircuitBreaker,
    CircuitOpenError,
    ClientProxy,
    ConnectionLost,
    Overloaded,
    RemoteError,
    Retry,
    RetryBudget,
    Server,
    standard,
)
from resilient_client.message import Message
from resilient_client.testing import NEVER, ScriptedTransport, Streamed
from tests.telemetry.kit import Recorded

CALL = "rpc.client.call.duration"


def scripted(recorded: Recorded, *answers: Any, **given: Any) -> ClientProxy:
    transport = ScriptedTransport(answers, forever=True)
    return ClientProxy(transport, **{"policies": (), "telemetry": recorded.settings, **given})


async def test_each_call_is_one_measurement_with_a_closed_set_of_labels(
    recorded: Recorded,
) -> None:
    client = scripted(recorded, 1, RemoteError("no", code="E_NO"))
    await client.send("sum", {"id": 1})
    for _ in range(2):
        with pytest.raises(RemoteError):
            await client.send("sum", {"id": 2})
    own = {"rpc.system.name": "nestjs", "rpc.method": "sum", "server.address": "peer"}
    assert recorded.points(CALL) == [(own, 1), ({**own, "error.type": "E_NO"}, 2)]
    assert recorded.metrics()[CALL].unit == "s"
    (point, _) = recorded.metrics()[CALL].data.data_points
    assert point.explicit_bounds == (
        0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10,
    )  # fmt: skip


async def test_a_retried_call_is_a_success_with_its_attempts_apart(recorded: Recorded) -> None:
    client = scripted(
        recorded,
        ConnectionLost("cut"),
        1,
        policies=[Retry(wait=_at_once)],
    )
    await client.send("sum", idempotent=True)
    await client.send("sum", idempotent=True)
    assert recorded.value(CALL) == 2
    assert recorded.value(CALL, error__type="connection_lost") is None
    attempt = "resilient_client.attempt.duration"
    kind = "resilient_client.attempt.type"
    labels = {
        "rpc.system.name": "nestjs",
        "rpc.method": "sum",
        "server.address": "peer",
    }
    assert sorted(recorded.points(attempt), key=str) == sorted(
        [
            ({**labels, kind: "initial", "error.type": "connection_lost"}, 1),
            ({**labels, kind: "retry"}, 1),
            ({**labels, kind: "initial"}, 1),
        ],
        key=str,
    )
    assert recorded.points("resilient_client.call.retries") == [(labels, 1)]


async def test_a_single_attempt_is_measured_once_only(recorded: Recorded) -> None:
    client = scripted(recorded, 1, policies=None)
    await client.send("sum")
    assert recorded.value(CALL) == 1
    assert recorded.points("resilient_client.attempt.duration") == []
    assert recorded.points("resilient_client.call.retries") == []


async def test_events_are_counted_and_timed_on_both_ends(recorded: Recorded) -> None:
    server = Server("memory://metrics", telemetry=recorded.settings)
    done = asyncio.Event()

    @server.event_pattern("happened")
    async def happened() -> None:
        done.set()
        raise ValueError("no")

    async with server, ClientProxy("memory://metrics", telemetry=recorded.settings) as client:
        await client.emit("happened")
        await client.emit("unheard")
        await done.wait()
        await asyncio.sleep(0.01)
    assert recorded.value("messaging.client.operation.duration") == 2
    assert (
        recorded.value("messaging.client.sent.messages", messaging__destination__name="happened")
        == 1
    )
    consumed = {
        "messaging.system": "nestjs",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "happened",
    }
    assert recorded.points("messaging.client.consumed.messages") == [(consumed, 1)]
    assert recorded.points("messaging.process.duration") == [
        ({**consumed, "error.type": "ValueError"}, 1)
    ]
    assert recorded.value("resilient_server.rejections", resilient_client__reason="no_handler") == 1


async def test_calls_and_replies_in_flight_go_up_and_down(recorded: Recorded) -> None:
    server = Server("memory://flight", telemetry=recorded.settings)
    go = asyncio.Event()

    @server.message_pattern("wait")
    async def wait() -> None:
        await go.wait()

    @server.message_pattern("count")
    async def count() -> AsyncIterator[int]:
        yield 1
        await go.wait()

    async with server, ClientProxy("memory://flight", telemetry=recorded.settings) as client:
        waiting = [asyncio.create_task(client.send("wait")) for _ in range(3)]
        stream = client.stream("count")
        await anext(stream)
        assert recorded.value("resilient_client.call.active") == 4
        assert recorded.value("resilient_client.reply.pending") == 4
        assert recorded.value("resilient_server.call.active") == 4
        go.set()
        await asyncio.gather(*waiting)
        assert recorded.value("resilient_client.call.active") == 1
        await stream.aclose()
        await asyncio.sleep(0.01)
        assert recorded.value("resilient_client.call.active") == 0
        assert recorded.value("resilient_client.reply.pending") == 0
        assert recorded.value("resilient_server.call.active") == 0


async def test_a_reply_nobody_waits_for_is_an_orphan(recorded: Recorded) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = json.loads((await reader.read(65536)).partition(b"#")[2])
        for number in ("nobody's", request["id"]):
            text = json.dumps({"id": number, "response": 1, "isDisposed": True})
            writer.write(f"{len(text)}#{text}".encode())
        await reader.read()
        writer.close()
        closed.set()

    closed = asyncio.Event()
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as peer:
        port = peer.sockets[0].getsockname()[1]
        url = f"tcp://127.0.0.1:{port}"
        async with ClientProxy(url, policies=(), telemetry=recorded.settings) as client:
            assert await client.send("sum", 1) == 1
            assert recorded.value("resilient_client.reply.orphans") == 1
            assert recorded.value("resilient_client.connection.attempts") == 1
        await closed.wait()


async def test_refusals_are_counted_by_reason(recorded: Recorded) -> None:
    breaker = CircuitBreaker(name="math")
    client = scripted(
        recorded, NEVER, policies=standard(circuit_breaker=breaker, bulkhead=Bulkhead(1))
    )
    waiting = asyncio.create_task(client.send("sum"))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await client.send("sum")
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    breaker.open()
    for _ in range(2):
        with pytest.raises(CircuitOpenError):
            await client.send("sum")
    rejections = "resilient_client.rejections"
    own = {"resilient_client.name": "peer", "server.address": "peer"}
    assert recorded.points(rejections) == [
        ({**own, "resilient_client.reason": "overloaded"}, 1),
        ({**own, "resilient_client.reason": "circuit_open"}, 2),
    ]
    transitions = "resilient_client.circuit_breaker.transitions"
    assert recorded.points(transitions) == [
        (
            {
                "resilient_client.circuit_breaker.name": "math",
                "resilient_client.circuit_breaker.from": "closed",
                "resilient_client.circuit_breaker.to": "open",
                "resilient_client.reason": "manual",
            },
            1,
        )
    ]
    state = "resilient_client.circuit_breaker.state"
    assert recorded.value(state, resilient_client__circuit_breaker__state="open") == 1
    assert recorded.value(state, resilient_client__circuit_breaker__state="closed") == 0


async def test_a_breaker_that_two_clients_share_is_told_of_once(recorded: Recorded) -> None:
    breaker = CircuitBreaker(name="shared")
    clients = [scripted(recorded, 1, policies=[breaker]) for _ in range(2)]
    for client in clients:
        await client.send("sum")
    breaker.open()
    assert recorded.value("resilient_client.circuit_breaker.transitions") == 1
    assert recorded.value("resilient_client.circuit_breaker.state") == 1


@pytest.mark.parametrize(
    ("policies", "given", "reason"),
    [
        ([Retry(2)], {}, "not_idempotent"),
        ([Retry(1)], {"idempotent": True}, "max_attempts"),
        ([Retry(3, wait=lambda: iter([None, 60]), jitter=None)], {"idempotent": True}, ""),
    ],
)
async def test_a_retry_that_was_not_made_says_why(
    recorded: Recorded, policies: Any, given: dict[str, Any], reason: str
) -> None:
    if not reason:
        policies, reason = [Retry(3, wait=_slowly, jitter=None)], "deadline"
    client = scripted(recorded, ConnectionLost("cut"), policies=policies)
    with pytest.raises(ConnectionLost):
        await client.send("sum", **given)
    suppressed = "resilient_client.retry.suppressed"
    assert recorded.value(suppressed, resilient_client__reason=reason) == 1


async def test_patterns_beyond_two_hundred_are_one(recorded: Recorded) -> None:
    client = scripted(recorded, 1)
    for i in range(250):
        await client.send({"cmd": "sum", "user": i})
    methods = {labels["rpc.method"] for labels, _ in recorded.points(CALL)}
    assert len(methods) == 201
    assert recorded.value(CALL, rpc__method="_OTHER") == 50
    last = recorded.spans[-1]
    assert last.name == "nestjs"
    assert dict(last.attributes or {})["rpc.method_original"] == '{"cmd":"sum","user":249}'


async def test_kinds_of_error_beyond_thirty_two_are_one(recorded: Recorded) -> None:
    client = scripted(recorded, lambda call: RemoteError("no", code=f"E_{call.data}"))
    for i in range(50):
        with pytest.raises(RemoteError):
            await client.send("sum", i)
    types = {labels["error.type"] for labels, _ in recorded.points(CALL)}
    assert len(types) == 33
    assert recorded.value(CALL, error__type="_OTHER") == 18


async def test_a_server_keeps_no_pattern_that_it_was_only_asked_for(recorded: Recorded) -> None:
    server = Server("memory://asked", telemetry=recorded.settings)

    @server.message_pattern("sum")
    async def add(numbers: list[int]) -> int:
        return sum(numbers)

    async with server, ClientProxy("memory://asked", policies=(), telemetry=False) as client:
        for i in range(20):
            with pytest.raises(RemoteError):
                await client.send(f"probe-{i}")
        await client.send("sum", [1])
    served = recorded.points("rpc.server.call.duration")
    assert [labels["rpc.method"] for labels, _ in served] == ["sum"]
    assert len(recorded.points("resilient_server.rejections")) == 1


async def test_a_client_that_is_gone_is_read_no_more_but_what_it_counted_stays(
    recorded: Recorded,
) -> None:
    client = scripted(recorded, 1, name="short-lived")
    await client.emit("x")
    await client.aclose()
    assert recorded.value("resilient_client.call.active") == 0
    del client
    gc.collect()
    assert recorded.points("resilient_client.call.active") == []
    assert recorded.value("messaging.client.sent.messages") == 1


async def test_metrics_alone_and_traces_alone_work(recorded: Recorded) -> None:
    from resilient_client.telemetry import _otel

    class Nothing:
        def get_tracer(self, *_: Any, **__: Any) -> Any:
            return _otel.trace.NoOpTracer()

    client = scripted(recorded, 1, telemetry=recorded.but(tracer_provider=Nothing()))
    await client.send("sum", idempotent=True)
    assert recorded.spans == []
    assert recorded.value(CALL) == 1
    only_traces = Recorded()
    client = scripted(recorded, 1, telemetry=only_traces.but(meter_provider=None))
    await client.send("sum")
    assert len(only_traces.spans) == 1


async def test_a_stream_is_measured_to_its_end(recorded: Recorded) -> None:
    client = scripted(recorded, Streamed(1, 2))
    stream = client.stream("count")
    await anext(stream)
    assert recorded.value(CALL) is None
    assert [each async for each in stream] == [2]
    assert recorded.value(CALL) == 1


def _at_once() -> Any:
    while True:
        yield 0


def _slowly() -> Any:
    while True:
        yield 60


async def test_what_the_retry_budget_still_allows_is_told(recorded: Recorded) -> None:
    budget = RetryBudget(ratio=0, reserve_per_second=1, window=3)
    answers = [ConnectionLost("cut"), 1]
    clients = [
        scripted(recorded, *answers, policies=[Retry(wait=_at_once, budget=budget)])
        for _ in range(2)
    ]
    available = "resilient_client.retry.budget.available"
    assert recorded.value(available) == 3
    await clients[0].send("sum", idempotent=True)
    assert recorded.value(available) == 2
    assert recorded.value("resilient_client.connection.active") == 1


async def test_a_policy_of_ones_own_may_have_another_kind_of_budget(
    recorded: Recorded, caplog: pytest.LogCaptureFixture
) -> None:
    class Spend:
        budget = 100

        def wrap(self, handler: Any, clock: Any, /) -> Any:
            return handler

    client = scripted(recorded, 1, policies=[Spend()])
    await client.send("sum")
    assert recorded.value("resilient_client.connection.active") == 1
    assert recorded.value("resilient_client.retry.budget.available") is None
    assert not caplog.records


async def test_how_long_a_message_waits_for_its_handler_is_measured(recorded: Recorded) -> None:
    server = Server("memory://queue", telemetry=recorded.settings)

    @server.message_pattern("echo")
    async def echo(payload: Any) -> Any:
        return payload

    async with server, ClientProxy("memory://queue", policies=(), telemetry=False) as client:
        await client.send("echo", 1)
    assert recorded.points("resilient_server.queue.duration") == [
        ({"rpc.system.name": "nestjs"}, 1)
    ]


async def test_the_reply_of_a_broker_that_node_instruments_names_the_servers_span(
    recorded: Recorded,
) -> None:
    server = Server("memory://reply", telemetry=recorded.settings)

    @server.message_pattern("echo")
    async def echo(payload: Any) -> Any:
        return payload

    for scheme, carried in (("amqp", True), ("kafka", True), ("tcp", False), ("http", False)):
        replies: list[Any] = []

        async def respond(reply: Any, replies: list[Any] = replies) -> None:
            replies.append(reply)

        slots = server._app.slots(lambda: None, lambda: None)
        message = Message("echo", b"1", {}, b"1", raw={})
        server._app.accept(message, respond, slots, scheme)
        while not replies:
            await asyncio.sleep(0)
        span = recorded.spans[-1]
        headers = replies[0].headers or {}
        expected = f"{span.context.span_id:016x}"
        assert (headers.get("traceparent", "--").split("-")[2] == expected) is carried
