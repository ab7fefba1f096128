"""One connection to an MQTT broker."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from resilient_client.errors import (
    ConfigurationError,
    ConnectError,
    ConnectionLost,
    ProtocolError,
    ResilientClientError,
)
from resilient_client.transports._socket import SocketProtocol
from resilient_client.transports.mqtt._codec import (
    CONNACK,
    DISCONNECT,
    MAX_PACKET,
    MAXIMUM_PACKET,
    MAXIMUM_QOS,
    OVERSIZED,
    PING,
    PINGRESP,
    PUBACK,
    PUBLISH,
    RECEIVE_MAXIMUM,
    SERVER_KEEP_ALIVE,
    SESSION_EXPIRY,
    SUBACK,
    SUBSCRIPTION_IDS,
    UNSUBACK,
    Answer,
    Delivery,
    PacketReader,
    connect,
    disconnect,
    puback,
    publish,
    subscribe,
    unsubscribe,
)
from resilient_client.transports.mqtt._reasons import connect_error, reason_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from resilient_client.message import Call

log = logging.getLogger("resilient_client.mqtt")

INFLIGHT = 256
"""Messages at QoS 1 that are unacknowledged at once, each way, unless the broker allows fewer."""
_FILTERS = 8  # in one packet, which is what the large public brokers allow


@dataclass(frozen=True, slots=True)
class Login:
    """How to log in, and what to tell the broker.

    Attributes:
        version: the protocol's own number: 5, or 4 for 3.1.1.
        expiry: seconds that the broker keeps the session; 0: as long as the connection.
        limit: bytes of the largest packet that is taken.
    """

    version: int
    client_id: str
    username: str | None
    password: str | None
    keepalive: int
    expiry: int
    limit: int

    def packet(self) -> bytes:
        """The CONNECT."""
        return connect(
            self.version,
            self.client_id,
            self.username,
            self.password,
            self.keepalive,
            self.expiry == 0,
            {
                SESSION_EXPIRY: self.expiry,
                RECEIVE_MAXIMUM: INFLIGHT,
                MAXIMUM_PACKET: min(self.limit, MAX_PACKET),
            },
        )


class Owner(Protocol):
    """The end that a connection belongs to."""

    async def ready(self, connection: Connection) -> None:
        """Subscribe on a new connection, before anybody uses it."""

    def published(self, connection: Connection, message: Delivery) -> None:
        """A message has arrived. One with a packet id wants to be acknowledged, once."""

    def acked(self, connection: Connection, key: Any, answer: Answer | None) -> None:
        """The broker has answered the message that was published with this key; None: it has it."""

    def ended(self, connection: Connection) -> None:
        """The connection has ended; its `reason` says why."""


class Connection(SocketProtocol):
    """One connection: packets in, packets out.

    Attributes:
        reason, reason_code: why it ended, and what the broker gave as a reason, or 0.
        session: whether the broker has kept the session.
        brief: it has lasted for less than half a keepalive.
        largest: bytes of the largest packet that the broker takes, and another end of our settings.
        maximum_qos: the highest that the broker takes.
        numbers: whether the broker says for which subscription it sends a message.
    """

    def __init__(
        self, login: Login, owner: Owner, endpoint: str, ended: Callable[[Connection], None]
    ) -> None:
        super().__init__()
        self.version = login.version
        self.reason = "the broker closed the connection"
        self.reason_code = 0
        self.session = False
        self.largest = MAX_PACKET
        self.maximum_qos = 1
        self.numbers = False
        self.brief = True
        self._login = login
        self._owner = owner
        self._ended = ended
        self._endpoint = endpoint
        self._reader = PacketReader(login.limit)
        self.get_buffer = self._reader.get_buffer  # type: ignore[method-assign]
        self._keepalive = login.keepalive
        self._heard = True
        self._silent = 0
        self._timer: asyncio.TimerHandle | None = None
        self._connack: asyncio.Future[Answer] = self.loop.create_future()
        self._asked: dict[int, tuple[int, asyncio.Future[Answer]]] = {}  # SUBSCRIBE and its kin
        self._last_id = 0
        self._window = INFLIGHT
        self._inflight: dict[int, Any] = {}  # published at QoS 1, by packet id
        self._waiting: dict[Any, tuple[Call, bytes, bytes, bytes | None]] = {}  # for their turn
        self._unacked: deque[int] = deque()  # received at QoS 1, in the order of their coming
        self._ready: dict[int, int] = {}  # those that may be acknowledged, with their reason

    # ------------------------------------------------------------------------------- its beginning

    async def open(self, *, silent: bool = False) -> None:
        """Log in; or, silent, only hear why the broker ends the connection.

        Raises:
            ConfigurationError: the broker refuses us, and will again.
            ConnectError: it refuses us now, or is gone.
        """
        if not silent:
            self.send(self._login.packet())
        answer = await self._connack
        if code := answer.reasons[0]:
            raise connect_error(self._endpoint, code, answer.properties)
        told = answer.properties
        if not (told.get(RECEIVE_MAXIMUM, 1) and told.get(MAXIMUM_PACKET, 1)):  # [3.2.2.3]
            raise ProtocolError(f"{self._endpoint}: the broker says that it takes no message")
        self.session = answer.session
        self.largest = min(told.get(MAXIMUM_PACKET, MAX_PACKET), self._login.limit)
        self.maximum_qos = told.get(MAXIMUM_QOS, 1)
        self.numbers = self.version == 5 and told.get(SUBSCRIPTION_IDS, 1) == 1
        self._window = min(INFLIGHT, told.get(RECEIVE_MAXIMUM, INFLIGHT))
        self._keepalive = told.get(SERVER_KEEP_ALIVE, self._keepalive)
        if self._keepalive:
            self._timer = self.loop.call_later(self._keepalive / 2, self._tick)

    def _tick(self) -> None:
        """Half a keepalive has passed."""
        self.brief = False
        if self._heard or self.paused:
            self._heard, self._silent = False, 0
        else:
            self._silent += 1
            if self._silent >= 2:
                self.break_off(f"the broker has been silent for {self._keepalive} s")
                return
        self.send(PING)
        self._timer = self.loop.call_later(self._keepalive / 2, self._tick)

    # --------------------------------------------------------------------------------- what arrives

    def buffer_updated(self, nbytes: int) -> None:
        self._heard = True
        try:
            if not self._connack.done() and self._reader.first != CONNACK:
                raise ProtocolError(f"{self._endpoint}: what answers there is no MQTT broker")
            for first, body in self._reader.buffer_updated(nbytes):
                if self.closed:
                    return
                kind = first & 0xF0
                if kind == PUBLISH:
                    self._published(first, body)
                elif kind == PUBACK:
                    plain = len(body) == 2  # nothing but success, as most are
                    self._acked(
                        body[0] << 8 | body[1] if plain else 0,
                        None if plain else Answer(first, body, self.version),
                    )
                elif kind in (SUBACK, UNSUBACK):
                    self._answered(Answer(first, body, self.version))
                elif kind == CONNACK:
                    if not self._connack.done():
                        self._connack.set_result(Answer(first, body, self.version))
                elif kind == DISCONNECT:
                    answer = Answer(first, body, self.version)
                    self.reason_code = answer.reasons[0]
                    self.break_off(
                        "the broker ends the connection: "
                        + reason_text(self.reason_code, answer.properties)
                    )
                elif kind != PINGRESP:
                    raise ProtocolError(f"the broker sends a packet of kind {kind >> 4}")
        except ProtocolError as error:
            self._refused(error)
            self.break_off(str(error.args[0]))

    def _answered(self, answer: Answer) -> None:
        wanted, asked = self._asked.pop(answer.packet_id, (0, None))
        if asked is None or len(answer.reasons) < wanted:
            raise ProtocolError("the broker answers what was not asked")
        if not asked.done():
            asked.set_result(answer)

    def _refused(self, error: ResilientClientError) -> None:
        """There will be no CONNACK, if there has been none."""
        if not self._connack.done():
            self._connack.set_exception(error)
            self._connack.exception()  # whoever dialled may have left

    def _published(self, first: int, body: bytes) -> None:
        message = Delivery(first, body, self.version)
        if message.packet_id is not None:
            self._unacked.append(message.packet_id)
        if first & OVERSIZED:
            log.warning("a message to %.200r is larger than max_size=: left out", message.topic)
            self.acknowledge(message)
        else:
            self._owner.published(self, message)

    def acknowledge(self, message: Delivery, reason: int = 0) -> None:
        """Take responsibility for a message; nothing at QoS 0, or when the connection has ended.

        Acknowledgements leave in the order in which the messages came [MQTT 5, 4.6].
        """
        if message.packet_id is None or self.closed:
            return
        self._ready[message.packet_id] = reason if self.version == 5 else 0
        while self._unacked and self._unacked[0] in self._ready:
            packet_id = self._unacked.popleft()
            self.send(puback(packet_id, self._ready.pop(packet_id)))

    def _acked(self, packet_id: int, answer: Answer | None) -> None:
        try:
            key = self._inflight.pop(packet_id if answer is None else answer.packet_id)
        except KeyError:
            raise ProtocolError("the broker acknowledges what was not sent") from None
        if self._waiting and len(self._inflight) < self._window:
            next_key = next(iter(self._waiting))
            self._write(next_key, *self._waiting.pop(next_key))
        self._owner.acked(self, key, answer)

    # -------------------------------------------------------------------------------- what is sent

    def publish(self, topic: bytes, payload: bytes, values: bytes | None) -> None:
        """Write a message at QoS 0; `topic` is a codec's `text`."""
        self.send(publish(topic, payload, None, values))

    def hand_over(
        self, key: Any, call: Call, topic: bytes, payload: bytes, values: bytes | None
    ) -> None:
        """Write a message at QoS 1 as soon as the broker takes another, and set `call.sent` then.

        The owner's `acked` is told of the answer, with the key.
        """
        if len(self._inflight) < self._window:
            self._write(key, call, topic, payload, values)
        else:
            self._waiting[key] = call, topic, payload, values

    def withdraw(self, key: Any) -> bool:
        """Whether that message has not been written; then it will not be."""
        return self._waiting.pop(key, None) is not None

    def _write(
        self, key: Any, call: Call, topic: bytes, payload: bytes, values: bytes | None
    ) -> None:
        packet_id = self._next_id()
        self._inflight[packet_id] = key
        call.sent = True
        self.send(publish(topic, payload, packet_id, values))

    def _next_id(self) -> int:
        packet_id = self._last_id
        while True:
            packet_id = packet_id % 0xFFFF + 1
            if packet_id not in self._inflight and packet_id not in self._asked:
                self._last_id = packet_id
                return packet_id

    async def subscribe(
        self, filters: Sequence[tuple[str, int]], *, numbered: bool = False
    ) -> list[tuple[str, int, Mapping[int, Any]]]:
        """Ask for these topic filters, each with its options, and wait for the broker's answers.

        Args:
            numbered: in version 5, number them from 1, and have each message say whose it is.

        Returns:
            (topic filter, reason code, properties) of each.

        Raises:
            ConnectionLost: the connection ended meanwhile.
        """
        size = 1 if numbered and self.numbers else _FILTERS
        groups = [filters[start : start + size] for start in range(0, len(filters), size)]
        asked = [
            (group, self.ask(group, number if size == 1 else 0))
            for number, group in enumerate(groups, 1)
        ]
        results: list[tuple[str, int, Mapping[int, Any]]] = []
        for group, future in asked:
            answer = await future
            codes = zip(group, answer.reasons, strict=True)
            results += [(topic, code, answer.properties) for (topic, _), code in codes]
        return results

    def ask(self, filters: Sequence[tuple[str, int]], number: int = 0) -> asyncio.Future[Answer]:
        """Ask for these topic filters; the future is the broker's answer, a reason for each.

        Raises:
            ConnectionLost: the connection has ended.
        """
        packet_id, answer = self._ask(len(filters))
        self.send(subscribe(self.version, packet_id, filters, number))
        return answer

    def forget(self, *filters: str) -> asyncio.Future[Answer]:
        """Ask for them no more."""
        packet_id, answer = self._ask(0)
        self.send(unsubscribe(self.version, packet_id, filters))
        return answer

    def _ask(self, reasons: int) -> tuple[int, asyncio.Future[Answer]]:
        if self.closed:
            raise ConnectionLost(self.reason)
        packet_id = self._next_id()
        answer = self.loop.create_future()
        self._asked[packet_id] = reasons, answer
        return packet_id, answer

    # ------------------------------------------------------------------------------------- its end

    def break_off(self, reason: str) -> None:
        """End it at once."""
        if not self.closed:
            self.reason = reason
            self.transport.abort()

    async def leave(self) -> None:
        """End it properly."""
        if not self.closed:
            self.send(disconnect(self.version))
            await self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            self.reason = str(exc)
        super().connection_lost(exc)
        if self._timer is not None:
            self._timer.cancel()
        self._refused(_refusal(self._endpoint, self.version, self.reason, exc))
        for _, asked in self._asked.values():
            if not asked.done():
                asked.set_exception(ConnectionLost(self.reason))
                asked.exception()  # whoever asked may have left
        self._asked.clear()
        self._ended(self)


def _refusal(
    endpoint: str, version: int, reason: str, exc: Exception | None
) -> ResilientClientError:
    """The connection has ended before the broker has said anything."""
    if isinstance(exc, ssl.SSLError):
        return ConfigurationError(
            f"{endpoint} refuses TLS: {exc.reason or exc}",
            hint="it may want a certificate: give tls= an ssl.SSLContext that has loaded one",
        )
    hint = "a broker that knows no MQTT 5 may do so: try version=3.1.1" if version == 5 else None
    return ConnectError(f"{endpoint}: {reason}", hint=hint)
