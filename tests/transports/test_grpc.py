"""grpc:// with both ends ours: every kind of method, every way to know of it, every limit."""

from __future__ import annotations

import asyncio
import base64
import gc
import os
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from resilient_client import (
    ClientProxy,
    ConfigurationError,
    ConnectError,
    ConnectionLost,
    Context,
    DeadlineExceeded,
    InvalidPayloadError,
    NoHandlerError,
    PayloadError,
    RemoteError,
    ReplyTimeout,
    ResilientClientError,
    Retry,
    Server,
    SyncClientProxy,
    Throttled,
    Timeout,
)
from resilient_client.errors import Outcome
from resilient_client.testing import check_transport
from resilient_client.transports.grpc._library import aio, grpc, status_pb2
from tests.calls import error_of, outcome
from tests.contract.rigs import Service
from tests.peers.certificates import certificates
from tests.peers.proxy import TcpProxy
from tests.server_thread import serving
from tests.telemetry.kit import Recorded
from tests.waiting import eventually

LOCAL = "grpc://127.0.0.1:0"
PROTO = Path(__file__).parent.parent / "interop" / "shared" / "interop.proto"


@dataclass
class Number:
    value: int


@dataclass
class Total:
    total: int


def untold(loop: asyncio.AbstractEventLoop) -> int:
    """How much of what grpcio was asked for in this loop it has not told the end of.

    It keeps one object for each, which nothing else refers to. An event for a loop that has closed
    is logged as an error by another loop, if there is one, and the object stays for ever.
    """
    gc.collect()  # what was told may wait for that; the library holds what was not
    kept = [each for each in gc.get_objects() if type(each).__name__ == "CallbackWrapper"]
    futures = [each for each in gc.get_referents(*kept) if isinstance(each, asyncio.Future)]
    return sum(each.get_loop() is loop for each in futures)


class Seen:
    """What the handlers noticed."""

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()
        self.events: list[Any] = []
        self.calls = 0


def math_server(url: str = LOCAL, seen: Seen | None = None, **options: Any) -> Server:
    options.setdefault("proto", PROTO)
    server = Server(url, telemetry=False, grace=0.5, **options)
    seen = seen or Seen()

    @server.message_pattern("interop.Math/Sum")
    async def add(payload: dict[str, list[int]]) -> dict[str, int]:
        seen.calls += 1
        return {"total": sum(payload["values"])}

    @server.message_pattern("Math/Echo")
    async def echo(payload: dict[str, Any]) -> dict[str, Any]:
        return payload

    @server.message_pattern("Math/Fail")
    async def fail(payload: dict[str, Any], context: Context) -> None:
        if payload["kind"] == "bug":
            raise KeyError("a secret")
        if payload["kind"] == "invalid":
            raise InvalidPayloadError("no")
        if payload["kind"] == "trailers":
            raise RemoteError(
                payload={"code": 8, "message": "m", "metadata": {"a": "b", "c-bin": b"\0\1"}}
            )
        if payload["kind"] == "rich":
            info = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "R"}
            raise RemoteError(payload={"code": 9, "message": "m", "details": [info]})
        if "code" in payload:
            raise RemoteError(payload={"code": payload["code"], "message": payload["message"]})
        raise RemoteError(payload["message"])

    @server.message_pattern("Math/Delay")
    async def delay(payload: dict[str, Any]) -> dict[str, Any]:
        try:
            await asyncio.sleep(payload["ms"] / 1000)
        except asyncio.CancelledError:
            seen.cancelled.set()
            raise
        return {"total": payload["value"]}

    @server.message_pattern("Math/Metadata")
    async def metadata(context: Context) -> dict[str, Any]:
        context.raw.set_trailing_metadata((("x-trailing", "yes"),))
        return {"values": dict(context.headers)}

    @server.message_pattern("Math/Nothing")
    async def nothing() -> None:
        return None

    @server.message_pattern("Math/Count")
    async def count(payload: dict[str, Any]) -> AsyncIterator[dict[str, int]]:
        try:
            for i in range(payload["n"]):
                yield {"value": i}
                if payload["ms"]:
                    await asyncio.sleep(payload["ms"] / 1000)
        finally:
            seen.cancelled.set()
        if payload["fail"]:
            raise RemoteError(payload={"code": 5, "message": "nope"})

    @server.message_pattern("Math/Gather")
    async def gather(numbers: AsyncIterator[Number]) -> Total:
        return Total(sum([number.value async for number in numbers]))

    @server.message_pattern("Math/Double")
    async def double(numbers: AsyncIterator[Number]) -> AsyncIterator[Number]:
        async for number in numbers:
            yield Number(2 * number.value)

    @server.event_pattern("Math/Flaky")
    async def flaky(payload: Any) -> None:
        seen.events.append(payload)

    return server


def client_of(server: Server, **options: Any) -> ClientProxy:
    options.setdefault("policies", ())
    return ClientProxy(server.addresses[0], telemetry=False, **options)


async def numbers(*values: int) -> AsyncIterator[dict[str, int]]:
    for value in values:
        yield {"value": value}


async def test_it_keeps_every_promise_of_a_transport() -> None:
    assert len(await check_transport(LOCAL)) == 22


async def test_it_keeps_them_compressed() -> None:
    assert len(await check_transport(LOCAL, options={"compression": "gzip"})) == 22


# ----------------------------------------------------------------------------- kinds of methods


@pytest.mark.parametrize("how", ["proto", "reflection", "module"])
async def test_all_four_kinds_of_methods_however_the_client_knows_them(how: str) -> None:
    options: dict[str, Any] = {"proto": str(PROTO)} if how == "proto" else {}
    if how == "module":
        options["proto"] = generated_module()
    async with math_server() as server, client_of(server, **options) as client:
        for name in ("interop.Math/Sum", "Math/Sum"):
            assert await client.send(name, {"values": [1, 2, 3]}) == {"total": 6}
        assert await client.send("Math/Sum", {"values": [1]}, returns=Total) == Total(1)
        assert [n async for n in client.stream("Math/Count", {"n": 3})] == [
            {"value": 0}, {"value": 1}, {"value": 2},
        ]  # fmt: skip
        assert await client.send("Math/Gather", numbers(1, 2, 3)) == {"total": 6}
        assert await client.send("Math/Gather", [{"value": 4}, Number(5)]) == {"total": 9}
        assert [n async for n in client.stream("Math/Double", numbers(1, 2), returns=Number)] == [
            Number(2), Number(4),
        ]  # fmt: skip
        # one value where several would come, and the other way round
        assert await client.send("Math/Count", {"n": 3}) == {"value": 0}
        assert await client.send("Math/Count", {}) is None
        assert [n async for n in client.stream("Math/Sum", {"values": [2]})] == [{"total": 2}]
        assert await client.send("Math/Nothing", {}) == {"total": 0}


def generated_module() -> Any:
    """As `protoc` writes one, without writing it."""
    from types import ModuleType

    from google.protobuf import descriptor_pb2, descriptor_pool

    from resilient_client.transports.grpc._protoc import compile_protos

    files = descriptor_pb2.FileDescriptorSet.FromString(compile_protos([str(PROTO)], []))
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.AddSerializedFile(file.SerializeToString())
    module = ModuleType("interop_pb2")
    module.DESCRIPTOR = pool.FindFileByName("interop.proto")  # type: ignore[attr-defined]
    return module


