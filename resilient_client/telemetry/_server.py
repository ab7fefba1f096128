"""Spans and metrics of a server's handlers."""

from __future__ import annotations

import asyncio
from math import inf
from typing import TYPE_CHECKING, Any

from resilient_client import __version__
from resilient_client.context import PING_PATTERN
from resilient_client.errors import Outcome, RemoteError
from resilient_client.telemetry import _semconv as names
from resilient_client.telemetry._client import MAX_METHODS, PROBE_EVERY
from resilient_client.telemetry._errors import ErrorTypes, error_type, status_code
from resilient_client.telemetry._metrics import instruments_of
from resilient_client.telemetry._otel import (
    Context,
    Link,
    SpanKind,
    Status,
    StatusCode,
    attach,
    detach,
    get_current_span,
    set_span_in_context,
    tracer_of,
)
from resilient_client.telemetry._propagation import Propagation

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from resilient_client.context import Context as HandlerContext
    from resilient_client.message import Items, Message, Reply
    from resilient_client.telemetry import Telemetry
    from resilient_client.telemetry._metrics import Cell, Instruments, Labels
    from resilient_client.telemetry._otel import Tracer

_ROOT = Context()


class _Method:
    """What spans and metrics of one handler have in common, made once."""

    __slots__ = ("attributes", "consumed", "failed", "kind", "labels", "span_name", "system")

    def __init__(
        self, system: str, span_name: str, kind: SpanKind, labels: Labels, attributes: Labels
    ) -> None:
        self.system = system
        self.span_name = span_name
        self.kind = kind
        self.labels = labels
        self.attributes = attributes
        self.failed: dict[str, Labels] = {}
        self.consumed: Cell | None = None

    def labels_of(self, kind: str | None) -> Labels:
        """The metric labels of a message whose handling ended with this `error.type`."""
        if kind is None:
            return self.labels
        labels = self.failed.get(kind)
        if labels is None:
            labels = self.failed[kind] = {**self.labels, names.ERROR_TYPE: kind}
        return labels


