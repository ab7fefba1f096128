"""The client's end for code without an event loop: `SyncClientProxy`."""

from __future__ import annotations

import asyncio
import inspect
import sys
import warnings
from collections import deque
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Self, TypeVar, overload

from resilient_client.client import ClientProxy, Health
from resilient_client.errors import ConfigurationError
from resilient_client.loops import background_loop

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
    from types import TracebackType

    from resilient_client.call_settings import HeadersSource, Patterns
    from resilient_client.clock import Clock
    from resilient_client.codecs import Codec
    from resilient_client.events import Observer, Status
    from resilient_client.loops import BackgroundLoop
    from resilient_client.message import Pattern, Receipt
    from resilient_client.pipeline import Policy
    from resilient_client.policies.circuit_breaker import CircuitBreaker
    from resilient_client.stream import Stream
    from resilient_client.telemetry import Telemetry
    from resilient_client.transports._base import Environment, Transport

T = TypeVar("T")

_asked: ContextVar[Any] = ContextVar("asked headers")
"""What the `headers=` callable gave for the call that this context is of."""


class SyncClientProxy:
    """`ClientProxy` without await: the same arguments, the same methods, the same errors.

    A thin facade over one event loop in a daemon thread, which all sync clients of the process
    share. Safe from any thread; the caller's context variables (correlation id, span, a handler's
    remaining time) are carried along. KeyboardInterrupt in a waiting thread cancels its call.
    In a forked child the same object connects anew, over a loop of the child's own.

    Observers, fallbacks and an async `headers=` run on that shared loop and must not block it. A
    plain `headers=` callable is asked in the calling thread, before the call's time begins.

    Inside a running event loop it works, but blocks that loop: a RuntimeWarning says so. A client
    that is dropped unclosed is closed in the background; at exit nothing is waited for.

    Args and Raises: see `ClientProxy`.
    """

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
        self._ask_headers: Callable[[], Any] | None = None
        if callable(headers) and not inspect.iscoroutinefunction(headers):
            self._ask_headers, headers = headers, _asked.get
        self._client = ClientProxy(
            target,
            policies=policies,
            name=name,
            headers=headers,
            patterns=patterns,
            codec=codec,
            clock=clock,
            observers=observers,
            telemetry=telemetry,
            **options,
        )

    @property
    def name(self) -> str:
        """For breakers, metrics and logs."""
        return self._client.name

    @overload
    def send(
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
    def send(
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

    def send(
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
        """Ask, and return the first value of the answer. See `ClientProxy.send`."""
        return self._wait_for_call(
            self._client.send(
                pattern,
                data,
                returns=returns,
                timeout=timeout,
                headers=headers,
                idempotent=idempotent,
                idempotency_key=idempotency_key,
            )
        )

    def emit(
        self,
        pattern: Pattern,
        data: Any = None,
        *,
        timeout: float | None = None,
        headers: Mapping[str, str] | None = None,
        idempotent: bool | None = None,
        idempotency_key: str | None = None,
    ) -> Receipt:
        """Hand an event over, and say what is proved about it. See `ClientProxy.emit`."""
        return self._wait_for_call(
            self._client.emit(
                pattern,
                data,
                timeout=timeout,
                headers=headers,
                idempotent=idempotent,
                idempotency_key=idempotency_key,
            )
        )

    @overload
    def stream(
        self,
        pattern: Pattern,
        data: Any = None,
        *,
        returns: type[T],
        timeout: float | None = None,
        idle_timeout: float = 10.0,
        headers: Mapping[str, str] | None = None,
        idempotent: bool | None = None,
    ) -> SyncStream[T]: ...

    @overload
    def stream(
        self,
        pattern: Pattern,
        data: Any = None,
        *,
        returns: Any = ...,
        timeout: float | None = None,
        idle_timeout: float = 10.0,
        headers: Mapping[str, str] | None = None,
        idempotent: bool | None = None,
    ) -> SyncStream[Any]: ...

    def stream(
        self,
        pattern: Pattern,
        data: Any = None,
        *,
        returns: Any = Any,
        timeout: float | None = None,
        idle_timeout: float = 10.0,
        headers: Mapping[str, str] | None = None,
        idempotent: bool | None = None,
    ) -> SyncStream[Any]:
        """Ask, and iterate over every value of the answer. See `ClientProxy.stream`.

        Leaving the loop cancels the call; use the stream as a context manager to be sure when.
        """
        return SyncStream(
            self._client.stream(
                pattern,
                data,
                returns=returns,
                timeout=timeout,
                idle_timeout=idle_timeout,
                headers=headers,
                idempotent=idempotent,
            ),
            self,
        )

    def ping(self, timeout: float | None = None) -> Health:
        """Whether the service can be reached. See `ClientProxy.ping`."""
        return _wait_for(self._client.ping(timeout))

    def connect(self) -> None:
        """Connect to every endpoint. See `ClientProxy.connect`."""
        _wait_for(self._client.connect())

    def close(self) -> None:
        """Close the connections; what is pending fails with `ConnectionLost`. Idempotent."""
        _wait_for(self._client.aclose())

    def __del__(self, finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        client: ClientProxy | None = getattr(
            self, "_client", None
        )  # None: refused when it was made
        if client is not None and client.holds_connections and not finalizing():
            background_loop().start(client.aclose())

    def __enter__(self) -> Self:
        _wait_for(self._client.__aenter__())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _wait_for_call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Wait for a call; a plain `headers=` callable is asked here first."""
        if self._ask_headers is None:
            return _wait_for(coroutine)
        asked: Any = None
        try:
            asked = self._ask_headers()
            token = _asked.set(asked)
            try:
                return _wait_for(coroutine)
            finally:
                _asked.reset(token)
        finally:
            for each in (coroutine, asked):
                if inspect.iscoroutine(each):
                    each.close()  # of use only where it was not even begun

    # ------------------------------------------------------------------------------ what is seen

    @property
    def status(self) -> Status:
        """See `ClientProxy.status`."""
        return self._client.status

    @property
    def circuit_breakers(self) -> Mapping[str, CircuitBreaker]:
        """Each endpoint's breaker, by the endpoint's URL; steering is safe from any thread."""
        return self._client.circuit_breakers

    @property
    def circuit_breaker(self) -> CircuitBreaker:
        """The breaker of the only endpoint; steering is safe from any thread."""
        return self._client.circuit_breaker

    def listen(self, callback: Observer) -> Callable[[], None]:
        """Call back, on the shared loop's thread, with every change of state.

        The returned function ends that.
        """
        return self._client.listen(callback)

    def explain(self) -> str:
        """The pipeline and every effective setting, for people."""
        return self._client.explain()

    def __reduce__(self) -> NoReturn:
        self._client.__reduce__()

    def __repr__(self) -> str:
        return f"<Sync{repr(self._client)[1:]}"


class SyncStream(Generic[T]):
    """An iterator over an answer's values; opened by the first step.

    Leaving it early cancels the call: at once with `close` or `with`, otherwise when the iterator
    is dropped.
    """

    def __init__(self, stream: Stream[T], client: SyncClientProxy) -> None:
        self._stream = stream
        self._client = client  # it stays open as long as this is in use
        self._step: Callable[[Coroutine[Any, Any, Any]], Any] = client._wait_for_call  # noqa: SLF001
        self._values: deque[T] = deque()  # that have come, and what comes after them
        self._after: BaseException | None = None
        self._home: BackgroundLoop | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        while True:
            try:
                return self._values.popleft()
            except IndexError:  # none is there, or another thread has closed it this moment
                error, self._after = self._after, None
            try:
                if error is not None:
                    raise error
                self._after = self._open(_some(self._stream, self._values))
            except StopAsyncIteration:
                raise StopIteration from None
            finally:
                del error

    def _open(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Open it, or go on with it where it was opened."""
        if self._is_elsewhere():
            coroutine.close()
            raise ConfigurationError(
                "this stream was opened before the fork: it is the parent's",
                hint="open a stream in the process that reads it",
            )
        step, self._step = self._step, _wait_for
        self._home = background_loop()
        return step(coroutine)

    def _is_elsewhere(self) -> bool:
        return self._home is not None and self._home is not background_loop()

    def close(self) -> None:
        """Leave: the peer is told to stop where the transport can. Idempotent."""
        self._values.clear()
        self._after = None
        if not self._is_elsewhere():  # a forked child must not end what its parent reads
            _wait_for(self._stream.aclose())

    def __enter__(self) -> Self:
        self._open(self._stream.__aenter__())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


_AT_ONCE = 100  # values of a stream fetched in one go, if they are there


async def _some(stream: Stream[T], values: deque[T]) -> BaseException | None:
    """The next value, and those that need no waiting; the error, or the end, that follows them."""
    values.append(await anext(stream))
    try:
        while stream.at_hand and len(values) < _AT_ONCE:
            values.append(await anext(stream))
    except Exception as error:  # noqa: BLE001  (raised when those before it have been taken)
        return error
    return None


def _wait_for(coroutine: Coroutine[Any, Any, T]) -> T:
    try:
        here = background_loop()
        running = asyncio._get_running_loop()  # noqa: SLF001  (the public one raises, and is slower)
        if running is not None and running is not here.loop:
            _warn()
    except BaseException:  # a warning made an error; no thread can be started any more
        coroutine.close()
        raise
    return here.run(coroutine)


def _warn() -> None:
    """Once per line of the user's code, as Python's default filter has it."""
    frame, level = sys._getframe(1), 2  # noqa: SLF001
    while frame.f_back is not None and frame.f_globals["__name__"].startswith("resilient_client."):
        frame, level = frame.f_back, level + 1
    warnings.warn(
        "this blocks the running event loop; use ClientProxy",
        RuntimeWarning,
        stacklevel=level,
    )
