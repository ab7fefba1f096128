"""AMQP 0-9-1 on the wire: frames, and a message's properties.

Publishing, deliveries and acknowledgements are packed and read here, in place and within bounds:
they are most of what passes. The rest goes through pamqp. What a codec raises is a `ValueError`.
"""

from __future__ import annotations

from functools import lru_cache
from struct import Struct
from struct import error as StructError  # noqa: N812
from typing import TYPE_CHECKING, Any

from pamqp import commands
from pamqp.frame import marshal
from pamqp.header import ContentHeader

from resilient_client.errors import PayloadError
from resilient_client.transports._metadata import MAX_METADATA_KEYS, NO_METADATA, USUAL, sanitised

if TYPE_CHECKING:
    from collections.abc import Mapping

PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"
FRAME_MAX = 128 * 1024
"""Bytes of a frame, both ways: RabbitMQ's own default."""
METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
FRAME_END = 0xCE
HEARTBEAT_FRAME = b"\x08\x00\x00\x00\x00\x00\x00\xce"
REPLY_TO = b"amq.rabbitmq.reply-to"
"""RabbitMQ's pseudo queue: what is sent to it goes straight to the connection that named it."""
OURS = b"resilient_client"
"""The app_id of our requests and greetings: their peer may be greeted, or sent a cancel."""

DELIVER, RETURN, ACK, NACK = 0x3C003C, 0x3C0032, 0x3C0050, 0x3C0078

BasicCancel, BasicConsume, BasicQos = (
    commands.Basic.Cancel,
    commands.Basic.Consume,
    commands.Basic.Qos,
)
ChannelClose, ChannelCloseOk, ChannelFlow, ChannelFlowOk, ChannelOpen = (
    commands.Channel.Close,
    commands.Channel.CloseOk,
    commands.Channel.Flow,
    commands.Channel.FlowOk,
    commands.Channel.Open,
)
ConfirmSelect = commands.Confirm.Select
Close, CloseOk, Open, Start, StartOk, Tune, TuneOk, Blocked, Unblocked = (
    commands.Connection.Close,
    commands.Connection.CloseOk,
    commands.Connection.Open,
    commands.Connection.Start,
    commands.Connection.StartOk,
    commands.Connection.Tune,
    commands.Connection.TuneOk,
    commands.Connection.Blocked,
    commands.Connection.Unblocked,
)
ExchangeDeclare = commands.Exchange.Declare
QueueBind, QueueDeclare = commands.Queue.Bind, commands.Queue.Declare

HEAD = Struct(">BHI")  # kind, channel, size
LONG = Struct(">I")
_TAG = Struct(">QB")
_ACK = Struct(">BHIIQBB")
_CONTENT = Struct(">BHIHHQ")  # a header frame's head, class, weight, size of the body
_CONTENT_HEADER = Struct(">HHQH")  # class, weight, size of the body, flags
_CLASS_BASIC = 60
_NULL_END = b"\xce"

# Which properties a message has: a bit each, in the order in which they follow.
_CONTENT_TYPE, _CONTENT_ENCODING, _HEADERS, _DELIVERY_MODE, _PRIORITY = (
    0x8000, 0x4000, 0x2000, 0x1000, 0x0800,
)  # fmt: skip
_CORRELATION_ID, _REPLY_TO, _EXPIRATION, _MESSAGE_ID, _TIMESTAMP, _TYPE, _USER_ID, _APP_ID = (
    0x0400, 0x0200, 0x0100, 0x0080, 0x0040, 0x0020, 0x0010, 0x0008,
)  # fmt: skip
_MORE_FLAGS = 0x0001
_RARE_FIRST = _CONTENT_TYPE | _CONTENT_ENCODING | _MORE_FLAGS
_RARE_LAST = _EXPIRATION | _MESSAGE_ID | _TIMESTAMP | _TYPE | _USER_ID | _APP_ID


# ---------------------------------------------------------------------------------------- written


def method_frame(channel: int, method: Any) -> bytes:
    """A method of the codec's, as a frame.

    Raises:
        ValueError: an argument cannot be written: a name too long or with odd characters.
    """
    try:
        return marshal(method, channel)
    except (TypeError, KeyError, AttributeError, StructError, RecursionError) as error:
        raise ValueError(str(error)) from error


def publish_frame(channel: int, exchange: str, key: str | bytes, *, mandatory: bool) -> bytes:
    """The method frame before a message: where it goes, and whether to return it otherwise."""
    if isinstance(key, str):
        key = key.encode()
    name = exchange.encode()
    payload = b"\x00\x3c\x00\x28\x00\x00%c%b%c%b%c" % (len(name), name, len(key), key, mandatory)
    return b"%b%b\xce" % (HEAD.pack(METHOD, channel, len(payload)), payload)


