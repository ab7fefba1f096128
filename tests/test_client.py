"""What a client promises, over scripted transports and real ones in this process."""

from __future__ import annotations

import asyncio
import copy
import gc
import math
import pickle
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import backoff
import pybreaker
import pytest
from pybreaker import CircuitMemoryStorage

from resilient_client import (
    Bulkhead,
    Call,
    CircuitBreaker,
    CircuitOpenError,
    ClientProxy,
    ConfigurationError,
    ConnectError,
    ConnectionLost,
    Context,
    DeadlineExceeded,
    Fallback,
    Handler,
    NoHandlerError,
    PayloadError,
    RemoteError,
    Reply,
    ReplyTimeout,
    ResilientClientError,
    Retry,
    Server,
    SyncClientProxy,
    Throttled,
    Timeout,
    correlation_id,
    standard,
)
from resilient_client.clock import Clock
from resilient_client.codecs import JsonCodec
from resilient_client.endpoints import choose
from resilient_client.events import CallRejected, CircuitChanged, ConnectionChanged, RetryScheduled
from resilient_client.testing import NEVER, Delayed, FakeClock, ScriptedTransport, Streamed
from tests.peers.process import free_port
from tests.waiting import eventually

_names = iter(range(10**6))


def memory() -> Server:
    return Server(f"memory://client-{next(_names)}", telemetry=False, grace=0.2)


def quiet(target: Any, **settings: Any) -> ClientProxy:
    settings.setdefault("policies", ())
    return ClientProxy(target, telemetry=False, **settings)


@dataclass
class User:
    name: str
    age: int


async def test_returns_decodes_and_validates_and_says_where_it_is_wrong() -> None:
    server = memory()

    @server.message_pattern("users")
    async def users() -> Any:
        return [{"name": "Ann", "age": 3}, {"name": "Bob", "age": "four"}]

    async with server, quiet(server.addresses[0]) as client:
        with pytest.raises(PayloadError, match=r"\$\[1\]\.age") as caught:
            await client.send("users", returns=list[User])
        assert caught.value.sent
        assert (await client.send("users"))[0] == {"name": "Ann", "age": 3}


async def test_headers_come_from_the_call_before_the_client_and_are_asked_each_time() -> None:
    server = memory()

    @server.message_pattern("headers")
    async def headers(context: Context) -> dict[str, str]:
        return dict(context.headers)

    tokens = iter(range(100))

    async def fresh() -> dict[str, str]:
        await asyncio.sleep(0)
        return {"Authorization": f"Bearer {next(tokens)}", "x-own": "client"}

    async with server, quiet(server.addresses[0], headers=fresh) as client:
        first = await client.send("headers")
        second = await client.send("headers", headers={"X-Own": "call"})
        assert [first["authorization"], second["authorization"]] == ["Bearer 0", "Bearer 1"]
        assert [first["x-own"], second["x-own"]] == ["client", "call"]
        assert "Bearer" not in client.explain() + repr(client)
        with pytest.raises(PayloadError, match="character") as caught:
            await client.send("headers", headers={"x-evil": "a\r\nsecret: b"})
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "headers",
    [{"a\r\nb": "x"}, {"a\x7f": "x"}, {"a": "\x01"}, {"a": "\ud800"}, {"a": 1}, ["a"], "a", 5],
)
async def test_headers_that_would_not_arrive_are_refused(headers: Any) -> None:
    async with memory() as server, quiet(server.addresses[0]) as client:
        with pytest.raises(PayloadError, match="header"):
            await client.send("x", headers=headers)
    async with memory() as server, quiet(server.addresses[0], headers=lambda: headers) as client:
        with pytest.raises(PayloadError, match="header") as caught:
            await client.send("x")
        assert caught.value.attempts == ()


@pytest.mark.parametrize("key", ["", " ", "a\r\nb", 5, b"key"])
async def test_an_idempotency_key_that_would_not_arrive_is_refused(key: Any) -> None:
    async with memory() as server, quiet(server.addresses[0]) as client:
        with pytest.raises(PayloadError, match="idempotency_key"):
            await client.send("x", idempotency_key=key)


async def test_a_correlation_id_comes_from_call_callable_and_context_in_this_order() -> None:
    server = memory()

    @server.message_pattern("id")
    async def own(context: Context) -> str:
        return context.correlation_id

    asked = {"X-Correlation-Id": "asked"}
    async with server, quiet(server.addresses[0], headers=lambda: asked) as client:
        token = correlation_id.set("ambient")
        try:
            given = {"x-correlation-id": "given"}
            assert await client.send("id", headers=given) == "given"
            assert await client.send("id") == "asked"
            asked.clear()
            assert await client.send("id") == "ambient"
        finally:
            correlation_id.reset(token)


