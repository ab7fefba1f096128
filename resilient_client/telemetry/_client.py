"""Spans and metrics of a client's calls."""

from __future__ import annotations

import time
from math import inf
from typing import TYPE_CHECKING, Any

from resilient_client import __version__
from resilient_client.context import CORRELATION_HEADER, correlation_id, fresh_id
from resilient_client.errors import Outcome
from resilient_client.events import CallRejected, CircuitChanged, RetrySuppressed
from resilient_client.telemetry import _semconv as names
from resilient_client.telemetry._errors import ErrorTypes, attempt_outcome, description, status_code
from resilient_client.telemetry._metrics import instruments_of
from resilient_client.telemetry._otel import (
    SpanKind,
    Status,
    StatusCode,
    format_trace_id,
    get_current,
    get_current_span,
    set_span_in_context,
    tracer_of,
)
from resilient_client.telemetry._propagation import Propagation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from resilient_client.events import Event, Observer
    from resilient_client.message import Call, Reply
    from resilient_client.pipeline import Handler
    from resilient_client.telemetry import Telemetry
    from resilient_client.telemetry._metrics import Cell, Instruments, Labels
    from resilient_client.telemetry._otel import Context, Span, Tracer
    from resilient_client.transports._base import Transport

MAX_METHODS = 200
PROBE_EVERY = 1.0
"""Seconds between two looks whether the application has set a provider up."""
_REASONS = {"attempts": "max_attempts"}
_STATES = ("closed", "open", "half-open", "forced-open", "disabled", "metrics-only")


class _Method:
    """What spans and metrics of one pattern have in common, made once.

    The API keeps the dictionaries it is given as they are: they are never changed.
    """

    __slots__ = ("attempt_labels", "attributes", "failed", "kind", "labels", "name", "sent",
                 "span_name")  # fmt: skip

    def __init__(
        self, name: str, span_name: str, kind: SpanKind, labels: Labels, attributes: Labels
    ) -> None:
        self.name = name
        self.span_name = span_name
        self.kind = kind
        self.labels = labels
        self.attributes = attributes
        self.failed: dict[str, Labels] = {}
        self.attempt_labels: dict[tuple[str, str, str | None], Labels] = {}
        self.sent: dict[str | None, Cell] = {}

    def labels_of(self, kind: str | None) -> Labels:
        """The metric labels of a call that ended with this `error.type`."""
        if kind is None:
            return self.labels
        labels = self.failed.get(kind)
        if labels is None:
            labels = self.failed[kind] = {**self.labels, names.ERROR_TYPE: kind}
        return labels


