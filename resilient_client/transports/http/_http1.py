"""HTTP/1.1 connections and their pool, exact under cancellation.

A request that is given up closes its connection: the server learns that nobody waits, and the pool
loses nothing. (httpx's own pool leaks a slot for ever when a request is cancelled at the wrong
moment, and walks over all its requests at each one.)
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections import deque
from typing import TYPE_CHECKING, Any

import h11

from resilient_client.clock import Deadlines, call_later
from resilient_client.errors import (
    ConfigurationError,
    ConnectError,
    ConnectionLost,
    Overloaded,
    PayloadError,
    ProtocolError,
    ResilientClientError,
)

if TYPE_CHECKING:
    from resilient_client.clock import Clock

DIAL_TIMEOUT = 5.0
"""Seconds one connection attempt may take."""
_MAX_HEAD = 64 * 1024
_MAX_INFORMATIONAL = 16
_READ_AHEAD = 256 * 1024  # bytes of a body kept for a consumer that is slower than the peer
_CLOSED = "the client is closed"


class Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    transport: asyncio.Transport

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD)
        self._waiter: asyncio.Future[None] | None = None
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._paused = False
        self._informational = 0
        self._head: h11.Response | None = None
        self._error: ResilientClientError | None = None
        self._late = False
        self.complete = True  # nothing more is to come for the request in progress
        self.closed = False
        self.keep_until = 0.0

    # ------------------------------------------------------------------------------ what arrives

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def data_received(self, data: bytes) -> None:
        if self.complete:  # an answer to nothing
            self.abort()
            return
        self._h11.receive_data(data)
        self._advance()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if not self.complete:
            if exc is None and self._error is None:
                self._h11.receive_data(b"")  # a body without a length ends here
                self._advance()
            if not self.complete:
                what = "while it answered" if self._head is not None else "before it answered"
                reason = "" if exc is None else f": {exc}"
                self._fail(ConnectionLost(f"the peer closed the connection {what}{reason}"))
        self._pool.lost(self)

    def _advance(self) -> None:
        try:
            while True:
                event = self._h11.next_event()
                if event is h11.NEED_DATA or event is h11.PAUSED:
                    break
                if isinstance(event, h11.Data):
                    self._chunks.append(bytes(event.data))
                    self._size += len(event.data)
                elif isinstance(event, h11.Response):
                    self._head = event
                elif isinstance(event, h11.EndOfMessage):
                    self.complete = True
                    break
                elif type(event) is h11.InformationalResponse:
                    self._informational += 1
                    if self._informational > _MAX_INFORMATIONAL:
                        raise h11.RemoteProtocolError("too many informational responses")
                else:  # ConnectionClosed
                    break
        except h11.RemoteProtocolError as error:
            if self.closed:  # cut in the middle: not the fault of what it speaks
                return
            self._fail(ProtocolError(f"{self._pool.endpoint} does not speak HTTP: {error}"))
            self.abort()
            return
        if self._size > _READ_AHEAD and not self._paused and not self.closed:
            self._paused = True
            self.transport.pause_reading()
        self._wake()

    def _fail(self, error: ResilientClientError) -> None:
        if self._error is None:
            self._error = error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def expire(self) -> None:
        """The time for what is waited for is up."""
        self._late = True
        self._wake()

    # ---------------------------------------------------------------------------- what is asked

    def write(
        self, method: bytes, target: bytes, headers: list[tuple[bytes, bytes]], content: bytes
    ) -> None:
        """Send a request.

        Raises:
            PayloadError: it is none; nothing was written.
        """
        if self._h11.our_state is h11.DONE:
            self._h11.start_next_cycle()
        try:
            request = h11.Request(method=method, target=target, headers=headers)
            data = [self._h11.send(request)]
        except h11.LocalProtocolError as error:
            self.abort()
            raise PayloadError(f"this cannot be an HTTP request: {error}", sent=False) from None
        if content:
            data.append(self._h11.send(h11.Data(data=content)))
        data.append(self._h11.send(h11.EndOfMessage()))
        self._head = self._error = None
        self._chunks.clear()
        self._size = self._informational = 0
        self.complete = self._late = False
        self.transport.write(b"".join(data))

    async def head(self) -> h11.Response:
        """The status and headers of the answer; `TimeoutError` when `expire` was called before."""
        while self._head is None:
            if self._error is not None:
                raise self._error
            await self._wait()
        return self._head

    async def chunk(self, deadline: float | None = None) -> bytes:
        """The next part of the body, empty at its end; `TimeoutError` when it did not come."""
        if not self._chunks and not self.complete and deadline is not None:
            self._pool.deadlines.add(self, deadline)
            try:
                return await self._next()
            finally:
                self._pool.deadlines.discard(self)
        return await self._next()

    async def _next(self) -> bytes:
        while not self._chunks:
            if self._error is not None:
                raise self._error
            if self.complete:
                return b""
            await self._wait()
        chunk = self._chunks.popleft()
        self._size -= len(chunk)
        if self._paused and self._size < _READ_AHEAD // 2:
            self._paused = False
            if not self.closed:
                self.transport.resume_reading()
        return chunk

    async def _wait(self) -> None:
        if self._late:
            raise TimeoutError
        waiter = self._waiter = self._loop.create_future()
        try:
            await waiter
        finally:
            self._waiter = None
        if self._late:
            raise TimeoutError

    @property
    def reusable(self) -> bool:
        """Whether another request may follow."""
        return (
            not self.closed
            and self.complete
            and not self._chunks
            and (
                self._h11.our_state is h11.IDLE
                or (self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE)
            )
            and not self._h11.trailing_data[0]
            and not self.transport.is_closing()
        )

    def close(self) -> None:
        """Close an idle connection."""
        self.transport.close()

    def abort(self) -> None:
        """Close it in the middle of whatever it does."""
        if not self.closed:
            self.transport.abort()

    def shut(self, error: ResilientClientError) -> None:
        """Fail what is in progress, and close."""
        if not self.complete:
            self._fail(error)
        self.abort()


class Pool:
    """The connections to one server.

    Args:
        limit: connections at once, in use or idle.
        patience: seconds a request waits for one of them to become free.
        keep: seconds an idle connection is kept; below what servers keep it (5 s with uvicorn and
            Node), so that no request meets the closing of an idle connection.
    """

    def __init__(
        self,
        endpoint: str,
        host: str,
        port: int,
        tls: ssl.SSLContext | None,
        *,
        clock: Clock,
        limit: int = 100,
        patience: float = 2.0,
        keep: float = 4.0,
    ) -> None:
        self.endpoint = endpoint
        self.deadlines = Deadlines(clock, Connection.expire)
        self._host = host
        self._port = port
        self._tls = tls
        self._clock = clock
        self._limit = limit
        self._patience = patience
        self._keep = keep
        self._open = 0  # connections, and permits to make one
        self._idle: deque[Connection] = deque()
        self._busy: set[Connection] = set()
        self._waiting: deque[asyncio.Future[Connection | None]] = deque()
        self._reaper: asyncio.TimerHandle | None = None
        self._named = not _is_address(host)
        self.closed = False

    async def acquire(self, deadline: float) -> Connection:
        """A connection with nothing in progress; give it back with `release`.

        Raises:
            ConnectError: there is none by `deadline`.
            Overloaded: all are in use, and none became free in time.
        """
        if self.closed:
            raise ConnectError(_CLOSED, hint="make a new client")
        connection = self._from_idle()
        if connection is None:
            if self._open < self._limit:
                self._open += 1
            else:
                connection = await self._turn(deadline)
            if connection is None or connection.closed:
                try:
                    connection = await self._dial(deadline)
                except BaseException:
                    self._give(None)
                    raise
        self._busy.add(connection)
        return connection

    def release(self, connection: Connection) -> None:
        """Done with it: it is kept if it is fit for another request, and closed if it is not."""
        self._busy.discard(connection)
        if connection.reusable and not self.closed:
            self._give(connection)
        else:
            connection.abort()
            self._give(None)

    def lost(self, connection: Connection) -> None:
        """The peer closed it, or we did."""
        if connection in self._idle:
            self._idle.remove(connection)
            self._give(None)

    def _from_idle(self) -> Connection | None:
        now = asyncio.get_running_loop().time()
        while self._idle:
            connection = self._idle.pop()  # the one used last: the others may grow old and go
            if now < connection.keep_until and connection.reusable:
                return connection
            self._open -= 1
            connection.close()
        return None

    async def _turn(self, deadline: float) -> Connection | None:
        """Wait until a connection, or the permit to make one, is handed over."""
        future: asyncio.Future[Connection | None] = asyncio.get_running_loop().create_future()

        def over() -> None:
            if not future.done():
                future.set_exception(
                    Overloaded(
                        f"all {self._limit} connections to {self.endpoint} are in use",
                        hint="raise max_connections=, or send less at once",
                    )
                )

        self._waiting.append(future)
        patience = min(self._patience, deadline - self._clock.now())
        timer = call_later(self._clock, patience, over)
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self._give(future.result())
            raise
        finally:
            timer.cancel()

    def _give(self, connection: Connection | None) -> None:
        """Hand a connection, or the permit to make one, to whoever waits longest."""
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(connection)
                return
        if connection is None:
            self._open -= 1
            return
        loop = asyncio.get_running_loop()
        connection.keep_until = loop.time() + self._keep
        self._idle.append(connection)
        if self._reaper is None:
            self._reaper = loop.call_later(self._keep, self._reap)

    def _reap(self) -> None:
        """Close what has been idle for too long."""
        self._reaper = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        while self._idle and self._idle[0].keep_until <= now + 0.01:
            self._open -= 1
            self._idle.popleft().close()
        if self._idle:
            self._reaper = loop.call_at(self._idle[0].keep_until, self._reap)

    async def _dial(self, deadline: float) -> Connection:
        """Connect: the name is resolved anew each time."""
        left = min(DIAL_TIMEOUT, deadline - self._clock.now())
        options: dict[str, Any] = {"happy_eyeballs_delay": 0.25} if self._named else {}
        if self._tls is not None:
            options["server_hostname"] = self._host
        try:
            async with asyncio.timeout(left):
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: Connection(self), self._host, self._port, ssl=self._tls, **options
                )
        except TimeoutError as error:
            text = f"no connection to {self.endpoint} in {max(0.0, left):.3g} s"
            raise ConnectError(text) from (error.__cause__ if error.errno else None)
        except ssl.SSLCertVerificationError as error:
            raise ConfigurationError(
                f"the certificate of {self.endpoint} is not trusted: {error.verify_message}",
                hint="give tls= an ssl.SSLContext that knows its authority",
            ) from error
        except OSError as error:
            raise ConnectError(f"{self.endpoint}: {error.strerror or error}") from error
        if self.closed:
            connection.abort()
            raise ConnectError(_CLOSED)
        return connection

    async def warm(self, deadline: float) -> None:
        """Have at least one connection, or raise `ConnectError`."""
        if not self._idle and not self._busy:
            self.release(await self.acquire(deadline))

    def forget(self) -> None:
        """The loop of these connections has closed; they went with it."""
        self._idle.clear()
        self._busy.clear()
        self._waiting.clear()
        self.deadlines = Deadlines(self._clock, Connection.expire)
        self._reaper = None
        self._open = 0

    async def aclose(self) -> None:
        """Fail what is in progress with `ConnectionLost`, and close everything. Idempotent."""
        self.closed = True
        if self._reaper is not None:
            self._reaper.cancel()
            self._reaper = None
        self.deadlines.clear()
        for future in self._waiting:
            if not future.done():
                future.set_exception(ConnectError(_CLOSED))
        self._waiting.clear()
        left = [*self._idle, *self._busy]
        for connection in self._busy:
            connection.shut(ConnectionLost("the client was closed"))
        self._idle.clear()
        for connection in left:
            connection.close()
        try:
            async with asyncio.timeout(1.0):
                while not all(connection.closed for connection in left):  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
        except TimeoutError:
            for connection in left:
                connection.abort()
            await asyncio.sleep(0)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