def content_frames(channel: int, properties: bytes, body: bytes, frame_max: int) -> bytes:
    """The frames of a message after its method: properties, then the body in pieces.

    Raises:
        PayloadError: the properties, which must fit into one frame, do not.
    """
    size = len(body)
    if len(properties) > frame_max - 20:
        raise PayloadError(f"the headers have {len(properties)} bytes, a frame at most {frame_max}")
    head = _CONTENT.pack(HEADER, channel, 12 + len(properties), _CLASS_BASIC, 0, size)
    piece = frame_max - 8
    if 0 < size <= piece:
        return b"%b%b\xce%b%b\xce" % (head, properties, HEAD.pack(BODY, channel, size), body)
    frames = [head, properties, _NULL_END]
    view = memoryview(body)
    for at in range(0, size, piece):
        part = view[at : at + piece]
        frames += [HEAD.pack(BODY, channel, len(part)), bytes(part), _NULL_END]
    return b"".join(frames)


def request_properties(table: bytes, key: bytes, expiration: bytes | None) -> bytes:
    """Of a request: transient, as Nest's are, and gone when its caller no longer waits."""
    if expiration is None:
        return b"\x36\x08%b\x01%c%b\x15%b\x10%b" % (table, len(key), key, REPLY_TO, OURS)
    return b"\x37\x08%b\x01%c%b\x15%b%c%b\x10%b" % (
        table, len(key), key, REPLY_TO, len(expiration), expiration, OURS,
    )  # fmt: skip


def event_properties(table: bytes, message_id: bytes, *, persistent: bool) -> bytes:
    """Of an event; its id is what a return of it is known by."""
    return b"\x30\x88%b%c%c%b\x10%b" % (
        table, 2 if persistent else 1, len(message_id), message_id, OURS,
    )  # fmt: skip


def reply_properties(key: bytes) -> bytes:
    """Of a reply, or of a cancel: just which request it is about. Nest sends an empty table too."""
    return b"\x24\x00\x00\x00\x00\x00%c%b" % (len(key), key)


def greeting_properties(key: bytes) -> bytes:
    """Of a message to a client of ours that names an address for its cancels."""
    return b"\x06\x08%c%b\x15%b\x10%b" % (len(key), key, REPLY_TO, OURS)


def ack_frame(channel: int, tag: int, *, multiple: bool = False) -> bytes:
    """Handled: this message, or all up to it."""
    return _ACK.pack(METHOD, channel, 13, ACK, tag, multiple, FRAME_END)


def nack_frame(channel: int, tag: int, *, requeue: bool) -> bytes:
    """Not handled: to be delivered again, or dropped (to the queue's dead letters, if any)."""
    return _ACK.pack(METHOD, channel, 13, NACK, tag, 2 * requeue, FRAME_END)


@lru_cache(256)
def _field(name: str) -> bytes:
    encoded = name.encode(errors="replace")
    if len(encoded) > 255:
        raise PayloadError(f"a header's name has {len(encoded)} bytes, AMQP allows 255")
    return b"%c%bS" % (len(encoded), encoded)


def table(headers: Mapping[str, str]) -> bytes:
    """Headers as a table of long strings.

    Raises:
        PayloadError: a name is too long.
    """
    parts: list[bytes] = []
    for name, value in headers.items():
        encoded = value.encode(errors="replace")
        parts += [_field(name), LONG.pack(len(encoded)), encoded]
    fields = b"".join(parts)
    return LONG.pack(len(fields)) + fields


# ------------------------------------------------------------------------------------------- read


