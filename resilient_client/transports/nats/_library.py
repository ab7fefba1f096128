"""The one module that imports nats-py: its client, on a socket of ours, and what its errors mean.

nats-py shakes hands, authenticates, parses and keeps alive. What it would do besides is done
elsewhere here, because its own way loses messages or hangs: publishing into a buffer that outlives
the connection, a queue and a task for each subscription, reconnecting, and noticing the end of a
connection only after it has flushed what can no longer be flushed.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from typing import TYPE_CHECKING, Any

import nats.aio.errors
import nats.errors
from nats.aio.client import Client
from nats.aio.client import RawCredentials as RawCredentials
from nats.aio.transport import Transport

from resilient_client.errors import (
    ConfigurationError,
    ConnectError,
    PayloadError,
    ProtocolError,
    ResilientClientError,
)
from resilient_client.transports._socket import not_connected

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilient_client.transports._base import Target
    from resilient_client.transports.nats._socket import Socket

MAX_UNREAD = 128 * 1024 * 1024
"""Bytes that wait for a server to read them; a message and what is behind it are half of that."""
CERTIFICATE_WAIT = 0.1
"""Seconds for a server that asks for certificates to say that it does not like ours: with TLS 1.3
that comes after the handshake, and would be lost if we went on writing."""
NoResponders = nats.errors.NoRespondersError
_REFUSED = re.compile(r"authorization violation|credentials|authentication (expired|revoked)|nkey")

_CLASSES: dict[type[Exception], type[ResilientClientError]] = {
    nats.errors.Error: ConnectError,
    nats.errors.AuthorizationError: ConfigurationError,
    nats.errors.BadHeaderError: PayloadError,
    nats.errors.BadSubjectError: ConfigurationError,
    nats.errors.BadSubscriptionError: ProtocolError,
    nats.errors.BadTimeoutError: ConfigurationError,
    nats.errors.ConnectionClosedError: ConnectError,
    nats.errors.ConnectionDrainingError: ConnectError,
    nats.errors.ConnectionReconnectingError: ConnectError,
    nats.errors.DrainTimeoutError: ConnectError,
    nats.errors.FlushTimeoutError: ConnectError,
    nats.errors.InvalidCallbackTypeError: ConfigurationError,
    nats.errors.InvalidUserCredentialsError: ConfigurationError,
    nats.errors.JsonParseError: ProtocolError,
    nats.errors.MaxPayloadError: PayloadError,
    nats.errors.MsgAlreadyAckdError: ProtocolError,
    nats.errors.NoRespondersError: ConnectError,
    nats.errors.NoServersError: ConnectError,
    nats.errors.NotJSMessageError: ProtocolError,
    nats.errors.OutboundBufferLimitError: ConnectError,
    nats.errors.ProtocolError: ProtocolError,
    nats.errors.SecureConnFailedError: ConfigurationError,
    nats.errors.SecureConnRequiredError: ConfigurationError,
    nats.errors.SecureConnWantedError: ConfigurationError,
    nats.errors.ServerNotInPoolError: ConnectError,
    nats.errors.SlowConsumerError: ConnectError,
    nats.errors.StaleConnectionError: ConnectError,
    nats.errors.TimeoutError: ConnectError,
    nats.errors.UnexpectedEOF: ConnectError,
}
"""What nats-py's exceptions mean before anything was published through it, which is all we let it
do. nats.aio.errors has other names for the same; nats.js is not used."""


def translate(error: Exception, target: Target) -> ResilientClientError:
    """Our error for one that nats-py raised while connecting, or asking JetStream's API."""
    if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLCertVerificationError):
        return ConfigurationError(
            f"{target} refused the TLS handshake: {error.reason or 'no reason given'}",
            hint="does it ask for a certificate? tls= takes an ssl.SSLContext that has loaded it",
        )
    if isinstance(error, nats.errors.Error):
        text = str(error).removeprefix("nats: ").strip("'")
        if _REFUSED.search(text.lower()):
            return ConfigurationError(
                f"{target} refused the credentials: {text}",
                hint="check user and password, token=, nkey= or credentials=",
            )
        meaning = next(_CLASSES[each] for each in type(error).__mro__ if each in _CLASSES)
        return meaning(f"{target}: {text}", sent=False)
    if isinstance(error, TimeoutError):
        return ConnectError(f"no answer from {target}")
    if isinstance(error, OSError):
        return not_connected(target, error)
    return ProtocolError(f"{target}: {type(error).__name__}", sent=False)


class Wire(Transport):
    """What nats-py sees of the socket: connected already, never blocking, never failing to close.

    Args:
        server_name: whom the server's certificate is to name.
        must_encrypt: send nothing before TLS is on. (A server that does not ask for TLS would be
            sent the credentials in the clear.)
    """

    def __init__(
        self, socket: Socket, target: Target, server_name: str, *, must_encrypt: bool
    ) -> None:
        self._socket = socket
        self._target = target
        self._server_name = server_name
        self._must_encrypt = must_encrypt
        self._verifies = False

    async def connect(self, uri: Any, buffer_size: int, connect_timeout: float) -> None:
        """Connected already."""

    async def connect_tls(
        self, uri: Any, ssl_context: ssl.SSLContext, buffer_size: int, connect_timeout: float
    ) -> None:
        async with asyncio.timeout(connect_timeout):
            await self._socket.start_tls(ssl_context, self._server_name)
            if self._verifies:
                await self._socket.settle(CERTIFICATE_WAIT)
        self._must_encrypt = False

    def write(self, payload: bytes) -> None:
        if self._must_encrypt:
            raise ConfigurationError(
                f"tls= is given, but {self._target} does not speak TLS",
                hint="switch it on there, or leave tls= out",
            )
        if self._socket.closed:
            return
        self._socket.flush()
        transport = self._socket.transport
        transport.write(payload)
        if transport.get_write_buffer_size() > MAX_UNREAD:  # answers to pings without end, say
            self._socket.end("the server does not read what it asks for")
            transport.abort()

    def writelines(self, payload: list[bytes]) -> None:
        self.write(b"".join(payload))

    async def read(self, buffer_size: int) -> bytes:
        return await self._socket.read()

    async def readline(self) -> bytes:
        line = await self._socket.readline()
        self._verifies = b'"tls_verify":true' in line
        return line

    async def drain(self) -> None:
        """The library writes too little to wait for."""

    def close(self) -> None:
        self._socket.transport.abort()  # a peer that does not read would keep what is unsent

    async def wait_closed(self) -> None:
        """Closed it is, for all that the library needs."""

    def at_eof(self) -> bool:
        return self._socket.closed

    def __bool__(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]  (untyped there)
        return True


class Library(Client):
    """nats-py's client, with our socket."""

    def __init__(self, wire: Wire) -> None:
        super().__init__()
        self._transport = wire

    def on_reader_end(self, callback: Callable[[], object]) -> None:
        """The reader ends with the connection, and on bytes that it does not understand."""

        def over(reader: asyncio.Task[None]) -> None:
            if not reader.cancelling():  # by a loop that ends, or by the library, which closes
                callback()

        assert self._reading_task is not None  # noqa: S101
        self._reading_task.add_done_callback(over)
