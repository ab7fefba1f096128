"""Metadata from the network: what of it may be used."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from types import MappingProxyType
from typing import Any

from resilient_client._json import JsonDecoder, decode
from resilient_client.errors import PayloadError

MAX_METADATA_KEYS = 32
MAX_METADATA_NAME = 1024
MAX_METADATA_VALUE = 8192
NO_METADATA: Mapping[str, str] = MappingProxyType({})
_BACKSLASH, _DELETE = b"\\\x7f"
_read_strings = JsonDecoder(dict[str, str]).decode


def read_metadata(metadata_json: bytes) -> Mapping[str, str]:
    """What may be used of metadata from the network, whatever it is."""
    # JSON without an escape holds no control character but DEL
    plain = (
        len(metadata_json) <= MAX_METADATA_NAME
        and metadata_json.isascii()
        and _BACKSLASH not in metadata_json
        and _DELETE not in metadata_json
        and metadata_json == metadata_json.lower()
    )
    try:
        metadata = _read_strings(metadata_json)
    except (ValueError, RecursionError):
        try:
            return sanitised(decode(metadata_json))
        except PayloadError:
            return NO_METADATA
    if plain and len(metadata) <= MAX_METADATA_KEYS and "" not in metadata:
        return metadata
    return sanitised(metadata)


def sanitised(metadata: Any) -> Mapping[str, str]:
    """Bounded, printable strings by lower-case name; the rest of what a peer sent is left out.

    Of the first 32 entries, names up to 1024 and values up to 8192 characters.
    """
    if not isinstance(metadata, dict):
        return NO_METADATA
    checked: dict[str, str] = {}
    for name, value in islice(metadata.items(), MAX_METADATA_KEYS):
        if (
            type(value) is str
            and len(value) <= MAX_METADATA_VALUE
            and value.isprintable()
            and 0 < len(name) <= MAX_METADATA_NAME
            and name.isprintable()
        ):
            checked[name.lower()] = value
    return checked
