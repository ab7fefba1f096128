"""What stands in NATS's messages besides the payload: subjects and headers."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

from resilient_client.errors import ConfigurationError, PayloadError
from resilient_client.transports._metadata import (
    MAX_METADATA_KEYS,
    MAX_METADATA_NAME,
    USUAL,
    beside,
    sanitised,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

_is_token = lru_cache(maxsize=1024)(re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch)
_no_subject = re.compile(r"[\x00-\x20\x7f]|^\.|\.\.|\.$|^$").search
_is_text = re.compile(r"[^\ud800-\udfff]*").fullmatch


@lru_cache(maxsize=1024)
def checked_subject(subject: str, *, wildcards: bool = False) -> str:
    """The subject, if NATS can carry it.

    Raises:
        ConfigurationError: it is empty, holds blanks or empty tokens, or a wildcard out of place.
    """
    if _no_subject(subject) or not _is_text(subject):
        raise ConfigurationError(
            f"{subject!r} cannot be a NATS subject",
            hint="no blanks, and something between the dots",
        )
    tokens = subject.split(".")
    if not wildcards and ("*" in tokens or tokens[-1] == ">"):
        raise ConfigurationError(
            f"{subject!r} is a NATS wildcard: nothing can be sent to it",
            hint="wildcards are for the patterns of handlers",
        )
    if ">" in tokens[:-1]:
        raise ConfigurationError(f"{subject!r} has something after its >", hint="> comes last")
    return subject


def header_block(headers: Mapping[str, str]) -> str:
    """The headers as they travel.

    Raises:
        PayloadError: a name or a value that no NATS header can have.
    """
    text = "NATS/1.0\r\n"
    for name, value in headers.items():
        if name not in USUAL and not _is_token(name):
            raise PayloadError(f"header {name!r} holds a character that no NATS header can")
        text += f"{name}: {value}\r\n"
    if text.count("\n") != len(headers) + 1:
        raise PayloadError("a header's value holds a line's end")
    return text + "\r\n"


def read_headers(block: bytes) -> Mapping[str, str]:
    """Lower-case names to values, of several values the first, as in Nest; bounded and printable.

    See `sanitised` for the bounds.
    """
    lines = block.decode(errors="replace").split("\r\n")
    headers: dict[str, str] = {}
    for line in lines[1:-2]:
        name, colon, value = line.partition(":")
        if colon:
            headers.setdefault(name.lower(), value.strip())
    if (
        len(block) <= MAX_METADATA_NAME  # then every bound is kept
        and len(headers) <= MAX_METADATA_KEYS
        and "".join(lines).isprintable()
        and "" not in headers
    ):
        return headers
    return sanitised(headers)


def joined(metadata: Mapping[str, str], block: bytes | None) -> Mapping[str, str]:
    """See `beside`."""
    return metadata if block is None else beside(read_headers(block), metadata)


def status(block: bytes | None) -> int:
    """The status the server itself put into a header block: 503 is "no responders"; 0 is none."""
    if block is None or block[8:9] != b" ":
        return 0
    number = block[9:12]
    return int(number) if number.isdigit() else 0
