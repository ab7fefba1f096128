"""A socket of our own: grouped writes, backpressure, and words for what goes wrong at dialling."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from collections import deque
from ipaddress import ip_address
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, TypeVar

from resilient_client.errors import ConfigurationError, ConnectError, ConnectionLost

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from resilient_client.transports._base import Target

_GROUP, _MAX_GROUP = 16, 256  # frames written together: so many at first, then ever more
_LARGE = 16 * 1024  # bytes of a frame that is not to be waited with
_CUT = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)
_ACCEPTED_AT_ONCE = 16
"""The backlog of asyncio's servers: they accept so many in a turn, and where there is no descriptor
left log an error for each of these, every second."""
UNREAD_TIMEOUT = 30.0
"""Seconds in which a peer reads nothing of what waits for it before its connection is dropped: its
requests are not over until their replies are written, and others would be refused for them."""
NEXT_ADDRESS = 0.25
"""Seconds that one address of a name has for itself, before the next is tried, too [RFC 8305]."""


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
        """Close, giving what is written a moment to leave; at once where this is cancelled."""
        self.flush()
        self.transport.close()
        try:
            async with asyncio.timeout(1.0):
                while not self.closed:  # noqa: ASYNC110  (connection_lost is the only signal)
                    await asyncio.sleep(0.001)
        except TimeoutError:
            pass
        finally:
            if not self.closed:
                self.transport.abort()
        await asyncio.sleep(0)


P = TypeVar("P", bound=SocketProtocol)


async def dial(
    make: Callable[[], P], target: Target, default_port: int, tls: ssl.SSLContext | None
) -> P:
    """Connect.

    Raises:
        ConnectError: nobody is there.
        ConfigurationError: the peer's certificate is not trusted, or it does not speak TLS.
    """
    try:
        return await connect(make, target.host, target.port(default_port), tls)
    except OSError as error:
        raise not_connected(target, error) from error


async def listen(
    make: Callable[[], asyncio.BaseProtocol],
    host: str,
    port: int,
    tls: ssl.SSLContext | None,
    *,
    backlog: int = 1024,
) -> asyncio.Server:
    """A server; so many connections may wait to be accepted.

    Raises:
        OSError: it cannot be bound.
    """
    # Cancelled while it begins to serve, asyncio would lose the socket.
    server = await bound(
        asyncio.get_running_loop().create_server(
            make, host, port, ssl=tls, backlog=_ACCEPTED_AT_ONCE, start_serving=False
        )
    )
    try:
        await server.start_serving()
        for each in server.sockets:
            with socket.fromfd(each.fileno(), each.family, each.type) as twin:
                twin.listen(backlog)
    except BaseException:
        server.close()
        raise
    return server


async def bound(making: Coroutine[Any, Any, asyncio.Server]) -> asyncio.Server:
    """The server that asyncio makes, with a socket: it passes over addresses it can have none for.

    Raises:
        OSError: why there is no socket.
    """
    try:
        server = await making
        if server.sockets:
            return server
    except OSError as error:
        if error.errno is not None:
            raise
        # Python 3.13 says that there is none, and not why
    socket.socket().close()  # where there are no descriptors, this says so
    raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))


PT = TypeVar("PT", bound=asyncio.BaseProtocol)


async def connect(make: Callable[[], PT], host: str, port: int, tls: ssl.SSLContext | None) -> PT:
    """A connection to whichever of the host's addresses answers first.

    A name is resolved anew each time. Where one of its addresses is dead, the others are not kept
    waiting for it: asyncio does so only when it is asked to, uvloop cannot.

    Raises:
        OSError: none of them does, or TLS fails.
    """
    where: dict[str, Any] = {"host": host, "port": port}
    if not is_address(host):
        where = {"sock": await _reached(host, port)}
    _, protocol = await asyncio.get_running_loop().create_connection(
        make, **where, ssl=tls, server_hostname=host if tls else None
    )
    return protocol


async def _reached(host: str, port: int) -> socket.socket:
    """A socket that is connected to one of the addresses of this name.

    Raises:
        OSError: there is none, or none of them can be reached.
    """
    loop = asyncio.get_running_loop()
    families: dict[int, list[Any]] = {}
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError:
        raise OSError(f"{host!r} is no host's name") from None
    except RuntimeError as error:  # no thread can be started to ask in, say: that passes
        raise OSError(str(error)) from error
    for each in found:
        families.setdefault(each[0], []).append(each)
    left = deque(each for turn in zip_longest(*families.values()) for each in turn if each)
    tasks: list[asyncio.Task[socket.socket]] = []
    reached: socket.socket | None = None
    try:
        while left or not all(task.done() for task in tasks):
            if left:
                tasks.append(loop.create_task(_at(*left.popleft())))
            done, _ = await asyncio.wait(
                [task for task in tasks if not task.done()],
                timeout=NEXT_ADDRESS if left else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            for task in done:
                if task.exception() is None:
                    reached = task.result()
                    return reached
    finally:
        for task in tasks:
            task.cancel()
            task.add_done_callback(lambda task: _drop(task, reached))
    raise _one_of([task.exception() for task in tasks])


async def _at(family: int, kind: int, protocol: int, _name: str, address: Any) -> socket.socket:
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock


def _drop(task: asyncio.Task[socket.socket], reached: socket.socket | None) -> None:
    """Close a socket that another was faster than."""
    if not task.cancelled() and task.exception() is None and task.result() is not reached:
        task.result().close()


def _one_of(errors: list[BaseException | None]) -> OSError:
    """What stands against it, if that is the same everywhere; else all of it."""
    found = [error for error in errors if isinstance(error, OSError)]
    if len({error.errno for error in found}) == 1:
        return found[0]
    return OSError("; ".join(map(str, found)) or "the name has no address")


def is_address(host: str) -> bool:
    """Whether it is no name that has to be resolved."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def not_connected(endpoint: Target | str, error: OSError) -> ConfigurationError | ConnectError:
    """What an error of the system or of TLS means for whoever wanted a connection."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return ConfigurationError(
            f"the certificate of {endpoint} is not trusted: {error.verify_message}",
            hint="give tls= an ssl.SSLContext that knows its authority",
        )
    if isinstance(error, ssl.SSLError) and not isinstance(error, _CUT):
        return ConfigurationError(
            f"{endpoint} and this client do not agree on TLS: {error.reason or error}",
            hint="check the URL's scheme, tls=, and whether this port speaks TLS",
        )
    if isinstance(error, _CUT) or not (error.errno or str(error)):  # only in a handshake
        return ConnectError(
            f"{endpoint} hung up when it was spoken to in TLS",
            hint="check that this port speaks TLS; it may also want a certificate",
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
    windows: dict[int, str] = getattr(socket, "errorTab", {})  # strerror does not know these there
    return windows.get(error.errno, "").rstrip(".") or os.strerror(error.errno)
