"""What grpcio can raise or say, and what it means: every class and code, none left out."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

import pytest

from resilient_client import (
    ConfigurationError,
    ConnectError,
    ConnectionLost,
    DeadlineExceeded,
    InvalidPayloadError,
    NoHandlerError,
    PayloadError,
    ProtocolError,
    RemoteError,
    Throttled,
)
from resilient_client.errors import Outcome
from resilient_client.transports.grpc import _status
from resilient_client.transports.grpc._library import ERRORS, aio, grpc
from resilient_client.transports.grpc._status import error_of, number_of, refuse, status_of

KNOWN = {
    # of calls
    "RpcError", "AioRpcError", "BaseError", "UsageError", "InternalError",
    # of a server's handlers, never of a call
    "AbortError",
    # of the synchronous API, which is not used
    "FutureTimeoutError", "FutureCancelledError",
}  # fmt: skip


def exceptions() -> dict[str, type[BaseException]]:
    return {
        name: value
        for module in (grpc, aio)
        for name, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, BaseException)
    }


def test_grpcio_has_no_exception_that_nobody_thought_of() -> None:
    assert exceptions().keys() == KNOWN, "decide what a new class means in _status.error_of"
    for name in ("AioRpcError", "UsageError", "InternalError"):
        assert issubclass(exceptions()[name], ERRORS)


async def test_a_refusal_of_a_call_whose_caller_has_gone_is_its_end_and_no_fault() -> None:
    class Gone:
        async def abort(self, *_: object) -> None:
            raise aio.InternalError("Failed execute_batch")

    class There:
        async def abort(self, *_: object) -> None:
            raise aio.AbortError

    with pytest.raises(asyncio.CancelledError):
        await refuse(Gone(), grpc.StatusCode.INVALID_ARGUMENT, "no request")
    with pytest.raises(aio.AbortError):
        await refuse(There(), grpc.StatusCode.INVALID_ARGUMENT, "no request")


def rpc_error(code: grpc.StatusCode, text: str = "", *trailers: tuple[str, Any]) -> Any:
    return aio.AioRpcError(code, aio.Metadata(), aio.Metadata(*trailers), details=text)


# What each code means when a peer's application said it.
MEANT: dict[str, tuple[type[Exception], Outcome]] = {
    "CANCELLED": (RemoteError, Outcome.SUCCESS),
    "UNKNOWN": (RemoteError, Outcome.SUCCESS),
    "INVALID_ARGUMENT": (RemoteError, Outcome.SUCCESS),
    "DEADLINE_EXCEEDED": (DeadlineExceeded, Outcome.FAILURE),
    "NOT_FOUND": (RemoteError, Outcome.SUCCESS),
    "ALREADY_EXISTS": (RemoteError, Outcome.SUCCESS),
    "PERMISSION_DENIED": (RemoteError, Outcome.SUCCESS),
    "RESOURCE_EXHAUSTED": (Throttled, Outcome.THROTTLED),
    "FAILED_PRECONDITION": (RemoteError, Outcome.SUCCESS),
    "ABORTED": (RemoteError, Outcome.SUCCESS),
    "OUT_OF_RANGE": (RemoteError, Outcome.SUCCESS),
    "UNIMPLEMENTED": (NoHandlerError, Outcome.SUCCESS),
    "INTERNAL": (RemoteError, Outcome.FAILURE),
    "UNAVAILABLE": (RemoteError, Outcome.FAILURE),
    "DATA_LOSS": (RemoteError, Outcome.SUCCESS),
    "UNAUTHENTICATED": (RemoteError, Outcome.SUCCESS),
}


def test_every_code_has_its_meaning() -> None:
    assert {code.name for code in grpc.StatusCode} - {"OK"} == MEANT.keys()
    for name, (kind, outcome) in MEANT.items():
        error: Any = error_of(rpc_error(grpc.StatusCode[name], "so it is", ("date", "today")))
        assert (type(error), error.outcome) == (kind, outcome), name
        assert error.sent
        if isinstance(error, RemoteError):
            number = grpc.StatusCode[name].value[0]
            assert (error.code, error.status, error.message) == (name, number, "so it is")
            assert error.payload == {"code": number, "message": "so it is"}


@pytest.mark.parametrize(
    ("code", "text", "connected", "kind", "sent"),
    [
        ("UNAVAILABLE", "failed to connect to all addresses; x", False, ConnectError, False),
        (
            "UNAVAILABLE",
            "failed to connect to all addresses; Failed parsing HTTP/2",
            False,
            ProtocolError,
            False,
        ),
        ("UNAVAILABLE", "failed to connect to all addresses; x", True, ConnectionLost, True),
        ("UNAVAILABLE", "Stream removed (Socket closed)", True, ConnectionLost, True),
        ("UNAVAILABLE", "max connection age", True, ConnectionLost, True),
        ("UNAVAILABLE", "Cancelling all calls", True, ConnectionLost, True),
        ("UNAVAILABLE", "anything", False, ConnectionLost, True),
        ("UNAVAILABLE", "not today", True, RemoteError, True),
        ("UNAVAILABLE", "no such keepalive", True, RemoteError, True),
        ("CANCELLED", "", True, ConnectionLost, True),
        ("INTERNAL", "Received RST_STREAM with error code 2", True, ConnectionLost, True),
        ("INTERNAL", "Internal error from Core", True, ConnectionLost, True),
        ("UNKNOWN", "Received http2 header with status: 404", True, ProtocolError, True),
        ("UNIMPLEMENTED", "Received http2 header with status: 404", True, ProtocolError, True),
        ("RESOURCE_EXHAUSTED", "Received message larger than max (2 vs. 1)", True, PayloadError, 1),
        ("RESOURCE_EXHAUSTED", "gRPC message exceeds maximum size 1: 2", True, PayloadError, 1),
    ],
)
def test_what_no_application_said(
    code: str, text: str, connected: bool, kind: type[Exception], sent: bool
) -> None:
    error = error_of(rpc_error(grpc.StatusCode[code], text), connected=connected)
    assert type(error) is kind
    assert error.sent is bool(sent)


def test_an_error_that_nobody_meant_for_the_caller_is_a_failure() -> None:
    for text in ("", "Internal server error", "Unexpected <class 'KeyError'>: 'x'",
                 "Exception was thrown by handler."):  # fmt: skip
        error = error_of(rpc_error(grpc.StatusCode.UNKNOWN, text))
        assert error.outcome is Outcome.FAILURE, text
        assert "its log" in error.hint
    assert error_of(rpc_error(grpc.StatusCode.UNKNOWN, "boom")).outcome is Outcome.SUCCESS


def test_the_librarys_own_complaints() -> None:
    assert isinstance(error_of(aio.UsageError("Channel is closed.")), ConnectError)
    assert isinstance(error_of(aio.InternalError("batch")), ConnectionLost)
    text = "failed to connect to all addresses; last error: CERTIFICATE_VERIFY_FAILED: x"
    error = error_of(rpc_error(grpc.StatusCode.UNAVAILABLE, text), connected=False)
    assert isinstance(error, ConfigurationError)


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (RemoteError("boom"), 2),
        (RemoteError("boom", code="NOT_FOUND", status=404), 2),
        (RemoteError("boom", code=5), 5),
        (RemoteError(payload={"code": 5}), 5),
        (RemoteError(payload={"code": 422, "message": "m"}), 2),
        (RemoteError(payload={"code": 0, "message": "m"}), 2),
        (RemoteError(payload={"code": True}), 2),
        (RemoteError(payload=["a"]), 2),
        (NoHandlerError(), 12),
        (InvalidPayloadError("no"), 3),
        (Throttled(), 8),
        (RemoteError("late", code="DEADLINE_EXCEEDED"), 4),
    ],
)
def test_the_code_an_error_travels_as(error: RemoteError, number: int) -> None:
    assert number_of(error) == number
    for ours in (True, False):
        status = status_of(error, None, ours=ours)
        assert status.code.value[0] == number
        assert (_status.PAYLOAD in dict(status.trailers)) <= ours


@pytest.mark.parametrize(
    ("kind", "value"), [("Struct", {"a": [1.5, None]}), ("StringValue", "x"), ("Duration", "1s")]
)
def test_details_may_be_of_googles_general_types(kind: str, value: Any) -> None:
    detail = {"@type": f"type.googleapis.com/google.protobuf.{kind}", "value": value}
    payload = {"code": 9, "message": "m", "details": [detail]}
    status = status_of(RemoteError(payload=payload), None, ours=True)
    told = aio.AioRpcError(status.code, aio.Metadata(), aio.Metadata(*status.trailers), "m")
    error = error_of(told)
    assert isinstance(error, RemoteError)
    assert error.payload == payload


def test_what_does_not_fit_into_the_trailers_is_left_out_not_the_error() -> None:
    error = RemoteError(payload={"message": "m" * 50_000, "more": "x" * 50_000})
    status = status_of(error, None, ours=True)
    assert len(status.text) < 4000
    assert status.trailers == ()
    error = RemoteError(payload={"code": 5, "details": [{"@type": "nonsense"}], "metadata": 7})
    assert status_of(error, None, ours=True).trailers == ()
    error = RemoteError(
        payload={"code": 5, "metadata": {"a b": "1", "ok": "1", "n": 1, "x-bin": 2}}
    )
    assert status_of(error, None, ours=True).trailers == (("ok", "1"),)


def test_hostile_trailers_are_read_with_care() -> None:
    bad: list[tuple[str, Any]] = [
        (_status.PAYLOAD, b"{not json"),
        (_status.PAYLOAD, b"[" * 10_000),
        (_status.DETAILS, b"\xff\xff\xff"),
        (_status.PUSHBACK, "soon"),
        (_status.PUSHBACK, "9" * 400),
    ]
    for trailer in bad:
        error: Any = error_of(rpc_error(grpc.StatusCode.ABORTED, "m", trailer))
        assert isinstance(error, RemoteError), trailer
        assert error.message == "m"
