"""tcp:// - Nest's packets in frames over a socket, many calls in flight on one connection.

Both ends mirror Nest's limits: the size of a message, the silence in the middle of one, and what is
queued for a peer that does not read.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from itertools import count
from math import inf
from typing import TYPE_CHECKING

from resilient_client.context import PEER_HEADER
from resilient_client.errors import (
    ConfigurationError,
    ConnectionLost,
    PayloadError,
    ProtocolError,
    ReplyTimeout,
)
from resilient_client.message import NO_VALUE, WRITTEN, Message
from resilient_client.patterns import lookup_route, pattern_json
from resilient_client.transports._base import DEFAULT_MAX_SIZE
from resilient_client.transports._frames import ENVELOPE, FrameReader, frame
from resilient_client.transports._link import LinkedTransport
from resilient_client.transports._nest import (
    CANCEL_ROUTE,
    Peers,
    answer,
    cancel_packet,
    deliver,
    greeting_packet,
    is_ours,
    reply_packet,
)
from resilient_client.transports._packets import (
    event_packet,
    read_request,
    read_response,
    request_packet,
    value_packet,
)
from resilient_client.transports._replies import PendingReplies
from resilient_client.transports._socket import (
    UNREAD_TIMEOUT,
    SocketProtocol,
    client_tls,
    dial,
    listen,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from resilient_client.codecs import Codec
    from resilient_client.message import Call, Receipt, Reply
    from resilient_client.transports._base import App, Environment, Slots, Target
    from resilient_client.transports._packets import Request

log = logging.getLogger("resilient_client.tcp")

DEFAULT_PORT = 3000
INCOMPLETE_TIMEOUT = 30.0
"""Seconds of silence in the middle of a frame before the connection is dropped, as in Nest."""
MAX_SEND_BUFFER = 128 * 1024 * 1024
"""Bytes queued for a peer that does not read before its connection is dropped, as in Nest."""


class _Stream(SocketProtocol):
    """One connection: frames in, frames out."""

    def __init__(self, max_size: int) -> None:
        super().__init__()
        self.reader = FrameReader(max_size)
        self.get_buffer = self.reader.get_buffer  # type: ignore[method-assign]
        self._incomplete: asyncio.TimerHandle | None = None

    def buffer_updated(self, nbytes: int) -> None:
        try:
            self.received(self.reader.buffer_updated(nbytes))
            if self.reader.error is not None:
                raise self.reader.error
        except ProtocolError as error:
            self.broken(error)
            return
        if self._incomplete is not None:
            self._incomplete.cancel()
            self._incomplete = None
        if self.reader.incomplete:
            self._incomplete = self.loop.call_later(INCOMPLETE_TIMEOUT, self._too_slow)

    def _too_slow(self) -> None:
        self.broken(ProtocolError(f"silence for {INCOMPLETE_TIMEOUT} s in the middle of a frame"))

    def received(self, frames: list[bytes]) -> None:
        """Frames have arrived."""
        raise NotImplementedError

    def broken(self, error: ProtocolError) -> None:
        """What arrives cannot be read: close."""
        raise NotImplementedError

    def connection_lost(self, exc: Exception | None) -> None:
        if self._incomplete is not None:
            self._incomplete.cancel()
        super().connection_lost(exc)


class _ClientStream(_Stream):
    def __init__(
        self,
        max_size: int,
        replies: PendingReplies,
        codec: Codec,
        lost: Callable[[_ClientStream, str], None],
    ) -> None:
        super().__init__(max_size)
        self.replies = replies
        self.ours = False  # the peer has shown itself to be of our make
        self.peers = Peers(self._tell)
        self._protocol_error: ProtocolError | None = None
        self._codec = codec
        self._lost = lost

    def received(self, frames: list[bytes]) -> None:
        for text in frames:
            response = read_response(text, by_id=True)
            # `deliver`, less a hop, for nearly all of them
            if response.value is not None and response.err is None and not response.metadata:
                taken = self.replies.value(response.id, response.value, response.ended)
                if not response.ended and taken and response.id not in self.replies:
                    self.peers.leave(response.id)  # whoever asked for one value has it
                continue
            if PEER_HEADER in response.metadata:
                self.ours = True
                self.peers.meet(None)  # the only one on this connection
            deliver(self.replies, response.id, response, self._codec)

    def _tell(self, _: object, key: str) -> None:
        if not self.closed:
            self.send(frame(cancel_packet(key)))

    def broken(self, error: ProtocolError) -> None:
        self._protocol_error = error
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        reason = str(exc) if exc is not None else "the peer closed the connection"
        broken = self._protocol_error
        if broken is not None:
            reason = str(broken)
            text = broken.args[0]
            self.replies.fail_all(lambda: ProtocolError(text))
        else:
            self.replies.fail_all(lambda: ConnectionLost(reason))
        self._lost(self, reason)


class ClientTransport(LinkedTransport[_ClientStream]):
    """The client's end: one socket, calls matched by id.

    Args:
        tls: an `ssl.SSLContext`, or true for one that trusts the system's authorities.
        max_size: bytes of one payload, each way.
    """

    url_login = True

    def __init__(
        self,
        target: Target,
        env: Environment,
        *,
        tls: bool | ssl.SSLContext = False,
        max_size: int = DEFAULT_MAX_SIZE,
    ) -> None:
        super().__init__(target, env, max_size)
        if "@" in target.url.netloc:  # harmless here, and there may be a reason to keep it
            log.warning("%s: the user in this URL is not sent, say who calls in headers=", target)
        self._tls = client_tls(tls)
        self._ids = count(1)

    async def _dial(self) -> _ClientStream:
        return await dial(
            lambda: _ClientStream(
                self._max_size,
                PendingReplies(self._clock, self._tally),
                self._codec,
                self._link.lost,
            ),
            self._target,
            DEFAULT_PORT,
            self._tls,
        )

    async def request(self, call: Call) -> Reply:
        """See `Transport.request`."""
        stream = self._link.current or await self._link.get(call.connect_deadline, call)
        if stream.congested:
            await self._drained(stream, call)
        key = str(next(self._ids))
        if not stream.ours:
            call.metadata[PEER_HEADER] = key
        text = request_packet(pattern_json(call.pattern), call.body, call.metadata, key)
        replies = stream.replies
        call.sent = True
        # What follows is `replies.exchange`, spelt out: its hop is 7 % of a call on this transport.
        if call.kind == "stream":
            items = replies.open(key, call, lambda: stream.peers.leave(key))
            stream.send(frame(text))
            return await items.opened()
        future = replies.expect(key, call)
        stream.send(frame(text))
        try:
            return await future
        except BaseException as error:
            del future  # it holds an error whose traceback holds this frame
            replies.forget(key)
            if isinstance(error, asyncio.CancelledError | ReplyTimeout):
                stream.peers.leave(key)
            raise

    def publish(self, call: Call) -> Receipt | Awaitable[Receipt]:
        """See `Transport.publish`."""
        stream = self._link.current
        return self._publish(call) if stream is None or stream.congested else _written(stream, call)

    async def _publish(self, call: Call) -> Receipt:
        stream = self._link.current or await self._link.get(call.connect_deadline, call)
        if stream.congested:
            await self._drained(stream, call)
        return _written(stream, call)

    async def aclose(self) -> None:
        """See `Transport.aclose`."""
        stream = await self._link.aclose()
        if stream is not None:
            stream.replies.fail_all(lambda: ConnectionLost("the client was closed"))
            await stream.close()


def _written(stream: _ClientStream, call: Call) -> Receipt:
    call.sent = True
    stream.send(frame(event_packet(pattern_json(call.route), call.body, call.metadata)))
    return WRITTEN


class _Request(Message, kw_only=True):
    """A request that knows where to answer."""

    stream: _ServerStream

    def respond(self, reply: Reply) -> Awaitable[None] | None:
        """See `Respond`."""
        stream = self.stream
        if reply.items is None and not stream.congested and not stream.closed:
            if reply.error is None and reply.body is not NO_VALUE:  # `reply_packet`, less a hop
                data = value_packet(self.id, reply.body)
            else:
                data = reply_packet(reply, self.id, stream.codec)
            if len(data) <= stream.largest:
                stream.send(frame(data))
                return None
        return answer(reply, self.id, stream.write, stream.codec)


class _ServerStream(_Stream):
    def __init__(self, listener: ServerListener, app: App, max_size: int) -> None:
        super().__init__(max_size)
        self.largest = max_size + ENVELOPE
        self.codec = app.codec
        self._listener = listener
        self._app = app
        self._now = app.clock.now
        self._slots: Slots
        self._greeted = False
        self._looking: asyncio.TimerHandle | None = None  # whether the peer reads

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._listener.streams.add(self)
        # not before: of a handshake that fails nobody tells the end
        self._slots = self._app.slots(self.pause, self.resume)

    def received(self, frames: list[bytes]) -> None:
        for text in frames:
            self._received(text)

    def _received(self, text: bytes) -> None:
        packet = read_request(text)
        if packet.id is None:
            self._event(packet)
            return
        pattern = packet.pattern
        if not self._greeted and is_ours(packet.metadata, packet.id):
            self._greeted = True
            self.send(frame(greeting_packet(packet.id)))
        request = _Request(
            "" if pattern is None else lookup_route(pattern) or "",
            packet.data,
            packet.metadata,
            packet.id,
            self._now(),
            raw=self.transport,
            stream=self,
        )
        self._app.accept(request, request.respond, self._slots, "tcp")

    def _event(self, packet: Request) -> None:
        route = packet.route
        if route == CANCEL_ROUTE:
            self._slots.cancel(packet.data)
        elif route is not None:
            event = Message(
                route, packet.data, packet.metadata, received=self._now(), raw=self.transport
            )
            self._app.accept(event, None, self._slots, "tcp")
        else:
            log.warning("a message without a pattern was dropped")

    async def write(self, data: bytes) -> None:
        """Write one packet when the peer has read enough."""
        if len(data) > self.largest:
            raise PayloadError(f"it has {len(data)} bytes, more than max_size= allows")
        if self.congested:
            await self.drained()
        if self.closed:
            raise ConnectionLost("the caller has gone")
        self.send(frame(data))

    def broken(self, error: ProtocolError) -> None:
        log.warning(
            "closing the connection of %s: %s",
            self.transport.get_extra_info("peername"),
            error.args[0],
        )
        self.transport.abort()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.transport.pause_reading()
        if self.transport.get_write_buffer_size() > MAX_SEND_BUFFER:
            self.transport.abort()
        self._look_again(inf)  # what is written in this turn of the loop is still to come

    def _look_again(self, unread: float) -> None:
        self._looking = self.loop.call_later(UNREAD_TIMEOUT / 2, self._look_at_reader, unread)

    def _look_at_reader(self, before: float) -> None:
        unread = self.transport.get_write_buffer_size()
        if unread < before:
            self._look_again(unread)
        else:
            self.broken(ProtocolError("it does not read what was written"))

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        if not self.paused and not self.closed:
            self.transport.resume_reading()

    def resume(self) -> None:
        if self.congested:  # then it reads on when the peer has read
            self.paused = False
        else:
            super().resume()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._listener.streams.discard(self)
        self._slots.close()


class ServerListener:
    """The server's end: a listening socket.

    Args:
        tls: an `ssl.SSLContext` with the server's certificate.
        max_size: bytes of one payload, each way.
    """

    def __init__(
        self,
        target: Target,
        app: App,
        *,
        tls: bool | ssl.SSLContext = False,
        max_size: int = DEFAULT_MAX_SIZE,
    ) -> None:
        if tls is True:
            raise ConfigurationError(
                "tls=True says nothing about the server's certificate",
                hint="give tls= an ssl.SSLContext that has loaded it",
            )
        self.address = str(target)
        self.streams: set[_ServerStream] = set()
        self._target = target
        self._app = app
        self._tls = tls or None
        self._max_size = max_size
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """See `ServerListener.start`."""
        try:
            self._server = await listen(
                lambda: _ServerStream(self, self._app, self._max_size),
                self._target.host,
                self._target.port(DEFAULT_PORT),
                self._tls,
            )
        except OSError as error:
            raise self._target.cannot_be_bound(error) from error
        self.address = self._target.bound(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """See `ServerListener.stop`."""
        if self._server is not None:
            self._server.close()

    async def aclose(self) -> None:
        """See `ServerListener.aclose`."""
        await self.stop()
        await asyncio.gather(*(stream.close() for stream in tuple(self.streams)))
