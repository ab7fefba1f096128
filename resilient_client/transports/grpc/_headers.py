"""gRPC metadata and this package's headers: names to printable ASCII, or bytes where so named."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Collection, Mapping
from typing import Any

from resilient_client.context import (
    ATTEMPT_HEADER,
    CORRELATION_HEADER,
    DEADLINE_HEADER,
    IDEMPOTENCY_HEADER,
)
from resilient_client.errors import PayloadError
from resilient_client.transports._metadata import MAX_METADATA_KEYS, MAX_METADATA_VALUE, sanitised

USER_AGENT = "resilient_client"
"""How both ends of this package know each other: a header that is sent anyway, and compressed."""
RECEIVERS_HEADER = "x-receivers"
PREFER = ("prefer", "respond-async")  # RFC 7240 section 4.1, as over HTTP: this is an event
Pair = tuple[str, str | bytes]
# https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md, "Custom-Metadata"
_name = re.compile(r"[0-9a-z_.-]+").fullmatch
_value = re.compile(r"[\x20-\x7e]*").fullmatch


# names that nobody needs to look at each time
_USUAL = frozenset({CORRELATION_HEADER, ATTEMPT_HEADER, IDEMPOTENCY_HEADER, "traceparent"})
_HTTPS_OWN = frozenset({"content-type", "date", "server", "trailer", "via"})


def outgoing(metadata: Mapping[str, str]) -> list[Pair]:
    """A call's headers as metadata; the deadline travels as gRPC's own timeout.

    Raises:
        PayloadError: one of them cannot be metadata. The value is not shown: it may be secret.
    """
    pairs: list[Pair] = []
    for pair in metadata.items():
        name, value = pair
        if name in _USUAL and value.isascii() and value.isprintable():
            pairs.append(pair)
        elif name != DEADLINE_HEADER:
            pairs.append(_pair(name, value))
    return pairs


def _pair(name: str, value: Any) -> Pair:
    if _name(name) is None or name.startswith("grpc-"):
        raise PayloadError(f"header {name!r} has a name that gRPC does not allow")
    if name.endswith("-bin"):
        if isinstance(value, bytes):
            return name, value
        try:
            return name, base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            raise PayloadError(f"header {name!r} holds bytes: give it their base64") from None
    if _value(value) is None:
        raise PayloadError(f"header {name!r} holds a character that gRPC metadata cannot")
    return name, value


def trailers(metadata: Any) -> list[Pair]:
    """What a handler's error wants to travel beside it, as far as it can."""
    pairs: list[Pair] = []
    if isinstance(metadata, Mapping):
        for name, value in metadata.items():
            try:
                pairs.append(_pair(str(name).lower(), value))
            except (PayloadError, TypeError):
                continue
    return pairs


def incoming(metadata: Collection[tuple[str, Any]] | None) -> dict[str, str]:
    """Received metadata as headers: repeated names joined by ", ", bytes as base64."""
    found: dict[str, str] = {}
    plain = metadata is None or len(metadata) <= MAX_METADATA_KEYS
    for name, value in metadata or ():
        text = value
        if type(value) is not str:
            text = base64.b64encode(value).decode()
        if name in found:
            text = f"{found[name]}, {text}"
        elif not name:
            plain = False
        if len(text) > MAX_METADATA_VALUE or not text.isprintable():
            plain = False
        found[name] = text
    # the names are lower-case and printable: the library has seen to that
    return found if plain else dict(sanitised(found))


def is_ours(headers: Mapping[str, str]) -> bool:
    """Whether a request comes from this package."""
    return headers.get("user-agent", "").startswith(USER_AGENT)


def own_of(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Those of received trailers that are the application's, bytes as they are."""
    return {
        name: value
        for name, value in metadata.items()
        if not name.startswith(("grpc-", "x-resilient-client")) and name not in _HTTPS_OWN
    }