async def test_streams_go_both_ways_at_once() -> None:
    asked: list[int] = []
    answered: list[int] = []

    async def paced() -> AsyncIterator[dict[str, int]]:
        for i in range(3):
            asked.append(i)
            yield {"value": i}
            while len(answered) <= i:
                await asyncio.sleep(0.001)

    async with math_server() as server, client_of(server, proto=PROTO) as client:
        async for number in client.stream("Math/Double", paced(), returns=Number):
            answered.append(number.value)  # noqa: PERF401
    assert (asked, answered) == ([0, 1, 2], [0, 2, 4])


async def test_a_stream_of_requests_that_fails_says_so() -> None:
    async def broken() -> AsyncIterator[dict[str, int]]:
        yield {"value": 1}
        raise ZeroDivisionError("mine")

    async def wrong() -> AsyncIterator[dict[str, Any]]:
        yield {"value": "one"}

    async with math_server() as server, client_of(server, proto=PROTO) as client:
        error = await error_of(client.send("Math/Gather", broken()))
        assert isinstance(error, PayloadError), error
        assert isinstance(error.__cause__, ZeroDivisionError)
        error = await error_of(client.send("Math/Gather", wrong()))
        assert isinstance(error, PayloadError), error
        assert "$.value" in str(error)
        error = await error_of(client.send("Math/Gather", {"value": 1}))
        assert isinstance(error, PayloadError), error
        assert not error.sent
        assert await client.send("Math/Gather", numbers(1)) == {"total": 1}


@contextmanager
def hasty_peer() -> Iterator[str]:
    """A server that ends a call without reading its requests: in order, or with an error."""

    def ended(context: Any) -> bytes:
        if ("how", "refused") in context.invocation_metadata():
            context.set_trailing_metadata((("why", "so"),))
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "enough")
        return b"\x08\x07"  # {total: 7}, {value: 7}

    server = grpc.server(ThreadPoolExecutor(4))
    methods = {
        "Gather": grpc.stream_unary_rpc_method_handler(lambda _, context: ended(context)),
        "Double": grpc.stream_stream_rpc_method_handler(lambda _, context: iter([ended(context)])),
    }
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("interop.Math", methods),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"grpc://127.0.0.1:{port}"
    finally:
        server.stop(0).wait()


async def test_a_peer_that_ends_a_call_while_its_requests_are_written_says_how() -> None:
    """grpcio has it made up: "Internal error from Core"."""
    with hasty_peer() as url:
        async with ClientProxy(url, policies=(), telemetry=False, proto=PROTO) as client:

            async def gather(how: str) -> Any:
                many = [{"value": 1}] * 20
                return await outcome(client.send("Math/Gather", many, headers={"how": how}))

            async def double(how: str) -> Any:
                many = numbers(*range(20))
                got = client.stream("Math/Double", many, headers={"how": how})
                try:
                    return [each async for each in got]
                except ResilientClientError as error:
                    return error

            for _ in range(10):
                answers = await asyncio.gather(*(each("") for each in [gather, double] * 5))
                assert answers == [{"total": 7}, [{"value": 7}]] * 5
                answers = await asyncio.gather(*(each("refused") for each in [gather, double] * 5))
                for error in answers:
                    assert (error.code, error.message) == ("INVALID_ARGUMENT", "enough")
                    assert error.payload["metadata"]["why"] == "so"


@pytest.mark.parametrize("how", ["", "refused"])
async def test_a_stream_of_requests_ends_when_its_peer_ends_the_call(how: str) -> None:
    closed: list[str] = []

    async def waiting(method: str) -> AsyncIterator[dict[str, int]]:
        try:
            yield {"value": 1}
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)  # is not cancelled once more
            closed.append(method)

    with hasty_peer() as url:
        async with ClientProxy(url, policies=(), telemetry=False, proto=PROTO) as client:
            await outcome(client.send("Math/Gather", waiting("Gather"), headers={"how": how}))
            await outcome(client.send("Math/Double", waiting("Double"), headers={"how": how}))
            await eventually(lambda: closed == ["Gather", "Double"])
    async with math_server() as server, client_of(server, proto=PROTO) as client:
        error = await error_of(client.send("Math/Gather", waiting("late"), timeout=0.2))
        assert isinstance(error, DeadlineExceeded)
        async for _ in client.stream("Math/Double", waiting("left")):
            break
        await eventually(lambda: closed[2:] == ["late", "left"])


async def test_a_stream_of_requests_is_not_begun_twice() -> None:
    async with math_server() as server:
        policies = [Timeout(5), Retry(attempts=2)]
        async with client_of(server, proto=PROTO, policies=policies) as client:
            transport: Any = client._transports[0]
            begin, tries = transport._begin, []

            def failing(call: Any, asked: Any, *rest: Any) -> Any:
                tries.append(call.attempt)
                if len(tries) == 1:
                    asked.begun = True
                    raise ConnectError("made up")
                return begin(call, asked, *rest)

            transport._begin = failing
            error = await error_of(client.send("Math/Gather", numbers(1), idempotent=True))
            assert isinstance(error, PayloadError), error
            tries.clear()
            assert await client.send("Math/Gather", [{"value": 1}]) == {"total": 1}


async def test_a_payload_that_does_not_fit_is_refused_at_both_ends() -> None:
    async with math_server() as server, client_of(server, proto=PROTO) as client:
        for data, where in (
            ({"nope": 1}, "'nope'"),
            ({"int32Field": "x"}, "$.int32Field"),
            ({"int32Field": 2**40}, "$.int32Field"),
            ({"color": "COLOR_PINK"}, "$.color"),
            ({"nestedField": {"inner": {"nope": 1}}}, "$.nestedField.inner"),
            ({"nestedList": [{}, {"nope": 1}]}, "$.nestedList[1]"),
            ({"choiceInt": 1, "choiceText": "a"}, "choiceInt and choiceText"),
            ({"bytesField": "not base64!"}, "$.bytesField"),
            ({"repeatedField": "text"}, "$.repeatedField"),
            (["a list"], "a list"),
        ):
            error = await error_of(client.send("Math/Echo", data))
            assert isinstance(error, PayloadError), (data, error)
            assert where in str(error)
            assert not error.sent
        error = await error_of(client.send("Math/Sum", {"values": [1]}, returns=dict[str, str]))
        assert isinstance(error, PayloadError)
        assert error.sent
        error = await error_of(client.send("sum", ["plain"]))
        assert isinstance(error, NoHandlerError)


async def test_handlers_validate_what_arrives() -> None:
    server = Server(LOCAL, telemetry=False, proto=PROTO)

    @server.message_pattern("Math/Sum")
    async def add(payload: Number) -> None: ...

    @server.message_pattern("Math/Gather")
    async def gather(numbers: AsyncIterator[Total]) -> None:
        async for _ in numbers:
            pass

    async with server, client_of(server) as client:
        error = await error_of(client.send("Math/Sum", {"values": [1]}))
        assert isinstance(error, InvalidPayloadError), error
        error = await error_of(client.send("Math/Gather", [{"value": 1}]))
        assert isinstance(error, InvalidPayloadError), error
        # a caller that is not ours sees the code that says so
        async with aio.insecure_channel(server.addresses[0].removeprefix("grpc://")) as channel:
            with pytest.raises(aio.AioRpcError) as caught:
                await channel.unary_unary("/interop.Math/Sum")(b"\n\x01\x01")
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


