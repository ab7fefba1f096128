"""The instruments: one set per meter provider, whatever the number of clients and servers.

Durations are recorded as calls end. Everything else is a plain number that is read when the
application collects: one callback per instrument looks at the living clients and servers, because
the API has no way to take a callback back.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias
from weakref import WeakKeyDictionary, WeakSet

from resilient_client.telemetry import _semconv as names
from resilient_client.telemetry._otel import (
    CallbackOptions,
    Meter,
    Observation,
    meter_of,
    meter_provider_of,
)

if TYPE_CHECKING:
    from resilient_client.events import CircuitChanged

Labels: TypeAlias = Mapping[str, str | int]
_MAX_CELLS = 2000
"""Different label sets of one counter, as many as the SDK keeps of one instrument by default."""

_lock = threading.Lock()  # over every set that the collector's thread looks at


def _renew() -> None:
    """In a forked child: whichever thread held the lock stayed in the parent."""
    global _lock  # noqa: PLW0603
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


class Observed(Protocol):
    """A client or a server, as the callbacks see it; read from the collector's thread."""

    def gauges(self, seen: set[int]) -> Iterable[tuple[str, float, Labels]]:
        """The name, value and labels of everything that is read, not recorded.

        What several share is told once: whoever tells of it puts its `id` among the `seen`.
        """


class Cell:
    """One counter with one set of labels; it outlives the client that made it."""

    __slots__ = ("labels", "value")

    def __init__(self, labels: Labels) -> None:
        self.labels = labels
        self.value = 0


_COUNTERS = {
    names.MESSAGING_CLIENT_SENT_MESSAGES: ("{message}", "Messages sent."),
    names.MESSAGING_CLIENT_CONSUMED_MESSAGES: (
        "{message}",
        "Messages handed to a handler, redeliveries included.",
    ),
    "resilient_client.retry.suppressed": ("{retry}", "Retries that were wanted and not made."),
    "resilient_client.rejections": ("{call}", "Calls refused before anything was sent."),
    "resilient_client.circuit_breaker.transitions": ("{transition}", "Changes of state."),
    "resilient_server.rejections": ("{call}", "Messages that no handler was started for."),
    "resilient_server.correlation_id.rejected": ("{id}", "Correlation ids unfit to be passed on."),
}
_GAUGES = {
    "resilient_client.call.active": ("{call}", "Calls in flight."),
    "resilient_client.connection.active": ("{connection}", "Endpoints that are connected."),
    "resilient_client.reply.pending": ("{reply}", "Replies that are waited for."),
    "resilient_client.circuit_breaker.state": ("{breaker}", "1 for the state it is in, else 0."),
    "resilient_server.call.active": ("{call}", "Handlers running."),
}
_LEVELS = {
    "resilient_client.retry.budget.available": ("{retry}", "Repeats that the budget still allows."),
}
_TOTALS = {
    "resilient_client.reply.orphans": ("{reply}", "Replies that nobody waited for any more."),
    "resilient_client.connection.attempts": ("{attempt}", "Connections tried."),
}


