"""The client's end: requests to the queue, their replies by RabbitMQ's direct reply-to."""

from __future__ import annotations

import os
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

from resilient_client.context import DEADLINE_HEADER, fresh_id
from resilient_client.errors import (
    ConfigurationError,
    ConnectionLost,
    PayloadError,
    ProtocolError,
    Throttled,
)
from resilient_client.events import Degraded
from resilient_client.message import Receipt
from resilient_client.patterns import pattern_json
from resilient_client.transports._base import DEFAULT_MAX_SIZE
from resilient_client.transports._frames import ENVELOPE
from resilient_client.transports._link import LinkedTransport
from resilient_client.transports._nest import Peers, cancel_packet, deliver
from resilient_client.transports._packets import event_packet, read_response, request_packet
from resilient_client.transports._replies import PendingReplies
from resilient_client.transports._transport import Tally
from resilient_client.transports.amqp import _wire as wire
from resilient_client.transports.amqp._connector import HEARTBEAT, connect, login
from resilient_client.transports.amqp._errors import unroutable
from resilient_client.transports.amqp._topology import MAX_NAME, Topology

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping

    from resilient_client.codecs import Codec
    from resilient_client.message import Call, Reply
    from resilient_client.transports._base import Environment, Target
    from resilient_client.transports.amqp._channel import Channel
    from resilient_client.transports.amqp._connection import Connection
    from resilient_client.transports.amqp._wire import Delivery

_LONGEST = 9
"""Digits of the milliseconds that a request may wait in the queue, eleven days: RabbitMQ refuses an
expiration of fifty."""


class _Session:
    """What one connection has: a channel for requests and replies, one for confirmed events."""

    def __init__(
        self, connection: Connection, topology: Topology, replies: PendingReplies,
        confirms: PendingReplies, codec: Codec,
    ) -> None:  # fmt: skip
        self.connection = connection
        self.replies = replies
        self.confirms = confirms
        self.peers = Peers(self._tell)
        self._codec = codec
        self._topology = topology
        self._requests: Channel
        self._to_queue: dict[int, bytes] = {}
        self._published = 0
        self._unconfirmed: dict[int, bytes] = {}  # tags to message ids, in order
        self._returned: set[bytes] = set()

    async def prepare(self) -> None:
        """Declare, and listen for replies before anything is sent."""
        topology = self._topology
        requests = self._requests = await self.connection.channel()
        events = await self.connection.channel()
        if topology.exchange is None:
            await topology.declare_queue(requests)
        else:
            await topology.declare_exchange(requests)
        requests.on_delivery = self._delivered
        requests.on_return = self._unroutable
        reply_to = wire.REPLY_TO.decode()
        await requests.call(wire.BasicConsume(queue=reply_to, no_ack=True))
        events.on_return = lambda message: self._returned.add(message.message_id)
        events.on_confirm = self._confirmed
        await events.call(wire.ConfirmSelect())
        for number in (requests.number, events.number):
            self._to_queue[number] = wire.publish_frame(number, "", topology.queue, mandatory=True)

    def _place(self, number: int, route: str) -> bytes:
        """The method frame for a route; without an exchange it is always the queue."""
        if self._topology.exchange is None:
            return self._to_queue[number]
        key = route.encode()
        if len(key) > MAX_NAME:
            raise ConfigurationError(
                f"the pattern has {len(key)} bytes, a routing key at most {MAX_NAME}"
            )
        return wire.publish_frame(number, self._topology.exchange, key, mandatory=True)

    def request(self, call: Call, key: bytes) -> bytes:
        """The frames of a request."""
        packet = request_packet(pattern_json(call.pattern), call.body, None, key)
        left = call.metadata.get(DEADLINE_HEADER)
        expiration = None if left is None or len(left) > _LONGEST else left.encode()
        properties = wire.request_properties(wire.table(call.metadata), key, expiration)
        content = wire.content_frames(1, properties, packet, self.connection.frame_max)
        return self._place(1, call.route) + content

    def event(self, call: Call, message_id: bytes) -> bytes:
        """The frames of an event."""
        packet = event_packet(pattern_json(call.pattern), call.body)
        properties = wire.event_properties(
            wire.table(call.metadata), message_id, persistent=self._topology.durable
        )
        content = wire.content_frames(2, properties, packet, self.connection.frame_max)
        return self._place(2, call.route) + content

    def published(self, message_id: bytes) -> int:
        """An event is about to be written: the tag of its confirmation."""
        self._published += 1
        self._unconfirmed[self._published] = message_id
        return self._published

    def _tell(self, address: bytes, key: bytes) -> None:
        connection = self.connection
        if not connection.closed and not connection.congested:
            packet = cancel_packet(key)
            properties = wire.reply_properties(key)
            content = wire.content_frames(1, properties, packet, connection.frame_max)
            connection.send(wire.publish_frame(1, "", address, mandatory=False) + content)

    def end(self) -> None:
        """The connection is gone: fail what is pending, with the truth."""
        for table in (self.replies, self.confirms):
            table.fail_all(self.connection.reason)

    # ---- what arrives ----

    def _delivered(self, message: Delivery) -> None:
        key = message.correlation_id
        if message.app_id == wire.OURS and message.reply_to:
            self.peers.meet(message.reply_to)
        elif message.body is None:
            text = f"the answer has {message.size} bytes, more than max_size= allows"
            self.replies.fail(key, PayloadError(text, sent=True))
        else:
            try:
                response = read_response(message.body)
            except ProtocolError as error:
                self.replies.fail(key, error)
            else:
                deliver(self.replies, key, response, self._codec)

    def _unroutable(self, message: Delivery) -> None:
        topology = self._topology
        place = f"queue {topology.queue!r}"
        if topology.exchange is not None:
            place = f"exchange {topology.exchange!r}"
        text = str(message.method.reply_text)
        self.replies.fail(message.correlation_id, unroutable(text, place))

    def _confirmed(self, tag: int, multiple: bool, accepted: bool) -> None:  # noqa: FBT001
        unconfirmed = self._unconfirmed
        tags = [tag]
        if multiple:
            tags = []
            for each in unconfirmed:
                if each > tag:
                    break
                tags.append(each)
        for each in tags:
            message_id = unconfirmed.pop(each, b"")
            returned = message_id in self._returned
            self._returned.discard(message_id)
            if not accepted:
                text = "RabbitMQ did not accept the event: its queue is full, or failed"
                self.confirms.fail(each, Throttled(text, status=503))
            elif returned:
                self.confirms.value(each, Receipt("accepted", 0), last=True)
            else:
                stored = "stored" if self._topology.durable else "accepted"
                self.confirms.value(each, Receipt(stored), last=True)  # type: ignore[arg-type]


