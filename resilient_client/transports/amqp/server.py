"""The server's end: a consumer of the queue, and replies on a connection of their own.

Two connections, because RabbitMQ stops reading from one that publishes when it is short of memory:
acknowledgements, which give memory back, must not wait behind replies.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from resilient_client._checks import integer
from resilient_client.context import IDEMPOTENCY_HEADER
from resilient_client.errors import (
    ConfigurationError,
    ConnectError,
    ConnectionLost,
    InvalidPayloadError,
    NoHandlerError,
    ProtocolError,
    RemoteError,
)
from resilient_client.events import Degraded
from resilient_client.message import Message, Reply
from resilient_client.transports._base import DEFAULT_MAX_SIZE
from resilient_client.transports._frames import ENVELOPE
from resilient_client.transports._link import ServerLink
from resilient_client.transports._nest import answer, reply_packet
from resilient_client.transports._packets import NO_HANDLER_JSON, read_request
from resilient_client.transports.amqp import _wire as wire
from resilient_client.transports.amqp._connector import HEARTBEAT, connect, login
from resilient_client.transports.amqp._topology import MAX_NAME, Topology, matches

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping

    from resilient_client.codecs import Codec
    from resilient_client.transports._base import App, Subscription, Target
    from resilient_client.transports._packets import Request
    from resilient_client.transports.amqp._channel import Channel
    from resilient_client.transports.amqp._connection import Connection
    from resilient_client.transports.amqp._wire import Delivery

log = logging.getLogger("resilient_client.amqp")

PREFETCH = 256
"""Messages handed out and not acknowledged: as many as one consumer's handlers may run."""
_CONSUMER = "resilient_client"
_GREETED = 10_000  # clients remembered as greeted
_LOST_REPLICA = RemoteError(
    "the server that had this request is gone: whether it was executed is unknown", status=503
)


class _Routes:
    """Which handler a message is for, where patterns are topics."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._topics: dict[bool, list[tuple[list[str], str]]] = {False: [], True: []}
        for each in app.subscriptions():
            words = each.route.split(".")
            if not {"*", "#"}.isdisjoint(words):
                self._topics[each.is_event].append((words, each.route))

    def find(self, route: str, *, is_event: bool) -> str:
        """The handler's route: exactly this one, else the first topic that matches, as in Nest."""
        app = self._app
        if app.receivers(route) if is_event else app.handles(route):
            return route
        words = route.split(".")
        for kind in (is_event, not is_event):
            for pattern, found in self._topics[kind]:
                if matches(pattern, words):
                    return found
        return route


class _Acknowledgements:
    """What is to be acknowledged, written in groups: several at a time are one frame."""

    def __init__(self, connection: Connection, number: int) -> None:
        self._connection = connection
        self._number = number
        self._open: set[int] = set()
        self._fresh: list[int] = []
        self._floor = 0  # everything up to here is settled
        self._settled: set[int] = set()  # of what is above
        self._flushing = False

    def add(self, tag: int) -> None:
        """A message to be settled once."""
        self._open.add(tag)

    def ack(self, tag: int) -> None:
        """It has been handled. The second time this does nothing."""
        if tag in self._open:
            self._open.discard(tag)
            self._fresh.append(tag)
            if not self._flushing:
                self._flushing = True
                self._connection.loop.call_soon(self.flush)

    def nack(self, tag: int, *, requeue: bool) -> None:
        """It has not."""
        if tag in self._open:
            self._open.discard(tag)
            self._settled.add(tag)
            if not self._connection.closed:
                self._connection.send(wire.nack_frame(self._number, tag, requeue=requeue))

    def flush(self) -> None:
        """Write what is due."""
        self._flushing = False
        fresh, self._fresh = self._fresh, []
        if not fresh or self._connection.closed:
            return
        settled = self._settled
        settled.update(fresh)
        while self._floor + 1 in settled:
            self._floor += 1
            settled.discard(self._floor)
        low = [tag for tag in fresh if tag <= self._floor]
        frames = [wire.ack_frame(self._number, tag) for tag in fresh if tag > self._floor]
        if low:
            # the last one must be outstanding, so not just any up to the floor
            frames.append(wire.ack_frame(self._number, max(low), multiple=len(low) > 1))
        self._connection.send(b"".join(frames))


