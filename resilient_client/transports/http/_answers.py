"""From an HTTP response to a value or an error."""

from __future__ import annotations

import codecs
import re
import time
import zlib
from datetime import UTC
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from resilient_client.context import PEER_HEADER
from resilient_client.errors import (
    NO_HANDLER_MESSAGE,
    NoHandlerError,
    PayloadError,
    ProtocolError,
    RemoteError,
    ResilientClientError,
    redact,
    remote_error,
    told_seconds,
    told_status,
)
from resilient_client.message import NO_VALUE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from resilient_client.codecs import Codec

_DIGITS = 18  # of a length that is worth being read
_MAX_TEXT = 500  # characters of a body that is no JSON, in an error's message
_GZIP = b"\x1f\x8b"
_PIECE, _MAX_MEMBERS = 64 * 1024, 10_000  # what follows in a piece is copied for each member
_MARK = b"\xef\xbb\xbf"
_charset = re.compile(r"charset=\"?([A-Za-z0-9._:-]+)", re.IGNORECASE).search
_NO_CHARSETS = frozenset({"idna", "punycode", "raw-unicode-escape", "undefined", "unicode-escape"})
"""What Python calls text encodings besides; to decode a megabyte of some takes minutes."""


class Text:
    """A body that is not JSON, from a REST service."""

    __slots__ = ("content", "media", "type")

    def __init__(self, content: bytes, media: str) -> None:
        self.content = content
        self.media = media
        self.type = media.partition(";")[0].strip().lower()

    def text(self) -> str:
        """Decoded as its media type says, UTF-8 by default."""
        try:
            return self.content.decode(charset_of(self.media), "replace")
        except LookupError:  # one of bytes to bytes
            return self.content.decode("utf-8", "replace")

    def decode(self, hint: Any) -> Any:
        """As `Any` (text as str, anything else as bytes), str or bytes."""
        if hint is bytes or hint == bytes | None:
            return self.content
        if hint is str or hint == str | None:
            return self.text()
        if hint is Any:
            textual = self.type.startswith("text/") or self.type.endswith("xml")
            return self.text() if textual else self.content
        raise PayloadError(
            f"the answer is {self.type or 'of no type'}, not JSON",
            sent=True,
            hint="ask with returns=str or returns=bytes",
        )


def charset_of(media: str) -> str:
    """Python's name of a media type's charset; UTF-8 without one, or where it is none."""
    match = _charset(media)
    if match is None:
        return "utf-8"
    try:
        name = codecs.lookup(match[1]).name
    except LookupError:
        return "utf-8"
    return "utf-8" if name in _NO_CHARSETS else name


def json_of(content: bytes, media: str) -> bytes:
    """JSON as it is to be; some services begin with a byte order mark, or have another charset."""
    if media != "application/json" and (charset := charset_of(media)) not in ("utf-8", "ascii"):
        try:
            return content.decode(charset).encode()
        except (LookupError, UnicodeError):
            return content
    return content.removeprefix(_MARK)


def is_json(media: str) -> bool:
    """Whether a media type is JSON."""
    if media == "application/json":
        return True
    kind = media.partition(";")[0].strip().lower()
    return kind == "application/json" or kind.endswith("+json")


def is_ours(headers: Mapping[str, str]) -> bool:
    """Whether the response comes from a server of this package."""
    return PEER_HEADER in headers


def value_of(status: int, headers: Mapping[str, str], content: bytes, *, plain: bool) -> Any:
    """The body of a successful answer: JSON bytes, a `Text`, or `NO_VALUE`.

    Raises:
        ProtocolError: a plain pattern was answered with something else than JSON.
    """
    if status == 204 or not content:
        return NO_VALUE
    media = headers.get("content-type", "")
    if is_json(media) or (plain and not media):
        return json_of(content, media)
    if not plain:
        return Text(content, media)
    raise ProtocolError(
        f"the answer is {media.partition(';')[0]}, not JSON",
        sent=True,
        hint='a REST service is called with a pattern such as "GET /users/{id}"',
    )


def announced(headers: Mapping[str, str]) -> int:
    """Bytes of a body, as far as they are told."""
    told = headers.get("content-length", "")
    if not told.isascii() or not told.isdigit():
        return 0
    return int(told) if len(told) <= _DIGITS else 10**_DIGITS