class Instruments:
    """What one meter provider is given.

    Attributes:
        client_call, server_call, publish, process, http_client, http_server, attempt, queue,
            retries: the histograms.
    """

    def __init__(self, meter: Meter) -> None:
        def seconds(name: str, text: str, bounds: tuple[float, ...] = names.SECONDS) -> Any:
            return meter.create_histogram(
                name, "s", text, explicit_bucket_boundaries_advisory=list(bounds)
            )

        self.client_call = seconds(
            names.RPC_CLIENT_CALL_DURATION, "A call as its caller sees it, retries included."
        )
        self.server_call = seconds(names.RPC_SERVER_CALL_DURATION, "Handling of a request.")
        self.publish = seconds(
            names.MESSAGING_CLIENT_OPERATION_DURATION, "Handing an event over, until accepted."
        )
        self.process = seconds(names.MESSAGING_PROCESS_DURATION, "Handling of an event.")
        self.http_client = seconds(names.HTTP_CLIENT_REQUEST_DURATION, "One HTTP request.")
        self.http_server = seconds(names.HTTP_SERVER_REQUEST_DURATION, "One HTTP request.")
        self.attempt = seconds(
            "resilient_client.attempt.duration",
            "One attempt of a call that may have several.",
            names.ATTEMPT_SECONDS,
        )
        self.queue = seconds(
            "resilient_server.queue.duration", "From receiving a message to starting its handler."
        )
        self.retries = meter.create_histogram(
            "resilient_client.call.retries",
            "{retry}",
            "Retries of a call that had any.",
            explicit_bucket_boundaries_advisory=list(names.RETRIES),
        )
        self._observed: WeakSet[Observed] = WeakSet()
        self._breakers: WeakSet[Any] = WeakSet()
        self._cells: dict[str, dict[Any, Cell]] = {name: {} for name in _COUNTERS}
        for name, (unit, text) in _COUNTERS.items():
            meter.create_observable_counter(name, [self._count(name)], unit, text)
        for name, (unit, text) in _GAUGES.items():
            meter.create_observable_up_down_counter(name, [self._gauge(name)], unit, text)
        for name, (unit, text) in _LEVELS.items():
            meter.create_observable_gauge(name, [self._gauge(name)], unit, text)
        for name, (unit, text) in _TOTALS.items():
            meter.create_observable_counter(name, [self._gauge(name)], unit, text)

    def watch(self, observed: Observed) -> None:
        """Read this one's gauges as long as it lives."""
        with _lock:
            self._observed.add(observed)

    def attend(self, breaker: Any) -> None:
        """Count the changes of state of this breaker, whoever shares it, from now on."""
        with _lock:
            if breaker in self._breakers:
                return
            self._breakers.add(breaker)

        def changed(event: CircuitChanged) -> None:
            labels: Labels = {
                names.BREAKER_NAME: event.name,
                names.BREAKER_FROM: event.old,
                names.BREAKER_TO: event.new,
                names.REASON: event.reason,
            }
            self.cell("resilient_client.circuit_breaker.transitions", labels).value += 1

        breaker.observe(changed)

    def cell(self, name: str, labels: Labels) -> Cell:
        """The counter of these labels, the same for everyone who asks; keep it."""
        cells = self._cells[name]
        key = frozenset(labels.items())
        cell = cells.get(key)
        if cell is None:
            with _lock:
                if len(cells) >= _MAX_CELLS:
                    labels = dict.fromkeys(labels, names.OTHER)
                    key = frozenset(labels.items())
                cell = cells.setdefault(key, Cell(labels))
        return cell

    def _count(self, name: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
        cells = self._cells[name]

        def observe(_: CallbackOptions) -> list[Observation]:
            return [Observation(cell.value, cell.labels) for cell in list(cells.values())]

        return observe

    def _gauge(self, name: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_: CallbackOptions) -> Iterator[Observation]:
            with _lock:
                observed = list(self._observed)
            sums: dict[Any, tuple[float, Labels]] = {}
            seen: set[int] = set()
            for each in observed:
                for own, value, labels in each.gauges(seen):
                    if own == name:
                        key = frozenset(labels.items())
                        sums[key] = (sums[key][0] + value if key in sums else value, labels)
            for value, labels in sums.values():
                yield Observation(value, labels)

        return observe


_of_provider: WeakKeyDictionary[Any, Instruments] = WeakKeyDictionary()


def instruments_of(given: Any, version: str) -> Instruments | None:
    """The instruments of this meter provider (None: the global one), None while there is none."""
    provider = meter_provider_of(given)
    if provider is None:
        return None
    with _lock:
        known = _of_provider.get(provider)
        if known is None:
            known = _of_provider[provider] = Instruments(meter_of(provider, version))
        return known