# ------------------------------------------------------------------------------ errors and times


async def test_errors_carry_their_code_and_all_that_was_said() -> None:
    async with math_server() as server, client_of(server) as client:
        error = await error_of(client.send("Math/Fail", {"code": 5, "message": "nope"}))
        assert type(error) is RemoteError
        assert (error.status, error.code, error.message) == (5, "NOT_FOUND", "nope")
        assert error.payload == {"code": 5, "message": "nope"}
        error = await error_of(client.send("Math/Fail", {"message": "boom"}))
        assert (error.status, error.code, error.message) == (2, "UNKNOWN", "boom")
        error = await error_of(client.send("Math/Fail", {"kind": "bug"}))
        assert (error.status, error.message) == (2, "Internal server error")
        error = await error_of(client.send("Math/Fail", {"kind": "trailers"}))
        assert isinstance(error, Throttled)
        assert error.payload["metadata"] == {"a": "b", "c-bin": b"\0\1"}
        error = await error_of(client.send("Math/Fail", {"kind": "rich"}))
        assert (error.status, error.code) == (9, "FAILED_PRECONDITION")
        assert error.payload["details"][0]["reason"] == "R"
        error = await error_of(client.send("Math/Fail", {"kind": "invalid"}))
        assert isinstance(error, InvalidPayloadError)
        long = "\u00fc" * 20_000
        error = await error_of(client.send("Math/Fail", {"code": 3, "message": long}))
        assert error.message.startswith("\u00fc\u00fc")
        values = []
        with pytest.raises(RemoteError) as caught:
            async for n in client.stream("Math/Count", {"n": 2, "fail": True}, returns=Number):
                values.append(n.value)  # noqa: PERF401
        assert (values, caught.value.status) == ([0, 1], 5)


async def test_deadlines_are_grpcs_own_and_reach_the_handler() -> None:
    seen = Seen()
    async with math_server(seen=seen) as server, client_of(server, proto=PROTO) as client:
        headers = (await client.send("Math/Metadata", {}, timeout=30))["values"]
        assert 29_000 < int(headers["x-deadline-ms"]) <= 30_000
        started = time.monotonic()
        error = await error_of(client.send("Math/Delay", {"ms": 5000}, timeout=0.2))
        assert isinstance(error, DeadlineExceeded)
        assert error.sent
        assert time.monotonic() - started < 1.2
        await asyncio.wait_for(seen.cancelled.wait(), 3)
        async with client.stream("Math/Count", {"n": 9, "ms": 200}, idle_timeout=0.05) as items:
            assert await anext(items) == {"value": 0}
            assert isinstance(await error_of(anext(items)), ReplyTimeout)
        error = await error_of(
            collect(client.stream("Math/Count", {"n": 99, "ms": 50}, timeout=0.2))
        )
        assert isinstance(error, DeadlineExceeded)


async def collect(stream: Any) -> list[Any]:
    return [item async for item in stream]


async def test_a_stream_that_is_left_in_any_turn_of_the_loop_ends_its_handler() -> None:
    server = Server(LOCAL, telemetry=False)

    @server.message_pattern("endless")
    async def endless() -> AsyncIterator[int]:
        yield 1
        await asyncio.Event().wait()

    async with server, ClientProxy(server.addresses[0], policies=(), telemetry=False) as client:

        async def read() -> None:
            async for _ in client.stream("endless"):
                continue

        for turns in range(60):
            reading = asyncio.ensure_future(read())
            for _ in range(turns):
                await asyncio.sleep(0)
            reading.cancel()
            await asyncio.wait({reading})
        await eventually(lambda: not server._app.running)


async def test_leaving_cancels_the_handler() -> None:
    seen = Seen()
    async with math_server(seen=seen) as server, client_of(server, proto=PROTO) as client:
        task = asyncio.ensure_future(client.send("Math/Delay", {"ms": 9000}))
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.wait({task})
        await asyncio.wait_for(seen.cancelled.wait(), 3)
        seen.cancelled.clear()
        async with client.stream("Math/Count", {"n": 1000, "ms": 5}) as items:
            await anext(items)
        await asyncio.wait_for(seen.cancelled.wait(), 3)


@pytest.mark.parametrize("ours", [True, False])
async def test_a_stream_of_requests_whose_sender_leaves_is_not_taken_for_a_whole_one(
    *,
    ours: bool,
) -> None:
    server = Server(LOCAL, telemetry=False, proto=PROTO)
    begun, ends = asyncio.Event(), list[str]()

    @server.message_pattern("Math/Gather")
    async def gather(numbers: AsyncIterator[dict[str, int]]) -> dict[str, int]:
        total = 0
        try:
            async for number in numbers:
                total += number["value"]
                begun.set()
        except asyncio.CancelledError:
            ends.append("cancelled")
            raise
        ends.append(f"all is {total}")
        return {"total": total}

    async def endless() -> AsyncIterator[Any]:
        yield {"value": 1} if ours else b"\x08\x01"
        await asyncio.Event().wait()

    async with server, client_of(server, proto=PROTO) as client:
        channel = aio.insecure_channel(server.addresses[0].removeprefix("grpc://"))
        for left in range(1, 6):
            begun.clear()
            if ours:
                call = asyncio.ensure_future(client.send("Math/Gather", endless()))
            else:
                call = channel.stream_unary("/interop.Math/Gather")(endless())
            await begun.wait()
            call.cancel()
            await eventually(lambda count=left: len(ends) == count)
        await channel.close()
        assert await client.send("Math/Gather", [{"value": 1}, {"value": 2}]) == {"total": 3}
    assert ends == ["cancelled"] * 5 + ["all is 3"]


async def test_metadata_travels_both_ways() -> None:
    async with math_server() as server, client_of(server) as client:
        sent = {"x-one": "1", "blob-bin": base64.b64encode(b"\0\xff").decode()}
        headers = (await client.send("Math/Metadata", {}, headers=sent))["values"]
        assert headers.items() >= sent.items()
        for name, value in (("x-one", "\u00fc"), ("a b", "1"), ("grpc-x", "1"), ("x-bin", "?")):
            error = await error_of(client.send("Math/Metadata", {}, headers={name: value}))
            assert isinstance(error, PayloadError), (name, error)
            assert not error.sent
            assert "\u00fc" not in str(error)


async def test_a_password_in_the_url_is_an_authorization_and_is_never_shown() -> None:
    async with math_server() as server:
        url = server.addresses[0].replace("grpc://", "grpc://ann:s3cret@")
        async with ClientProxy(url, policies=(), telemetry=False) as client:
            headers = (await client.send("Math/Metadata", {}))["values"]
            assert headers["authorization"] == "Basic " + base64.b64encode(b"ann:s3cret").decode()
            assert "s3cret" not in client.explain()


