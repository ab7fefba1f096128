"""What can be called over gRPC: methods of a schema, and patterns of our own kind.

A method knows its path, how its requests and responses are made and read, and which of both are
streams. Both ends of a call use the same object.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable
from typing import Any, Protocol, get_args, get_origin

from resilient_client.codecs import Codec, converter_of
from resilient_client.errors import InvalidPayloadError, PayloadError
from resilient_client.message import NO_VALUE
from resilient_client.transports.grpc._library import (
    DescriptorPool,
    GetMessageClass,
    ProtobufMessage,
    descriptor,
    descriptor_pb2,
)
from resilient_client.transports.grpc._messages import Shape, shape_of

_STREAMS = (AsyncIterator, AsyncIterable, AsyncGenerator)


class Method(Protocol):
    """One thing that can be called.

    Attributes:
        path: of its HTTP/2 request.
        requests, responses: whether there are several.
    """

    path: str
    requests: bool
    responses: bool

    def request(self, data: Any, codec: Codec, route: str) -> bytes:
        """The bytes of one request; `PayloadError` when it cannot be one."""

    def response(self, raw: bytes, type: Any, codec: Codec) -> Any:  # noqa: A002
        """The value of one response as `type`; `PayloadError` when it is no such value."""


# ---------------------------------------------------------------------------- methods of a schema


class SchemaMethod:
    """A method that a `.proto` describes."""

    __slots__ = ("_input", "_output", "path", "requests", "responses")

    def __init__(self, method: descriptor.MethodDescriptor, shapes: dict[str, Shape]) -> None:
        self.path = f"/{method.containing_service.full_name}/{method.name}"
        self.requests: bool = method.client_streaming
        self.responses: bool = method.server_streaming
        self._input = shape_of(method.input_type, shapes)
        self._output = shape_of(method.output_type, shapes)

    def request(self, data: Any, codec: Codec, route: str) -> bytes:
        """See `Method.request`."""
        return self._input.serialise(data)

    def response(self, raw: bytes, type: Any, codec: Codec) -> Any:  # noqa: A002
        """See `Method.response`."""
        return _reader(self._output, type, codec)(raw)

    def server_codec(self, codec: Codec) -> MethodCodec:
        """How a server's handlers see it."""
        return MethodCodec(self._input, self._output, codec, streamed=self.requests)


def _reader(shape: Shape, hint: Any, codec: Codec) -> Callable[[bytes], Any]:
    """What reads a message as a mapping of that type; or as it is, where that is a generated class.

    Raises:
        PayloadError: the class is another message's.
    """
    if hint is Any:
        return shape.mapping
    if isinstance(hint, type) and issubclass(hint, ProtobufMessage):
        if hint.DESCRIPTOR.full_name != shape.name:
            raise PayloadError(f"a {shape.name} is no {hint.DESCRIPTOR.full_name}")
        return hint.FromString
    mapping, convert = shape.mapping, converter_of(codec, hint)
    return lambda raw: convert(mapping(raw))


def payload_type(hint: Any) -> Any:
    """What of a handler's payload the codec makes: nothing of a message, an item of a stream."""
    if get_origin(hint) in _STREAMS:
        return payload_type((get_args(hint) or (Any,))[0])
    own = hint in _STREAMS or (isinstance(hint, type) and issubclass(hint, ProtobufMessage))
    return Any if own else hint


class MethodCodec:
    """Requests and responses of one method, for the server's dispatcher."""

    __slots__ = ("_codec", "_hint", "_input", "_output", "_read", "_streamed")

    def __init__(self, input: Shape, output: Shape, codec: Codec, *, streamed: bool) -> None:  # noqa: A002
        self._input = input
        self._output = output
        self._codec = codec
        self._streamed = streamed
        self._hint: Any = Any
        self._read: Callable[[bytes], Any] = input.mapping

    def encode(self, value: Any) -> bytes:
        """The bytes of a response."""
        return self._output.serialise(value)

    def decode(self, body: Any, type: Any = Any) -> Any:  # noqa: A002
        """The payload of a handler: the request, or an async iterator of the requests."""
        if not self._streamed:
            if type is not self._hint:  # a method has one handler, and so one type
                self._read = _reader(self._input, type, self._codec)
                self._hint = type
            return self._read(body)
        item = Any
        if get_origin(type) in _STREAMS:
            item = (get_args(type) or (Any,))[0]
        elif type is not Any and type not in _STREAMS:
            raise PayloadError(
                f"this method has a stream of requests, its payload cannot be {type}",
                hint="annotate the payload AsyncIterator[T]",
            )
        return self._requests(body, item)

    async def _requests(self, raws: AsyncIterable[bytes], hint: Any) -> AsyncIterator[Any]:
        async for raw in raws:
            try:
                yield _reader(self._input, hint, self._codec)(raw)
            except PayloadError as error:
                raise InvalidPayloadError(error.args[0]) from error

    def convert(self, value: Any, type: Any = Any, *, strict: bool = True) -> Any:  # noqa: A002
        """See `Codec.convert`."""
        return self._codec.convert(value, type, strict=strict)


# ------------------------------------------------------------------------ patterns of our own kind

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
        message = _Value.FromString(raw)
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
        count: int = _Accepted.FromString(raw).receivers
        return count


SEND = PatternsMethod("Send")
STREAM = PatternsMethod("Stream", responses=True)
EMIT = PatternsMethod("Emit")
PLAIN: dict[str, PatternsMethod] = {"send": SEND, "stream": STREAM, "emit": EMIT}


def several(data: Any) -> bool:
    """Whether data is a stream of requests rather than one."""
    return hasattr(data, "__aiter__") or (
        isinstance(data, Iterable)
        and not isinstance(data, str | bytes | dict | ProtobufMessage)
        and not hasattr(data, "keys")
    )
