r"""JSON as a JavaScript peer reads and writes it: msgspec, and the standard library for the rest.

msgspec refuses lone surrogates (`"\ud800"`), which JavaScript may send; a strict decoder would
turn one odd string into a lost reply. Such text goes through the standard library, both ways.
NaN and the infinities become null, as `JSON.stringify` makes them. Integers keep every digit
(JavaScript itself rounds beyond 2^53).

The one module that imports msgspec: what others need of it they take from here.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any, NoReturn

import msgspec
from msgspec import Raw as Raw
from msgspec import Struct as Struct
from msgspec import field as field

from resilient_client.errors import PayloadError

JsonDecoder = msgspec.json.Decoder
ValidationError = msgspec.ValidationError
convert = msgspec.convert
ABSENT = Raw(b"")
"""The default of a `Raw` field that was not in the object; compare by identity."""


def holder_of(hint: Any) -> Any:
    """What an array of one value of that type is converted into, in half the time.

    msgspec looks at a type anew each time it converts, unless it is a struct's.
    """
    return msgspec.defstruct("Holder", [("value", hint)], array_like=True)


def unknown_types(hint: Any) -> list[type]:
    """The classes in a type that msgspec leaves to `dec_hook`, but for fields with a default."""
    from msgspec import inspect  # only where a server starts

    found: list[type] = []
    known: list[Any] = [inspect.type_info(hint)]  # types may contain themselves
    for each in known:
        if isinstance(each, inspect.CustomType):
            found.append(each.cls)
        for name in each.__struct_fields__:
            parts = getattr(each, name)
            for part in parts if isinstance(parts, tuple) else (parts,):
                inner = part
                if isinstance(part, inspect.Field):
                    inner = part.type if part.required else None
                if isinstance(inner, inspect.Type) and all(inner is not seen for seen in known):
                    known.append(inner)
    return found


class Record(Struct, eq=False):
    """Attributes with a constructor in C: 60 ns where an `__init__` of its own takes 150 to 250.

    For the objects that every message has several of. Identity, hash and text are `object`'s.
    """

    __repr__ = object.__repr__  # a struct's own would show what is in it, secrets too


_LONE_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_decode: Callable[[bytes | Raw], Any] = msgspec.json.Decoder().decode
_MAX_TEXT = 500  # of what the library says about a value, which may quote that value
_TOO_DEEP = "it is nested too deeply or contains itself"


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def parse(text: str, **options: Any) -> Any:
    """`json.loads`, but strict about NaN and Infinity, as `JSON.parse` is.

    Raises:
        ValueError: the text is not JSON.
        RecursionError: it is nested too deeply.
    """
    return json.loads(text, parse_constant=_no_constant, **options)


def default(value: Any) -> Any:
    """What stands for a value that msgspec does not know; raises `TypeError` when nothing does."""
    if isinstance(value, str):  # subclasses: msgspec takes the exact classes only
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, deque):
        return list(value)
    if hasattr(type(value), "__pydantic_validator__"):
        by_alias = value.model_config.get("serialize_by_alias", True)  # what it decodes from
        return value.model_dump(mode="json", by_alias=by_alias)
    raise TypeError(f"a value of type {type(value).__qualname__} has no JSON form")


_encode = msgspec.json.Encoder(enc_hook=default).encode


def encode(value: Any) -> bytes:
    """The compact UTF-8 JSON of a value.

    Raises:
        PayloadError: it cannot be encoded; the text names the type.
    """
    try:
        return _encode(value)
    except UnicodeEncodeError:
        return _refusing(_encode_surrogates, value)
    except (TypeError, ValueError, OverflowError, RecursionError):
        return _refusing(_encode, value)


def plain(value: Any) -> Any:
    """A value of builtins for whatever JSON would have a form for; bytes stay bytes.

    Raises:
        PayloadError: it has no such form; the text names the type.
    """
    try:
        return msgspec.to_builtins(
            value, builtin_types=(bytes, bytearray), str_keys=True, enc_hook=default
        )
    except RecursionError:
        raise PayloadError(f"the value cannot be taken apart: {_TOO_DEEP}") from None
    except (TypeError, ValueError, OverflowError) as error:
        raise PayloadError(f"a {type(value).__qualname__} has no fields: {short(error)}") from error


def _refusing(encoder: Callable[[Any], bytes], value: Any) -> bytes:
    try:
        return encoder(value)
    except RecursionError:
        raise PayloadError(f"the value cannot be encoded as JSON: {_TOO_DEEP}") from None
    except (TypeError, ValueError, OverflowError) as error:
        text = f"a {type(value).__qualname__} cannot be encoded as JSON: {short(error)}"
        raise PayloadError(text) from error


def _encode_surrogates(value: Any) -> bytes:
    plain = msgspec.to_builtins(value, str_keys=True, enc_hook=default)
    return json.dumps(_finite(plain), separators=(",", ":"), allow_nan=False).encode("ascii")


def _finite(value: Any) -> Any:
    if type(value) is float:
        return value if isfinite(value) else None
    if type(value) is dict:
        return {key: _finite(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return [_finite(item) for item in value]
    return value


def short(error: BaseException) -> str:
    """An error's text, bounded: it may quote what a peer sent."""
    text = str(error)
    return text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + "..."


def decode(body: bytes | Raw) -> Any:
    """The value of JSON text, of whatever type it is.

    Raises:
        PayloadError: it is not JSON; the text says where.
    """
    try:
        return _decode(body)
    except (ValueError, RecursionError) as error:
        return decode_surrogates(body, error)


def decode_surrogates(body: bytes | Raw, error: Exception) -> Any:
    """Decode again what msgspec refused with `error`, if lone surrogates may be the reason.

    Raises:
        PayloadError: they are not, or something else is wrong besides.
    """
    if isinstance(error, RecursionError):
        raise PayloadError(f"the JSON cannot be decoded: {_TOO_DEEP}") from None
    data = bytes(body)
    if _LONE_SURROGATE.search(data) is not None:
        try:
            return parse(data.decode())
        except RecursionError:
            raise PayloadError(f"the JSON cannot be decoded: {_TOO_DEEP}") from None
        except ValueError as other:
            error = other
    raise PayloadError(f"this is not JSON: {short(error)}") from error
