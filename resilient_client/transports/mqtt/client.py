"""The client's end of mqtt://."""

from __future__ import annotations

import asyncio
import ssl
from functools import partial
from itertools import count
from math import ceil
from os import urandom
from typing import TYPE_CHECKING, Any

from resilient_client.context import PEER_HEADER
from resilient_client.errors import (
    ConfigurationError,
    ConnectError,
    ConnectionLost,
    NoHandlerError,
    PayloadError,
    ProtocolError,
    ResilientClientError,
)
from resilient_client.message import ACCEPTED, WRITTEN, Receipt
from resilient_client.patterns import pattern_json
from resilient_client.transports._base import DEFAULT_MAX_SIZE
from resilient_client.transports._link import LinkedTransport
from resilient_client.transports._nest import CANCEL_ROUTE, Peers, cancel_packet, deliver
from resilient_client.transports._packets import event_packet, read_response, request_packet
from resilient_client.transports._replies import PendingReplies
from resilient_client.transports.mqtt._codec import (
    MESSAGE_EXPIRY,
    Answer,
    Delivery,
    text,
    topic_text,
    user_properties,
)
from resilient_client.transports.mqtt._connection import Connection
from resilient_client.transports.mqtt._connector import DEFAULT_KEEPALIVE, Connector, checked_qos
from resilient_client.transports.mqtt._reasons import publish_error, subscribe_error

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from resilient_client.message import Call, Reply
    from resilient_client.transports._base import Environment, Target

TOPICS = 1000
"""Topics that are remembered, their replies subscribed to; beyond that the oldest is given up."""
_LONGEST_EXPIRY = 0xFFFFFFFF  # seconds
_CANCEL_TOPIC = text(CANCEL_ROUTE)
_EXPIRY = bytes((MESSAGE_EXPIRY,))
_NOT_OURS = ("$share/", "$SYS/")
"""What no client publishes to: a subscription, and what the broker itself says."""
_TOPIC_RULE = (
    "a topic is one to 65535 bytes, without + and #, and does not begin with $share/ or $SYS/"
)


class _Topic:
    """A route, as the address of calls.

    Attributes:
        json: the pattern, when that is a string.
        users: calls that are under way.
        asked: the connection on which the reply topic was asked for, and the broker's answer.
        subscribed: the connection on which the broker has confirmed it.
    """

    __slots__ = ("asked", "json", "raw", "reply", "subscribed", "users")

    def __init__(self, route: str) -> None:
        if not route or "+" in route or "#" in route or route.startswith(_NOT_OURS):
            raise ConfigurationError(f"{route!r} is no topic to publish to", hint=_TOPIC_RULE)
        self.raw = topic_text(route)
        self.json = pattern_json(route)
        self.reply = f"{route}/reply"
        text(self.reply)
        self.users = 0
        self.asked: tuple[Connection, asyncio.Future[Answer]] | None = None
        self.subscribed: Connection | None = None


