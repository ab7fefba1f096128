"""An application's SDK for tests: what was recorded, as trees of spans and as tables of numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler

from resilient_client import Telemetry

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"


class Recorded:
    """Providers of one application, and what they were given."""

    def __init__(self, sampler: Sampler = ALWAYS_ON) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracers = TracerProvider(sampler=sampler)
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.reader = InMemoryMetricReader()
        self.meters = MeterProvider([self.reader])
        self.settings = self.but()

    def but(self, **changed: Any) -> Telemetry:
        return Telemetry(
            **{"tracer_provider": self.tracers, "meter_provider": self.meters, **changed}
        )

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self.exporter.get_finished_spans())

    def named(self, name: str, kind: str | None = None) -> ReadableSpan:
        found = [s for s in self.spans if s.name == name and kind in (None, s.kind.name)]
        assert len(found) == 1, [(s.name, s.kind.name) for s in self.spans]
        return found[0]

    def tree(self) -> str:
        """The spans, each below its parent, in the order they began."""
        spans = sorted(self.spans, key=lambda each: each.start_time or 0)
        known = {each.context.span_id for each in spans}
        lines: list[str] = []

        def show(span: ReadableSpan, depth: int) -> None:
            line = f"{'  ' * depth}{span.kind.name} {span.name}"
            attributes = dict(span.attributes or {})
            if span.status.status_code is trace.StatusCode.ERROR:
                line += " !"
            if "error.type" in attributes:
                line += f" {attributes['error.type']}"
            lines.append(line)
            for each in spans:
                if each.parent is not None and each.parent.span_id == span.context.span_id:
                    show(each, depth + 1)

        for span in spans:
            if span.parent is None or span.parent.span_id not in known:
                show(span, 0)
        return "\n".join(lines)

    def metrics(self) -> dict[str, Any]:
        data = self.reader.get_metrics_data()
        if data is None:
            return {}
        return {
            metric.name: metric
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def points(self, name: str) -> list[tuple[dict[str, Any], Any]]:
        """Labels and value (of a histogram: count) of each series."""
        metric = self.metrics().get(name)
        if metric is None:
            return []
        return [
            (dict(point.attributes), getattr(point, "value", getattr(point, "count", None)))
            for point in metric.data.data_points
        ]

    def value(self, name: str, **labels: Any) -> Any:
        """The sum over the series that have these labels (dots written as __)."""
        wanted = {key.replace("__", "."): value for key, value in labels.items()}
        values = [v for own, v in self.points(name) if wanted.items() <= own.items()]
        return sum(values) if values else None


def attributes(span: ReadableSpan) -> Mapping[str, Any]:
    return dict(span.attributes or {})


@contextmanager
def within(span: trace.Span) -> Iterator[None]:
    """The span is the current one."""
    token = otel_context.attach(trace.set_span_in_context(span))
    try:
        yield
    finally:
        otel_context.detach(token)
