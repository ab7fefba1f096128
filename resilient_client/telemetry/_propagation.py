"""Trace context in headers, written and read with care: what comes in is hostile."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from resilient_client.telemetry._otel import (
    Context,
    Getter,
    Setter,
    baggage,
    get_current,
    get_current_span,
    global_propagator,
    set_span_in_context,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from resilient_client.telemetry import Telemetry
    from resilient_client.telemetry._otel import TextMapPropagator

log = logging.getLogger("resilient_client.telemetry")

_LIMITS = {"traceparent": 128, "tracestate": 512, "baggage": 2048}
_LIMIT = 512  # characters, for the fields of other propagators
_MEMBERS = 16  # of baggage
_NOTHING = Context()


class _LowerSetter(Setter[dict[str, str]]):
    def set(self, carrier: dict[str, str], key: str, value: str) -> None:
        carrier[key.lower()] = value


class _LowerGetter(Getter[dict[str, str]]):
    def get(self, carrier: dict[str, str], key: str) -> list[str] | None:
        value = carrier.get(key.lower())
        return None if value is None else [value]

    def keys(self, carrier: dict[str, str]) -> list[str]:
        return list(carrier)


_setter = _LowerSetter()
_getter = _LowerGetter()


class Propagation:
    """Writes and reads the headers of one client or server, whose names are lower-case."""

    __slots__ = ("_allowed", "_fields", "_given", "_known", "_signs")

    def __init__(self, settings: Telemetry) -> None:
        self._given: TextMapPropagator | None = settings.propagator
        self._allowed = frozenset(settings.baggage_keys)
        self._known: TextMapPropagator | None = None
        self._fields: tuple[str, ...] = ()
        self._signs: tuple[str, ...] = ()

    def _propagator(self) -> TextMapPropagator:
        """The one in force; the application may set the global one at any time."""
        propagator = self._given if self._given is not None else global_propagator()
        if propagator is not self._known:
            fields = sorted({field.lower() for field in propagator.fields})
            if not self._allowed and "baggage" in fields:
                fields.remove("baggage")
            self._fields = tuple(fields)
            self._signs = tuple(field for field in fields if field != "tracestate")
            self._known = propagator
        return propagator

    def signs(self) -> frozenset[str]:
        """The headers of which any shows that there is something to be read."""
        self._propagator()
        return frozenset(self._signs)

    def present(self, headers: Mapping[str, str]) -> bool:
        """Whether there is anything in the headers to be read."""
        self._propagator()
        for sign in self._signs:  # noqa: SIM110  (on the path of every message)
            if sign in headers:
                return True
        return False

    def inject(self, carrier: dict[str, str], context: Context) -> None:
        """Write the context into the headers, of its baggage only what may be passed on."""
        members = baggage.get_all(context)
        if members:
            context = baggage.clear(context)
            for key in self._allowed.intersection(members):
                context = baggage.set_baggage(key, members[key], context)
        try:
            self._propagator().inject(carrier, context=context, setter=_setter)
        except Exception:  # telemetry never fails a call
            log.debug("the trace context could not be written", exc_info=True)

    def extract(self, headers: Mapping[str, Any]) -> Context:
        """The context in the headers, empty when there is none that can be read.

        Types, sizes and characters are checked before a propagator sees anything: it would raise
        on some, and log others whole.
        """
        try:
            propagator = self._propagator()
            carrier = {}
            for field in self._fields:
                value = headers.get(field)
                if (
                    type(value) is str
                    and len(value) <= _LIMITS.get(field, _LIMIT)
                    and value.isascii()
                    # around a list's commas W3C allows tabs as well as blanks
                    and (value := value.replace("\t", " ")).isprintable()
                ):
                    carrier[field] = value
            if "baggage" in carrier:
                carrier["baggage"] = self._members(carrier["baggage"])
            if not carrier:
                return _NOTHING
            return propagator.extract(carrier, context=_NOTHING, getter=_getter)
        except Exception:  # telemetry never fails a call
            log.debug("a trace context could not be read", exc_info=True)
            return _NOTHING

    def _members(self, text: str) -> str:
        members = [
            member
            for member in text.split(",")[:_MEMBERS]
            if member.partition("=")[0].strip() in self._allowed
        ]
        return ",".join(members)

    def explicit(self, headers: Mapping[str, str]) -> Context | None:
        """The ambient context with the span that the headers name; None when they name none."""
        if not self.present(headers):
            return None
        span = get_current_span(self.extract(headers))
        if not span.get_span_context().is_valid:
            return None
        return set_span_in_context(span, get_current())
