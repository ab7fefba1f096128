"""What a server tells OpenTelemetry."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any

from resilient_client.context import CORRELATION_HEADER, PING_PATTERN, correlation_id
from resilient_client.telemetry import _semconv as names
from resilient_client.telemetry._handled import HandlingRecord, ObservedItems
from resilient_client.telemetry._otel import (
    Context,
    Link,
    SpanKind,
    Status,
    StatusCode,
    attach,
    detach,
    format_trace_id,
    get_current,
    get_current_span,
)
from resilient_client.telemetry._recorder import Methods, Recorder

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Mapping

    from resilient_client.context import Context as HandlerContext
    from resilient_client.jobs import Job
    from resilient_client.message import Message, Reply
    from resilient_client.telemetry import Telemetry
    from resilient_client.telemetry._metrics import Labels

_ROOT = Context()


class ServerTelemetry(Recorder):
    """Spans and metrics of a server's handlers.

    What arrives before `silent_until`, and has none of the `signs` among its headers, need not be
    handled `around`: nothing is recorded, and no trace is carried.

    Args:
        now: the server's clock.
    """

    def __init__(self, settings: Telemetry, *, now: Callable[[], float]) -> None:
        super().__init__(settings, now)
        self._trust = settings.trust_context
        self._methods = Methods(client=False, address={})
        self._inner = Methods(client=False, address={}, inner=True)
        self.probe(now())

    def probe(self, now: float) -> bool:
        """See `Recorder.probe`."""
        self.signs = self.propagation.signs() if self._trust == "parent" else frozenset()
        recording = super().probe(now)
        self.silent_until = -inf if recording else self.next_probe
        return recording

    def around(
        self,
        handle: Callable[..., Coroutine[Any, Any, Reply]],
        job: Job,
        handler: Any,
        context: HandlerContext,
    ) -> Coroutine[Any, Any, Reply]:
        """Handle a message inside a span.

        A request's is a SERVER span that continues the caller's trace, an event's a CONSUMER span:
        a child of its sender's, and linked to it. A batch's belongs to none of its senders' traces,
        and is linked to all of them.
        """
        message = job.message
        if message.received >= self.next_probe:
            self.probe(message.received)
        if handler.route == PING_PATTERN:
            return handle(job, handler, context)
        if self.recording:
            return self._recorded(handle, job, handler, context)
        if message.batch is not None or self.signs.isdisjoint(message.headers):
            return handle(job, handler, context)
        return self._carried(handle, job, handler, context)

    async def _carried(
        self, handle: Callable[..., Any], job: Job, handler: Any, context: HandlerContext
    ) -> Reply:
        """Nothing records here: the caller's trace only passes through."""
        message = job.message
        ambient = self.propagation.extract(message.headers)
        if message.headers.get(CORRELATION_HEADER) != context.correlation_id:
            _take_id(context, ambient)
        token = attach(ambient)
        try:
            reply: Reply = await handle(job, handler, context)
        finally:
            detach(token)
        if reply.items is not None:
            reply.items = ObservedItems(reply.items, ambient, None)
        return reply

    async def _recorded(
        self,
        handle: Callable[..., Any],
        job: Job,
        handler: Any,
        context: HandlerContext,
    ) -> Reply:
        message, is_event = job.message, job.message.id is None or bool(job.several)
        scheme, batch = context.transport, None
        if message.batch is not None:
            method = self._methods.get(scheme, handler.route, is_event)
            parent, several = _ROOT, message.batch()
            links, batch = self._links(several), len(several)
        elif (outer := _ambient(message)) is not None:
            method = self._inner.get(scheme, handler.route, is_event)
            parent, links = outer, None
        else:
            if scheme == "http" and message.raw.get("scheme") == "https":
                scheme = "https"
            method = self._methods.get(scheme, handler.route, is_event)
            parent, links = self._parent(message.headers, link=method.kind is SpanKind.CONSUMER)
        record = HandlingRecord(self, method, parent, links, job, batch)
        given = message.headers.get(CORRELATION_HEADER)
        if given != context.correlation_id:
            if given is not None and self.instruments is not None:
                labels = {names.RPC_SYSTEM_NAME: names.rpc_system(context.transport)}
                self.instruments.cell("resilient_server.correlation_id.rejected", labels).value += 1
            if not is_event or parent is not _ROOT:  # else each handler's own trace would be named
                _take_id(context, record.context)
        record.describe(context.correlation_id, context.attempt)
        token = attach(record.context)
        try:
            reply: Reply = await handle(job, handler, context)
        except BaseException:  # cancelled: every other failure is an error in the reply
            record.left()
            raise
        finally:
            detach(token)
        if names.replies_carry_context(scheme):
            headers = dict(reply.headers or {})
            self.propagation.inject(headers, record.context)
            reply.headers = headers
        if reply.items is None:
            record.end(reply)
        else:
            reply.items = ObservedItems(reply.items, record.context, record)
        return reply

    def _parent(
        self, headers: Mapping[str, str], *, link: bool
    ) -> tuple[Context, list[Link] | None]:
        """The parent, and what is linked to, of the span for a message with these headers."""
        if self._trust == "ignore" or not self.propagation.present(headers):
            return _ROOT, None
        remote = self.propagation.extract(headers)
        context = get_current_span(remote).get_span_context()
        if self._trust == "link":
            return _ROOT, [Link(context)] if context.is_valid else None
        return remote, [Link(context)] if link and context.is_valid else None

    def _links(self, several: Iterable[Mapping[str, str]]) -> list[Link] | None:
        """What a batch of messages with these headers is linked to."""
        if self._trust == "ignore":
            return None
        contexts = [
            get_current_span(self.propagation.extract(headers)).get_span_context()
            for headers in several
            if self.propagation.present(headers)
        ]
        return [Link(context) for context in contexts if context.is_valid]

    def refused(self, reason: str, message: Message, transport: str) -> None:
        """No handler was started: there is none, the server is full or ending, or it is too late.

        Only a pattern without a handler gets a span: under too much load, spans would be more.
        """
        if message.received >= self.next_probe:
            self.probe(message.received)
        system = names.rpc_system(transport)
        if self.instruments is not None:
            labels: Labels = {names.RPC_SYSTEM_NAME: system, names.REASON: reason}
            self.instruments.cell("resilient_server.rejections", labels).value += 1
        if reason != "no_handler":
            return
        is_event, is_http = message.id is None, system == "http"
        if is_http and get_current_span().get_span_context().is_valid:
            return  # the application around us tells of its requests
        parent, links = self._parent(message.headers, link=is_event)
        span, _ = self.begin_span(
            message.raw["method"] if is_http else system,
            parent,
            SpanKind.CONSUMER if is_event else SpanKind.SERVER,
            {
                names.HTTP_REQUEST_METHOD: message.raw["method"],
                names.URL_SCHEME: message.raw.get("scheme", "http"),
                names.URL_PATH: message.raw["path"][:1024],
                names.HTTP_RESPONSE_STATUS_CODE: 404,
            }
            if is_http
            else {
                names.RPC_SYSTEM_NAME: system,
                names.RPC_METHOD: names.OTHER,
                names.RPC_METHOD_ORIGINAL: message.route[:256],
                names.ERROR_TYPE: reason,
            },
            links,
        )
        if span is None:
            return
        try:
            if not is_http:  # there a 404 is the caller's mistake
                span.set_status(Status(StatusCode.ERROR))
            span.end()
        except Exception as failure:  # noqa: BLE001  (of the application's processors)
            self.failed(failure)

    def gauges(self, seen: set[int]) -> Iterable[tuple[str, float, Labels]]:
        """See `_metrics.Observed`."""
        for system, number in list(self.active.items()):
            yield "resilient_server.call.active", number, {names.RPC_SYSTEM_NAME: system}


def _ambient(message: Message) -> Context | None:
    """The context it was handed over in, if that has a span: of an application around us."""
    if message.ambient is None:
        return None
    context = message.ambient.run(get_current)
    return context if get_current_span(context).get_span_context().is_valid else None


def _take_id(handlers: HandlerContext, context: Context) -> None:
    """Nobody has named this work: let its trace do so, for logs and traces to share a key."""
    span = get_current_span(context).get_span_context()
    if span.is_valid:
        handlers.correlation_id = format_trace_id(span.trace_id)
        correlation_id.set(handlers.correlation_id)
