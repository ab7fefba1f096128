"""One call of a client, and one attempt of it, while they are recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resilient_client.errors import (
    DeadlineExceeded,
    Outcome,
    RemoteError,
    ReplyTimeout,
    TransportError,
)
from resilient_client.telemetry import _semconv as names
from resilient_client.telemetry._errors import attempt_outcome, description, status_code
from resilient_client.telemetry._otel import SpanKind, Status, StatusCode, get_current

if TYPE_CHECKING:
    from resilient_client.message import Call
    from resilient_client.telemetry._metrics import Labels
    from resilient_client.telemetry._otel import Context, Span
    from resilient_client.telemetry._recorder import Method, Recorder


class CallRecord:
    """One call, until it ends: the `call.span` of a client that records.

    Attributes:
        span, context: None without a tracer. The span is never the current one while the call
            runs: a stream's would then be current for whatever runs between its items.
        explicit: the parent was given in `headers=`.
        method, recorder: what it is called, and for whom.
        attempts: how many attempts have got a span or a duration of their own.
        open: the attempt whose stream is still running.
    """

    __slots__ = ("_call", "_ended", "attempts", "context", "explicit", "method", "open", "recorder",
                 "span")  # fmt: skip

    def __init__(
        self, recorder: Recorder, method: Method, call: Call, *, spanned: bool, began: int | None
    ) -> None:
        self.recorder = recorder
        self.method = method
        self.attempts = 0
        self.open: AttemptRecord | None = None
        self._call = call
        self._ended = False
        self.span: Span | None = None
        self.context: Context | None = None
        self.explicit = False
        recorder.active[method.system] = recorder.active.get(method.system, 0) + 1
        if recorder.tracer is not None:
            parent = recorder.propagation.explicit(call.headers)
            if parent is None:
                parent = get_current()
            else:
                self.explicit = True
            self.context = parent
            if spanned:  # else its only attempt has a span
                self.span, self.context = recorder.begin_span(
                    method.span_name, parent, method.kind, method.attributes, start_time=began
                )

    def correlate(self, known: str) -> None:
        """Note the call's correlation id."""
        if self.span is not None and self.span.is_recording():
            self.span.set_attribute(names.CORRELATION_ID, known)

    def complete(self, outcome: Outcome, error: BaseException | None) -> None:
        """A stream has come to its end; see `Reply.on_complete`."""
        left = error is not None and not isinstance(error, Exception)
        span = self.span
        if span is None and self.open is not None:  # its only request stands for the call
            span = self.open.span
        if span is not None and span.is_recording():
            span.set_attribute(names.STREAM_MESSAGES, self._call.received)
            if left:
                span.set_attribute(names.STREAM_ABANDONED, True)
        self.end(None if left and outcome is Outcome.SUCCESS else error)

    def end(self, error: BaseException | None) -> None:
        """The call has ended: end its span, and record how long it took. Once."""
        if self._ended:
            return
        self._ended = True
        self.recorder.active[self.method.system] -= 1
        try:
            if self.open is not None:
                self.open.end(error)
            self._end(error)
        except Exception as failure:  # noqa: BLE001  (of the application's processors)
            self.recorder.failed(failure)

    def _end(self, error: BaseException | None) -> None:
        recorder, method, call, context = self.recorder, self.method, self._call, self.context
        kind, status = self.ending(error)
        instruments = recorder.instruments
        if instruments is not None:
            labels = method.labels_of(kind, status)
            elapsed = recorder.now() - call.started
            if method.kind is SpanKind.PRODUCER:
                instruments.publish.record(elapsed, labels, context)
                method.count(instruments, names.MESSAGING_CLIENT_SENT_MESSAGES, kind)
            else:
                instruments.client_call.record(elapsed, labels, context)
            if call.attempt > 1:
                instruments.retries.record(call.attempt - 1, method.labels_of(kind), context)
        span = self.span
        if span is not None:
            if call.attempt > 1 and span.is_recording():
                span.set_attribute(names.ATTEMPTS, call.attempt)
            _finish(span, error, kind, status)

    def ending(self, error: BaseException | None) -> tuple[str | None, str | None]:
        """`error.type` of what ended so, and gRPC's status: the one of this attempt, or of all."""
        recorder = self.recorder
        if self.method.system != "grpc":
            return recorder.errors.of(error) if isinstance(error, Exception) else None, None
        if error is None:
            return None, "OK"
        if not isinstance(error, Exception):
            return None, None
        status = self._call.status
        if isinstance(error, DeadlineExceeded | ReplyTimeout):
            return recorder.errors.of(error), "DEADLINE_EXCEEDED"
        if not isinstance(status, str) or not isinstance(error, RemoteError | TransportError):
            return recorder.errors.of(error), None  # it never came to a status
        if isinstance(error, RemoteError):  # the peer's word, and the conventions' name for it
            return recorder.errors.bounded(status), status
        return recorder.errors.of(error), status


