"""One request to our server and its response."""

from __future__ import annotations

import asyncio
import logging
from math import ceil, inf
from typing import TYPE_CHECKING, Any

from resilient_client.context import (
    CORRELATION_HEADER,
    PEER_HEADER,
    correlation_id,
    valid_correlation_id,
)
from resilient_client.errors import (
    FOR_EVER,
    InvalidPayloadError,
    PayloadError,
    RemoteError,
    Throttled,
    wire_error,
)
from resilient_client.message import NO_VALUE, Message
from resilient_client.transports.http._answers import announced, is_json
from resilient_client.transports.http._events import END, error_event, value_event
from resilient_client.transports.http._fields import FieldsCodec, fields
from resilient_client.transports.http._responses import (
    CLOSE,
    Disconnected,
    Refused,
    extra_headers,
    nowhere,
    refused,
    request_headers,
    status_of,
    too_large,
)
from resilient_client.transports.http._routing import Found, Router, path_segments

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping, Sequence

    from resilient_client.message import Items, Reply
    from resilient_client.transports._base import App, Slots

    Scope = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
    Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

log = logging.getLogger("resilient_client.http")

SILENCE = 30.0
"""Seconds that may pass between two parts of a body, as between those of a frame on TCP."""
_LINGER = 64 * 2**20
"""Bytes of a body that is too large which are read, and thrown away, before it is refused."""
_JSON = (b"content-type", b"application/json")
_CORRELATION = CORRELATION_HEADER.encode()
_OURS = (PEER_HEADER.encode(), b"1")
_EVENTS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would collect the values
]


