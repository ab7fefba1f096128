"""Values as Nest's Kafka serializer writes them and its parser reads them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from resilient_client.errors import PayloadError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from resilient_client.codecs import Codec

_JSON = (b"{", b"[")
_BINARY = b"\0"
_BYTES = (bytes, bytearray, memoryview)
_LONGEST_SCALAR = 400  # characters
_scalar = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false").fullmatch


class KafkaCodec:
    """A codec's values as they stand in a record: only objects and arrays are JSON.

    A text is its UTF-8, bytes are themselves, numbers and booleans are their text, null is no value
    at all. What comes back is parsed where it starts with a brace or bracket, kept as text where
    that fails, and kept as bytes where it starts with a zero byte, or bytes are asked for. A number
    or boolean is told from a text that looks like one by the type that is asked for; asked for
    anything, it is the number.
    """

    __slots__ = ("_codec", "_encode")

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._encode = codec.encode

    def encode(self, value: Any) -> bytes | None:
        """The bytes of a value, None for null.

        Raises:
            PayloadError: it cannot be encoded.
        """
        kind = type(value)
        if kind is dict or kind is list:
            return self._encode(value)
        if kind is str:
            return _utf8(value)
        if value is None:
            return None
        if isinstance(value, _BYTES):
            return bytes(value)
        body = self._encode(value)
        if body[:1] == b'"':  # what becomes a text, such as a date
            return _utf8(self._codec.decode(body, str))
        return None if body == b"null" else body

    def decode(self, body: bytes | None, type: Any = Any) -> Any:  # noqa: A002
        """The value of bytes, checked against a type hint.

        Raises:
            PayloadError: it does not fit; the text says where.
        """
        if body is None:
            return None if type is Any else self._codec.convert(None, type)
        if type is bytes or type == bytes | None:
            return body
        if body[:1] in _JSON:
            try:
                return self._codec.decode(body, type)
            except PayloadError:
                text = body.decode(errors="replace")
                if type is Any or type is str:
                    return text
                raise
        if body[:1] == _BINARY and type is Any:
            return body
        text = body.decode(errors="replace")
        if type is str:
            return text
        value: Any = text
        if len(text) <= _LONGEST_SCALAR and _scalar(text) is not None:
            try:
                value = self._codec.decode(body)
            except PayloadError:  # a number beyond all bounds
                value = text
        if type is Any:
            return value
        try:
            return self._codec.convert(value, type)
        except PayloadError:
            if value is text:
                raise
            return self._codec.convert(text, type)

    def convert(self, value: Any, type: Any = Any, *, strict: bool = True) -> Any:  # noqa: A002
        """See `Codec.convert`."""
        return self._codec.convert(value, type, strict=strict)


class BatchCodec(KafkaCodec):
    """The values of several records as one list."""

    __slots__ = ()

    def decode(self, body: Any, type: Any = Any) -> Any:  # noqa: A002
        """The list of what the bodies hold, checked against a type hint for the list.

        Raises:
            PayloadError: one of them does not fit; the text says where.
        """
        bodies: Sequence[bytes | None] = body
        item = _item_type(type)
        values: list[Any] = []
        for number, each in enumerate(bodies):
            try:
                values.append(super().decode(each, item))
            except PayloadError as error:
                raise PayloadError(f"record {number} of the batch: {error.args[0]}") from error
        return values if item is not Any or type is Any else self.convert(values, type)


def _item_type(hint: Any) -> Any:
    arguments = getattr(hint, "__args__", ())
    return arguments[0] if getattr(hint, "__origin__", None) is list and arguments else Any


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:  # a lone surrogate: what JavaScript puts in its place
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()
