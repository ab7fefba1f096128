"""What a trace looks like: the shape of it is a promise to whoever reads dashboards."""

from __future__ import annotations

import asyncio
import copy
import itertools
import logging
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from textwrap import dedent
from typing import Any

import opentelemetry.sdk.trace
import pytest
from opentelemetry.trace import StatusCode

from resilient_client import (
    Call,
    CircuitBreaker,
    CircuitOpenError,
    ClientProxy,
    ConnectError,
    ConnectionLost,
    Fallback,
    NoHandlerError,
    PayloadError,
    RemoteError,
    ReplyTimeout,
    ResilientClientError,
    Retry,
    Server,
    Throttled,
    Timeout,
    standard,
)
from resilient_client.testing import NEVER, Delayed, FakeClock, ScriptedTransport, Streamed
from tests.telemetry.kit import Recorded, attributes

_names = itertools.count()


@asynccontextmanager
async def scene(
    recorded: Recorded, scheme: str = "memory", policies: Any = ()
) -> AsyncIterator[tuple[Server, ClientProxy]]:
    url = f"memory://trees-{next(_names)}" if scheme == "memory" else "tcp://127.0.0.1:0"
    server = Server(url, telemetry=recorded.settings)
    client: ClientProxy | None = None

    @server.message_pattern("sum")
    async def add(numbers: list[int]) -> int:
        return sum(numbers)

    @server.message_pattern({"cmd": "plain"})
    def plain(payload: Any) -> Any:
        return payload

    @server.message_pattern("bug")
    async def bug() -> None:
        raise KeyError("card 4111111111111111")

    @server.message_pattern("refuse")
    async def refuse(payload: dict[str, Any]) -> None:
        raise RemoteError("card 4111111111111111", **payload)

    @server.message_pattern("count")
    async def count(n: int) -> AsyncIterator[int]:
        for i in range(n):
            yield i

    @server.message_pattern("torn")
    async def torn(n: int) -> AsyncIterator[int]:
        for i in range(n):
            yield i
        raise RemoteError("torn", code="E_TORN")

    @server.message_pattern("endless")
    async def endless() -> AsyncIterator[int]:
        for i in itertools.count():
            yield i
            await asyncio.sleep(0.001)

    @server.message_pattern("wait")
    async def wait() -> None:
        await asyncio.sleep(30)

    @server.message_pattern("onward")
    async def onward() -> int:
        assert client is not None
        return await client.send("sum", [1], returns=int)

    @server.message_pattern("onward.plain")
    def onward_plain() -> str:
        return "in a thread"

    @server.event_pattern("happened")
    async def happened(payload: Any) -> None:
        assert client is not None
        if payload == "tell":
            await client.send("sum", [1, 2])

    @server.event_pattern("happened")
    async def happened_too(payload: Any) -> None:
        if payload == "fail":
            raise ValueError("no")

    async with AsyncExitStack() as stack:
        await stack.enter_async_context(server)
        client = ClientProxy(server.addresses[0], policies=policies, telemetry=recorded.settings)
        await stack.enter_async_context(client)
        yield server, client


async def settled(recorded: Recorded, number: int) -> None:
    """The other end has ended its spans too."""
    for _ in range(500):
        if len(recorded.spans) >= number:
            break
        await asyncio.sleep(0.01)
    assert len(recorded.spans) == number, recorded.tree()


def tree(text: str) -> str:
    return dedent(text).strip("\n")


SCHEMES = pytest.mark.parametrize("scheme", ["memory", "tcp"])


