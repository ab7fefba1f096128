"""Record headers: Nest's own, and what travels beside a payload."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from resilient_client.transports._metadata import sanitised

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

CORRELATION = "kafka_correlationId"
REPLY_TOPIC = "kafka_replyTopic"
REPLY_PARTITION = "kafka_replyPartition"
ERROR = "kafka_nest-err"
ENDED = "kafka_nest-is-disposed"
NESTS = frozenset({CORRELATION, REPLY_TOPIC, REPLY_PARTITION, ERROR, ENDED})
KEY = "kafka-key"
"""The header that holds a record's key, on both ends of a call."""

Headers = list[tuple[str, bytes]]


def headers_of(metadata: Mapping[str, str]) -> tuple[Headers, bytes | None]:
    """Metadata as record headers, and the key if one is among it."""
    if KEY not in metadata:
        headers = []
        for name, value in metadata.items():  # most have one: a comprehension would cost a frame
            headers.append((name, value.encode()))
        return headers, None
    headers = [(name, value.encode()) for name, value in metadata.items() if name != KEY]
    return headers, metadata[KEY].encode() or None


def metadata_of(headers: Iterable[tuple[str, bytes | None]], key: bytes | None) -> dict[str, str]:
    """What a handler may see of a record's headers and key: bounded and printable."""
    found: dict[str, Any] = {}
    if key:
        found[KEY] = key.decode(errors="replace")
    for name, value in headers:
        if name not in NESTS and value is not None:
            found[name] = value.decode(errors="replace")
    return dict(sanitised(found))
