"""A gRPC server that answers with what cannot be read: an error of ours at once, whatever it is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from google.protobuf import any_pb2, descriptor_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_reflection.v1alpha import reflection_pb2

from resilient_client import ClientProxy, ConfigurationError, PayloadError, RemoteError
from resilient_client.transports.grpc._library import aio, grpc
from tests.calls import error_of

JUNK = b"\xff\xff\xff"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
Answer = Callable[[Any], Any]


@asynccontextmanager
async def peer(answer: Answer, reflection: Answer | None = None) -> AsyncIterator[ClientProxy]:
    """A client of a server that answers a call, and questions about itself, with these."""

    async def unary(_request: bytes, context: Any) -> Any:
        return answer(context)

    async def told(questions: Any, _context: Any) -> AsyncIterator[Any]:
        async for question in questions:
            assert reflection is not None
            yield reflection(question)

    class Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, details: Any) -> Any:
            if details.method == REFLECTION and reflection is not None:
                return grpc.stream_stream_rpc_method_handler(
                    told, reflection_pb2.ServerReflectionRequest.FromString
                )
            return None if "reflection" in details.method else HANDLER

    HANDLER = grpc.unary_unary_rpc_method_handler(unary)  # noqa: N806
    server = aio.server()
    server.add_generic_rpc_handlers((Handlers(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        url = f"grpc://127.0.0.1:{port}"
        async with ClientProxy(url, policies=(), telemetry=False) as client:
            yield client
    finally:
        await server.stop(None)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("google.rpc.ErrorInfo", JUNK),
        (
            "google.rpc.RetryInfo",
            error_details_pb2.RetryInfo(
                retry_delay=duration_pb2.Duration(seconds=10**15)
            ).SerializeToString(),
        ),
    ],
)
async def test_a_detail_that_cannot_be_read_stays_bytes(name: str, value: bytes) -> None:
    status = status_pb2.Status(code=9, message="no")
    status.details.append(any_pb2.Any(type_url=f"type.googleapis.com/{name}", value=value))

    def fail(context: Any) -> bytes:
        context.set_code(grpc.StatusCode.FAILED_PRECONDITION)
        context.set_details("no")
        context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
        return b""

    async with peer(fail) as client:
        error = await error_of(client.send("x"))
    assert isinstance(error, RemoteError)
    assert error.payload["details"] == [{"@type": f"type.googleapis.com/{name}", "value": value}]


async def test_an_answer_that_is_no_message_is_that_calls_failure() -> None:
    async with peer(lambda _context: JUNK) as client:
        for call in (client.send("x"), client.emit("x")):
            error = await error_of(call)
            assert isinstance(error, PayloadError)
            assert error.sent


def described(*files: bytes) -> bytes:
    told = reflection_pb2.FileDescriptorResponse(file_descriptor_proto=files)
    answer = reflection_pb2.ServerReflectionResponse(file_descriptor_response=told)
    raw: bytes = answer.SerializeToString()
    return raw


def endless(question: Any) -> bytes:
    number = int(question.file_by_filename or 0)
    file = descriptor_pb2.FileDescriptorProto(name=str(number), dependency=[str(number + 1)])
    return described(file.SerializeToString())


def another(_question: Any) -> bytes:
    file = descriptor_pb2.FileDescriptorProto(name="a", dependency=["b"])
    return described(file.SerializeToString())


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda _: JUNK, "said nothing"),
        (lambda _: described(JUNK), "cannot be read"),
        (endless, "more than 1000 files"),
        (another, "its own b"),
    ],
)
async def test_a_reflection_that_makes_no_sense_is_told_at_once(answer: Answer, said: str) -> None:
    services = reflection_pb2.ListServiceResponse(
        service=[reflection_pb2.ServiceResponse(name="app.S")]
    )
    known = reflection_pb2.ServerReflectionResponse(list_services_response=services)

    def reflect(question: Any) -> bytes:
        listing = question.WhichOneof("message_request") == "list_services"
        raw: bytes = known.SerializeToString() if listing else answer(question)
        return raw

    async with peer(lambda _context: b"", reflect) as client:
        error = await error_of(client.send("app.S/Do", {}))
    assert isinstance(error, ConfigurationError)
    assert said in str(error)
    assert "proto=" in error.hint
