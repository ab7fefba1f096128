"""grpcio's server, but with several calls asked for at once.

Its own asks for one call, waits until it has it, and only then for the next: under load each of
them is handed from a thread of the library's to the loop and back, alone. Where several are asked
for, what arrives together is handed over together: half as many calls again a second.

That needs what grpcio keeps private. Where a release has it otherwise, `new_server` says so by
returning the public one.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from typing import TYPE_CHECKING, Any

from resilient_client.errors import SERVER_OVERLOADED, Throttled
from resilient_client.transports._link import spawn
from resilient_client.transports.grpc._library import aio, cygrpc, grpc, server_module
from resilient_client.transports.grpc._status import refuse, status_of

if TYPE_CHECKING:
    from resilient_client.transports.grpc._channel import ChannelOptions

_AHEAD = 64  # calls asked for: what waits beyond them when a server stops, is told nothing useful
_SIGNATURES = {
    "AioServer._make_request_call_future": ("self", "method_bytes"),
    "AioServer._request_call": ("self",),
    "AioServer._start_shutting_down": ("self",),
    "_handle_rpc": (
        "method_name",
        "method_resolver",
        "interceptors",
        "rpc_state",
        "loop",
        "concurrency_exceeded",
    ),
    "_schedule_rpc_coro": ("rpc_coro", "rpc_state", "loop", "method_name"),
}
_Core: Any = getattr(cygrpc, "AioServer", object)
_Failed: Any = getattr(cygrpc, "_RequestCallError", Exception)


def new_server(options: ChannelOptions, compression: grpc.Compression | None) -> aio.Server:
    """A server that is not started yet."""
    if _fits():
        try:
            return _Server(options, compression)
        except (AttributeError, TypeError):  # made in another way
            return aio.server(options=options, compression=compression)
    return aio.server(options=options, compression=compression)


def _fits() -> bool:
    """Whether this release of grpcio has what is used here, as it is used here."""
    for path, expected in _SIGNATURES.items():
        found: Any = cygrpc
        for name in path.split("."):
            found = getattr(found, name, None)
        try:
            parameters = inspect.signature(found).parameters
        except (TypeError, ValueError):
            return False
        if tuple(parameters) != expected:
            return False
    return hasattr(cygrpc, "_RequestCallError") and hasattr(server_module, "Server")


class _Server(getattr(server_module, "Server", object)):  # type: ignore[misc]
    def __init__(self, options: ChannelOptions, compression: grpc.Compression | None) -> None:
        self._loop = cygrpc.get_working_loop()
        augmented = server_module._augment_channel_arguments(options, compression)  # noqa: SLF001
        self._server = _Accepting(self._loop, None, (), (), augmented, None)


class _Accepting(_Core):  # type: ignore[misc]
    """What grpcio's server is underneath.

    Its main loop takes one call after another from `_make_request_call_future`.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *rest: Any) -> None:
        super().__init__(loop, *rest)
        self._own_loop = loop
        self._acceptors: set[asyncio.Task[None]] = set()
        self._refusing: set[asyncio.Task[None]] = set()
        self._arrived: deque[Any] = deque()
        self._next: asyncio.Future[Any] | None = None  # what the main loop waits for

    def _make_request_call_future(self, method_bytes: bytes | None) -> Any:
        if method_bytes is not None:
            return super()._make_request_call_future(method_bytes)
        if not self._acceptors:
            for _ in range(_AHEAD):
                spawn(self._accept(), "accept gRPC calls", self._acceptors)
        future = self._own_loop.create_future()
        if self._arrived:
            future.set_result(self._arrived.popleft())
        else:
            self._next = future
        return future

    async def _accept(self) -> None:
        while True:
            try:
                call = await self._request_call()
            except Exception as error:  # noqa: BLE001  (the main loop's, which knows what to do)
                if isinstance(error, _Failed) and self.is_running():
                    continue
                if (waiting := self._waiting()) is not None:
                    waiting.set_exception(error)
                return
            if not self.is_running():
                self._refuse(call)
            elif (waiting := self._waiting()) is not None:
                waiting.set_result(call)
            else:
                self._arrived.append(call)

    def _waiting(self) -> asyncio.Future[Any] | None:
        future, self._next = self._next, None
        return None if future is None or future.done() else future

    async def _start_shutting_down(self) -> None:
        # the main loop takes no more
        while self._arrived:
            self._refuse(self._arrived.popleft())
        await super()._start_shutting_down()

    def _refuse(self, call: Any) -> None:
        """Answer as a server does that is stopping: it was not looked at, and may be repeated."""
        refused = cygrpc._handle_rpc("", _REFUSING, (), call, self._own_loop, False)  # noqa: SLF001
        spawn(
            cygrpc._schedule_rpc_coro(refused, call, self._own_loop, ""),  # noqa: SLF001
            "refuse a gRPC call",
            self._refusing,
        )


async def _stopping(requests: object, context: Any) -> bytes:
    error = Throttled(SERVER_OVERLOADED, status=429, retry_after=0.1)
    await refuse(context, *status_of(error, None, ours=False))


class _Refusing:
    """Finds, for any method, the handler that refuses."""

    # not unary: that would wait for a message first
    _handler: Any = grpc.stream_unary_rpc_method_handler(_stopping)

    def resolve_handler(self, details: object) -> Any:
        return self._handler


_REFUSING = _Refusing()