async def test_pushback_is_honoured() -> None:
    answers = [("250", grpc.StatusCode.UNAVAILABLE), ("-1", grpc.StatusCode.UNAVAILABLE),
               ("x", grpc.StatusCode.RESOURCE_EXHAUSTED)]  # fmt: skip

    async def behave(_: bytes, context: Any) -> bytes:
        if not answers:
            return b""
        pushback, code = answers.pop(0)
        await context.abort(code, "later", (("grpc-retry-pushback-ms", pushback),))
        return b""

    async with foreign(behave) as url:
        policies = [Timeout(5), Retry(attempts=3)]
        async with ClientProxy(url, policies=policies, telemetry=False, proto=PROTO) as client:
            started = time.monotonic()
            error = await error_of(client.send("Math/Sum", {}))
            assert time.monotonic() - started > 0.25
            assert len(error.attempts) == 2, "a negative pushback says not to come again"
            assert isinstance(error, Throttled)
            error = await error_of(client.send("Math/Sum", {}))
            assert len(error.attempts) == 1
            assert await client.send("Math/Sum", {}) == {"total": 0}


class foreign:  # noqa: N801
    """A gRPC server that nobody here wrote much of: every method does the same."""

    def __init__(self, behave: Any, **options: Any) -> None:
        self.behave = behave
        self.options = [(f"grpc.{name}", value) for name, value in options.items()]

    async def __aenter__(self) -> str:
        handler = grpc.unary_unary_rpc_method_handler(self.behave)

        class Everything(grpc.GenericRpcHandler):
            def service(self, handler_call_details: Any) -> Any:
                return handler

        self.server = aio.server(options=self.options)
        self.server.add_generic_rpc_handlers((Everything(),))
        port = self.server.add_insecure_port("127.0.0.1:0")
        await self.server.start()
        return f"grpc://127.0.0.1:{port}"

    async def __aexit__(self, *_: object) -> None:
        await self.server.stop(0)


# ------------------------------------------------------------------------------------- limits


async def test_too_large_messages_are_told_on_whichever_side_they_are_noticed() -> None:
    seen = Seen()
    async with math_server(seen=seen, max_size=100_000) as server:
        async with client_of(server, proto=PROTO) as client:
            error = await error_of(client.send("Math/Echo", {"textField": "x" * 500_000}))
            assert isinstance(error, PayloadError), error
            assert error.sent
        async with client_of(server, proto=PROTO, max_size=1000) as client:
            error = await error_of(client.send("Math/Echo", {"textField": "x" * 2000}))
            assert isinstance(error, PayloadError), error
            assert not error.sent
    server = Server(LOCAL, telemetry=False, proto=PROTO)

    @server.message_pattern("Math/Big")
    async def big(payload: dict[str, int]) -> dict[str, str]:
        return {"text": "x" * payload["size"]}

    async with server, client_of(server, proto=PROTO, max_size=1000) as client:
        error = await error_of(client.send("Math/Big", {"size": 200_000}))
        assert isinstance(error, PayloadError), error
        assert error.sent
        assert len((await client.send("Math/Big", {"size": 900}))["text"]) == 900


async def test_events_of_a_method_and_of_a_plain_pattern() -> None:
    seen = Seen()
    async with math_server(seen=seen) as server, client_of(server) as client:
        receipt = await client.emit("Math/Flaky", {"key": "k"})
        assert (receipt.delivery, receipt.receivers) == ("accepted", 1)
        assert (await client.emit("nobody", 1)).receivers == 0
        assert (await client.emit("Math/Unimplemented", {})).receivers == 0
        assert (await client.emit("Math/Sum", {"values": []})).receivers == 1
        for _ in range(100):
            if seen.events:
                break
            await asyncio.sleep(0.01)
        assert seen.events[0]["key"] == "k"


async def test_a_call_to_events_runs_all_of_them() -> None:
    server = Server(LOCAL, telemetry=False, proto=PROTO)
    heard: list[int] = []
    for name in ("Math/Sum", "Math/Sum", "plain", "plain"):

        @server.event_pattern(name)
        async def event(payload: Any) -> None:
            heard.append(1)

    async with server, client_of(server, proto=PROTO) as client:
        assert await client.send("Math/Sum", {}) == {"total": 0}
        assert await client.send("plain", 1) == {}
    assert len(heard) == 4


@pytest.mark.parametrize(
    ("raised", "kind", "outcome", "status"),
    [
        (RemoteError("m", status=429), Throttled, "throttled", 429),
        (RemoteError(payload={"status": 429, "retry_after": 0.25}), Throttled, "throttled", 429),
        (RemoteError(payload={"status": 503, "retry_after": 0.25}), Throttled, "throttled", 503),
        (RemoteError("m", status=503), RemoteError, "failure", 503),
        (RemoteError("m", code="THROTTLED"), Throttled, "throttled", 2),
        (RemoteError(payload={"why": "out of stock"}), RemoteError, "success", 2),
        (RemoteError(), RemoteError, "success", 2),
        (RemoteError("Internal server error"), RemoteError, "failure", 2),
        (RemoteError(payload={"statusCode": 418}), RemoteError, "success", 418),
    ],
)
async def test_what_a_handler_of_ours_says_means_what_it_means_on_every_transport(
    raised: RemoteError, kind: type[RemoteError], outcome: str, status: int
) -> None:
    server = Server(LOCAL, telemetry=False)

    @server.message_pattern("fail")
    async def fail() -> None:
        raise raised

    async with server, client_of(server) as client:
        error = await error_of(client.send("fail"))
    assert type(error) is kind
    assert (error.outcome, error.status) == (Outcome(outcome), status)
    assert error.payload == raised.payload
    if isinstance(error, Throttled):
        assert error.retry_after == (0.25 if "retry_after" in raised.payload else None)


async def test_over_the_cap_a_request_is_throttled_with_pushback_and_an_event_waits() -> None:
    server = Server(LOCAL, telemetry=False, max_calls=1)
    done: list[int] = []

    @server.message_pattern("slow")
    async def slow(payload: Any) -> None:
        await asyncio.sleep(0.3)

    @server.event_pattern("event")
    async def event(payload: int) -> None:
        done.append(payload)

    async with server, client_of(server) as client:
        busy = asyncio.ensure_future(client.send("slow"))
        await asyncio.sleep(0.1)
        error = await error_of(client.send("slow"))
        assert isinstance(error, Throttled)
        assert error.retry_after == 0.1
        error = await error_of(client.emit("event", 1, timeout=0.05))
        assert isinstance(error, DeadlineExceeded)
        assert (await client.emit("event", 2)).receivers == 1
        await busy
        assert done == [2], "whoever left before it was accepted is forgotten"


async def test_each_connection_has_its_own_cap_and_those_that_have_gone_are_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("resilient_client.transports.grpc._calls._KEPT", 2)
    server = Server(LOCAL, telemetry=False, max_calls_per_connection=1)

    @server.message_pattern("slow")
    async def slow(payload: float) -> None:
        await asyncio.sleep(payload)

    async def twice(client: ClientProxy) -> list[Any]:
        calls = [client.send("slow", 0.1, timeout=5) for _ in range(2)]
        return await asyncio.gather(*calls, return_exceptions=True)

    async with server:
        for _ in range(3):
            clients = [ClientProxy(server.addresses[0], policies=()) for _ in range(2)]
            async with clients[0], clients[1]:
                for answers in await asyncio.gather(*map(twice, clients)):
                    assert [type(each) for each in answers].count(Throttled) == 1
            assert len(server._app._slots) <= 3
    assert not server._app._slots


