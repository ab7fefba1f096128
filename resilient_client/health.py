"""`/livez` and `/readyz` for whoever watches the process; no extra needed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from resilient_client.errors import ConfigurationError
from resilient_client.transports._socket import bound

if TYPE_CHECKING:
    from collections.abc import Callable

_MAX_REQUEST = 8192  # bytes of request line and headers
_PATIENCE = 5.0  # seconds a client may take to ask


class HealthEndpoint:
    """A server for two questions: is the process alive, and does it take calls.

    `/livez` is 200 while it runs; `/readyz` is 200 while it takes calls, else 503 with the reason.

    Args:
        unready: why it does not take calls; empty when it does.
    """

    def __init__(self, url: str, unready: Callable[[], str]) -> None:
        if not isinstance(url, str):
            raise ConfigurationError(
                f"health={url!r} is not an http:// address", hint="write http://127.0.0.1:8080"
            )
        try:
            parts = urlsplit(url)
            port = parts.port if parts.port is not None else 80
        except ValueError as error:
            raise ConfigurationError(f"health={url!r}: {error}") from None
        if parts.scheme != "http" or parts.hostname is None:
            raise ConfigurationError(
                f"health={url!r} is not an http:// address", hint="write http://127.0.0.1:8080"
            )
        self._host = parts.hostname
        self._port = port
        self._unready = unready
        self._server: asyncio.Server | None = None
        self._asking: set[asyncio.StreamWriter] = set()
        self.address = url

    async def start(self) -> None:
        """Bind."""
        try:
            self._server = await bound(
                asyncio.start_server(
                    self._serve,
                    self._host,
                    self._port,
                    limit=_MAX_REQUEST,
                    start_serving=False,  # cancelled while it begins, asyncio would lose the socket
                )
            )
            await self._server.start_serving()
        except OSError as error:
            raise ConfigurationError(
                f"health={self._host}:{self._port} cannot be bound: {error.strerror}"
            ) from error
        port = self._server.sockets[0].getsockname()[1]
        host = f"[{self._host}]" if ":" in self._host else self._host
        self.address = f"http://{host}:{port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._asking.add(writer)
        try:
            async with asyncio.timeout(_PATIENCE):
                request = await reader.readuntil(b"\r\n\r\n")
                method, _, rest = request.partition(b" ")
                status, body = self._answer(method, rest.partition(b" ")[0].partition(b"?")[0])
                writer.write(
                    b"HTTP/1.1 %b\r\ncontent-type: text/plain\r\ncontent-length: %d\r\n"
                    b"connection: close\r\n\r\n%b"
                    % (status, len(body), b"" if method == b"HEAD" else body)
                )
                await writer.drain()
        except (
            TimeoutError,
            ConnectionError,
            asyncio.IncompleteReadError,
            asyncio.LimitOverrunError,
        ):
            writer.transport.abort()  # a client that does not ask properly is not answered
        finally:
            self._asking.discard(writer)
            writer.close()

    def _answer(self, method: bytes, path: bytes) -> tuple[bytes, bytes]:
        if method not in (b"GET", b"HEAD"):
            return b"405 Method Not Allowed", b"GET or HEAD\n"
        if path == b"/livez":
            return b"200 OK", b"ok\n"
        if path == b"/readyz":
            if reason := self._unready():
                return b"503 Service Unavailable", f"{reason}\n".encode()
            return b"200 OK", b"ok\n"
        return b"404 Not Found", b"/livez or /readyz\n"

    async def aclose(self) -> None:
        """Close. Idempotent."""
        if self._server is not None:
            self._server.close()
            for writer in self._asking:  # or those that take their time would take ours
                writer.transport.abort()
            await self._server.wait_closed()
            self._server = None
