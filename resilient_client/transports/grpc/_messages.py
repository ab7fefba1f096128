"""Protobuf messages as mappings with the field names a NestJS service sees, both ways.

Everything about a message type is looked up once. What the library itself checks (ranges, types)
is left to it; where it refuses, the fields are gone through again to say which one it was.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from resilient_client import _json
from resilient_client.errors import PayloadError
from resilient_client.transports.grpc._library import (
    DecodeError,
    EncodeError,
    GetMessageClass,
    ProtobufMessage,
    descriptor,
)

Field = descriptor.FieldDescriptor
_word = re.compile(r"_([a-z])(?=[a-z]|$)")
_REFUSED = (TypeError, ValueError, OverflowError, RecursionError, EncodeError)


def camel_case(name: str) -> str:
    """A field's name as protobufjs, and so Nest, spells it: `field_1` stays as it is."""
    return name[:1] + _word.sub(lambda match: match[1].upper(), name[1:])


class Shape:
    """One message type: its class, and how its fields become a mapping's members and back."""

    __slots__ = (
        "_class", "_enums", "_fields", "_members", "_oneofs", "_parse", "_plain", "_present",
        "_several", "name",
    )  # fmt: skip

    def __init__(self, type: descriptor.Descriptor, shapes: dict[str, Shape]) -> None:  # noqa: A002
        self.name: str = type.full_name
        shapes[self.name] = self  # before its fields are looked at: types may be recursive
        self._class: Any = GetMessageClass(type)
        self._parse: Callable[[bytes], Any] = self._class.FromString
        self._fields: dict[str, tuple[str, Writer | None]] = {}
        self._members: dict[str, str] = {}
        self._oneofs: list[frozenset[str]] = [
            frozenset(field.name for field in each.fields)
            for each in type.oneofs
            if len(each.fields) > 1
        ]
        self._plain: list[tuple[str, str]] = []
        self._enums: list[tuple[str, str, Mapping[int, str]]] = []
        self._several: list[tuple[str, str, Callable[[Any], Any]]] = []
        self._present: list[tuple[str, str, Callable[[Any], Any] | None]] = []
        own: dict[str, tuple[str, Writer | None]] = {}
        for field in type.fields:
            name, member = field.name, camel_case(field.name)
            self._members[name] = member
            write, read = _conversion(field, shapes)
            for spelling in (name, field.json_name, member):
                self._fields[spelling] = name, write
            own[member] = name, write
            if field.is_repeated:
                self._several.append((member, name, read if read is not None else list))
            elif field.has_presence:
                self._present.append((member, name, read))
            elif field.enum_type is not None:
                self._enums.append((member, name, _enum_names(field.enum_type)))
            else:
                self._plain.append((member, name))
        self._fields |= own  # a member's own spelling wins over another field's alias

    # ------------------------------------------------------------------------------------ reading

    def mapping(self, raw: bytes) -> dict[str, Any]:
        """The mapping of the message in these bytes; see `parse` and `read`."""
        return self.read(self.parse(raw))

    def parse(self, raw: bytes) -> Any:
        """The message in these bytes.

        Raises:
            PayloadError: they hold no such message.
        """
        try:
            return self._parse(raw)
        except DecodeError as error:
            raise PayloadError(f"these bytes are no {self.name}: {error}") from error

    def read(self, message: Any) -> dict[str, Any]:
        """The mapping of a message: scalars without presence always, the rest as far as set."""
        found: dict[str, Any] = {}
        for member, name in self._plain:
            found[member] = getattr(message, name)
        for member, name, names in self._enums:
            number = getattr(message, name)
            found[member] = names.get(number, number)
        for member, name, several in self._several:
            found[member] = several(getattr(message, name))
        for member, name, convert in self._present:
            if message.HasField(name):
                value = getattr(message, name)
                found[member] = value if convert is None else convert(value)
        return found

    # ------------------------------------------------------------------------------------ writing

    def serialise(self, value: Any) -> bytes:
        """The bytes of a message; `None` is the empty one.

        Raises:
            PayloadError: the value has an unknown field, or one that does not fit; it says which.
        """
        if type(value) is not dict and isinstance(value, ProtobufMessage):
            if value.DESCRIPTOR.full_name != self.name:
                raise PayloadError(f"a {value.DESCRIPTOR.full_name} is no {self.name}")
            raw: bytes = value.SerializeToString()
            return raw
        fields = self.fields(value, "$") if value is not None else {}
        try:
            raw = self._class(**fields).SerializeToString()
        except _REFUSED as error:
            raise self._misfit(fields, "$", error) from error
        return raw

    def message(self, value: Any, path: str) -> Any:
        """A mapping as a message."""
        fields = self.fields(value, path)
        try:
            return self._class(**fields)
        except _REFUSED as error:
            raise self._misfit(fields, path, error) from error

    def fields(self, value: Any, path: str) -> dict[str, Any]:
        """A mapping's members as the arguments of the message's class."""
        if not isinstance(value, dict):
            value = _mapping(value, self.name, path)
        known = self._fields
        fields: dict[str, Any] = {}
        for member, item in value.items():
            if member not in known:
                raise self._unknown(member, path)
            if item is None:
                continue
            name, write = known[member]
            if write is None or (write is _list and type(item) is list):
                fields[name] = item
            else:
                fields[name] = write(item, f"{path}.{member}")
        for oneof in self._oneofs:  # of which protobuf would keep the last
            if len(oneof & fields.keys()) > 1:
                both = " and ".join(sorted(self._members[each] for each in oneof & fields.keys()))
                raise PayloadError(f"{path}: only one of {both} can be set in {self.name}")
        return fields

    def _unknown(self, member: object, path: str) -> PayloadError:
        return PayloadError(
            f"{path}: {self.name} has no field {member!r}",
            hint=f"it has {', '.join(self._members.values()) or 'none'}",
        )

    def _misfit(self, fields: dict[str, Any], path: str, error: BaseException) -> PayloadError:
        """Which field the library refused."""
        where = ""
        for name, item in fields.items():
            try:
                self._class(**{name: item})
            except _REFUSED as own:
                where, error = f".{self._members[name]}", own
                break
        reason = _json.short(error)
        if isinstance(error, TypeError) and "bad argument" in reason:
            reason = "a value of another type than the field's"
        return PayloadError(f"{path}{where}: not a {self.name}: {reason}")


