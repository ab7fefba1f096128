"""Streams: server-sent events between our two ends, and newline-delimited JSON from others.

Every value is one event whose data is JSON. An error after some values is an event of type "error",
and a complete stream ends with one of type "end": a cut is never taken for the end.
https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

from typing import NamedTuple

from resilient_client.errors import PayloadError

EVENT_STREAM = "text/event-stream"
NDJSON = frozenset(
    f"application/{name}"
    for name in """
    x-ndjson ndjson jsonl json-lines jsonlines x-jsonlines stream+json
    """.split()
)
_MARK = b"\xef\xbb\xbf"


class Event(NamedTuple):
    """One event: its type ("" for a value), and its data."""

    type: str
    data: bytes


END = b"event: end\ndata: \n\n"


def value_event(body: bytes) -> bytes:
    """The event of a value."""
    if b"\n" in body or b"\r" in body:  # a codec that writes over several lines
        body = b"\ndata: ".join(body.splitlines())
    return b"data: %b\n\n" % body


def error_event(body: bytes) -> bytes:
    """The event that ends a stream with an error."""
    return b"event: error\n" + value_event(body)


def _too_long(limit: int) -> PayloadError:
    return PayloadError(
        f"the stream holds a value of more than max_size={limit} bytes",
        sent=True,
        hint="raise max_size= on this client",
    )


class LineReader:
    """Chunks in, lines out, none longer than `limit`; without a byte order mark before them."""

    __slots__ = ("_begun", "_half", "_limit", "_rest", "_size")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._rest: list[bytes] = []
        self._size = 0
        self._begun = False
        self._half = False  # the last line ended with the first half of an end, perhaps

    def feed(self, chunk: bytes) -> list[bytes]:
        r"""The lines completed by this chunk, without their ends (`\n`, `\r\n` or `\r`).

        Raises:
            PayloadError: a line is longer than the limit.
        """
        if self._half and chunk:
            self._half = False
            chunk = chunk.removeprefix(b"\n")
        if b"\n" not in chunk and b"\r" not in chunk:
            self._keep(chunk)
            return []
        text = b"".join((*self._rest, chunk))
        self._rest.clear()
        self._size = 0
        self._half = text.endswith(b"\r")
        lines = text.splitlines(keepends=True)
        if not text.endswith((b"\n", b"\r")):
            self._keep(lines.pop())
        if not self._begun and lines:
            self._begun = True
            lines[0] = lines[0].removeprefix(_MARK)
        for line in lines:
            if len(line) > self._limit + 2:
                raise _too_long(self._limit)
        return [line.rstrip(b"\r\n") for line in lines]

    def _keep(self, text: bytes) -> None:
        self._size += len(text)
        if self._size > self._limit + 1:
            raise _too_long(self._limit)
        self._rest.append(text)


class EventReader:
    """Server-sent events out of chunks."""

    __slots__ = ("_data", "_limit", "_lines", "_size", "_type")

    def __init__(self, limit: int) -> None:
        self._lines = LineReader(limit + 64)
        self._limit = limit
        self._data: list[bytes] = []
        self._size = 0
        self._type = ""

    def feed(self, chunk: bytes) -> list[Event]:
        """The events completed by this chunk; `PayloadError` when one is too long."""
        events = []
        for line in self._lines.feed(chunk):
            if not line:
                if self._data:
                    events.append(Event(self._type, b"\n".join(self._data)))
                    self._data = []
                    self._size = 0
                self._type = ""
                continue
            name, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if name == b"data":
                self._size += len(value) + 1
                if self._size > self._limit + 1:
                    raise _too_long(self._limit)
                self._data.append(value)
            elif name == b"event":
                self._type = value[:64].decode("utf-8", "replace")
        return events


class JsonLinesReader:
    """Values out of newline-delimited JSON."""

    __slots__ = ("_lines",)

    def __init__(self, limit: int) -> None:
        self._lines = LineReader(limit)

    def feed(self, chunk: bytes) -> list[Event]:
        """The values completed by this chunk; `PayloadError` when one is too long."""
        return [Event("", line) for line in self._lines.feed(chunk) if line.strip()]

    def rest(self) -> list[Event]:
        """The last line, when nothing ended it."""
        return self.feed(b"\n")
