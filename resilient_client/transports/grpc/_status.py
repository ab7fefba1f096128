"""gRPC's status codes and this package's errors, both ways.

https://grpc.github.io/grpc/core/md_doc_statuscodes.html
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from math import inf
from typing import Any, NamedTuple, NoReturn

from resilient_client import _json
from resilient_client.errors import (
    DEADLINE_EXCEEDED_CODE,
    FOR_EVER,
    INTERNAL_SERVER_ERROR,
    PEER_FAILED,
    ConfigurationError,
    ConnectError,
    ConnectionLost,
    DeadlineExceeded,
    InvalidPayloadError,
    NoHandlerError,
    Outcome,
    PayloadError,
    ProtocolError,
    RemoteError,
    ResilientClientError,
    Throttled,
    is_throttled,
    told_seconds,
    told_status,
    wire_error,
)
from resilient_client.message import Reply
from resilient_client.transports.grpc._headers import Pair, own_of, trailers
from resilient_client.transports.grpc._library import (
    AnyMessage,
    DescriptorPool,
    aio,
    grpc,
    json_format,
    status_pb2,
)

PUSHBACK = "grpc-retry-pushback-ms"  # https://github.com/grpc/proposal/blob/master/A6
DETAILS = "grpc-status-details-bin"  # https://grpc.io/docs/guides/error/, google.rpc.Status
PAYLOAD = "x-resilient-client-error-bin"
"""The JSON of an error that is more than a code and a message, for a caller of our own kind."""

# Trailers share 8 KiB with the rest of the metadata in most implementations.
_MAX_TEXT = 3000
_MAX_BINARY = 3000

CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}
_CANCELLED, _UNKNOWN, _INVALID_ARGUMENT, _DEADLINE_EXCEEDED = 1, 2, 3, 4
_RESOURCE_EXHAUSTED, _UNIMPLEMENTED, _INTERNAL, _UNAVAILABLE = 8, 12, 13, 14

# What the libraries of servers say about a handler's exception that nobody meant for the caller.
_BY_THE_LIBRARY = re.compile(
    r"|Unexpected <class .*|Exception calling application.*|Exception was thrown by handler.*"
    r"|Application error processing RPC|Server method handler threw error.*"
    r"|Stream removed.*|Unknown Error",
    re.DOTALL,
).fullmatch
# What grpcio says of a connection that has ended, or whose peer was silent for too long. A peer
# that is a client itself may repeat it about a connection of its own: seldom, unlike that there is
# none.
_ENDED = re.compile(
    r"Stream removed|Socket closed|Connection reset|Connection closed|recvmsg|sendmsg|Broken pipe"
    r"|Transport closed|Endpoint closing|ping timeout|[Kk]eepalive"
)
# What it says besides when the connection was the trouble: not the peer's own UNAVAILABLE.
_LOST = re.compile(
    r"GOAWAY|Channel closed|failed to connect|Connection timed out|tcp handshaker shutdown"
    r"|transport is closing|Too many pings|goaway|max connection age|Cancelling all calls"
)
# What libraries say about messages and metadata over their limits, of either side.
_TOO_LARGE = re.compile(
    r"larger than max|metadata size exceeds|message exceeds (the )?maximum"
    r"|decompresses to a size larger than"
)
# What grpcio says where it noticed the end of a call by not being able to write to it.
_STATUS_LOST = "Internal error from Core"
_NOT_CONNECTED = "failed to connect to all addresses"
_UNTRUSTED = re.compile(r"CERTIFICATE_VERIFY_FAILED|Hostname Verification|Peer name .* is not in")


# ------------------------------------------------------------------------------- a server's answer


class Status(NamedTuple):
    """How an answer ends that is an error."""

    code: grpc.StatusCode
    text: str
    trailers: tuple[Pair, ...]


def number_of(error: RemoteError) -> int:
    """The status code an error travels as."""
    payload = error.payload
    if isinstance(payload, dict):
        code = payload.get("code")
        if type(code) is int and 0 < code <= 16:
            return code
        if code == DEADLINE_EXCEEDED_CODE:
            return _DEADLINE_EXCEEDED
    if isinstance(error, NoHandlerError):
        return _UNIMPLEMENTED
    if isinstance(error, InvalidPayloadError):
        return _INVALID_ARGUMENT
    return _RESOURCE_EXHAUSTED if isinstance(error, Throttled) else _UNKNOWN


async def refuse(context: Any, *status: Any) -> NoReturn:
    """End a call of a server with this status.

    Raises:
        CancelledError: its caller has gone: what there was of its request may be half of it.
        AbortError: otherwise; for grpcio.
    """
    try:
        await context.abort(*status)
    except aio.InternalError:  # "Failed execute_batch", which grpcio would log
        raise asyncio.CancelledError from None
    raise AssertionError("abort has raised")


def status_of(error: RemoteError, pool: DescriptorPool | None, *, ours: bool) -> Status:
    """The status, its text and trailers.

    Args:
        error: what the handler raised, or what stands for it.
        pool: where the types of its `details` may be, besides Google's own.
        ours: the caller is of our kind, and can read more than code and text.
    """
    number = number_of(error)
    payload = error.payload
    text = error.message
    pairs: list[Pair] = []
    plain = isinstance(payload, dict) and type(payload.get("code")) is int
    if isinstance(payload, dict):
        if isinstance(payload.get("details"), str):  # as grpc-js has it, and so Nest
            text = payload["details"]
        elif "details" in payload:
            raw = _written(number, text, payload["details"], pool)
            if raw is not None:
                pairs.append((DETAILS, raw))
        pairs += trailers(payload.get("metadata"))
    if isinstance(error, Throttled) and error.retry_after is not None:
        pairs.append((PUSHBACK, str(int(min(error.retry_after, FOR_EVER) * 1000))))
    if ours and not (plain and number == payload["code"]):
        raw = _json.encode(wire_error(error))
        if len(raw) <= _MAX_BINARY:
            pairs.append((PAYLOAD, raw))
    return Status(CODES[number], _bounded(text), tuple(pairs))


def _bounded(text: str) -> str:
    most = _MAX_TEXT if text.isascii() else _MAX_TEXT // 12  # it is percent-encoded
    text = text.encode(errors="replace").decode()
    return text if len(text) <= most else text[:most] + "..."


def _written(number: int, text: str, details: Any, pool: DescriptorPool | None) -> bytes | None:
    status = status_pb2.Status(code=number, message=_bounded(text))
    if not isinstance(details, list):
        return None
    for each in details:
        packed = _packed(each, pool)
        if packed is None:
            return None
        status.details.append(packed)
    raw: bytes = status.SerializeToString()
    return raw if len(raw) <= _MAX_BINARY else None


def _packed(detail: Any, pool: DescriptorPool | None) -> Any:
    for each in (pool, None):
        try:
            return json_format.ParseDict(detail, AnyMessage(), descriptor_pool=each)
        except (json_format.ParseError, TypeError, AttributeError, KeyError):
            continue
    return None


def status_name(reply: Reply) -> str:
    """What a reply travels as, for telemetry."""
    return "OK" if reply.error is None else CODES[number_of(reply.error)].name


# ---------------------------------------------------------------------------- at the client's end


def error_of(
    error: BaseException, *, connected: bool = True, pool: DescriptorPool | None = None
) -> ResilientClientError:
    """Our error for one of grpcio's.

    Args:
        error: what a call raised.
        connected: whether the channel still has its connection: a peer may repeat to us what its
            own gRPC client said about somebody else.
        pool: where the types of rich details may be, besides Google's own.
    """
    if isinstance(error, aio.AioRpcError):
        number: int = error.code().value[0]
        text = error.details() or ""
        if number == _UNAVAILABLE and not connected and text.startswith(_NOT_CONNECTED):
            return not_connected(text)
        return _answered(number, text, error.trailing_metadata(), connected, pool)
    if isinstance(error, aio.UsageError):  # "Channel is closed."
        return ConnectError(str(error))
    return ConnectionLost(f"{type(error).__name__}: {error}")


def is_end(error: BaseException) -> bool:
    """Whether a call ended with its connection, which nothing must be sent on any more."""
    return (
        isinstance(error, aio.AioRpcError)
        and error.code() is grpc.StatusCode.UNAVAILABLE
        and not error.trailing_metadata()
        and _ENDED.match(error.details() or "") is not None
    )


def not_connected(text: str) -> ResilientClientError:
    """The error for a connection that cannot be made."""
    if _UNTRUSTED.search(text) is not None:
        return ConfigurationError(
            f"the server's certificate is not trusted: {text[:500]}",
            hint="give its authority as ca=, or the name in it as server_name=",
        )
    if "Failed to create security handshaker" in text:
        return ConfigurationError(
            "the certificates given to this client cannot be used",
            hint="ca=, cert= and key= are PEM, and the key is the certificate's",
        )
    if "WRONG_VERSION_NUMBER" in text:
        return ConfigurationError(
            f"the server does not speak TLS: {text[:500]}", hint="write grpc://, or check the port"
        )
    if "Failed parsing HTTP/2" in text:
        return ProtocolError(f"the peer does not speak gRPC: {text[:500]}", sent=False)
    hint = None
    if "Socket closed" in text:
        hint = "does this port want TLS (grpcs://), or a client's certificate (cert= and key=)?"
    return ConnectError(text, hint=hint)


def _answered(
    number: int,
    text: str,
    metadata: Iterable[tuple[str, Any]] | None,
    connected: bool,  # noqa: FBT001
    pool: DescriptorPool | None,
) -> ResilientClientError:
    found = dict(metadata or ())
    if not found:
        lost = _unanswered(number, text, connected)
        if lost is not None:
            return lost
    if number == _RESOURCE_EXHAUSTED and _TOO_LARGE.search(text) is not None:
        hint = "raise max_size= on both ends" if "metadata" not in text else "send shorter headers"
        return PayloadError(f"too large: {text}", sent=True, hint=hint)
    said = _said(number, text, found, pool)
    if number == _DEADLINE_EXCEEDED:
        return DeadlineExceeded("the call's time ran out at the peer", sent=True)
    about: dict[str, Any] = {"payload": said.payload, "code": said.code, "status": said.status}
    if number == _UNIMPLEMENTED:
        return NoHandlerError(said.message, **about)
    if said.code == InvalidPayloadError.CODE:
        return InvalidPayloadError(said.message, **about)
    pushback = _pushback(found.get(PUSHBACK), said.payload)
    wait = told_seconds(said.payload.get("retry_after")) if isinstance(said.payload, dict) else None
    throttled = pushback is not None or is_throttled(said.code, said.status, wait)
    if throttled or number == _RESOURCE_EXHAUSTED:
        return Throttled(said.message, **about, retry_after=pushback)
    remote = RemoteError(said.message, **about)
    unmeant = number == _UNKNOWN and not said.meant and _unmeant(text)
    if unmeant or number in (_INTERNAL, _UNAVAILABLE):
        remote.outcome = Outcome.FAILURE
        remote.hint = PEER_FAILED
    return remote


class _Said(NamedTuple):
    message: Any
    payload: Any
    code: str | int
    status: int
    meant: bool = False  # for the caller: it is the very payload


def _said(number: int, text: str, found: dict[str, Any], pool: DescriptorPool | None) -> _Said:
    """What an error holds: the very payload from a peer of our kind, gRPC's own from others."""
    name = CODES[number].name
    told = found.get(PAYLOAD)
    if isinstance(told, bytes):
        try:
            payload: Any = _json.decode(told)
        except PayloadError:
            pass
        else:
            if not isinstance(payload, dict):
                return _Said(payload, payload, name, number, meant=True)
            code: Any = payload.get("code")
            status = told_status(payload)
            return _Said(
                payload.get("message", text),
                payload,
                code if isinstance(code, str | int) else name,
                number if status is None else status,
                meant=True,
            )
    payload = {"code": number, "message": text}
    rich = found.get(DETAILS)
    if isinstance(rich, bytes):
        payload["details"] = _read(rich, pool)
    if own := own_of(found):
        payload["metadata"] = own
    return _Said(text, payload, name, number)