def shape_of(type: descriptor.Descriptor, shapes: dict[str, Shape]) -> Shape:  # noqa: A002
    """The shape of a message type, made at first use."""
    known = shapes.get(type.full_name)
    return Shape(type, shapes) if known is None else known


def _enum_names(type: descriptor.EnumDescriptor) -> Mapping[int, str]:  # noqa: A002
    names: dict[int, str] = {}
    for value in type.values:
        names.setdefault(value.number, value.name)  # of aliases the first
    return names


Writer = Callable[[Any, str], Any]
Reader = Callable[[Any], Any]


def _conversion(
    field: descriptor.FieldDescriptor, shapes: dict[str, Shape]
) -> tuple[Writer | None, Reader | None]:
    """What has to be done with a field's values, both ways; None is nothing."""
    nested = field.message_type
    if nested is not None and nested.GetOptions().map_entry:
        return _map_conversion(nested, shapes)
    write, read = _single(field, shapes)
    if not field.is_repeated:
        return write, read
    written = _list if write is None else _each(write)
    if read is None:
        return written, None
    one = read
    return written, lambda items: [one(item) for item in items]


def _single(
    field: descriptor.FieldDescriptor, shapes: dict[str, Shape]
) -> tuple[Writer | None, Reader | None]:
    if field.message_type is not None:
        shape = shape_of(field.message_type, shapes)
        return _nested(shape), shape.read
    if field.enum_type is not None:
        names = _enum_names(field.enum_type)
        return None, lambda number: names.get(number, number)
    if field.type == Field.TYPE_BYTES:
        return _bytes, None
    return None, None


def _map_conversion(
    entry: descriptor.Descriptor, shapes: dict[str, Shape]
) -> tuple[Writer | None, Reader | None]:
    kind = entry.fields_by_name["key"].type
    key_of = {Field.TYPE_STRING: None, Field.TYPE_BOOL: _boolean}.get(kind, _integer)
    write, read = _single(entry.fields_by_name["value"], shapes)

    def write_map(value: Any, path: str) -> dict[Any, Any]:
        if not isinstance(value, Mapping):
            raise PayloadError(f"{path}: a map is a mapping, not a {type(value).__name__}")
        items = dict(value)
        if key_of is not None:  # JSON's member names are text
            items = {key_of(key, path): item for key, item in items.items()}
        if write is None:
            return items
        return {key: write(item, f"{path}[{key!r}]") for key, item in items.items()}

    if read is None:
        return write_map, dict
    one = read
    return write_map, lambda items: {key: one(item) for key, item in items.items()}


def _integer(key: Any, path: str) -> Any:
    if not isinstance(key, str):
        return key
    try:
        return int(key)
    except ValueError:
        raise PayloadError(f"{path}: {key!r} is no integer key") from None


def _boolean(key: Any, path: str) -> Any:
    if not isinstance(key, str):
        return key
    if key not in {"true", "false"}:
        raise PayloadError(f"{path}: {key!r} is no boolean key")
    return key == "true"


def _list(value: Any, path: str) -> Iterable[Any]:
    if type(value) is list:
        return value
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise PayloadError(f"{path}: a repeated field is a list, not a {type(value).__name__}")
    return value


def _each(write: Writer) -> Writer:
    return lambda value, path: [
        write(item, f"{path}[{index}]") for index, item in enumerate(_list(value, path))
    ]


def _nested(shape: Shape) -> Writer:
    # the library would take the members of a mapping for the names in the Struct
    write = shape.message if shape.name == "google.protobuf.Struct" else shape.fields

    def write_nested(value: Any, path: str) -> Any:
        if type(value) is not dict and isinstance(value, ProtobufMessage):
            return shape.parse(value.SerializeToString())
        return write(value, path)

    return write_nested


def _bytes(value: Any, path: str) -> bytes:
    """Bytes; a text is taken for their base64, as protobufjs and protobuf's JSON have it."""
    if isinstance(value, str):
        try:
            return base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            raise PayloadError(f"{path}: neither bytes nor their base64") from None
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    raise PayloadError(f"{path}: bytes, not a {type(value).__name__}")


def _mapping(value: Any, name: str, path: str) -> Mapping[Any, Any]:
    """A dataclass, Struct or model as its members."""
    plain = value if isinstance(value, Mapping) else _json.plain(value)
    if not isinstance(plain, Mapping):
        raise PayloadError(
            f"{path}: a {type(value).__name__} is no {name}",
            hint="the data of a gRPC call is a mapping with the message's fields",
        )
    return plain