@SCHEMES
async def test_a_call_is_a_client_span_with_the_servers_below(
    recorded: Recorded, scheme: str
) -> None:
    async with scene(recorded, scheme) as (_, client):
        assert await client.send("sum", [1, 2]) == 3
        await settled(recorded, 2)
    assert recorded.tree() == tree("""
        CLIENT sum
          SERVER sum
    """)
    sent, handled = recorded.named("sum", "CLIENT"), recorded.named("sum", "SERVER")
    host, _, port = client._endpoint.partition("://")[2].partition(":")
    expected = {"rpc.system.name": "nestjs", "rpc.method": "sum", "server.address": host}
    if port:
        expected["server.port"] = int(port)
    trace_id = f"{sent.context.trace_id:032x}"
    assert attributes(sent) == {**expected, "resilient_client.correlation_id": trace_id}
    assert attributes(handled) == {
        "rpc.system.name": "nestjs",
        "rpc.method": "sum",
        "resilient_client.correlation_id": trace_id,
    }
    assert sent.status.status_code is StatusCode.UNSET
    assert not handled.links
    assert sent.instrumentation_scope.name == "resilient_client"
    assert sent.instrumentation_scope.schema_url == "https://opentelemetry.io/schemas/1.44.0"


@SCHEMES
async def test_an_event_is_a_producer_span_with_its_consumers_below_and_linked(
    recorded: Recorded, scheme: str
) -> None:
    async with scene(recorded, scheme) as (_, client):
        await client.emit("happened", 1)
        await settled(recorded, 3)
    assert recorded.tree() == tree("""
        PRODUCER emit happened
          CONSUMER process happened
          CONSUMER process happened
    """)
    sent, *handled = sorted(recorded.spans, key=lambda each: each.kind.name, reverse=True)
    assert attributes(sent)["messaging.system"] == "nestjs"
    assert attributes(sent)["messaging.operation.type"] == "send"
    for each in handled:
        assert attributes(each)["messaging.operation.name"] == "process"
        assert [link.context.span_id for link in each.links] == [sent.context.span_id]


@SCHEMES
async def test_what_a_handler_calls_stands_below_it(recorded: Recorded, scheme: str) -> None:
    async with scene(recorded, scheme) as (_, client):
        await client.send("onward")
        await settled(recorded, 4)
    assert recorded.tree() == tree("""
        CLIENT onward
          SERVER onward
            CLIENT sum
              SERVER sum
    """)
    assert len({each.context.trace_id for each in recorded.spans}) == 1
    ids = {attributes(each)["resilient_client.correlation_id"] for each in recorded.spans}
    assert len(ids) == 1


async def test_what_an_event_handler_calls_stands_below_it(recorded: Recorded) -> None:
    async with scene(recorded) as (_, client):
        await client.emit("happened", "tell")
        await settled(recorded, 5)
    assert recorded.tree() == tree("""
        PRODUCER emit happened
          CONSUMER process happened
            CLIENT sum
              SERVER sum
          CONSUMER process happened
    """)


async def test_an_event_handler_that_fails_marks_its_own_span_only(
    recorded: Recorded, caplog: pytest.LogCaptureFixture
) -> None:
    async with scene(recorded) as (_, client):
        await client.emit("happened", "fail")
        await settled(recorded, 3)
    assert recorded.tree() == tree("""
        PRODUCER emit happened
          CONSUMER process happened
          CONSUMER process happened ! ValueError
    """)


@pytest.mark.parametrize(
    ("given", "client_type", "server_line"),
    [
        ({}, "remote_error", "SERVER refuse"),
        ({"code": "E_STOCK"}, "E_STOCK", "SERVER refuse"),
        ({"code": "not fit for a label"}, "remote_error", "SERVER refuse"),
        ({"status": 404}, "404", "SERVER refuse"),
        ({"status": 503}, "503", "SERVER refuse ! 503"),
        ({"code": "E_DOWN", "status": 500}, "E_DOWN", "SERVER refuse ! E_DOWN"),
    ],
)
async def test_a_deliberate_error_is_an_answer_of_the_server_and_an_error_of_the_call(
    recorded: Recorded, given: dict[str, Any], client_type: str, server_line: str
) -> None:
    async with scene(recorded) as (_, client):
        with pytest.raises(RemoteError):
            await client.send("refuse", given)
        await settled(recorded, 2)
    assert recorded.tree() == f"CLIENT refuse ! {client_type}\n  {server_line}"
    assert recorded.named("refuse", "CLIENT").status.description is None
    code = attributes(recorded.named("refuse", "SERVER")).get("rpc.response.status_code")
    assert code == (None if client_type == "remote_error" else client_type)