class ServerTelemetry:
    """What a server tells OpenTelemetry.

    Args:
        now: the server's clock.
    """

    def __init__(self, settings: Telemetry, *, now: Callable[[], float]) -> None:
        self.now = now
        self.errors = ErrorTypes()
        self.tracer: Tracer | None = None
        self.instruments: Instruments | None = None
        self.active: dict[str, int] = {}
        self._recording = False
        self._next_probe = -inf
        self._settings = settings
        self._trust = settings.trust_context
        self._propagation = Propagation(settings)
        self._methods: dict[tuple[str, str, bool], _Method] = {}
        self._probe(-inf)

    def _probe(self, now: float) -> None:
        self._next_probe = now + PROBE_EVERY
        settings = self._settings
        if self.tracer is None:
            self.tracer = tracer_of(settings.tracer_provider, __version__)
        if self.instruments is None:
            self.instruments = instruments_of(settings.meter_provider, __version__)
            if self.instruments is not None:
                self.instruments.watch(self)
        self._recording = self.tracer is not None or self.instruments is not None
        if self.tracer is not None and self.instruments is not None:
            self._next_probe = inf

    # ----------------------------------------------------------------------------------- handling

    def request(
        self,
        handle: Callable[..., Coroutine[Any, Any, Reply]],
        job: Any,
        message: Message,
        handler: Any,
        context: HandlerContext,
    ) -> Coroutine[Any, Any, Reply]:
        """Handle a request inside a SERVER span that continues the caller's trace."""
        return self._handled(handle, job, message, handler, context, False)

    def event(
        self,
        handle: Callable[..., Coroutine[Any, Any, Reply]],
        job: Any,
        message: Message,
        handler: Any,
        context: HandlerContext,
    ) -> Coroutine[Any, Any, Reply]:
        """Handle an event inside a CONSUMER span that continues its sender's trace."""
        return self._handled(handle, job, message, handler, context, True)

    def _handled(
        self,
        handle: Callable[..., Coroutine[Any, Any, Reply]],
        job: Any,
        message: Message,
        handler: Any,
        context: HandlerContext,
        is_event: bool,  # noqa: FBT001
    ) -> Coroutine[Any, Any, Reply]:
        if message.received >= self._next_probe:
            self._probe(message.received)
        if handler.route == PING_PATTERN:
            return handle(job, message, handler, context)
        if self._recording:
            return self._recorded(handle, job, message, handler, context, is_event)
        if self._trust == "parent" and self._propagation.present(message.headers):
            return self._carried(handle, job, message, handler, context)
        return handle(job, message, handler, context)

    async def _carried(
        self, handle: Callable[..., Any], job: Any, message: Message, handler: Any, context: Any
    ) -> Reply:
        """Nothing records here: the caller's trace only passes through."""
        ambient = self._propagation.extract(message.headers)
        token = attach(ambient)
        try:
            reply: Reply = await handle(job, message, handler, context)
        finally:
            detach(token)
        if reply.items is not None:
            reply.items = _Items(reply.items, ambient, None)
        return reply

    async def _recorded(
        self,
        handle: Callable[..., Any],
        job: Any,
        message: Message,
        handler: Any,
        context: HandlerContext,
        is_event: bool,  # noqa: FBT001
    ) -> Reply:
        method = self._methods.get((context.transport, handler.route, is_event))
        if method is None:
            method = self._method(context.transport, handler.route, is_event)
        record = _Record(self, method, message.headers, context.correlation_id, job)
        token = attach(record.context)
        try:
            reply: Reply = await handle(job, message, handler, context)
        except BaseException:  # cancelled: every other failure comes as an error in the reply
            record.left()
            raise
        finally:
            detach(token)
        if reply.items is not None:
            reply.items = _Items(reply.items, record.context, record)
        else:
            record.end(reply.error)
        return reply

    def _method(self, transport: str, route: str, is_event: bool) -> _Method:  # noqa: FBT001
        """The names of a handler; what comes after the first 200 is `_OTHER`."""
        key = (transport, route, is_event)
        name = route[:256]
        if len(self._methods) >= MAX_METHODS:
            name, key = names.OTHER, (transport, names.OTHER, is_event)
            if key in self._methods:
                return self._methods[key]
        system = names.messaging_system(transport)
        if is_event and system is not None:
            labels: Labels = {
                names.MESSAGING_SYSTEM: system,
                names.MESSAGING_OPERATION_NAME: "process",
                names.MESSAGING_OPERATION_TYPE: "process",
                names.MESSAGING_DESTINATION_NAME: name,
            }
            method = _Method(system, f"process {name}", SpanKind.CONSUMER, labels, labels)
        else:
            rpc_system = names.rpc_system(transport)
            labels = {names.RPC_SYSTEM_NAME: rpc_system, names.RPC_METHOD: name}
            attributes = labels
            if system is not None and names.is_broker(transport):
                attributes = {
                    **labels,
                    names.MESSAGING_SYSTEM: system,
                    names.MESSAGING_DESTINATION_NAME: name,
                }
            span_name = rpc_system if name is names.OTHER else name
            method = _Method(rpc_system, span_name, SpanKind.SERVER, labels, attributes)
        self._methods[key] = method
        return method

    def parent_of(self, headers: Any, *, link: bool) -> tuple[Context, list[Link] | None]:
        """The parent, and what is linked to, of the span for a message with these headers."""
        if self._trust == "ignore" or not self._propagation.present(headers):
            return _ROOT, None
        remote = self._propagation.extract(headers)
        context = get_current_span(remote).get_span_context()
        if not context.is_valid:
            return remote, None
        if self._trust == "link":
            return _ROOT, [Link(context)]
        return remote, [Link(context)] if link else None

    # ------------------------------------------------------------------------- what is not handled

    def refused(self, reason: str, message: Message, transport: str) -> None:
        """No handler was started: there is none, or the server is full, or it was too late."""
        if message.received >= self._next_probe:
            self._probe(message.received)
        system = names.rpc_system(transport)
        if self.instruments is not None:
            labels: Labels = {names.RPC_SYSTEM_NAME: system, names.REASON: reason}
            self.instruments.cell("resilient_server.rejections", labels).value += 1
        if self.tracer is None or reason != "no_handler":
            return
        parent, links = self.parent_of(message.headers, link=message.id is None)
        span = self.tracer.start_span(
            system,
            parent,
            SpanKind.SERVER if message.id is not None else SpanKind.CONSUMER,
            {
                names.RPC_SYSTEM_NAME: system,
                names.RPC_METHOD: names.OTHER,
                names.RPC_METHOD_ORIGINAL: message.route[:256],
                names.ERROR_TYPE: reason,
            },
            links,
        )
        span.set_status(Status(StatusCode.ERROR))
        span.end()

    def gauges(self) -> Iterable[tuple[str, float, Labels]]:
        """See `_metrics.Observed`."""
        for system, number in list(self.active.items()):
            yield "resilient_server.call.active", number, {names.RPC_SYSTEM_NAME: system}