class ClientTelemetry:
    """What a client tells OpenTelemetry; while nobody listens it costs a comparison per call.

    Args:
        name: the client's.
        transports: one per endpoint.
        now: the client's clock.
        listen: how to hear of the client's news, once something records.
        breakers: the breakers by endpoint.
    """

    def __init__(
        self,
        name: str,
        transports: Sequence[Transport],
        settings: Telemetry,
        *,
        now: Callable[[], float],
        listen: Callable[[Observer], object],
        breakers: Mapping[str, Any],
    ) -> None:
        self.recording = False
        self.next_probe = -inf
        self.now = now
        self.errors = ErrorTypes()
        self.active = 0
        self.tracer: Tracer | None = None
        self.instruments: Instruments | None = None
        self._settings = settings
        self._listen = listen
        self._transports = transports
        self._breakers = breakers
        self._propagation = Propagation(settings)
        self._scheme = transports[0].endpoint.partition("://")[0]
        self._several = len(transports) > 1
        self._attempts = settings.attempt_spans
        if self._several:
            self._address: dict[str, str | int] = {names.SERVER_ADDRESS: name}
        else:
            self._address = _address(transports[0].endpoint)
        self._own: dict[str, str | int] = {
            names.NAME: name,
            names.SERVER_ADDRESS: self._address[names.SERVER_ADDRESS],
        }
        self._methods: dict[tuple[str, bool], _Method] = {}
        self._addresses: dict[str | None, dict[str, str | int]] = {}
        self._breaker_states: dict[str, str] = {}
        self.probe(-inf)

    # ------------------------------------------------------------------------- whether to record

    def probe(self, now: float) -> bool:
        """Look whether there is somebody to record for; not more often than once a second."""
        self.next_probe = now + PROBE_EVERY
        settings = self._settings
        if self.tracer is None:
            self.tracer = tracer_of(settings.tracer_provider, __version__)
        if self.instruments is None:
            self.instruments = instruments_of(settings.meter_provider, __version__)
            if self.instruments is not None:
                self.instruments.watch(self)
        if self.tracer is not None and self.instruments is not None:
            self.next_probe = inf
        if not self.recording and (self.tracer is not None or self.instruments is not None):
            self.recording = True
            self._breaker_states = {
                each.name: each.current_state for each in self._breakers.values()
            }
            self._listen(self.observe)
        return self.recording

    # ------------------------------------------------------------------------------------- calls

    def begin(self, call: Call) -> None:
        """Start the call's span, and give the call its correlation id."""
        if call.started >= self.next_probe:
            self.probe(call.started)
        method = self._methods.get((call.route, call.kind == "emit"))
        if method is None:
            method = self._method(call)
        record = call.span = _CallRecord(self, method, call)
        self.active += 1
        headers = call.headers
        known = headers.get(CORRELATION_HEADER) or correlation_id.get()
        span: Span | None = None
        if self.tracer is not None:
            parent = self._propagation.explicit(headers)
            record.explicit = parent is not None
            if parent is None:
                parent = get_current()
            span = self.tracer.start_span(
                method.span_name,
                parent,
                method.kind,
                method.attributes,
                record_exception=False,
                set_status_on_exception=False,
            )
            record.span = span
            record.context = set_span_in_context(span, parent)
            if known is None:
                context = span.get_span_context()
                known = format_trace_id(context.trace_id) if context.is_valid else None
        if known is None:
            known = self.correlation_id()
        headers[CORRELATION_HEADER] = known
        if span is not None and span.is_recording():
            span.set_attribute(names.CORRELATION_ID, known)
            if method.name is names.OTHER:
                span.set_attribute(names.RPC_METHOD_ORIGINAL, call.route[:256])

    def correlation_id(self) -> str:
        """The trace id of the work in progress, else a fresh id."""
        ambient = get_current()
        if ambient:
            context = get_current_span(ambient).get_span_context()
            if context.is_valid:
                return format_trace_id(context.trace_id)
        return fresh_id()

    def _method(self, call: Call) -> _Method:
        """The method's names; what comes after the first 200 is `_OTHER`."""
        is_event = call.kind == "emit"
        key = (call.route, is_event)
        name = call.route[:256]
        if len(self._methods) >= MAX_METHODS:
            name = names.OTHER
            key = (name, is_event)
            if key in self._methods:
                return self._methods[key]
        system = names.messaging_system(self._scheme)
        if is_event and system is not None:
            operation = names.publish_name(self._scheme)
            labels: dict[str, str | int] = {
                names.MESSAGING_SYSTEM: system,
                names.MESSAGING_OPERATION_NAME: operation,
                names.MESSAGING_OPERATION_TYPE: "send",
                names.MESSAGING_DESTINATION_NAME: name,
                **self._address,
            }
            method = _Method(name, f"{operation} {name}", SpanKind.PRODUCER, labels, labels)
        else:
            rpc_system = names.rpc_system(self._scheme)
            labels = {names.RPC_SYSTEM_NAME: rpc_system, names.RPC_METHOD: name, **self._address}
            attributes = labels
            if system is not None and names.is_broker(self._scheme):
                attributes = {
                    **labels,
                    names.MESSAGING_SYSTEM: system,
                    names.MESSAGING_DESTINATION_NAME: name,
                }
            span_name = rpc_system if name is names.OTHER else name
            method = _Method(name, span_name, SpanKind.CLIENT, labels, attributes)
        self._methods[key] = method
        return method

    # ---------------------------------------------------------------------------------- attempts

    def around_attempt(self, handler: Handler) -> Handler:
        """The handler inside a span of its own, where there may be several attempts."""
        mode, several = self._attempts, self._several

        def attempt(call: Call) -> Any:
            record = call.span
            if (
                record is None
                or mode == "never"
                or not (call.may_repeat or call.attempt > 1 or several or mode == "always")
            ):
                return handler(call)
            return self._attempt(handler, call, record)

        return attempt

    async def _attempt(self, handler: Handler, call: Call, record: _CallRecord) -> Reply:
        for failure in call.failures[record.attempts :]:
            record.attempts += 1  # one that nobody expected to be followed by another
            self._missed(record, call, failure)
        record.attempts += 1
        attempt = _AttemptRecord(record, call.attempt, call.endpoint)
        if call.failures:
            attempt.delayed(max(0.0, call.attempt_started - call.failures[-1][3]))
        call.span = attempt
        try:
            reply = await handler(call)
        except BaseException as error:
            attempt.end(error)
            raise
        finally:
            call.span = record
        if reply.items is None:
            attempt.end(None)
        else:
            record.open = attempt  # ends with the stream, just before the call
        return reply

    def _missed(self, record: _CallRecord, call: Call, failure: Any) -> None:
        """The span of an attempt that failed before there was a reason for one."""
        number, endpoint, started, ended, error = failure
        wall, now = time.time_ns(), self.now()
        attempt = _AttemptRecord(
            record, number, endpoint, started, wall - int((now - started) * 1e9)
        )
        attempt.end(error, ended, wall - int((now - ended) * 1e9))

    def inject(self, call: Call) -> None:
        """Write the trace context into the attempt's headers.

        While nothing records, what is ambient (a caller's trace, as a rule) goes out as it came.
        """
        record = call.span
        if record is not None and record.context is not None:
            if not record.explicit or record.span.is_recording():
                self._propagation.inject(call.metadata, record.context)
            return
        ambient = get_current()
        if ambient and not self._propagation.present(call.headers):
            self._propagation.inject(call.metadata, ambient)

    def address_of(self, endpoint: str | None) -> dict[str, str | int]:
        """`server.*` of one endpoint, made once."""
        known = self._addresses.get(endpoint)
        if known is None:
            known = self._addresses[endpoint] = {} if endpoint is None else _address(endpoint)
        return known

    # -------------------------------------------------------------------------------------- news

    def observe(self, event: Event) -> None:
        """Count what the client's observers are told."""
        instruments = self.instruments
        if isinstance(event, CircuitChanged):
            self._breaker_states[event.name] = event.new
        if instruments is None:
            return
        if isinstance(event, CircuitChanged):
            labels: Labels = {
                names.BREAKER_NAME: event.name,
                names.BREAKER_FROM: event.old,
                names.BREAKER_TO: event.new,
            }
            instruments.cell("resilient_client.circuit_breaker.transitions", labels).value += 1
        elif isinstance(event, CallRejected):
            labels = {**self._own, names.REASON: self.errors.of(event.error)}
            instruments.cell("resilient_client.rejections", labels).value += 1
        elif isinstance(event, RetrySuppressed):
            reason = _REASONS.get(event.reason, event.reason)
            labels = {**self._own, names.REASON: reason}
            instruments.cell("resilient_client.retry.suppressed", labels).value += 1

    def gauges(self) -> Iterable[tuple[str, float, Labels]]:
        """See `_metrics.Observed`."""
        yield "resilient_client.call.active", self.active, self._own
        for transport in self._transports:
            numbers = getattr(transport, "numbers", None)
            if numbers is not None:
                for name, value in numbers().items():
                    yield f"resilient_client.{name}", value, self._own
        for breaker, state in list(self._breaker_states.items()):
            for each in _STATES:
                yield (
                    "resilient_client.circuit_breaker.state",
                    1 if each == state else 0,
                    {names.BREAKER_NAME: breaker, names.BREAKER_STATE: each},
                )