class _Consumer:
    """The listener's two connections, while they last."""

    def __init__(self, listener: ServerListener) -> None:
        self.consuming: Connection
        self.replying: Connection
        self._listener = listener
        self._app = listener.app
        self._codec = listener.app.codec
        self._now = listener.app.clock.now
        self._ack = listener.ack
        self._requeue = listener.requeue
        self._routes = listener.routes
        self._slots = self._app.slots(self._pause, self._resume, farewell=not self._ack)
        self._acks: _Acknowledgements
        self._channel: Channel
        self._greeted: dict[bytes, None] = {}

    async def prepare(self) -> None:
        """Connect twice, declare, subscribe."""
        listener = self._listener
        dial = partial(connect, listener.login, listener.max_size + ENVELOPE, self._lost)
        self.replying = await dial(self._blocked)
        try:
            self.consuming = await dial()
            try:
                await self._subscribe(listener.topology)
                self.replying.ready()
                self.consuming.ready()
            except BaseException:
                self.consuming.abort("given up while opening")
                raise
        except BaseException:
            self.replying.abort("given up while opening")
            self._slots.close()
            raise

    async def _subscribe(self, topology: Topology) -> None:
        replies = await self.replying.channel()
        replies.on_delivery = self._cancelled
        await replies.call(wire.BasicConsume(queue=wire.REPLY_TO.decode(), no_ack=True))
        channel = self._channel = await self.consuming.channel()
        await topology.declare_queue(channel)
        await topology.declare_exchange(channel)
        await topology.bind(channel, {each.route for each in self._app.subscriptions()})
        if self._ack:
            await channel.call(wire.BasicQos(prefetch_count=self._listener.prefetch))
        self._acks = _Acknowledgements(self.consuming, channel.number)
        channel.on_delivery = self._delivered
        channel.on_cancel = self._queue_gone
        await channel.call(
            wire.BasicConsume(queue=topology.queue, consumer_tag=_CONSUMER, no_ack=not self._ack)
        )

    # ---- its end ----

    def _lost(self, connection: Connection, reason: str) -> None:
        """One of the two has ended, so the other does."""
        for each in (self.consuming, self.replying):
            each.abort(reason)
        self._slots.close()
        self._listener.link.lost(self, reason)

    def _queue_gone(self) -> None:
        """The queue was deleted under us: declare it again, on new connections."""
        reason = f"the queue {self._listener.topology.queue!r} was deleted"
        self._app.notify(Degraded(self._listener.address, reason))
        self.consuming.abort(reason)

    def _blocked(self, reason: str) -> None:
        text = f"RabbitMQ takes nothing in: {reason}"
        self._app.notify(Degraded(self._listener.address, text))

    async def stop(self) -> None:
        """Take nothing new in."""
        if not self.consuming.closed:
            try:
                async with asyncio.timeout(1.0):
                    await self._channel.call(wire.BasicCancel(consumer_tag=_CONSUMER))
            except (TimeoutError, ConnectError, ConnectionLost):
                log.debug("the broker did not end the subscription")
        if self._ack:
            self._slots.drop()  # they go to another server

    async def aclose(self) -> None:
        """Say goodbye."""
        self._acks.flush()
        self.replying.flush()
        await asyncio.gather(self.consuming.farewell(), self.replying.farewell())
        self._slots.close()

    # ---- backpressure: with acknowledgements the prefetch bounds what is here ----

    def _pause(self) -> None:
        if not self._ack or not self._listener.prefetch:
            self.consuming.pause()

    def _resume(self) -> None:
        if self.consuming.paused:
            self.consuming.resume()

    # ---- what arrives ----

    def _cancelled(self, message: Delivery) -> None:
        """A caller of ours has left."""
        for job in self._slots.cancel(b'"%b"' % message.correlation_id):
            self._acks.ack(job.message.raw.tag)

    def _delivered(self, message: Delivery) -> None:
        tag = message.tag
        if self._ack:
            self._acks.add(tag)
        if message.body is None:
            self._refuse(message, f"the message has {message.size} bytes, more than max_size=")
            return
        try:
            request = read_request(message.body)
            route = request.route
        except ProtocolError as error:
            self._refuse(message, str(error.args[0]))
            return
        if request.id is not None:
            self._request(message, request, "" if route is None else route)
        elif route is None:
            self._refuse(message, "a message without a pattern")
        else:
            respond = partial(self._settled, message) if self._ack else None
            self._accept(message, request, route, respond)

    def _refuse(self, message: Delivery, why: str) -> None:
        """What is too large, or no packet, is still answered where its properties say so."""
        log.warning("a message was refused: %s", why)
        if message.reply_to:
            error = InvalidPayloadError(why)
            self._publish(message, reply_packet(Reply(error=error), None, self._codec))
        self._acks.nack(message.tag, requeue=False)

    def _accept(self, message: Delivery, request: Request, route: str, respond: Any) -> None:
        subject = None
        routes = self._routes
        if routes is not None:
            found = routes.find(route, is_event=request.id is None)
            if found != route:
                route, subject = found, route
        taken = Message(
            route, request.data, message.headers, request.id,
            received=self._now(), subject=subject, raw=message,
        )  # fmt: skip
        self._app.accept(taken, respond, self._slots, "amqp")

    async def _settled(self, message: Delivery, reply: Reply) -> None:
        """An event's handlers have ended."""
        if self.consuming.closed:
            raise ConnectionLost("it will be delivered again: its connection has ended")
        error = reply.error
        if error is None:
            self._acks.ack(message.tag)
        else:
            again = not isinstance(error, NoHandlerError | InvalidPayloadError)
            self._acks.nack(
                message.tag, requeue=self._requeue and again and not message.redelivered
            )

    def _request(self, message: Delivery, request: Request, route: str) -> None:
        respond = partial(self._respond, message, request)
        if message.redelivered and IDEMPOTENCY_HEADER not in message.headers:
            # somebody may have executed it: that is for the caller to judge
            lost = Reply(error=_LOST_REPLICA)
            self._publish(message, reply_packet(lost, None, self._codec))
            self._acks.ack(message.tag)
            return
        ours = message.app_id == wire.OURS and message.reply_to
        if ours and message.reply_to not in self._greeted:
            self._greet(message)
        self._accept(message, request, route, respond)

    def _greet(self, message: Delivery) -> None:
        """Tell a client of ours, once, where it may send cancels."""
        if len(self._greeted) >= _GREETED:
            self._greeted.clear()
        self._greeted[message.reply_to] = None
        properties = wire.greeting_properties(message.correlation_id)
        self._write(message.reply_to, properties, b"{}")

    async def _respond(self, message: Delivery, request: Request, reply: Reply) -> None:
        try:
            if reply.items is not None:
                await answer(reply, None, partial(self._written, message), self._codec)
                return
            if self.replying.congested:
                await self.replying.drained()
            self._publish(message, _packet_of(reply, request.id, self._codec))
        finally:
            self._acks.ack(message.tag)

    async def _written(self, message: Delivery, data: bytes) -> None:
        if self.replying.congested:
            await self.replying.drained()
        self._publish(message, data)

    def _publish(self, message: Delivery, data: bytes) -> None:
        if message.reply_to:
            properties = wire.reply_properties(message.correlation_id)
            self._write(message.reply_to, properties, data)

    def _write(self, address: bytes, properties: bytes, data: bytes) -> None:
        replying = self.replying
        if replying.closed:
            raise ConnectionLost("the connection for replies has ended")
        place = wire.publish_frame(1, "", address, mandatory=False)
        replying.send(place + wire.content_frames(1, properties, data, replying.frame_max))


