"""What telemetry costs a call: turned off, with no SDK, and recording, as ratios in one run.

`python -m benchmarks.telemetry`. One process, a transport that answers at once, and a server's
dispatch without a wire; the contestants take turns, the best round of each counts. What records
keeps nothing: the spans end in no exporter, the metrics are never collected.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from opentelemetry import trace
from opentelemetry.context import attach, detach
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from benchmarks.stack import Instant
from resilient_client import ClientProxy, Server, Telemetry
from resilient_client.message import Message

ROUNDS = 15
CALLS = 2000
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
Contestant = Callable[[int], Awaitable[None]]


def _client(telemetry: Any, *, ambient: bool = False, **settings: Any) -> Contestant:
    client = ClientProxy(Instant, telemetry=telemetry, **settings)
    span = NonRecordingSpan(SpanContext(1, 1, is_remote=True, trace_flags=TraceFlags(1)))

    async def run(number: int) -> None:
        send = client.send
        token = attach(trace.set_span_in_context(span)) if ambient else None
        for _ in range(number):
            await send("sum", 1)
        if token is not None:
            detach(token)

    return run


def _server(telemetry: Any, headers: dict[str, str], name: str) -> Contestant:
    server = Server(f"memory://{name}", telemetry=telemetry)

    @server.message_pattern("sum")
    async def add(number: int) -> int:
        return number

    app = server._app

    async def run(number: int) -> None:
        loop = asyncio.get_running_loop()
        slots = app.slots(lambda: None, lambda: None)
        answered: asyncio.Future[None]

        async def respond(_: Any) -> None:
            answered.set_result(None)

        for _ in range(number):
            answered = loop.create_future()
            message = Message("sum", b"1", headers, b"1", received=app.clock.now())
            app.accept(message, respond, slots, "tcp")
            await answered
        slots.close()

    return run


def _recording() -> dict[str, Telemetry]:
    try:
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
    except ImportError:
        return {}
    meters = MeterProvider([InMemoryMetricReader()])
    return {
        "sampled": Telemetry(tracer_provider=TracerProvider(), meter_provider=meters),
        "unsampled": Telemetry(
            tracer_provider=TracerProvider(sampler=ALWAYS_OFF), meter_provider=meters
        ),
    }


async def _race() -> dict[str, float]:
    bare: dict[str, Any] = {"policies": ()}
    known = {"x-correlation-id": "one", "x-deadline-ms": "10000"}
    contestants = {
        "client, off": _client(False, **bare),
        "client, no SDK": _client(True, **bare),
        "client, no SDK, a trace to pass on": _client(True, ambient=True, **bare),
        "server, off": _server(False, known, "off"),
        "server, no SDK": _server(True, known, "api"),
        "server, no SDK, a trace to pass on": _server(True, {**known, "traceparent": PARENT}, "p"),
    }
    for name, settings in _recording().items():
        contestants[f"client, {name}"] = _client(settings, **bare)
        contestants[f"server, {name}"] = _server(settings, known, name)
    best: dict[str, float] = dict.fromkeys(contestants, float("inf"))
    for _ in range(ROUNDS):
        for name, contestant in contestants.items():
            began = time.process_time()
            await contestant(CALLS)
            best[name] = min(best[name], (time.process_time() - began) / CALLS * 1e6)
    return best


def main() -> None:
    """Measure and print."""
    best = asyncio.run(_race())
    for name, cost in sorted(best.items()):
        off = best[f"{name.partition(',')[0]}, off"]
        print(f"{name:36} {cost:7.2f} us  {cost / off:5.2f} of off  {cost - off:+7.2f} us")


if __name__ == "__main__":
    main()
