"""What depends on the process: an SDK that comes late, or never, and traces across processes."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from typing import Any

import pytest
from opentelemetry import trace

from resilient_client import ClientProxy, NoHandlerError, Server
from resilient_client.events import ConnectionChanged
from tests.peers.brokers import require_peer
from tests.peers.nest import NestServer, nest_missing
from tests.peers.process import free_port
from tests.telemetry.kit import PARENT, Recorded, within


def run(code: str, *options: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", *options, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_turned_off_it_does_not_even_load_opentelemetry() -> None:
    run("""
        import asyncio, sys
        sys.modules["redis"] = None  # where it is installed, pybreaker loads it and it the SDK
        from resilient_client import ClientProxy, Server, Telemetry

        async def main():
            server = Server("memory://off", telemetry=False)
            server.message_pattern("echo")(lambda payload: payload)
            async with server, ClientProxy("memory://off", telemetry=False) as client:
                assert await client.send("echo", 1) == 1

        asyncio.run(main())
        assert not [name for name in sys.modules if name.startswith("opentelemetry")]
    """)


def test_without_an_sdk_calls_work_in_silence() -> None:
    run("""
        import asyncio, logging, sys
        logging.basicConfig(level="WARNING")
        sys.modules["opentelemetry.sdk"] = None
        from resilient_client import ClientProxy, Server, SyncClientProxy

        async def main():
            server = Server("tcp://127.0.0.1:0")

            @server.message_pattern("echo")
            async def echo(payload):
                return payload

            @server.message_pattern("count")
            async def count(n):
                for i in range(n):
                    yield i

            async with server, ClientProxy(server.addresses[0]) as client:
                assert await client.send("echo", 1, idempotent=True) == 1
                assert [i async for i in client.stream("count", 3)] == [0, 1, 2]
                async for _ in client.stream("count", 3):
                    break
                await client.emit("echo", 1)
                telemetry = client._telemetry
                assert not telemetry.recording
                assert telemetry.tracer is None and telemetry.instruments is None

        asyncio.run(main())
    """)


@pytest.mark.parametrize("which", ["tracer", "meter", "both"])
def test_an_sdk_that_comes_after_the_client_is_found(which: str) -> None:
    run(f"""
        import asyncio
        from resilient_client import ClientProxy, Server
        from resilient_client.testing import FakeClock, ScriptedTransport
        from opentelemetry import metrics, trace
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        which = {which!r}
        clock = FakeClock()
        client = ClientProxy(ScriptedTransport([1], forever=True), policies=(), clock=clock)
        exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()

        async def main():
            await client.send("before")
            if which != "meter":
                provider = TracerProvider()
                provider.add_span_processor(SimpleSpanProcessor(exporter))
                trace.set_tracer_provider(provider)
            if which != "tracer":
                metrics.set_meter_provider(MeterProvider([reader]))
            await client.send("too soon to look again")
            await clock.advance(1)
            await client.send("after")
            await client.send("after")

        asyncio.run(main())
        assert [s.name for s in exporter.get_finished_spans()] == (
            [] if which == "meter" else ["after", "after"]
        )
        data = reader.get_metrics_data() if which != "tracer" else None
        if data is not None:
            points = [
                (dict(p.attributes)["rpc.method"], p.count)
                for m in data.resource_metrics[0].scope_metrics[0].metrics
                if m.name == "rpc.client.call.duration"
                for p in m.data.data_points
            ]
            assert points == [("after", 2)], points
    """)


def test_connecting_looks_for_an_sdk_too() -> None:
    run("""
        import asyncio
        from resilient_client import ClientProxy
        from resilient_client.testing import FakeClock, ScriptedTransport
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider

        async def main():
            client = ClientProxy(ScriptedTransport(), policies=(), clock=FakeClock())
            trace.set_tracer_provider(TracerProvider())
            async with client:
                assert client._telemetry.recording

        asyncio.run(main())
    """)


def test_the_sync_client_stands_below_its_callers_span() -> None:
    out = run("""
        from resilient_client import Server, SyncClientProxy
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
        from resilient_client.testing import ScriptedTransport

        exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        trace.set_tracer_provider(provider)
        with SyncClientProxy(ScriptedTransport([1]), policies=()) as client:
            with trace.get_tracer("app").start_as_current_span("work") as work:
                client.send("sum")
        span = exporter.get_finished_spans()[0]
        assert span.name == "sum"
        assert span.parent.span_id == work.get_span_context().span_id
        print("ok")
    """)
    assert out == "ok\n"


SERVER = """
    import asyncio, json, sys
    from resilient_client import ClientProxy, Server
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    server = Server("tcp://127.0.0.1:0")

    @server.message_pattern("sum")
    async def add(numbers: list[int]) -> int:
        return sum(numbers)

    @server.event_pattern("happened")
    async def happened() -> None:
        server.shutdown()

    async def main():
        started = asyncio.create_task(server.serve())
        while not server._listeners[0].streams and server.addresses[0].endswith(":0"):
            await asyncio.sleep(0.01)
        print(server.addresses[0], flush=True)
        await started

    asyncio.run(asyncio.wait_for(main(), 40))
    print(json.dumps([
        [s.name, s.kind.name, f"{s.context.trace_id:032x}", f"{s.parent.span_id:016x}"]
        for s in exporter.get_finished_spans()
    ]))
