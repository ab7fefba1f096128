"""What client and server have in common: whom they record for, and under which names."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from math import inf
from typing import TYPE_CHECKING, Any, TypeVar

from resilient_client import __version__
from resilient_client.telemetry import _semconv as names
from resilient_client.telemetry._errors import ErrorTypes
from resilient_client.telemetry._metrics import instruments_of
from resilient_client.telemetry._otel import SpanKind, set_span_in_context, tracer_of
from resilient_client.telemetry._propagation import Propagation

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilient_client.telemetry import Telemetry
    from resilient_client.telemetry._metrics import Cell, Instruments, Labels
    from resilient_client.telemetry._otel import Context, Link, Span, Tracer

T = TypeVar("T")
log = logging.getLogger("resilient_client.telemetry")

PROBE_EVERY = 1.0
"""Seconds between two looks whether the application has set a provider up."""
MAX_METHODS = 200
"""Patterns of one client or server that are kept apart."""
_MAX_NAME = 256


class Recorder:
    """Records once the application has an SDK; until then it only looks, once a second.

    Attributes:
        recording: whether there is anybody to record for.
        next_probe: when, on the clock of `now`, to look again.
        tracer, instruments: None while there is no provider of theirs.
        active: what is going on now, by system.
    """

    def __init__(self, settings: Telemetry, now: Callable[[], float]) -> None:
        self.now = now
        self.recording = False
        self.next_probe = -inf
        self.tracer: Tracer | None = None
        self.instruments: Instruments | None = None
        self.errors = ErrorTypes()
        self.propagation = Propagation(settings)
        self.active: dict[str, int] = {}
        self._told = False
        self._broken: set[Any] = set()
        self._settings = settings

    def probe(self, now: float) -> bool:
        """Look whether there is somebody to record for. A provider that is found is final."""
        self.next_probe = now + PROBE_EVERY
        if self.tracer is None:
            self.tracer = self._provided(tracer_of, self._settings.tracer_provider)
        if self.instruments is None:
            self.instruments = self._provided(instruments_of, self._settings.meter_provider)
            if self.instruments is not None:
                self.instruments.watch(self)
        if self.tracer is not None and self.instruments is not None:
            self.next_probe = inf
        if not self.recording and (self.tracer is not None or self.instruments is not None):
            self.recording = True
            self.started()
        return self.recording

    def _provided(self, look: Callable[[Any, str], T | None], provider: Any) -> T | None:
        """What there is of a provider; one that cannot be had is not asked for again.

        The API loads what the environment names, and raises, and logs, each time that it cannot.
        """
        if look in self._broken:
            return None
        try:
            return look(provider, __version__)
        except Exception as error:  # noqa: BLE001
            self._broken.add(look)
            self.failed(error)
            return None

    def started(self) -> None:
        """From now on something is recorded."""

    def begin_span(
        self,
        name: str,
        parent: Context,
        kind: SpanKind,
        attributes: Labels,
        links: list[Link] | None = None,
        start_time: int | None = None,
    ) -> tuple[Span | None, Context]:
        """A span and the context with it; without a tracer, or if it fails, only the parent's.

        Exceptions are not recorded by it: the conventions want them in logs, and an error that is
        recorded on every span it passes costs more than all the rest.
        """
        if self.tracer is None:
            return None, parent
        try:
            span = self.tracer.start_span(
                name,
                parent,
                kind,
                attributes,
                links,
                start_time,
                record_exception=False,
                set_status_on_exception=False,
            )
        except Exception as error:  # noqa: BLE001  (of the application's sampler or processors)
            self.failed(error)
            return None, parent
        return span, set_span_in_context(span, parent)

    def failed(self, error: Exception) -> None:
        """Something of the application's SDK has failed: never a reason for a call to fail."""
        level = logging.DEBUG if self._told else logging.WARNING
        self._told = True
        log.log(level, "telemetry failed (told once)", exc_info=error)

    def gauges(self, seen: set[int]) -> Iterable[tuple[str, float, Labels]]:
        """See `_metrics.Observed`."""
        return ()