async def test_an_unhandled_exception_is_named_by_its_class_on_the_server_only(
    recorded: Recorded, caplog: pytest.LogCaptureFixture
) -> None:
    async with scene(recorded) as (_, client):
        with pytest.raises(RemoteError, match="Internal server error"):
            await client.send("bug")
        await settled(recorded, 2)
    assert recorded.tree() == tree("""
        CLIENT bug ! remote_error
          SERVER bug ! KeyError
    """)
    for span in recorded.spans:
        assert not span.events
        assert "4111" not in span.to_json()
    assert caplog.records[0].levelno == logging.ERROR
    assert caplog.records[0].exc_info is not None


async def test_a_pattern_that_nobody_handles_does_not_name_the_servers_span(
    recorded: Recorded,
) -> None:
    async with scene(recorded) as (_, client):
        with pytest.raises(NoHandlerError):
            await client.send("x" * 1000)
        await settled(recorded, 2)
    span = recorded.named("nestjs")
    assert attributes(span) == {
        "rpc.system.name": "nestjs",
        "rpc.method": "_OTHER",
        "rpc.method_original": "x" * 256,
        "error.type": "no_handler",
    }
    assert span.parent is not None


async def test_a_payload_the_handler_refuses_is_the_callers_fault(recorded: Recorded) -> None:
    async with scene(recorded) as (_, client):
        with pytest.raises(RemoteError):
            await client.send("sum", ["x"])
        await settled(recorded, 2)
    assert recorded.tree() == tree("""
        CLIENT sum ! INVALID_PAYLOAD
          SERVER sum
    """)


async def test_what_cannot_be_encoded_or_decoded_ends_the_calls_span(recorded: Recorded) -> None:
    async with scene(recorded) as (_, client):
        with pytest.raises(PayloadError):
            await client.send("sum", object())
        with pytest.raises(PayloadError):
            await client.send("sum", [1], returns=str)
        await settled(recorded, 3)
    assert recorded.tree() == tree("""
        CLIENT sum ! serialization_error
        CLIENT sum ! serialization_error
          SERVER sum
    """)


async def test_headers_that_cannot_be_had_end_the_calls_span(recorded: Recorded) -> None:
    def headers() -> dict[str, str]:
        raise LookupError("no token")

    client = ClientProxy(
        ScriptedTransport([1]), headers=headers, policies=(), telemetry=recorded.settings
    )
    with pytest.raises(LookupError):
        await client.send("sum")
    assert recorded.tree() == "CLIENT sum ! LookupError"


# ----------------------------------------------------------------------------------- time and exit


@SCHEMES
async def test_a_deadline_is_an_error_on_both_sides(recorded: Recorded, scheme: str) -> None:
    async with scene(recorded, scheme) as (_, client):
        with pytest.raises(TimeoutError):
            await client.send("wait", timeout=0.2)
        await settled(recorded, 2)
    assert recorded.tree() == tree("""
        CLIENT wait ! deadline_exceeded
          SERVER wait ! deadline_exceeded
    """)


@SCHEMES
async def test_a_caller_that_leaves_is_no_error_on_either_side(
    recorded: Recorded, scheme: str
) -> None:
    async with scene(recorded, scheme) as (_, client):
        await client.send("sum", [1])
        task = asyncio.create_task(client.send("wait"))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await settled(recorded, 4)
    assert recorded.tree() == tree("""
        CLIENT sum
          SERVER sum
        CLIENT wait
          SERVER wait
    """)
    for kind in ("CLIENT", "SERVER"):
        span = recorded.named("wait", kind)
        assert span.status.status_code is StatusCode.UNSET
        assert attributes(span)["resilient_client.outcome"] == "cancelled"


# ------------------------------------------------------------------------------------------ streams


@SCHEMES
async def test_a_stream_is_one_span_a_side_to_its_end(recorded: Recorded, scheme: str) -> None:
    async with scene(recorded, scheme) as (_, client):
        assert [i async for i in client.stream("count", 3)] == [0, 1, 2]
        await settled(recorded, 2)
    assert recorded.tree() == tree("""
        CLIENT count
          SERVER count
    """)
    for span in recorded.spans:
        assert attributes(span)["resilient_client.stream.message_count"] == 3


