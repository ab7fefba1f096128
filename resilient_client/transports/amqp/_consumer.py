"""A RabbitMQ server at work: a consumer of the queue, and replies on a connection of their own.

Two connections, because RabbitMQ stops reading from one that publishes when it is short of memory:
acknowledgements, which give memory back, must not wait behind replies.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from resilient_client.context import IDEMPOTENCY_HEADER
from resilient_client.errors import (
    ConnectError,
    ConnectionLost,
    InvalidPayloadError,
    NoHandlerError,
    ProtocolError,
    RemoteError,
)
from resilient_client.events import Degraded
from resilient_client.message import Message, Reply
from resilient_client.transports._frames import ENVELOPE
from resilient_client.transports._link import look_at, spawn
from resilient_client.transports._metadata import beside
from resilient_client.transports._nest import Overtaken, answer, reply_packet
from resilient_client.transports._packets import NO_HANDLER_JSON, read_request
from resilient_client.transports.amqp import _wire as wire
from resilient_client.transports.amqp._acknowledgements import Acknowledgements
from resilient_client.transports.amqp._connector import connect
from resilient_client.transports.amqp._topology import Topology

if TYPE_CHECKING:
    from resilient_client.codecs import Codec
    from resilient_client.transports._packets import Request
    from resilient_client.transports.amqp._channel import Channel
    from resilient_client.transports.amqp._connection import Connection
    from resilient_client.transports.amqp._wire import Delivery
    from resilient_client.transports.amqp.server import ServerListener

log = logging.getLogger("resilient_client.amqp")

BIND_AGAIN = 10.0
"""Seconds between two looks whether the exchange and what leads from it to the queue are there."""
_CONSUMER = "resilient_client"
_GREETED = 10_000  # clients remembered as greeted
_LOST_REPLICA = RemoteError(
    "the server that had this request is gone: whether it was executed is unknown", status=503
)


class Consumer:
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
        self._acks: Acknowledgements
        self._channel: Channel
        self._greeted: dict[bytes, None] = {}
        self._overtaken = Overtaken()
        self._timer: asyncio.TimerHandle | None = None

    async def prepare(self) -> None:
        """Connect twice, declare, subscribe."""
        listener = self._listener
        dial = partial(connect, listener.login, listener.max_size + ENVELOPE, self._lost)
        begun: list[Connection] = []
        try:
            self.replying = await dial(self._blocked)
            begun.append(self.replying)
            self.consuming = await dial()
            begun.append(self.consuming)
            await self._subscribe(listener.topology)
            self.replying.ready()
            self.consuming.ready()
        except BaseException:
            for connection in begun:
                connection.abort("given up while opening")
            self._slots.close()
            raise

    async def _subscribe(self, topology: Topology) -> None:
        replies = await self.replying.channel()
        replies.on_delivery = self._cancelled
        await replies.call(wire.BasicConsume(queue=wire.REPLY_TO.decode(), no_ack=True))
        channel = self._channel = await self.consuming.channel()
        await topology.declare_queue(channel)
        await self._bind()
        if self._ack:
            await channel.call(wire.BasicQos(prefetch_count=self._listener.prefetch))
        self._acks = Acknowledgements(self.consuming, channel.number)
        channel.on_delivery = self._delivered
        channel.on_cancel = self._queue_gone
        await channel.call(
            wire.BasicConsume(queue=topology.queue, consumer_tag=_CONSUMER, no_ack=not self._ack)
        )

    async def _bind(self) -> None:
        """Have the exchange lead to the queue; and again: nobody tells that one was deleted."""
        topology, channel = self._listener.topology, self._channel
        await topology.declare_exchange(channel)
        await topology.bind(channel, {each.route for each in self._app.subscriptions()})
        if topology.exchange is not None and topology.declare:
            self._timer = self.consuming.loop.call_later(BIND_AGAIN, self._bind_again)

    def _bind_again(self) -> None:
        if not self.consuming.closed:
            spawn(self._bind(), f"bind {self._listener.topology.queue}").add_done_callback(look_at)

    # ---- its end ----

    def _lost(self, connection: Connection, reason: str) -> None:
        """One of the two has ended, so the other does."""
        for each in (self.consuming, self.replying):
            each.abort(reason)
        self._stop_timer()
        self._slots.close()
        self._listener.link.lost(self, reason)

    def _queue_gone(self) -> None:
        """The broker gives us nothing more: declare the queue again, on new connections."""
        queue = self._listener.topology.queue
        reason = f"the queue {queue!r} was deleted, or the node it lives on is gone"
        self._app.notify(Degraded(self._listener.address, reason))
        self.consuming.abort(reason)

    def _blocked(self, reason: str) -> None:
        text = f"RabbitMQ takes nothing in: {reason}"
        self._app.notify(Degraded(self._listener.address, text))

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    async def stop(self) -> None:
        """Take nothing new in."""
        self._stop_timer()
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
        self._stop_timer()
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
        jobs = self._slots.cancel(b'"%b"' % message.correlation_id)
        for job in jobs:
            self._acks.ack(job.message.raw.tag)
        if not jobs:
            self._overtaken.add(message.correlation_id)

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
        message.headers = beside(message.headers, request.metadata)
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
        if self._overtaken.take(message.correlation_id):
            self._acks.ack(message.tag)
            return
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
