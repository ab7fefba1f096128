"""Metadata from the network: what of it may be used."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from types import MappingProxyType
from typing import Any

from resilient_client._json import JsonDecoder, decode
from resilient_client.context import (
    ATTEMPT_HEADER,
    CORRELATION_HEADER,
    DEADLINE_HEADER,
    IDEMPOTENCY_HEADER,
    PEER_HEADER,
)
from resilient_client.errors import PayloadError

MAX_METADATA_KEYS = 32
MAX_METADATA_NAME = 1024
MAX_METADATA_VALUE = 8192
MAX_PLAIN = MAX_METADATA_NAME
NO_METADATA: Mapping[str, str] = MappingProxyType({})
BACKSLASH, DELETE = b"\\\x7f"
USUAL = frozenset({
    PEER_HEADER, CORRELATION_HEADER, DEADLINE_HEADER, ATTEMPT_HEADER, IDEMPOTENCY_HEADER,
    "traceparent", "tracestate", "baggage",
})  # fmt: skip
_read_strings = JsonDecoder(dict[str, str]).decode


def read_metadata(metadata_json: bytes) -> Mapping[str, str]:
    """What may be used of metadata from the network, whatever it is."""
    try:
        metadata = _read_strings(metadata_json)
    except (ValueError, RecursionError):
        try:
            return sanitised(decode(metadata_json))
        except PayloadError:
            return NO_METADATA
    return checked(metadata) if is_plain(metadata_json) else sanitised(metadata)


def is_plain(json: bytes) -> bool:
    """Whether all strings in a JSON text are printable, and no longer than metadata may be."""
    # without an escape there is no control character in it but DEL
    return (
        len(json) <= MAX_PLAIN and json.isascii() and BACKSLASH not in json and DELETE not in json
    )


def checked(metadata: dict[str, str]) -> Mapping[str, str]:
    """What may be used of metadata from a plain text."""
    names = "".join(metadata)
    if len(metadata) <= MAX_METADATA_KEYS and names == names.lower() and "" not in metadata:
        return metadata
    return sanitised(metadata)


def sanitised(metadata: Any) -> Mapping[str, str]:
    """Bounded, printable strings by lower-case name; the rest of what a peer sent is left out.

    Of the first 32 entries, and of those that this package itself sends behind them, names up to
    1024 and values up to 8192 characters.
    """
    if not isinstance(metadata, dict):
        return NO_METADATA
    entries = list(islice(metadata.items(), MAX_METADATA_KEYS))
    if len(metadata) > MAX_METADATA_KEYS:  # a deadline or a key must not go by others' number
        entries += [(name, metadata[name]) for name in USUAL if name in metadata]
    checked: dict[str, str] = {}
    for name, value in entries:
        if (
            type(value) is str
            and len(value) <= MAX_METADATA_VALUE
            and (value.isprintable() or value.replace("\t", "").isprintable())
            and 0 < len(name) <= MAX_METADATA_NAME
            and name.isprintable()
        ):
            checked[name.lower()] = value
    return checked


def beside(headers: Mapping[str, str], packet: Mapping[str, str]) -> Mapping[str, str]:
    """A message's own headers, and what stands in its packet's metadata alone, as from a hook."""
    return {**packet, **headers} if packet else headers
