"""The bytes of one connection: our own subscriptions' messages, and the rest for nats-py."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from resilient_client.transports._socket import SocketProtocol

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    Receive = Callable[[bytes, bytes, bytes, bytes | None], None]
    """Takes a message: its subject, its reply subject, the payload, its headers if it has any."""

log = logging.getLogger("resilient_client.nats")

MAX_SIZE = 128 * 1024 * 1024
"""Bytes of one message; no server can be configured to send more than half of it."""
MAX_LINE = 1024 * 1024
"""Bytes of one line of the protocol; INFO of a large cluster is the longest."""
_CHUNK = 64 * 1024


class Socket(SocketProtocol):
    """The bytes. Messages of our own subscriptions are taken out here, the rest is the library's.

    Attributes:
        receivers: what is called with the messages of a subscription, by its id.
        ended: called once, with the reason, as soon as the connection is over.
        error: what ended it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ended: Callable[[str], None] | None = None
        self.error: Exception | None = None
        self._chunk = memoryview(bytearray(_CHUNK))
        self.receivers: dict[bytes, Receive] = {}
        self._rest = bytearray()  # the beginning of what has not arrived whole
        self._needed = 0  # bytes of it that must be there before it is worth a look
        self._received = bytearray()  # for the library
        self._waiter: asyncio.Future[None] | None = None

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._chunk

    def buffer_updated(self, nbytes: int) -> None:
        rest = self._rest
        rest += self._chunk[:nbytes]
        if len(rest) < self._needed:
            return
        data = bytes(rest)
        try:
            read = self._read(data)
        except (ValueError, IndexError):
            self.end("the server sent a message that cannot be read")
            self.transport.abort()
            return
        del rest[:read]
        if len(rest) > MAX_LINE > self._needed:
            self.end("the server sent a line that does not end")
            self.transport.abort()
        elif len(self._received) > MAX_SIZE:  # pings without end, say
            self.end("the server asks for more than can be answered")
            self.transport.abort()

    def _read(self, data: bytes) -> int:
        """Deliver the messages in it, leave the rest to the library; how much of it was whole."""
        start, found, receivers = 0, data.find, self.receivers
        self._needed = 0
        while (end := found(b"\r\n", start)) >= 0:
            body = end + 2
            kind = data[start : start + 4]
            if kind in (b"MSG ", b"HMSG"):
                # MSG subject sid [reply] size; HMSG subject sid [reply] header-size size
                words = data[start:end].split()
                size = int(words[-1])
                if not 0 <= size <= MAX_SIZE:
                    raise ValueError(size)
                after = body + size
                if after + 2 > len(data):
                    self._needed = after + 2 - start
                    break
                receive = receivers.get(words[2])
                if receive is None:
                    self._received += data[start : after + 2]
                    self._wake()
                elif kind == b"MSG ":
                    reply = words[3] if len(words) == 5 else b""
                    self._hand_over(receive, words[1], reply, data[body:after], None)
                else:
                    reply = words[3] if len(words) == 6 else b""
                    split = body + int(words[-2])
                    self._hand_over(receive, words[1], reply, data[split:after], data[body:split])
                start = after + 2
            else:
                self._received += data[start:body]
                self._wake()
                start = body
        return start

    def _hand_over(
        self, receive: Receive, subject: bytes, reply: bytes, data: bytes, headers: bytes | None
    ) -> None:
        try:
            receive(subject, reply, data, headers)
        except Exception:  # the others are not to suffer
            log.exception("a message on %.200r could not be handled", subject)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def read(self) -> bytes:
        """What has arrived; b"" at the end."""
        while not self._received and not self.closed:
            await self._more()
        data = bytes(self._received)
        self._received.clear()
        return data

    async def readline(self) -> bytes:
        """A line with its end; for the handshake.

        Raises:
            OSError: the connection ended before.
        """
        while (end := self._received.find(b"\n") + 1) == 0:
            if self.closed:
                raise self.error or ConnectionResetError("the server closed the connection")
            await self._more()
        line = bytes(self._received[:end])
        del self._received[:end]
        return line

    async def _more(self) -> None:
        self._waiter = self.loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    async def settle(self, seconds: float) -> None:
        """Wait that long for a connection to end that is about to.

        Raises:
            OSError: it did.
        """
        try:
            async with asyncio.timeout(seconds):
                while not self.closed:
                    await self._more()
        except TimeoutError:
            return
        raise self.error or ConnectionResetError("the server closed the connection")

    async def start_tls(self, context: ssl.SSLContext, hostname: str) -> None:
        """Encrypt from here on."""
        transport = await self.loop.start_tls(
            self.transport, self, context, server_hostname=hostname
        )
        if transport is None:
            raise self.error or ConnectionResetError("the server closed the connection")
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.error = exc
        self._wake()
        self.end(str(exc) if exc is not None else "the server closed the connection")

    def end(self, reason: str) -> None:
        """Tell that the connection is over, if that was not told yet."""
        ended, self.ended = self.ended, None
        if ended is not None:
            ended(reason)
