"""Nest's frames on TCP: `<length>#<json>`, the length in UTF-16 code units of the JSON text."""

from __future__ import annotations

import re

from resilient_client.errors import ProtocolError
from resilient_client.transports._base import DEFAULT_MAX_SIZE

ENVELOPE = 64 * 1024
"""Bytes that a frame may be larger than the largest payload: pattern, id, metadata."""

_MAX_HEADER = 64
_MAX_PLAIN_HEADER = 16
_FIRST_BUFFER, _BUFFER = 4 * 1024, 64 * 1024
_MIN_ROOM = 4096
_LENGTH = re.compile(rb"\s*\+?([0-9]+)")  # parseInt: what follows the digits is ignored
_CONTINUATION = bytes(range(0x80, 0xC0))
_FOUR_BYTES = bytes(range(0xF0, 0x100))


def units(text: bytes) -> int:
    """UTF-16 code units of UTF-8 text; a cut-off character counts where it begins."""
    if text.isascii():
        return len(text)
    starts = text.translate(None, _CONTINUATION)
    return 2 * len(starts) - len(starts.translate(None, _FOUR_BYTES))


def frame(json: bytes) -> bytes:
    """One frame, ready to be written."""
    return b"%d#%b" % (len(json) if json.isascii() else units(json), json)