def _unanswered(number: int, text: str, connected: bool) -> ResilientClientError | None:  # noqa: FBT001
    """An end that no server's application chose."""
    if number == _CANCELLED:
        return ConnectionLost(f"the call was cancelled: {text}")
    if number == _UNAVAILABLE and (not connected or _ENDED.match(text) or _LOST.match(text)):
        return ConnectionLost(text)
    if number == _INTERNAL and "RST_STREAM" in text:
        return ConnectionLost(text)
    if number == _INTERNAL and text == _STATUS_LOST:
        return ConnectionLost(
            "the peer ended the call while it was written; grpcio has not kept how"
        )
    if number != _UNAVAILABLE and text.startswith("Received http2 header with status"):
        return ProtocolError(f"the peer speaks HTTP/2 but not gRPC: {text}")
    return None


def _unmeant(text: str) -> bool:
    return text == INTERNAL_SERVER_ERROR or _BY_THE_LIBRARY(text) is not None


def _pushback(told: Any, payload: Any) -> float | None:
    """Seconds the server asks to wait; for ever where it asks not to repeat at all."""
    if isinstance(told, str):
        plain = told.isascii() and told.isdigit() and len(told) < 16
        return int(told) / 1000 if plain else inf
    if isinstance(payload, dict) and isinstance(payload.get("details"), list):
        for each in payload["details"]:
            delay = each.get("retryDelay") if isinstance(each, Mapping) else None
            if isinstance(delay, str) and delay.endswith("s"):  # google.rpc.RetryInfo
                try:
                    return max(0.0, float(delay[:-1]))
                except ValueError:
                    continue
    return None


def _read(raw: bytes, pool: DescriptorPool | None) -> list[Any]:
    """The details of a google.rpc.Status as JSON; a type nobody knows as its bytes."""
    status = status_pb2.Status()
    try:
        status.ParseFromString(raw)
    except Exception:  # noqa: BLE001  (whatever the peer sent)
        return []
    return [_unpacked(each, pool) for each in status.details]


def _unpacked(packed: Any, pool: DescriptorPool | None) -> Any:
    for each in (None, pool):
        with suppress(Exception):  # whatever the peer sent
            return json_format.MessageToDict(packed, descriptor_pool=each)
    return {"@type": packed.type_url, "value": packed.value}