class Delivery:
    """A message from the broker.

    Attributes:
        tag, redelivered: for its acknowledgement, and whether somebody has had it before.
        headers: names to strings, checked: what numbers and truth values there are as text. The
            consumer adds what stands in the packet's metadata.
        correlation_id, reply_to, message_id, app_id: empty where it has none.
        body: None when it was larger than what is taken in.
    """

    __slots__ = ("_header", "_method", "app_id", "body", "correlation_id", "headers",
                 "message_id", "redelivered", "reply_to", "size", "tag")  # fmt: skip

    headers: Mapping[str, str]
    body: bytes | None

    def __init__(self, method: bytes, tag: int, redelivered: bool) -> None:  # noqa: FBT001
        self._method = method
        self._header = b""
        self.tag = tag
        self.redelivered = redelivered
        self.headers = NO_METADATA
        self.correlation_id = self.reply_to = self.message_id = self.app_id = b""
        self.size = 0
        self.body = None

    @property
    def method(self) -> Any:
        """The codec's `Basic.Deliver` or `Basic.Return`: its routing key, or the reason."""
        return read_method(self._method)

    @property
    def properties(self) -> commands.Basic.Properties:
        """All properties as the publisher wrote them, unchecked."""
        header = ContentHeader()
        header.unmarshal(self._header)
        return header.properties

    def read_header(self, data: bytes) -> None:
        """Take the properties in; `size` is the body's from then on.

        Raises:
            ValueError: they are malformed.
        """
        try:
            _, _, self.size, flags = _CONTENT_HEADER.unpack_from(data)
            self._header = data
            self._read(data, flags)
        except (IndexError, StructError) as error:
            raise ValueError("truncated properties") from error

    def _read(self, data: bytes, flags: int) -> None:
        at = 14
        if flags & _RARE_FIRST:
            if flags & _MORE_FLAGS:
                raise ValueError("unknown properties")
            for bit in (_CONTENT_TYPE, _CONTENT_ENCODING):
                if flags & bit:
                    at += 1 + data[at]
        if flags & _HEADERS:
            (size,) = LONG.unpack_from(data, at)
            at += 4
            if size > len(data) - at:
                raise ValueError("a table that is longer than its frame")
            if size:
                self.headers = read_table(data, at, at + size)
            at += size
        at += bool(flags & _DELIVERY_MODE) + bool(flags & _PRIORITY)
        if flags & _CORRELATION_ID:
            self.correlation_id, at = _short(data, at)
        if flags & _REPLY_TO:
            self.reply_to, at = _short(data, at)
        if flags & _RARE_LAST:
            at = self._read_last(data, flags, at)
        if at > len(data):
            raise ValueError("truncated properties")

    def _read_last(self, data: bytes, flags: int, at: int) -> int:
        if flags & _EXPIRATION:
            at += 1 + data[at]
        if flags & _MESSAGE_ID:
            self.message_id, at = _short(data, at)
        if flags & _TIMESTAMP:
            at += 8
        for bit in (_TYPE, _USER_ID):
            if flags & bit:
                at += 1 + data[at]
        if flags & _APP_ID:
            self.app_id, at = _short(data, at)
        return at


def _short(data: bytes, at: int) -> tuple[bytes, int]:
    end = at + 1 + data[at]
    return data[at + 1 : end], end


def delivery(data: bytes) -> Delivery:
    """The start of a delivered message: its method frame's payload."""
    try:
        tag, redelivered = _TAG.unpack_from(data, 5 + data[4])
    except (IndexError, StructError) as error:
        raise ValueError("a truncated delivery") from error
    return Delivery(data, tag, bool(redelivered & 1))


def returned(data: bytes) -> Delivery:
    """The start of a message that comes back, because no queue wanted it."""
    return Delivery(data, 0, False)


def read_confirm(data: bytes) -> tuple[int, bool]:
    """The tag of an ack or nack, and whether it speaks for all before it too."""
    try:
        tag, bits = _TAG.unpack_from(data, 4)
    except StructError as error:
        raise ValueError("a truncated confirmation") from error
    return tag, bool(bits & 1)


def read_method(data: bytes) -> Any:
    """Any other method, as the codec's object.

    Raises:
        ValueError: unknown or malformed.
    """
    try:
        method = commands.INDEX_MAPPING[LONG.unpack_from(data)[0]]()
        method.unmarshal(data[4:])
    except Exception as error:  # the codec meets hostile bytes
        raise ValueError(f"an unreadable method: {type(error).__name__}") from error
    return method


# The sizes of a table's values by their type; those with a format are shown as text.
_NUMBERS = {
    ord(code): Struct(">" + form)
    for code, form in zip("bBsuIilLfdT", "bBhHiIqqfdQ", strict=True)
}  # fmt: skip
_TEXT, _TRUTH, _DECIMAL, _VOID, _SHORT = (ord(code) for code in "StDVU")
_SIZED = {ord(code) for code in "xAF"}
_USUAL = frozenset(name.encode() for name in USUAL)


def read_table(data: bytes, at: int, end: int) -> Mapping[str, str]:
    """What may be used of a table: its texts and numbers by lower-case name.

    Nested tables, arrays and bytes are stepped over, nothing is followed into a depth.
    """
    found: dict[str, str] = {}
    while at < end:
        stop = at + 1 + data[at]
        name = data[at + 1 : stop]
        kind = data[stop]
        at = stop + 1
        text: str | None = None
        if kind == _TEXT:
            stop = at + 4 + LONG.unpack_from(data, at)[0]
            text = data[at + 4 : stop].decode(errors="replace")
            at = stop
        elif kind in _NUMBERS:
            form = _NUMBERS[kind]
            text = str(form.unpack_from(data, at)[0])
            at += form.size
        elif kind == _TRUTH:
            text = "true" if data[at] else "false"
            at += 1
        elif kind in _SIZED:
            at += 4 + LONG.unpack_from(data, at)[0]
        elif kind == _SHORT:
            at += 2
        elif kind == _DECIMAL:
            at += 5
        elif kind != _VOID:
            raise ValueError("a table with a value of unknown type")
        if at > end:
            raise ValueError("a table's value is longer than the table")
        if text is not None and (len(found) < MAX_METADATA_KEYS or name in _USUAL):
            found[name.decode(errors="replace")] = text
    return sanitised(found)
