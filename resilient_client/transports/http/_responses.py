"""How requests to our server are refused, and with which status errors travel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from resilient_client.errors import (
    INTERNAL_SERVER_ERROR,
    SERVER_OVERLOADED,
    InvalidPayloadError,
    NoHandlerError,
    RemoteError,
    Throttled,
    wire_error,
)
from resilient_client.message import NO_VALUE
from resilient_client.transports.http._requests import header

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

CLOSE = (b"connection", b"close")
_MAX_HEADERS = 256
_MAX_HEADER_BYTES = 64 * 1024


class Refused(Exception):  # noqa: N818  (how a request ends, not an error of ours)
    """The request is answered without a handler; a payload of `NO_VALUE` is no body."""

    def __init__(
        self, status: int, payload: Any, headers: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        super().__init__(status)
        self.status = status
        self.payload = payload
        self.headers = headers


class Disconnected(Exception):  # noqa: N818
    """The caller left before it had sent everything."""


def request_headers(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Lower-case names to text; several of one name are joined (RFC 9110 section 5.3)."""
    headers: dict[str, str] = {}
    size = 0
    for count, (name, value) in enumerate(raw):
        size += len(name) + len(value)
        if count >= _MAX_HEADERS or size > _MAX_HEADER_BYTES:
            raise refused(431, "The headers are too large")
        try:
            text = value.decode()
        except UnicodeDecodeError:
            text = value.decode("latin-1")
        key = name.decode("latin-1")
        headers[key] = f"{headers[key]}, {text}" if key in headers else text
    return headers


def extra_headers(headers: Any) -> list[tuple[bytes, bytes]]:
    """Headers that a handler's policies put beside its answer."""
    if not headers:
        return []
    return [header(str(name).lower(), str(value)) for name, value in headers.items()]


def status_of(error: RemoteError) -> int:
    """The status that an error travels with."""
    if isinstance(error, NoHandlerError):
        return 404
    if isinstance(error, InvalidPayloadError):
        return 422
    if isinstance(error, Throttled) and error.message == SERVER_OVERLOADED:
        return 503
    if error.status is not None and 400 <= error.status < 600:
        return error.status
    return 500 if error.message == INTERNAL_SERVER_ERROR else 400


def refused(status: int, message: str, headers: Sequence[tuple[bytes, bytes]] = ()) -> Refused:
    """Refused, with a text for people."""
    return Refused(status, {"status": status, "message": message}, headers)


def too_large(max_size: int) -> Refused:
    """Refused: more than may be sent."""
    text = f"The payload has more than {max_size} bytes"
    return refused(413, text, [CLOSE])  # what is still to come is not read


def nowhere(method: str, allowed: list[str]) -> Refused:
    """No handler for this method and path."""
    if not allowed:
        return Refused(404, wire_error(NoHandlerError()))
    allow = (b"allow", ", ".join([*allowed, "OPTIONS"]).encode())
    if method == "OPTIONS":
        return Refused(204, NO_VALUE, [allow])
    return refused(405, f"{method} is not allowed here", [allow])
