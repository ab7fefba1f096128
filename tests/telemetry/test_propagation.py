"""The trace context on the wire, in and out; what comes in is hostile."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import baggage, propagate, trace
from opentelemetry import context as otel_context
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.propagators.textmap import (
    DefaultGetter,
    DefaultSetter,
    Getter,
    Setter,
    TextMapPropagator,
)
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from resilient_client import ClientProxy, Context, PayloadError, Server, Telemetry
from resilient_client.message import Message
from resilient_client.telemetry._propagation import Propagation
from resilient_client.testing import ScriptedTransport
from tests.telemetry.kit import PARENT, SPAN, TRACE, Recorded, attributes, within

REMOTE = NonRecordingSpan(
    SpanContext(int(TRACE, 16), int(SPAN, 16), is_remote=True, trace_flags=TraceFlags(1))
)


async def sent(client: ClientProxy, transport: ScriptedTransport, **given: Any) -> dict[str, str]:
    await client.send("sum", **given)
    return transport.requests[-1].metadata


def scripted(telemetry: Any) -> tuple[ClientProxy, ScriptedTransport]:
    transport = ScriptedTransport([1], forever=True)
    return ClientProxy(transport, policies=(), telemetry=telemetry), transport


# ---------------------------------------------------------------------------------------- outwards


async def test_the_calls_span_goes_out_and_the_ambient_span_is_its_parent(
    recorded: Recorded,
) -> None:
    client, transport = scripted(recorded.settings)
    with within(REMOTE):
        metadata = await sent(client, transport)
    (span,) = recorded.spans
    assert metadata["traceparent"] == f"00-{TRACE}-{span.context.span_id:016x}-01"
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == SPAN


async def test_an_explicit_traceparent_is_the_parent(recorded: Recorded) -> None:
    client, transport = scripted(recorded.settings)
    metadata = await sent(client, transport, headers={"Traceparent": PARENT, "tracestate": "a=1"})
    (span,) = recorded.spans
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == SPAN
    assert metadata["traceparent"] == f"00-{TRACE}-{span.context.span_id:016x}-01"
    assert metadata["tracestate"] == "a=1"
    assert metadata["x-correlation-id"] == TRACE


async def test_one_from_the_headers_callable_travels_too(recorded: Recorded) -> None:
    transport = ScriptedTransport([1])
    client = ClientProxy(
        transport,
        headers=lambda: {"authorization": "Bearer s3cret"},
        policies=(),
        telemetry=recorded.settings,
    )
    metadata = await sent(client, transport)
    assert metadata["authorization"] == "Bearer s3cret"
    (span,) = recorded.spans
    assert metadata["traceparent"].split("-")[2] == f"{span.context.span_id:016x}"
    assert "s3cret" not in span.to_json()


@pytest.mark.parametrize("kind", ["send", "emit", "stream"])
async def test_one_that_the_headers_callable_names_is_the_parent(
    recorded: Recorded, kind: str
) -> None:
    async def passed_on() -> dict[str, str]:
        await asyncio.sleep(0)
        return {"Traceparent": PARENT}

    for headers in (passed_on, lambda: {"traceparent": PARENT}):
        recorded.exporter.clear()
        transport = ScriptedTransport([1])
        client = ClientProxy(transport, headers=headers, policies=(), telemetry=recorded.settings)
        if kind == "stream":
            assert [each async for each in client.stream("x")] == [1]
        else:
            await getattr(client, kind)("x")
        (span,) = recorded.spans
        assert span.parent is not None
        assert f"{span.parent.span_id:016x}" == SPAN
        metadata = transport.requests[0].metadata
        assert metadata["traceparent"] == f"00-{TRACE}-{span.context.span_id:016x}-01"
        assert metadata["x-correlation-id"] == TRACE


async def test_a_call_whose_headers_or_payload_cannot_be_had_has_its_span(
    recorded: Recorded,
) -> None:
    def fails() -> dict[str, str]:
        raise KeyError("no token")

    client = ClientProxy(
        ScriptedTransport(), headers=fails, policies=(), telemetry=recorded.settings
    )
    before = time.time_ns()
    with pytest.raises(KeyError):
        await client.send("x")
    with pytest.raises(PayloadError):
        await client.send("x", object())
    assert [span.status.status_code.name for span in recorded.spans] == ["ERROR", "ERROR"]
    assert all(before <= span.start_time <= span.end_time for span in recorded.spans)
    assert recorded.value("resilient_client.call.active") == 0


async def test_an_explicit_traceparent_that_is_none_is_not_the_parent(recorded: Recorded) -> None:
    client, transport = scripted(recorded.settings)
    await sent(client, transport, headers={"traceparent": "nonsense"})
    (span,) = recorded.spans
    assert span.parent is None


async def test_an_explicit_traceparent_travels_as_given_when_nothing_records() -> None:
    for telemetry in (Telemetry(), False, Recorded(ParentBased(ALWAYS_OFF)).settings):
        unsampled = PARENT.removesuffix("1") + "0"
        client, transport = scripted(telemetry)
        metadata = await sent(client, transport, headers={"traceparent": unsampled})
        assert metadata["traceparent"] == unsampled


async def test_an_unsampled_call_says_so_to_the_peer() -> None:
    recorded = Recorded(ALWAYS_OFF)
    client, transport = scripted(recorded.settings)
    metadata = await sent(client, transport)
    assert int(metadata["traceparent"][-2:], 16) & 1 == 0
    assert recorded.spans == []
    assert recorded.value("rpc.client.call.duration") == 1


async def test_each_attempt_writes_its_headers_anew(recorded: Recorded) -> None:
    client, transport = scripted(recorded.settings)
    first = await sent(client, transport)
    second = await sent(client, transport)
    assert first["traceparent"] != second["traceparent"]


async def test_baggage_goes_out_only_where_it_is_allowed(recorded: Recorded) -> None:
    context = baggage.set_baggage("tenant", "a", baggage.set_baggage("secret", "b"))
    token = otel_context.attach(context)
    try:
        for settings in (recorded.settings, Telemetry()):
            client, transport = scripted(settings)
            assert "baggage" not in await sent(client, transport)
        for settings in (
            recorded.but(baggage_keys=["tenant"]),
            Telemetry(baggage_keys=["tenant", "other"]),
        ):
            client, transport = scripted(settings)
            assert (await sent(client, transport))["baggage"] == "tenant=a"
    finally:
        otel_context.detach(token)


_GETTER: Getter[Any] = DefaultGetter()
_SETTER: Setter[Any] = DefaultSetter()


class _Own(TextMapPropagator):
    """A propagator with a header of its own, in capitals."""

    def extract(self, carrier: Any, context: Any = None, getter: Getter[Any] = _GETTER) -> Any:
        value = getter.get(carrier, "X-Own-Trace")
        assert getter.keys(carrier) is not None
        if not value:
            return context
        number = int(value[0], 16)
        span = NonRecordingSpan(SpanContext(number, number, True, TraceFlags(1)))
        return trace.set_span_in_context(span, context)

    def inject(self, carrier: Any, context: Any = None, setter: Setter[Any] = _SETTER) -> None:
        number = trace.get_current_span(context).get_span_context().trace_id
        setter.set(carrier, "X-Own-Trace", f"{number:x}")

    @property
    def fields(self) -> set[str]:
        return {"X-Own-Trace"}


async def test_the_global_propagator_decides_what_the_headers_are(recorded: Recorded) -> None:
    before = propagate.get_global_textmap()
    client, transport = scripted(recorded.settings)
    propagate.set_global_textmap(_Own())
    try:
        metadata = await sent(client, transport, headers={"x-own-trace": "abc"})
    finally:
        propagate.set_global_textmap(before)
    assert "traceparent" not in metadata
    assert metadata["x-own-trace"] == "abc"
    (span,) = recorded.spans
    assert span.context.trace_id == 0xABC


async def test_a_propagator_of_ones_own_comes_before_the_global_one(recorded: Recorded) -> None:
    nothing = CompositePropagator([])
    client, transport = scripted(recorded.but(propagator=nothing))
    metadata = await sent(client, transport)
    assert "traceparent" not in metadata
    assert len(recorded.spans) == 1


async def test_a_propagator_that_fails_does_not_fail_the_call(recorded: Recorded) -> None:
    class Broken(_Own):
        def inject(self, *_: Any, **__: Any) -> None:
            raise RuntimeError("broken")

    client, transport = scripted(recorded.but(propagator=Broken()))
    assert "x-own-trace" not in await sent(client, transport)


# ----------------------------------------------------------------------------------------- inwards


async def asked(settings: Any, headers: dict[str, str], bus: str) -> dict[str, Any]:
    """What a handler sees of a request with these headers, and what it would pass on."""
    onward, transport = scripted(settings)
    server = Server(f"memory://{bus}", telemetry=settings)

    @server.message_pattern("look")
    async def look(context: Context) -> dict[str, Any]:
        span = trace.get_current_span().get_span_context()
        return {
            "trace": f"{span.trace_id:032x}" if span.is_valid else "",
            "baggage": dict(baggage.get_all()),
            "onward": await sent(onward, transport),
            "correlation": context.correlation_id,
        }

    async with server, ClientProxy(f"memory://{bus}", policies=(), telemetry=False) as client:
        seen = await client.send("look", headers=headers)
        assert isinstance(seen, dict)
        return seen


async def test_a_remote_parent_is_continued(recorded: Recorded) -> None:
    seen = await asked(recorded.settings, {"traceparent": PARENT}, "remote")
    assert seen["trace"] == TRACE
    span = recorded.named("look")
    assert span.parent is not None
    assert (f"{span.parent.span_id:016x}", span.parent.is_remote) == (SPAN, True)
    call = recorded.named("sum")
    assert call.parent is not None
    assert call.parent.span_id == span.context.span_id


async def test_a_stranger_is_only_linked_to_with_trust_link(recorded: Recorded) -> None:
    seen = await asked(recorded.but(trust_context="link"), {"traceparent": PARENT}, "link")
    span = recorded.named("look")
    assert span.parent is None
    assert seen["trace"] != TRACE
    assert [f"{link.context.span_id:016x}" for link in span.links] == [SPAN]


async def test_a_stranger_is_nobody_with_trust_ignore(recorded: Recorded) -> None:
    await asked(recorded.but(trust_context="ignore"), {"traceparent": PARENT}, "ignore")
    span = recorded.named("look")
    assert span.parent is None
    assert not span.links


async def test_without_an_sdk_a_trace_passes_through_and_nothing_is_begun() -> None:
    state = "vendor=opaque,other=1"
    seen = await asked(Telemetry(), {"traceparent": PARENT, "tracestate": state}, "through")
    assert seen["trace"] == TRACE
    assert seen["onward"]["traceparent"] == PARENT
    assert seen["onward"]["tracestate"] == state
    seen = await asked(Telemetry(), {}, "nothing")
    assert seen["trace"] == ""
    assert "traceparent" not in seen["onward"]
    for trust in ("link", "ignore"):
        seen = await asked(Telemetry(trust_context=trust), {"traceparent": PARENT}, trust)
        assert "traceparent" not in seen["onward"]
    seen = await asked(False, {"traceparent": PARENT}, "off")
    assert "traceparent" not in seen["onward"]


async def test_without_an_sdk_a_streams_handler_passes_its_callers_trace_on() -> None:
    onward, transport = scripted(Telemetry())
    server = Server("memory://streamed", telemetry=True)

    @server.message_pattern("count")
    async def count() -> AsyncIterator[int]:
        for i in range(2):
            await sent(onward, transport)
            yield i

    async with server, ClientProxy("memory://streamed", policies=(), telemetry=False) as client:
        stream = client.stream("count", headers={"traceparent": PARENT})
        assert [i async for i in stream] == [0, 1]
    assert [each.metadata["traceparent"] for each in transport.requests] == [PARENT, PARENT]


async def test_only_allowed_baggage_comes_in(recorded: Recorded) -> None:
    headers = {"traceparent": PARENT, "baggage": "tenant=a,secret=b, more = c "}
    seen = await asked(recorded.settings, headers, "baggage-1")
    assert seen["baggage"] == {}
    for settings in (recorded.but(baggage_keys={"tenant"}), Telemetry(baggage_keys={"tenant"})):
        seen = await asked(settings, headers, "baggage-2")
        assert seen["baggage"] == {"tenant": "a"}
        assert seen["onward"]["baggage"] == "tenant=a"


@pytest.mark.parametrize(
    "hostile",
    [
        {"traceparent": "00-" + "0" * 32 + "-" + "0" * 16 + "-01"},
        {"traceparent": "ff" + PARENT[2:]},
        {"traceparent": PARENT.upper()},
        {"traceparent": PARENT + "-" + "x" * 10_000},
        {"traceparent": ""},
        {"traceparent": PARENT + "é"},
    ],
)
async def test_a_traceparent_that_is_none_begins_a_trace(
    recorded: Recorded, hostile: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    await asked(recorded.settings, hostile, "hostile")
    assert recorded.named("look").parent is None
    assert caplog.records == []


async def test_blanks_and_tabs_around_the_members_of_a_list_are_nothing(
    recorded: Recorded,
) -> None:
    headers = {
        "traceparent": PARENT,
        "tracestate": "a=1 \t , \t b=2,\tc=3",
        "baggage": "tenant\t=\ta\t,\tother=b",
    }
    seen = await asked(recorded.but(baggage_keys={"tenant"}), headers, "blanks")
    assert seen["trace"] == TRACE
    assert seen["onward"]["tracestate"] == "a=1,b=2,c=3"
    assert seen["baggage"] == {"tenant": "a"}


async def test_an_oversize_header_is_dropped_without_being_logged(
    recorded: Recorded, caplog: pytest.LogCaptureFixture
) -> None:
    settings = recorded.but(baggage_keys={"tenant"})
    headers = {
        "traceparent": PARENT,
        "tracestate": "a=" + "x" * 600,
        "baggage": ",".join(f"k{i}=v" for i in range(500)) + ",tenant=a",
    }
    seen = await asked(settings, headers, "oversize")
    assert seen["trace"] == TRACE
    assert seen["baggage"] == {}
    assert "tracestate" not in seen["onward"]
    assert caplog.records == []


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
_values = _json | st.sampled_from(
    [PARENT, PARENT + "\r\n", "\0", "a=1,b=2", "tenant=%ff", "tenant=a;p=1", "=", ",,,", "x" * 9000]
)


@given(
    st.dictionaries(
        st.sampled_from(["traceparent", "tracestate", "baggage", "b3", "x"]), _values, max_size=5
    )
)
def test_no_header_of_any_type_raises_or_logs(headers: dict[str, Any]) -> None:
    seen: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.WARNING:
                seen.append(record)

    root, keep = logging.getLogger(), Keep()
    root.addHandler(keep)
    try:
        propagation = Propagation(Telemetry(baggage_keys={"tenant"}))
        propagation.present(headers)
        context = propagation.extract(headers)
        carrier: dict[str, str] = {}
        propagation.inject(carrier, context)
        propagation.explicit(headers)
    finally:
        root.removeHandler(keep)
    for value in carrier.values():
        assert isinstance(value, str)
        assert "\r" not in value
        assert "\n" not in value
    assert [r for r in seen if "x" * 500 in r.getMessage()] == []


@given(st.dictionaries(st.sampled_from(["traceparent", "tracestate", "baggage"]), _values))
def test_a_server_takes_any_message_in(headers: dict[str, Any]) -> None:
    recorded = Recorded()

    async def main() -> None:
        server = Server("memory://fuzz", telemetry=recorded.but(baggage_keys={"tenant"}))

        @server.message_pattern("look")
        async def look() -> int:
            return 1

        answered: list[Any] = []

        async def respond(reply: Any) -> None:
            answered.append(reply)

        slots = server._app.slots(lambda: None, lambda: None)
        server._app.accept(Message("look", b"null", headers, b"1"), respond, slots, "memory")
        while not answered:
            await asyncio.sleep(0)
        assert answered[0].error is None

    asyncio.run(main())
    assert attributes(recorded.named("look"))["rpc.method"] == "look"
