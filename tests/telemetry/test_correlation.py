"""The correlation id: one for everything done for one request, in headers, handlers and logs."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from resilient_client import ClientProxy, Context, CorrelationFilter, Server, correlation_id
from resilient_client.testing import ScriptedTransport
from tests.telemetry.kit import SPAN, TRACE, Recorded, attributes, within

HEX = set("0123456789abcdef")


async def test_it_flows_through_handlers_into_the_calls_they_make() -> None:
    server = Server("memory://flow", telemetry=False)
    seen: list[tuple[str, str, str | None]] = []

    @server.message_pattern("front")
    async def front(context: Context) -> None:
        seen.append(("front", context.correlation_id, correlation_id.get()))
        await client.send("back")
        await client.emit("news")

    @server.message_pattern("back")
    def back(context: Context) -> None:
        seen.append(("back", context.correlation_id, correlation_id.get()))

    @server.event_pattern("news")
    async def news(context: Context) -> None:
        seen.append(("news", context.correlation_id, correlation_id.get()))

    async with server:
        for telemetry in (False, True, Recorded().settings):
            seen.clear()
            async with ClientProxy("memory://flow", policies=(), telemetry=telemetry) as client:
                await client.send("front", headers={"x-correlation-id": "one.2"})
                await asyncio.sleep(0.05)
            assert sorted(seen) == [(each, "one.2", "one.2") for each in ("back", "front", "news")]
    assert correlation_id.get() is None


async def test_a_header_comes_before_the_ambient_id_and_that_before_a_trace_id() -> None:
    recorded = Recorded()
    for telemetry in (True, recorded.settings):
        transport = ScriptedTransport([1], forever=True)
        client = ClientProxy(transport, policies=(), telemetry=telemetry)
        token = correlation_id.set("ambient")
        try:
            await client.send("x", headers={"x-correlation-id": "explicit"})
            await client.send("x")
        finally:
            correlation_id.reset(token)
        context = SpanContext(int(TRACE, 16), int(SPAN, 16), True, TraceFlags(1))
        with within(NonRecordingSpan(context)):
            await client.send("x")
        await client.send("x")
        ids = [each.metadata["x-correlation-id"] for each in transport.requests]
        assert ids[:3] == ["explicit", "ambient", TRACE]
        assert len(ids[3]) == 32
        assert set(ids[3]) <= HEX
        assert ids[3] != TRACE
    spans = [attributes(each)["resilient_client.correlation_id"] for each in recorded.spans]
    assert spans == ids
    assert f"{recorded.spans[3].context.trace_id:032x}" == ids[3]


async def test_an_id_unfit_for_logs_is_replaced_and_counted() -> None:
    recorded = Recorded()
    server = Server("memory://unfit", telemetry=recorded.settings)

    @server.message_pattern("look")
    async def look(context: Context) -> str:
        return context.correlation_id

    async with server, ClientProxy("memory://unfit", policies=(), telemetry=False) as client:
        seen = await client.send("look", headers={"x-correlation-id": "two words"})
    assert seen == f"{recorded.named('look').context.trace_id:032x}"
    assert recorded.value("resilient_server.correlation_id.rejected") == 1


def logged(filter_: logging.Filter) -> dict[str, Any]:
    record = logging.LogRecord("x", logging.INFO, "x.py", 1, "x", (), None)
    assert filter_.filter(record)
    return record.__dict__


def test_log_records_get_the_fields_and_empty_ones_where_there_is_nothing() -> None:
    fields = ("correlation_id", "trace_id", "span_id", "trace_flags")
    empty = logged(CorrelationFilter())
    assert [empty[each] for each in fields] == ["", "", "", ""]
    token = correlation_id.set("one")
    try:
        context = SpanContext(int(TRACE, 16), int(SPAN, 16), True, TraceFlags(1))
        with within(NonRecordingSpan(context)):
            full = logged(CorrelationFilter())
    finally:
        correlation_id.reset(token)
    assert [full[each] for each in fields] == ["one", TRACE, SPAN, "01"]


def test_a_field_that_a_record_has_stays() -> None:
    record = logging.LogRecord("x", logging.INFO, "x.py", 1, "x", (), None)
    record.trace_id = "own"
    CorrelationFilter().filter(record)
    assert record.__dict__["trace_id"] == "own"


async def test_the_log_of_a_failed_handler_carries_the_callers_trace() -> None:
    recorded = Recorded()
    server = Server("memory://logs", telemetry=recorded.settings)
    kept: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            kept.append(record)

    @server.message_pattern("bug")
    async def bug() -> None:
        raise KeyError("x")

    handler = Keep()
    handler.addFilter(CorrelationFilter())
    logger = logging.getLogger("resilient_client.server")
    logger.addHandler(handler)
    try:
        async with (
            server,
            ClientProxy("memory://logs", policies=(), telemetry=recorded.settings) as client,
        ):
            await asyncio.gather(client.send("bug"), return_exceptions=True)
    finally:
        logger.removeHandler(handler)
    span = recorded.named("bug", "SERVER")
    fields = kept[0].__dict__
    assert fields["span_id"] == f"{span.context.span_id:016x}"
    assert fields["trace_id"] == f"{span.context.trace_id:032x}"
    assert fields["correlation_id"] == fields["trace_id"]