class ClientTransport(LinkedTransport[Connection]):
    """The client's end: one connection, calls matched by globally unique ids on shared topics.

    Args:
        version: 5, or 3.1.1: of the protocol.
        qos: 1 (the broker says that it has a message, and in version 5 that nobody wants it),
            or 0.
        client_id: what the broker knows us by; by default one that nobody else has.
        keepalive: seconds of silence after which the broker is taken for dead; 0: never.
        tls: an `ssl.SSLContext`, or true for one that trusts the system's authorities; `mqtts://`
            is true.
        max_size: bytes of one payload, each way.
    """

    url_tls = True
    url_login = True

    def __init__(
        self,
        target: Target,
        env: Environment,
        *,
        version: int | str = 5,
        qos: int = 1,
        client_id: str | None = None,
        keepalive: int = DEFAULT_KEEPALIVE,
        tls: bool | ssl.SSLContext = False,
        max_size: int = DEFAULT_MAX_SIZE,
    ) -> None:
        super().__init__(target, env, max_size)
        self._qos = checked_qos(qos)
        self._connector = Connector(
            self,
            target,
            version=version,
            client_id=client_id,
            keepalive=keepalive,
            expiry=0,
            tls=tls,
            max_size=max_size,
        )
        self._new = self._connector.version == 5
        self._ids = count()
        self._prefix_ids()
        self._topics: dict[str, _Topic] = {}
        self._replies = PendingReplies(env.clock, self._tally)
        self._peers = Peers(self._tell)  # all on one topic

    def _prefix_ids(self) -> None:
        """Reply topics are shared with other clients, and with other processes of this one."""
        self._prefix = urandom(8).hex()
        self._mark = self._prefix.encode()

    # ------------------------------------------------------------------------------ the connection

    async def _dial(self) -> Connection:
        return await self._connector.connect()

    async def ready(self, connection: Connection) -> None:
        """Subscribe again to the reply topics."""
        if self._qos > connection.maximum_qos:
            raise ConfigurationError("the broker takes no messages at QoS 1", hint="use qos=0")
        self._peers = Peers(self._tell)
        topics = [topic for topic in self._topics.values() if topic.subscribed is not None]
        answers = await connection.subscribe([(topic.reply, 0) for topic in topics])
        for topic, (_, code, _) in zip(topics, answers, strict=True):
            # one that is refused now is asked for again by its next call, which is told
            topic.subscribed = connection if code < 0x80 else None

    def published(self, connection: Connection, message: Delivery) -> None:
        """A reply, most likely: of ours, or of another caller of the same pattern."""
        if message.packet_id is not None:
            connection.acknowledge(message)
        if self._mark not in message.payload:
            return
        try:
            response = read_response(message.payload, by_id=True)
        except ProtocolError:
            self._tally.orphans += 1
            return
        if PEER_HEADER in response.metadata:
            self._peers.meet(_CANCEL_TOPIC)
        deliver(self._replies, response.id, response, self._codec)

    def acked(self, connection: Connection, key: Any, answer: Answer | None) -> None:
        """The broker has a request or an event, or refuses it."""
        error = None
        if answer is not None:
            error = publish_error(answer.reasons[0], answer.properties)
        if error is not None:
            self._replies.fail(key, error)
        elif type(key) is int:  # an event waits for it
            self._replies.end(key)

    def ended(self, connection: Connection) -> None:
        """Nothing that is pending will be answered."""
        if connection is self._link.current:
            self._replies.fail_all(lambda: ConnectionLost(connection.reason))
            self._link.lost(connection, connection.reason)

    # ---------------------------------------------------------------------------------- the calls

    async def request(self, call: Call) -> Reply:
        """See `Transport.request`."""
        topic = self._topics.get(call.route) or self._new_topic(call.route)
        topic.users += 1
        try:
            return await self._request(topic, call)
        finally:
            topic.users -= 1

    async def _request(self, topic: _Topic, call: Call) -> Reply:
        connection = self._link.current or await self._link.get(call.connect_deadline, call)
        if topic.subscribed is not connection or connection.congested:
            await self._prepared(call, connection, topic)
        key = self._prefix + str(next(self._ids))
        if not self._peers.met:
            call.metadata[PEER_HEADER] = key
        pattern = topic.json if type(call.pattern) is str else pattern_json(call.pattern)
        if self._new:
            left = call.attempt_deadline - self._clock.now()
            values = user_properties(call.metadata)
            if left < _LONGEST_EXPIRY:
                values += _EXPIRY + max(1, ceil(left)).to_bytes(4, "big")
            payload = request_packet(pattern, call.body, None, key)
        else:
            values = None
            payload = request_packet(pattern, call.body, call.metadata, key)
        sent, call.sent = call.sent, False
        try:
            return await self._replies.exchange(
                key,
                call,
                partial(self._write, connection, key, call, topic, payload, values),
                partial(self._leave, connection, key),
            )
        except ResilientClientError as error:
            raise _with_sent(error, connection, key, call) from None
        finally:
            call.sent = call.sent or sent

    def publish(self, call: Call) -> Receipt | Awaitable[Receipt]:
        """See `Transport.publish`."""
        topic = self._topics.get(call.route) or self._new_topic(call.route)
        connection = self._link.current
        if self._qos or connection is None or connection.congested:
            return self._publish(topic, call)
        return self._written(connection, topic, call)

    async def _publish(self, topic: _Topic, call: Call) -> Receipt:
        connection = self._link.current or await self._link.get(call.connect_deadline, call)
        if connection.congested:
            await self._prepared(call, connection)
        if not self._qos:
            return self._written(connection, topic, call)
        key = next(self._ids)
        sent, call.sent = call.sent, False
        future = self._replies.expect(key, call)
        try:
            self._written(connection, topic, call, key)
            await future
        except NoHandlerError:
            return Receipt("accepted", 0)
        except asyncio.CancelledError:
            connection.withdraw(key)
            raise
        except ResilientClientError as error:
            raise _with_sent(error, connection, key, call) from None
        finally:
            call.sent = call.sent or sent
            self._replies.forget(key)
            del future
        return ACCEPTED

    def _written(self, connection: Connection, topic: _Topic, call: Call, key: int = 0) -> Receipt:
        values = user_properties(call.metadata) if self._new else None
        metadata = None if self._new else call.metadata
        pattern = topic.json if type(call.pattern) is str else pattern_json(call.pattern)
        payload = event_packet(pattern, call.body, metadata)
        self._write(connection, key, call, topic, payload, values)
        return WRITTEN

    def _write(
        self,
        connection: Connection,
        key: str | int,
        call: Call,
        topic: _Topic,
        payload: bytes,
        values: bytes | None,
    ) -> None:
        """Write at the quality of service that is wanted; noted in `call.sent`, then or later."""
        size = len(topic.raw) + len(payload) + len(values or b"") + 16
        if size > connection.largest:
            raise PayloadError(
                f"a packet of {size} bytes is larger than the broker takes, or max_size=: "
                f"{connection.largest}",
                hint="send less, or raise the broker's limit, or max_size= on both ends",
            )
        if self._qos:
            connection.hand_over(key, call, topic.raw, payload, values)
        else:
            call.sent = True
            connection.publish(topic.raw, payload, values)

    def _new_topic(self, route: str) -> _Topic:
        if len(self._topics) >= TOPICS:
            for old, topic in self._topics.items():
                if not topic.users:
                    del self._topics[old]
                    if topic.subscribed is not None and not topic.subscribed.closed:
                        topic.subscribed.forget(topic.reply)
                    break
        topic = self._topics[route] = _Topic(route)
        return topic

    async def _prepared(
        self, call: Call, connection: Connection, topic: _Topic | None = None
    ) -> None:
        """Wait for the reply topic's subscription, and until the broker has read enough."""
        async with self._before_sending(call):
            if topic is not None and topic.subscribed is not connection:
                await self._subscribe(topic, connection)
            await connection.drained()

    async def _subscribe(self, topic: _Topic, connection: Connection) -> None:
        """Ask once for all who wait."""
        if topic.asked is None or topic.asked[0] is not connection:
            topic.asked = connection, connection.ask([(topic.reply, 0)])
        answer = await asyncio.shield(topic.asked[1])
        code = answer.reasons[0]
        if code >= 0x80:
            topic.asked = None
            raise subscribe_error(topic.reply, connection.version, code, answer.properties)
        topic.subscribed = connection

    def _leave(self, connection: Connection, key: str) -> None:
        """The caller of this has left: take it back, or tell the peer."""
        if not connection.withdraw(key):
            self._peers.leave(key)

    def _tell(self, topic: bytes, key: str) -> None:
        connection = self._link.current
        if connection is not None:
            connection.publish(topic, cancel_packet(key), b"" if self._new else None)

    # ------------------------------------------------------------------------------------ its end

    def forget_loop(self) -> None:
        """See `Transport`."""
        super().forget_loop()
        self._connector.renew()
        self._prefix_ids()
        self._topics.clear()
        self._replies = PendingReplies(self._clock, self._tally)

    async def aclose(self) -> None:
        """See `Transport.aclose`."""
        self._replies.close()  # while there is somebody to tell
        connection = await self._link.aclose()
        if connection is not None:
            await connection.leave()


def _with_sent(
    error: ResilientClientError, connection: Connection, key: str | int, call: Call
) -> ResilientClientError:
    """The error to raise for one that ended a call: it, and `call.sent`, say what was sent.

    A message at QoS 1 may still wait here for its turn; one that the broker refuses reached nobody.
    """
    connection.withdraw(key)
    if not call.sent:  # it was still waiting for its turn
        if isinstance(error, ConnectionLost):
            return ConnectError(error.args[0])
        error.sent = False
    elif not error.sent:
        call.sent = False
    return error
