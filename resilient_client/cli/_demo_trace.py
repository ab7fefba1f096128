"""Keeps the spans of a process, and draws one trace over several processes as a tree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider

from resilient_client.telemetry import Telemetry

if TYPE_CHECKING:
    from resilient_client.telemetry._otel import SpanContext

KEPT = 5000  # spans: the demo asks for those of one trace at its end


class Spans(SpanProcessor):
    """The finished spans of this process, the newest of them."""

    def __init__(self, service: str) -> None:
        self.service = service
        self._spans: dict[int, dict[str, Any]] = {}
        provider = TracerProvider(
            resource=Resource.create({"service.name": service}), shutdown_on_exit=False
        )
        provider.add_span_processor(self)
        self.telemetry = Telemetry(tracer_provider=provider)

    def on_end(self, span: ReadableSpan) -> None:
        """Keep it."""
        context = span.context
        if context is None:  # as the SDK's types allow
            return
        self._spans[context.span_id] = self._plain(span, context)
        while len(self._spans) > KEPT:
            del self._spans[next(iter(self._spans))]

    def of(self, trace_id: str) -> list[dict[str, Any]]:
        """The spans of one trace, as plain values."""
        return [span for span in self._spans.values() if span["trace"] == trace_id]

    def traces(self) -> dict[str, list[dict[str, Any]]]:
        """All traces."""
        found: dict[str, list[dict[str, Any]]] = {}
        for span in self._spans.values():
            found.setdefault(span["trace"], []).append(span)
        return found

    def _plain(self, span: ReadableSpan, context: SpanContext) -> dict[str, Any]:
        error = (span.attributes or {}).get("error.type")
        return {
            "trace": f"{context.trace_id:032x}",
            "id": f"{context.span_id:016x}",
            "parent": None if span.parent is None else f"{span.parent.span_id:016x}",
            "name": span.name,
            "kind": span.kind.name,
            "service": self.service,
            "start": (span.start_time or 0) / 1e9,
            "end": (span.end_time or 0) / 1e9,
            "error": None if error is None else str(error),
        }


def tree(spans: list[dict[str, Any]]) -> list[str]:
    """The trace as lines, children below their parents, times from its beginning."""
    if not spans:
        return ["(no spans)"]
    known = {span["id"] for span in spans}
    began = min(span["start"] for span in spans)
    children: dict[str | None, list[dict[str, Any]]] = {}
    for span in sorted(spans, key=lambda each: each["start"]):
        parent = span["parent"] if span["parent"] in known else None
        children.setdefault(parent, []).append(span)
    lines: list[str] = []

    def draw(span: dict[str, Any], before: str, branch: str, below: str) -> None:
        error = f"  {span['error']}" if span["error"] else ""
        lines.append(
            f"{before}{branch}{span['kind']} {span['name']} [{span['service']}]"
            f" {(span['start'] - began) * 1000:.1f} to {(span['end'] - began) * 1000:.1f} ms{error}"
        )
        own = children.get(span["id"], [])
        for index, child in enumerate(own):
            last = index == len(own) - 1
            draw(child, before + below, "└─ " if last else "├─ ", "   " if last else "│  ")

    for root in children.get(None, []):
        draw(root, "", "", "")
    return lines
