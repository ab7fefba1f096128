"""Nest's packets: one JSON object per message, read and written in both directions.

Payloads stay JSON bytes here: the envelope is decoded first, the payload once and typed by whoever
knows its type. Keys are written in the order Nest writes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from resilient_client._json import ABSENT, JsonDecoder, Raw, Struct, decode, encode
from resilient_client.errors import NO_HANDLER_MESSAGE, PayloadError, ProtocolError
from resilient_client.patterns import lookup_route
from resilient_client.transports._metadata import (
    BACKSLASH,
    DELETE,
    MAX_PLAIN,
    NO_METADATA,
    USUAL,
    checked,
    read_metadata,
)

_NULL = b"null"
NO_HANDLER_JSON = b'"' + NO_HANDLER_MESSAGE.encode() + b'"'
_RESPONSE_KEYS = frozenset({"id", "err", "response", "isDisposed", "status", "metadata"})
_ANSWERS = frozenset({"err", "response", "isDisposed"})


# ---- the client's side ----


def request_packet(
    pattern_json: bytes,
    body: bytes,
    metadata: Mapping[str, str] | None,
    id: bytes | str,  # noqa: A002
) -> bytes:
    """A request. `id` is put between quotes as it is: printable ASCII, no quote or backslash."""
    if isinstance(id, str):
        id = id.encode()  # noqa: A001
    if metadata:
        return b'{"pattern":%b,"data":%b,"metadata":%b,"id":"%b"}' % (
            pattern_json,
            body,
            encode(metadata),
            id,
        )
    return b'{"pattern":%b,"data":%b,"id":"%b"}' % (pattern_json, body, id)


def event_packet(
    pattern_json: bytes, body: bytes, metadata: Mapping[str, str] | None = None
) -> bytes:
    """An event: a request without an id. Nest's TCP client sends the route as its pattern."""
    if metadata:
        return b'{"pattern":%b,"data":%b,"metadata":%b}' % (
            pattern_json,
            body,
            encode(metadata),
        )
    return b'{"pattern":%b,"data":%b}' % (pattern_json, body)


class Response(Struct, gc=False):
    """One packet of an answer, read by Nest's rules.

    Attributes:
        id: the request's id; a peer's own kind of id stands here as its JSON text; None without.
        value: the JSON of a value, or None: this packet has none.
        err: the JSON of an error, or None. It ends the exchange, and goes before a value.
        ended: nothing follows.
        metadata: what a peer of our own kind sent beside it, checked.
        external: this is no Nest packet: the whole message is the value, and the end.
    """

    id: str | None
    value: bytes | None
    err: bytes | None
    ended: bool
    metadata: Mapping[str, str] = NO_METADATA
    external: bool = False

    @property
    def no_handler(self) -> bool:
        """The peer has no handler for the pattern."""
        return self.err == NO_HANDLER_JSON


class _ResponsePacket(Struct, forbid_unknown_fields=True, gc=False):
    # What a well-behaved peer sends. Everything else fails here and is read at leisure.
    id: str = ""
    response: Raw = ABSENT
    err: Raw = ABSENT
    isDisposed: bool = False  # noqa: N815
    status: Any = None
    metadata: Raw = ABSENT


_read_response = JsonDecoder(_ResponsePacket).decode


def read_response(raw: bytes, *, by_id: bool = False) -> Response:
    """The response in one message.

    For Nest 12 a foreign key makes it no packet, for Nest 10 and 11 it is nothing: services there
    may add some by a serializer of their own.

    Args:
        by_id: it is looked up by its id: one with an id is then a packet whatever else it holds.

    Raises:
        ProtocolError: it is not JSON, or nested too deeply.
    """
    try:
        packet = _read_response(raw)
    except (ValueError, RecursionError):
        return _any_response(raw, by_id)
    if not packet.id:
        return _any_response(raw, by_id)
    value = None if packet.response is ABSENT else bytes(packet.response)
    metadata = packet.metadata
    if metadata is ABSENT and packet.err is ABSENT:  # nearly all are
        return Response(packet.id, value, None, packet.isDisposed)
    headers = NO_METADATA if metadata is ABSENT else read_metadata(bytes(metadata))
    if packet.err is not ABSENT:
        err = bytes(packet.err)
        if truthy(err):
            return Response(packet.id, value, err, True, headers)
    return Response(packet.id, value, None, packet.isDisposed, headers)


def _any_response(raw: bytes, by_id: bool) -> Response:  # noqa: FBT001
    packet = _fields(raw)
    if packet is None:
        return Response(None, raw, None, True, external=True)
    id = _id_text(packet.get("id"))  # noqa: A001
    known = packet.keys() <= _RESPONSE_KEYS and packet.keys() - {"metadata"}
    if not known and not (by_id and id is not None and packet.keys() & _ANSWERS):
        return Response(id, raw, None, True, external=True)
    err = packet.get("err", _NULL)
    value = packet.get("response")
    metadata = read_metadata(packet.get("metadata", _NULL))
    if truthy(err):
        return Response(id, value, err, True, metadata)
    return Response(id, value, None, truthy(packet.get("isDisposed", _NULL)), metadata)


def _id_text(id_json: bytes | None) -> str | None:
    if id_json is None or id_json == _NULL:
        return None
    try:
        id = decode(id_json)  # noqa: A001
    except PayloadError as error:
        raise ProtocolError(f"a response whose id cannot be read: {error.args[0]}") from error
    return id if isinstance(id, str) else id_json.decode()


