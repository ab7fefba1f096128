"""A trace over two services, printed as a tree; needs `pip install opentelemetry-sdk`."""

import asyncio
import logging
import sys
from collections import defaultdict
from collections.abc import Sequence

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from resilient_client import ClientProxy, CorrelationFilter, Server

# The application sets the SDK up, once; a service of yours has a BatchSpanProcessor with an OTLP
# exporter here. resilient_client uses whatever provider is set.
exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)

log = logging.getLogger("example")
handler = logging.StreamHandler(sys.stdout)
handler.addFilter(CorrelationFilter())
handler.setFormatter(logging.Formatter("[%(correlation_id)s] %(message)s"))
log.addHandler(handler)
log.setLevel(logging.INFO)

shop = Server("memory://shop")
stock = Server("memory://stock")
stock_client = ClientProxy("memory://stock")


@stock.message_pattern("stock.reserve")
async def reserve(article: str) -> bool:
    log.info("reserving %s", article)
    return True


@shop.message_pattern("order")
async def order(article: str) -> str:
    log.info("ordering %s", article)
    await stock_client.send("stock.reserve", article)
    return "ordered"


def show(spans: Sequence[ReadableSpan], parent: int | None = None, depth: int = 0) -> None:
    children = defaultdict(list)
    for span in spans:
        children[span.parent.span_id if span.parent else None].append(span)
    for span in sorted(children[parent], key=lambda span: span.start_time or 0):
        print("  " * depth + f"{span.kind.name:<9} {span.name}")
        if span.context is not None:
            show(spans, span.context.span_id, depth + 1)


async def main() -> None:
    async with shop, stock, stock_client, ClientProxy("memory://shop") as client:
        with trace.get_tracer("example").start_as_current_span("button pressed"):
            await client.send("order", "tea", headers={"x-correlation-id": "order-1"})
    spans = exporter.get_finished_spans()
    show(spans)
    print("traces:", len({span.context.trace_id for span in spans if span.context}))


if __name__ == "__main__":
    asyncio.run(main())
