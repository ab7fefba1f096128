"""Server reflection: asked by a client without a `.proto`, and answered by our server.

https://github.com/grpc/grpc/blob/master/doc/server-reflection.md; v1 and its draft v1alpha have the
same messages.
"""

from __future__ import annotations

from typing import Any

from resilient_client.errors import ConfigurationError
from resilient_client.transports.grpc._items import keep_status
from resilient_client.transports.grpc._library import (
    DecodeError,
    DescriptorPool,
    ReflectionServicer,
    aio,
    descriptor_pb2,
    error_details_pb2,
    grpc,
    health_pb2,
    reflection_pb2,
)
from resilient_client.transports.grpc._patterns import PATTERNS_FILE, PATTERNS_SERVICE
from resilient_client.transports.grpc._schema import Schema, files_of

V1 = "grpc.reflection.v1.ServerReflection"
V1ALPHA = "grpc.reflection.v1alpha.ServerReflection"
_METHOD = "ServerReflectionInfo"
_MAX_FILES = 1000
_Request = reflection_pb2.ServerReflectionRequest
_Response = reflection_pb2.ServerReflectionResponse


# ------------------------------------------------------------------------------------- asking


async def discover(channel: aio.Channel, schema: Schema, route: str) -> None:
    """Add the service that a route names, if the server has it, to what is known.

    Raises:
        ConfigurationError: the server has no reflection.
        AioRpcError: the call itself failed.
    """
    for service in (V1, V1ALPHA):
        if await _answers(channel, service, schema, route):
            return
    raise ConfigurationError(
        f"nothing says what {route!r} is: the server has no reflection",
        hint="give the client proto=, the path of the service's .proto",
    )


async def _answers(channel: aio.Channel, service: str, schema: Schema, route: str) -> bool:
    """Ask this version of the service; False where there is none."""
    try:
        await _ask(channel, service, schema, route)
    except aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:
            return False
        raise
    return True


async def _ask(channel: aio.Channel, service: str, schema: Schema, route: str) -> None:
    rpc: Any = channel.stream_stream(
        f"/{service}/{_METHOD}", _Request.SerializeToString, _Response.FromString
    )()
    keep_status(rpc)
    try:
        wanted = route.rpartition("/")[0]
        answer = await _said(rpc, list_services="")
        names = schema.told = [each.name for each in answer.list_services_response.service]
        for name in dict.fromkeys(names):
            if name == wanted or name.endswith(f".{wanted}"):
                answer = await _said(rpc, file_containing_symbol=name)
                await _add(rpc, schema, answer)
    except DecodeError as error:
        raise ConfigurationError(
            f"the server's reflection cannot be read: {error}", hint="give proto="
        ) from error
    finally:
        rpc.cancel()


async def _said(rpc: Any, **question: Any) -> Any:
    await rpc.write(_Request(**question))
    answer = await rpc.read()
    if answer is aio.EOF or answer is None:  # the end, or what is no such message
        raise ConfigurationError("the server's reflection said nothing", hint="give proto=")
    return answer


async def _add(rpc: Any, schema: Schema, answer: Any) -> None:
    """The files of an answer, and those they import which it left out."""
    files: dict[str, Any] = {}
    asked = None
    while True:
        for raw in answer.file_descriptor_response.file_descriptor_proto:
            file = descriptor_pb2.FileDescriptorProto.FromString(raw)
            files[file.name] = file
        known = files.keys() | schema.files.keys()
        if asked is not None and asked not in known:
            raise ConfigurationError(
                f"the server's reflection does not know its own {asked}", hint="give proto="
            )
        if len(files) > _MAX_FILES:
            raise ConfigurationError(
                f"the server's reflection names more than {_MAX_FILES} files", hint="give proto="
            )
        imports = (name for file in files.values() for name in file.dependency)
        asked = next((name for name in imports if name not in known), None)
        if asked is None:
            break
        answer = await _said(rpc, file_by_filename=asked)
    schema.add(file.SerializeToString() for file in files.values())


# ----------------------------------------------------------------------------------- answering


def reflection_handlers(schema: Schema | None) -> list[Any]:
    """Both versions of the service, for `add_generic_rpc_handlers`."""
    pool, names = _everything(schema)
    servicer = ReflectionServicer(names, pool=pool)
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=_Request.FromString,
        response_serializer=_Response.SerializeToString,
    )
    return [
        grpc.method_handlers_generic_handler(service, {_METHOD: handler})
        for service in (V1, V1ALPHA)
    ]


def _everything(schema: Schema | None) -> tuple[_Pool, list[str]]:
    """All that this server offers, its own services included, and Google's kinds of details."""
    every = Schema(() if schema is None else (f.SerializeToString() for f in schema.files.values()))
    for own in (health_pb2, reflection_pb2, error_details_pb2):
        every.add(files_of(own.DESCRIPTOR))
    every.add((PATTERNS_FILE.SerializeToString(), _v1()))
    names = [PATTERNS_SERVICE, "grpc.health.v1.Health", V1ALPHA, V1]
    return _Pool(every.pool), [*(schema.services if schema else ()), *names]


class _Pool:
    """A pool in which methods are found too, as in the pools of other languages."""

    def __init__(self, pool: DescriptorPool) -> None:
        self._pool = pool

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def FindFileContainingSymbol(self, symbol: str) -> Any:  # noqa: N802
        """See `DescriptorPool`."""
        try:
            return self._pool.FindFileContainingSymbol(symbol)
        except KeyError:
            service, _, method = symbol.rpartition(".")
            found = self._pool.FindServiceByName(service)
            if method not in found.methods_by_name:
                raise
            return found.file


def _v1() -> bytes:
    """The file of version 1: the draft's under its final name."""
    file = descriptor_pb2.FileDescriptorProto.FromString(reflection_pb2.DESCRIPTOR.serialized_pb)
    file.name = "grpc/reflection/v1/reflection.proto"
    file.package = "grpc.reflection.v1"
    for message in file.message_type:
        for field in message.field:
            if field.type_name:
                field.type_name = field.type_name.replace(".v1alpha.", ".v1.")
    for service in file.service:
        for method in service.method:
            method.input_type = method.input_type.replace(".v1alpha.", ".v1.")
            method.output_type = method.output_type.replace(".v1alpha.", ".v1.")
    return file.SerializeToString()
