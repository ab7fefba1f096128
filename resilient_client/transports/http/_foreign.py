"""Clients that are not ours: any object with httpx's `AsyncClient` API, and what they raise.

Their exceptions are told apart by the names of their classes, so that httpx, httpx2 and whatever
comes with the same API need not be imported.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from math import inf
from typing import TYPE_CHECKING, Any

from resilient_client.errors import (
    ConfigurationError,
    ConnectError,
    ConnectionLost,
    Overloaded,
    PayloadError,
    ProtocolError,
    RemoteError,
    ReplyTimeout,
    ResilientClientError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilient_client.clock import Clock

# What each class of httpx's exceptions says about the request. A class of a newer version is taken
# for the nearest of its bases that is here; a test finds it.
NEVER_SENT: dict[str, type[ResilientClientError]] = {
    "ConnectError": ConnectError,
    "ConnectTimeout": ConnectError,
    "ProxyError": ConnectError,  # the proxy refused to connect
    "PoolTimeout": Overloaded,
    "UnsupportedProtocol": ConfigurationError,
    "InvalidURL": ConfigurationError,
    "LocalProtocolError": PayloadError,  # the request broke the rules and stayed here
    "CookieConflict": ConfigurationError,
    "RequestNotRead": PayloadError,
}
SENT: dict[str, type[ResilientClientError]] = {
    "ReadTimeout": ReplyTimeout,
    "WriteTimeout": ReplyTimeout,
    "TimeoutException": ReplyTimeout,
    "ReadError": ConnectionLost,
    "WriteError": ConnectionLost,
    "CloseError": ConnectionLost,
    "NetworkError": ConnectionLost,
    "RemoteProtocolError": ConnectionLost,  # most often a connection that was cut
    "ProtocolError": ProtocolError,
    "DecodingError": ProtocolError,
    "TooManyRedirects": ProtocolError,
    "TransportError": ConnectionLost,
    "RequestError": ConnectionLost,
    "HTTPStatusError": RemoteError,  # a hook of the user's called raise_for_status()
    "HTTPError": ConnectionLost,
    "StreamConsumed": ConnectionLost,
    "StreamClosed": ConnectionLost,
    "ResponseNotRead": ConnectionLost,
    "StreamError": ConnectionLost,
}


def map_error(error: Exception) -> ResilientClientError | None:
    """Our error for one of a client's, None when it is not one of those at all."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY" in str(cause):
            return ConfigurationError(
                "the server's certificate is not trusted",
                hint="give the client an ssl.SSLContext that knows its authority",
            )
        cause = cause.__cause__ or cause.__context__
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    for cls in type(error).__mro__:
        if cls.__module__ == "builtins":
            break
        if cls.__name__ in NEVER_SENT:
            return NEVER_SENT[cls.__name__](text, sent=False)
        if cls.__name__ == "HTTPStatusError":
            status = getattr(getattr(error, "response", None), "status_code", None)
            return RemoteError(text, status=status)
        if cls.__name__ in SENT:
            return SENT[cls.__name__](text, sent=True)
    if isinstance(error, RuntimeError) and "closed" in str(error):
        return ConnectError(str(error), hint="the client given as client= has been closed")
    if isinstance(error, OSError):
        return ConnectionLost(text)
    return None


def cancels_safely(client: Any) -> bool:
    """Whether a request of this client may be cancelled at any moment.

    httpx's own pool (httpcore 1.0.9) loses a connection's place for ever when that happens.
    """
    root = next((c.__module__.partition(".")[0] for c in type(client).__mro__[-2:-1]), "")
    if root != "httpx":
        return True
    transports = [getattr(client, "_transport", None), *getattr(client, "_mounts", {}).values()]
    return not any(
        any(cls.__module__.startswith("httpx._transports.default") for cls in type(each).__mro__)
        for each in transports
    )


class ForeignAnswer:
    """A response of such a client, read ahead by a task of its own.

    Reading can so be given up at any moment without cancelling the client in the middle of it.
    """

    _AHEAD = 16  # chunks

    def __init__(self, response: Any, clock: Clock) -> None:
        self._clock = clock
        self.status: int = response.status_code
        self.reason: str = response.reason_phrase
        self.headers = response.headers
        self._response = response
        self._chunks: deque[bytes] = deque()
        self._ended = False
        self._error: ResilientClientError | None = None
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def read(self, limit: int, too_large: Callable[[], Exception]) -> bytes:
        """The whole body; run where it may be left alone."""
        chunks = []
        size = 0
        try:
            async for chunk in self._iterate():
                size += len(chunk)
                if size > limit:
                    raise too_large()
                chunks.append(chunk)
        finally:
            await self._response.aclose()
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _iterate(self) -> Any:
        encoded = self.headers.get("content-encoding", "identity") != "identity"
        return self._response.aiter_bytes() if encoded else self._response.aiter_raw()

    async def chunk(self, deadline: float) -> bytes:
        """The next part of the body, empty at its end; `TimeoutError` when it has not come."""
        left = None if deadline == inf else deadline - self._clock.now()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._pump())
        async with asyncio.timeout(left):
            while not self._chunks:
                if self._error is not None:
                    raise self._error
                if self._ended:
                    return b""
                self._changed.clear()
                await self._changed.wait()
        self._room.set()
        return self._chunks.popleft()

    async def _pump(self) -> None:
        try:
            async for chunk in self._iterate():
                if chunk:
                    self._chunks.append(chunk)
                    self._changed.set()
                while len(self._chunks) >= self._AHEAD:
                    self._room.clear()
                    await self._room.wait()
        except Exception as error:  # noqa: BLE001  (told to whoever reads)
            self._error = map_error(error)
            if self._error is None:
                self._error = ConnectionLost(f"{type(error).__name__}: {error}")
                self._error.__cause__ = error
        finally:
            self._ended = True
            self._changed.set()

    async def aclose(self) -> None:
        """Close the response: the server learns that nobody reads it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        await self._response.aclose()
