"""The server's end of mqtt://."""

from __future__ import annotations

import asyncio
import logging
import ssl
from typing import TYPE_CHECKING, Any

from resilient_client.errors import (
    ConfigurationError,
    ConnectionLost,
    ProtocolError,
    RemoteError,
    wire_error,
)
from resilient_client.events import Degraded
from resilient_client.message import Message
from resilient_client.transports._backlog import Seldom
from resilient_client.transports._base import DEFAULT_MAX_SIZE
from resilient_client.transports._link import ServerLink
from resilient_client.transports._metadata import beside, sanitised
from resilient_client.transports._nest import (
    CANCEL_ROUTE,
    answer_by_broker,
    greeting_packet,
    is_ours,
    reply_packet,
    take_cancel,
)
from resilient_client.transports._packets import error_packet, read_request, text_event
from resilient_client.transports.mqtt._codec import Answer, Delivery
from resilient_client.transports.mqtt._connection import Connection
from resilient_client.transports.mqtt._connector import DEFAULT_KEEPALIVE, Connector, checked_qos
from resilient_client.transports.mqtt._filters import Filters, checked_share, topic_of
from resilient_client.transports.mqtt._reasons import subscribe_error

if TYPE_CHECKING:
    from collections.abc import Iterable

    from resilient_client.message import Reply
    from resilient_client.transports._base import App, Subscription, Target

log = logging.getLogger("resilient_client.mqtt")

_LESS = "the broker gives no messages at QoS 1"