async def test_a_headers_callable_keeps_its_own_errors_and_the_clients_clock() -> None:
    async def fails() -> dict[str, str]:
        raise TimeoutError("the token server is slow")

    async def hangs() -> dict[str, str]:
        await asyncio.Event().wait()
        return {}

    peer = ScriptedTransport()
    with pytest.raises(TimeoutError, match="token server") as caught:
        await quiet(peer, headers=fails).send("x")
    assert type(caught.value) is TimeoutError
    client = quiet(peer, headers=hangs, clock=FakeClock(autojump=True))
    with pytest.raises(DeadlineExceeded, match="headers=") as late:
        await client.send("x", timeout=3600)
    assert (late.value.sent, late.value.attempts, peer.requests) == (False, (), [])


async def test_a_streams_idle_timeout_bounds_all_that_comes_before_its_first_value() -> None:
    async def hangs() -> dict[str, str]:
        await asyncio.Event().wait()
        return {}

    async def opened(answers: list[Any], **settings: Any) -> tuple[type[Exception], float, int]:
        clock = FakeClock(autojump=True)
        peer = ScriptedTransport(answers, forever=True)
        settings.setdefault("policies", standard())
        client = quiet(peer, clock=clock, **settings)
        before = clock.now()
        with pytest.raises(ResilientClientError) as caught:
            async for _ in client.stream("x", idle_timeout=0.3, idempotent=True):
                pass
        return type(caught.value), round(clock.now() - before, 3), len(peer.requests)

    assert await opened([Delayed(60, connecting=True)]) == (ConnectError, 0.3, 1)
    assert await opened([Delayed(60, connecting=True)], policies=()) == (ConnectError, 0.3, 1)
    assert await opened([NEVER]) == (ReplyTimeout, 0.3, 1)
    assert await opened([Throttled(retry_after=3600.0)]) == (Throttled, 0.0, 1)
    assert await opened([], headers=hangs) == (DeadlineExceeded, 0.3, 0)

    stubborn = [Retry(attempts=9, wait=backoff.constant, interval=0.1, jitter=None)]
    assert await opened([ConnectError], policies=stubborn) == (ConnectError, 0.2, 3)


class Patiently:
    """Asks again by itself, after a wait that knows no deadline."""

    def wrap(self, handler: Handler, clock: Clock, /) -> Handler:
        async def patiently(call: Call) -> Reply:
            try:
                return await handler(call)
            except ConnectError:
                await clock.sleep(5)
                return await handler(call)

        return patiently


async def test_no_attempt_of_a_stream_begins_when_its_idle_timeout_is_over() -> None:
    peer = ScriptedTransport([ConnectError, 1])
    client = quiet(peer, clock=FakeClock(autojump=True), policies=[Patiently()])
    with pytest.raises(ReplyTimeout, match="no time is left") as caught:
        async for _ in client.stream("x", idle_timeout=2):
            pass
    assert not caught.value.sent
    assert len(peer.requests) == 1


@pytest.mark.parametrize("kind", ["send", "emit"])
async def test_headers_that_a_policy_puts_in_their_place_travel(kind: str) -> None:
    class Signs:
        def wrap(self, handler: Handler, clock: Clock, /) -> Handler:
            async def signs(call: Call) -> Reply:
                call.headers = {**call.headers, "signature": "s"}
                return await handler(call)

            return signs

    peer = ScriptedTransport([None])
    await getattr(quiet(peer, policies=[Signs()]), kind)("x")
    assert peer.requests[0].metadata["signature"] == "s"


async def test_a_headers_callable_that_hangs_costs_the_deadline_and_sends_nothing() -> None:
    async def hang() -> dict[str, str]:
        await asyncio.sleep(60)
        return {}

    server = memory()
    async with server, quiet(server.addresses[0], headers=hang) as client:
        with pytest.raises(DeadlineExceeded) as caught:
            await client.send("x", timeout=0.05)
        assert not caught.value.sent


async def test_settings_of_a_pattern_apply_to_it_alone() -> None:
    server = memory()
    attempts: list[int] = []

    @server.message_pattern({"cmd": "slow"})
    async def slow(context: Context) -> None:
        attempts.append(context.attempt)
        await asyncio.sleep(5)

    patterns = {'{"cmd":"slow"}': {"timeout": 0.1, "idempotent": True}}
    async with server, quiet(server.addresses[0], patterns=patterns) as client:
        with pytest.raises(DeadlineExceeded):
            await client.send({"cmd": "slow"})
    for wrong, match in (
        ({"x": {"timeoot": 1}}, "timeoot"),
        ({"x": {"timeout": 0}}, "above 0"),
        ({"x": {"attempts": 0}}, "attempts=0 must be"),
    ):
        with pytest.raises(ConfigurationError, match=match):
            quiet("memory://x", patterns=wrong)