class Method:
    """What spans and metrics of one pattern have in common, made once.

    The API keeps the dictionaries it is given as they are: they are never changed.

    Attributes:
        system: `rpc.system.name`, of events too.
        labels, attributes: for metrics and for spans.
        counted: its message counter, by `error.type`.
        http: on a client, what its HTTP requests are called, by address.
    """

    __slots__ = ("_labels_by_end", "attributes", "counted", "http", "kind", "labels", "name",
                 "span_name", "system")  # fmt: skip

    def __init__(
        self,
        name: str,
        span_name: str,
        system: str,
        kind: SpanKind,
        labels: Labels,
        attributes: Labels,
    ) -> None:
        self.name = name
        self.span_name = span_name
        self.system = system
        self.kind = kind
        self.labels = labels
        self.attributes = attributes
        self.counted: dict[str | None, Cell] = {}
        self.http: dict[Any, Method] = {}
        self._labels_by_end: dict[tuple[str | None, int | str | None], Labels] = {}

    def labels_of(self, kind: str | None, status: int | str | None = None) -> Labels:
        """The labels for one that ended with this `error.type` and status: HTTP's, or gRPC's."""
        if kind is None and status is None:
            return self.labels
        labels = self._labels_by_end.get((kind, status))
        if labels is None:
            own = dict(self.labels)
            if kind is not None:
                own[names.ERROR_TYPE] = kind
            if status is not None:
                http = isinstance(status, int)
                own[names.HTTP_RESPONSE_STATUS_CODE if http else names.RPC_STATUS_CODE] = status
            labels = self._labels_by_end[kind, status] = own
        return labels

    def count(
        self, instruments: Instruments, counter: str, kind: str | None, messages: int = 1
    ) -> None:
        """Count messages, with the `error.type` they ended with."""
        cell = self.counted.get(kind)
        if cell is None:
            cell = self.counted[kind] = instruments.cell(counter, self.labels_of(kind))
        cell.value += messages


class Methods:
    """The methods of one client or server; what comes after the first 200 is `_OTHER`.

    Args:
        client: which of the two.
        inner: a server inside somebody's application, which has the request's own span.
        address: `server.*`, for a client.
        rpc_system, messaging_system: the systems' names, instead of what the scheme says.
    """

    __slots__ = ("_address", "_client", "_inner", "_known", "_messaging_system", "_rpc_system")

    def __init__(
        self,
        *,
        client: bool,
        address: Labels,
        inner: bool = False,
        rpc_system: str | None = None,
        messaging_system: str | None = None,
    ) -> None:
        self._client = client
        self._inner = inner
        self._address = address
        self._rpc_system = rpc_system
        self._messaging_system = messaging_system
        self._known: dict[tuple[str, str, bool], Method] = {}

    def get(self, scheme: str, route: str, is_event: bool) -> Method:  # noqa: FBT001
        """The names of a pattern on the transport of this scheme."""
        method = self._known.get((scheme, route, is_event))
        return self._new(scheme, route, is_event) if method is None else method

    def _new(self, scheme: str, route: str, is_event: bool) -> Method:  # noqa: FBT001
        name, key = route[:_MAX_NAME], (scheme, route, is_event)
        if len(self._known) >= MAX_METHODS:
            name, key = names.OTHER, (scheme, names.OTHER, is_event)
            if key in self._known:
                return self._known[key]
        system = self._messaging_system or names.messaging_system(scheme)
        if is_event and system is not None:
            method = self._messaging(scheme, system, name)
        elif not self._client and not self._inner and names.base(scheme) == "http":
            method = self._http(scheme, name)
        else:
            method = self._rpc(scheme, system, name)
        self._known[key] = method
        return method

    def _messaging(self, scheme: str, system: str, name: str) -> Method:
        operation = names.publish_name(scheme) if self._client else "process"
        labels: Labels = {
            names.MESSAGING_SYSTEM: system,
            names.MESSAGING_OPERATION_NAME: operation,
            names.MESSAGING_OPERATION_TYPE: "send" if self._client else "process",
            names.MESSAGING_DESTINATION_NAME: name,
            **self._address,
        }
        kind = SpanKind.PRODUCER if self._client else SpanKind.CONSUMER
        rpc_system = self._rpc_system or names.rpc_system(scheme)
        return Method(name, f"{operation} {name}", rpc_system, kind, labels, labels)

    def _rpc(self, scheme: str, broker: str | None, name: str) -> Method:
        system = self._rpc_system or names.rpc_system(scheme)
        labels: Labels = {
            names.RPC_SYSTEM_NAME: system,
            names.RPC_METHOD: name,
            **self._address,
        }
        attributes = labels
        if broker is not None and names.is_broker(scheme):
            attributes = {
                **labels,
                names.MESSAGING_SYSTEM: broker,
                names.MESSAGING_DESTINATION_NAME: name,
            }
        kind = SpanKind.CLIENT if self._client else SpanKind.SERVER
        if self._inner:
            kind = SpanKind.INTERNAL
        span_name = system if name is names.OTHER else name
        return Method(name, span_name, system, kind, labels, attributes)

    def _http(self, scheme: str, route: str) -> Method:
        verb, path = names.http_route(route)
        labels: Labels = {
            names.HTTP_REQUEST_METHOD: verb,
            names.HTTP_ROUTE: path,
            names.URL_SCHEME: scheme,
        }
        span_name = verb if route is names.OTHER else f"{verb} {path}"
        return Method(route, span_name, "http", SpanKind.SERVER, labels, labels)
