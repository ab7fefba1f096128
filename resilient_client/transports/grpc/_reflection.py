"""Server reflection: asked by a client without a `.proto`, and answered by our server.

https://github.com/grpc/grpc/blob/master/doc/server-reflection.md; v1 and its draft v1alpha have the
same messages.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from resilient_client.errors import ConfigurationError
from resilient_client.transports.grpc._library import (
    DescriptorPool,
    ReflectionServicer,
    aio,
    descriptor,
    descriptor_pb2,
    grpc,
    health_pb2,
    reflection_pb2,
)
from resilient_client.transports.grpc._methods import PATTERNS_FILE
from resilient_client.transports.grpc._schema import Schema

V1 = "grpc.reflection.v1.ServerReflection"
V1ALPHA = "grpc.reflection.v1alpha.ServerReflection"
_METHOD = "ServerReflectionInfo"
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
        try:
            await _ask(channel, service, schema, route)
        except aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
                raise
        else:
            return
    raise ConfigurationError(
        f"nothing says what {route!r} is: the server has no reflection",
        hint="give the client proto=, the path of the service's .proto",
    )


async def _ask(channel: aio.Channel, service: str, schema: Schema, route: str) -> None:
    rpc: Any = channel.stream_stream(
        f"/{service}/{_METHOD}", _Request.SerializeToString, _Response.FromString
    )()
    try:
        wanted = route.rpartition("/")[0]
        answer = await _said(rpc, list_services="")
        names = [each.name for each in answer.list_services_response.service]
        for name in names:
            if name == wanted or name.endswith(f".{wanted}"):
                answer = await _said(rpc, file_containing_symbol=name)
                await _add(rpc, schema, answer)
    finally:
        rpc.cancel()


async def _said(rpc: Any, **question: str) -> Any:
    await rpc.write(_Request(**question))
    answer = await rpc.read()
    if answer is aio.EOF:
        raise ConfigurationError("the server's reflection said nothing", hint="give proto=")
    return answer


async def _add(rpc: Any, schema: Schema, answer: Any) -> None:
    """The files of an answer, and those they import which it left out."""
    raws = list(answer.file_descriptor_response.file_descriptor_proto)
    files = {}
    while True:
        for raw in raws:
            file = descriptor_pb2.FileDescriptorProto.FromString(raw)
            files[file.name] = raw
        known = files.keys() | schema.files.keys()
        missing = next((name for raw in files.values() for name in _imports(raw)
                        if name not in known), None)  # fmt: skip
        if missing is None:
            break
        answer = await _said(rpc, file_by_filename=missing)
        raws = list(answer.file_descriptor_response.file_descriptor_proto)
        if not raws:
            raise ConfigurationError(
                f"the server's reflection does not know its own {missing}", hint="give proto="
            )
    schema.add(files.values())


def _imports(raw: bytes) -> Iterable[str]:
    return descriptor_pb2.FileDescriptorProto.FromString(raw).dependency


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


def _everything(schema: Schema | None) -> tuple[DescriptorPool, list[str]]:
    """All that this server offers, its own services included."""
    pool = DescriptorPool()
    files: dict[str, bytes] = {}
    for raw in (
        *(file.SerializeToString() for file in (schema.files.values() if schema else ())),
        PATTERNS_FILE.SerializeToString(),
        _serialised(health_pb2.DESCRIPTOR),
        _serialised(reflection_pb2.DESCRIPTOR),
        _v1(),
    ):
        files.setdefault(descriptor_pb2.FileDescriptorProto.FromString(raw).name, raw)
    for raw in files.values():
        pool.AddSerializedFile(raw)
    own = [PATTERNS_FILE.package + ".Patterns", "grpc.health.v1.Health", V1ALPHA, V1]
    return pool, [*(schema.services if schema else ()), *own]


def _serialised(file: Any) -> bytes:
    assert isinstance(file, descriptor.FileDescriptor)  # noqa: S101
    return file.serialized_pb


def _v1() -> bytes:
    """The file of version 1: the draft's under its final name."""
    file = descriptor_pb2.FileDescriptorProto.FromString(_serialised(reflection_pb2.DESCRIPTOR))
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
