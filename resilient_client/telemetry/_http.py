"""One HTTP request of a client, recorded by the conventions for HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resilient_client.context import CORRELATION_HEADER
from resilient_client.errors import RemoteError
from resilient_client.telemetry import _semconv as names
from resilient_client.telemetry._calls import AttemptRecord
from resilient_client.telemetry._errors import description
from resilient_client.telemetry._otel import SpanKind, Status, StatusCode
from resilient_client.telemetry._recorder import Method

if TYPE_CHECKING:
    from resilient_client.message import Call
    from resilient_client.telemetry._calls import CallRecord
    from resilient_client.telemetry._metrics import Labels


def http_method(method: Method, verb: str, template: str, address: Labels) -> Method:
    """What the requests of a method to one endpoint are called, made once."""
    key = address.get(names.SERVER_ADDRESS), address.get(names.SERVER_PORT)
    known = method.http.get(key)
    if known is None:
        labels: dict[str, str | int] = {names.HTTP_REQUEST_METHOD: verb, **address}
        span_name = verb
        if method.name is not names.OTHER:
            labels[names.URL_TEMPLATE] = template
            span_name = f"{verb} {template}"
        known = Method(template, span_name, "http", SpanKind.CLIENT, labels, labels)
        method.http[key] = known
    return known


class HttpAttempt(AttemptRecord):
    """One HTTP request of a call, by the conventions for HTTP.

    Args:
        url: without user, password and the values in its query.
    """

    __slots__ = ("_call", "_method")

    def __init__(
        self, parent: CallRecord, call: Call, method: Method, url: str, started: float
    ) -> None:
        self.parent = parent
        self._call = call
        self._method = method
        self._started = started
        self._ended = False
        self._type = "initial" if call.attempt <= 1 else "retry"
        self._labels = method.labels
        self.explicit = parent.explicit
        self.span = None
        self.context = None
        if parent.context is not None:
            attributes = {**method.attributes, names.URL_FULL: url}
            if parent.attempts > 1:
                attributes[names.HTTP_REQUEST_RESEND_COUNT] = parent.attempts - 1
            if parent.span is None:  # this one stands for the call
                attributes[names.CORRELATION_ID] = call.headers[CORRELATION_HEADER]
            self._begin(method.span_name, method.kind, attributes, None)

    def _end(self, error: BaseException | None, at: float | None, wall: int | None) -> None:
        """An error is what the status or the network says it is."""
        recorder, method, status = self.parent.recorder, self._method, self._call.status
        kind = None
        if isinstance(status, int) and status >= 400:
            kind = recorder.errors.bounded(str(status))
        elif isinstance(error, Exception) and not isinstance(error, RemoteError):
            kind = recorder.errors.of(error)
        if recorder.instruments is not None:
            elapsed = recorder.now() - self._started
            recorder.instruments.http_client.record(
                elapsed, method.labels_of(kind, status), self.context
            )
        span = self.span
        if span is None:
            return
        if span.is_recording():
            if status is not None:
                span.set_attribute(names.HTTP_RESPONSE_STATUS_CODE, status)
            if kind is not None:
                span.set_attribute(names.ERROR_TYPE, kind)
                text = None if error is None else description(error)
                span.set_status(Status(StatusCode.ERROR, text))
            elif error is not None and not isinstance(error, Exception):
                span.set_attribute(names.OUTCOME, "cancelled")
        span.end()
