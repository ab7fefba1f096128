"""The payload of a REST request, put together from path, query and body."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl

from resilient_client.errors import PayloadError

if TYPE_CHECKING:
    from resilient_client.codecs import Codec

_MAX_QUERY = 1000  # fields


class Fields(NamedTuple):
    """A payload put together from path, query and body; all but the body is text."""

    values: dict[str, Any]


class FieldsCodec:
    """Decodes `Fields`: text is taken for a number or bool where one is due."""

    __slots__ = ("_codec", "convert", "encode")

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self.encode = codec.encode
        self.convert = codec.convert

    def decode(self, body: Any, type: Any = Any) -> Any:  # noqa: A002
        """See `Codec.decode`."""
        if not isinstance(body, Fields):
            return self._codec.decode(body, type)
        values = body.values
        if not values:  # nothing was given: null, where that will do
            try:
                return self._codec.decode(b"null", type)
            except PayloadError:
                pass
        for name in _lists(type):
            if name in values and not isinstance(values[name], list):
                values = {**values, name: [values[name]]}
        return self._codec.convert(values, type, strict=False)


def _lists(hint: Any) -> frozenset[str]:
    try:
        return _cached_lists(hint)
    except TypeError:  # a hint that cannot be hashed
        return frozenset()


@lru_cache(maxsize=256)
def _cached_lists(hint: Any) -> frozenset[str]:
    """The names of a type's fields that hold several values: one `tag=a` is a list of one."""
    if not isinstance(hint, type):
        return frozenset()
    try:
        hints = typing.get_type_hints(hint)
    except (NameError, TypeError):
        return frozenset()
    return frozenset(name for name, each in hints.items() if _several(each))


def _several(hint: Any) -> bool:
    origin = typing.get_origin(hint) or hint
    if isinstance(origin, type):
        return issubclass(origin, list | tuple | set | frozenset)
    return any(_several(each) for each in typing.get_args(hint))


def fields(parameters: Mapping[str, str], query: bytes, body: bytes, codec: Codec) -> Any:
    """The payload of a REST request: the body's object, the query, the path; the later wins.

    Raises:
        PayloadError: the body is no object but has to be put together with the others.
    """
    if not parameters and not query:
        return body or Fields({})
    values: dict[str, Any] = {}
    if body:
        plain = codec.decode(body)
        if isinstance(plain, dict):
            values.update(plain)
        elif plain is not None:
            raise PayloadError("the body is no JSON object: path and query cannot be added to it")
    text = query.decode("latin-1")
    try:
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=_MAX_QUERY)
    except ValueError as error:
        raise PayloadError(f"the query has more than {_MAX_QUERY} fields") from error
    told: dict[str, Any] = {}
    for name, value in pairs:
        if name not in told:
            told[name] = value
        elif isinstance(told[name], list):
            told[name].append(value)
        else:
            told[name] = [told[name], value]
    values.update(told)
    values.update(parameters)
    return Fields(values)
