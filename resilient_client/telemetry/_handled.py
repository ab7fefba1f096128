"""One message of a server, and the values of its answer, while they are recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from resilient_client.errors import Outcome, RemoteError
from resilient_client.message import Reply
from resilient_client.telemetry import _semconv as names
from resilient_client.telemetry._errors import error_type, status_code
from resilient_client.telemetry._otel import Link, SpanKind, Status, StatusCode, attach, detach

if TYPE_CHECKING:
    from resilient_client.jobs import Job
    from resilient_client.message import Items
    from resilient_client.telemetry._metrics import Instruments
    from resilient_client.telemetry._otel import Context, Span
    from resilient_client.telemetry._recorder import Method, Recorder


# What a server answers with when it is to blame (RPC conventions, gRPC).
_FAILURES = frozenset(
    {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
)


class HandlingRecord:
    """The handling of one message by one handler, until it ends.

    Attributes:
        context: what is current while the handler's own code runs.
        items: how many values of a streamed answer were made.

    Args:
        batch: how many messages this one stands for, None where it is one of its own.
    """

    __slots__ = ("_batch", "_ended", "_job", "_message", "_method", "_recorder", "_span",
                 "_started", "context", "items")  # fmt: skip

    def __init__(
        self,
        recorder: Recorder,
        method: Method,
        parent: Context,
        links: list[Link] | None,
        job: Job,
        batch: int | None = None,
    ) -> None:
        message = job.message
        self._batch = batch
        self._recorder = recorder
        self._method = method
        self._job = job
        self._message = message
        self._started = recorder.now()
        self._ended = False
        self.items = 0
        recorder.active[method.system] = recorder.active.get(method.system, 0) + 1
        if recorder.instruments is not None and message.received:
            waited = max(0.0, self._started - message.received)
            recorder.instruments.queue.record(waited, {names.RPC_SYSTEM_NAME: method.system})
        self._span, self.context = recorder.begin_span(
            method.span_name, parent, method.kind, method.attributes, links
        )

    def describe(self, correlation_id: str, attempt: int) -> None:
        """Say which work it belongs to."""
        span = self._span
        if span is not None and span.is_recording():
            span.set_attribute(names.CORRELATION_ID, correlation_id)
            if attempt > 1:
                span.set_attribute(names.ATTEMPT_NUMBER, attempt)
            if self._batch is not None:
                span.set_attribute(names.MESSAGING_BATCH_MESSAGE_COUNT, self._batch)
            if names.HTTP_ROUTE in self._method.labels:
                span.set_attribute(names.URL_PATH, str(self._message.raw.get("path", ""))[:1024])

    def end(self, reply: Reply) -> None:
        """The handler has answered, or its stream has come to its end.

        Where the transport has statuses, they tell what is a failure of the server's. Elsewhere an
        error that the handler means to give is an answer, which leaves the span's status unset;
        anything else is the server's own failure, named after its cause.
        """
        error, message = reply.error, self._message
        if message.status_of is not None:
            status = message.status_of(reply)
            if isinstance(status, int):  # HTTP's
                status = 202 if message.id is None else status
                self._stop(_http_failure(error, status), status)
            else:
                self._stop(status if status in _FAILURES else None, status)
        elif error is None:
            self._stop(None)
        elif error.outcome is not Outcome.FAILURE:
            self._stop(None, status_code(error))
        elif error.__cause__ is not None:
            self._stop(error_type(error.__cause__))
        else:
            self._stop(error_type(error), status_code(error))

    def left(self) -> None:
        """It was stopped before its end: its time was up, or its caller has gone."""
        if self._job.expired:
            self._stop("deadline_exceeded", self._status("DEADLINE_EXCEEDED", 504))
        else:
            self._stop(None, self._status(None, None), cancelled=True)

    def _status(self, grpc: str | None, http: int | None) -> int | str | None:
        """What was sent when it was stopped: gRPC's status, or HTTP's, which comes first."""
        if names.HTTP_ROUTE in self._method.labels:
            return 200 if self.items else http
        return grpc if self._method.system == "grpc" else None

    def _stop(
        self, kind: str | None, status: int | str | None = None, *, cancelled: bool = False
    ) -> None:
        if self._ended:
            return
        self._ended = True
        recorder = self._recorder
        recorder.active[self._method.system] -= 1
        if kind is not None:
            kind = recorder.errors.bounded(kind)
        try:
            if recorder.instruments is not None:
                self._measure(recorder.instruments, kind, status)
            if self._span is not None:
                self._close(self._span, kind, status, cancelled=cancelled)
        except Exception as failure:  # noqa: BLE001  (of the application's processors)
            recorder.failed(failure)

    def _close(
        self, span: Span, kind: str | None, status: int | str | None, *, cancelled: bool
    ) -> None:
        if span.is_recording():
            if self.items:
                span.set_attribute(names.STREAM_MESSAGES, self.items)
            if status is not None:
                http = isinstance(status, int)
                span.set_attribute(
                    names.HTTP_RESPONSE_STATUS_CODE if http else names.RPC_STATUS_CODE, status
                )
            if kind is not None:
                span.set_attribute(names.ERROR_TYPE, kind)
                span.set_status(Status(StatusCode.ERROR))
            elif cancelled:
                span.set_attribute(names.OUTCOME, "cancelled")
        span.end()

    def _measure(
        self, instruments: Instruments, kind: str | None, status: int | str | None
    ) -> None:
        method = self._method
        elapsed = self._recorder.now() - self._started
        if method.kind is SpanKind.CONSUMER:
            instruments.process.record(elapsed, method.labels_of(kind), self.context)
            consumed = names.MESSAGING_CLIENT_CONSUMED_MESSAGES
            method.count(instruments, consumed, None, self._batch or 1)
        elif names.HTTP_ROUTE in method.labels:
            instruments.http_server.record(elapsed, method.labels_of(kind, status), self.context)
        else:
            told = status if method.system == "grpc" else None  # other peers' codes are no label
            instruments.server_call.record(elapsed, method.labels_of(kind, told), self.context)


def _http_failure(error: RemoteError | None, status: int) -> str | None:
    """The cause of a failure of the server's, else its status; None where it did not fail.

    The status of a stream, or of an event, was sent before it was known.
    """
    if error is None or not (status >= 500 or (status < 400 and error.outcome is Outcome.FAILURE)):
        return None
    if error.__cause__ is not None:
        return error_type(error.__cause__)
    return str(status) if status >= 500 else error_type(error)


class ObservedItems:
    """A streamed answer: each value is made inside the span, which ends with the last of them.

    The context is attached for each value and detached before it is handed on, never across a
    suspended generator: that may be resumed or closed in another context.

    Args:
        record: None where a trace only passes through.
    """

    __slots__ = ("_context", "_items", "_record")

    def __init__(self, items: Items, context: Context, record: HandlingRecord | None) -> None:
        self._items = items
        self._context = context
        self._record = record

    async def receive(self, deadline: float) -> Any:
        """See `message.Items.receive`."""
        record = self._record
        token = attach(self._context)
        try:
            body = await self._items.receive(deadline)
        except StopAsyncIteration:
            if record is not None:
                record.end(Reply())
            raise
        except RemoteError as error:  # others become one in there
            if record is not None:
                record.end(Reply(error=error))
            raise
        finally:
            detach(token)
        if record is not None:
            record.items += 1
        return body

    async def aclose(self) -> None:
        """See `message.Items.aclose`."""
        token = attach(self._context)
        try:
            await self._items.aclose()
        finally:
            detach(token)
            if self._record is not None:
                self._record.left()