def _packet_of(reply: Reply, id_json: Any, codec: Codec) -> bytes:
    """The packet of a reply: without its id, for there is a property for that, but for one kind."""
    if type(reply.error) is NoHandlerError:  # as Nest has it
        return b'{"id":%b,"err":%b,"status":"error"}' % (id_json, NO_HANDLER_JSON)
    return reply_packet(reply, None, codec)


class ServerListener:
    """The server's end.

    Args:
        queue, durable, auto_delete, arguments, declare, exchange, auth, heartbeat, tls, max_size:
            see the client.
        prefetch: messages handed out before one is acknowledged; 0 is no bound.
        ack: True acknowledges a message when its handlers have ended; an event whose handler failed
            is dropped then, to the queue's dead letters if it has such. "requeue" lets it be tried
            once more. False is Nest's default: handed out is done, a crash loses it.
    """

    def __init__(
        self,
        target: Target,
        app: App,
        *,
        queue: str | None = None,
        durable: bool = True,
        auto_delete: bool = False,
        arguments: Mapping[str, Any] | None = None,
        declare: bool = True,
        exchange: str | None = None,
        prefetch: int = PREFETCH,
        ack: bool | str = True,
        auth: str = "plain",
        heartbeat: int = HEARTBEAT,
        tls: bool | ssl.SSLContext = False,
        max_size: int = DEFAULT_MAX_SIZE,
    ) -> None:
        if isinstance(ack, str) and ack != "requeue":
            raise ConfigurationError(f'ack={ack!r} is none of True, False and "requeue"')
        self.address = str(target)
        self.app = app
        self.topology = Topology.checked(queue, exchange, durable, auto_delete, declare, arguments)
        self.login = login(target, tls, auth, heartbeat)
        self.prefetch = integer("prefetch", prefetch, 0, 0xFFFF)
        self.ack = bool(ack)
        self.requeue = ack == "requeue"
        self.max_size = max_size
        self.routes: _Routes | None = None
        self.link = ServerLink[_Consumer](self.address, self._dial, app)

    def check_pattern(self, handler: Subscription) -> None:
        """Refuse a pattern that cannot be a routing key.

        Raises:
            ConfigurationError: it is too long.
        """
        if self.topology.exchange is not None and len(handler.route.encode()) > MAX_NAME:
            raise ConfigurationError(
                f"the pattern {handler.route:.40}... has more than {MAX_NAME} bytes, too many"
                " for a routing key"
            )

    async def _dial(self) -> _Consumer:
        consumer = _Consumer(self)
        await consumer.prepare()
        return consumer

    async def start(self) -> None:
        """See `ServerListener.start`."""
        if self.topology.exchange is not None:
            self.routes = _Routes(self.app)
        await self.link.start()

    async def stop(self) -> None:
        """See `ServerListener.stop`."""
        if self.link.current is not None:
            await self.link.current.stop()

    async def aclose(self) -> None:
        """See `ServerListener.aclose`."""
        consumer = await self.link.aclose()
        if consumer is not None:
            await consumer.aclose()
