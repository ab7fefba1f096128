"""MQTT's control packets as bytes, in versions 3.1.1 and 5.

A client's half of the protocol at QoS 0 and 1. Numbers in brackets are sections of the OASIS
standard for version 5; version 3.1.1 differs by having no properties and fewer reason codes.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from resilient_client.errors import ConfigurationError, PayloadError, ProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

MAX_PACKET = 268_435_455  # [1.5.5] what four bytes of length can say
ENVELOPE = 128 * 1024
"""Bytes that a packet may be larger than the largest payload: topic, properties, Nest's packet."""

# the first byte of each packet, [2.1.2] and [2.1.3]
CONNECT, CONNACK, PUBLISH, PUBACK = 0x10, 0x20, 0x30, 0x40
SUBSCRIBE, SUBACK, UNSUBSCRIBE, UNSUBACK = 0x82, 0x90, 0xA2, 0xB0
PINGREQ, PINGRESP, DISCONNECT = 0xC0, 0xD0, 0xE0
_BUFFER = 64 * 1024
OVERSIZED = 0x100
"""Marks a PUBLISH larger than is taken: only the beginning of its body is there."""

# properties, [2.2.2.2]
MESSAGE_EXPIRY = 0x02
SUBSCRIPTION_ID = 0x0B
SESSION_EXPIRY = 0x11
SERVER_KEEP_ALIVE = 0x13
SERVER_REFERENCE = 0x1C
REASON_STRING = 0x1F
RECEIVE_MAXIMUM = 0x21
MAXIMUM_QOS = 0x24
USER_PROPERTY = 0x26
MAXIMUM_PACKET = 0x27
SUBSCRIPTION_IDS = 0x29
_WIDTHS = {  # of numbers, in bytes; 0 is a length of their own
    0x01: 1, 0x02: 4, 0x0B: 0, 0x11: 4, 0x13: 2, 0x17: 1, 0x18: 4, 0x19: 1, 0x21: 2, 0x22: 2,
    0x23: 2, 0x24: 1, 0x25: 1, 0x27: 4, 0x28: 1, 0x29: 1, 0x2A: 1,
}  # fmt: skip
_TEXTS = frozenset({0x03, 0x08, 0x12, 0x15, 0x1A, 0x1C, 0x1F})
_BINARY = frozenset({0x09, 0x16})
_NO_CHARACTERS = "".join(chr(plane << 16 | 0xFFFE | last) for plane in range(17) for last in (0, 1))
_unfit = re.compile(f"[\x00-\x1f\x7f-\x9f\ufdd0-\ufdef{_NO_CHARACTERS}]").search


# ---- pieces ----


