"""The one module that imports OpenTelemetry: its API, never its SDK."""

from __future__ import annotations

from typing import Any

from opentelemetry import baggage as baggage
from opentelemetry import metrics, propagate, trace
from opentelemetry.context import Context as Context
from opentelemetry.context import attach as attach
from opentelemetry.context import detach as detach
from opentelemetry.context import get_current as get_current
from opentelemetry.metrics import CallbackOptions as CallbackOptions
from opentelemetry.metrics import Meter as Meter
from opentelemetry.metrics import Observation as Observation
from opentelemetry.propagators.textmap import Getter as Getter
from opentelemetry.propagators.textmap import Setter as Setter
from opentelemetry.propagators.textmap import TextMapPropagator as TextMapPropagator
from opentelemetry.trace import Link as Link
from opentelemetry.trace import Span as Span
from opentelemetry.trace import SpanContext as SpanContext
from opentelemetry.trace import SpanKind as SpanKind
from opentelemetry.trace import Status as Status
from opentelemetry.trace import StatusCode as StatusCode
from opentelemetry.trace import Tracer as Tracer
from opentelemetry.trace import format_span_id as format_span_id
from opentelemetry.trace import format_trace_id as format_trace_id
from opentelemetry.trace import get_current_span as get_current_span
from opentelemetry.trace import set_span_in_context as set_span_in_context

from resilient_client.telemetry._semconv import SCHEMA_URL, SCOPE

global_propagator = propagate.get_global_textmap


def tracer_of(provider: Any, version: str) -> Tracer | None:
    """A tracer that may record; None while the application has set no provider up.

    Asking in this way also loads the provider that `OTEL_PYTHON_TRACER_PROVIDER` names.
    """
    if provider is None:
        provider = trace.get_tracer_provider()
        if isinstance(provider, trace.ProxyTracerProvider | trace.NoOpTracerProvider):
            return None
    return trace.get_tracer(SCOPE, version, provider, SCHEMA_URL)


def meter_provider_of(provider: Any) -> Any:
    """A meter provider that may record; None while the application has set none up."""
    if provider is None:
        provider = metrics.get_meter_provider()
        # the stand-in until one is set has no public name
        if isinstance(provider, metrics.NoOpMeterProvider) or "Proxy" in type(provider).__name__:
            return None
    return provider


def meter_of(provider: Any, version: str) -> Meter:
    """This package's meter of a provider."""
    return metrics.get_meter(SCOPE, version, provider, SCHEMA_URL)


def log_fields() -> tuple[str, str, str]:
    """Trace id, span id and flags of the work in progress; empty without a span."""
    context = get_current_span().get_span_context()
    if not context.is_valid:
        return "", "", ""
    return (
        format_trace_id(context.trace_id),
        format_span_id(context.span_id),
        f"{context.trace_flags:02x}",
    )
