"""One connection to RabbitMQ: the handshake, heartbeats, frames in and out."""

from __future__ import annotations

import asyncio
import logging
import ssl
from copy import copy
from typing import TYPE_CHECKING, Any

from resilient_client.errors import ConfigurationError, ConnectError, ConnectionLost, ProtocolError
from resilient_client.transports._socket import SocketProtocol
from resilient_client.transports.amqp import _wire as wire
from resilient_client.transports.amqp._channel import Channel, ignore
from resilient_client.transports.amqp._errors import closed_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilient_client.errors import ResilientClientError
    from resilient_client.transports.amqp._connector import Login

log = logging.getLogger("resilient_client.amqp")

CLOSING = 1.0
"""Seconds a broker is given to answer a farewell."""
_BUFFER = 2 * wire.FRAME_MAX


class Connection(SocketProtocol):
    """The protocol: frames in, frames out.

    Args:
        max_body: bytes of a message that are taken in; of a larger one only the properties are.
        lost: called once with the reason when a connection that was open has ended.
        blocked: called with RabbitMQ's reason when it takes nothing in for lack of resources.
    """

    def __init__(
        self,
        login: Login,
        max_body: int,
        lost: Callable[[Connection, str], object],
        blocked: Callable[[str], object] = ignore,
    ) -> None:
        super().__init__()
        self.max_body = max_body
        self.frame_max = wire.FRAME_MAX
        self._login = login
        self._lost = lost
        self._blocked = blocked
        self._unblocked: asyncio.Future[None] | None = None
        self._open = False
        self._leaving = False
        self._error: ResilientClientError | None = None
        self._control = Channel(self, 0)
        self._channels = {0: self._control}
        self._buffer = bytearray(_BUFFER)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0
        self._heard = False
        self._silence = 0
        self._beat: asyncio.TimerHandle | None = None

    # ---- its life ----

    async def open(self) -> None:
        """Introduce ourselves.

        Raises:
            ConfigurationError: wrong credentials or virtual host.
            ConnectError, ProtocolError: the peer does not answer as a broker does.
        """
        login = self._login
        start = await self._control.ask(wire.PROTOCOL_HEADER)
        tune = await self._control.call(login.start_ok(_expected(start, wire.Start)))
        _expected(tune, wire.Tune)
        self.frame_max = min(tune.frame_max or wire.FRAME_MAX, wire.FRAME_MAX)
        if self.frame_max < 4096:
            raise ProtocolError(f"a frame size of {self.frame_max} bytes", sent=False)
        heartbeat = min(filter(None, (tune.heartbeat, login.heartbeat)), default=0)
        answer = wire.TuneOk(tune.channel_max, self.frame_max, heartbeat)
        self.send(wire.method_frame(0, answer))
        await self._control.call(wire.Open(login.virtual_host))
        if heartbeat:
            self._tick(heartbeat / 2)

    def ready(self) -> None:
        """Everything is declared and subscribed: from now on its end is told as a loss.

        Raises:
            ConnectError: it has ended meanwhile.
        """
        if self.closed:
            raise self.reason()
        self._open = True

    async def channel(self) -> Channel:
        """Open another channel."""
        number = len(self._channels)
        channel = self._channels[number] = Channel(self, number)
        await channel.call(wire.ChannelOpen())
        return channel

    async def farewell(self) -> None:
        """Say goodbye, as far as the broker answers, and close."""
        self._open = False
        if not self.closed:
            self._leaving = True
            try:
                async with asyncio.timeout(CLOSING):
                    await self._control.call(wire.Close(200, "bye", 0, 0))
            except TimeoutError:
                self.transport.abort()
            except (ConnectError, ConnectionLost, ConfigurationError, ProtocolError):
                pass  # the connection has ended while we were leaving
            await self.close()

    def abort(self, reason: str) -> None:
        """End it now."""
        if self._error is None:
            self._error = ConnectionLost(reason)
        if not self.closed:
            self.transport.abort()

    def reason(self) -> ResilientClientError:
        """Why it has ended: an error of one's own for each who asks."""
        error = self._error
        if error is None:
            error = ConnectionLost("the connection was closed")
        if not self._open and isinstance(error, ConnectionLost):
            return ConnectError(*error.args)
        return copy(error)

    def refused(self, code: int, text: str, *, over: bool = False) -> None:
        """The broker has closed a channel, or (over) the connection: that is its end for us."""
        if self._error is None:
            self._error = closed_error(code, text, str(self._login.target), dialling=not self._open)
        farewell = wire.CloseOk() if over else wire.Close(200, "a channel was closed", 0, 0)
        self.send(wire.method_frame(0, farewell))
        self.flush()
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._beat is not None:
            self._beat.cancel()
        if self._error is None:
            opening = not self._open and not self._leaving
            self._error = _ended(exc, greeting=opening and self._login.tls is not None)
        self.unblock()
        for channel in self._channels.values():
            channel.fail()
        if self._open:
            self._lost(self, str(self._error.args[0]))

    def _tick(self, interval: float) -> None:
        """Twice a heartbeat's time: send one, and see whether anything has come."""
        self.transport.write(wire.HEARTBEAT_FRAME)
        self._silence = 0 if self._heard or self.paused else self._silence + 1
        self._heard = False
        if self._silence >= 4:
            self.abort(f"the broker was silent for {self._silence * interval:.0f} s")
        else:
            self._beat = self.loop.call_later(interval, self._tick, interval)

    # ---- bounds ----

    def resume_writing(self) -> None:
        """The broker reads on, as far as the connection goes."""
        super().resume_writing()
        self.congested = self._unblocked is not None

    async def drained(self) -> None:
        """See `SocketProtocol.drained`."""
        while self.congested and not self.closed:
            waits: Any = self._writable or self._unblocked
            await asyncio.shield(waits)
        if self.closed:
            raise ConnectionLost("the connection was closed")

    def block(self, reason: str) -> None:
        """RabbitMQ is short of memory or disk: it reads nothing more from us."""
        if self._unblocked is None:
            self._unblocked = self.loop.create_future()
            self.congested = True
            self._blocked(reason)

    def unblock(self) -> None:
        """RabbitMQ reads on."""
        unblocked, self._unblocked = self._unblocked, None
        if unblocked is not None and not unblocked.done():
            unblocked.set_result(None)
        self.congested = self._writable is not None

    # ---- what arrives ----

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._view[self._end :] if self._end else self._view

    def buffer_updated(self, nbytes: int) -> None:
        self._heard = True
        self._end += nbytes
        try:
            self._frames()
        except ValueError as error:
            log.warning("closing the connection to %s: %s", self._login.target, error)
            self._error = ProtocolError(
                f"{self._login.target} does not speak AMQP: {error}", sent=self._open
            )
            self.transport.abort()

    def _frames(self) -> None:
        view, at, end = self._view, self._start, self._end
        while end - at >= wire.HEAD.size:
            kind, number, size = wire.HEAD.unpack_from(view, at)
            if size > self.frame_max - 8:
                raise ValueError(f"a frame of {size} bytes")
            start = at + 7
            stop = start + size
            if stop >= end:
                break
            if view[stop] != wire.FRAME_END:
                raise ValueError("a frame without its end")
            at = stop + 1
            channel = self._channels.get(number)
            if channel is None:
                raise ValueError(f"a frame for the channel {number}")
            if kind == wire.BODY:
                channel.body(view[start:stop])
            elif kind == wire.HEADER:
                channel.header(bytes(view[start:stop]))
            elif kind == wire.METHOD:
                self._method(channel, bytes(view[start:stop]))
            elif kind != wire.HEARTBEAT:
                raise ValueError(f"a frame of kind {kind}")
        if at == end:
            self._start = self._end = 0
        elif at > wire.FRAME_MAX // 2 or end == _BUFFER:
            view[: end - at] = bytes(view[at:end])
            self._start, self._end = 0, end - at
        else:
            self._start = at

    def _method(self, channel: Channel, data: bytes) -> None:
        if len(data) < 4:
            raise ValueError("a truncated method")
        (index,) = wire.LONG.unpack_from(data)
        if index == wire.DELIVER:
            channel.begin(wire.delivery(data), returned=False)
        elif index in {wire.ACK, wire.NACK}:
            tag, multiple = wire.read_confirm(data)
            channel.on_confirm(tag, multiple, index == wire.ACK)
        elif index == wire.RETURN:
            channel.begin(wire.returned(data), returned=True)
        else:
            channel.method(wire.read_method(data))


def _expected(method: Any, kind: type) -> Any:
    if not isinstance(method, kind):
        raise ProtocolError(f"the broker answered with {method.name}", sent=False)
    return method


def _ended(exc: Exception | None, *, greeting: bool) -> ResilientClientError:
    """Why it ended; `greeting` when TLS was agreed on and nothing else yet."""
    if exc is None:
        return ConnectionLost("the broker closed the connection")
    hint = "it may want a certificate: give tls= an ssl.SSLContext that has loaded one"
    if greeting and isinstance(exc, ssl.SSLError):
        return ConfigurationError(f"the broker refuses TLS: {exc.reason or exc}", hint=hint)
    if greeting:  # a reset may come in place of what TLS had to say
        return ConnectError(str(exc) or type(exc).__name__, hint=hint)
    return ConnectionLost(str(exc) or type(exc).__name__)