def varint(number: int) -> bytes:
    """A variable byte integer [1.5.5]."""
    if number < 0x80:
        return bytes((number,))
    digits = bytearray()
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    digits.append(number)
    return bytes(digits)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The number that begins there, and where what follows it does."""
    number = shift = 0
    while shift < 28 and at < len(data):
        byte = data[at]
        number |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return number, at
        shift += 7
    raise ProtocolError("a malformed length in an MQTT packet")


def text(value: str) -> bytes:
    """A string with its length [1.5.4].

    Raises:
        ConfigurationError: it is too long, or holds what MQTT's strings must not.
    """
    try:
        raw = value.encode()
        size = len(raw).to_bytes(2, "big")
    except (UnicodeEncodeError, OverflowError):
        raise ConfigurationError(f"{value[:40]!r}... is too long or no text for MQTT") from None
    if b"\0" in raw:
        raise ConfigurationError(f"{value!r} holds the character U+0000, which MQTT forbids")
    return size + raw


def topic_text(topic: str) -> bytes:
    """A topic or filter of ours, as `text`.

    Raises:
        ConfigurationError: it cannot be one, or holds what a broker may end the connection for
            [1.5.4].
    """
    raw = text(topic)
    if _unfit(topic):
        raise ConfigurationError(
            f"{topic[:40]!r} holds a control character, for which a broker ends the connection"
        )
    return raw


def _binary(data: bytes, at: int) -> tuple[bytes, int]:
    start = at + 2
    stop = start + int.from_bytes(data[at:start], "big")
    if stop > len(data) or start > len(data):
        raise ProtocolError("an MQTT packet ends inside a string")
    return data[start:stop], stop


def properties(values: Mapping[int, int]) -> bytes:
    """Numbers as properties, with their length."""
    body = b"".join(
        bytes((name,)) + value.to_bytes(_WIDTHS[name], "big") for name, value in values.items()
    )
    return varint(len(body)) + body


@lru_cache(maxsize=256)
def _user_property(name: str) -> bytes:
    return b"\x26" + text(name)


def user_properties(metadata: Mapping[str, str]) -> bytes:
    """Metadata as user properties, without a length.

    Raises:
        PayloadError: a value is longer than 65535 bytes, or holds a tab, for which a broker ends
            the connection. (No header has another control character.)
    """
    parts: list[bytes] = []
    for name, value in metadata.items():
        raw = value.encode(errors="replace")
        if len(raw) > 0xFFFF:
            raise PayloadError(f"the header {name!r} is too long for MQTT")
        if b"\t" in raw:
            raise PayloadError(f"the header {name!r} holds a tab, which MQTT does not carry")
        parts += (_user_property(name), len(raw).to_bytes(2, "big"), raw)
    return b"".join(parts)


def read_properties(data: bytes, at: int) -> tuple[dict[int, Any], int]:
    """The properties that begin there, and where what follows them does.

    User properties are a dict of strings under `USER_PROPERTY`; bytes that are no text count as
    replacement characters.
    """
    size, at = _read_varint(data, at)
    stop = at + size
    found: dict[int, Any] = {}
    pairs: dict[str, str] = {}
    try:
        while at < stop:
            name = data[at]
            at += 1
            if name == USER_PROPERTY:
                key, at = _binary(data, at)
                value, at = _binary(data, at)
                pairs = found.setdefault(USER_PROPERTY, {})
                pairs[key.decode(errors="replace")] = value.decode(errors="replace")
            elif name in _WIDTHS:
                if width := _WIDTHS[name]:
                    number, at = int.from_bytes(data[at : at + width], "big"), at + width
                else:
                    number, at = _read_varint(data, at)
                if name == SUBSCRIPTION_ID:
                    found.setdefault(name, []).append(number)
                else:
                    found[name] = number
            elif name in _TEXTS or name in _BINARY:
                raw, at = _binary(data, at)
                found[name] = raw.decode(errors="replace") if name in _TEXTS else raw
            else:
                raise ProtocolError(f"an MQTT packet with the unknown property {name:#04x}")
    except IndexError:
        at = -1
    if at != stop or stop > len(data):
        raise ProtocolError("an MQTT packet's properties end inside one of them")
    if pairs:
        found[USER_PROPERTY] = pairs
    return found, stop


# ---- what is written ----


def _packet(first: int, body: bytes) -> bytes:
    return bytes((first,)) + varint(len(body)) + body


def connect(
    version: int,
    client_id: str,
    username: str | None,
    password: str | None,
    keepalive: int,
    clean: bool,  # noqa: FBT001
    values: Mapping[int, int],
) -> bytes:
    """Log in [3.1]: `values` are the properties of version 5."""
    flags = clean << 1 | (password is not None) << 6 | (username is not None) << 7
    body = b"\0\4MQTT" + bytes((version, flags)) + keepalive.to_bytes(2, "big")
    if version == 5:
        body += properties(values)
    body += text(client_id)
    if username is not None:
        body += text(username)
    if password is not None:
        raw = password.encode()
        if len(raw) > 0xFFFF:
            raise ConfigurationError("a password of more than 65535 bytes")
        body += len(raw).to_bytes(2, "big") + raw
    return _packet(CONNECT, body)


def publish(
    topic: bytes, payload: bytes, packet_id: int | None = None, values: bytes | None = None
) -> bytes:
    """A message [3.3], at QoS 1 when it has an id; `topic` is a `text`.

    Args:
        values: the properties of version 5, without their length; None in version 3.1.1.
    """
    identifier = b"" if packet_id is None else packet_id.to_bytes(2, "big")
    if values is None:
        size, length = len(topic) + len(identifier) + len(payload), b""
    else:
        length = varint(len(values))
        size = len(topic) + len(identifier) + len(length) + len(values) + len(payload)
    first = b"\x30" if packet_id is None else b"\x32"
    return b"".join((first, varint(size), topic, identifier, length, values or b"", payload))


def puback(packet_id: int, reason: int = 0) -> bytes:
    """Take responsibility for a message [3.4]; `reason` for version 5 only."""
    identifier = packet_id.to_bytes(2, "big")
    return _packet(PUBACK, identifier + bytes((reason,)) if reason else identifier)


def subscribe(
    version: int, packet_id: int, filters: Iterable[tuple[str, int]], subscription_id: int = 0
) -> bytes:
    """Ask for these topic filters, each with its options [3.8]."""
    body = packet_id.to_bytes(2, "big")
    if version == 5:
        told = b"\x0b" + varint(subscription_id) if subscription_id else b""
        body += varint(len(told)) + told
    body += b"".join(text(topic) + bytes((options,)) for topic, options in filters)
    return _packet(SUBSCRIBE, body)


def unsubscribe(version: int, packet_id: int, filters: Iterable[str]) -> bytes:
    """Ask for them no more [3.10]."""
    none = b"\0" if version == 5 else b""
    body = packet_id.to_bytes(2, "big") + none + b"".join(text(topic) for topic in filters)
    return _packet(UNSUBSCRIBE, body)


def disconnect(version: int, reason: int = 0) -> bytes:
    """Take leave [3.14]."""
    return _packet(DISCONNECT, bytes((reason,)) if version == 5 and reason else b"")


PING = bytes((PINGREQ, 0))


# ---- what is read ----


class Delivery:
    """A PUBLISH as it arrived.

    Attributes:
        packet_id: to acknowledge it with; None at QoS 0.
        headers: the user properties.
        subscriptions: the identifiers of the subscriptions it was sent for, where told.
    """

    __slots__ = ("duplicate", "headers", "packet_id", "payload", "retained", "subscriptions",
                 "topic")  # fmt: skip

    def __init__(self, first: int, body: bytes, version: int) -> None:
        """Read it [3.3]; raises `ProtocolError`."""
        if len(body) < 3:
            raise ProtocolError("a message without a topic")
        at = 2 + (body[0] << 8 | body[1])
        if not 2 < at <= len(body):
            raise ProtocolError("an MQTT packet ends inside a string")
        self.topic = body[2:at].decode(errors="replace")
        self.packet_id: int | None = None
        qos = first >> 1 & 3
        if qos == 1:
            self.packet_id = int.from_bytes(body[at : at + 2], "big")
            at += 2
        elif qos:
            raise ProtocolError("a message at a QoS that was not asked for")
        if self.packet_id == 0:
            raise ProtocolError("a message with the packet id 0")
        self.retained = bool(first & 1)
        self.duplicate = bool(first & 8)
        self.headers: Mapping[str, str] = {}
        self.subscriptions: Sequence[int] = ()
        if version == 5 and not first & OVERSIZED:
            if at < len(body) and body[at] == 0:
                at += 1
            else:
                found, at = read_properties(body, at)
                self.headers = found.get(USER_PROPERTY, self.headers)
                self.subscriptions = found.get(SUBSCRIPTION_ID, ())
        self.payload = body[at:]


class Answer:
    """A CONNACK, PUBACK, SUBACK, UNSUBACK or DISCONNECT as it arrived.

    Attributes:
        packet_id: what it answers; 0 where nothing is asked by number.
        session: whether the broker has kept the session (of a CONNACK).
        reasons: one reason code; several of a SUBACK.
        properties: in version 5.
    """

    __slots__ = ("packet_id", "properties", "reasons", "session")

    def __init__(self, first: int, body: bytes, version: int) -> None:
        """Read it; raises `ProtocolError`."""
        kind, at, size = first & 0xF0, 0, len(body)
        self.packet_id = 0
        self.session = False
        self.properties: dict[int, Any] = {}
        if kind == CONNACK:
            if size < 2:
                raise ProtocolError("a CONNACK without its code")
            self.session, self.reasons = bool(body[0] & 1), body[1:2]
            if version == 5 and size > 2:  # a broker that knows no version 5 sends two bytes
                self.properties, at = read_properties(body, 2)
            return
        if kind != DISCONNECT:
            if size < 2:
                raise ProtocolError("an acknowledgement without its packet id")
            self.packet_id, at = int.from_bytes(body[:2], "big"), 2
        if kind in (PUBACK, DISCONNECT):
            self.reasons = body[at : at + 1] or b"\0"
            if size > at + 1:
                self.properties, at = read_properties(body, at + 1)
            return
        if version == 5:
            self.properties, at = read_properties(body, at)
        self.reasons = body[at:]


class PacketReader:
    """Takes packets out of a byte stream, for `asyncio.BufferedProtocol`.

    The receive buffer is used over and over; it grows with what has arrived of a large packet,
    never by what was announced. A message above `limit` bytes is passed over as it arrives, for
    whoever published it is not the broker that sends it: closing would let a stranger cut us off.
    """

    __slots__ = ("_buffer", "_end", "_limit", "_need", "_skip", "_start", "_view")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray(_BUFFER)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0
        self._need = 2  # bytes until there is something to do
        self._skip = 0  # bytes of a message that is passed over

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go: never empty."""
        if len(self._buffer) - self._end < 4096:
            self._make_room()
        if len(self._buffer) > _BUFFER:  # what follows a large message may be very many small ones
            missing = self._need - (self._end - self._start)
            return self._view[self._end : self._end + max(_BUFFER, missing)]
        return self._view[self._end :] if self._end else self._view

    @property
    def first(self) -> int:
        """The first byte that has been received and not taken."""
        return self._buffer[self._start]

    def buffer_updated(self, nbytes: int) -> list[tuple[int, bytes]]:
        """`nbytes` have arrived: the packets that are complete now, as first byte and body.

        Raises:
            ProtocolError: what arrives is malformed, or no message and too large.
        """
        self._end += nbytes
        if self._skip:
            passed = min(self._skip, self._end - self._start)
            self._skip -= passed
            self._start += passed
        packets: list[tuple[int, bytes]] = []
        if self._end - self._start >= self._need:
            data = self._view[self._start : self._end].tobytes()
            self._start += self._take(data, packets)
        if self._start >= self._end:
            self._start = self._end = 0
            if len(self._buffer) > _BUFFER:
                self._buffer = bytearray(_BUFFER)
                self._view = memoryview(self._buffer)
        return packets

    def _take(self, data: bytes, packets: list[tuple[int, bytes]]) -> int:
        """Take what is complete; how many bytes that was."""
        at, size = 0, len(data)
        self._need = 2
        while size - at >= 2:
            length, body = data[at + 1], at + 2
            if length >= 0x80:
                if size - at < 5 and data[size - 1] >= 0x80:
                    self._need = size - at + 1  # inside the length
                    break
                length, body = _read_varint(data, at + 1)
            stop = body + length
            if length > self._limit:
                start = self._beginning(data, at, body, length)
                if start:
                    self._need = start
                    break
                packets.append((data[at] | OVERSIZED, data[body : min(stop, body + 0x10004)]))
                self._skip = max(0, stop - size)
                at = min(stop, size)
            elif stop > size:
                self._need = stop - at
                break
            else:
                packets.append((data[at], data[body:stop]))
                at = stop
        return at

    def _beginning(self, data: bytes, at: int, body: int, length: int) -> int:
        """How many bytes are needed to acknowledge a message that is passed over; 0: enough."""
        if data[at] & 0xF0 != PUBLISH:
            raise ProtocolError(f"a packet of {length} bytes; at most {self._limit} are taken")
        known = 4 + int.from_bytes(data[body : body + 2], "big")
        if known > length:
            raise ProtocolError("an MQTT packet ends inside a string")
        have = len(data) - body
        return (body - at) + max(known, 4) if have < 2 or have < known else 0

    def _make_room(self) -> None:
        kept = self._view[self._start : self._end].tobytes()
        if len(kept) > len(self._buffer) // 2:
            self._buffer = bytearray(2 * len(self._buffer))
            self._view = memoryview(self._buffer)
        self._view[: len(kept)] = kept
        self._start, self._end = 0, len(kept)