def error_of(
    status: int,
    reason: str,
    headers: Mapping[str, str],
    content: bytes,
    codec: Codec,
    *,
    plain: bool,
) -> ResilientClientError:
    """The error that a response with an unsuccessful status stands for."""
    payload: Any = None
    is_text = False
    media = headers.get("content-type", "")
    if content:
        if is_json(media):
            try:
                payload = codec.decode(json_of(content, media))
            except PayloadError:
                payload = Text(content, "").text()
        else:
            payload = Text(content, media).text()
            is_text = True
    ours = is_ours(headers)
    if payload == NO_HANDLER_MESSAGE:
        if ours and plain and status == 404:
            return NoHandlerError(payload, payload=payload, status=status)
        return RemoteError(payload, payload=payload, status=status)
    told = told_status(payload) if ours and isinstance(payload, dict) else None
    after = None
    if status in (429, 503):
        if ours and isinstance(payload, dict):
            after = told_seconds(payload.get("retry_after"))
        if after is None:
            after = retry_after(headers.get("retry-after"), headers.get("date"))
    error = remote_error(
        payload,
        status=status if told is None else told,
        retry_after=after,
    )
    if isinstance(error, RemoteError) and (is_text or not error.message):
        page = "html" in media  # made for a browser, often by a proxy: nothing for a log
        error.message = _message(status, reason, "" if page else payload)
        error.args = (error.message,)
    where = headers.get("location")
    if where and 300 <= status < 400 and isinstance(error, RemoteError):
        # a signature or a token may be in the rest
        where = redact(where.partition("?")[0].partition("#")[0])[:_MAX_TEXT]
        error.hint = f"the service has moved: it redirects to {where}"
    return error


def _message(status: int, reason: str, payload: Any) -> str:
    """What a person is told where the peer said nothing in our terms (RFC 9457, FastAPI)."""
    if isinstance(payload, dict):
        for key in ("detail", "title", "error", "error_description"):
            if payload.get(key) and isinstance(payload[key], str):
                return str(payload[key])[:_MAX_TEXT]
    if isinstance(payload, str) and payload.strip():
        return payload.strip()[:_MAX_TEXT]
    if not reason:
        try:
            reason = HTTPStatus(status).phrase
        except ValueError:
            reason = ""
    return f"{status} {reason}".rstrip()


def unpacked(content: bytes, encoding: str, limit: int) -> bytes | None:
    """A body unpacked, None when it then has more than `limit` bytes.

    Packing is not asked for, but some services pack whatever they are asked.

    Raises:
        ProtocolError: it is packed in a way that nobody can be sure of.
    """
    if not content:
        return content
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise ProtocolError(f"the answer is packed as {encoding}, which nobody asked for")
    kind = zlib.MAX_WBITS | 32
    if encoding == "deflate" and (content[0] & 0x0F != 8 or int.from_bytes(content[:2]) % 31):
        kind = -zlib.MAX_WBITS  # without zlib's header, against the standard but common
    parts: list[bytes] = []
    size = members = 0
    left = memoryview(content)
    while not members or (bytes(left[:2]) == _GZIP and members < _MAX_MEMBERS):
        members += 1
        unpack = zlib.decompressobj(kind)
        while left and not unpack.eof:
            piece = left[:_PIECE]
            try:
                parts.append(unpack.decompress(piece, limit + 1 - size))
            except zlib.error as error:
                raise ProtocolError(f"the answer is not {encoding}: {error}") from error
            size += len(parts[-1])
            if size > limit:
                return None
            left = left[len(piece) - len(unpack.unused_data) :]
        if not unpack.eof:
            raise ProtocolError(f"the answer ends in the middle of its {encoding}")
    if bytes(left[:2]) == _GZIP:
        raise ProtocolError(f"the answer is {encoding} in more than {_MAX_MEMBERS} members")
    return b"".join(parts)


def retry_after(value: str | None, date: str | None) -> float | None:
    """Seconds of a Retry-After header: a number of them, or a date (RFC 9110 section 10.2.3).

    A date is read against the server's own clock where the response tells it.
    """
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value) if len(value) < 10 else None
    when = _timestamp(value)
    if when is None:
        return None
    now = _timestamp(date) if date is not None else None
    return max(0.0, when - (time.time() if now is None else now))


def _timestamp(text: str) -> float | None:
    try:
        when = parsedate_to_datetime(text[:100])
        return (when.replace(tzinfo=UTC) if when.tzinfo is None else when).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