class _Record:
    """One message whose handling is recorded, until it ends."""

    __slots__ = ("_ended", "_job", "_method", "_span", "_started", "_telemetry", "context",
                 "items")  # fmt: skip

    def __init__(
        self,
        telemetry: ServerTelemetry,
        method: _Method,
        headers: Any,
        correlation_id: str,
        job: Any,
    ) -> None:
        self._job = job
        self._telemetry = telemetry
        self._method = method
        self._started = telemetry.now()
        self._ended = False
        self.items = 0
        self._span: Any = None
        telemetry.active[method.system] = telemetry.active.get(method.system, 0) + 1
        parent, links = telemetry.parent_of(headers, link=method.kind is SpanKind.CONSUMER)
        if telemetry.tracer is None:
            self.context = parent
            return
        self._span = span = telemetry.tracer.start_span(
            method.span_name,
            parent,
            method.kind,
            method.attributes,
            links,
            record_exception=False,
            set_status_on_exception=False,
        )
        if span.is_recording():
            span.set_attribute(names.CORRELATION_ID, correlation_id)
        self.context = set_span_in_context(span, parent)

    def end(self, error: BaseException | None) -> None:
        """The handler has answered.

        An error it means to give is an answer: the span's status stays unset. Anything else is the
        server's own failure, named by its cause. (RPC conventions; for gRPC the status tells.)
        """
        if error is None:
            self._stop(None, None)
        elif isinstance(error, RemoteError) and error.outcome is not Outcome.FAILURE:
            self._stop(None, status_code(error))
        elif error.__cause__ is not None:
            self._stop(error_type(error.__cause__), None)
        else:
            self._stop(error_type(error), status_code(error))

    def left(self) -> None:
        """It was stopped before its end: its time was up, or its caller has gone."""
        if self._job.expired:
            self._stop("deadline_exceeded", None)
        else:
            self._stop(None, None, cancelled=True)

    def _stop(self, kind: str | None, code: str | None, *, cancelled: bool = False) -> None:
        if self._ended:
            return
        self._ended = True
        telemetry, method, span = self._telemetry, self._method, self._span
        telemetry.active[method.system] -= 1
        if kind is not None:
            kind = telemetry.errors.bounded(kind)
        instruments = telemetry.instruments
        if instruments is not None:
            labels = method.labels_of(kind)
            elapsed = telemetry.now() - self._started
            if method.kind is SpanKind.CONSUMER:
                instruments.process.record(elapsed, labels, self.context)
                if method.consumed is None:
                    method.consumed = instruments.cell(
                        names.MESSAGING_CLIENT_CONSUMED_MESSAGES, method.labels
                    )
                method.consumed.value += 1
            else:
                instruments.server_call.record(elapsed, labels, self.context)
        if span is None:
            return
        if span.is_recording():
            if self.items:
                span.set_attribute(names.STREAM_MESSAGES, self.items)
            if code is not None:
                span.set_attribute(names.RPC_STATUS_CODE, code)
            if kind is not None:
                span.set_attribute(names.ERROR_TYPE, kind)
                span.set_status(Status(StatusCode.ERROR))
            elif cancelled:
                span.set_attribute(names.OUTCOME, "cancelled")
        span.end()


class _Items:
    """A streamed answer: each value is made inside the span, which ends with the last of them.

    The context is attached for each value and detached before it is handed on: never across a
    suspended generator, which may be resumed or closed elsewhere.
    """

    __slots__ = ("_context", "_items", "_record")

    def __init__(self, items: Items, context: Context, record: _Record | None) -> None:
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
                record.end(None)
            raise
        except asyncio.CancelledError:
            raise  # aclose follows
        except BaseException as error:
            if record is not None:
                record.end(error)
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
