"""What a server promises, shown over memory:// and the dispatcher's own seams."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import functools
import gc
import logging
import math
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import httpx
import pytest
from msgspec import Struct

from resilient_client import (
    Bulkhead,
    ClientProxy,
    ConfigurationError,
    Context,
    DeadlineExceeded,
    InvalidPayloadError,
    NoHandlerError,
    PayloadError,
    RemoteError,
    ReplyTimeout,
    ResilientClientError,
    Router,
    Server,
    Throttled,
    correlation_id,
    current_context,
)
from resilient_client.codecs import JsonCodec
from resilient_client.message import Message
from resilient_client.transports import App, ServerListener, Target
from resilient_client.transports.memory import ServerListener as MemoryListener
from tests.calls import error_of
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_names = iter(range(10**6))


@asynccontextmanager
async def pair(server: Server, **options: Any) -> AsyncIterator[ClientProxy]:
    async with (
        server,
        ClientProxy(server.addresses[0], policies=(), telemetry=False, **options) as client,
    ):
        yield client


def memory(**options: Any) -> Server:
    options.setdefault("grace", 0.2)
    return Server(f"memory://server-{next(_names)}", telemetry=False, **options)


@dataclass
class User:
    name: str
    age: int = 0


async def test_a_payload_is_validated_into_the_type_hint_and_the_refusal_says_where() -> None:
    server = memory()

    @server.message_pattern("greet")
    async def greet(user: User) -> str:
        return f"{user.name} is {user.age}"

    async with pair(server) as client:
        assert await client.send("greet", {"name": "Ann", "age": 3}) == "Ann is 3"
        with pytest.raises(InvalidPayloadError, match=r"\$.age") as caught:
            await client.send("greet", {"name": "Ann", "age": "three"})
        assert caught.value.code == "INVALID_PAYLOAD"


async def test_arguments_are_bound_by_name_by_annotation_or_left_out() -> None:
    server = memory()

    @server.message_pattern("none")
    async def none() -> str:
        return "none"

    @server.message_pattern("context")
    async def context_only(context) -> str:  # type: ignore[no-untyped-def]
        return str(context.pattern)

    @server.message_pattern("annotated")
    async def annotated(about: Context, number: int) -> list[Any]:
        return [about.pattern, number]

    @server.message_pattern("keywords")
    async def keywords(*, payload: int, context: Context) -> list[Any]:
        return [context.pattern, payload]

    class Handler:
        async def method(self, payload: int, context: Context) -> list[Any]:
            return [context.pattern, payload]

        async def __call__(self, payload: int) -> int:
            return payload + 1

    server.message_pattern("method")(Handler().method)
    server.message_pattern("callable")(Handler())

    async def add(first: int, second: int) -> int:
        return first + second

    server.message_pattern("partial")(functools.partial(add, 5))
    async with pair(server) as client:
        assert await client.send("none", 1) == "none"
        assert await client.send("context", 1) == "context"
        for pattern in ("annotated", "keywords", "method"):
            assert await client.send(pattern, 3) == [pattern, 3]
        assert await client.send("callable", 3) == 4
        assert await client.send("partial", 3) == 8


def test_a_handler_that_wants_more_is_refused_when_registered() -> None:
    server = memory()
    with pytest.raises(ConfigurationError, match="third"):

        @server.message_pattern("x")
        async def x(first: int, context: Context, third: int) -> None: ...

    with pytest.raises(ConfigurationError, match="pattern"):

        @server.message_pattern  # type: ignore[arg-type]
        async def forgotten() -> None: ...

    with pytest.raises(ConfigurationError, match="without its object"):

        class Controller:
            @server.message_pattern("x")
            async def get(self) -> None: ...


class Closed(Struct, forbid_unknown_fields=True):
    a: int = 0


class Opaque:
    """Nothing can be decoded into it."""


class Sized(Protocol):
    size: int


@dataclass
class Holds:
    inner: list[Opaque]


@dataclass
class MayHold:
    count: int
    inner: Opaque = field(default_factory=Opaque)


@dataclass
class Names:
    later: Later


@dataclass
class NamesNothing:
    nothing: Nowhere  # type: ignore[name-defined]  # noqa: F821  # pyright: ignore[reportUndefinedVariable]


@pytest.mark.parametrize(
    ("hint", "named"),
    [
        (Opaque, "Opaque"),
        (Holds, "Opaque"),
        (dict[str, Opaque | None], "Opaque"),
        (int | Opaque, "Opaque"),
        (Callable[[int], str], "Callable"),
        (complex, "complex"),
        (Sized, "Sized"),
        (NamesNothing, "Nowhere"),
    ],
)
async def test_a_payload_that_can_never_be_is_refused_before_the_server_listens(
    hint: Any, named: str
) -> None:
    server = memory()

    async def odd(order: Any) -> None: ...

    odd.__annotations__["order"] = hint
    server.event_pattern("odd")(odd)
    with pytest.raises(ConfigurationError, match=named) as caught:
        await server.start()
    assert "odd: 'order'" in str(caught.value)
    with pytest.raises(ConfigurationError, match=named):  # and not that it has been started
        await server.start()


async def test_what_can_be_a_payload_after_all_is_not_refused() -> None:
    server = memory()

    @server.message_pattern("hashable")
    async def hashable(value: Hashable) -> Any:
        return value

    @server.message_pattern("default")
    async def default(value: MayHold) -> int:
        return value.count

    @server.message_pattern("later")
    async def later(value: Names) -> int:
        return value.later.number

    async with pair(server) as client:
        assert await client.send("hashable", "x") == "x"
        assert await client.send("default", {"count": 3}) == 3
        assert await client.send("later", {"later": {"number": 4}}) == 4


async def test_what_a_codec_of_the_users_own_can_decode_is_its_own_business() -> None:
    class Wraps(JsonCodec):
        def decode(self, body: bytes, type: Any = Any) -> Any:  # noqa: A002
            return Opaque() if type is Opaque else super().decode(body, type)

    server = memory(codec=Wraps())

    @server.message_pattern("x")
    async def x(value: Opaque) -> bool:
        return isinstance(value, Opaque)

    async with pair(server) as client:
        assert await client.send("x", 1)


@dataclass
class Later:
    number: int


async def test_patterns_are_normalised_and_may_be_a_list() -> None:
    server = memory()

    @server.message_pattern(["a", {"b": 1, "a": 2}, 42])
    async def hit(context: Context) -> str:
        return context.pattern

    async with pair(server) as client:
        assert await client.send("a") == "a"
        assert await client.send({"a": 2, "b": 1}) == '{"a":2,"b":1}'
        assert await client.send(42) == "42"
        assert await client.send("42") == "42"


async def test_a_router_adds_its_prefix_to_string_patterns() -> None:
    router = Router("users.")

    @router.message_pattern("get")
    async def get() -> str:
        return "got"

    @router.message_pattern({"cmd": "get"})
    async def cmd() -> str:
        return "cmd"

    server = memory()
    server.include(router)

    @router.message_pattern("later")
    async def later() -> str:
        return "included all the same"

    async with pair(server) as client:
        assert await client.send("users.get") == "got"
        assert await client.send({"cmd": "get"}) == "cmd"
        assert await client.send("users.later") == "included all the same"
        with pytest.raises(ConfigurationError, match="has started"):
            router.message_pattern("too late")(later)


async def test_an_unhandled_exception_travels_without_its_secret_and_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = memory()

    @server.message_pattern("bug")
    async def bug() -> None:
        raise KeyError("password123")

    async with pair(server) as client:
        with pytest.raises(RemoteError) as caught:
            await client.send("bug")
    assert caught.value.payload == {"status": "error", "message": "Internal server error"}
    assert "password123" in caplog.text


async def test_whatever_a_handler_fails_with_is_answered_at_once() -> None:
    server = memory()

    class Odd(BaseException):
        pass

    async def cancelled() -> None:
        task = asyncio.ensure_future(asyncio.sleep(10))
        task.cancel()
        await task

    @server.message_pattern("plain StopIteration")
    def exhausted() -> Any:
        return next(iter([]))

    @server.message_pattern("plain CancelledError")
    def given_up() -> None:
        raise concurrent.futures.CancelledError

    server.message_pattern("CancelledError of another task")(cancelled)

    @server.message_pattern("BaseException")
    async def odd() -> None:
        raise Odd

    @server.message_pattern("stream")
    async def stream() -> AsyncIterator[int]:
        yield 1
        await cancelled()

    @server.message_pattern("no JSON")
    async def no_json() -> None:
        raise RemoteError(payload=object())

    @server.message_pattern("no JSON in a stream")
    async def no_json_either() -> AsyncIterator[int]:
        yield 1
        raise RemoteError(payload={"a": object()})

    @server.exception_handler(KeyError)
    def fails_too(error: KeyError) -> Any:
        raise ValueError("and this one fails as well")

    @server.message_pattern("failing exception handler")
    async def key_error() -> None:
        raise KeyError("x")

    async with pair(server) as client:
        for pattern in [handler.route for handler in server.handlers][1:]:
            got: list[Any] = []
            with pytest.raises(RemoteError, match=r"^Internal server error"):
                async for item in client.stream(pattern, timeout=2):
                    got.append(item)  # noqa: PERF401
            assert got == ([1] if "stream" in pattern else [])
        assert server._app.running == 0


@pytest.mark.parametrize("size", ["one", "several"])
async def test_an_event_handler_that_is_cancelled_from_within_leaves_no_slot(size: str) -> None:
    server = memory()
    heard = asyncio.Event()

    @server.event_pattern("event")
    async def gives_up() -> None:
        heard.set()
        raise asyncio.CancelledError

    if size == "several":

        @server.event_pattern("event")
        async def goes_on() -> None:
            await asyncio.sleep(0.01)

    async with pair(server) as client:
        await client.emit("event")
        await heard.wait()
        await eventually(lambda: server._app.running == 0)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="tasks are eager from Python 3.12 on")
async def test_a_handler_that_ends_in_the_first_step_of_an_eager_task_answers() -> None:
    asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
    server = memory()

    @server.message_pattern("give up")
    async def gives_up() -> None:
        raise asyncio.CancelledError

    @server.message_pattern("echo")
    async def echo(n: int) -> int:
        return n

    async with pair(server) as client:
        with pytest.raises(RemoteError, match="Internal server error"):
            await client.send("give up", timeout=5)
        answers = await asyncio.gather(*(client.send("echo", n) for n in range(20)))
        assert answers == list(range(20))
    assert server._app.running == 0


async def test_an_exception_handler_may_raise_what_it_means_to_send() -> None:
    server = memory()

    @server.exception_handler(KeyError)
    async def missing(error: KeyError) -> None:
        raise RemoteError("no such thing", status=404) from error

    @server.message_pattern("get")
    async def get() -> None:
        raise KeyError("x")

    async with pair(server) as client:
        with pytest.raises(RemoteError, match="no such thing") as caught:
            await client.send("get")
        assert caught.value.status == 404


async def test_an_exception_as_the_message_travels_as_its_text() -> None:
    server = memory()

    @server.message_pattern("get")
    async def get() -> None:
        try:
            raise ValueError("too far")
        except ValueError as error:
            raise RemoteError(error) from error

    async with pair(server) as client:
        with pytest.raises(RemoteError) as caught:
            await client.send("get")
        assert caught.value.payload == {"status": "error", "message": "too far"}


async def test_a_plain_function_around_a_coroutine_function_is_a_handler_too() -> None:
    server = memory()

    async def double(number: int) -> int:
        return 2 * number

    @server.message_pattern("double")
    @functools.wraps(double)
    def logged(number: int) -> Any:
        return double(number)

    async with pair(server) as client:
        assert await client.send("double", 21) == 42


async def test_a_context_that_may_be_missing_is_given_all_the_same() -> None:
    server = memory()

    @server.message_pattern("optional")
    async def optional(number: int, about: Context | None = None) -> list[Any]:
        return [number, about is not None and about.pattern]

    @server.message_pattern("only")
    async def only(context: Annotated[Context, "a note"]) -> str:
        return context.pattern

    async with pair(server) as client:
        assert await client.send("optional", 1) == [1, "optional"]
        assert await client.send("only", 1) == "only"


async def test_a_router_adds_its_prefix_to_the_path_of_a_rest_pattern() -> None:
    for prefix in ("/v1", "v1"):
        router = Router(prefix)

        @router.message_pattern("GET /users/{id}")
        async def get(query: dict[str, str]) -> str:
            return query["id"]

        server = Server("http://127.0.0.1:0", telemetry=False, grace=0.2)
        server.include(router)
        async with pair(server) as client:
            assert await client.send("GET /v1/users/{id}", {"id": 7}) == "7"


def test_an_exception_handler_for_no_class_of_exceptions_is_refused() -> None:
    for kind in ("KeyError", (KeyError, ValueError)):
        with pytest.raises(ConfigurationError, match="no class of exceptions"):
            memory().exception_handler(kind)  # type: ignore[arg-type]


class OddError(BaseException):
    """Not an `Exception`, and nothing that ends a task or the process."""


@pytest.mark.parametrize("fault", [KeyError, asyncio.CancelledError, OddError])
async def test_an_exception_handler_that_fails_in_whatever_way_leaves_nobody_waiting(
    fault: type[BaseException],
) -> None:
    server = memory()

    @server.exception_handler(ValueError)
    async def translate(error: ValueError) -> None:
        raise fault("a secret")

    @server.message_pattern("one")
    async def one() -> None:
        raise ValueError

    @server.message_pattern("many")
    async def many() -> Any:
        yield 1
        raise ValueError

    async with pair(server) as client:
        with pytest.raises(RemoteError, match="Internal server error"):
            await client.send("one")
        with pytest.raises(RemoteError, match="Internal server error"):
            _ = [item async for item in client.stream("many", timeout=10)]
    assert server._app.running == 0


async def test_an_exception_handler_translates_subclasses_too() -> None:
    server = memory()

    @server.exception_handler(LookupError)
    def missing(error: LookupError) -> RemoteError:
        return RemoteError(f"no {error.args[0]}", code="MISSING", status=404)

    @server.message_pattern("get")
    async def get(key: str) -> None:
        raise KeyError(key)

    @server.message_pattern("stream")
    async def stream() -> Any:
        yield 1
        raise IndexError("more")

    async with pair(server) as client:
        with pytest.raises(RemoteError) as caught:
            await client.send("get", "x")
        assert (caught.value.code, caught.value.status) == ("MISSING", 404)
        got = []
        with pytest.raises(RemoteError, match="no more"):
            async for i in client.stream("stream"):
                got.append(i)  # noqa: PERF401
        assert got == [1]


class Translations:
    """Ways in which an exception handler may be written."""

    def method(self, error: Exception) -> RemoteError:
        return RemoteError("method")

    def method_with_context(self, error: Exception, context: Context) -> RemoteError:
        return RemoteError(context.pattern)

    @classmethod
    async def of_the_class(cls, error: Exception) -> RemoteError:
        return RemoteError("class")

    def __call__(self, error: Exception, about: Context) -> RemoteError:
        return RemoteError(about.pattern)


def _by_keyword(error: Exception, *, context: Context) -> RemoteError:
    return RemoteError(context.pattern)


def _with_default(error: Exception, context: Context | None = None) -> RemoteError:
    return RemoteError("none" if context is None else context.pattern)


def _of_three(prefix: str, error: Exception, context: Context) -> RemoteError:
    return RemoteError(prefix + context.pattern)


@pytest.mark.parametrize(
    ("handler", "text"),
    [
        (Translations().method, "method"),
        (Translations().method_with_context, "fail"),
        (Translations.of_the_class, "class"),
        (Translations(), "fail"),
        (_by_keyword, "fail"),
        (_with_default, "fail"),
        (functools.partial(_of_three, "to "), "to fail"),
        (functools.wraps(_by_keyword)(lambda *args, **named: _by_keyword(*args, **named)), "fail"),
        (RemoteError, "why"),
        (str, "why"),
    ],
)
async def test_an_exception_handler_may_be_whatever_can_be_called(handler: Any, text: str) -> None:
    server = memory()
    server.exception_handler(ValueError)(handler)

    @server.message_pattern("fail")
    async def fail() -> None:
        raise ValueError("why")

    async with pair(server) as client:
        assert (await error_of(client.send("fail"))).message == text


def test_an_exception_handler_that_takes_no_exception_is_refused() -> None:
    wrong: Any
    for wrong in (lambda: None, lambda a, b, c: None, Translations.method_with_context):
        with pytest.raises(ConfigurationError, match="cannot be called with an exception"):
            memory().exception_handler(KeyError)(wrong)


async def test_an_exception_handler_for_all_exceptions_leaves_answers_as_they_are() -> None:
    server = memory(policies=[Bulkhead(1)])
    started = asyncio.Event()

    @server.exception_handler(ResilientClientError)
    def behind(error: ResilientClientError) -> RemoteError:
        return RemoteError("a service behind this one failed", status=502)

    @server.exception_handler(Exception)
    def unexpected(error: Exception) -> RemoteError:
        return RemoteError("unexpected", code="BUG")

    @server.message_pattern("refuse")
    async def refuse(n: int) -> None:
        raise RemoteError("not allowed", code="AUTH", status=401)

    @server.message_pattern("ask")
    async def ask() -> None:
        await ClientProxy("memory://nobody", policies=(), telemetry=False).send("x")

    @server.message_pattern("wait")
    async def wait() -> None:
        started.set()
        await asyncio.sleep(60)

    @server.message_pattern("bug")
    async def bug() -> None:
        raise KeyError("x")

    async with pair(server) as client:
        told = [await error_of(client.send(*call)) for call in [("ask",), ("bug",), ("refuse", 1)]]
        assert [(each.status, each.code) for each in told] == [
            (502, None), (None, "BUG"), (401, "AUTH"),
        ]  # fmt: skip
        assert isinstance(await error_of(client.send("refuse", "x")), InvalidPayloadError)
        waiting = asyncio.ensure_future(client.send("wait"))
        await started.wait()
        assert isinstance(await error_of(client.send("bug")), Throttled)
        waiting.cancel()


async def test_an_error_that_a_client_raised_inside_a_handler_is_not_passed_on() -> None:
    inner, outer = memory(), memory()

    @inner.message_pattern("fail")
    async def fail() -> None:
        raise RemoteError("inner detail", code="INNER")

    async with pair(inner) as inside:

        @outer.message_pattern("call")
        async def call() -> Any:
            return await inside.send("fail")

        async with pair(outer) as client:
            with pytest.raises(RemoteError) as caught:
                await client.send("call")
    assert caught.value.message == "Internal server error"
    assert caught.value.code is None


async def test_calls_inside_a_handler_inherit_correlation_and_remaining_time() -> None:
    inner, outer = memory(), memory()

    @inner.message_pattern("about")
    async def about(context: Context) -> list[Any]:
        return [context.correlation_id, context.remaining]

    async with pair(inner) as inside:

        @outer.message_pattern("call")
        async def call(context: Context) -> Any:
            assert current_context() is context
            assert correlation_id.get() == context.correlation_id
            return await inside.send("about")

        async with pair(outer) as client:
            known, remaining = await client.send(
                "call", headers={"x-correlation-id": "abc"}, timeout=3
            )
            fresh, _ = await client.send("call", headers={"x-correlation-id": "no good\u00e9"})
    assert known == "abc"
    assert 2 < remaining <= 3
    assert fresh != "no good\u00e9"
    assert len(fresh) == 32
    assert current_context() is None


async def test_a_generator_that_never_waits_lets_its_caller_leave_and_others_be_answered() -> None:
    server = Server("memory://never-waits", telemetry=False)
    made: list[int] = []

    @server.message_pattern("count")
    async def count() -> AsyncIterator[int]:
        for n in range(100_000):
            made.append(n)
            yield n

    @server.message_pattern("echo")
    async def echo(payload: int) -> int:
        return payload

    async with server, ClientProxy("memory://never-waits", telemetry=False) as client:
        async with client.stream("count") as items:
            other = asyncio.ensure_future(client.send("echo", 1))
            assert await anext(aiter(items)) == 0
        assert await other == 1
    assert len(made) < 1000


@pytest.mark.parametrize("fault", ["its own", "out of time"])
async def test_what_a_plain_handler_fails_with_when_its_caller_has_left_is_in_the_log_at_most_once(
    fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = memory()
    go_on = threading.Event()

    @server.message_pattern("fail")
    def fail() -> None:
        go_on.wait(5)
        if fault == "its own":
            raise KeyError("nobody hears this")
        raise DeadlineExceeded("the call's time ran out")

    async with pair(server) as client:
        with pytest.raises(DeadlineExceeded):
            await client.send("fail", timeout=0.05)
        assert server._app.running == 1
        go_on.set()
        await eventually(lambda: not server._app.running)
        if fault == "its own":
            await eventually(lambda: "handler" in caplog.text)
    gc.collect()
    logged = [record.name for record in caplog.records]
    assert logged == (["resilient_client.server"] if fault == "its own" else [])


async def test_a_plain_generator_runs_in_threads_with_the_callers_context_to_its_end() -> None:
    server = Server("memory://plain-generator")
    loop_thread, closed = threading.get_ident(), threading.Event()
    entered, release = threading.Event(), threading.Event()
    own: contextvars.ContextVar[int] = contextvars.ContextVar("own", default=0)

    @server.message_pattern("values")
    def values(n: int) -> Any:
        try:
            for _ in range(n):
                own.set(own.get() + 1)  # a change of its own stays from one value to the next
                context = current_context()
                assert context is not None
                yield [correlation_id.get(), context.pattern, own.get()]
        finally:
            if threading.get_ident() != loop_thread and correlation_id.get() == "one":
                closed.set()

    @server.message_pattern("slow")
    def slow() -> Any:
        try:
            entered.set()
            release.wait(5)
            yield 1
        finally:
            closed.set()

    headers = {"x-correlation-id": "one"}
    async with server, ClientProxy("memory://plain-generator") as client:
        told = [item async for item in client.stream("values", 2, headers=headers)]
        assert told == [["one", "values", 1], ["one", "values", 2]]
        closed.clear()
        async with client.stream("values", 1000, headers=headers) as items:
            assert await anext(items)
        assert await asyncio.to_thread(closed.wait, 5), "left early"
        closed.clear()
        with pytest.raises(ReplyTimeout):
            async for _ in client.stream("slow", idle_timeout=0.1):
                pass
        assert await asyncio.to_thread(entered.wait, 5)
        release.set()
        assert await asyncio.to_thread(closed.wait, 5), "left while it made a value"


async def test_a_caller_whose_time_a_call_in_the_handler_used_up_is_told_just_that(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = memory()

    @server.message_pattern("nested")
    async def nested(early: float, context: Context) -> None:
        assert context.remaining is not None
        await asyncio.sleep(max(0.0, context.remaining - early))
        raise DeadlineExceeded("of a client in here")  # which noticed a little before the server

    async with pair(server) as client:
        with pytest.raises(DeadlineExceeded):
            await client.send("nested", 0.003, timeout=0.2)
        assert "failed" not in caplog.text
        with pytest.raises(RemoteError, match="Internal server error"):
            await client.send("nested", 9.0, timeout=10.0)
        assert "failed" in caplog.text


async def test_plain_functions_run_in_threads_with_the_callers_context() -> None:
    server = memory()
    loop_thread = threading.get_ident()

    @server.message_pattern("thread")
    def thread(payload: int, context: Context) -> list[Any]:
        assert correlation_id.get() == context.correlation_id
        return [threading.get_ident() != loop_thread, payload]

    @server.message_pattern("generator")
    def generator(n: int) -> Any:
        yield from range(n)

    async with pair(server) as client:
        assert await client.send("thread", 5) == [True, 5]
        assert [i async for i in client.stream("generator", 3)] == [0, 1, 2]


async def test_a_plain_function_keeps_its_slot_until_it_really_ends() -> None:
    server = memory(max_calls=1)
    release, running = threading.Event(), threading.Event()

    @server.message_pattern("block")
    def block() -> None:
        running.set()
        release.wait(10)

    @server.message_pattern("quick")
    async def quick() -> int:
        return 1

    async with pair(server) as client:
        task = asyncio.ensure_future(client.send("block"))
        await asyncio.to_thread(running.wait, 5)
        task.cancel()
        await asyncio.sleep(0.05)
        with pytest.raises(Throttled):
            await client.send("quick")
        release.set()
        for _ in range(100):
            await asyncio.sleep(0.01)
            try:
                assert await client.send("quick") == 1
                break
            except Throttled:
                continue
        else:
            pytest.fail("the slot never came back")


async def test_over_the_cap_a_request_is_throttled_at_once_and_events_wait() -> None:
    server = memory(max_calls=2)
    gate = asyncio.Event()
    seen: list[int] = []

    @server.message_pattern("hold")
    async def hold() -> None:
        await gate.wait()

    @server.event_pattern("note")
    async def note(n: int) -> None:
        seen.append(n)

    async with pair(server) as client:
        held = [asyncio.ensure_future(client.send("hold")) for _ in range(2)]
        await asyncio.sleep(0.02)
        with pytest.raises(Throttled) as caught:
            await client.send("hold")
        assert caught.value.status == 429
        assert caught.value.retry_after is not None
        for n in range(5):
            await client.emit("note", n)
        await asyncio.sleep(0.02)
        assert seen == []
        gate.set()
        await asyncio.gather(*held)
        await asyncio.sleep(0.05)
        assert seen == [0, 1, 2, 3, 4]


async def test_several_handlers_hear_one_event_and_a_failing_one_harms_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = memory()
    heard: list[str] = []

    @server.event_pattern("e")
    async def first() -> None:
        heard.append("first")

    @server.event_pattern("e")
    async def second() -> None:
        raise ValueError("second fails")

    @server.event_pattern("e")
    def third() -> None:
        heard.append("third")

    async with pair(server) as client:
        receipt = await client.emit("e")
        assert (receipt.delivery, receipt.receivers) == ("accepted", 3)
        assert (await client.emit("nobody")).receivers == 0
        await asyncio.sleep(0.05)
    assert sorted(heard) == ["first", "third"]
    assert "second fails" in caplog.text


async def test_an_event_that_is_refused_or_deliberately_failed_is_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = memory(policies=[Bulkhead(1)])
    go_on = asyncio.Event()

    @server.event_pattern("refused")
    async def refused() -> None:
        await go_on.wait()

    @server.event_pattern("meant")
    async def meant() -> None:
        raise RemoteError("no such order")

    @server.event_pattern("yielding")
    async def yielding() -> AsyncIterator[int]:
        yield 1
        raise RemoteError(payload={"why": "out of stock"})

    async with pair(server) as client:
        await client.emit("refused")
        await client.emit("refused")
        await eventually(lambda: "event refused: The server is overloaded" in caplog.text)
        go_on.set()
        await eventually(lambda: not server._app.running)
        await client.emit("meant")
        await eventually(lambda: "event meant: no such order" in caplog.text)
        await client.emit("yielding")
        await eventually(lambda: "event yielding: {'why': 'out of stock'}" in caplog.text)


async def test_an_event_that_only_a_request_handler_hears_has_one_receiver() -> None:
    server = memory()
    heard: list[int] = []

    @server.message_pattern("note")
    async def note(number: int) -> None:
        heard.append(number)

    async with pair(server) as client:
        assert (await client.emit("note", 1)).receivers == 1
        await asyncio.sleep(0.05)
    assert heard == [1]


async def test_an_event_is_one_for_a_request_handler_too(caplog: pytest.LogCaptureFixture) -> None:
    server = memory()
    made: list[int] = []

    async def values(number: int) -> AsyncIterator[int]:
        for each in range(number):
            made.append(each)
            yield each

    @server.message_pattern("count")
    async def count(number: int) -> AsyncIterator[int]:
        return values(number)

    async with pair(server) as client:
        await client.emit("count", 3)
        await client.emit("count", "three")
        await asyncio.sleep(0.05)
        assert made == [0, 1, 2]
        assert "event count: the value is not int" in caplog.text
        assert [each async for each in client.stream("count", 2)] == [0, 1]


class Shouting(JsonCodec):
    """Our codec with a change of its own."""

    def decode(self, body: bytes, type: Any = Any) -> Any:  # noqa: A002
        value = super().decode(body, type)
        return value.upper() if isinstance(value, str) else value


async def test_a_codec_of_the_users_own_reads_the_payloads() -> None:
    server = memory(codec=Shouting())

    @server.message_pattern("echo")
    async def echo(text: str) -> str:
        return text

    async with pair(server) as client:
        assert await client.send("echo", "hush") == "HUSH"


async def test_what_only_the_codec_itself_can_read_reaches_a_typed_handler() -> None:
    server = memory()

    @server.message_pattern("length")
    async def length(text: str) -> int:
        return len(text)

    async with pair(server) as client:
        assert await client.send("length", "\ud800") == 1


async def test_an_event_carries_no_deadline_and_its_handler_runs_to_its_end() -> None:
    server = memory(grace=5)
    done = asyncio.Event()
    remaining: list[float | None] = []

    @server.event_pattern("slow")
    async def slow(context: Context) -> None:
        remaining.append(context.remaining)
        await asyncio.sleep(0.1)
        done.set()

    async with server, ClientProxy(server.addresses[0], policies=(), telemetry=False) as client:
        await client.emit("slow", timeout=0.05)
    assert done.is_set()
    assert remaining == [None]


async def test_a_drained_server_finishes_what_runs_and_refuses_what_comes() -> None:
    server = memory(grace=5)
    started = asyncio.Event()

    @server.message_pattern("slow")
    async def slow() -> str:
        started.set()
        await asyncio.sleep(0.1)
        return "done"

    async with server:
        client = ClientProxy(server.addresses[0], policies=(), telemetry=False)
        task = asyncio.ensure_future(client.send("slow"))
        await started.wait()
    assert await task == "done"
    await client.aclose()


async def test_the_grace_time_ends_what_does_not_end_by_itself(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = memory(grace=0.05)

    @server.event_pattern("for ever")
    async def for_ever() -> None:
        await asyncio.sleep(1000)

    with caplog.at_level(logging.WARNING):
        async with pair(server) as client:
            await client.emit("for ever")
            await asyncio.sleep(0.01)
    assert "1 handlers were cancelled" in caplog.text


@pytest.mark.parametrize("made", [asynccontextmanager, lambda function: function])
async def test_lifespan_state_reaches_handlers_and_its_end_runs(made: Any) -> None:
    steps: list[str] = []

    @made
    async def lifespan(server: Server) -> Any:
        steps.append(f"start {bool(server.addresses)}")
        yield {"db": 1}
        steps.append("end")

    server = memory(lifespan=lifespan)

    @server.message_pattern("state")
    async def state(context: Context) -> Any:
        return context.state

    async with pair(server) as client:
        assert await client.send("state") == {"db": 1}
    assert steps == ["start True", "end"]


async def test_a_handler_reads_the_headers_it_was_sent_and_cannot_change_them() -> None:
    server = memory()

    @server.message_pattern("read")
    async def read(context: Context) -> Any:
        with pytest.raises(TypeError):
            context.headers["x-tenant"] = "other"  # type: ignore[index]
        return context.headers

    @server.message_pattern("pass on")
    async def pass_on(context: Context) -> Any:
        return await client.send("read", headers=context.headers)

    async with pair(server) as client:
        headers = {"X-Tenant": "blue", "x-correlation-id": "abc"}
        assert (await client.send("pass on", headers=headers))["x-tenant"] == "blue"


async def test_what_is_larger_than_an_end_of_a_bus_takes_is_an_error_at_once() -> None:
    heard: list[str] = []
    server = memory(max_size=1000)
    server.message_pattern("make")(lambda payload: "x" * payload)
    server.event_pattern("heard")(heard.append)

    @server.message_pattern("items")
    async def items(payload: int) -> AsyncIterator[str]:
        yield "first"
        yield "x" * payload

    @server.message_pattern("fail")
    async def fail(payload: int) -> None:
        raise RemoteError("x" * payload)

    async with pair(server) as client:
        for attempt in (client.send("make", 2000), client.send("fail", 2000)):
            with pytest.raises(RemoteError, match="more than max_size="):
                await attempt
        async with client.stream("items", 2000) as stream:
            assert await anext(stream) == "first"
            with pytest.raises(RemoteError, match="more than max_size="):
                await anext(stream)
        with pytest.raises(RemoteError, match="more than max_size=") as caught:
            await client.send("make", "x" * 2000)
        assert caught.value.status == 413
        await client.emit("heard", "x" * 2000)
        await client.emit("heard", "short")
        assert await client.send("make", 3) == "xxx"
        await eventually(lambda: heard)  # both are handled in threads
        assert heard == ["short"]
        async with ClientProxy(server.addresses[0], max_size=100, telemetry=False) as small:
            with pytest.raises(PayloadError, match="more than max_size=100"):
                await small.send("make", 500)
            with pytest.raises(PayloadError, match="more than max_size=100"):
                [item async for item in small.stream("items", 500)]
            assert await small.send("make", 3) == "xxx"


async def test_a_policy_of_the_users_own_can_refuse_by_headers() -> None:
    class Authenticated:
        def wrap(self, handler: Any, clock: Any) -> Any:
            async def checked(call: Any) -> Any:
                if call.headers.get("authorization") != "Bearer good":
                    raise RemoteError("who are you?", code="UNAUTHENTICATED", status=401)
                return await handler(call)

            return checked

    server = memory(policies=[Authenticated()])

    @server.message_pattern("secret")
    async def secret() -> int:
        return 42

    async with pair(server) as client:
        with pytest.raises(RemoteError) as caught:
            await client.send("secret")
        assert caught.value.status == 401
        assert await client.send("secret", headers={"Authorization": "Bearer good"}) == 42


async def test_work_whose_time_is_up_is_not_started() -> None:
    server = memory()
    ran: list[int] = []

    @server.message_pattern("work")
    async def work(n: int) -> None:
        ran.append(n)

    async with pair(server) as client:
        error = None
        try:
            await client.send("work", 1, headers={"x-deadline-ms": "0"}, timeout=5)
        except Exception as caught:
            error = caught
        assert error is None  # the client's own number goes before a header
        assert ran == [1]


async def test_a_handler_runs_in_an_empty_context() -> None:
    leak: contextvars.ContextVar[str] = contextvars.ContextVar("leak", default="clean")
    server = memory()

    @server.message_pattern("leak")
    async def read() -> str:
        return leak.get()

    leak.set("leaked")
    async with pair(server) as client:
        assert await client.send("leak") == "clean"


async def test_who_asks_the_health_endpoint_slowly_does_not_hold_up_the_end() -> None:
    server = Server("memory://slow-health", health="http://127.0.0.1:0", telemetry=False)
    await server.start()
    assert server._health is not None
    port = int(server._health.address.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /li")
    await eventually(lambda: server._health._asking)  # type: ignore[union-attr]
    async with asyncio.timeout(2.0):
        await server.aclose()
        with suppress(ConnectionError):
            assert await reader.read() == b""
    writer.close()


@pytest.mark.parametrize("how", ["an answer", "a fault", "of a stream", "too late"])
async def test_a_request_that_failed_is_not_kept_until_the_garbage_is_collected(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "resilient_client.server")  # a record would keep it, too
    server = memory()
    held: list[weakref.ref[User]] = []

    @server.message_pattern("an answer")
    async def answer(user: User) -> None:
        held.append(weakref.ref(user))
        raise RemoteError("no")

    @server.message_pattern("a fault")
    async def fault(user: User) -> None:
        held.append(weakref.ref(user))
        raise KeyError("no")

    @server.message_pattern("of a stream")
    async def torn(user: User) -> AsyncIterator[int]:
        held.append(weakref.ref(user))
        yield 1
        raise RemoteError("no")

    @server.message_pattern("too late")
    async def late(user: User) -> None:
        held.append(weakref.ref(user))
        await asyncio.Event().wait()

    async with pair(server) as client:
        gc.disable()
        try:
            for _ in range(3):
                with suppress(RemoteError, DeadlineExceeded):
                    async for _ in client.stream(how, {"name": "x"}, timeout=0.1):
                        continue
            await eventually(lambda: not server._app.running)
            await asyncio.sleep(0)
            assert [each() for each in held] == [None, None, None]
        finally:
            gc.enable()


async def test_a_streams_error_is_not_its_own_cause() -> None:
    server = memory()
    raised: list[BaseException] = []

    @server.message_pattern("torn")
    async def torn() -> AsyncIterator[int]:
        yield 1
        raised.append(RemoteError("torn", status=503))
        raise raised[0]

    async with pair(server) as client:
        with pytest.raises(RemoteError):
            async for _ in client.stream("torn"):
                continue
    assert raised[0].__cause__ is None


async def test_the_health_endpoints_address_is_a_url_over_ipv6_too() -> None:
    server = memory(health="http://[::1]:0")
    try:
        await server.start()
    except ConfigurationError:
        pytest.skip("no IPv6 here")
    async with aclosing(server):
        assert server._health is not None
        address = server._health.address
        async with httpx.AsyncClient() as asks:
            assert (await asks.get(f"{address}/livez")).text == "ok\n"


async def test_reading_is_paused_again_after_what_waited_was_dropped_or_begun() -> None:
    server = memory(max_calls_per_connection=1)
    go, said = asyncio.Event(), []

    @server.event_pattern("news")
    async def news() -> None:
        await go.wait()

    async with server:
        app = server._app
        slots = app.slots(lambda: said.append("pause"), lambda: said.append("resume"))

        def arrive() -> None:
            app.accept(Message("news", b"null", {}), None, slots, "memory")

        arrive()
        arrive()
        assert said == ["pause"]
        slots.drop()
        arrive()
        assert said == ["pause", "pause"]
        go.set()
        await eventually(lambda: not slots.jobs)
        assert said == ["pause", "pause", "resume"]
        go.clear()
        for _ in range(3):
            arrive()
        assert said == ["pause", "pause", "resume", "pause"]
        go.set()
        await eventually(lambda: not slots.jobs)
        assert said == ["pause", "pause", "resume", "pause", "resume"]
        slots.close()


async def test_the_health_endpoint_answers_livez_and_readyz() -> None:
    server = memory(health="http://127.0.0.1:0")
    async with server:
        port = int(server._health.address.rpartition(":")[2])

        async def ask(request: bytes) -> bytes:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request)
            answer = await reader.read()
            writer.close()
            return answer

        assert (await ask(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")).startswith(b"HTTP/1.1 200")
        assert (await ask(b"GET /readyz HTTP/1.1\r\n\r\n")).endswith(b"ok\n")
        assert (await ask(b"GET /nope HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 404")
        assert (await ask(b"POST /livez HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 405")
        server._app.draining = True
        assert (await ask(b"GET /readyz HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 503")
        assert (await ask(b"GET /livez HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 200")
        assert await ask(b"x" * 20_000 + b"\r\n\r\n") == b""


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("memory://x", {"max_calls": 0}),
        ("memory://x", {"max_threads": "2"}),
        ("memory://x", {"grace": -1}),
        ("redis://x", {"stream": "s", "ack_wait": 0}),
        ("redis://x", {"stream": "s", "max_deliver": 0}),
        ("nats://x", {"ack_wait": -1}),
        ("nats://x", {"heartbeat": 0}),
        ("amqp://x", {"queue": "q", "prefetch": True}),
        ("kafka://x", {"concurrency": "2"}),
        ("kafka://x", {"partitions": 0}),
        ("kafka://x", {"session_timeout": 0}),
        ("mqtt://x", {"keepalive": 65536}),
        ("grpc://x", {"keepalive": float("nan")}),
    ],
    ids=lambda each: each if isinstance(each, str) else next(reversed(each)),
)
def test_a_number_that_makes_no_sense_is_refused(url: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(reversed(options))):
        Server(url, **options)


def test_a_server_without_a_url_or_with_nonsense_says_so() -> None:
    def listener(app: App) -> ServerListener:
        return MemoryListener(Target("memory://x"), app)

    for without in ((), (listener,)):
        with pytest.raises(ConfigurationError, match="nothing without a URL"):
            Server(*without, queue="x")
    with pytest.raises(ConfigurationError, match="max_size"):
        Server("memory://x", max_sise=3)
    with pytest.raises(ConfigurationError, match="no transport speaks"):
        Server("smoke://x")
    with pytest.raises(ConfigurationError, match="not a URL"):
        Server("localhost:3000")
    with pytest.raises(ConfigurationError, match="no URL"):
        asyncio.run(Server().start())


async def test_one_app_serves_several_urls() -> None:
    server = Server(
        f"memory://several-{next(_names)}", "tcp://127.0.0.1:0", telemetry=False, grace=0.2
    )

    @server.message_pattern("where")
    async def where(context: Context) -> str:
        return context.transport

    async with server:
        for address, scheme in zip(server.addresses, ("memory", "tcp"), strict=True):
            async with ClientProxy(address, policies=(), telemetry=False) as client:
                assert await client.send("where") == scheme


async def test_no_handler_is_registered_after_the_start() -> None:
    server = memory()
    async with server:
        with pytest.raises(ConfigurationError, match="before"):
            server.message_pattern("late")(lambda: None)


async def test_an_unknown_request_is_told_so() -> None:
    async with pair(memory()) as client:
        with pytest.raises(NoHandlerError) as caught:
            await client.send("nobody")
        assert caught.value.payload == (
            "There is no matching message handler defined in the remote service."
        )


@pytest.mark.parametrize(
    ("url", "hint"), [("nats://127.0.0.1:1", "did you mean 'queue'"), ("memory://x", "leave it")]
)
def test_an_option_of_a_handler_that_no_transport_has_is_refused(url, hint):
    server = Server(url)
    with pytest.raises(ConfigurationError, match="option 'queu'") as caught:
        server.event_pattern("a", queu="workers")(lambda: None)
    assert hint in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "settings", "said"),
    [
        ((["memory://a", "memory://b"],), {}, "several URLs are several arguments"),
        ((5,), {}, "int is neither a URL"),
        ((None,), {}, "NoneType is neither a URL"),
        ((lambda app: 5,), {}, "made a int, no ServerListener"),
        (("memory://a",), {"policies": 5}, "policies=5 must be a list"),
        (("memory://a",), {"observers": print}, "must be a list"),
        (("memory://a",), {"observers": [5]}, "observer=5 is not a function"),
        (("memory://a",), {"observers": [asyncio.sleep]}, "is a coroutine function"),
        (("memory://a",), {"max_calls": "5"}, "max_calls='5' must be a whole number"),
        (("memory://a",), {"max_calls_per_connection": 0}, "must be a whole number from 1"),
        (("memory://a",), {"max_threads": 1.5}, "must be a whole number from 1"),
        (("memory://a",), {"grace": "10"}, "must be a number of seconds"),
        (("memory://a",), {"grace": math.nan}, "must be a number of seconds"),
        (("memory://a",), {"grace": -1}, "must be a number of seconds"),
        (("memory://a",), {"name": 5}, "name= must be a text"),
        (("memory://a",), {"codec": "json"}, "codec= is a str"),
        (("memory://a",), {"clock": 5}, "clock= is a int"),
        (("memory://a",), {"health": 8080}, "health=8080 is not an http:// address"),
        (("memory://a",), {"lifespan": 5}, "lifespan=5 is not a function"),
        (("memory://a",), {"lifespan": asyncio.sleep}, "is a coroutine function"),
        (("memory://a",), {"max_cals": 5}, "did you mean 'max_calls'"),
        (("memory://a",), {"timeout": 5}, "write policies=[Timeout(...)]"),
        (("memory://a",), {"max_size": "5"}, "must be a whole number"),
        (("mqtt://a",), {"session_expiry": None}, "session_expiry= must be int, not NoneType"),
        (("http://127.0.0.1:0",), {"keep_alive": -1}, "keep_alive=-1 must be a whole number"),
        (("grpc://a",), {"max_connection_age": "1h"}, "max_connection_age= must be float | None"),
        (("grpc://a",), {"max_connection_age": math.nan}, "must be a number of seconds"),
        (("grpc://a",), {"max_connection_idle": 0}, "must be a number of seconds, above 0"),
    ],
)
def test_settings_of_the_wrong_kind_are_refused_at_once(
    arguments: tuple[Any, ...], settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Server(*arguments, **settings)
    assert said in str(caught.value)


async def test_a_lifespan_that_gives_no_context_manager_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"gave a dict, .* yields once"):
        await memory(lifespan=lambda _: {"database": "open"}).start()


def test_what_is_no_router_and_no_function_is_refused_at_once() -> None:
    server = Server("memory://a")
    with pytest.raises(ConfigurationError, match="wants a Router, not a list"):
        server.include([])  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="wants a Router, not a Server"):
        server.include(Server("memory://b"))
    with pytest.raises(ConfigurationError, match="prefix= must be a text"):
        Router(5)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="not a function of a KeyError"):
        server.exception_handler(KeyError)(5)  # type: ignore[type-var]


async def test_a_payload_that_does_not_fit_makes_up_no_line_of_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = memory()

    @server.event_pattern("event")
    async def hear(payload: Closed) -> None: ...

    async with pair(server) as client:
        await client.emit("event", {"x\nERROR forged\x1b[31m": 1})
        await eventually(lambda: "unknown field" in caplog.text)
    assert r"x\nERROR forged\x1b[31m" in caplog.text