class _CallRecord:
    """One call that is recorded, until it ends."""

    __slots__ = ("_call", "_method", "_telemetry", "attempts", "context", "ended", "explicit",
                 "open", "span")  # fmt: skip

    def __init__(self, telemetry: ClientTelemetry, method: _Method, call: Call) -> None:
        self._telemetry = telemetry
        self._method = method
        self._call = call
        self.span: Any = None
        self.context: Context | None = None
        self.explicit = False
        self.attempts = 0  # spans of attempts made
        self.open: _AttemptRecord | None = None
        self.ended = False

    @property
    def telemetry(self) -> ClientTelemetry:
        return self._telemetry

    @property
    def method(self) -> _Method:
        return self._method

    def complete(self, outcome: Outcome, error: BaseException | None) -> None:
        """A stream has come to its end; see `Reply.on_complete`."""
        left = error is not None and not isinstance(error, Exception)
        if self.span is not None and self.span.is_recording() and not self.ended:
            self.span.set_attribute(names.STREAM_MESSAGES, self._call.received)
            if left:
                self.span.set_attribute(names.STREAM_ABANDONED, True)
        self.end(None if left and outcome is Outcome.SUCCESS else error)

    def end(self, error: BaseException | None) -> None:
        """The call has ended: end its span, and record how long it took. Once."""
        if self.ended:
            return
        self.ended = True
        if self.open is not None:
            self.open.end(error)
        telemetry, method, call = self._telemetry, self._method, self._call
        telemetry.active -= 1
        kind = None if error is None or not isinstance(error, Exception) else (
            telemetry.errors.of(error)
        )  # fmt: skip
        instruments = telemetry.instruments
        if instruments is not None:
            labels = method.labels_of(kind)
            elapsed = telemetry.now() - call.started
            if method.kind is SpanKind.PRODUCER:
                instruments.publish.record(elapsed, labels, self.context)
                cell = method.sent.get(kind)
                if cell is None:
                    cell = instruments.cell(names.MESSAGING_CLIENT_SENT_MESSAGES, labels)
                    method.sent[kind] = cell
                cell.value += 1
            else:
                instruments.client_call.record(elapsed, labels, self.context)
            if call.attempt > 1:
                instruments.retries.record(call.attempt - 1, labels, self.context)
        span = self.span
        if span is None:
            return
        if call.attempt > 1 and span.is_recording():
            span.set_attribute(names.ATTEMPTS, call.attempt)
        finish(span, error, kind)


