"""One HTTP/1.1 connection, a request at a time. The one module that imports h11."""

from __future__ import annotations

import asyncio
import re
import select
import socket
import sys
from collections import deque
from functools import partial
from typing import TYPE_CHECKING

import h11

from resilient_client.errors import (
    ConnectError,
    ConnectionLost,
    PayloadError,
    ProtocolError,
    ResilientClientError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilient_client.transports.http._pool import Pool

_MAX_HEAD = 64 * 1024
_MAX_INFORMATIONAL = 16
_READ_AHEAD = 256 * 1024  # bytes of a body kept for a consumer that is slower than the peer
_TURN = 256  # pieces of an answer after which everything else of the loop has its turn
_timeout = re.compile(rb"timeout *= *([0-9]{1,6})", re.IGNORECASE).search


class Connection(asyncio.Protocol):
    """One connection, one request at a time.

    Attributes:
        unread: whether something has arrived that the loop has not looked at yet: the end, say.
    """

    transport: asyncio.Transport
    unread: Callable[[], object]

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD)
        self._waiter: asyncio.Future[None] | None = None
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._paused = False
        self._busy = False  # with what has arrived
        self._given_up = False
        self._informational = 0
        self._head: h11.Response | None = None
        self._error: ResilientClientError | None = None
        self._late = False
        self._begun = True  # the answer
        self.complete = True  # nothing more is to come for the request in progress
        self.closed = False
        self.keep_until = 0.0

    # ------------------------------------------------------------------------------ what arrives

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self.unread = _readable(sock.fileno())

    def data_received(self, data: bytes) -> None:
        if self.complete:  # an answer to nothing
            self.abort()
            return
        if not self._begun:
            self._begun = True
            if data[:5] != b"HTTP/"[: len(data)]:  # h11 would wait for the end of what is no head
                text = f"{self._pool.endpoint} does not speak HTTP/1.1: it says {data[:24]!r}"
                self._fail(ProtocolError(text))
                self.abort()
                return
        self._h11.receive_data(data)
        self._advance()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if not self.complete:
            if exc is None and self._error is None and not self._given_up:
                self._h11.receive_data(b"")  # a body without a length ends here
                self._advance(-1)
            if not self.complete:
                what = "while it answered" if self._head is not None else "before it answered"
                reason = "" if exc is None else f": {exc}"
                self._fail(ConnectionLost(f"the peer closed the connection {what}{reason}"))
        self._pool.lost(self)

    def _advance(self, turn: int = _TURN) -> None:
        """Take in what has arrived: so many pieces of it at most; all of it with -1."""
        try:
            while turn:
                turn -= 1
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
                elif isinstance(event, h11.InformationalResponse):
                    self._informational += 1
                    if self._informational > _MAX_INFORMATIONAL:
                        raise h11.RemoteProtocolError("too many informational responses")
                else:  # ConnectionClosed
                    break
            else:  # a body may come in pieces of one byte
                self._busy = True
                self.transport.pause_reading()
                self._loop.call_soon(self._go_on)
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

    def _go_on(self) -> None:
        if self.closed or self.complete:
            return
        self._busy = False
        self._advance()
        if not self._busy and not self._paused and not self.closed:
            self.transport.resume_reading()

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
            ConnectError: the peer has just closed the connection; nothing was written.
        """
        if self.closed or self.transport.is_closing():
            raise ConnectError(f"{self._pool.endpoint} closed the connection at once")
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
        self.complete = self._late = self._begun = False
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

    async def finish(self, seconds: float) -> None:
        """Wait a moment for the end of a body that holds nothing more."""
        timer = self._loop.call_later(seconds, self.expire)
        try:
            while await self._next():
                continue
        except (TimeoutError, ResilientClientError):
            self.abort()
        finally:
            timer.cancel()

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
            if not self.closed and not self._busy:
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

    def kept_by_peer(self, otherwise: float) -> float:
        """Seconds that it may stay idle: less than the peer says it keeps it, if it says so."""
        if self._head is not None:
            for name, value in self._head.headers:
                if name == b"keep-alive" and (told := _timeout(value)) is not None:
                    return min(otherwise, int(told[1]) - 1.0)
        return otherwise

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
        self._given_up = True
        if not self.closed:
            self.transport.abort()

    def shut(self, error: ResilientClientError) -> None:
        """Fail what is in progress, and close."""
        if not self.complete:
            self._fail(error)
        self.abort()


def _readable(descriptor: int) -> Callable[[], object]:
    if sys.platform == "win32":
        return lambda: select.select([descriptor], [], [], 0)[0]
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return partial(poll.poll, 0)