class ClientTransport(LinkedTransport[_Session]):
    """The client's end.

    Args:
        queue: where requests and events go; required, as in Nest.
        durable, auto_delete, arguments: of the queue, equal on both ends. Events to a durable
            queue are persistent.
        declare: False leaves queue and exchange alone: they must be there.
        exchange: a topic exchange; patterns are its routing keys (Nest's `wildcards: true`).
        auth: "external" where the TLS certificate says who we are, else user and password.
        heartbeat: seconds; a broker silent for twice as long is taken for dead. 0 is off.
        tls: an `ssl.SSLContext`, or true for one that trusts the system's authorities.
        max_size: bytes of one payload, each way.
    """

    url_path = True
    url_tls = True
    url_login = True

    def __init__(
        self,
        target: Target,
        env: Environment,
        *,
        queue: str | None = None,
        durable: bool = True,
        auto_delete: bool = False,
        arguments: Mapping[str, Any] | None = None,
        declare: bool = True,
        exchange: str | None = None,
        auth: str = "plain",
        heartbeat: int = HEARTBEAT,
        tls: bool | ssl.SSLContext = False,
        max_size: int = DEFAULT_MAX_SIZE,
    ) -> None:
        super().__init__(target, env, max_size)
        self._topology = Topology.checked(queue, exchange, durable, auto_delete, declare, arguments)
        self._login = login(target, tls, auth, heartbeat)
        self._sessions: dict[Connection, _Session] = {}
        self._renew()

    def _renew(self) -> None:
        self._prefix = os.urandom(8).hex().encode()
        self._ids = count(1)

    async def _dial(self) -> _Session:
        connection = await connect(
            self._login, self._max_size + ENVELOPE, self._lost, self._blocked
        )
        session = _Session(
            connection,
            self._topology,
            PendingReplies(self._clock, self._tally),
            PendingReplies(self._clock, Tally()),
            self._codec,
        )
        try:
            await session.prepare()
            connection.ready()
        except BaseException:
            connection.abort("given up while opening")
            raise
        self._sessions[connection] = session
        return session

    def _lost(self, connection: Connection, reason: str) -> None:
        session = self._sessions.pop(connection, None)
        if session is not None:
            session.end()
            self._link.lost(session, reason)

    def _blocked(self, reason: str) -> None:
        text = f"RabbitMQ takes nothing in: {reason}"
        self._notify(Degraded(self.endpoint, text))

    async def request(self, call: Call) -> Reply:
        """See `Transport.request`.

        Raises:
            NoHandlerError: no queue wants it, says RabbitMQ; it was not sent.
        """
        session = self._link.current or await self._link.get(call.connect_deadline, call)
        if session.connection.congested:
            await self._drained(session.connection, call)
        key = b"%b%x" % (self._prefix, next(self._ids))
        frames = session.request(call, key)

        def write() -> None:
            call.sent = True
            session.connection.send(frames)

        return await session.replies.exchange(key, call, write, partial(session.peers.leave, key))

    async def publish(self, call: Call) -> Receipt:
        """See `Transport.publish`: waits for RabbitMQ's confirmation."""
        session = self._link.current or await self._link.get(call.connect_deadline, call)
        if session.connection.congested:
            await self._drained(session.connection, call)
        message_id = fresh_id().encode()
        frames = session.event(call, message_id)
        confirms = session.confirms
        call.sent = True
        tag = session.published(message_id)
        future = confirms.expect(tag, call)
        session.connection.send(frames)
        try:
            receipt: Receipt = (await future).body
            return receipt
        finally:
            confirms.forget(tag)
            del future

    def forget_loop(self) -> None:
        """See `Transport`."""
        super().forget_loop()
        self._sessions.clear()
        self._renew()

    async def aclose(self) -> None:
        """See `Transport.aclose`."""
        session = await self._link.aclose()
        if session is not None:
            self._sessions.pop(session.connection, None)
            session.replies.close()
            session.confirms.fail_all(lambda: ConnectionLost("the client was closed"))
            await session.connection.farewell()
