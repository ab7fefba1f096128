"""A socket of our own: grouped writes, backpressure, and words for what goes wrong at dialling."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from typing import TYPE_CHECKING, TypeVar

from resilient_client.errors import ConfigurationError, ConnectError, ConnectionLost

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilient_client.transports._base import Target

_GROUP, _MAX_GROUP = 16, 256  # frames written together: so many at first, then ever more
_LARGE = 16 * 1024  # bytes of a frame that is not to be waited with


class SocketProtocol(asyncio.BufferedProtocol):
    """One connection, as its protocol sees it; a subclass reads.

    Attributes:
        closed: the connection has ended.
        paused: nothing is read until `resume`.
        congested: nothing more should be written: the peer does not read as fast as we write.
    """

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.closed = self.congested = self.paused = False
        self._queue: list[bytes] = []
        self._flushing, self._group = False, _GROUP
        self._writable: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        sock = transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def send(self, data: bytes) -> None:
        """Write: the first frame of a loop turn at once, then in growing groups.

        One write per turn would make the two ends take turns; one per frame costs a system call
        each.
        """
        if self._flushing:
            self._queue.append(data)
            if len(self._queue) >= self._group or len(data) > _LARGE:
                self.transport.write(b"".join(self._queue))
                self._queue.clear()
                if self._group < _MAX_GROUP:
                    self._group *= 2
        else:
            self.transport.write(data)
            self._flushing = True
            self.loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write what waits for its group."""
        self._flushing, self._group = False, _GROUP
        if self._queue and not self.closed:
            self.transport.write(b"".join(self._queue))
        self._queue.clear()

    def pause_writing(self) -> None:
        self.congested = True
        self._writable = self.loop.create_future()

    def resume_writing(self) -> None:
        self.congested = False
        writable, self._writable = self._writable, None
        if writable is not None and not writable.done():
            writable.set_result(None)

    async def drained(self) -> None:
        """Wait until the peer has read enough for more to be written."""
        if self._writable is not None:
            await asyncio.shield(self._writable)
        if self.closed:
            raise ConnectionLost("the connection was closed")

    def pause(self) -> None:
        """Read no more until `resume`."""
        self.paused = True
        if not self.closed:
            self.transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        self.paused = False
        if not self.closed:
            self.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self.resume_writing()

    async def close(self) -> None:
        """Close, giving what is written a moment to leave."""
        self.flush()
        self.transport.close()
        try:
            async with asyncio.timeout(1.0):
                while not self.closed:  # noqa: ASYNC110  (connection_lost is the only signal)
                    await asyncio.sleep(0.001)
        except TimeoutError:
            self.transport.abort()
            await asyncio.sleep(0)


P = TypeVar("P", bound=SocketProtocol)


async def dial(
    make: Callable[[], P], target: Target, default_port: int, tls: ssl.SSLContext | None
) -> P:
    """Connect.

    Raises:
        ConnectError: nobody is there.
        ConfigurationError: the peer's certificate is not trusted.
    """
    host = target.host
    try:
        _, protocol = await asyncio.get_running_loop().create_connection(
            make,
            host,
            target.port(default_port),
            ssl=tls,
            server_hostname=host if tls else None,
        )
    except OSError as error:
        raise not_connected(target, error) from error
    return protocol


def not_connected(endpoint: Target | str, error: OSError) -> ConfigurationError | ConnectError:
    """What an error of the system or of TLS means for whoever wanted a connection."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return ConfigurationError(
            f"the certificate of {endpoint} is not trusted: {error.verify_message}",
            hint="give tls= an ssl.SSLContext that knows its authority",
        )
    return ConnectError(f"{endpoint}: {_reason(error)}")


def client_tls(
    tls: bool | ssl.SSLContext,  # noqa: FBT001
    *,
    secure: bool = False,
) -> ssl.SSLContext | None:
    """What a client's `tls=` means; `secure` where the URL's scheme asks for TLS already."""
    if isinstance(tls, ssl.SSLContext):
        return tls
    return ssl.create_default_context() if tls or secure else None


def _reason(error: OSError) -> str:
    """The system's own words; asyncio's name the address once more."""
    if error.errno is None or isinstance(error, socket.gaierror):
        return str(error)
    return os.strerror(error.errno)