"""


async def test_one_trace_spans_two_processes(recorded: Recorded) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", textwrap.dedent(SERVER), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        url = (await asyncio.wait_for(process.stdout.readline(), 30)).decode().strip()
        with within(recorded.tracers.get_tracer("app").start_span("work")):
            async with ClientProxy(url, telemetry=recorded.settings) as client:
                assert await client.send("sum", [1, 2]) == 3
                await client.emit("happened")
                seen = json.loads(await asyncio.wait_for(process.stdout.read(), 30))
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        process._transport.close()  # type: ignore[attr-defined]
    sent = [recorded.named("sum"), recorded.named("emit happened")]
    assert seen == [
        [name, kind, f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}"]
        for name, kind, span in zip(
            ["sum", "process happened"], ["SERVER", "CONSUMER"], sent, strict=True
        )
    ]
    assert len({span.context.trace_id for span in sent}) == 1


@pytest.mark.interop
@pytest.mark.timeout(180)
async def test_one_trace_goes_through_nest(recorded: Recorded) -> None:
    require_peer(nest_missing(12))
    port = free_port()
    server = Server(f"tcp://127.0.0.1:{port}", telemetry=recorded.settings)

    @server.message_pattern("sum")
    async def add(numbers: list[int]) -> int:
        return sum(numbers)

    async with (
        server,
        NestServer("tcp") as nest,
        ClientProxy(nest.url, telemetry=recorded.settings) as client,
    ):
        onward: dict[str, Any] = {
            "to": {"transport": "tcp", "port": port},
            "pattern": "sum",
            "data": [1, 2],
        }
        assert await client.send("forward", onward) == 3
    assert recorded.tree() == "CLIENT forward\n  SERVER sum"


async def test_what_runs_in_the_background_keeps_no_callers_span(recorded: Recorded) -> None:
    seen: list[tuple[str, bool]] = []

    def observe(event: Any) -> None:
        if isinstance(event, ConnectionChanged):
            seen.append((event.new, trace.get_current_span().get_span_context().is_valid))

    port = free_port()
    span = recorded.tracers.get_tracer("app").start_span("work")
    for _ in range(2):
        server = Server(f"tcp://127.0.0.1:{port}", telemetry=False)

        @server.message_pattern("sum")
        async def add(numbers: list[int]) -> int:
            return sum(numbers)

        if not seen:
            client = ClientProxy(f"tcp://127.0.0.1:{port}", telemetry=False, observers=[observe])
        async with server:
            with within(span):  # the first call connects
                assert await client.send("sum", [1], idempotent=True) == 1
        while client.status == "connected":
            await asyncio.sleep(0.01)
    await client.aclose()
    span.end()
    assert [state for state, _ in seen].count("connected") == 2
    assert [state for state, valid in seen if valid and state != "connecting"] == []


async def test_a_handlers_task_does_not_inherit_what_its_connection_was_made_in(
    recorded: Recorded,
) -> None:
    server = Server("tcp://127.0.0.1:0", telemetry=recorded.settings)

    @server.message_pattern("sum")
    async def add(numbers: list[int]) -> int:
        return sum(numbers)

    with within(recorded.tracers.get_tracer("app").start_span("start-up")):
        await server.start()
    async with ClientProxy(server.addresses[0], policies=(), telemetry=False) as client:
        await client.send("sum", [1])
        await client.send("sum", [1], headers={"traceparent": PARENT})
    await server.aclose()
    first, second = recorded.spans
    assert first.parent is None
    assert second.parent is not None
    assert second.parent.is_remote


class Broken:
    """An SDK of an application's that fails wherever it can."""

    def __init__(self, where: str) -> None:
        self.where = where

    def get_tracer(self, *_: Any, **__: Any) -> Any:
        if self.where == "find":  # as where the environment names one that is not installed
            raise StopIteration
        return self

    def start_span(self, *given: Any, **more: Any) -> Any:
        if self.where == "start":
            raise RuntimeError("no span")
        more.pop("record_exception"), more.pop("set_status_on_exception")
        span = Recorded().tracers.get_tracer("x").start_span(*given, **more)
        if self.where == "end":
            span.end = self._fail  # type: ignore[method-assign]
        return span

    def _fail(self, *_: Any) -> None:
        raise RuntimeError("no end")


@pytest.mark.parametrize("where", ["find", "start", "end"])
async def test_an_sdk_that_fails_fails_no_call_and_is_told_of_once(
    where: str, recorded: Recorded, caplog: pytest.LogCaptureFixture
) -> None:
    settings = recorded.but(tracer_provider=Broken(where), attempt_spans="always")
    server = Server("memory://broken", telemetry=settings)

    @server.message_pattern("count")
    async def count(n: int) -> AsyncIterator[int]:
        for i in range(n):
            yield i

    @server.event_pattern("happened")
    async def happened() -> None: ...

    async with server, ClientProxy("memory://broken", telemetry=settings) as client:
        assert await client.send("count", 3) == 0
        assert [i async for i in client.stream("count", 3)] == [0, 1, 2]
        await client.emit("happened")
        with pytest.raises(NoHandlerError):
            await client.send("nobody")
        await asyncio.sleep(0.05)
    assert recorded.value("rpc.client.call.duration") == 3
    assert len([r for r in caplog.records if r.levelname == "WARNING"]) == 2  # client, server