class FrameReader:
    """Takes frames out of a byte stream, for `asyncio.BufferedProtocol`.

    The receive buffer is used over and over. It is small for a connection that says little, and
    grows with what has arrived of a large frame, never by what was announced, and not beyond
    `max_size`.

    What comes before something malformed is returned; then `error` is set, nothing more is
    returned, and both methods raise it.
    """

    __slots__ = (
        "_buffer",
        "_end",
        "_length",
        "_limit",
        "_scanned",
        "_start",
        "_units",
        "_view",
        "error",
    )

    def __init__(self, max_size: int = DEFAULT_MAX_SIZE) -> None:
        """Take frames whose payload is at most `max_size` bytes (the envelope comes on top)."""
        self._limit = max_size + ENVELOPE
        self._renew(_FIRST_BUFFER)
        self._start = 0  # of the frame's header, or of its text once the length is known
        self._end = 0  # of what has been received
        self._length = -1  # of the current frame in UTF-16 units, -1: not known yet
        self._scanned = 0  # bytes of its text whose units are counted, when it is not ASCII
        self._units = 0
        self.error: ProtocolError | None = None

    @property
    def incomplete(self) -> bool:
        """A frame has begun and its end has not arrived."""
        return self._end > self._start or self._length >= 0

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go: never empty."""
        if self.error is not None:
            raise self.error
        if len(self._buffer) - self._end < _MIN_ROOM:
            self._make_room()
        if len(self._buffer) > _BUFFER:  # what follows a large frame may be very many small ones
            missing = self._length - (self._end - self._start)
            return self._view[self._end : self._end + max(_BUFFER, missing)]
        return self._view[self._end :] if self._end else self._view

    def buffer_updated(self, nbytes: int) -> list[bytes]:
        """`nbytes` have arrived in the buffer: the frames that are complete now.

        Look at `error` after using them.

        Raises:
            ProtocolError: what arrives is malformed or too large, and no frame came before it.
        """
        if self.error is not None:
            raise self.error
        self._end += nbytes
        frames: list[bytes] = []
        try:
            plain = True
            while self._start < self._end:
                if self._length < 0 and plain:
                    plain = False  # what it leaves, it would leave again
                    self._take_plain(frames)
                    continue
                if self._length < 0 and not self._read_length():
                    break
                text = self._read_text()
                if text is None:
                    break
                frames.append(text)
                self._start += len(text)
                self._length = -1
        except ProtocolError as error:
            self.error = error
            if not frames:
                raise
        if self._start == self._end:
            size, filled = len(self._buffer), self._end
            self._start = self._end = 0
            if size > _BUFFER:
                self._renew(_BUFFER)
            elif filled == size < _BUFFER:  # there was more to read
                self._renew(4 * size)
        return frames

    def _renew(self, size: int) -> None:
        self._buffer = bytearray(size)
        self._view = memoryview(self._buffer)

    def _take_plain(self, frames: list[bytes]) -> None:
        """Take complete ASCII frames, which most are, the quick way; stop before any other."""
        data = self._view[self._start : self._end].tobytes()
        if not data.isascii():
            return
        size, start = len(data), 0
        while start < size:
            digits, mark, _ = data[start : start + _MAX_PLAIN_HEADER].partition(b"#")
            if not mark or not digits.isdigit():
                break
            first = start + len(digits) + 1
            stop = first + int(digits)
            if stop > size or stop == first or stop - first >= self._limit:
                break
            frames.append(data[first:stop])
            start = stop
        self._start += start

    def _read_length(self) -> bool:
        mark = self._buffer.find(b"#", self._start, min(self._end, self._start + _MAX_HEADER))
        if mark < 0:
            if self._end - self._start >= _MAX_HEADER:
                raise ProtocolError("what arrives is not Nest's TCP framing: no length before '#'")
            return False
        text = self._view[self._start : mark].tobytes()
        if not text.isdigit():
            match = _LENGTH.match(text)
            if match is None:
                raise ProtocolError(f"a frame's length is {text[:32]!r}")
            text = match[1]
        length = int(text)
        if length == 0:
            raise ProtocolError("a frame's length is 0")
        if length > self._limit:
            raise ProtocolError(
                f"a frame of {length} characters is announced; at most {self._limit} are taken"
            )
        self._start = mark + 1
        self._length = length
        self._scanned = self._units = 0
        return True

    def _read_text(self) -> bytes | None:
        """The current frame's text; None when it has not all arrived."""
        start, available, length = self._start, self._end - self._start, self._length
        if available < length:
            return None
        if self._scanned == 0:
            text = self._view[start : start + length].tobytes()
            if text.isascii():
                return text
        size = self._count(start, available, length)
        return None if size < 0 else self._view[start : start + size].tobytes()

    def _count(self, start: int, available: int, length: int) -> int:
        """Bytes that hold `length` units, -1 when they have not all arrived."""
        scanned, counted = self._scanned, self._units
        while counted < length and scanned < available:
            # a unit takes a byte at least: this never goes past the end of the frame
            step = min(length - counted, available - scanned)
            more = units(self._view[start + scanned : start + scanned + step].tobytes())
            while counted + more > length and step > 1:  # not UTF-8, or cut: find out where
                step //= 2
                more = units(self._view[start + scanned : start + scanned + step].tobytes())
            counted += more
            scanned += step
        missing = counted < length
        if counted == length:
            while self._buffer[start + scanned - 1] & 0xC0 == 0x80:  # back to the last character
                scanned -= 1
            while (missing := not self._whole(start + scanned)) and scanned < available:
                if self._buffer[start + scanned] & 0xC0 != 0x80:
                    missing = False  # not UTF-8: whoever decodes the text will say so
                    break
                scanned += 1
        self._scanned, self._units = scanned, counted
        if counted > length:
            raise ProtocolError("a frame's length ends inside a character")
        if scanned > self._limit:
            raise ProtocolError(f"a frame of more than {self._limit} bytes")
        if scanned > 3 * length:  # three bytes a unit are the most that UTF-8 takes
            raise ProtocolError("a frame's text is not UTF-8")
        return -1 if missing else scanned

    def _whole(self, stop: int) -> bool:
        """Whether the character before `stop` has all its bytes."""
        first = stop - 1
        while first > self._start and stop - first < 4 and self._buffer[first] & 0xC0 == 0x80:
            first -= 1
        lead = self._buffer[first]
        need = 1 if lead < 0xC0 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
        return stop - first >= need

    def _make_room(self) -> None:
        size, kept = len(self._buffer), self._end - self._start
        rest = self._view[self._start : self._end]
        if self._end == size < _BUFFER:  # there was more to read
            self._renew(4 * size)
        elif self._start == 0 or kept > size // 2:
            self._renew(min(2 * size, self._limit + _MAX_HEADER + _BUFFER))
        else:
            rest = memoryview(rest.tobytes())  # the places may overlap
        self._view[:kept] = rest
        self._start, self._end = 0, kept
