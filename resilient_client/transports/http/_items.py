"""The values of a streamed HTTP response."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from resilient_client.errors import ConnectionLost, PayloadError, ReplyTimeout
from resilient_client.message import Reply
from resilient_client.transports._nest import error_in
from resilient_client.transports._replies import Ending
from resilient_client.transports.http._events import (
    EVENT_STREAM,
    NDJSON,
    EventReader,
    JsonLinesReader,
)

if TYPE_CHECKING:
    from resilient_client.codecs import Codec
    from resilient_client.message import Call


class Answer(Protocol):
    """A response whose body is still to be read."""

    status: int
    reason: str
    headers: Any

    async def read(self, limit: int) -> bytes | None:
        """The whole body, None when it has more than `limit` bytes; closes."""

    async def chunk(self, deadline: float) -> bytes:
        """The next part, empty at the end; `TimeoutError` when it has not come by then."""

    async def aclose(self, *, at_end: bool = False) -> None:
        """Done with it; `at_end` when nothing more can be in it."""


def stream_reader(media: str, limit: int) -> EventReader | JsonLinesReader | None:
    """What reads a body of this media type as a stream, None when it is no stream."""
    kind = media.partition(";")[0].strip().lower()
    if kind == EVENT_STREAM:
        return EventReader(limit)
    return JsonLinesReader(limit) if kind in NDJSON else None


class HttpItems(Ending):
    """See `message.Items`."""

    __slots__ = ("_answer", "_codec", "_ended", "_ours", "_reader", "_ready")

    def __init__(
        self,
        answer: Answer,
        reader: EventReader | JsonLinesReader,
        codec: Codec,
        *,
        ours: bool,
    ) -> None:
        super().__init__()
        self._answer = answer
        self._reader = reader
        self._codec = codec
        self._ours = ours
        self._ready: deque[bytes] = deque()
        self._ended = False

    async def opened(self, call: Call) -> Reply:
        """Wait for the first value, the end or an error."""
        try:
            try:
                await self._fill(call.attempt_deadline)
            except ReplyTimeout:
                raise call.expired(sent=True) from None
            if not self._ready and self._error is not None:
                self._raise_error()
        except BaseException:
            await self.aclose()
            raise
        return Reply(items=self, headers=self._answer.headers)

    async def receive(self, deadline: float) -> Any:
        """See `message.Items.receive`."""
        if not self._ready:
            await self._fill(deadline)
            if not self._ready:
                await self._answer.aclose(at_end=True)
                if self._error is not None:
                    self._raise_error()
                raise StopAsyncIteration
        return self._ready.popleft()

    async def _fill(self, deadline: float) -> None:
        """Read until there is a value, or nothing more to come."""
        while not self._ready and not self._ended:
            try:
                chunk = await self._answer.chunk(deadline)
            except TimeoutError as error:
                if isinstance(error, ReplyTimeout):
                    raise
                raise ReplyTimeout("the stream was silent for too long") from None
            if chunk:
                self._take(self._reader.feed(chunk))
                continue
            if isinstance(self._reader, JsonLinesReader):
                self._take(self._reader.rest())
            if self._ours and not self._ended:
                raise ConnectionLost("the stream was cut before its end")
            self._ended = True

    def _take(self, events: list[Any]) -> None:
        for event in events:
            if self._ended:
                return
            if not event.type or not (self._ours or event.type == "error"):
                self._ready.append(event.data if self._ours else self._json(event.data))
            elif event.type == "error":
                self._ended = True
                self._error = error_in(self._json(event.data), self._codec.decode)
            elif event.type == "end":
                self._ended = True

    def _json(self, data: bytes) -> bytes:
        """Others write text as it is: it stands for a string."""
        try:
            self._codec.decode(data)
        except PayloadError:
            return self._codec.encode(data.decode("utf-8", "replace"))
        return data

    async def aclose(self) -> None:
        """See `message.Items.aclose`; closing the connection stops the server's handler."""
        self._ended = True
        self._ready.clear()
        await self._answer.aclose()