@pytest.mark.parametrize("kind", [ClientProxy, SyncClientProxy])
@pytest.mark.parametrize("duplicate", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_client_is_neither_pickled_nor_copied_and_says_what_to_do_instead(
    duplicate: Callable[[object], object], kind: type[ClientProxy | SyncClientProxy]
) -> None:
    with pytest.raises(TypeError, match="make one in each process"):
        duplicate(kind("memory://x"))


def test_a_mapping_as_text_has_its_settings_however_it_is_written() -> None:
    client = quiet("memory://x", patterns={'{"v": 2, "cmd": "slow"}': {"attempts": 7}})
    assert '{"cmd":"slow","v":2}: 7 attempts' in client.explain()


async def test_bad_input_is_refused_at_once_with_a_hint() -> None:
    for target, options, match in (
        ("tcp://127.0.0.1:1", {"tsl": True}, "did you mean 'tls'"),
        ("tcp://127.0.0.1:1?max_sise=3", {}, "max_size"),
        ("tcp://127.0.0.1:port", {}, "port"),
        ("tcp://[::1", {}, "host and port"),
        ("tcp://me:pa[ss]word@127.0.0.1:1", {}, "host and port - in user and password"),
        ([], {}, "at least one"),
        (["tcp://a:1", "http://b"], {}, "one protocol"),
        (["tcp://a:1", "tcp://a:1"], {}, "twice"),
        (42, {}, "neither a URL"),
        ([42], {}, "not a text"),
        ("memory://x", {"polices": ()}, "did you mean 'policies'"),
        ("memory://x", {"timeout": 5}, "write policies=standard(timeout=...)"),
        ("memory://x", {"retries": 5}, "write policies=standard(retry=...)"),
        ("memory://x", {"policies": [False]}, "None to leave a layer out"),
        ("memory://x", {"policies": Retry()}, "policies="),
        ("memory://x", {"observers": [42]}, "not a function"),
        ("memory://x", {"observers": [asyncio.sleep]}, "is a coroutine function"),
        ("memory://x", {"name": ["MATH"]}, "name= must be a text, not a list"),
        ("memory://x", {"codec": "json"}, "codec= is a str, which has no decode"),
        ("memory://x", {"codec": JsonCodec}, "is the class JsonCodec"),
        ("memory://x", {"clock": time.monotonic}, "has no now"),
        ("memory://x", {"patterns": 0}, "maps patterns"),
        ("memory://x", {"max_size": 0}, "max_size=0 must be a whole number from 1"),
        ("memory://x?max_size=-1", {}, "max_size=-1 must be a whole number from 1"),
        ("memory://x", {"max_size": "5"}, "max_size='5' must be a whole number"),
        ("memory://x", {"max_size": 1.5}, "max_size=1.5 must be a whole number"),
        ("memory://x", {"max_size": True}, "max_size=True must be a whole number"),
        ("tcp://x", {"tls": "yes"}, "tls= must be bool | ssl.SSLContext, not str"),
        ("redis://x", {"password": 5}, "password= must be str | None, not int"),
        ("memory://x", {"patterns": {"x": {"attempts": 2.5}}}, "whole number"),
        ("amqp://x", {"queue": "q", "arguments": "quorum"}, "must be Mapping[str, Any] | None"),
        ("nats://x", {"servers": None}, "servers= must be str | Sequence[str], not NoneType"),
        ("kafka://x", {"servers": ["a", 5]}, "servers= must be str | Sequence[str]"),
        ("redis://x", {"db": "first"}, "db= must be int | None, not str"),
        ("grpc://x", {"channel_options": []}, "channel_options= must be Mapping[str, Any] | None"),
        ("nowhere://x", {}, "no transport speaks"),
    ):
        with pytest.raises(ConfigurationError) as caught:
            quiet(target, **options)
        assert match in str(caught.value), (target, str(caught.value))
    with pytest.raises(ConfigurationError, match="3"):
        quiet("memory://x", policies=[Timeout(1), Retry(), Timeout(3)])
    async with memory() as server, quiet(server.addresses[0]) as client:
        wrong: Any
        for wrong in (0, -1, math.nan, "5", timedelta(seconds=5)):
            with pytest.raises(ConfigurationError, match="number of seconds, above 0"):
                await client.send("x", timeout=wrong)
            with pytest.raises(ConfigurationError, match="number of seconds, above 0"):
                client.stream("x", idle_timeout=wrong)
        with pytest.raises(ConfigurationError):
            client.listen(None)  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError):
            await client.send(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("stack", ["alone", "innermost", "outermost"])
async def test_a_policy_that_forgets_the_reply_is_told_so(stack: str) -> None:
    class Forgetful:
        def wrap(self, handler: Handler, clock: Clock, /) -> Handler:
            async def forgetful(call: Call) -> Reply:
                await handler(call)
                return None  # type: ignore[return-value]

            return forgetful

    policies = {
        "alone": [Forgetful()],
        "innermost": [*standard(), Forgetful()],
        "outermost": [Forgetful(), *standard()],
    }[stack]

    async def stream(pattern: str) -> None:
        async for _ in client.stream(pattern):
            pass

    server = memory()
    server.message_pattern("echo")(lambda payload: payload)
    async with server, quiet(server.addresses[0], policies=policies) as client:
        for call in (client.send, client.emit, stream):
            with pytest.raises(AttributeError) as caught:
                await call("echo")
            assert "not with a Reply" in caught.value.__notes__[0]


async def test_a_policy_that_wraps_in_no_handler_is_refused_when_the_client_is_built() -> None:
    class Forgetful:
        def wrap(self, handler: Handler, clock: Clock, /) -> Any:
            pass

    class Late:
        async def wrap(self, handler: Handler, clock: Clock, /) -> Any:
            return handler

    for policy in (Forgetful(), Late()):
        with pytest.raises(ConfigurationError, match="not a handler"):
            quiet("memory://x", policies=[policy])


async def test_an_option_that_means_something_at_the_other_end_only_is_accepted() -> None:
    client = quiet("http://127.0.0.1:1", max_connections=3)
    assert client.status == "idle"
    Server("http://127.0.0.1:0", telemetry=False, max_connections=3)
    await client.aclose()


async def test_math_inf_is_no_timeout_and_a_stream_has_only_its_idle_limit() -> None:
    server = memory()
    seen: list[float | None] = []

    @server.message_pattern("about")
    async def about(context: Context) -> None:
        seen.append(context.remaining)

    @server.message_pattern("silent")
    async def silent() -> Any:
        yield 1
        await asyncio.sleep(30)

    async with server, quiet(server.addresses[0], policies=[Timeout(5)]) as client:
        await client.send("about", timeout=math.inf)
        await client.send("about")
        async for _ in client.stream("about"):
            continue
        assert seen[0] is None
        assert seen[1] is not None
        assert 4 < seen[1] <= 5
        assert seen[2] is None
        got = []
        with pytest.raises(ReplyTimeout):
            async for item in client.stream("silent", idle_timeout=0.1):
                got.append(item)  # noqa: PERF401
        assert got == [1]
        with pytest.raises(DeadlineExceeded):
            async for item in client.stream("silent", idle_timeout=20, timeout=0.1):
                got.append(item)  # noqa: PERF401


async def test_an_error_that_reads_like_the_end_of_a_stream_is_an_error() -> None:
    tokens = iter(())

    async def headers() -> Any:
        async def none() -> Any:
            for token in tokens:
                yield token

        return await anext(none())

    client = quiet(ScriptedTransport([1]), headers=headers)
    with pytest.raises(RuntimeError, match="StopAsyncIteration"):
        assert [item async for item in client.stream("x")] == []


async def test_errors_tell_the_whole_story_and_survive_pickling_and_copying() -> None:
    port = free_port()
    stack = [Timeout(5), Retry(attempts=3, factor=0.001)]
    client = quiet(f"tcp://user:secret@127.0.0.1:{port}", policies=stack)
    with pytest.raises(ConnectError) as caught:
        await client.send({"cmd": "sum"}, [1])
    await client.aclose()
    error = caught.value
    assert isinstance(error, ConnectionError)
    assert (error.sent, error.retryable) == (False, True)
    assert error.pattern == '{"cmd":"sum"}'
    assert error.endpoint == f"tcp://127.0.0.1:{port}"
    assert [each.number for each in error.attempts] == [1, 2, 3]
    assert all(each.error == "ConnectError" and not each.sent for each in error.attempts)
    assert error.attempts[0].ended <= error.attempts[1].started <= error.attempts[1].ended
    assert error.hint
    assert "secret" not in str(error) + repr(error)
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(twin) is ConnectError
        assert str(twin) == str(error)
        assert twin.attempts == error.attempts
        assert (twin.sent, twin.retryable, twin.pattern, twin.endpoint, twin.hint) == (
            error.sent,
            error.retryable,
            error.pattern,
            error.endpoint,
            error.hint,
        )


async def test_a_never_sent_failure_goes_on_to_the_next_endpoint_at_once() -> None:
    server = Server("tcp://127.0.0.1:0", telemetry=False, grace=0.1)

    @server.message_pattern("about")
    async def about(context: Context) -> int:
        return context.attempt

    dead = [f"tcp://127.0.0.1:{free_port()}" for _ in range(2)]
    async with server:
        async with quiet([*dead, server.addresses[0]]) as client:
            assert [await client.send("about") for _ in range(6)] == [1] * 6
        async with quiet([*dead, server.addresses[0]], policies=None) as client:
            assert [await client.send("about") for _ in range(6)] == [1] * 6
            assert set(client.circuit_breakers) == {*dead, server.addresses[0]}
            names = {breaker.name for breaker in client.circuit_breakers.values()}
            assert len(names) == 3
    lonely = quiet(dead)
    with pytest.raises(ConnectError) as caught:
        await lonely.send("about")
    assert [each.endpoint for each in caught.value.attempts] in (dead, dead[::-1])
    with pytest.raises(ConnectError):
        await lonely.connect()
    await lonely.aclose()


@pytest.mark.parametrize("kind", ["send", "stream"])
async def test_an_endpoint_that_took_all_the_time_there_was_is_followed_by_no_other(
    kind: Any,
) -> None:
    clock = FakeClock()
    asked: list[str | None] = []

    async def slow(call: Call) -> Reply:
        asked.append(call.endpoint)
        await clock.advance(5.0)
        raise call.unready("no connection in time")

    chosen = choose([("x://one", slow), ("x://two", slow)], clock)
    call = Call("p", "p", kind, started=clock.now())
    if kind == "send":
        call.deadline = clock.now() + 5.0
    else:
        call.idle_timeout = 5.0
    with pytest.raises(ConnectError, match="in time"):
        await chosen(call)
    assert (asked, call.endpoint, call.failures) == (["x://one"], "x://one", ())


async def test_a_repeated_call_goes_to_another_endpoint_however_many_calls_there_are() -> None:
    asked = 0

    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        await reader.read(1000)
        asked += 1
        writer.close()

    dying = await asyncio.start_server(cut, "127.0.0.1", 0)
    port = dying.sockets[0].getsockname()[1]
    server = Server("tcp://127.0.0.1:0", telemetry=False)
    server.message_pattern("double")(lambda payload: payload * 2)
    async with dying, server:
        urls = [f"tcp://127.0.0.1:{port}", server.addresses[0]]
        async with quiet(urls, policies=[Retry(2, factor=0.001)]) as client:
            calls = (client.send("double", n, idempotent=True) for n in range(40))
            assert await asyncio.gather(*calls) == [2 * n for n in range(40)]
    assert asked


@pytest.mark.parametrize(("given", "name"), [("prices", "prices"), (None, "twins")])
def test_the_breakers_of_several_endpoints_bear_the_name_of_the_one_that_was_given(
    given: str | None, name: str
) -> None:
    urls = ["tcp://127.0.0.1:1001", "tcp://127.0.0.1:1002"]
    client = quiet(urls, name="twins", policies=[CircuitBreaker(name=given)])
    assert [each.name for each in client.circuit_breakers.values()] == [
        f"{name}/127.0.0.1:1001",
        f"{name}/127.0.0.1:1002",
    ]


async def test_all_circuits_open_is_a_circuit_open_error_and_one_open_is_passed_over() -> None:
    first, second = memory(), memory()
    first.message_pattern("who")(lambda: first.addresses[0])
    second.message_pattern("who")(lambda: second.addresses[0])
    async with (
        first,
        second,
        quiet([first.addresses[0], second.addresses[0]], policies=[CircuitBreaker()]) as client,
    ):
        assert {await client.send("who") for _ in range(4)} == {
            first.addresses[0],
            second.addresses[0],
        }
        client.circuit_breakers[first.addresses[0]].force_open()
        assert {await client.send("who") for _ in range(4)} == {second.addresses[0]}
        client.circuit_breakers[second.addresses[0]].force_open()
        with pytest.raises(CircuitOpenError) as caught:
            await client.send("who")
        assert not caught.value.sent
        assert caught.value.endpoint is not None
        assert caught.value.circuit is not None
        assert caught.value.circuit.endswith(caught.value.endpoint.partition("://")[2])
        with pytest.raises(ConfigurationError, match="circuit_breakers"):
            _ = client.circuit_breaker


def named(number: int) -> Server:
    server = memory()
    server.message_pattern("who")(lambda: number)
    return server


@pytest.mark.parametrize("down", ["open", "gone"])
@pytest.mark.parametrize("together", [1, 30])
async def test_the_endpoints_that_are_left_share_the_calls_evenly(down: str, together: int) -> None:
    servers = [named(number) for number in range(3)]
    urls = [server.addresses[0] for server in servers]
    policies = [CircuitBreaker()] if down == "open" else []
    async with servers[0], servers[2], quiet(urls, policies=policies) as client:
        if down == "open":
            await servers[1].start()
            client.circuit_breakers[urls[1]].force_open()
        got: list[int] = []
        for _ in range(30 // together):
            got += await asyncio.gather(*(client.send("who") for _ in range(together)))
        await servers[1].aclose()
    assert {number: got.count(number) for number in set(got)} == {0: 15, 2: 15}


async def test_a_closed_client_says_so_at_once_and_blames_nobody() -> None:
    breaker = CircuitBreaker()
    news: list[Any] = []
    async with memory() as server:
        client = quiet(server.addresses[0], policies=[Retry(), breaker], observers=[news.append])
        await client.ping()
        await client.aclose()
        news.clear()
        with pytest.raises(ConnectError, match="closed") as caught:
            await client.send("x", idempotent=True)
    assert (caught.value.sent, len(caught.value.attempts)) == (False, 1)
    assert (breaker.calls, news) == (0, [])


async def test_each_of_two_breakers_has_its_storage_mirrored() -> None:
    storages = [CircuitMemoryStorage(pybreaker.STATE_OPEN) for _ in range(2)]
    breakers = [CircuitBreaker(state_storage=storage) for storage in storages]
    async with quiet(ScriptedTransport(), policies=breakers):
        assert [breaker.current_state for breaker in breakers] == ["open", "open"]


async def test_a_client_that_is_used_unopened_has_its_breakers_storage_mirrored_too() -> None:
    ours, theirs = (CircuitMemoryStorage(pybreaker.STATE_CLOSED) for _ in range(2))
    theirs.opened_at, theirs.state = datetime.now(UTC), pybreaker.STATE_OPEN
    clients = [
        quiet(ScriptedTransport([1]), policies=[CircuitBreaker(state_storage=storage)])
        for storage in (ours, theirs)
    ]
    for client in clients:
        assert await client.send("x") == 1  # waits for no storage
    await eventually(lambda: clients[1].circuit_breaker.current_state == "open")
    clients[0].circuit_breaker.open()
    await eventually(lambda: ours.state == "open")
    for client in clients:
        await client.aclose()
    assert not [each for each in threading.enumerate() if "circuit-storage" in each.name]


async def test_a_rejection_that_a_fallback_answers_is_told_too() -> None:
    news: list[Any] = []
    stack = standard(fallback=Fallback(7))
    client = quiet(ScriptedTransport(), policies=stack, observers=[news.append])
    client.circuit_breaker.force_open()
    assert await client.send("x") == 7
    assert [each.pattern for each in news if isinstance(each, CallRejected)] == ["x"]


async def test_a_client_tells_its_listeners_what_happens_to_it() -> None:
    port = free_port()
    news: list[Any] = []
    stack = standard(
        timeout=5,
        retry=Retry(attempts=2, factor=0.001),
        circuit_breaker=CircuitBreaker(window=4, minimum_calls=2),
    )
    client = quiet(f"tcp://127.0.0.1:{port}", policies=stack, observers=[news.append])
    unsubscribe = client.listen(lambda event: 1 / 0)  # its fault harms nobody
    for _ in range(3):
        with pytest.raises(ResilientClientError):
            await client.send("x")
    kinds = {type(event) for event in news}
    assert {ConnectionChanged, RetryScheduled, CircuitChanged, CallRejected} <= kinds
    unsubscribe()
    await client.aclose()
    assert news[-1] == ConnectionChanged(f"tcp://127.0.0.1:{port}", "idle", "closed")


async def test_a_ping_goes_past_an_open_breaker_and_reports_it() -> None:
    server = memory()
    async with server, quiet(server.addresses[0], policies=None) as client:
        client.circuit_breaker.open()
        health = await client.ping()
        assert health.reachable
        assert health.latency is not None
        assert list(health.circuits.values()) == ["open"]
    gone = await quiet(server.addresses[0]).ping(0.2)
    assert not gone.reachable
    assert isinstance(gone.error, ConnectError)


@pytest.mark.parametrize(
    ("answer", "reachable"),
    [
        (NoHandlerError(sent=True), True),  # as of a peer of another make
        (RemoteError("what is that?"), True),
        (PayloadError("odd", sent=True), True),
        (ReplyTimeout(), False),
        (ConnectError("refused"), False),
    ],
)
async def test_any_answer_to_a_ping_means_reachable(answer: Any, reachable: bool) -> None:
    health = await quiet(ScriptedTransport([answer])).ping()
    assert (health.reachable, health.latency is not None) == (reachable, reachable)
    assert health.error is (None if reachable else answer)


async def test_an_idempotency_key_makes_a_call_idempotent_whatever_its_pattern_says() -> None:
    for given in ({}, {"idempotent": False}):
        peer = ScriptedTransport([ConnectionLost("cut"), 1])
        client = quiet(peer, policies=[Retry(factor=0.001)], patterns={"pay": given})
        assert await client.send("pay", idempotency_key="k") == 1
        assert {request.metadata["idempotency-key"] for request in peer.requests} == {"k"}


async def test_of_two_limits_of_an_attempt_the_narrower_bounds_connecting() -> None:
    for limits in ((1, 3), (3, 1)):
        peer = ScriptedTransport([1])
        outer, inner = map(Timeout, limits)
        policies = [Retry(), outer, CircuitBreaker(), inner]
        assert await quiet(peer, policies=policies, clock=FakeClock()).send("p") == 1
        assert peer.requests[0].connect_limit == 1


async def test_a_stream_that_is_dropped_is_left() -> None:
    peer = ScriptedTransport([Streamed(1, 2, 3)], forever=True)
    client = quiet(peer)
    for _ in range(3):
        assert await anext(client.stream("p")) == 1
        gc.collect()
    await eventually(lambda: not peer.open_streams)


@pytest.mark.parametrize("scheme", ["memory", "tcp"])
async def test_calls_that_the_servers_end_cuts_short_fail_at_once(scheme: str) -> None:
    server = memory() if scheme == "memory" else Server("tcp://127.0.0.1:0", grace=0.0)

    @server.message_pattern("count")
    async def count() -> Any:
        yield 1
        await asyncio.Event().wait()

    @server.message_pattern("never")
    async def never() -> None:
        await asyncio.Event().wait()

    await server.start()
    async with quiet(server.addresses[0]) as client, asyncio.timeout(30):
        values = client.stream("count", idle_timeout=math.inf)
        assert await anext(values) == 1
        call = asyncio.ensure_future(client.send("never", timeout=math.inf))
        await eventually(lambda: server._app.running == 2)
        await server.aclose()
        for left in (anext(values), call):
            with pytest.raises(ConnectionLost):
                await left


async def test_a_request_over_memory_is_forgotten_when_it_is_answered() -> None:
    server = memory()
    server.message_pattern("value")(lambda: 1)
    server.message_pattern("error")(lambda: 1 / 0)

    @server.message_pattern("count")
    async def count() -> Any:
        yield 1
        yield 2

    async with server, quiet(server.addresses[0]) as client:
        assert [value async for value in client.stream("count")] == [1, 2]
        assert await client.send("value") == 1
        for wrong in ("error", "nobody"):
            with pytest.raises(RemoteError):
                await client.send(wrong)
        await eventually(lambda: not server._listeners[0].parcels)  # type: ignore[attr-defined]


async def test_the_same_call_again_after_the_server_came_back() -> None:
    server = memory()
    server.message_pattern("x")(lambda: 1)
    client = quiet(server.addresses[0])
    with pytest.raises(ConnectError):
        await client.send("x")
    async with server:
        assert await client.send("x") == 1
        with pytest.raises(NoHandlerError):
            await client.send("y")
    await client.aclose()


async def test_closing_a_server_fails_what_is_pending_with_the_truth() -> None:
    server = memory()
    started = asyncio.Event()

    @server.message_pattern("hang")
    async def hang() -> None:
        started.set()
        await asyncio.sleep(60)

    async with server:
        client = quiet(server.addresses[0])
        task = asyncio.ensure_future(client.send("hang", timeout=20))
        await started.wait()
    with pytest.raises(ConnectionLost) as caught:
        await task
    assert caught.value.sent
    await client.aclose()


async def test_a_stream_left_early_counts_as_a_success_and_before_an_item_as_nothing() -> None:
    server = memory()

    @server.message_pattern("numbers")
    async def numbers() -> Any:
        for i in range(100):
            yield i
            await asyncio.sleep(0.001)

    async with server, quiet(server.addresses[0], policies=[CircuitBreaker()]) as client:
        async with client.stream("numbers") as items:
            async for item in items:
                if item == 3:
                    break
        assert (client.circuit_breaker.calls, client.circuit_breaker.failures) == (1, 0)
        async with client.stream("numbers"):
            pass
        assert client.circuit_breaker.calls == 1


class Answers:
    """A policy that never asks the peer."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply

    def wrap(self, handler: Handler, clock: Clock, /) -> Handler:
        async def answer(call: Call) -> Reply:
            return self.reply

        return answer


async def test_a_policys_plain_reply_is_the_one_value_of_a_stream() -> None:
    for reply, values in (
        (Reply(5, decoded=True), [5]),
        (Reply(b"5"), [5]),
        (Reply(None, decoded=True), [None]),
        (Reply(), []),
    ):
        client = quiet(ScriptedTransport(), policies=[Answers(reply)])
        assert [item async for item in client.stream("x", returns=int | None)] == values
    client = quiet(ScriptedTransport(), policies=[Answers(Reply(b"[]"))])
    with pytest.raises(PayloadError) as caught:
        await anext(client.stream("x", returns=int))
    assert caught.value.pattern == "x"


@pytest.mark.parametrize("scheme", ["memory", "tcp", "http"])
async def test_closing_a_stream_ends_it_for_a_task_that_waits_for_it(scheme: str) -> None:
    server = memory() if scheme == "memory" else Server(f"{scheme}://127.0.0.1:0", telemetry=False)

    @server.message_pattern("numbers")
    async def numbers() -> Any:
        yield 1
        await asyncio.sleep(30)

    async with server, quiet(server.addresses[0]) as client:
        items = client.stream("numbers", idle_timeout=math.inf)
        assert await anext(items) == 1
        rest = asyncio.ensure_future(anext(items, "the end"))
        await asyncio.sleep(0.01)
        await items.aclose()
        async with asyncio.timeout(5):
            assert await rest == "the end"


@pytest.mark.parametrize("scheme", ["memory", "tcp", "http"])
async def test_closing_a_stream_while_it_opens_leaves_nothing_behind(scheme: str) -> None:
    server = memory() if scheme == "memory" else Server(f"{scheme}://127.0.0.1:0", telemetry=False)
    began, ended = asyncio.Event(), asyncio.Event()

    @server.message_pattern("numbers")
    async def numbers() -> Any:
        began.set()
        try:
            await asyncio.sleep(30)
            yield 1
        finally:
            ended.set()

    async with server, quiet(server.addresses[0], policies=[Bulkhead(1)]) as client:
        for also_cancelled in (False, True):
            began.clear(), ended.clear()
            items = client.stream("numbers", idle_timeout=math.inf)
            first = asyncio.ensure_future(anext(items, "the end"))
            await asyncio.wait_for(began.wait(), 5)
            await items.aclose()
            if also_cancelled:
                first.cancel()
            async with asyncio.timeout(5):
                [value] = await asyncio.gather(first, return_exceptions=True)
                await ended.wait()
            assert first.cancelled() if also_cancelled else value == "the end"
            assert first.cancelling() == also_cancelled
            assert [item async for item in items] == []
        with pytest.raises(NoHandlerError):  # and not Overloaded
            await client.send("nothing")


async def test_a_stream_is_for_one_task_at_a_time() -> None:
    server = memory()
    begun: list[int] = []

    @server.message_pattern("numbers")
    async def numbers() -> Any:
        begun.append(1)
        yield 1
        await asyncio.sleep(0.05)
        yield 2

    async with server, quiet(server.addresses[0]) as client:
        items = client.stream("numbers")
        for value in (1, 2):
            first = asyncio.ensure_future(anext(items))
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="another task"):
                await anext(items)
            assert await first == value
        assert [item async for item in items] == []
        opening = client.stream("numbers")
        opener = asyncio.ensure_future(opening.__aenter__())
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="another task"):
            await anext(opening)
        await opener
        assert [item async for item in opening] == [1, 2]
    assert begun == [1, 1]


async def test_memory_keeps_nothing_of_calls_whose_callers_left() -> None:
    server = memory()

    @server.message_pattern("wait")
    async def wait() -> None:
        await asyncio.sleep(10)

    @server.message_pattern("forever")
    async def forever():
        while True:
            yield 1
            await asyncio.sleep(0.001)

    async with server, quiet(server.addresses[0]) as client:
        calls = [asyncio.ensure_future(client.send("wait")) for _ in range(5)]
        await asyncio.sleep(0.01)
        at_once = [asyncio.ensure_future(client.send("wait")) for _ in range(5)]
        await asyncio.sleep(0)
        for call in calls + at_once:
            call.cancel()
        await asyncio.wait(calls + at_once)
        async with client.stream("forever") as values:
            await anext(values)
        await asyncio.sleep(0.01)
        assert not server._listeners[0].parcels  # type: ignore[attr-defined]


@pytest.mark.parametrize("url", ["tcp://127.0.0.1:0", "http://127.0.0.1:0"])
async def test_a_client_that_is_dropped_unclosed_leaves_no_connection(url: str) -> None:
    def open_files() -> int:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    server = Server(url, telemetry=False)

    @server.message_pattern("echo")
    async def echo(payload: int) -> int:
        return payload

    async with server:
        before = open_files()
        for number in range(5):
            assert await ClientProxy(server.addresses[0]).send("echo", number) == number
        for _ in range(100):
            gc.collect()
            await asyncio.sleep(0.01)
            if open_files() == before:
                break
        assert open_files() == before


async def test_a_stream_outlives_the_name_of_its_client() -> None:
    server = memory()

    @server.message_pattern("count")
    async def count(payload: int):
        for number in range(payload):
            yield number

    async with server:
        values = quiet(server.addresses[0]).stream("count", 50)
        assert await anext(values) == 0
        gc.collect()
        await asyncio.sleep(0.01)
        assert [value async for value in values] == list(range(1, 50))


def test_without_a_running_loop_of_asyncio_it_says_what_to_use() -> None:
    """As under trio, which steps a coroutine just so."""
    client = quiet("memory://nobody")
    server = memory()
    for coroutine in (
        client.send("x"),
        client.emit("x"),
        client.connect(),
        client.__aenter__(),
        client.aclose(),
        client.stream("x").__anext__(),
        client.stream("x").__aenter__(),
        server.start(),
        server.__aenter__(),
        server.serve(),
    ):
        with pytest.raises(ConfigurationError, match="no asyncio event loop") as caught:
            coroutine.send(None)
        assert "SyncClientProxy" in str(caught.value)


@pytest.mark.parametrize("turns", [1, 2, 3, 4])
async def test_a_client_whose_closing_is_cancelled_closes_to_its_end(turns: int) -> None:
    """Whenever that is, also in the first turn of the loop, when nothing has begun yet."""
    ended: list[str] = []

    class Slow(ScriptedTransport):
        async def aclose(self) -> None:
            for _ in range(3):  # turns in which its peer is told
                await asyncio.sleep(0)
            await super().aclose()
            ended.append(self.endpoint)

    storage = CircuitMemoryStorage("closed")
    threads = threading.active_count()
    client = quiet(Slow([1]), policies=[CircuitBreaker(state_storage=storage)])
    async with client:
        assert await client.send("x") == 1
        closing = asyncio.ensure_future(client.aclose())
        for _ in range(turns):
            await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert len(ended) == 1
        await eventually(lambda: threading.active_count() <= threads)