def truthy(value_json: bytes) -> bool:
    """Whether JavaScript takes a JSON value for true."""
    first = value_json[:1]
    if first in (b"{", b"[", b"t"):
        return True
    if first == b'"':
        return len(value_json) > 2
    return first not in (b"n", b"f", b"") and float(value_json) != 0


# ---- the server's side ----


class Request(Struct, gc=False):
    """A request or event as it arrived.

    Attributes:
        pattern: the JSON of its pattern; None when it has none.
        data: the JSON of its payload, null when it has none.
        id: the JSON of its id, to be sent back as it is; None for an event.
        metadata: names to strings, checked.
        external: this is no Nest packet but some other message, `data` the whole of it: an event
            for the channel it came from.
    """

    pattern: bytes | None
    data: bytes
    id: bytes | None
    metadata: Mapping[str, str] = NO_METADATA
    external: bool = False

    @property
    def route(self) -> str | None:
        """The handler to look up; None where no handler can be."""
        return None if self.pattern is None else lookup_route(self.pattern)


class _RequestPacket(Struct, gc=False):
    pattern: Raw = ABSENT
    data: Raw = ABSENT
    id: Raw = ABSENT
    metadata: Raw = ABSENT


class _PlainPacket(Struct, gc=False):
    pattern: Raw
    data: Raw = ABSENT
    id: Raw = ABSENT
    metadata: dict[str, str] | None = None


_read_request = JsonDecoder(_RequestPacket).decode
_read_plain = JsonDecoder(_PlainPacket).decode


def read_request(raw: bytes) -> Request:
    """The request or event in one message.

    Raises:
        ProtocolError: it is not JSON, or nested too deeply. Redis and MQTT take a text for an
            event of its channel: see `text_event`.
    """
    # `is_plain`, spelt out: most are, and are then read in one go.
    if len(raw) <= MAX_PLAIN and raw.isascii() and BACKSLASH not in raw and DELETE not in raw:
        try:
            plain = _read_plain(raw)
        except (ValueError, RecursionError):
            return _any_request(raw)
        metadata = plain.metadata
        return Request(
            b"" + plain.pattern,
            _NULL if plain.data is ABSENT else b"" + plain.data,
            None if plain.id is ABSENT else b"" + plain.id,
            NO_METADATA
            if metadata is None
            else metadata
            if metadata.keys() <= USUAL
            else checked(metadata),
        )
    try:
        packet = _read_request(raw)
    except (ValueError, RecursionError):
        return _any_request(raw)
    if packet.pattern is ABSENT and packet.data is ABSENT:
        return Request(None, raw, None, external=True)
    return Request(
        None if packet.pattern is ABSENT else bytes(packet.pattern),
        _NULL if packet.data is ABSENT else bytes(packet.data),
        None if packet.id is ABSENT else bytes(packet.id),
        NO_METADATA if packet.metadata is ABSENT else read_metadata(bytes(packet.metadata)),
    )


def _any_request(raw: bytes) -> Request:
    packet = _fields(raw)
    if packet is None or not packet.keys() & {"pattern", "data"}:
        return Request(None, raw, None, external=True)
    return Request(
        packet.get("pattern"),
        packet.get("data", _NULL),
        packet.get("id"),
        read_metadata(packet.get("metadata", _NULL)),
    )


def text_event(raw: bytes) -> Request:
    """The event that a message which is not JSON is on Redis and MQTT: its payload is the text."""
    return Request(None, encode(raw.decode(errors="replace")), None, external=True)


# Without an id where the transport matches replies by something of its own, as RabbitMQ does. And
# without any other key: Nest takes a packet with a foreign key for a value.


def value_packet(id_json: bytes | None, body: bytes, last: bool = True) -> bytes:  # noqa: FBT001, FBT002
    """A value, the last one or not."""
    if id_json is None:
        return b'{"response":%b%b' % (body, b',"isDisposed":true}' if last else b"}")
    if last:
        return b'{"response":%b,"isDisposed":true,"id":%b}' % (body, id_json)
    return b'{"response":%b,"id":%b}' % (body, id_json)


def end_packet(id_json: bytes | None) -> bytes:
    """The end without a (further) value."""
    return b'{"isDisposed":true' + _id_and_end(id_json)


def error_packet(id_json: bytes | None, err_body: bytes) -> bytes:
    """A failure, which ends the exchange.

    An `err` that JavaScript takes for false would be read as success: it is wrapped as Nest's
    RpcException does.
    """
    if not truthy(err_body):
        err_body = b'{"status":"error","message":%b}' % err_body
    return b'{"err":%b,"isDisposed":true%b' % (err_body, _id_and_end(id_json))


def no_handler_packet(id_json: bytes) -> bytes:
    """No handler for the pattern."""
    return b'{"id":%b,"status":"error","err":%b}' % (id_json, NO_HANDLER_JSON)


def _id_and_end(id_json: bytes | None) -> bytes:
    return b"}" if id_json is None else b',"id":%b}' % id_json


# ---- both sides ----

_read_fields = JsonDecoder(dict[str, Raw]).decode


def _fields(raw: bytes) -> dict[str, bytes] | None:
    """The members of an object, each still JSON; None for JSON that is no object."""
    try:
        return {key: bytes(value) for key, value in _read_fields(raw).items()}
    except (ValueError, RecursionError):
        try:
            value = decode(raw)
        except PayloadError as error:
            raise ProtocolError(f"a message that is no packet: {error.args[0]}") from error
    if not isinstance(value, dict):
        return None
    # an object with a lone surrogate somewhere: written anew, it can be taken apart
    return {key: encode(item) for key, item in value.items()}