class AttemptRecord:
    """One attempt of a call that may have several; to `inject` the same as the call's record.

    Args:
        address: `server.*` of the endpoint it goes to.
        started: on the client's clock.
        wall: when it began, in nanoseconds since the epoch; None is now.
    """

    __slots__ = ("_ended", "_labels", "_started", "_type", "context", "explicit", "parent",
                 "span")  # fmt: skip

    def __init__(
        self,
        parent: CallRecord,
        number: int,
        address: Labels,
        started: float,
        wall: int | None = None,
    ) -> None:
        self.parent = parent
        self._started = started
        self._ended = False
        self._type = "initial" if number <= 1 else "retry"
        self._labels = address
        self.explicit = parent.explicit
        self.span: Span | None = None
        self.context: Context | None = None
        if parent.context is not None:
            self._begin(
                f"attempt {parent.method.span_name}",
                parent.method.kind,
                {
                    **parent.method.attributes,
                    **address,
                    names.ATTEMPT_NUMBER: number,
                    names.ATTEMPT_TYPE: self._type,
                },
                wall,
            )

    def _begin(self, name: str, kind: SpanKind, attributes: Labels, wall: int | None) -> None:
        assert self.parent.context is not None  # noqa: S101
        self.span, self.context = self.parent.recorder.begin_span(
            name, self.parent.context, kind, attributes, start_time=wall
        )

    def delayed(self, seconds: float) -> None:
        """It began that long after the one before had ended."""
        if self.span is not None and self.span.is_recording():
            self.span.set_attribute(names.RETRY_DELAY, seconds)

    def end(
        self, error: BaseException | None, at: float | None = None, wall: int | None = None
    ) -> None:
        """The attempt has ended: now, or when these say. Once."""
        if self._ended:
            return
        self._ended = True
        try:
            self._end(error, at, wall)
        except Exception as failure:  # noqa: BLE001  (of the application's processors)
            self.parent.recorder.failed(failure)

    def _end(self, error: BaseException | None, at: float | None, wall: int | None) -> None:
        recorder = self.parent.recorder
        kind, status = self.parent.ending(error)
        if recorder.instruments is not None:
            elapsed = (recorder.now() if at is None else at) - self._started
            labels = {
                **self.parent.method.labels_of(kind),
                **self._labels,
                names.ATTEMPT_TYPE: self._type,
            }
            recorder.instruments.attempt.record(elapsed, labels, self.context)
        span = self.span
        if span is not None:
            if kind is not None or error is None:
                span.set_attribute(names.OUTCOME, attempt_outcome(kind))
            _finish(span, error, kind, status, wall)


def _finish(
    span: Span,
    error: BaseException | None,
    kind: str | None,
    status: str | None,
    wall: int | None = None,
) -> None:
    """End a client's span. That the caller has left is no error (HTTP and RPC conventions)."""
    if status is None and error is not None and kind is not None and kind == status_code(error):
        status = kind
    if status is not None:
        span.set_attribute(names.RPC_STATUS_CODE, status)
    if error is not None and span.is_recording():
        if kind is None:
            span.set_attribute(names.OUTCOME, "cancelled")
        else:
            span.set_attribute(names.ERROR_TYPE, kind)
            span.set_status(Status(StatusCode.ERROR, description(error)))
    span.end(wall)