class Exchange:
    """One request and its response."""

    __slots__ = (
        "_answered", "_app", "_correlation", "_largest", "_left", "_lookout", "_receive",
        "_resumed", "_scope", "_send", "_status", "_streaming",
    )  # fmt: skip

    def __init__(self, app: App, scope: Scope, receive: Receive, send: Send) -> None:
        self._app = app
        self._scope = scope
        self._receive = receive
        self._send = send
        self._correlation: str | None = None
        self._largest = 0
        self._streaming = False
        self._status = 0
        self._answered = False
        self._left = False
        self._lookout: asyncio.Future[None] | None = None
        self._resumed: asyncio.Future[None] | None = None

    # ------------------------------------------------------------------------------ the request

    async def serve(self, router: Router, codec: FieldsCodec, base: str, max_size: int) -> None:
        """Answer it.

        Raises:
            Refused: it is not for a handler.
            Disconnected: there is nobody to answer.
        """
        received = self._app.clock.now()
        self._largest = max_size
        scope = self._scope
        method: str = scope["method"]
        headers = request_headers(scope["headers"])
        self._correlation = headers.get(CORRELATION_HEADER)
        accept = headers.get("accept", "*/*").lower()
        # "application/json, */*" comes from clients that would not know what to do with a stream
        self._streaming = "text/event-stream" in accept or (
            "*/*" in accept and "application/json" not in accept
        )
        event = (
            method not in ("GET", "HEAD", "OPTIONS")
            and "respond-async" in headers.get("prefer", "").lower()
        )
        segments = path_segments(scope, base)
        found = [] if segments is None else router.find(method, segments, event=event)
        if not isinstance(found, Found) and not (event and segments is not None and not found):
            if method == "POST" and segments is not None and not found:
                return await self._unheard("/".join(segments), headers, received, event=False)
            raise nowhere(method, found)
        body = await self._body(headers, max_size)
        if not isinstance(found, Found):
            return await self._unheard("/".join(segments or ()), headers, received, event=True)
        payload: Any = body or b"null"
        if found.parameters is not None:
            try:
                query = scope.get("query_string", b"")
                payload = fields(found.parameters, query, body, self._app.codec)
            except PayloadError as error:
                return await self._error(InvalidPayloadError(error.args[0]))
        message = Message(
            found.route,
            payload,
            headers,
            None if found.event else True,
            received=received,
            raw=scope,
            codec=None if found.parameters is None else codec,
            status_of=self._status_of,
        )
        slots = self._app.slots(self._pause, self._resume)
        try:
            await (self._hand_over if found.event else self._ask)(message, slots)
        finally:
            slots.close()
        return None

    async def _body(self, headers: dict[str, str], max_size: int) -> bytes:
        told = announced(headers)
        if told > max_size:
            if told <= _LINGER and "expect" not in headers:
                await self._discard()
            raise too_large(max_size)
        chunks: list[bytes] = []
        size = 0
        more = True
        while more:
            message = await self._part()
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > max_size:
                if message.get("more_body", False):
                    await self._discard()
                raise too_large(max_size)
            chunks.append(chunk)
            more = message.get("more_body", False)
        if size and not is_json(headers.get("content-type", "application/json")):
            raise refused(415, "The body is JSON, and its content-type says so")
        if size and headers.get("content-encoding", "identity").lower() != "identity":
            plain = (b"accept-encoding", b"identity")  # RFC 9110, section 12.5.3
            raise refused(415, "The body is sent as it is, not packed", [plain])
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def _part(self) -> MutableMapping[str, Any]:
        """The next part of the body."""
        try:
            async with asyncio.timeout(SILENCE):
                message = await self._receive()
        except TimeoutError:
            raise refused(408, "The body did not come", [CLOSE]) from None
        if message["type"] == "http.disconnect":
            raise Disconnected
        return message

    async def _discard(self) -> None:
        """Read what is left of a body that is refused, up to a point.

        Many clients see no answer that comes before they have sent all of it, but a reset.
        """
        left, more = _LINGER, True
        while more and left > 0:
            message = await self._part()
            left -= len(message.get("body", b""))
            more = message.get("more_body", False)

    async def _unheard(
        self, route: str, headers: dict[str, str], received: float, *, event: bool
    ) -> None:
        """A pattern that nobody handles: the app says so, and counts it. Its body is no matter."""
        key = None if event else True
        message = Message(route, b"null", headers, key, received=received, raw=self._scope)
        slots = self._app.slots(self._pause, self._resume)
        try:
            if event:
                await self._hand_over(message, slots)
            else:
                await self._app.serve(message, self._answer, slots, "http")
        finally:
            slots.close()

    async def _hand_over(self, message: Message, slots: Slots) -> None:
        """An event: accepted once it runs."""
        self._app.accept(message, None, slots, "http")
        if self._resumed is not None:
            left = asyncio.ensure_future(self._caller_left())
            try:
                await asyncio.wait({left, self._resumed}, return_when=asyncio.FIRST_COMPLETED)
                if not self._resumed.done():
                    return
            finally:
                if not self._resumed.done():
                    slots.drop()
                await _end(left)
        count = self._app.receivers(message.route)
        await self._respond(202, b"", [(b"x-receivers", b"%d" % count)])

    def _pause(self) -> None:
        self._resumed = asyncio.get_running_loop().create_future()

    def _resume(self) -> None:
        if self._resumed is not None and not self._resumed.done():
            self._resumed.set_result(None)

    async def _ask(self, message: Message, slots: Slots) -> None:
        """A request: its handler runs in this task, and is cancelled when nobody waits."""
        # one that answers at once needs no look-out for the caller
        looking_out = asyncio.get_running_loop().call_soon(self._look_out, slots)
        try:
            job = await self._app.serve(message, self._answer, slots, "http")
        finally:
            looking_out.cancel()
            if self._lookout is not None:
                await _end(self._lookout)
        if not self._answered and not self._left and job is not None:
            await self._give_up(job.unanswered())

    def _look_out(self, slots: Slots) -> None:
        async def look_out() -> None:
            await self._caller_left()
            self._left = True
            slots.close()

        self._lookout = asyncio.ensure_future(look_out())

    async def _caller_left(self) -> None:
        """Return when the caller has disconnected."""
        while (await self._receive())["type"] != "http.disconnect":
            continue

    # ----------------------------------------------------------------------------- the response

    def _status_of(self, reply: Reply) -> int:
        """What was sent, or will be for this."""
        if self._status:
            return self._status
        if reply.error is not None:
            return status_of(reply.error)
        return 204 if reply.body is NO_VALUE and not self._streaming else 200

    async def _answer(self, reply: Reply) -> None:
        """Put a handler's reply on the wire; runs in the handler's task."""
        if self._correlation is None or not valid_correlation_id(self._correlation):
            self._correlation = correlation_id.get()
        if reply.error is not None:
            await self._give_up(reply.error)
        elif reply.items is not None:
            await self._items(reply.items)
        elif reply.body is NO_VALUE:
            await self._respond(204, b"", extra_headers(reply.headers))
        elif len(reply.body) > self._largest:
            await self._error(_oversized(reply.body))
        else:
            await self._respond(200, reply.body, [_JSON, *extra_headers(reply.headers)])

    async def _items(self, items: Items) -> None:
        """A stream to whoever can read one, its first value to anybody else."""
        first: Any = None
        try:
            first = await self._value(items)
        except RemoteError as error:  # nothing has been sent: it can be told in the usual way
            return await self._error(error)
        except StopAsyncIteration:
            if not self._streaming:
                return await self._respond(204, b"", ())
        else:
            if not self._streaming:
                return await self._respond(200, first, [_JSON])
        await self._start(200, _EVENTS)
        if self._scope["method"] == "HEAD":  # the connection is to be free for the next request
            return await self._last(b"")
        try:
            while first is not None:
                await self._more(value_event(first))
                first = await self._value(items)
            await self._last(END)
        except StopAsyncIteration:
            await self._last(END)
        except RemoteError as error:
            await self._last(error_event(self._app.codec.encode(wire_error(error))))
        return None

    async def _value(self, items: Items) -> Any:
        value = await items.receive(inf)
        if len(value) > self._largest:
            raise _oversized(value)
        return value

    async def _give_up(self, error: RemoteError) -> None:
        """Answer with an error; where a stream has begun, it ends with it."""
        if self._status:
            await self._last(error_event(self._app.codec.encode(wire_error(error))))
        else:
            await self._error(error)

    async def _error(self, error: RemoteError) -> None:
        headers = []
        if isinstance(error, Throttled):
            wait = (
                1 if error.retry_after is None else max(1, ceil(min(error.retry_after, FOR_EVER)))
            )
            headers.append((b"retry-after", b"%d" % wait))
        await self._json(status_of(error), wire_error(error), headers)

    async def refuse(self, refusal: Refused) -> None:
        """Answer without a handler."""
        if refusal.payload is NO_VALUE:
            await self._respond(refusal.status, b"", refusal.headers)
        else:
            await self._json(refusal.status, refusal.payload, refusal.headers)

    async def _json(
        self, status: int, payload: Any, headers: Sequence[tuple[bytes, bytes]]
    ) -> None:
        await self._respond(status, self._app.codec.encode(payload), [_JSON, *headers])

    async def _respond(
        self, status: int, body: bytes, headers: Sequence[tuple[bytes, bytes]]
    ) -> None:
        length = () if status == 204 else ((b"content-length", b"%d" % len(body)),)
        await self._start(status, [*headers, *length])
        await self._last(b"" if self._scope["method"] == "HEAD" else body)

    async def _start(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        own = [*headers, _OURS]
        known = self._correlation
        if known is not None and valid_correlation_id(known):
            own.append((_CORRELATION, known.encode()))
        if self._scope["http_version"].startswith(("2", "3")):  # which have no such header
            own = [each for each in own if each != CLOSE]
        elif self._app.draining:
            own.append(CLOSE)  # or the next request would meet the end
        self._status = status
        await self._send({"type": "http.response.start", "status": status, "headers": own})

    async def _more(self, data: bytes) -> None:
        """Part of a body; waits while the caller does not read."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def _last(self, data: bytes) -> None:
        self._answered = True
        await self._send({"type": "http.response.body", "body": data})


def _oversized(body: bytes) -> RemoteError:
    text = f"the reply cannot be sent: it has {len(body)} bytes, more than max_size= allows"
    log.error(text)
    return RemoteError(text, status=500)


async def _end(task: asyncio.Future[None]) -> None:
    task.cancel()
    await asyncio.wait({task})