# ------------------------------------------------------------------------- connection and its end


async def test_goaway_and_the_age_of_connections_cost_no_call() -> None:
    server = Server(LOCAL, telemetry=False, max_connection_age=0.3, max_connection_age_grace=5)

    @server.message_pattern("slow")
    async def slow(payload: float) -> float:
        await asyncio.sleep(payload)
        return payload

    states: list[str] = []
    async with server:
        async with client_of(
            server, observers=[lambda event: states.append(getattr(event, "new", ""))]
        ) as client:
            until = time.monotonic() + 2

            async def steady() -> int:
                count = 0
                while time.monotonic() < until:
                    await client.send("slow", 0.01, timeout=5)
                    count += 1
                return count

            long = asyncio.ensure_future(client.send("slow", 1.0, timeout=5))
            counts = await asyncio.gather(*(steady() for _ in range(8)))
            assert await long == 1.0
    assert sum(counts) > 100
    assert states.count("connected") >= 3, states


@pytest.mark.parametrize("options", [{"proto": PROTO}, {"proto": PROTO, "compression": "gzip"}, {}])
async def test_a_peer_that_reads_nothing_costs_calls_their_own_time_and_no_more(
    options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The library itself waits until it has written what it has begun to write."""
    server = math_server()
    server.message_pattern("size")(len)
    server.event_pattern("event")(lambda payload: None)
    large = os.urandom(300_000).hex()

    @server.message_pattern("letters")
    async def letters(payload: str) -> AsyncIterator[str]:
        for letter in payload:
            yield letter

    async def timed(call: Any) -> Any:
        started = time.monotonic()
        return await error_of(call), time.monotonic() - started

    async def endless() -> AsyncIterator[dict[str, int]]:
        while True:
            yield {"value": 1}

    async with server, TcpProxy(int(server.addresses[0].rpartition(":")[2])) as proxy:
        url = f"grpc://127.0.0.1:{proxy.port}"
        async with ClientProxy(url, policies=(), telemetry=False, **options) as client:
            assert await client.send("size", "abc") == 3
            opened = client.stream("Math/Double", endless(), timeout=60, idle_timeout=0.3)
            assert await anext(opened) == {"value": 2}
            tasks = asyncio.all_tasks()
            proxy.stall("both")
            calls = [client.send("size", large, timeout=0.3) for _ in range(32)]
            calls += [client.emit("event", large, timeout=0.3) for _ in range(32)]
            calls += [collect(client.stream("letters", large, timeout=0.3)) for _ in range(8)]
            many = [{"value": 1}] * 100
            for method in ("Math/Sum", "Math/Count"):  # behind what is stuck
                calls.append(collect(client.stream(method, {}, timeout=0.3)))
            calls.append(client.send("Math/Gather", many, timeout=0.3))
            calls.append(client.send("Math/Gather", endless(), timeout=0.3))
            calls.append(collect(client.stream("Math/Double", many, timeout=0.3)))
            calls.append(collect(client.stream("Math/Double", endless(), timeout=0.3)))
            ping, silence, *ended = await asyncio.gather(
                client.ping(timeout=0.3),
                timed(collect(opened)),
                *(timed(call) for call in calls),
            )
            assert isinstance(ping.error, DeadlineExceeded), ping
            assert isinstance(silence[0], ReplyTimeout), silence
            for error, seconds in ended:
                assert isinstance(error, DeadlineExceeded), error
                assert error.sent
                assert seconds < 1.0
            await asyncio.sleep(0.1)
            assert asyncio.all_tasks() <= tasks
            if not options:  # the server has to be asked what this is
                error, seconds = await timed(client.send("Other/Thing", {}, timeout=0.3))
                assert isinstance(error, DeadlineExceeded), error
                assert seconds < 1.0
            proxy.heal()
            assert await client.send("size", "abc", timeout=10) == 3
    gc.collect()
    await asyncio.sleep(0)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_closing_does_not_wait_for_a_peer_that_reads_nothing() -> None:
    server = math_server()
    server.message_pattern("size")(len)
    loop = asyncio.get_running_loop()
    async with server:
        of_the_server = untold(loop)
        async with TcpProxy(int(server.addresses[0].rpartition(":")[2])) as proxy:
            url = f"grpc://127.0.0.1:{proxy.port}"
            async with ClientProxy(url, policies=(), telemetry=False) as client:
                assert await client.send("size", "abc") == 3
                proxy.stall()
                large = "x" * 600_000
                calls = [asyncio.ensure_future(client.send("size", large)) for _ in range(32)]
                calls += [asyncio.ensure_future(client.emit("size", large)) for _ in range(32)]
                await asyncio.sleep(0.3)
                started = time.monotonic()
            for error in await asyncio.gather(*calls, return_exceptions=True):
                assert isinstance(error, ConnectionLost), error
            assert time.monotonic() - started < 2.0
        # what was stuck ends with its connection: this loop must last until grpcio has told it so
        await eventually(lambda: untold(loop) == of_the_server)


async def test_a_frozen_peer_is_noticed_within_the_budget_of_keepalive() -> None:
    service = Service("grpc://127.0.0.1:{port}", {}, "asyncio")
    try:
        await service.start_async()
        options = {"keepalive": 0.5, "keepalive_timeout": 0.5}
        async with ClientProxy(service.url, policies=(), telemetry=False, **options) as client:
            assert await client.send("fault.echo", 1) == 1
            pending = asyncio.ensure_future(error_of(client.send("fault.slow", 30, timeout=60)))
            await asyncio.sleep(0.2)
            service.freeze()
            started = time.monotonic()
            error = await pending
            assert isinstance(error, ConnectionLost), error
            assert time.monotonic() - started < 1.0 + 2.0
            service.thaw()
            assert await client.send("fault.echo", 2, timeout=5) == 2
    finally:
        service.stop()


@pytest.mark.parametrize(
    "text",
    [
        "Stream removed (Delayed close due to in-progress write (ping timeout))",
        "Stream removed (Delayed close due to in-progress write (Socket closed))",
        "Socket closed",
        "recvmsg:Connection reset by peer",
        "keepalive watchdog timeout",
    ],
)
async def test_no_call_is_placed_on_a_connection_that_a_call_was_told_has_ended(text: str) -> None:
    """The library may take its time to give it up: so it says what it says, and stays READY."""
    code = grpc.StatusCode.UNAVAILABLE
    end = aio.AioRpcError(code, aio.Metadata(), aio.Metadata(), details=text)
    release = asyncio.Event()
    server = Server(LOCAL, telemetry=False)

    @server.message_pattern("late")
    async def late() -> str:
        await release.wait()
        return "late"

    server.message_pattern("sum")(sum)
    async with (
        server,
        ClientProxy(server.addresses[0], policies=(), telemetry=False) as client,
    ):
        assert await client.send("sum", [1, 2]) == 3
        transport: Any = client._transports[0]
        ended = transport._link.current
        under_way = asyncio.ensure_future(client.send("late"))
        await asyncio.sleep(0.1)

        async def tell(*_: Any) -> Any:
            raise end

        ended._unaries = dict.fromkeys(ended._unaries, tell)
        assert isinstance(await error_of(client.send("sum", [1, 2])), ConnectionLost)
        assert await client.send("sum", [1, 2]) == 3
        assert transport._link.current is not ended
        release.set()
        assert await under_way == "late"


def test_the_sync_client_and_a_server_in_another_loop_of_the_same_process(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with serving(LOCAL) as served:
        with SyncClientProxy(served.url, telemetry=False) as client:
            for _ in range(100):
                assert client.send("sum", [1, 2]) == 3
            assert list(client.stream("burst", 200)) == list(range(200))
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.parametrize("end", ["closed", "with calls under way", "while it connects"])
def test_a_closed_client_leaves_nothing_for_its_loop_to_be_told(
    end: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def use(url: str) -> asyncio.AbstractEventLoop:
        calls: list[asyncio.Future[Any]] = []
        async with ClientProxy(url, policies=(), telemetry=False) as client:
            assert await client.send("sum", [1, 2]) == 3
            if end == "with calls under way":
                calls = [asyncio.ensure_future(client.send("wait", 5)) for _ in range(10)]
                await asyncio.sleep(0.1)
        for error in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(error, ConnectionLost), error
        return asyncio.get_running_loop()

    async def connect() -> asyncio.AbstractEventLoop:
        with socket.create_server(("127.0.0.1", 0)) as mute:
            url = f"grpc://127.0.0.1:{mute.getsockname()[1]}"
            client = ClientProxy(url, policies=(), telemetry=False)
            with pytest.raises((ConnectError, DeadlineExceeded)):
                await client.send("sum", [1, 2], timeout=0.2)
            await client.aclose()
        return asyncio.get_running_loop()

    with serving(LOCAL) as served:  # another loop, which grpcio has tell all loops
        loop = asyncio.run(connect() if end == "while it connects" else use(served.url))
        left = untold(loop)
        with SyncClientProxy(served.url, telemetry=False) as client:
            assert client.send("sum", [1, 2]) == 3
    assert left == 0
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_unavailable_is_never_sent_only_where_that_is_certain() -> None:
    async def lie(_: bytes, context: Any) -> bytes:
        text = "failed to connect to all addresses; last error: made up"
        await context.abort(grpc.StatusCode.UNAVAILABLE, text)
        return b""

    async with foreign(lie) as url:
        async with ClientProxy(url, policies=(), telemetry=False, proto=PROTO) as client:
            error = await error_of(client.send("Math/Sum", {}))
            assert error.sent, "the peer said it of its own upstream"
            assert error.retryable is False
    client = ClientProxy(url, policies=(), telemetry=False, proto=PROTO)
    error = await error_of(client.send("Math/Sum", {}, timeout=2))
    assert isinstance(error, ConnectError)
    assert not error.sent
    await client.aclose()


async def test_one_server_many_urls_and_a_port_that_is_taken() -> None:
    async with math_server() as server:
        other = math_server(server.addresses[0])
        with pytest.raises(ConfigurationError, match="cannot be bound"):
            await other.start()
    server = Server("memory://both-grpc", LOCAL, telemetry=False, proto=PROTO)

    @server.message_pattern(["Math/Sum", "users/create"])
    async def any_way(payload: Any) -> Any:
        return {"total": 7}

    async with server:
        for url in server.addresses:
            async with ClientProxy(url, policies=(), telemetry=False) as client:
                assert (await client.send("Math/Sum", {}))["total"] == 7
                assert (await client.send("users/create", {}))["total"] == 7


# ----------------------------------------------------------------------------- wrong settings


def test_settings_that_cannot_work_are_refused_at_once(tmp_path: Path) -> None:
    broken = tmp_path / "broken.proto"
    broken.write_text('syntax = "proto3";\nmessage {')
    empty = tmp_path / "empty.proto"
    empty.write_text('syntax = "proto3";\nmessage A {}')
    for options, text in (
        ({"proto": "/nowhere.proto"}, "no such file"),
        ({"proto": broken}, "broken.proto:2"),
        ({"proto": empty}, "no service"),
        ({"proto": PROTO, "package": "other"}, "no service"),
        ({"proto": PROTO, "includes": "/nowhere"}, "no such folder"),
        ({"proto": 7}, "a path"),
        ({"proto": base64}, "has not generated"),
        ({"compression": "zip"}, "gzip"),
        ({"ca": "x.pem"}, "grpcs://"),
        ({"keepalive": -1}, "keepalive"),
    ):
        with pytest.raises(ConfigurationError) as caught:
            ClientProxy("grpc://127.0.0.1:1", **options)
        assert text in str(caught.value), (options, caught.value)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        ClientProxy("grpcs://127.0.0.1:1", ca="/nowhere.pem")
    with pytest.raises(ConfigurationError, match="cert"):
        Server("grpcs://127.0.0.1:0")
    server = Server(LOCAL, proto=PROTO)
    with pytest.raises(ConfigurationError, match="did you mean 'Sum'"):
        server.message_pattern("Math/Summ")(lambda: None)


def test_a_proto_that_cannot_be_compiled_on_a_file_system_to_read_only_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proto = tmp_path / "new.proto"
    proto.write_text('syntax = "proto3";\nmessage A {}')
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "gone")])
    with pytest.raises(ConfigurationError, match=r"temporary files.*TMPDIR"):
        ClientProxy("grpc://127.0.0.1:1", proto=proto)


async def test_a_proto_may_include_others(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "types.proto").write_text(
        'syntax = "proto3";\npackage shared;\nmessage Name { string first_name = 1; }'
    )
    main = tmp_path / "main.proto"
    main.write_text(
        'syntax = "proto3";\npackage app;\nimport "types.proto";\n'
        'import "google/protobuf/timestamp.proto";\nimport "google/rpc/status.proto";\n'
        "message At { shared.Name name = 1; google.protobuf.Timestamp at = 2; int32 field_1 = 3; }"
        "\nservice S { rpc Same(At) returns (At); }"
    )
    options: dict[str, Any] = {"proto": main, "includes": tmp_path / "shared"}
    server = Server(LOCAL, telemetry=False, **options)

    @server.message_pattern("S/Same")
    async def same(payload: Any) -> Any:
        return payload

    data = {"name": {"firstName": "Ann"}, "at": {"seconds": 5, "nanos": 0}, "field_1": 3}
    async with server:
        async with client_of(server, **options) as client:
            assert await client.send("app.S/Same", data) == data
        async with client_of(server) as client:  # by reflection
            assert await client.send("S/Same", data) == data


async def test_an_event_for_a_method_that_reflection_does_not_know_is_heard_by_nobody() -> None:
    async with math_server() as server, client_of(server) as client:
        for pattern in ("Math/Missing", "interop.Missing/Sum"):
            assert (await client.emit(pattern, {})).receivers == 0
            assert isinstance(await error_of(client.send(pattern, {})), NoHandlerError)


async def test_a_short_name_that_two_services_have_is_refused_however_they_became_known(
    tmp_path: Path,
) -> None:
    files = []
    for package in ("one", "one.two"):
        files.append(tmp_path / f"{package}.proto")
        files[-1].write_text(
            f'syntax = "proto3";\npackage {package};\nmessage M {{ int32 n = 1; }}\n'
            "service S { rpc Same(M) returns (M); }"
        )
    server = Server(LOCAL, telemetry=False, proto=files)
    server.message_pattern(["one.S/Same", "one.two.S/Same"])(lambda payload: payload)
    async with server:
        for options in ({"proto": files}, {}):
            async with client_of(server, **options) as client:
                assert await client.send("one.two.S/Same", {"n": 1}) == {"n": 1}
                error = await error_of(client.send("S/Same", {"n": 1}))
                assert isinstance(error, ConfigurationError), error
                assert await client.send("two.S/Same", {"n": 1}) == {"n": 1}
        async with client_of(server, package="one") as client:
            assert await client.send("S/Same", {"n": 1}) == {"n": 1}


KINDS = """
edition = "2023";
package kinds;
import "google/protobuf/struct.proto";

message All {
  google.protobuf.Struct one = 1;
  repeated google.protobuf.Struct several = 2;
  map<string, google.protobuf.Struct> named = 3;
  google.protobuf.Value any = 4;
  map<bool, string> told = 5;
}
message Strict { string needed = 1 [features.field_presence = LEGACY_REQUIRED]; }
service Kinds {
  rpc Same(All) returns (All);
  rpc Only(google.protobuf.Value) returns (google.protobuf.Value);
  rpc Check(Strict) returns (Strict);
}
"""


async def test_a_struct_arrives_as_it_was_sent_wherever_it_stands(tmp_path: Path) -> None:
    (tmp_path / "kinds.proto").write_text(KINDS)
    server = Server(LOCAL, telemetry=False, proto=tmp_path / "kinds.proto")

    @server.message_pattern(["Kinds/Same", "Kinds/Only"])
    async def same(payload: Any) -> Any:
        return payload

    inner = {"fields": {"flag": {"boolValue": True}, "none": {"nullValue": "NULL_VALUE"}}}
    struct = {
        "fields": {
            "text": {"stringValue": "a"},
            "list": {"listValue": {"values": [{"numberValue": 1.5}, {"structValue": inner}]}},
            "inner": {"structValue": inner},
        }
    }
    data = {
        "one": struct,
        "several": [struct, {"fields": {}}],
        "named": {"a": struct},
        "any": {"structValue": struct},
        "told": {True: "yes", False: "no"},
    }
    async with server, client_of(server, proto=tmp_path / "kinds.proto") as client:
        assert await client.send("Kinds/Same", data) == data
        assert await client.send("Kinds/Only", data["any"]) == data["any"]
        told = await client.send("Kinds/Same", {"told": {"true": "yes", "false": "no"}})
        assert told["told"] == data["told"]
        for wrong, where in (
            ({"told": {"perhaps": ""}}, "$.told: 'perhaps'"),
            ({"one": {"text": {"stringValue": "a"}}}, "$.one"),
            ({"several": [{"fields": {"a": {"numberValue": "1"}}}]}, "$.several[0].fields"),
        ):
            error = await error_of(client.send("Kinds/Same", wrong))
            assert isinstance(error, PayloadError), error
            assert where in str(error)


async def test_a_required_field_that_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "kinds.proto").write_text(KINDS)
    server = Server(LOCAL, telemetry=False, proto=tmp_path / "kinds.proto")
    server.message_pattern("Kinds/Check")(lambda payload: None)
    async with server, client_of(server, proto=tmp_path / "kinds.proto") as client:
        error = await error_of(client.send("Kinds/Check", {}))
        assert isinstance(error, PayloadError), error
        assert "needed" in str(error)
        assert not error.sent


async def test_metadata_over_the_limit_is_told_and_its_call_not_repeated() -> None:
    calls = 0
    server = math_server()

    @server.message_pattern("large trailers")
    async def large(size: int, context: Context) -> None:
        nonlocal calls
        calls += 1
        context.raw.set_trailing_metadata((("x-large", "x" * size),))

    async with server, ClientProxy(server.addresses[0], telemetry=False) as client:
        for attempt in (
            client.send("large trailers", 0, headers={"x-large": "x" * 200_000}),
            client.send("large trailers", 200_000),
        ):
            error = await error_of(attempt)
            assert isinstance(error, PayloadError), error
            assert "headers" in str(error)
            assert len(error.attempts) == 1
        assert calls == 1


async def test_reflection_is_asked_anew_where_another_server_may_have_come(tmp_path: Path) -> None:
    head = 'syntax = "proto3"; package app; '
    (tmp_path / "old.proto").write_text(
        head + "message M { int32 n = 1; } service S { rpc Same(M) returns (M); }"
    )
    (tmp_path / "new.proto").write_text(
        head + "message M { int32 n = 1; string more = 2; } service T { rpc Same(M) returns (M); }"
        "service S { rpc Same(M) returns (M); rpc Also(M) returns (M); }"
    )

    def same(name: str, where: str, *patterns: str, **options: Any) -> Server:
        server = Server(where, telemetry=False, proto=tmp_path / name, **options)
        server.message_pattern([*patterns])(lambda payload: payload)
        return server

    new = {"n": 1, "more": "m"}
    async with same("old.proto", LOCAL, "S/Same") as server, client_of(server) as client:
        assert await client.send("S/Same", {"n": 1}) == {"n": 1}
        assert isinstance(await error_of(client.send("S/Also", {"n": 1})), NoHandlerError)
        (address,) = server.addresses
        await server.aclose()
        await eventually(lambda: client.status == "reconnecting")
        async with same("new.proto", address, "S/Same", "S/Also", "T/Same"):
            await eventually(lambda: client.status == "connected")
            for pattern in ("S/Same", "T/Same", "S/Also", "S/Same"):
                assert await client.send(pattern, new) == new
        await eventually(lambda: client.status == "reconnecting")
        # one that says nothing any more is called as it was known
        async with same("new.proto", address, "S/Same", reflection=False):
            await eventually(lambda: client.status == "connected")
            assert await client.send("S/Same", new) == new
            assert isinstance(await error_of(client.send("T/Same", new)), NoHandlerError)


async def test_without_proto_and_without_reflection_the_error_says_what_to_do() -> None:
    async with math_server(reflection=False) as server, client_of(server) as client:
        error = await error_of(client.send("Math/Sum", {}))
        assert isinstance(error, ConfigurationError)
        assert "proto=" in str(error)
    async with math_server() as server, client_of(server) as client:
        for name in ("Math/Nope", "Math/Unimplemented", "Nobody/Here", "nobody"):
            for _ in range(2):
                assert isinstance(await error_of(client.send(name, {})), NoHandlerError), name


# -------------------------------------------------------------------------------- TLS


async def test_tls_and_client_certificates() -> None:
    files = certificates()
    tls: dict[str, Any] = {"cert": str(files.server), "key": str(files.server_key)}
    own: dict[str, Any] = {"cert": str(files.client), "key": str(files.client_key)}
    async with math_server("grpcs://localhost:0", **tls) as server:
        async with client_of(server, proto=PROTO, ca=str(files.authority)) as client:
            assert await client.send("Math/Sum", {"values": [1]}) == {"total": 1}
        for trust in (files.other_authority, None):
            options = {} if trust is None else {"ca": str(trust)}
            client = client_of(server, proto=PROTO, policies=None, **options)
            started = time.monotonic()
            error = await error_of(client.send("Math/Sum", {}))
            assert isinstance(error, ConfigurationError), error
            assert time.monotonic() - started < 2, "it was tried again and again"
            await client.aclose()
        plain = server.addresses[0].replace("grpcs", "grpc")
        client = ClientProxy(plain, policies=(), telemetry=False, proto=PROTO)
        error = await error_of(client.send("Math/Sum", {}, timeout=2))
        assert isinstance(error, ConnectError), error
        assert "grpcs://" in error.hint
        await client.aclose()
        for wrong in (
            {"ca": b"no PEM"},
            {"ca": str(files.authority), "cert": str(files.client), "key": str(files.server_key)},
        ):
            client = client_of(server, proto=PROTO, policies=None, **wrong)
            error = await error_of(client.send("Math/Sum", {}))
            assert isinstance(error, ConfigurationError), error
            assert "PEM" in error.hint
            await client.aclose()
        for half in ({"cert": str(files.client)}, {"key": str(files.client_key)}):
            with pytest.raises(ConfigurationError, match="both cert= and key="):
                client_of(server, **half)
    mixed = math_server("grpcs://localhost:0", cert=tls["cert"], key=own["key"])
    with pytest.raises(ConfigurationError) as refused:
        await mixed.start()
    assert "cert=" in refused.value.hint
    async with math_server() as server:
        url = server.addresses[0].replace("grpc", "grpcs")
        client = ClientProxy(url, telemetry=False, ca=str(files.authority))
        error = await error_of(client.send("Math/Sum", {}))
        assert isinstance(error, ConfigurationError), error
        assert "TLS" in str(error)
        await client.aclose()
    async with math_server("grpcs://localhost:0", **tls, ca=str(files.authority)) as server:
        trusting: dict[str, Any] = {"proto": PROTO, "ca": str(files.authority)}
        async with client_of(server, **trusting, **own) as client:
            assert await client.send("Math/Sum", {"values": [1]}) == {"total": 1}
        client = client_of(server, **trusting)
        error = await error_of(client.send("Math/Sum", {}, timeout=2))
        assert isinstance(error, ConnectError), error
        assert "client's certificate" in error.hint
        await client.aclose()


async def test_rich_details_of_strangers_are_read_and_ours_are_theirs_to_read() -> None:
    from google.protobuf import any_pb2
    from google.rpc import error_details_pb2

    async def rich(_: bytes, context: Any) -> bytes:
        status = status_pb2.Status(code=8, message="slow down")
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(1500)
        for message in (retry, error_details_pb2.BadRequest()):
            packed = any_pb2.Any()
            packed.Pack(message)
            status.details.append(packed)
        status.details.append(any_pb2.Any(type_url="type.googleapis.com/x.Y", value=b"\1"))
        trailers = (("grpc-status-details-bin", status.SerializeToString()),)
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "slow down", trailers)
        return b""

    async with foreign(rich) as url:
        async with ClientProxy(url, policies=(), telemetry=False, proto=PROTO) as client:
            error = await error_of(client.send("Math/Sum", {}))
    assert isinstance(error, Throttled)
    assert error.retry_after == 1.5
    assert [each["@type"].rpartition(".")[2] for each in error.payload["details"]] == [
        "RetryInfo", "BadRequest", "Y",
    ]  # fmt: skip
    async with math_server() as server:
        async with aio.insecure_channel(server.addresses[0].removeprefix("grpc://")) as channel:
            with pytest.raises(aio.AioRpcError) as caught:
                await channel.unary_unary("/interop.Math/Fail")(b"\x1a\x04rich")
            error = caught.value
    trailers = dict(error.trailing_metadata())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.reason == "R"
    assert set(trailers) == {"grpc-status-details-bin"}, "strangers get nothing of ours"


async def test_spans_name_the_method_and_its_status() -> None:
    recorded = Recorded()
    traced = Server(LOCAL, telemetry=recorded.settings, proto=PROTO)

    @traced.message_pattern("interop.Math/Fail")
    async def fail(payload: Any) -> None:
        raise RemoteError(payload={"code": payload["code"], "message": payload["message"]})

    @traced.message_pattern("interop.Math/Count")
    async def count(payload: Any) -> AsyncIterator[dict[str, int]]:
        yield {"value": 1}
        raise RemoteError(payload={"code": 14, "message": "later"})

    async with traced:
        async with ClientProxy(
            traced.addresses[0], policies=(), telemetry=recorded.settings
        ) as client:
            await error_of(client.send("interop.Math/Fail", {"code": 5, "message": "nope"}))
            await error_of(collect(client.stream("interop.Math/Count", {})))
    failed = recorded.named("interop.Math/Fail", "SERVER")
    counted = recorded.named("interop.Math/Count", "SERVER")
    for span, status in ((failed, "NOT_FOUND"), (counted, "UNAVAILABLE")):
        attributes = dict(span.attributes or {})
        assert attributes["rpc.system.name"] == "grpc"
        assert attributes["rpc.response.status_code"] == status
    for method, status in (("Fail", "NOT_FOUND"), ("Count", "UNAVAILABLE")):
        called = dict(recorded.named(f"interop.Math/{method}", "CLIENT").attributes or {})
        assert called["rpc.response.status_code"] == called["error.type"] == status
    for metric in ("rpc.client.call.duration", "rpc.server.call.duration"):
        assert recorded.value(metric, rpc__response__status_code="NOT_FOUND") == 1


async def test_the_status_is_grpcs_whatever_the_error_says_in_its_details() -> None:
    recorded = Recorded()
    traced = Server(LOCAL, telemetry=recorded.settings)

    @traced.message_pattern("sum")
    async def add(numbers: list[int]) -> int:
        if not numbers:
            raise RemoteError("nothing to add", code="E_EMPTY")
        return sum(numbers)

    @traced.message_pattern("sleep")
    async def sleep() -> None:
        await asyncio.sleep(30)

    async with traced:
        async with ClientProxy(traced.addresses[0], telemetry=recorded.settings) as client:
            await client.send("sum", [1])
            error = await error_of(client.send("sum", []))
            await error_of(client.send("sleep", timeout=0.5))
            await error_of(client.send("nobody"))
    assert error.code == "E_EMPTY"
    told = [
        (
            dict(s.attributes or {}).get("error.type"),
            (s.attributes or {})["rpc.response.status_code"],
        )
        for s in recorded.spans
        if s.kind.name == "CLIENT"
    ]
    assert told == [
        (None, "OK"),
        ("UNKNOWN", "UNKNOWN"),
        ("deadline_exceeded", "DEADLINE_EXCEEDED"),
        ("UNIMPLEMENTED", "UNIMPLEMENTED"),
    ]
    slept = dict(recorded.named("sleep", "SERVER").attributes or {})
    assert slept["rpc.response.status_code"] == "DEADLINE_EXCEEDED"
