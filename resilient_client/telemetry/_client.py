"""What a client tells OpenTelemetry."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from resilient_client.context import CORRELATION_HEADER, correlation_id, fresh_id
from resilient_client.events import CallRejected, RetrySuppressed
from resilient_client.telemetry import _semconv as names
from resilient_client.telemetry._calls import AttemptRecord, CallRecord
from resilient_client.telemetry._http import HttpAttempt, http_method
from resilient_client.telemetry._otel import (
    attach,
    detach,
    format_trace_id,
    get_current,
    get_current_span,
)
from resilient_client.telemetry._recorder import Methods, Recorder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from resilient_client.events import Event, Observer
    from resilient_client.message import Call, Reply
    from resilient_client.pipeline import Handler
    from resilient_client.telemetry import Telemetry
    from resilient_client.telemetry._metrics import Labels
    from resilient_client.telemetry._otel import Span
    from resilient_client.transports._base import Transport

_SUPPRESSED = {"attempts": "max_attempts"}
_BREAKER_STATES = ("closed", "open", "half-open", "forced-open", "disabled", "metrics-only")


class ClientTelemetry(Recorder):
    """Spans and metrics of a client's calls; while nobody listens, a comparison per call.

    Args:
        name: the client's.
        transports: one per endpoint.
        now: the client's clock.
        listen: how to hear the client's news, once something records.
        breakers: the breakers by endpoint.
        policies: the client's; of interest are those that repeat, and their budgets.
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
        policies: Sequence[Any],
    ) -> None:
        super().__init__(settings, now)
        self._listen = listen
        self._transports = transports
        self._breakers = breakers
        budgets = [getattr(policy, "budget", None) for policy in policies]
        self._budgets: list[Any] = [each for each in budgets if hasattr(each, "available")]
        repeats = any(getattr(policy, "repeats", False) for policy in policies)
        self._scheme = transports[0].endpoint.partition("://")[0]
        self._several = len(transports) > 1
        # of several endpoints, the name says which service it is; each attempt has its own
        address = {names.SERVER_ADDRESS: name} if self._several else _address(self._transports[0])
        self._own: Labels = {names.NAME: name, names.SERVER_ADDRESS: address[names.SERVER_ADDRESS]}
        self._methods = Methods(
            client=True,
            address=address,
            rpc_system=getattr(transports[0], "rpc_system", None),
            messaging_system=getattr(transports[0], "messaging_system", None),
        )
        http = hasattr(transports[0], "http_request") and settings.attempt_spans != "never"
        # one HTTP request, one span: no other around it (HTTP conventions)
        self._spanned = not http or repeats or self._several
        self._addresses = {each.endpoint: _address(each) for each in transports}

    def probe(self, now: float) -> bool:
        """See `Recorder`."""
        recording = super().probe(now)
        if self.instruments is not None:
            for breaker in self._breakers.values():
                self.instruments.attend(breaker)
        return recording

    def started(self) -> None:
        """See `Recorder`."""
        self._listen(self.observe)

    # ------------------------------------------------------------------------------------- calls

    def begin(self, call: Call, began: int | None = None) -> None:
        """Start the call's span, and give the call its correlation id.

        Args:
            began: when that was, in nanoseconds since the epoch; None is now.
        """
        if call.started >= self.next_probe:
            self.probe(call.started)
        method = self._methods.get(self._scheme, call.route, call.kind == "emit")
        record = call.span = CallRecord(self, method, call, spanned=self._spanned, began=began)
        headers, span = call.headers, record.span
        known = headers.get(CORRELATION_HEADER)
        if known is None:
            known = headers[CORRELATION_HEADER] = correlation_id.get() or self._new_id(span)
        record.correlate(known)
        if method.name is names.OTHER and span is not None and span.is_recording():
            span.set_attribute(names.RPC_METHOD_ORIGINAL, call.route[:256])

    def _new_id(self, span: Span | None) -> str:
        if span is not None:
            context = span.get_span_context()
            if context.is_valid:
                return format_trace_id(context.trace_id)
        return self.correlation_id()

    def correlation_id(self) -> str:
        """The trace id of the work in progress, else a fresh id."""
        ambient = get_current()
        if ambient:
            context = get_current_span(ambient).get_span_context()
            if context.is_valid:
                return format_trace_id(context.trace_id)
        return fresh_id()

    ambient = staticmethod(get_current)

    def inject(self, call: Call) -> None:
        """Write the trace context into the attempt's headers: nothing without one, or a span.

        While nothing records, what is ambient (a caller's trace, as a rule) goes out as it came,
        and so does what was given in `headers=`.
        """
        record = call.span
        if record is not None and record.context is not None:
            if not record.explicit or record.span.is_recording():
                self.propagation.inject(call.metadata, record.context)
            return
        if call.ambient and not self.propagation.present(call.headers):
            self.propagation.inject(call.metadata, call.ambient)

    # ---------------------------------------------------------------------------------- attempts

    def around_attempt(self, handler: Handler, transport: Transport) -> Handler:
        """The handler inside a span of its own, where there may be several attempts.

        For calls that are recorded.

        A transport that makes HTTP requests says so by its `http_request(call)`: method, template
        of the path, and URL. Each of those has a span.
        """
        mode, several = self._settings.attempt_spans, self._several
        describe: Any = getattr(transport, "http_request", None)
        always = mode == "always" or (mode == "auto" and (several or describe is not None))

        def attempt(call: Call) -> Any:
            record = call.span
            if type(record) is not CallRecord:  # a policy of the user's own asks twice at once
                record = record.parent
            if always or (mode == "auto" and (call.may_repeat or call.attempt > 1)):
                return self._attempt(handler, call, record, describe)
            if describe is not None:
                return self._attached(handler, call, record)
            return handler(call)

        return attempt

    async def _attached(
        self, handler: Handler, call: Call, record: CallRecord | AttemptRecord
    ) -> Reply:
        """The record's span is current: an instrumented HTTP client finds its parent."""
        if record.context is None:
            return await handler(call)
        token = attach(record.context)
        try:
            return await handler(call)
        finally:
            detach(token)

    async def _attempt(
        self, handler: Handler, call: Call, record: CallRecord, describe: Any
    ) -> Reply:
        for failure in call.failures[record.attempts :]:
            self._missed(record, *failure)
        record.attempts += 1
        address = self._addresses.get(call.endpoint or "", {})
        call.status = None
        attempt: AttemptRecord
        if describe is None:
            attempt = AttemptRecord(record, call.attempt, address, self.now())
        else:
            verb, template, url = describe(call)
            method = http_method(record.method, verb, template, address)
            url = names.without_values(url)
            attempt = HttpAttempt(record, call, method, url, self.now())
        if call.failures and call.attempt > 1:
            attempt.delayed(max(0.0, call.attempt_started - call.failures[-1][3]))
        call.span = attempt
        try:
            if describe is not None:
                reply = await self._attached(handler, call, attempt)
            else:
                reply = await handler(call)
        except BaseException as error:
            attempt.end(error)
            raise
        finally:
            call.span = record
        if reply.items is None:
            attempt.end(None)
        else:
            record.open = attempt  # ends with the stream
        return reply

    def _missed(
        self,
        record: CallRecord,
        number: int,
        endpoint: str | None,
        started: float,
        ended: float,
        error: BaseException,
    ) -> None:
        """Make up for an attempt that nobody expected to be followed by another."""
        record.attempts += 1
        wall, now = time.time_ns(), self.now()
        address = self._addresses.get(endpoint or "", {})
        began = wall - int((now - started) * 1e9)
        attempt = AttemptRecord(record, number, address, started, began)
        attempt.end(error, ended, wall - int((now - ended) * 1e9))

    # -------------------------------------------------------------------------------------- news

    def observe(self, event: Event) -> None:
        """Count what the client's observers are told."""
        instruments = self.instruments
        if instruments is None:
            return
        if isinstance(event, CallRejected):
            labels: Labels = {**self._own, names.REASON: self.errors.of(event.error)}
            instruments.cell("resilient_client.rejections", labels).value += 1
        elif isinstance(event, RetrySuppressed):
            labels = {**self._own, names.REASON: _SUPPRESSED.get(event.reason, event.reason)}
            instruments.cell("resilient_client.retry.suppressed", labels).value += 1

    def gauges(self, seen: set[int]) -> Iterable[tuple[str, float, Labels]]:
        """See `_metrics.Observed`."""
        yield "resilient_client.call.active", sum(self.active.values()), self._own
        connected = sum(each.status == "connected" for each in self._transports)
        yield "resilient_client.connection.active", connected, self._own
        for budget in self._budgets:
            if id(budget) not in seen:  # shared with another client
                seen.add(id(budget))
                yield "resilient_client.retry.budget.available", budget.available, self._own
        for transport in self._transports:
            numbers = getattr(transport, "numbers", None)
            if numbers is not None:
                for name, value in numbers().items():
                    yield f"resilient_client.{name}", value, self._own
        for breaker in list(self._breakers.values()):
            if id(breaker) in seen:  # shared with another client
                continue
            seen.add(id(breaker))
            state = breaker.current_state
            for each in _BREAKER_STATES:
                yield (
                    "resilient_client.circuit_breaker.state",
                    1 if each == state else 0,
                    {names.BREAKER_NAME: breaker.name, names.BREAKER_STATE: each},
                )


def _address(transport: Transport) -> Labels:
    host, port = names.address(transport.endpoint)
    if port is None:
        return {names.SERVER_ADDRESS: host}
    return {names.SERVER_ADDRESS: host, names.SERVER_PORT: port}