class ServerListener:
    """The server's end: one connection, a subscription for each pattern.

    Args:
        version: 5, or 3.1.1: of the protocol.
        qos: at which events are asked for: 1 (acknowledged when their handlers have ended), or 0.
            Requests are asked for at 0: their replies prove more.
        share: the group of replicas that share the work; without it each gets everything.
        client_id: what the broker knows us by; by default one that nobody else has.
        session_expiry: seconds for which the broker keeps events while we are away; needs
            `client_id`, and in version 3.1.1 means for as long as the broker likes.
        keepalive: seconds of silence after which the broker is taken for dead; 0: never.
        tls: an `ssl.SSLContext`, or true for one that trusts the system's authorities; `mqtts://`
            is true.
        max_size: bytes of one payload, each way.
    """

    url_tls = True
    url_login = True

    handler_options = frozenset({"share", "qos"})

    def __init__(
        self,
        target: Target,
        app: App,
        *,
        version: int | str = 5,
        qos: int = 1,
        share: str | None = None,
        client_id: str | None = None,
        session_expiry: int = 0,
        keepalive: int = DEFAULT_KEEPALIVE,
        tls: bool | ssl.SSLContext = False,
        max_size: int = DEFAULT_MAX_SIZE,
    ) -> None:
        self.address = str(target)
        self._app = app
        self._qos = checked_qos(qos)
        self._share = checked_share(share)
        self._lasting = session_expiry > 0
        self._connector = Connector(
            self,
            target,
            version=version,
            client_id=client_id,
            keepalive=keepalive,
            expiry=session_expiry,
            tls=tls,
            max_size=max_size,
        )
        self._link = ServerLink[Connection](self.address, self._connector.connect, app)
        self._new = self._connector.version == 5
        self._slots = app.slots(self._pause, self._resume, farewell=True)
        self._paused = self._stopping = self._been_here = False
        self._slow = Seldom(app.clock)
        self._filters = self._filters_of(())
        self._cancellable = False  # the broker lets us hear cancel messages

    # --------------------------------------------------------------------------------- its patterns

    def check_pattern(self, handler: Subscription) -> None:
        """Refuse a pattern that no subscription can have, when it is registered."""
        checked_share(handler.extras.get("share"))
        checked_qos(handler.extras.get("qos", self._qos))
        topic_of(handler.route)

    def _filters_of(self, handlers: Iterable[Subscription]) -> Filters:
        return Filters(handlers, qos=self._qos, share=self._share, version=self._connector.version)

    # --------------------------------------------------------------------------------- its messages

    def published(self, connection: Connection, message: Delivery) -> None:
        """A message has arrived."""
        topic = message.topic
        if topic == CANCEL_ROUTE:
            self._cancel(connection, message)
            return
        found = self._filters.find(topic)
        try:
            request = read_request(message.payload)
        except ProtocolError:
            request = text_event(message.payload)
        if found is None or found.not_for_us(message, request.external):
            connection.acknowledge(message)
            return
        headers = request.metadata
        if message.headers:
            headers = beside(sanitised(message.headers), headers)
        incoming = Message(
            found.route,
            request.data,
            headers,
            request.id,
            received=self._app.clock.now(),
            subject=found.subject,
            raw=message,
        )
        if request.id is not None:
            if message.packet_id is not None:
                connection.acknowledge(message)
            if not message.retained:  # of a caller who has long since left
                self._request(connection, incoming, found.reply, is_ours(headers, request.id))
        elif self._stopping and self._lasting:
            return  # unacknowledged: it comes again
        elif message.packet_id is None:
            self._app.accept(incoming, None, self._slots, "mqtt")
        else:
            self._app.accept(incoming, _acknowledge(connection, message), self._slots, "mqtt")

    def _request(
        self,
        connection: Connection,
        message: Message,
        reply_topic: bytes,
        ours: bool,  # noqa: FBT001
    ) -> None:
        id_json: bytes = message.id
        if ours and self._cancellable:
            self._put(connection, reply_topic, greeting_packet(id_json))

        async def write(connection: Connection, data: bytes) -> None:
            if connection.congested or connection.closed:
                await connection.drained()
            self._put(connection, reply_topic, data, id_json)

        async def respond(reply: Reply) -> None:
            if reply.items is not None:
                await answer_by_broker(reply, id_json, self._connected, write, self._app.codec)
                return
            now = self._link.current
            if now is None or now.congested:
                now = await self._connected()
            self._put(now, reply_topic, reply_packet(reply, id_json, self._app.codec), id_json)

        self._app.accept(message, respond, self._slots, "mqtt")

    async def _connected(self) -> Connection:
        """A connection that can be written to."""
        connection = await self._link.soon()
        await connection.drained()
        return connection

    def _put(
        self, connection: Connection, topic: bytes, payload: bytes, id_json: bytes | None = None
    ) -> None:
        if id_json is not None and len(topic) + len(payload) + 8 > connection.largest:
            large = RemoteError(
                "the reply is larger than the broker takes, or max_size=", status=500
            )
            payload = error_packet(id_json, self._app.codec.encode(wire_error(large)))
        connection.publish(topic, payload, b"" if self._new else None)

    def _cancel(self, connection: Connection, message: Delivery) -> None:
        connection.acknowledge(message)
        take_cancel(message.payload, self._slots)

    # ------------------------------------------------------------------------------- its connection

    async def ready(self, connection: Connection) -> None:
        """Subscribe on a new connection."""
        if (
            any(options & 1 for options in self._filters.asked.values())
            and not connection.maximum_qos
        ):
            raise ConfigurationError(_LESS, hint="use qos=0")
        asked = [*self._filters.asked.items(), (CANCEL_ROUTE, 0)]
        # a message that fits several patterns comes once for each
        *answers, (_, cancel, _) = await connection.subscribe(
            asked, numbered=bool(self._filters.wild)
        )
        self._cancellable = cancel < 0x80
        for topic, code, told in answers:
            if code >= 0x80:
                raise subscribe_error(topic, connection.version, code, told)
            if code < self._filters.asked[topic] & 1:
                raise ConfigurationError(f"{_LESS} on {topic}", hint="use qos=0")
        if self._paused:
            connection.pause()
        if self._lasting and self._been_here and not connection.session:
            self._tell("the broker has not kept the session: events of the absence are lost")
        self._been_here = True

    def acked(self, connection: Connection, key: Any, answer: Answer | None) -> None:
        """Nothing is published at QoS 1."""

    def ended(self, connection: Connection) -> None:
        """Another is made."""
        self._link.lost(connection, connection.reason)

    def _tell(self, reason: str) -> None:
        self._app.notify(Degraded(self.address, reason))

    def _pause(self) -> None:
        self._paused = True
        if self._link.current is not None:
            self._link.current.pause()
        if self._slow.due():  # it comes and goes with every handler that ends
            self._tell("the handlers are too slow: nothing more is read for now")

    def _resume(self) -> None:
        self._paused = False
        if self._link.current is not None:
            self._link.current.resume()

    async def start(self) -> None:
        """See `ServerListener.start`."""
        self._stopping = self._paused = self._been_here = False
        self._filters = self._filters_of(self._app.subscriptions())
        await self._link.start()

    async def stop(self) -> None:
        """See `ServerListener.stop`."""
        self._stopping = True
        connection = self._link.current
        if connection is None or self._lasting or not self._filters.asked:
            return
        try:
            async with asyncio.timeout(1.0):
                await connection.forget(*self._filters.asked)
        except (TimeoutError, ConnectionLost):
            log.debug("%s: the broker did not confirm that we stop", self.address)

    async def aclose(self) -> None:
        """See `ServerListener.aclose`."""
        connection = await self._link.aclose()
        self._slots.drop()
        if connection is not None:
            await connection.leave()


def _acknowledge(connection: Connection, message: Delivery) -> Any:
    """Called when the handlers of an event have ended, well or not: MQTT cannot give it back."""

    async def respond(reply: Reply) -> None:
        connection.acknowledge(message, 0 if reply.error is None else 0x83)

    return respond
