"""What the transports that carry Nest's packets have in common, on both ends.

Two ends of our make, which is to say of this package, know more than Nest does: a caller that
leaves stops its handler. A client's request says of what make it is (`PEER_HEADER` in its metadata,
which Nest does not look at, though a Nest service may pass it on with a request of its own). A
server of our make then sends a greeting before its reply, and from there on the client tells it, by
events of `CANCEL_ROUTE`, which callers have left.
"""

from __future__ import annotations

import logging
from collections import deque
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, TypeVar

from resilient_client.context import PEER_HEADER
from resilient_client.errors import (
    ConnectionLost,
    NoHandlerError,
    PayloadError,
    ProtocolError,
    RemoteError,
    ResilientClientError,
    remote_error,
    text_of,
    wire_error,
)
from resilient_client.message import NO_VALUE
from resilient_client.patterns import pattern_json
from resilient_client.transports._packets import (
    end_packet,
    error_packet,
    event_packet,
    no_handler_packet,
    read_request,
    value_packet,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from resilient_client.codecs import Codec
    from resilient_client.message import Reply
    from resilient_client.transports._base import Slots
    from resilient_client.transports._packets import Response
    from resilient_client.transports._replies import PendingReplies

log = logging.getLogger("resilient_client.server")

C = TypeVar("C")

CANCEL_ROUTE = "resilient_client.cancel"
"""Where a server of our make hears that the caller of a request has left; the payload is its id."""
LEFT_KEPT = 256
"""Calls whose callers have left, that a server which shows itself is told of."""
OVERTAKEN_KEPT = 10_000
"""Cancels that meant nothing when they came, for requests that come later."""
MAX_PEERS = 64
"""Servers that are told when a caller leaves."""
_LONGEST_ID = 64
_CANCEL_JSON = pattern_json(CANCEL_ROUTE)
_OURS = b'{"%b":"1"}' % PEER_HEADER.encode()


def cancel_packet(key: bytes | str) -> bytes:
    """The event of `CANCEL_ROUTE` for the request with this id."""
    return event_packet(_CANCEL_JSON, b'"%b"' % (key.encode() if isinstance(key, str) else key))


def take_cancel(raw: bytes, slots: Slots) -> None:
    """An event of `CANCEL_ROUTE` has come: cancel what it means."""
    try:
        left = read_request(raw).data
    except ProtocolError:
        return
    slots.cancel(left)


def is_ours(headers: Mapping[str, str], id_json: bytes) -> bool:
    """Whether a request comes straight from a client of our make, which understands a greeting."""
    value = headers.get(PEER_HEADER)
    return value is not None and id_json == b'"%b"' % value.encode()


def greeting_packet(id_json: bytes) -> bytes:
    """Shows a client of our make, before its reply, that it may send cancels."""
    return b'{"id":%b,"metadata":%b}' % (id_json, _OURS)


class Peers:
    """The servers of our make that have shown themselves: they are told which callers have left.

    Any other would not know what to do with that. As one may show itself after a caller has left,
    the last of those calls are kept to be told of then.

    Args:
        tell: send the id of a call whose caller has left to a server's address.

    Attributes:
        met: the addresses of those servers.
    """

    __slots__ = ("_left", "_tell", "met")

    def __init__(self, tell: Callable[[Any, Any], object]) -> None:
        self.met: dict[Any, None] = {}
        self._left: deque[Any] = deque(maxlen=LEFT_KEPT)
        self._tell = tell

    def meet(self, address: Any) -> None:
        """A server has shown itself."""
        if address not in self.met and len(self.met) < MAX_PEERS:
            self.met[address] = None
            for key in self._left:
                self._tell(address, key)

    def leave(self, key: Any) -> None:
        """The caller of the request with this id has left."""
        self._left.append(key)
        for address in self.met:
            self._tell(address, key)


class Overtaken:
    """Requests whose cancels have come before them: the two take different ways through a broker.

    Which of the ids that mean nothing here belong to those, nobody knows: the last are kept.
    """

    __slots__ = ("_ids",)

    def __init__(self) -> None:
        self._ids: dict[bytes, None] = {}

    def add(self, key: bytes) -> None:
        """A cancel has come for a request that is not here."""
        if len(key) > _LONGEST_ID:  # a stranger's
            return
        self._ids[key] = None
        if len(self._ids) > OVERTAKEN_KEPT:
            del self._ids[next(iter(self._ids))]

    def take(self, key: bytes) -> bool:
        """Whether the caller of this request, which has come now, has left."""
        return key in self._ids and self._ids.pop(key) is None


def deliver(replies: PendingReplies, key: Any, response: Response, codec: Codec) -> None:
    """Hand a response packet to whoever waits for it."""
    if response.err is not None:
        replies.fail(key, error_in(response.err, codec.decode))
    elif response.value is not None:
        replies.value(key, response.value, response.ended, response.metadata)
    elif response.ended:
        replies.end(key)


def error_in(raw: bytes, decode: Callable[[bytes], Any]) -> ResilientClientError:
    """What a peer's error comes to; one that cannot be read is its call's failure alone."""
    try:
        return remote_error(decode(raw))
    except Exception as unreadable:  # noqa: BLE001  (whoever reads has other calls too)
        error = PayloadError(f"the peer's error: {text_of(unreadable)}", sent=True)
        error.__cause__ = unreadable
        return error


async def answer(
    reply: Reply,
    id_json: bytes | None,
    write: Callable[[bytes], Awaitable[None]],
    codec: Codec,
) -> None:
    """Write the packets of a reply.

    `write` waits while the peer does not read, and raises `PayloadError` for a packet that cannot
    travel, for example because it is too large: an error then takes its place.
    """
    try:
        if reply.items is None:
            await write(reply_packet(reply, id_json, codec))
            return
        try:
            while True:
                body = await reply.items.receive(inf)
                await write(value_packet(id_json, body, last=False))
        except StopAsyncIteration:
            await write(end_packet(id_json))
        except RemoteError as error:
            await write(error_packet(id_json, codec.encode(wire_error(error))))
    except PayloadError as error:
        log.error("a reply could not be sent: %s", error.args[0])  # noqa: TRY400
        told = RemoteError(f"the reply cannot be sent: {error.args[0]}", status=500)
        await write(error_packet(id_json, codec.encode(wire_error(told))))


async def answer_by_broker(
    reply: Reply,
    id_json: bytes | None,
    connected: Callable[[], Awaitable[C]],
    write: Callable[[C, bytes], Awaitable[None]],
    codec: Codec,
) -> None:
    """Write the packets of a reply as soon as there is a connection, those of a stream on one.

    What was written last may be lost with a connection, and on the next nobody would see that it is
    missing among a stream's values: an error then takes the place of the rest.

    Args:
        connected: waits for a connection that can be written to.
        write: waits while the peer does not read, raises `ConnectionLost` when that connection has
            ended, `PayloadError` as for `answer`.
    """
    try:
        await answer(reply, id_json, partial(write, await connected()), codec)
    except ConnectionLost:
        again = partial(write, await connected())
        if reply.items is None:
            await answer(reply, id_json, again, codec)
            return
        torn = RemoteError("the service lost its broker within the stream", status=503)
        await again(error_packet(id_json, codec.encode(wire_error(torn))))
        raise


def reply_packet(reply: Reply, id_json: bytes | None, codec: Codec) -> bytes:
    """The one packet of a reply that is not a stream."""
    error = reply.error
    if error is None:
        body = reply.body
        return end_packet(id_json) if body is NO_VALUE else value_packet(id_json, body)
    if id_json is not None and type(error) is NoHandlerError:
        return no_handler_packet(id_json)
    return error_packet(id_json, codec.encode(wire_error(error)))
