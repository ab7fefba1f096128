"""The client's end: `ClientProxy`."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from math import inf
from threading import get_ident
from time import time_ns
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVar, overload
from weakref import WeakSet, ref

from resilient_client import defaults
from resilient_client._checks import having, plain, seconds, several, text
from resilient_client.call_settings import (
    NO_SETTINGS,
    check_key,
    checked_headers,
    headers_source,
    pattern_settings,
)
from resilient_client.clock import MonotonicClock, in_time
from resilient_client.codecs import JsonCodec
from resilient_client.context import (
    ATTEMPT_HEADER,
    CORRELATION_HEADER,
    DEADLINE_HEADER,
    IDEMPOTENCY_HEADER,
    PING_PATTERN,
    correlation_id,
    current_context,
    fresh_id,
)
from resilient_client.endpoints import choose
from resilient_client.errors import (
    ConfigurationError,
    ConnectError,
    DeadlineExceeded,
    NoHandlerError,
    Outcome,
    PayloadError,
    RejectedError,
    RemoteError,
    ReplyTimeout,
    ResilientClientError,
    conclude,
)
from resilient_client.events import CallRejected
from resilient_client.loops import close_behind, running_loop
from resilient_client.message import NO_LIMITS, NO_VALUE, Call, Receipt, Reply
from resilient_client.patterns import route as route_of
from resilient_client.pipeline import compose, note
from resilient_client.stream import Stream
from resilient_client.telemetry import settings_of
from resilient_client.transports._base import Environment
from resilient_client.transports._link import to_its_end
from resilient_client.transports._options import client_transports

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import TracebackType

    from resilient_client.call_settings import HeadersSource, Patterns
    from resilient_client.clock import Clock
    from resilient_client.codecs import Codec
    from resilient_client.events import Event, Observer, Status
    from resilient_client.message import Kind, Pattern
    from resilient_client.pipeline import Handler, Policy
    from resilient_client.policies.circuit_breaker import CircuitBreaker
    from resilient_client.telemetry import Telemetry
    from resilient_client.telemetry._client import ClientTelemetry
    from resilient_client.transports._base import Transport

T = TypeVar("T")
log = logging.getLogger("resilient_client")

_KEYWORDS = {
    name: f"did you mean {name!r}?"
    for name in (
        "policies", "name", "headers", "patterns", "codec", "clock", "observers", "telemetry",
    )
} | {
    name: f"write policies=standard({name}=...)"
    for name in (
        "timeout", "attempt_timeout", "retry", "retry_budget", "circuit_breaker", "bulkhead",
        "fallback",
    )
}  # fmt: skip
"""What else could be meant by an option that the transport does not know, and what to say then."""
_NO_THREAD = 0
_FAR = 1e12
"""A deadline that no peer needs to be told of, in seconds of any clock: numbers end somewhere."""
_clients: WeakSet[ClientProxy] = WeakSet()


@dataclass(frozen=True, slots=True)
class Health:
    """What a ping found out.

    Attributes:
        reachable: whether any answer came.
        latency: seconds to the answer, None without one.
        status: the state of the connection.
        circuits: the state of each endpoint's breaker, where there is one.
        error: why it is not reachable.
    """

    reachable: bool
    latency: float | None
    status: Status
    circuits: Mapping[str, str]
    error: ResilientClientError | None = None


class ClientProxy:
    """Calls one service, over whatever its URL says.

    One that is dropped unclosed is closed in the background.

    Args:
        target: a URL, a list of URLs (several endpoints of one service), a `Transport`, or a
            function that makes one out of the client's `Environment`.
        policies: what guards every call, outermost first; None is `standard()`, `()` is nothing.
        name: for breakers, metrics and logs; by default the first endpoint's host and port.
        headers: sent with every call; or a (possibly async) callable asked per call, the place for
            tokens. Never logged.
        patterns: settings per pattern, `{"timeout": ..., "idempotent": ..., "attempts": ...}`.
        codec: how payloads become bytes; JSON by default.
        clock: for tests.
        observers: told of connection, circuit, retry and rejection news, as with `listen`.
        telemetry: False turns spans and metrics off; a `Telemetry` sets them up.
        options: the transport's own; an unknown one is refused, naming the near miss.

    Raises:
        ConfigurationError: anything that cannot work, at once.
    """

    _loop: asyncio.AbstractEventLoop | None = None
    _observed: Sequence[Callable[[], None]] = ()

    def __init__(
        self,
        target: str | Sequence[str] | Transport | Callable[[Environment], Transport],
        *,
        policies: Iterable[Policy] | None = None,
        name: str | None = None,
        headers: HeadersSource | None = None,
        patterns: Patterns | None = None,
        codec: Codec | None = None,
        clock: Clock | None = None,
        observers: Iterable[Observer] = (),
        telemetry: bool | Telemetry = True,
        **options: Any,
    ) -> None:
        from resilient_client.policies import standard

        self._clock: Clock = clock if clock is not None else MonotonicClock()
        self._codec: Codec = codec if codec is not None else JsonCodec()
        having("clock", self._clock, "now", "sleep")
        having("codec", self._codec, "encode", "decode", "convert")
        self._now = self._clock.now
        self._observers: list[Observer] = several("observers", observers)
        for observer in self._observers:
            plain("observer", observer)
        self._observer: Observer | None = self._tell if self._observers else None
        this = ref(self)

        # What outlives this client, such as a connection, must not keep it.
        def tell(event: Event) -> None:
            if (client := this()) is not None:
                client._tell(event)  # noqa: SLF001

        def listen(observer: Observer) -> None:
            if (client := this()) is not None:
                client.listen(observer)

        self._told = tell
        env = Environment(self._clock, self._codec, tell)
        self._transports = client_transports(target, env, options, _KEYWORDS)
        self._endpoint = self._transports[0].endpoint
        self._encode, self._decode = self._transports[0].encode, self._transports[0].decode
        self._idempotent = self._transports[0].idempotent
        self.name = self._endpoint.partition("://")[2].rstrip("/")
        if name is not None:
            self.name = text("name", name)
        self._headers, self._ask_headers = headers_source(headers)
        self._patterns = pattern_settings(patterns)
        self._policies = standard() if policies is None else several("policies", policies)
        self._timeout: float = defaults.TIMEOUT
        self._breakers: dict[str, CircuitBreaker] = {}
        self._guards: dict[tuple[int, str], CircuitBreaker] = {}
        self._observed = []
        self._telemetry: ClientTelemetry | None = None
        if (settings := settings_of(telemetry)) is not None:
            from resilient_client.telemetry._client import ClientTelemetry

            self._telemetry = ClientTelemetry(
                self.name,
                self._transports,
                settings,
                now=self._now,
                listen=listen,
                breakers=self._breakers,
                policies=self._policies,
            )
        self._handler = self._assemble()
        if self._telemetry is not None:
            self._telemetry.probe(self._now())
        self._loop_runs: Callable[[], bool] = bool
        self._thread = _NO_THREAD  # of the loop, while that is where it ran last
        self._process = os.getpid()
        _clients.add(self)
        self._closed = False

    # ---------------------------------------------------------------------------- the pipeline

    def _assemble(self) -> Handler:
        """Compose the policies around the choice of endpoint, once."""
        from resilient_client.policies import Timeout, arrange

        arranged = arrange(self._policies)
        inner, limit = list(arranged.inner), inf
        if inner and type(inner[-1]) is Timeout:  # spares every call a layer
            limit = inner.pop().seconds  # type: ignore[attr-defined]
        if arranged.overall is not None:
            self._timeout = arranged.overall
        endpoints = []
        for transport in self._transports:
            guards = [self._for_endpoint(policy, transport) for policy in inner]
            transmit = self._transmitter(transport, limit)
            endpoints.append((transport.endpoint, compose(guards, transmit, self._clock)))
        return compose(arranged.outer, choose(endpoints, self._clock), self._clock)

    def _for_endpoint(self, policy: Policy, transport: Transport) -> Policy:
        copy_for = getattr(policy, "copy_for", None)
        if copy_for is None:
            return policy
        known = self._guards.get((id(policy), transport.endpoint))
        if known is not None:  # composed anew for another loop: the breaker and its state stay
            return known
        breaker: CircuitBreaker = policy  # type: ignore[assignment]
        if len(self._transports) > 1:
            address = transport.endpoint.partition("://")[2].rstrip("/")
            breaker = copy_for(f"{breaker.name or self.name}/{address}")
        elif breaker.name is None:
            breaker.name = self.name
        self._breakers[transport.endpoint] = breaker
        self._guards[id(policy), transport.endpoint] = breaker
        self._observed = [*self._observed, breaker.observe(self._told)]
        return breaker

    def _transmitter(self, transport: Transport, limit: float = inf) -> Handler:
        """The innermost handler: the attempt's time and headers, then the wire.

        Args:
            limit: seconds for an attempt: see `Timeout`.
        """
        now, telemetry = self._now, self._telemetry
        request, publish = transport.request, transport.publish

        async def emitted(call: Call) -> Reply:
            receipt = publish(call)
            return Reply(receipt=receipt if type(receipt) is Receipt else await receipt)  # type: ignore[misc]

        # No coroutine of its own: this is on the way of every attempt.
        def transmit(call: Call, *, seen: bool = telemetry is None) -> Any:
            if call.span is not None and not seen:
                return record(call)
            at, deadline = now(), call.deadline
            if at >= deadline:
                raise _too_late(call)
            event = call.kind == "emit"
            traced = telemetry is not None and (call.span is not None or call.ambient)
            if not event or traced or call.attempt > 1 or call.idempotency_key is not None:
                metadata = call.metadata = call.headers.copy()
                if call.attempt > 1:
                    metadata[ATTEMPT_HEADER] = str(call.attempt)
                if call.idempotency_key is not None:
                    metadata[IDEMPOTENCY_HEADER] = call.idempotency_key
                if traced:
                    telemetry.inject(call)  # type: ignore[union-attr]
            else:  # an event to which nothing comes travels with the call's own: one dict less
                call.metadata = call.headers
            end = at + limit
            if end > deadline:  # noqa: PLR1730  (`min` takes five times as long)
                end = deadline
            call.connect_deadline = end
            call.attempt_deadline = deadline if call.may_repeat is False else end
            if call.limits is not NO_LIMITS:
                connect, attempt = call.limits
                call.connect_deadline = min(end, connect)
                call.attempt_deadline = min(call.attempt_deadline, attempt)
            if event:
                return emitted(call)
            if deadline < _FAR:
                call.metadata[DEADLINE_HEADER] = str(int((deadline - at) * 1000) or 1)
            if call.idle_timeout < inf:
                first = call.opened_by
                if at >= first:
                    raise _too_late(call)
                call.connect_deadline = min(call.connect_deadline, first)
                call.attempt_deadline = min(call.attempt_deadline, first)
            return request(call)

        if telemetry is not None:
            record = telemetry.around_attempt(partial(transmit, seen=True), transport)
        return transmit

    # -------------------------------------------------------------------------------- the calls

    @overload
    async def send(
        self,
        pattern: Pattern,
        data: Any = None,
        *,
        returns: type[T],
        timeout: float | None = None,
        headers: Mapping[str, str] | None = None,
        idempotent: bool | None = None,
        idempotency_key: str | None = None,
    ) -> T: ...

    @overload
    async def send(
        self,
        pattern: Pattern,
        data: Any = None,
        *,
        returns: Any = ...,
        timeout: float | None = None,
        headers: Mapping[str, str] | None = None,
        idempotent: bool | None = None,
        idempotency_key: str | None = None,
    ) -> Any: ...

    async def send(
        self,
        pattern: Pattern,
        data: Any = None,
        *,
        returns: Any = Any,
        timeout: float | None = None,
        headers: Mapping[str, str] | None = None,
        idempotent: bool | None = None,
        idempotency_key: str | None = None,
    ) -> Any:
        """Ask, and return the first value of the answer (None when it ended without one).

        Args:
            pattern: who is asked: a string, a number or a mapping.
            data: the payload; None is sent as null.
            returns: the type of the answer: it is decoded into it and validated.
            timeout: seconds for the whole call, connecting, retries and fallback included.
            headers: sent along, before the client's own.
            idempotent: executing it twice is harmless, so that it may be repeated.
            idempotency_key: the same for every attempt, so that the peer can tell; implies
                `idempotent`.

        Raises:
            RemoteError: the peer answered with an error.
            TransportError: no usable answer; `.sent` tells whether it may have been executed.
            DeadlineExceeded: the time ran out.
            RejectedError: refused here: open circuit, too many calls.
            PayloadError: the data cannot be sent, or the answer is not what `returns` says.
        """
        call = self._call("send", pattern, data, timeout, headers, idempotent, idempotency_key)
        try:
            if self._ask_headers is not None:
                await self._add_headers(call, headers)
            reply = await self._handler(call)
            value = reply.body
            if value is NO_VALUE:
                value = None
            elif not reply.decoded:
                value = self._decode(value, returns)
        except BaseException as error:
            self._conclude(error, call)
            raise
        if call.span is not None:
            call.span.end(None)
        return value

    async def emit(
        self,
        pattern: Pattern,
        data: Any = None,
        *,
        timeout: float | None = None,
        headers: Mapping[str, str] | None = None,
        idempotent: bool | None = None,
        idempotency_key: str | None = None,
    ) -> Receipt:
        """Hand an event over, and say what is proved about it.

        `timeout` bounds handing over only: an event does not expire. See `send` for the rest.
        """
        call = self._call("emit", pattern, data, timeout, headers, idempotent, idempotency_key)
        try:
            if self._ask_headers is not None:
                await self._add_headers(call, headers)
            receipt = (await self._handler(call)).receipt
        except BaseException as error:
            self._conclude(error, call)
            raise
        if call.span is not None:
            call.span.end(None)
        assert receipt is not None, "a policy answered an event without a Receipt"  # noqa: S101
        return receipt

    @overload
    def stream(
        self,
        pattern: Pattern,
        data: Any = None,
        *,
        returns: type[T],
        timeout: float | None = None,
        idle_timeout: float = defaults.IDLE_TIMEOUT,
        headers: Mapping[str, str] | None = None,
        idempotent: bool | None = None,
    ) -> Stream[T]: ...

    @overload
    def stream(
        self,
        pattern: Pattern,
        data: Any = None,
        *,
        returns: Any = ...,
        timeout: float | None = None,
        idle_timeout: float = defaults.IDLE_TIMEOUT,
        headers: Mapping[str, str] | None = None,
        idempotent: bool | None = None,
    ) -> Stream[Any]: ...

    def stream(
        self,
        pattern: Pattern,
        data: Any = None,
        *,
        returns: Any = Any,
        timeout: float | None = None,
        idle_timeout: float = defaults.IDLE_TIMEOUT,
        headers: Mapping[str, str] | None = None,
        idempotent: bool | None = None,
    ) -> Stream[Any]:
        """Ask, and iterate over every value of the answer, in order.

        An error after some values is raised after them. Leaving the loop cancels the call; use the
        stream as an async context manager to be sure when. Without `timeout` only `idle_timeout`
        bounds it: seconds to wait for the first and for each later value.

        Raises, while iterating:
            ReplyTimeout: the stream was silent for `idle_timeout`.
            and what `send` raises.
        """
        idle_timeout = seconds("idle_timeout", idle_timeout)

        async def start() -> tuple[Call, Reply]:
            call = self._call("stream", pattern, data, timeout, headers, idempotent, None)
            call.idle_timeout = idle_timeout
            try:
                if self._ask_headers is not None:
                    await self._add_headers(call, headers)
                reply = await self._handler(call)
                items = reply.items
            except BaseException as error:
                self._conclude(error, call)
                raise
            if call.span is not None:
                if items is None:
                    call.span.end(None)
                else:
                    reply.on_complete(call.span.complete)
            return call, reply

        return Stream(start, self._decode, returns, self._now, self._conclude)

    def _call(
        self,
        kind: Kind,
        pattern: Pattern,
        data: Any,
        timeout: float | None,
        headers: Mapping[str, str] | None,
        idempotent: bool | None,  # noqa: FBT001
        idempotency_key: str | None,
    ) -> Call:
        """The call, its payload encoded and its deadline set. Bad input is refused here."""
        # Our loop is the one that runs in this thread, then. To ask which does costs Python 3.11 a
        # system call.
        if get_ident() != self._thread or not self._loop_runs():
            self._own_loop()
        route = pattern if type(pattern) is str else route_of(pattern)
        settings = self._patterns.get(route, NO_SETTINGS) if self._patterns else NO_SETTINGS
        if timeout is None:
            timeout = settings.timeout
            if timeout is None:
                timeout = inf if kind == "stream" else self._timeout
        elif type(timeout) is not float or not timeout > 0:  # nor is a NaN
            timeout = seconds("timeout", timeout)
        started = self._now()
        deadline = started + timeout
        own = self._headers.copy()
        if headers:
            own.update(checked_headers(headers))
        context = current_context.get()
        if context is not None and context.deadline < deadline:
            deadline = started + (context.remaining or 0.0)
        if idempotent is None:
            idempotent = settings.idempotent if idempotency_key is None else True
        if idempotency_key is not None:
            check_key(idempotency_key)
        call = Call(
            pattern,
            route,
            kind,
            data,
            own,
            own,  # until an attempt has its own
            started,
            deadline,
            idempotency_key is not None if idempotent is None else idempotent,
            idempotency_key,
            self._endpoint,
            self._observer,
            started,
        )
        telemetry, later = self._telemetry, False
        if telemetry is not None and pattern is not PING_PATTERN:
            if telemetry.recording or (
                started >= telemetry.next_probe and telemetry.probe(started)
            ):
                later = self._ask_headers is not None  # what is asked may say what it belongs to
                if not later:
                    telemetry.begin(call)
            else:
                call.ambient = telemetry.ambient()
        if not later and CORRELATION_HEADER not in own:
            own[CORRELATION_HEADER] = correlation_id.get() or (
                telemetry.correlation_id() if call.ambient else fresh_id()  # type: ignore[union-attr]
            )
        if idempotent is None and not call.idempotent:
            call.idempotent = self._idempotent(call)
        call.max_attempts = settings.attempts
        try:
            self._encode(call)
        except BaseException as error:
            call.attempt = 0
            if later:
                telemetry.begin(call)  # type: ignore[union-attr]
            self._conclude(error, call)
            raise
        return call

    async def _add_headers(self, call: Call, given: Mapping[str, str] | None) -> None:
        """Ask the `headers=` callable; what was given for this call comes before its answer."""
        assert self._ask_headers is not None  # noqa: S101
        call.attempt = 0
        began = time_ns()
        try:
            asked = self._ask_headers()
            if inspect.isawaitable(asked):
                late = DeadlineExceeded("the headers= callable took all the time there was")
                asked = await in_time(asked, call.opened_by, self._clock, late)
            call.headers |= checked_headers(asked)
            if given:
                call.headers |= checked_headers(given)
        finally:
            if self._telemetry is not None and self._telemetry.recording:
                self._telemetry.begin(call, began)
        if CORRELATION_HEADER not in call.headers:  # it has just ceased to record
            call.headers[CORRELATION_HEADER] = correlation_id.get() or fresh_id()
        call.attempt = 1

    def _conclude(self, error: BaseException, call: Call) -> None:
        """The call has failed."""
        note(error)
        if (
            isinstance(error, ResilientClientError)
            and conclude(error, call, self._now())
            and self._observer is not None
            and isinstance(error, RejectedError)
        ):
            self._tell(CallRejected(call.route, error))
        if call.span is not None:
            call.span.end(error)

    # ---------------------------------------------------------------------------------- its life

    async def connect(self) -> None:
        """Connect to every endpoint.

        Raises:
            ConnectError: not one of them can be reached within the overall timeout.
            ConfigurationError: one of them can never be: wrong credentials, say.
        """
        self._own_loop()
        if self._telemetry is not None:
            self._telemetry.probe(self._now())
        deadline = self._now() + self._timeout
        await asyncio.gather(*(breaker.start(self) for breaker in self._guards.values()))
        results = await asyncio.gather(
            *(transport.connect(deadline) for transport in self._transports),
            return_exceptions=True,
        )
        errors = [error for error in results if isinstance(error, BaseException)]
        final = [each for each in errors if not isinstance(each, ConnectError | DeadlineExceeded)]
        try:
            if final or len(errors) == len(self._transports):
                raise (final or errors)[0]
        finally:
            del results, errors, final  # an error's traceback holds this frame

    async def aclose(self) -> None:
        """Close the connections; what is pending fails with `ConnectionLost`. Idempotent.

        Where it is cancelled, all is closed before it ends.
        """
        if self._loop is None:
            running_loop()
        else:
            self._own_loop()
        self._closed = True
        await to_its_end(self._close)

    async def _close(self) -> None:
        await asyncio.gather(*(transport.aclose() for transport in self._transports))
        await asyncio.gather(*(breaker.stop(self) for breaker in self._guards.values()))
        for forget in self._observed:  # a breaker shared with others outlives this client
            forget()

    async def __aenter__(self) -> Self:
        try:
            await self.connect()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __del__(self, finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if finalizing():
            return
        for forget in self._observed:
            forget()
        if (loop := self._loop) is not None and self.holds_connections:
            close_behind(loop, self._close_behind, "close a client", self._leave)

    async def _close_behind(self) -> None:
        self._closed = True
        # one after the other in this very task: others would be left behind by a loop that ends
        async with contextlib.AsyncExitStack() as closing:
            for breaker in self._guards.values():
                closing.push_async_callback(breaker.stop, self)
            for transport in self._transports:
                closing.push_async_callback(transport.aclose)

    def _leave(self) -> None:
        """Its loop is closed, and the connections with it."""
        for breaker in self._guards.values():
            breaker.leave(self)

    def _own_loop(self) -> None:
        """All state belongs to the loop of the first use, until that has closed or a fork came."""
        loop, before = running_loop(), self._loop
        if loop is before:
            self._thread = get_ident()
            return
        if before is not None and not before.is_closed() and self._process == os.getpid():
            raise ConfigurationError(
                "this client belongs to another event loop that is still running",
                hint="use one client per loop, or SyncClientProxy, which is safe from any thread",
            )
        for policy in self._policies:
            bind = getattr(policy, "bind", None)
            if bind is not None and getattr(policy, "scope", None) is not None:
                bind(loop)
        for breaker in self._guards.values():
            if self._closed:
                breaker.bind(loop)
            else:
                breaker.begin(loop, self)
        if before is not None:
            for transport in self._transports:
                forget = getattr(transport, "forget_loop", None)
                if forget is not None:
                    forget()
            self._handler = self._assemble()  # permits and waits in there were the old loop's
        self._loop, self._loop_runs = loop, loop.is_running
        self._thread, self._process = get_ident(), os.getpid()

    @property
    def holds_connections(self) -> bool:
        """Whether this process has used it, and it was not closed since."""
        return self._loop is not None and not self._closed and self._process == os.getpid()

    # ------------------------------------------------------------------------------ what is seen

    @property
    def status(self) -> Status:
        """The connection's state; with several endpoints the best of them."""
        if self._closed:
            return "closed"
        loop = self._loop
        if loop is not None and (loop.is_closed() or self._process != os.getpid()):
            return "idle"  # what is left belongs to a loop that has ended, or to the parent
        states = {transport.status for transport in self._transports}
        order: tuple[Status, ...] = ("connected", "connecting", "reconnecting", "idle", "closed")
        return next(state for state in order if state in states)

    @property
    def circuit_breakers(self) -> Mapping[str, CircuitBreaker]:
        """Each endpoint's breaker, by the endpoint's URL."""
        return dict(self._breakers)

    @property
    def circuit_breaker(self) -> CircuitBreaker:
        """The breaker of the only endpoint."""
        if len(self._breakers) != 1:
            raise ConfigurationError(
                f"this client has {len(self._breakers)} breakers", hint="use circuit_breakers"
            )
        return next(iter(self._breakers.values()))

    def listen(self, callback: Observer) -> Callable[[], None]:
        """Call back with every change of state; the returned function ends that."""
        plain("observer", callback)
        self._observers.append(callback)
        self._observer = self._tell

        def unsubscribe() -> None:
            if callback in self._observers:
                self._observers.remove(callback)
            if not self._observers:
                self._observer = None

        return unsubscribe

    def _tell(self, event: Event) -> None:
        for observer in tuple(self._observers):
            try:
                observer(event)
            except Exception:  # an observer's fault must not become the call's
                log.exception("an observer of client %s failed", self.name)

    async def ping(self, timeout: float | None = None) -> Health:
        """Whether the service can be reached, how fast, and the state of its breakers.

        It asks the built-in pattern past policies and breaker; against a peer of another make any
        answer, "unknown pattern" included, means reachable.
        """
        call = self._call("send", PING_PATTERN, None, timeout, None, None, None)
        error: ResilientClientError | None = None
        try:
            await choose(
                [(each.endpoint, self._transmitter(each)) for each in self._transports], self._clock
            )(call)
        except (RemoteError, PayloadError) as answer:
            if isinstance(answer, NoHandlerError) and answer.outcome is Outcome.NEVER_SENT:
                error = answer
        except ResilientClientError as failure:
            error = failure
        if error is not None:
            self._conclude(error, call)
        try:
            return Health(
                reachable=error is None,
                latency=self._now() - call.started if error is None else None,
                status=self.status,
                circuits={url: breaker.current_state for url, breaker in self._breakers.items()},
                error=error,
            )
        finally:
            del error  # its traceback holds this frame

    def explain(self) -> str:
        """The pipeline and every effective setting, for people."""
        from resilient_client.policies import explain

        return explain(self.name, self._transports, self._policies, self._timeout, self._patterns)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a client can neither be pickled nor copied: make one in each process;"
            " a SyncClientProxy may be made before a fork"
        )

    def __repr__(self) -> str:
        urls = ", ".join(transport.endpoint for transport in self._transports)
        return f"<ClientProxy {self.name!r} {urls} {self.status}>"


def _too_late(call: Call) -> ResilientClientError:
    """The error of an attempt that is not begun: it says nothing about the peer."""
    kind = DeadlineExceeded if call.opened_by >= call.deadline else ReplyTimeout
    error = kind("no time is left for an attempt", sent=call.sent)
    error.outcome = Outcome.REJECTED
    return error


def _after_fork() -> None:
    for client in _clients:  # the parent's loop looks as if it ran on, here too
        client._thread = _NO_THREAD  # noqa: SLF001


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