class _AttemptRecord:
    """One attempt with a span of its own; the same for `inject` as the call's record."""

    __slots__ = ("_address", "_ended", "_parent", "_started", "_type", "context", "explicit",
                 "span")  # fmt: skip

    def __init__(
        self,
        parent: _CallRecord,
        number: int,
        endpoint: str | None,
        started: float | None = None,
        wall: int | None = None,
    ) -> None:
        telemetry, method = parent.telemetry, parent.method
        self._parent = parent
        self._address = telemetry.address_of(endpoint)
        self._started = telemetry.now() if started is None else started
        self._type = "initial" if number <= 1 else "retry"
        self._ended = False
        self.explicit = parent.explicit
        self.span: Any = None
        self.context: Context | None = None
        if telemetry.tracer is not None and parent.context is not None:
            self.span = telemetry.tracer.start_span(
                f"attempt {method.span_name}",
                parent.context,
                method.kind,
                {
                    **method.attributes,
                    **self._address,
                    names.ATTEMPT_NUMBER: number,
                    names.ATTEMPT_TYPE: self._type,
                },
                start_time=wall,
                record_exception=False,
                set_status_on_exception=False,
            )
            self.context = set_span_in_context(self.span, parent.context)

    def delayed(self, seconds: float) -> None:
        """It began that long after the one before had ended."""
        if self.span is not None and self.span.is_recording():
            self.span.set_attribute(names.RETRY_DELAY, seconds)

    def end(
        self, error: BaseException | None, at: float | None = None, wall: int | None = None
    ) -> None:
        """The attempt has ended. Once."""
        if self._ended:
            return
        self._ended = True
        telemetry = self._parent.telemetry
        cancelled = error is not None and not isinstance(error, Exception)
        kind = None if error is None or cancelled else telemetry.errors.of(error)
        if telemetry.instruments is not None:
            at = telemetry.now() if at is None else at
            telemetry.instruments.attempt.record(
                at - self._started, self._labels(kind), self.context
            )
        span = self.span
        if span is not None:
            if span.is_recording() and not cancelled:
                span.set_attribute(names.OUTCOME, attempt_outcome(kind))
            finish(span, error, kind, wall)

    def _labels(self, kind: str | None) -> Labels:
        method = self._parent.method
        key = (str(self._address.get(names.SERVER_ADDRESS)), self._type, kind)
        labels = method.attempt_labels.get(key)
        if labels is None:
            labels = {**method.labels_of(kind), **self._address, names.ATTEMPT_TYPE: self._type}
            method.attempt_labels[key] = labels
        return labels


def finish(
    span: Span, error: BaseException | None, kind: str | None, wall: int | None = None
) -> None:
    """End a client's span; the caller's own leaving is no error."""
    if error is not None and span.is_recording():
        if kind is None:
            span.set_attribute(names.OUTCOME, "cancelled")
        else:
            span.set_attribute(names.ERROR_TYPE, kind)
            code = status_code(error)
            if code is not None and code == kind:
                span.set_attribute(names.RPC_STATUS_CODE, code)
            span.set_status(Status(StatusCode.ERROR, description(error)))
    span.end(wall)


def _address(endpoint: str) -> dict[str, str | int]:
    host, port = names.address(endpoint)
    if port is None:
        return {names.SERVER_ADDRESS: host}
    return {names.SERVER_ADDRESS: host, names.SERVER_PORT: port}
