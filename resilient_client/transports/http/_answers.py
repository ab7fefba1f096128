"""From an HTTP response to a value or an error."""

from __future__ import annotations

import re
import time
import zlib
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
    remote_error,
)
from resilient_client.message import NO_VALUE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from resilient_client.codecs import Codec

_MAX_TEXT = 500  # characters of a body that is no JSON, in an error's message
_charset = re.compile(r"charset=\"?([A-Za-z0-9._:-]+)", re.IGNORECASE).search


class Text:
    """A body that is not JSON, from a REST service."""

    __slots__ = ("content", "media", "type")

    def __init__(self, content: bytes, media: str) -> None:
        self.content = content
        self.media = media
        self.type = media.partition(";")[0].strip().lower()

    def text(self) -> str:
        """Decoded as its media type says, UTF-8 by default."""
        match = _charset(self.media)
        try:
            return self.content.decode(match[1] if match else "utf-8", "replace")
        except LookupError:
            return self.content.decode("utf-8", "replace")

    def decode(self, hint: Any) -> Any:
        """As `Any` (text as str, anything else as bytes), str or bytes."""
        if hint is bytes:
            return self.content
        if hint is str:
            return self.text()
        if hint is Any:
            textual = self.type.startswith("text/") or self.type.endswith("xml")
            return self.text() if textual else self.content
        raise PayloadError(
            f"the answer is {self.type or 'of no type'}, not JSON",
            sent=True,
            hint="ask with returns=str or returns=bytes",
        )


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
        return content
    if not plain:
        return Text(content, media)
    raise ProtocolError(
        f"the answer is {media.partition(';')[0]}, not JSON",
        sent=True,
        hint='a REST service is called with a pattern such as "GET /users/{id}"',
    )


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
    media = headers.get("content-type", "")
    if content:
        if is_json(media):
            try:
                payload = codec.decode(content)
            except PayloadError:
                payload = Text(content, "").text()
        else:
            payload = Text(content, media).text()
    ours = is_ours(headers)
    if payload == NO_HANDLER_MESSAGE:
        if ours and plain and status == 404:
            return NoHandlerError(payload, payload=payload, status=status)
        return RemoteError(payload, payload=payload, status=status)
    code, told = _told(payload)
    after = None
    if status in (429, 503):
        if ours and isinstance(payload, dict):
            after = _number(payload.get("retry_after"))
        if after is None:
            after = retry_after(headers.get("retry-after"), headers.get("date"))
    error = remote_error(
        payload,
        code=code,
        status=told if ours and told is not None else status,
        retry_after=after,
    )
    if isinstance(error, RemoteError) and not error.message:
        error.message = _message(status, reason, payload)
        error.args = (error.message,)
    if 300 <= status < 400 and isinstance(error, RemoteError):
        where = headers.get("location", "elsewhere")[:_MAX_TEXT]
        error.hint = f"the service has moved: it redirects to {where}"
    return error


def _told(payload: Any) -> tuple[str | int | None, int | None]:
    if not isinstance(payload, dict):
        return None, None
    code, status = payload.get("code"), payload.get("status")
    if isinstance(code, bool) or not isinstance(code, str | int):
        code = None
    if isinstance(status, bool) or not isinstance(status, int):
        status = None
    return code, status


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        return None
    return float(value)


def _message(status: int, reason: str, payload: Any) -> str:
    """What a person is told where the peer said nothing in our terms (RFC 9457, FastAPI)."""
    if isinstance(payload, dict):
        for key in ("detail", "title", "error", "error_description"):
            if payload.get(key) and isinstance(payload[key], str):
                return str(payload[key])[:_MAX_TEXT]
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
    unpack = zlib.decompressobj(zlib.MAX_WBITS | 32)
    try:
        text = unpack.decompress(content, limit + 1)
    except zlib.error as error:
        raise ProtocolError(f"the answer is not {encoding}: {error}") from error
    if len(text) > limit:
        return None
    if not unpack.eof:
        raise ProtocolError(f"the answer ends in the middle of its {encoding}")
    return text


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
        return parsedate_to_datetime(text[:100]).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
