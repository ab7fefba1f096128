"""Values to bytes and back: the `Codec` protocol and `JsonCodec`, the one Nest's packets need."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, TypeVar, get_origin, overload

from resilient_client import _json, _pydantic
from resilient_client.errors import ConfigurationError, PayloadError

T = TypeVar("T")


class Codec(Protocol):
    """How payloads become bytes and bytes become typed values.

    On transports that speak Nest's packets the bytes are put into a JSON object as they are, so
    they must themselves be JSON.
    """

    def encode(self, value: Any, /) -> bytes:
        """The bytes of a value; `PayloadError` when it has none."""

    def decode(self, body: bytes, type: Any = Any, /) -> Any:  # noqa: A002
        """The value of bytes, checked against a type; `PayloadError` says where it does not fit."""

    def convert(self, value: Any, type: Any = Any, /, *, strict: bool = True) -> Any:  # noqa: A002
        """The same for a value that is decoded already."""


class JsonCodec:
    """JSON as NestJS peers read and write it.

    Encodes what JSON has, and dataclasses, msgspec Structs, pydantic models, named tuples, sets,
    enums (their value), datetimes (ISO 8601), UUID and Decimal (text), and bytes as base64 text (a
    Node Buffer would be `{"type": "Buffer", "data": [...]}`: build that where a peer expects it).
    NaN and the infinities become null, as in JavaScript.

    Decodes into any type hint that msgspec understands (builtins, dataclasses, TypedDict, Struct,
    unions, Literal, `Annotated[..., msgspec.Meta(...)]`) and into pydantic models, alone or inside
    other types.
    """

    __slots__ = ()

    encode = staticmethod(_json.encode)

    @overload
    def decode(self, body: bytes, type: type[T]) -> T: ...
    @overload
    def decode(self, body: bytes, type: Any = Any) -> Any: ...
    def decode(self, body: bytes, type: Any = Any) -> Any:  # noqa: A002
        """The value of JSON text, checked against a type hint.

        Raises:
            PayloadError: it is not JSON or does not fit; the text says where (`$.items[0].price`).
            ConfigurationError: nothing can be decoded into that type.
        """
        if type is Any:
            return _json.decode(body)
        try:
            return _cached_reader(type).quick(body)
        except Exception:  # noqa: BLE001  (the other has words for it, or does better)
            return _reader_for(type).decode(body)

    @overload
    def convert(self, value: Any, type: type[T], *, strict: bool = True) -> T: ...
    @overload
    def convert(self, value: Any, type: Any = Any, *, strict: bool = True) -> Any: ...
    def convert(self, value: Any, type: Any = Any, *, strict: bool = True) -> Any:  # noqa: A002
        """A value of plain objects, checked against a type hint.

        For transports that carry objects rather than JSON. With `strict=False` text that reads as a
        number or bool is taken for one (`"15"` as int).

        Raises:
            PayloadError: it does not fit; the text says where.
            ConfigurationError: nothing can be converted into that type.
        """
        if type is Any:
            return value
        return _reader_for(type).convert(value, strict)


def quick_decoder(codec: Codec, hint: Any) -> Callable[[bytes], Any]:
    """What reads a value that fits; where it raises anything, `codec.decode` is to be asked.

    That of our own codec is a function in C: 0.07 us where `decode` takes 0.2.
    """
    if type(codec) is JsonCodec:
        with suppress(ConfigurationError):
            return _reader_for(hint).quick
    return lambda body: codec.decode(body, hint)


def converter_of(codec: Codec, hint: Any) -> Callable[[Any], Any]:
    """`codec.convert` into one type, which our own codec need not look up each time."""
    if type(codec) is JsonCodec and hint is not Any:
        return _reader_for(hint).convert
    return lambda value: codec.convert(value, hint)


_AT = " - at `$"
_PLAIN: tuple[Any, ...] = (None, True, 0, 0.5, "", b"", [], {})
"""One of each kind of value that a payload is made of."""


def refuse_unreadable(codec: Codec, hint: Any) -> None:
    """Refuse a type that no payload can be decoded into, before one comes.

    Only our own codec can be asked.

    Raises:
        ConfigurationError: it is such a type; the text names the part of it.
    """
    if type(codec) is not JsonCodec or hint is Any:
        return
    _reader_for(hint)
    if _pydantic.reads(hint):
        return  # it has looked at all of it
    try:
        unknown = _json.unknown_types(hint)
    except _pydantic.UNUSABLE:
        return  # what msgspec has no reader for, pydantic has
    for each in unknown:
        if not _pydantic.is_model(each) and not _may_be_plain(each):
            error = NotImplementedError(f"{_name(each)} is no builtin, dataclass or model")
            raise _unusable(hint, error)


def _may_be_plain(kind: type) -> bool:
    """Whether it is a class that says something of builtins, as `object` or `Hashable` do."""
    try:
        return any(isinstance(value, kind) for value in _PLAIN)
    except TypeError:  # a protocol that is for type checkers only
        return False


class _Convert(Protocol):
    def __call__(self, value: Any, strict: bool = True, /) -> Any: ...  # noqa: FBT001, FBT002


class _Reader(NamedTuple):
    quick: Callable[[bytes], Any]
    decode: Callable[[bytes], Any]
    convert: _Convert


def _new_reader(hint: Any) -> _Reader:
    try:
        if _pydantic.mentions_model(hint):
            try:
                return _pydantic_reader(hint)
            except _pydantic.UNUSABLE as refused:  # a Struct beside the models, or around them
                return _reader_of_both(hint, refused)
        try:
            return _msgspec_reader(hint)
        except (TypeError, ValueError, NameError) as refused:
            if not _pydantic.loaded():
                raise
            try:
                return _pydantic_reader(hint)  # it allows more, as unions of dataclasses
            except _pydantic.UNUSABLE:
                raise refused from None  # nobody has spoken of pydantic
    except _pydantic.UNUSABLE as error:
        raise _unusable(hint, error) from error


def _reader_of_both(hint: Any, refused: Exception) -> _Reader:
    """What reads a hint with models that pydantic has `refused`; raises that, if nothing does."""
    if _pydantic.has_notes(hint):
        raise refused
    try:
        for each in _json.unknown_types(hint):
            if _pydantic.is_model(each):
                _pydantic.adapter(each)
        return _msgspec_reader(hint)
    except _pydantic.UNUSABLE:
        raise refused from None


_cached_reader = lru_cache(maxsize=256)(_new_reader)


def _reader_for(hint: Any) -> _Reader:
    try:
        return _cached_reader(hint)
    except TypeError:  # a hint that cannot be hashed, as Annotated[int, {}]
        return _new_reader(hint)


def _msgspec_reader(hint: Any) -> _Reader:
    decode_text = _json.JsonDecoder(hint, dec_hook=_from_plain).decode
    holder = _json.holder_of(hint)

    def decode(body: bytes) -> Any:
        try:
            return decode_text(body)
        except _json.ValidationError as error:
            raise _misfit(hint, _one_path(_json.short(error))) from error
        except NotImplementedError as error:
            raise _unusable(hint, error) from error
        except (ValueError, RecursionError) as error:
            return convert(_json.decode_surrogates(body, error), True)

    def convert(value: Any, strict: bool = True) -> Any:  # noqa: FBT001, FBT002
        try:
            return _json.convert(
                (value,), holder, strict=strict, str_keys=True, dec_hook=_from_plain
            ).value
        except (ValueError, RuntimeError):
            pass  # once more, for a text that says where in the value itself
        try:
            return _json.convert(value, hint, strict=strict, str_keys=True, dec_hook=_from_plain)
        except _json.ValidationError as error:
            raise _misfit(hint, _one_path(_json.short(error))) from error
        except NotImplementedError as error:
            raise _unusable(hint, error) from error
        except (ValueError, RecursionError) as error:
            raise _misfit(hint, _json.short(error)) from error

    return _Reader(decode_text, decode, convert)


def _from_plain(hint: Any, value: Any) -> Any:
    """What msgspec asks for the fields of a type it does not know."""
    if isinstance(value, get_origin(hint) or hint):
        return value
    if not _pydantic.is_model(hint):
        raise NotImplementedError(f"{_name(hint)} is no builtin, dataclass or model")
    try:
        return _pydantic.validate(_pydantic.adapter(hint), value)
    except ValueError as error:
        raise ValueError(_pydantic.describe(error)) from error


def _pydantic_reader(hint: Any) -> _Reader:
    adapter = _pydantic.adapter(hint)

    def decode(body: bytes) -> Any:
        try:
            return adapter.validate_json(body)
        except ValueError as error:
            if not _pydantic.is_syntax(error):
                raise _misfit(hint, _pydantic.describe(error)) from error
        # either no JSON at all, or a lone surrogate in it
        return convert(_json.decode(body), True)

    def convert(value: Any, strict: bool = True) -> Any:  # noqa: FBT001, FBT002
        try:
            return _pydantic.validate(adapter, value, strict=strict)
        except ValueError as error:
            raise _misfit(hint, _pydantic.describe(error)) from error

    return _Reader(adapter.validate_json, decode, convert)


def _name(hint: Any) -> str:
    return hint.__qualname__ if isinstance(hint, type) else str(hint)


def _one_path(text: str) -> str:
    """Where it does not fit, in one path: a model says where in itself, msgspec where it stands."""
    inner, found, outer = text.rpartition(_AT)
    return inner.replace(_AT, _AT + outer.rstrip("`")) if found and _AT in inner else text


def _misfit(hint: Any, text: str) -> PayloadError:
    return PayloadError(f"the value is not {_name(hint)}: {text}")


def _unusable(hint: Any, error: BaseException) -> ConfigurationError:
    return ConfigurationError(f"nothing can be decoded into {_name(hint)}: {_json.short(error)}")
