"""The server's end: `Server` and `Router`."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import signal
import threading
from typing import TYPE_CHECKING, Any, Self, TypeVar

from resilient_client._checks import having, integer, plain, seconds, several, text
from resilient_client.context import PING_PATTERN
from resilient_client.dispatch import Dispatcher
from resilient_client.errors import ConfigurationError
from resilient_client.events import ConnectionChanged, Degraded
from resilient_client.handlers import Handler, bind
from resilient_client.loops import fast_loop_factory, running_loop
from resilient_client.patterns import prefixed
from resilient_client.telemetry import settings_of
from resilient_client.transports._link import spawn, to_its_end
from resilient_client.transports._options import near_miss, server_listeners

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
    from types import TracebackType

    from resilient_client.clock import Clock
    from resilient_client.codecs import Codec
    from resilient_client.events import Event, Observer
    from resilient_client.health import HealthEndpoint
    from resilient_client.message import Pattern
    from resilient_client.pipeline import Policy
    from resilient_client.telemetry import Telemetry
    from resilient_client.transports._base import App, ServerListener

F = TypeVar("F", bound="Callable[..., Any]")
log = logging.getLogger("resilient_client.server")
_ENDING = (signal.SIGTERM, signal.SIGINT)

_KEYWORDS = {
    name: f"did you mean {name!r}?"
    for name in (
        "policies", "name", "health", "grace", "lifespan", "codec", "clock", "observers",
        "telemetry", "max_calls", "max_calls_per_connection", "max_threads",
    )
} | {"timeout": "write policies=[Timeout(...)]"}  # fmt: skip
"""What else could be meant by an option that no transport knows, and what to say then."""
_ONE_YIELD = "write it as an async generator function that yields once"


class Router:
    """Handlers to be included in a server, with a common prefix for their string patterns.

    Of a REST pattern it is the path that gets the prefix.
    """

    def __init__(self, prefix: str = "") -> None:
        self.prefix = text("prefix", prefix)
        self._handlers: list[tuple[Pattern, bool, Callable[..., Any], dict[str, Any]]] = []
        self._included_in: list[Server] = []

    def message_pattern(self, *patterns: Any, **extras: Any) -> Callable[[F], F]:
        """Answer requests for this pattern, or for each of a list of patterns.

        An async generator answers with a stream; a plain `def` runs in a worker thread. A second
        handler for the same pattern replaces the first, as in Nest.

        Args:
            patterns: a string, number or mapping; or a list of them.
            extras: options of this one handler that its transport understands, such as `queue=`.
        """
        return self._register(patterns, extras, is_event=False)

    def event_pattern(self, *patterns: Any, **extras: Any) -> Callable[[F], F]:
        """Hear events of this pattern; several handlers may share one. See `message_pattern`."""
        return self._register(patterns, extras, is_event=True)

    def _register(
        self, patterns: tuple[Any, ...], extras: dict[str, Any], *, is_event: bool
    ) -> Callable[[F], F]:
        flat: list[Any] = []
        for pattern in patterns:
            flat.extend(pattern) if isinstance(pattern, list) else flat.append(pattern)
        if not flat or any(callable(pattern) for pattern in flat):
            raise ConfigurationError(
                "a handler needs a pattern", hint='write @server.message_pattern("sum")'
            )

        def decorate(function: F) -> F:
            for pattern in flat:
                if self.prefix and isinstance(pattern, str):
                    pattern = prefixed(self.prefix, pattern)  # noqa: PLW2901
                self._add(pattern, function, extras, is_event=is_event)
            return function

        return decorate

    def _add(
        self, pattern: Any, function: Callable[..., Any], extras: dict[str, Any], *, is_event: bool
    ) -> None:
        bind(function, pattern, is_event=is_event, extras=extras)  # refuse a bad one at once
        for server in self._included_in:
            server._add(pattern, function, extras, is_event=is_event)  # noqa: SLF001
        self._handlers.append((pattern, is_event, function, extras))


class Server(Router):
    """Answers messages and hears events, on one transport or several.

    Args:
        urls: where to listen; port 0 is any free port. Instead of a URL, a function that makes a
            `ServerListener` out of the app.
        policies: what stands around every handler, outermost first: `Timeout`, `Bulkhead`, or one
            of your own.
        name: for logs and telemetry.
        health: an `http://host:port` that answers `/livez` and `/readyz`.
        grace: seconds that running handlers get at the end.
        lifespan: `lifespan(server)` returns an async context manager, or is an async generator
            function; what it yields is `Context.state`.
        codec, clock, observers, telemetry: as for `ClientProxy`.
        max_calls, max_calls_per_connection: handlers running at once, in total (1000) and for one
            connection or consumer (256).
        max_threads: worker threads for plain `def` handlers (32).
        options: the transports' own; an unknown one is refused, naming the near miss.

    Raises:
        ConfigurationError: anything that cannot work, at once.
    """

    def __init__(
        self,
        *urls: str | Callable[[App], ServerListener],
        policies: Iterable[Policy] | None = None,
        name: str | None = None,
        health: str | None = None,
        grace: float = 10.0,
        lifespan: Callable[[Server], Any] | None = None,
        codec: Codec | None = None,
        clock: Clock | None = None,
        observers: Iterable[Observer] = (),
        telemetry: bool | Telemetry = True,
        max_calls: int = 1000,
        max_calls_per_connection: int = 256,
        max_threads: int = 32,
        **options: Any,
    ) -> None:
        super().__init__()
        for setting, value in (
            ("max_calls", max_calls),
            ("max_calls_per_connection", max_calls_per_connection),
            ("max_threads", max_threads),
        ):
            integer(setting, value)
        self.grace = seconds("grace", grace, zero=True)
        if policies is not None:
            from resilient_client.policies import validate_server

            policies = several("policies", policies)
            validate_server(policies)
        if clock is not None:
            having("clock", clock, "now", "sleep")
        if codec is not None:
            having("codec", codec, "encode", "decode", "convert")
        observers = several("observers", observers)
        for observer in observers:
            plain("observer", observer)
        if lifespan is not None:
            plain("lifespan", lifespan, hint=_ONE_YIELD)
        self.name = text("name", name) if name is not None else "server"
        self._app = Dispatcher(
            policies=policies,
            codec=codec,
            clock=clock,
            max_calls=max_calls,
            max_calls_per_connection=max_calls_per_connection,
            max_threads=max_threads,
            telemetry=settings_of(telemetry),
        )
        self._app.observers.extend((self._watch, *observers))
        self._listeners = server_listeners(urls, self._app, options, _KEYWORDS)
        self._health: HealthEndpoint | None = None
        if health is not None:
            from resilient_client.health import HealthEndpoint

            self._health = HealthEndpoint(health, self._unready)
        if inspect.isasyncgenfunction(lifespan):
            lifespan = contextlib.asynccontextmanager(lifespan)
        self._lifespan = lifespan
        self._lifespan_context: Any = None
        self._started = False
        self._stopping: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None  # that is where it is set
        self._absent = 0  # listeners whose broker is away
        self._given_up = ""  # why one of them does not come back
        self._asgi: Any = None
        self.message_pattern(PING_PATTERN)(_pong)

    def _add(
        self, pattern: Any, function: Callable[..., Any], extras: dict[str, Any], *, is_event: bool
    ) -> None:
        if self._started:
            raise ConfigurationError(
                "the server has started: a broker would not hear of a new handler",
                hint="register handlers before starting",
            )
        handler = bind(function, pattern, is_event=is_event, extras=extras)
        for listener in self._listeners:
            check = getattr(listener, "check_pattern", None)
            if check is not None:
                check(handler)
        self._check_extras(handler, extras)
        self._app.register(handler)

    def _check_extras(self, handler: Handler, extras: Mapping[str, Any]) -> None:
        known: set[str] = set()
        for listener in self._listeners:
            known |= getattr(listener, "handler_options", frozenset())
        for name in extras:
            if name not in known:
                raise ConfigurationError(
                    f"handler {handler.name} has an option {name!r} that none of this server's"
                    " transports has",
                    hint=near_miss(name, known) if known else "leave it out",
                )

    def include(self, router: Router) -> None:
        """Add the router's handlers to this server's, those too that it gets later."""
        if not isinstance(router, Router) or isinstance(router, Server):
            raise ConfigurationError(
                f"include() wants a Router, not a {type(router).__name__}",
                hint="handlers that several servers share are registered with a Router()",
            )
        for pattern, is_event, function, extras in router._handlers:  # noqa: SLF001
            self._add(pattern, function, extras, is_event=is_event)
        router._included_in.append(self)  # noqa: SLF001

    def exception_handler(self, kind: type[BaseException]) -> Callable[[F], F]:
        """Translate an exception of yours: the function gets it (and the `Context`, if it wants).

        It returns a `RemoteError`, or the value to send as one. One for exceptions in general, such
        as `Exception`, is not asked about what is an answer already: a `RemoteError` that a handler
        raises, a payload that does not fit, a bulkhead that is full.
        """
        if not isinstance(kind, type) or not issubclass(kind, BaseException):
            raise ConfigurationError(f"{kind!r} is no class of exceptions", hint="name one of them")

        def decorate(function: F) -> F:
            if not callable(function):
                raise ConfigurationError(f"{function!r} is not a function of a {kind.__name__}")
            self._app.exceptions.register(kind, function)
            return function

        return decorate

    # -------------------------------------------------------------------------------- its life

    @property
    def addresses(self) -> list[str]:
        """The URLs really bound."""
        return [listener.address for listener in self._listeners]

    @property
    def handlers(self) -> list[Handler]:
        """What is registered."""
        return list(self._app.subscriptions())

    async def start(self) -> None:
        """Bind and subscribe everything; return when calls made from now on find their handlers.

        Raises:
            ConfigurationError: an address or a subscription that cannot be had, or a handler whose
                payload can never be what its annotation says.
            ConnectError: a broker that is not there.
        """
        running_loop()
        if self._started:
            raise ConfigurationError("this server has been started already")
        if not self._listeners and self._asgi is None:
            raise ConfigurationError(
                "this server has no URL to listen on",
                hint='write Server("tcp://127.0.0.1:3001"), or mount server.asgi',
            )
        self._app.prepare(self._payload_type)
        self._started = True
        self._absent, self._given_up = 0, ""
        self._app.draining = False
        try:
            if self._lifespan is not None:
                context = self._lifespan(self)
                if not hasattr(context, "__aenter__"):
                    raise ConfigurationError(
                        f"lifespan= gave a {type(context).__name__}, no async context manager",
                        hint=_ONE_YIELD,
                    )
                self._app.state = await context.__aenter__()
                self._lifespan_context = context
            for listener in self._listeners:
                # what it starts for each request must not see who started the server
                await spawn(listener.start(), "start a listener")
            if self._health is not None:
                await self._health.start()
        except BaseException:
            await self.aclose()
            raise

    def _payload_type(self, hint: Any) -> Any:
        """What of a handler's payload is decoded by the codec, not by a transport of its own."""
        for listener in self._listeners:
            own = getattr(listener, "payload_type", None)
            if own is not None:
                hint = own(hint)
        return hint

    async def aclose(self) -> None:
        """Take nothing new in, let what runs end within `grace`, close. Idempotent.

        Where it is cancelled, the grace time is over, and all is closed before it ends.
        """
        if not self._started:
            return
        self._app.draining = True
        async with contextlib.AsyncExitStack() as closing:  # each, whatever became of the others
            closing.push_async_callback(self._end)
            if self._health is not None:
                closing.push_async_callback(self._health.aclose)
            for listener in reversed(self._listeners):
                closing.push_async_callback(to_its_end, listener.aclose)
            closing.push_async_exit(self._drain)
            for listener in reversed(self._listeners):
                closing.push_async_callback(to_its_end, listener.stop)

    async def _drain(self, _: object, error: BaseException | None, __: object) -> None:
        cancelled = isinstance(error, asyncio.CancelledError)
        await self._app.drain(0.0 if cancelled else self.grace)

    async def _end(self) -> None:
        context, self._lifespan_context = self._lifespan_context, None
        self._started = False
        if context is not None:
            await context.__aexit__(None, None, None)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def _watch(self, event: Event) -> None:
        """Put it into the log; notice a broker that goes, and one that does not take us back."""
        if isinstance(event, Degraded):
            log.warning("%s: %s", event.endpoint, event.reason)
        if not isinstance(event, ConnectionChanged):
            return
        if event.new == "reconnecting":
            log.warning("%s: the connection was lost: %s", event.endpoint, event.reason)
            self._absent += 1
        elif event.old == "reconnecting" and event.new == "connected":
            self._absent -= 1
        elif event.old == "reconnecting" and event.new == "idle":
            log.error("%s: not serving any more: %s", event.endpoint, event.reason)
            self._given_up = event.reason
            self.shutdown()

    def _unready(self) -> str:
        """Why no calls are taken, from anywhere; empty when they are."""
        if self._app.draining:
            return "draining"
        ends = len(self._listeners) + (self._asgi is not None)
        return "not connected" if self._absent and self._absent >= ends else ""

    async def _ended(self, stopping: asyncio.Event) -> None:
        await stopping.wait()
        if self._given_up:
            raise ConfigurationError(self._given_up)

    async def serve(self) -> None:
        """Serve until cancelled, or until `shutdown` is called; then drain.

        Raises:
            ConfigurationError: as `start`; or a broker was lost, and refuses to have us again.
        """
        stopping = asyncio.Event()
        if not self._started:
            self._stopping, self._loop = stopping, running_loop()
        async with self:
            await self._ended(stopping)

    def shutdown(self) -> None:
        """Make `serve` or `run` end. Safe from any thread."""
        stopping, loop = self._stopping, self._loop
        if stopping is None or loop is None:
            return
        if asyncio._get_running_loop() is loop:  # noqa: SLF001  (the public one raises)
            stopping.set()
        else:
            with contextlib.suppress(RuntimeError):  # it has ended
                loop.call_soon_threadsafe(stopping.set)

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain within `grace`. Uses uvloop where installed.

        A second SIGINT (Ctrl-C) ends the grace time. In a thread other than the main one no signal
        arrives; there only `shutdown` ends it.

        Raises:
            ConfigurationError: as `serve`; or a loop runs here already.
        """
        if asyncio._get_running_loop() is not None:  # noqa: SLF001  (the public one raises)
            raise ConfigurationError(
                "server.run() cannot run within a running event loop",
                hint="write `await server.serve()`, or `async with server:`",
            )
        before = {}
        if threading.current_thread() is threading.main_thread():
            before = {number: signal.getsignal(number) for number in _ENDING}
        try:
            with asyncio.Runner(loop_factory=fast_loop_factory()) as runner:
                runner.run(self._run())
        finally:
            for number, handler in before.items():  # the loop leaves the system's own
                if handler is not None:
                    signal.signal(number, handler)

    async def _run(self) -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None  # noqa: S101
        stopping = asyncio.Event()
        self._stopping, self._loop = stopping, loop
        starting = heard = True

        def stop(number: int) -> None:
            if starting:  # perhaps it waits for something that never comes
                task.cancel()
            elif number == signal.SIGINT and stopping.is_set():
                self._app.abort()
            stopping.set()

        if threading.current_thread() is threading.main_thread():
            try:
                for number in _ENDING:
                    loop.add_signal_handler(number, stop, number)
            except NotImplementedError:  # Windows: Ctrl-C cancels this task
                heard = False
        try:
            async with self:
                starting = False
                log.info("listening on %s", ", ".join(self.addresses))
                await self._ended(stopping)
                log.info("draining, at most %s s", self.grace)
        except asyncio.CancelledError:
            if heard and not (starting and stopping.is_set()):
                raise

    @property
    def asgi(self) -> Any:
        """The HTTP side as an ASGI application, to mount into FastAPI, Starlette and the like."""
        if self._asgi is None:
            from resilient_client.transports.http import asgi_app

            self._asgi = asgi_app(self._app, lifespan=self._unless_started)
        return self._asgi

    @contextlib.asynccontextmanager
    async def _unless_started(self) -> AsyncGenerator[None]:
        """The server's life as that of an ASGI application, when nobody else started it."""
        if self._started:
            yield
        else:
            async with self:
                yield


async def _pong() -> dict[str, str]:
    return {"status": "ok"}
