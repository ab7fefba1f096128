"""What can be called over gRPC, and the methods of a schema.

A method knows its path, how its requests and responses are made and read, and which of both are
streams. Both ends of a call use the same object.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable
from typing import Any, Protocol, get_args, get_origin

from resilient_client.codecs import Codec, converter_of
from resilient_client.errors import InvalidPayloadError, PayloadError
from resilient_client.transports.grpc._library import ProtobufMessage, descriptor
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


def several(data: Any) -> bool:
    """Whether data is a stream of requests rather than one."""
    return hasattr(data, "__aiter__") or (
        isinstance(data, Iterable)
        and not isinstance(data, str | bytes | dict | ProtobufMessage)
        and not hasattr(data, "keys")
    )