@SCHEMES
async def test_an_error_in_a_stream_ends_both_spans(recorded: Recorded, scheme: str) -> None:
    async with scene(recorded, scheme) as (_, client):
        with pytest.raises(RemoteError):
            [i async for i in client.stream("torn", 2)]
        await settled(recorded, 2)
    assert recorded.tree() == tree("""
        CLIENT torn ! E_TORN
          SERVER torn
    """)


@SCHEMES
async def test_leaving_a_stream_early_ends_both_spans_and_logs_nothing(
    recorded: Recorded, scheme: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with scene(recorded, scheme) as (_, client):
        async for _i in client.stream("endless"):
            break
        await asyncio.sleep(0.05)  # the iterator has been dropped: it leaves by itself
        async with client.stream("endless") as stream:
            async for _i in stream:
                break
        await settled(recorded, 4)
    assert recorded.tree() == tree("""
        CLIENT endless
          SERVER endless
        CLIENT endless
          SERVER endless
    """)
    for span in recorded.spans:
        if span.kind.name == "CLIENT":
            assert attributes(span)["resilient_client.stream.abandoned"] is True
            assert "resilient_client.outcome" not in attributes(span)
    assert [r for r in caplog.records if r.name.startswith("opentelemetry")] == []


async def test_a_stream_left_before_its_first_value_was_cancelled(recorded: Recorded) -> None:
    transport = ScriptedTransport([Streamed(NEVER)])
    client = ClientProxy(transport, policies=(), telemetry=recorded.settings)

    async def consume() -> None:
        async for _ in client.stream("s"):
            pass

    task = asyncio.create_task(consume())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (span,) = recorded.spans
    assert attributes(span)["resilient_client.outcome"] == "cancelled"


# ----------------------------------------------------------------------------------------- attempts


async def test_a_policy_of_ones_own_may_ask_twice_at_once(recorded: Recorded) -> None:
    class Hedge:
        def wrap(self, handler: Any, clock: Any, /) -> Any:
            async def hedge(call: Call) -> Any:
                asking = [asyncio.ensure_future(handler(call))]
                await clock.sleep(1)
                asking.append(asyncio.ensure_future(handler(copy.copy(call))))
                done, left = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
                for each in left:
                    each.cancel()
                await asyncio.wait(asking)
                return done.pop().result()

            return hedge

    client = ClientProxy(
        ScriptedTransport([Delayed(2.5, 1), Delayed(0.5, 2)]),
        policies=[*standard(), Hedge()],
        clock=FakeClock(autojump=True),
        telemetry=recorded.settings,
    )
    assert await client.send("sum", idempotent=True) == 2
    assert recorded.tree() == tree("""
        CLIENT sum
          CLIENT attempt sum
          CLIENT attempt sum
    """)
    outcomes = [attributes(each).get("resilient_client.outcome") for each in recorded.spans]
    assert sorted(map(str, outcomes)) == ["None", "cancelled", "ok"]


async def test_each_attempt_of_a_repeated_call_has_a_span(recorded: Recorded) -> None:
    clock = FakeClock(autojump=True)
    transport = ScriptedTransport([ConnectionLost("cut"), ReplyTimeout("slow"), 42])
    client = ClientProxy(
        transport,
        policies=[Retry(jitter=None, wait=_constant, seconds=0.5)],
        clock=clock,
        telemetry=recorded.settings,
    )
    assert await client.send("sum", idempotent=True) == 42
    assert recorded.tree() == tree("""
        CLIENT sum
          CLIENT attempt sum ! connection_lost
          CLIENT attempt sum ! timeout
          CLIENT attempt sum
    """)
    call, *attempts = sorted(recorded.spans, key=lambda each: each.start_time or 0)
    assert attributes(call)["resilient_client.attempts"] == 3
    assert call.status.status_code is StatusCode.UNSET
    assert [
        (
            attributes(each)["resilient_client.attempt.number"],
            attributes(each)["resilient_client.attempt.type"],
            attributes(each)["resilient_client.outcome"],
            attributes(each).get("resilient_client.retry.delay"),
        )
        for each in attempts
    ] == [(1, "initial", "lost", None), (2, "retry", "timeout", 0.5), (3, "retry", "ok", 0.5)]
    sent = [request.metadata["traceparent"].split("-")[2] for request in transport.requests]
    assert sent == [f"{each.context.span_id:016x}" for each in attempts]


async def test_the_last_error_is_the_calls(recorded: Recorded) -> None:
    client = ClientProxy(
        ScriptedTransport([ConnectionLost("cut"), ConnectionLost("cut again")]),
        policies=[Retry(2, wait=_constant, seconds=0, jitter=None)],
        telemetry=recorded.settings,
    )
    with pytest.raises(ConnectionLost):
        await client.send("sum", idempotent=True)
    assert recorded.tree() == tree("""
        CLIENT sum ! connection_lost
          CLIENT attempt sum ! connection_lost
          CLIENT attempt sum ! connection_lost
    """)
    assert recorded.named("sum").status.description == "cut again"


async def test_an_attempt_nobody_expected_to_be_repeated_gets_its_span_afterwards(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeClock(autojump=True)
    for module in (time, opentelemetry.sdk.trace):
        monkeypatch.setattr(module, "time_ns", lambda: round(clock.now() * 1e9))
    client = ClientProxy(
        ScriptedTransport([Delayed(2.0, ConnectError("refused")), 1]),
        policies=[Retry(wait=_constant, seconds=0.5, jitter=None)],
        telemetry=recorded.settings,
        clock=clock,
    )
    began = clock.now()
    assert await client.send("sum") == 1
    assert recorded.tree() == tree("""
        CLIENT sum
          CLIENT attempt sum ! connection_error
          CLIENT attempt sum
    """)
    times = {
        (span.name, (span.attributes or {}).get("resilient_client.attempt.number")): [
            (at or 0) / 1e9 - began for at in (span.start_time, span.end_time)
        ]
        for span in recorded.spans
    }
    assert times == {
        ("sum", None): [0, 2.5],
        ("attempt sum", 1): [0, 2],
        ("attempt sum", 2): [2.5, 2.5],
    }


@pytest.mark.parametrize(
    ("setting", "idempotent", "number"),
    [("auto", False, 1), ("auto", True, 2), ("never", True, 1), ("always", False, 2)],
)
async def test_a_single_attempt_has_a_span_only_where_another_may_follow(
    recorded: Recorded, setting: Any, idempotent: bool, number: int
) -> None:
    client = ClientProxy(
        ScriptedTransport([1]),
        telemetry=recorded.but(attempt_spans=setting),
    )
    await client.send("sum", idempotent=idempotent)
    assert len(recorded.spans) == number


async def test_without_attempt_spans_the_calls_span_goes_out(recorded: Recorded) -> None:
    transport = ScriptedTransport([ConnectError("refused"), 1])
    client = ClientProxy(
        transport,
        policies=[Retry(wait=_constant, seconds=0, jitter=None)],
        telemetry=recorded.but(attempt_spans="never"),
    )
    await client.send("sum")
    (span,) = recorded.spans
    assert attributes(span)["resilient_client.attempts"] == 2
    for request in transport.requests:
        assert request.metadata["traceparent"].split("-")[2] == f"{span.context.span_id:016x}"


async def test_a_stream_that_is_repeated_has_its_last_attempts_span_to_the_end(
    recorded: Recorded,
) -> None:
    client = ClientProxy(
        ScriptedTransport([ConnectionLost("cut"), Streamed(1, 2)]),
        policies=[Retry(wait=_constant, seconds=0, jitter=None)],
        telemetry=recorded.settings,
    )
    assert [i async for i in client.stream("s", idempotent=True)] == [1, 2]
    assert recorded.tree() == tree("""
        CLIENT s
          CLIENT attempt s ! connection_lost
          CLIENT attempt s
    """)
    call, _, attempt = sorted(recorded.spans, key=lambda each: each.start_time or 0)
    assert attempt.end_time <= call.end_time  # type: ignore[operator]
    assert attributes(call)["resilient_client.stream.message_count"] == 2


async def test_of_several_endpoints_each_try_has_a_span_with_its_own_address(
    recorded: Recorded,
) -> None:
    server = Server("tcp://127.0.0.1:0", telemetry=False)

    @server.message_pattern("sum")
    async def add(numbers: list[int]) -> int:
        return sum(numbers)

    closed = await asyncio.start_server(lambda _r, _w: None, "127.0.0.1", 0)
    nobody = closed.sockets[0].getsockname()[1]
    closed.close()
    await closed.wait_closed()
    async with (
        server,
        ClientProxy(
            [f"tcp://127.0.0.1:{nobody}", server.addresses[0]],
            name="math",
            policies=(),
            telemetry=recorded.settings,
        ) as client,
    ):
        assert await client.send("sum", [1, 2]) == 3
    assert recorded.tree() == tree("""
        CLIENT sum
          CLIENT attempt sum ! connection_error
          CLIENT attempt sum
    """)
    call, first, second = sorted(recorded.spans, key=lambda each: each.start_time or 0)
    assert attributes(call)["server.address"] == "math"
    assert attributes(first)["server.port"] == nobody
    assert f"127.0.0.1:{attributes(second)['server.port']}" in server.addresses[0]


# --------------------------------------------------------------------------------------- refusals


async def test_a_call_the_breaker_refuses_has_no_attempt(recorded: Recorded) -> None:
    breaker = CircuitBreaker()
    transport = ScriptedTransport([1])
    client = ClientProxy(
        transport, policies=standard(circuit_breaker=breaker), telemetry=recorded.settings
    )
    breaker.open()
    with pytest.raises(CircuitOpenError):
        await client.send("sum", idempotent=True)
    assert recorded.tree() == "CLIENT sum ! circuit_open"
    assert not transport.requests


async def test_a_fallbacks_value_is_a_success_above_failed_attempts(recorded: Recorded) -> None:
    client = ClientProxy(
        ScriptedTransport([ConnectionLost("cut")]),
        policies=[Fallback("instead"), Retry(1)],
        telemetry=recorded.but(attempt_spans="always"),
    )
    assert await client.send("sum") == "instead"
    assert recorded.tree() == tree("""
        CLIENT sum
          CLIENT attempt sum ! connection_lost
    """)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ConnectError("x"), "connection_error"),
        (ConnectionLost("x"), "connection_lost"),
        (ReplyTimeout("x"), "timeout"),
        (Throttled(), "THROTTLED"),
        (NoHandlerError(sent=False), "no_responders"),
        (ResilientClientError("x"), "resilient_client.errors.ResilientClientError"),
        (RuntimeError("x"), "RuntimeError"),
    ],
)
async def test_each_kind_of_error_has_a_type_of_its_own(
    recorded: Recorded, error: Exception, kind: str
) -> None:
    client = ClientProxy(ScriptedTransport([error]), policies=(), telemetry=recorded.settings)
    with pytest.raises(type(error)):
        await client.send("sum")
    assert recorded.tree() == f"CLIENT sum ! {kind}"


async def test_an_attempts_timeout_is_told_from_the_calls(recorded: Recorded) -> None:
    clock = FakeClock(autojump=True)
    client = ClientProxy(
        ScriptedTransport([NEVER, 1]),
        policies=[Retry(wait=_constant, seconds=0.1, jitter=None), Timeout(3)],
        clock=clock,
        telemetry=recorded.settings,
    )
    assert await client.send("sum", idempotent=True) == 1
    assert recorded.tree() == tree("""
        CLIENT sum
          CLIENT attempt sum ! timeout
          CLIENT attempt sum
    """)


async def test_a_ping_leaves_no_trace(recorded: Recorded) -> None:
    async with scene(recorded) as (_, client):
        assert (await client.ping()).reachable
    assert recorded.spans == []
    assert recorded.value("rpc.client.call.duration") is None


def _constant(seconds: float) -> Any:
    while True:
        yield seconds
