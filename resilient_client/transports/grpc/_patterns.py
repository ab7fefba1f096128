"""Plain patterns over gRPC: the three methods of a service of our own."""

from __future__ import annotations

from typing import Any

from resilient_client.codecs import Codec
from resilient_client.errors import PayloadError
from resilient_client.message import NO_VALUE
from resilient_client.transports.grpc._library import (
    DecodeError,
    DescriptorPool,
    GetMessageClass,
    descriptor_pb2,
)

PATTERNS_SERVICE = "resilient_client.Patterns"


def _patterns_file() -> descriptor_pb2.FileDescriptorProto:
    """As a `.proto` would say it.

    syntax = "proto3";
    package resilient_client;

    service Patterns {
      rpc Send(Request) returns (Value);
      rpc Stream(Request) returns (stream Value);
      rpc Emit(Request) returns (Accepted);
    }
    message Request { string pattern = 1; bytes data = 2; }  // data: JSON
    message Value { optional bytes data = 1; }               // absent: no value
    message Accepted { int32 receivers = 1; }
    """
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="resilient_client/patterns.proto", package="resilient_client", syntax="proto3"
    )
    for name, fields in (
        ("Request", [("pattern", field.TYPE_STRING), ("data", field.TYPE_BYTES)]),
        ("Value", [("data", field.TYPE_BYTES)]),
        ("Accepted", [("receivers", field.TYPE_INT32)]),
    ):
        message = file.message_type.add(name=name)
        for number, (each, kind) in enumerate(fields, 1):
            message.field.add(name=each, number=number, type=kind, label=field.LABEL_OPTIONAL)
    value = file.message_type[1]
    value.oneof_decl.add(name="_data")
    value.field[0].proto3_optional = True
    value.field[0].oneof_index = 0
    service = file.service.add(name="Patterns")
    for name, output in (("Send", "Value"), ("Stream", "Value"), ("Emit", "Accepted")):
        service.method.add(
            name=name,
            input_type=".resilient_client.Request",
            output_type=f".resilient_client.{output}",
            server_streaming=name == "Stream",
        )
    return file


PATTERNS_FILE = _patterns_file()
_pool = DescriptorPool()
_pool.Add(PATTERNS_FILE)
_classes: list[Any] = [
    GetMessageClass(_pool.FindMessageTypeByName(f"resilient_client.{name}"))
    for name in ("Request", "Value", "Accepted")
]
_Request, _Value, _Accepted = _classes


def _answer(kind: Any, raw: bytes) -> Any:
    try:
        return kind.FromString(raw)
    except DecodeError as error:
        text = f"these bytes are no {kind.DESCRIPTOR.full_name}: {error}"
        raise PayloadError(text, sent=True) from error


class PatternsMethod:
    """One of the three ways to send a plain pattern; the payload is the codec's bytes."""

    __slots__ = ("path", "requests", "responses")

    def __init__(self, name: str, *, responses: bool = False) -> None:
        self.path = f"/{PATTERNS_SERVICE}/{name}"
        self.requests = False
        self.responses = responses

    def request(self, data: Any, codec: Codec, route: str) -> bytes:
        """See `Method.request`."""
        try:
            message = _Request(pattern=route, data=codec.encode(data))
        except UnicodeEncodeError:
            raise PayloadError(f"the pattern {route!r} has no UTF-8 form") from None
        raw: bytes = message.SerializeToString()
        return raw

    def response(self, raw: bytes, type: Any, codec: Codec) -> Any:  # noqa: A002
        """See `Method.response`."""
        return codec.decode(raw, type)

    @staticmethod
    def value(raw: bytes) -> Any:
        """The payload in a `Value`, or `NO_VALUE`."""
        message = _answer(_Value, raw)
        return message.data if message.HasField("data") else NO_VALUE

    @staticmethod
    def pack(body: Any) -> bytes:
        """The `Value` with this payload."""
        raw: bytes = (_Value() if body is NO_VALUE else _Value(data=body)).SerializeToString()
        return raw

    @staticmethod
    def unpack(raw: bytes) -> tuple[str, bytes]:
        """The pattern and payload of a `Request`."""
        message = _Request.FromString(raw)
        return message.pattern, message.data

    @staticmethod
    def accepted(receivers: int) -> bytes:
        """The `Accepted` with this count."""
        raw: bytes = _Accepted(receivers=receivers).SerializeToString()
        return raw

    @staticmethod
    def receivers(raw: bytes) -> int:
        """The count in an `Accepted`."""
        count: int = _answer(_Accepted, raw).receivers
        return count


SEND = PatternsMethod("Send")
STREAM = PatternsMethod("Stream", responses=True)
EMIT = PatternsMethod("Emit")
PLAIN: dict[str, PatternsMethod] = {"send": SEND, "stream": STREAM, "emit": EMIT}
