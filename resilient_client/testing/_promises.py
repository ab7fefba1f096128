"""What every transport promises, as checks: each is given a client, and a server that it calls."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import time
import warnings
from collections.abc import Awaitable, Callable
from pathlib import Path
from reprlib import repr as shortened
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from resilient_client.client import ClientProxy
from resilient_client.context import Context
from resilient_client.errors import (
    ConnectError,
    ConnectionLost,
    DeadlineExceeded,
    InvalidPayloadError,
    NoHandlerError,
    PayloadError,
    RemoteError,
    ReplyTimeout,
    ResilientClientError,
)
from resilient_client.events import ConnectionChanged
from resilient_client.policies import CircuitBreaker, Timeout
from resilient_client.server import Server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine

    from resilient_client.clock import Clock
    from resilient_client.message import Call, Reply
    from resilient_client.pipeline import Handler
    from resilient_client.transports._base import App, Environment, ServerListener, Transport

SLACK = 2.0
"""Seconds a check allows beyond what is promised, for a machine busy with something else."""
PATIENCE = 30.0
"""Seconds that starting, connecting and closing may take."""
TOO_LARGE = 17 * 1024 * 1024

T = TypeVar("T")

VALUES: list[Any] = [
    None,
    True,
    0,
    -1,
    2**53,
    1.5,
    "",
    "text",
    'quotes " and \\ and \n',
    "Zo\u00eb \u4f60\u597d \U0001f600",
    [],
    [1, [2, [3]]],
    {},
    {"a": {"b": [None, "c"]}, "key": "k", "value": 1},
    {"pattern": "p", "data": 1, "id": "x", "response": 2, "err": 3, "isDisposed": True},
]


class Suite:
    """The server's handlers, and what they saw."""

    def __init__(self, *, object_patterns: bool = True) -> None:
        self.sum: Any = {"check": "sum"} if object_patterns else "check.sum"
        self.key = os.urandom(8).hex()  # a broker may still give us what others sent before
        self.events: list[Any] = []
        self.about: list[dict[str, Any]] = []
        self.running = self.most = 0
        self.cancelled = asyncio.Event()
        self.started = asyncio.Event()

    def register(self, server: Server) -> None:
        @server.message_pattern("check.echo")
        async def echo(payload: Any) -> Any:
            return payload

        @server.message_pattern(self.sum)
        async def add(numbers: list[int]) -> int:
            return sum(numbers)

        @server.message_pattern("check.delay")
        async def delay(seconds: float) -> float:
            self.running += 1
            self.most = max(self.most, self.running)
            try:
                await asyncio.sleep(seconds)
            finally:
                self.running -= 1
            return seconds

        @server.message_pattern("check.wait")
        async def wait(payload: dict[str, Any]) -> str:
            mine = payload["key"] == self.key
            if mine:
                self.started.set()
            try:
                await asyncio.sleep(payload["seconds"])
            except asyncio.CancelledError:
                if mine:
                    self.cancelled.set()
                raise
            return self.key

        @server.message_pattern("check.about")
        async def about(context: Context) -> dict[str, Any]:
            return _about(context)

        @server.message_pattern("check.remote")
        async def remote(payload: Any) -> None:
            raise RemoteError(payload=payload)

        @server.message_pattern("check.boom")
        async def boom() -> None:
            raise RemoteError("boom", code="E_BOOM")

        @server.message_pattern("check.bug")
        async def bug() -> None:
            raise KeyError("a secret of the handler's")

        @server.message_pattern("check.count")
        async def count(n: int) -> AsyncIterator[int]:
            for i in range(n):
                yield i

        @server.message_pattern("check.torn")
        async def torn(n: int) -> AsyncIterator[int]:
            for i in range(n):
                yield i
            raise RemoteError("torn")

        @server.message_pattern("check.endless")
        async def endless() -> AsyncIterator[int]:
            try:
                for i in range(1_000_000):
                    yield i
                    await asyncio.sleep(0.005)
            finally:
                self.cancelled.set()

        @server.message_pattern("check.silent")
        async def silent() -> AsyncIterator[int]:
            yield 0
            await asyncio.sleep(60)

        @server.message_pattern("check.nulls")
        async def nulls() -> AsyncIterator[int | None]:
            for i in range(2):
                yield None
                yield i

        @server.message_pattern("check.large")
        async def large() -> str:
            return "x" * TOO_LARGE

        @server.event_pattern("check.event")
        async def event(payload: dict[str, Any], context: Context) -> None:
            if payload["key"] == self.key:
                self.events.append(payload["value"])
                self.about.append(_about(context))

    def waiting(self, seconds: float = 60.0) -> dict[str, Any]:
        """The payload of a `check.wait` of ours."""
        return {"key": self.key, "seconds": seconds}

    def event(self, value: Any = None) -> dict[str, Any]:
        """The payload of a `check.event` of ours."""
        return {"key": self.key, "value": value}


def _about(context: Context) -> dict[str, Any]:
    return {
        "headers": {k: v for k, v in context.headers.items() if k.startswith("x-check")},
        "correlation_id": context.correlation_id,
        "attempt": context.attempt,
        "idempotency_key": context.idempotency_key,
        "remaining": context.remaining,
        "pattern": context.pattern,
        "transport": context.transport,
    }


class _Watch:
    """A policy that keeps the calls which pass."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def wrap(self, handler: Handler, clock: Clock) -> Handler:
        async def watch(call: Call) -> Reply:
            self.calls.append(call)
            return await handler(call)

        return watch


class Trial:
    """A server, a client of it, and what the client told of its connection.

    Args:
        listen, connect, options: see `check_transport`.
    """

    client: ClientProxy

    def __init__(
        self,
        suite: Suite,
        listen: str | Callable[[App], ServerListener],
        connect: str | Callable[[Environment], Transport] | None,
        options: dict[str, Any],
    ) -> None:
        self.suite = suite
        self.changes: list[ConnectionChanged] = []
        self._listen = listen
        self._connect = connect
        self._options = options
        self._server: Server | None = None
        self._address = ""

    async def open(self) -> None:
        """Start the server, connect the client."""
        await self.serve()
        self.client = await self.another_client(observers=[self._heard])
        await in_time(self.client.connect(), PATIENCE, "the client is not connected")
        status = self.client.status
        assert status == "connected", f"connect() has returned, and the status is {status!r}"

    def _heard(self, event: object) -> None:
        if isinstance(event, ConnectionChanged):
            self.changes.append(event)

    async def serve(self) -> bool:
        """Start a server; False when its address is not that of the one before."""
        listen: Any = self._listen
        if self._address and isinstance(listen, str):
            listen = self._address
        server = await _outside_a_loop(
            lambda: Server(listen, telemetry=False, grace=0.0, **self._options)
        )
        self.suite.register(server)
        await in_time(server.start(), PATIENCE, "the server has not started")
        self._server, before, self._address = server, self._address, server.addresses[0]
        return before in ("", self._address)

    async def stop_serving(self, grace: float = 0.0) -> None:
        """Close the server."""
        server, self._server = self._server, None
        if server is not None:
            server.grace = grace
            await in_time(server.aclose(), PATIENCE + grace, "the server has not closed")

    async def another_client(self, **settings: Any) -> ClientProxy:
        """A client of the server; whoever asks closes it."""
        target: Any = self._address if self._connect is None else self._connect
        given: dict[str, Any] = {"policies": (), "telemetry": False, **settings, **self._options}
        return await _outside_a_loop(lambda: ClientProxy(target, **given))

    async def aclose(self) -> None:
        """Close both ends."""
        try:
            if hasattr(self, "client"):
                await in_time(self.client.aclose(), PATIENCE, "the client has not closed")
        finally:
            await self.stop_serving()


Check: TypeAlias = "Callable[[ClientProxy, Trial], Coroutine[Any, Any, None]]"
checks: dict[str, Check] = {}


def _check(function: Any) -> Any:
    checks[function.__name__.removeprefix("_")] = function
    return function


async def _outside_a_loop(make: Callable[[], T]) -> T:
    """What it makes, where no event loop runs: so are clients and servers of a module made."""
    return await asyncio.to_thread(make)


async def in_time(
    awaitable: Coroutine[Any, Any, T] | asyncio.Task[T], limit: float, late: str
) -> T:
    """Its result; also of what ignores that it is cancelled, nobody waits for longer.

    Raises:
        AssertionError: `late`, and where it waits.
    """
    task = asyncio.ensure_future(awaitable)
    try:
        await asyncio.wait({task}, timeout=limit)
        if not task.done():
            places = _places() or [_place(task)]
            raise AssertionError(f"{late} after {limit:g} s; what waits: {', '.join(places)}")
        if task.cancelled():
            raise AssertionError("it ended with a CancelledError, and nobody had cancelled it")
        return task.result()
    finally:
        task.cancel()


def _places() -> list[str]:
    """Where the tasks of this loop wait that wait in code of others: the author's, most likely."""
    known = (str(Path(asyncio.__file__).parent), str(Path(__file__).parents[1]))
    others = asyncio.all_tasks() - {asyncio.current_task()}
    places = {_place(task) for task in others}
    return sorted(each for each in places if not each.partition("(")[2].startswith(known))


def _place(task: asyncio.Task[Any]) -> str:
    """Where a task waits: the innermost function, its file and line."""
    coroutine: Any = task.get_coro()
    place = "no function that can be seen"
    while (frame := getattr(coroutine, "cr_frame", None)) is not None:
        place = f"{frame.f_code.co_name} ({frame.f_code.co_filename}:{frame.f_lineno})"
        coroutine = coroutine.cr_await
    return place


async def _set(event: asyncio.Event, late: str, seconds: float = 5.0) -> None:
    try:
        await asyncio.wait_for(event.wait(), seconds + SLACK)
    except TimeoutError:
        raise AssertionError(f"{late} within {seconds:g} s") from None


@_check
async def _values(client: ClientProxy, trial: Trial) -> None:
    """Every JSON value comes back as it went."""
    for value in VALUES:
        answer = await client.send("check.echo", value)
        assert answer == value, f"{value!r} came back as {answer!r}"
    total = await client.send(trial.suite.sum, [1, 2, 3], returns=int)
    assert total == 6, f"1 + 2 + 3 came back as {total!r}"


@_check
async def _sizes(client: ClientProxy, trial: Trial) -> None:
    """A big message passes; one over the limit is refused before anything is written."""
    for size in (1_000, 70_000, 1_000_000):
        text = "\u00eb\U0001f600" * (size // 6)
        answer = await client.send("check.echo", text)
        assert answer == text, f"a text of {size} bytes came back as another"
    error = await _error(client.send("check.echo", "x" * TOO_LARGE))
    assert isinstance(error, PayloadError), f"17 MiB were refused as {error!r}"
    assert not error.sent, f"17 MiB were sent before they were refused: {error}"
    try:
        assert len(await client.send("check.large", timeout=20)) == TOO_LARGE
    except ResilientClientError as error:
        told = isinstance(error, RemoteError | PayloadError)
        assert told, f"an answer that may be too large came as {error!r}"
    assert await client.send("check.echo", "after") == "after"


@_check
async def _parallel(client: ClientProxy, trial: Trial) -> None:
    """Many in flight, answered out of order, each gets its own answer."""
    delays = [0.1 - i * 0.001 for i in range(64)]
    calls = (client.send("check.delay", each) for each in delays)
    for delay, answer in zip(
        delays, await asyncio.gather(*calls, return_exceptions=True), strict=True
    ):
        assert answer == delay, f"a call got {answer!r}, its own answer is {delay}"
    most = trial.suite.most
    assert most > 1, "one call waits for the other: of 64, no two were handled at the same time"


@_check
async def _errors(client: ClientProxy, trial: Trial) -> None:
    """Five different errors, at once, never a timeout."""
    boom = await _error(client.send("check.boom", timeout=20))
    assert type(boom) is RemoteError, f"a handler's RemoteError came as {boom!r}"
    about = (boom.message, boom.code, boom.sent)
    assert about == ("boom", "E_BOOM", True), f"its message, code and sent are {about}"
    bug = await _error(client.send("check.bug", timeout=20))
    assert type(bug) is RemoteError, f"a handler's KeyError came as {bug!r}"
    assert bug.message == "Internal server error", f"it says {bug.message!r}"
    assert "secret" not in str(bug), bug
    refused = await _error(client.send(trial.suite.sum, ["one"], timeout=20))
    assert isinstance(refused, InvalidPayloadError), f"a refused payload came as {refused!r}"
    unusable = await _error(client.send("check.echo", "text", returns=int, timeout=20))
    assert isinstance(unusable, PayloadError), f"an answer that does not fit came as {unusable!r}"
    unsendable = await _error(client.send("check.echo", object(), timeout=20))
    assert isinstance(unsendable, PayloadError), f"what is no JSON came as {unsendable!r}"
    assert not unsendable.sent, f"what is no JSON is told as sent: {unsendable}"


@_check
async def _error_payloads(client: ClientProxy, trial: Trial) -> None:
    """An error's payload arrives untouched."""
    for payload in ("text", {"message": "m", "status": 418, "more": [1]}, [1, 2], 42):
        error = await _error(client.send("check.remote", payload))
        assert isinstance(error, RemoteError), f"a handler's RemoteError came as {error!r}"
        assert error.payload == payload, f"{payload!r} came as {error.payload!r}"


@_check
async def _no_handler(client: ClientProxy, trial: Trial) -> None:
    """A pattern nobody handles is told from one that is slow."""
    started = time.monotonic()
    error = await _error(client.send("check.nobody", 1, timeout=20))
    assert isinstance(error, NoHandlerError), f"a pattern that nobody handles came as {error!r}"
    assert time.monotonic() - started < 10, "it took as long as a timeout"


@_check
async def _headers(client: ClientProxy, trial: Trial) -> None:
    """Headers, correlation id, idempotency key and remaining time arrive."""
    headers = {"X-Check": "yes", "x-correlation-id": "one.two"}
    given: dict[str, Any] = {"headers": headers, "timeout": 30}
    about = await client.send("check.about", **given, idempotency_key="key-1")
    _expect_headers("send", about, "check.about")
    assert about["idempotency_key"] == "key-1", about
    assert about["remaining"] is not None, f"x-deadline-ms has not arrived: {about}"
    assert 20 < about["remaining"] <= 30, about
    assert isinstance(about["transport"], str), f"Context.transport is no text: {about}"
    async for about in client.stream("check.about", **given):
        _expect_headers("stream", about, "check.about")
    await client.emit("check.event", trial.suite.event(), **given)
    await _heard(trial.suite, 1)
    _expect_headers("emit", trial.suite.about[0], "check.event")


def _expect_headers(kind: str, about: Any, pattern: str) -> None:
    assert about["headers"] == {"x-check": "yes"}, f"{kind}: {about}"
    assert about["correlation_id"] == "one.two", f"{kind}: {about}"
    assert about["attempt"] == 1, f"{kind}: {about}"
    assert about["pattern"] == pattern, f"{kind}: {about}"


@_check
async def _streams(client: ClientProxy, trial: Trial) -> None:
    """A stream's values in order; none; an error after them."""
    for n in (100, 0, 1):
        got = [i async for i in client.stream("check.count", n, returns=int)]
        assert got == list(range(n)), f"a stream of {n} values, from 0 on, came as {got}"
    got = []
    try:
        async for i in client.stream("check.torn", 3):
            got.append(i)
    except RemoteError as error:
        assert error.message == "torn", f"the error that ends a stream came as {error!r}"
    else:
        raise AssertionError("the error that ends a stream was lost")
    assert got == [0, 1, 2], f"before the error that ends it, a stream of 3 values came as {got}"
    first = await client.send("check.count", 3)
    assert first == 0, f"send gives the first value of a stream, not {first!r}"
    assert await client.send("check.count", 0) is None, "send gives None when there is no value"
    got = [i async for i in client.stream("check.echo", 7)]
    assert got == [7], f"as a stream, the one value 7 came as {got}"
    got = [i async for i in client.stream("check.nulls")]
    assert got == [None, 0, None, 1], f"among values, nulls are lost: {got}"


@_check
async def _leave_stream(client: ClientProxy, trial: Trial) -> None:
    """Leaving a stream stops its handler; whoever asks for one value leaves with that."""
    cancelled = trial.suite.cancelled
    async with client.stream("check.endless") as items:
        async for i in items:
            if i == 2:
                break
    await _set(cancelled, "the handler was not stopped when its stream was left")
    cancelled.clear()
    first = await client.send("check.endless", timeout=60)
    assert first == 0, f"the first value came as {first!r}"
    await _set(cancelled, "the handler was not stopped when send had its one value")


@_check
async def _events(client: ClientProxy, trial: Trial) -> None:
    """An event reaches its handler, and the receipt promises no more than is known."""
    for i in range(10):
        receipt = await client.emit("check.event", trial.suite.event(i))
        assert receipt.delivery in ("written", "accepted", "stored"), receipt
        assert receipt.receivers in (None, 1), f"one server heard it: {receipt}"
    events = await _heard(trial.suite, 10)
    assert sorted(events) == list(range(10)), f"ten events, from 0 on, were heard as {events}"
    receipt = await client.emit("check.nobody", 1)
    assert receipt.receivers in (None, 0), f"nobody heard it: {receipt}"


@_check
async def _sent(client: ClientProxy, trial: Trial) -> None:
    """A call that has reached its handler is known to be sent."""
    watch = _Watch()
    async with await trial.another_client(policies=[watch]) as watched:
        task = asyncio.ensure_future(watched.send("check.wait", trial.suite.waiting(), timeout=50))
        await _set(trial.suite.started, "the handler was not called")
        assert watch.calls[0].sent, "its handler runs, and call.sent is not True"
        await _cancelled(task)
        async for _ in watched.stream("check.count", 1):
            assert watch.calls[1].sent, "a stream's value has come, and call.sent is not True"
        await watched.emit("check.event", trial.suite.event())
        assert watch.calls[2].sent, "an event is handed over, and call.sent is not True"


@_check
async def _deadline(client: ClientProxy, trial: Trial) -> None:
    """A timeout is a timeout, and the server stops working on it."""
    error = await _late(client.send("check.wait", trial.suite.waiting(), timeout=0.3), 0.3)
    assert isinstance(error, DeadlineExceeded), f"the call's deadline came as {error!r}"
    assert error.sent, f"it was sent: {error}"
    cancelled = trial.suite.cancelled
    await _set(cancelled, "the handler was not stopped at its caller's deadline", 2)


@_check
async def _attempt(client: ClientProxy, trial: Trial) -> None:
    """An attempt ends with its own time, which the server does not know, before the call's."""
    policies = [CircuitBreaker(), Timeout(1.0)]
    async with await trial.another_client(policies=policies) as hasty:
        stream = hasty.stream("check.wait", trial.suite.waiting(), timeout=50, idle_timeout=50)
        send = hasty.send("check.wait", trial.suite.waiting(), timeout=50)
        errors = await asyncio.gather(_late(send, 1.0), _late(_first(stream), 1.0))
    for kind, error in zip(("send", "stream"), errors, strict=True):
        assert isinstance(error, ReplyTimeout), f"{kind}: the attempt's deadline came as {error!r}"
        assert error.sent, f"{kind}: it was sent: {error}"


@_check
async def _idle(client: ClientProxy, trial: Trial) -> None:
    """A stream that is silent for too long ends."""
    stream = client.stream("check.silent", idle_timeout=0.5)
    first = await _first(stream)
    assert first == 0, f"the first value came as {first!r}"
    error = await _late(_first(stream), 0.5)
    assert isinstance(error, ReplyTimeout), f"the silence came as {error!r}"


@_check
async def _for_ever(client: ClientProxy, trial: Trial) -> None:
    """A timeout of months, years or more than any clock counts is as good as none."""
    for timeout in (5e6, 1e9, float(sys.maxsize), sys.float_info.max):
        assert await client.send("check.echo", 1, timeout=timeout) == 1, timeout
        values = client.stream("check.count", 1, timeout=timeout, idle_timeout=timeout)
        assert [value async for value in values] == [0], timeout
        await client.emit("check.event", trial.suite.event(), timeout=timeout)


@_check
async def _cancel(client: ClientProxy, trial: Trial) -> None:
    """A caller that leaves stops its handler."""
    task = asyncio.ensure_future(client.send("check.wait", trial.suite.waiting(), timeout=50))
    await _set(trial.suite.started, "the handler was not called")
    await _cancelled(task)
    await _set(trial.suite.cancelled, "the handler was not stopped when its caller was cancelled")


@_check
async def _cancel_storm(client: ClientProxy, trial: Trial) -> None:
    """Half of 64 calls cancelled, again and again: the others get their own answers."""
    for turn in range(5):
        tasks = [
            asyncio.ensure_future(client.send("check.delay", 0.02 + i / 10_000)) for i in range(64)
        ]
        await asyncio.sleep(0.005 * turn)
        for task in tasks[::2]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for i, result in enumerate(results[1::2]):
            own = 0.02 + (2 * i + 1) / 10_000
            assert result == own, f"turn {turn}: a call got {result!r}, its own answer is {own}"
    assert await client.send("check.echo", "after") == "after"


@_check
async def _ping(client: ClientProxy, trial: Trial) -> None:
    """A ping finds the server."""
    health = await client.ping(timeout=10)
    assert health.reachable, f"the server is there, and not reachable: {health}"
    assert health.latency is not None, health
    assert client.status == "connected", f"a ping was answered, and the status is {client.status!r}"


@_check
async def _loops(client: ClientProxy, trial: Trial) -> None:
    """A client outlives its event loop: on the next one, it connects anew."""

    async def use(mover: ClientProxy) -> None:
        assert await mover.send("check.echo", "moved", timeout=20) == "moved"

    async def move(mover: ClientProxy) -> None:
        await asyncio.to_thread(asyncio.run, use(mover))
        await asyncio.to_thread(asyncio.run, use(mover))
        await asyncio.to_thread(asyncio.run, mover.aclose())

    with warnings.catch_warnings():  # a closed loop's sockets, when they are collected
        warnings.simplefilter("ignore", ResourceWarning)
        await move(await trial.another_client())
        gc.collect()


@_check
async def _drain(client: ClientProxy, trial: Trial) -> None:
    """A server that is told to end answers what it works on."""
    task = asyncio.ensure_future(client.send("check.wait", trial.suite.waiting(0.5), timeout=50))
    await _set(trial.suite.started, "the handler was not called")
    await trial.stop_serving(grace=10.0)
    answer = await in_time(task, SLACK, "a call was not answered by a server that ends")
    assert answer == trial.suite.key, f"the answer came as {answer!r}"


@_check
async def _restart(client: ClientProxy, trial: Trial) -> None:
    """A server that goes fails what is pending, with the truth; when it is back, it is found."""
    task = asyncio.ensure_future(client.send("check.wait", trial.suite.waiting(), timeout=50))
    await _set(trial.suite.started, "the handler was not called")
    await trial.stop_serving()
    await asyncio.wait({task}, timeout=SLACK)
    if not task.done() and client.status != "connected":
        await asyncio.wait({task}, timeout=5)
    if task.done():
        error = await _error(task)
        untrue = isinstance(error, ConnectError | DeadlineExceeded)
        assert not untrue, f"its server's end, while the handler ran, came as {error!r}"
        assert error.sent, f"its handler ran, and it is told as not sent: {error!r}"
    else:  # a broker gives the request to another server
        status = client.status
        assert status == "connected", f"a call goes on without its server, while {status!r}"
        await _cancelled(task)
    gone = await _error(client.send("check.echo", 1, timeout=1))
    if isinstance(gone, ConnectError):
        assert not gone.sent, f"nobody was there, and it is told as sent: {gone!r}"
        assert client.status != "connected", f"the status is 'connected' after {gone!r}"
    if not await trial.serve():
        return  # elsewhere, where this client cannot know
    ended = time.monotonic() + 15
    while True:
        try:
            assert await client.send("check.echo", "back", timeout=3) == "back"
            break
        except ResilientClientError as error:
            assert time.monotonic() < ended, f"the server is back, and was not found: {error!r}"
            await asyncio.sleep(0.05)
    assert client.status == "connected", f"it is back, and the status is {client.status!r}"


@_check
async def _close(client: ClientProxy, trial: Trial) -> None:
    """Closing fails what is pending, at once and with the truth; closing twice is harmless."""
    assert await client.send("check.echo", "met") == "met"  # each knows of what make the other is
    task = asyncio.ensure_future(client.send("check.wait", trial.suite.waiting(), timeout=50))
    await _set(trial.suite.started, "the handler was not called")
    await in_time(client.aclose(), PATIENCE, "the client has not closed")
    error = await _error(in_time(task, 2 + SLACK, "a pending call did not end with its client"))
    assert isinstance(error, ConnectionLost), f"a pending call ended with {error!r}"
    await _set(trial.suite.cancelled, "the handler was not stopped when its client was closed")
    await in_time(client.aclose(), PATIENCE, "the client has not closed for the second time")
    assert client.status == "closed", f"it is closed, and the status is {client.status!r}"
    after = await _error(client.send("check.echo", 1))
    assert not after.sent, f"it is closed, and a call is told as sent: {after!r}"


async def _heard(suite: Suite, number: int) -> list[Any]:
    """The events that were heard, as soon as there are so many; and no more of them a bit later."""
    for _ in range(500):
        if len(suite.events) >= number:
            break
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.02)
    return suite.events


async def _first(stream: Any) -> Any:
    async for value in stream:
        return value
    raise AssertionError("the stream ended without a value")


async def _cancelled(task: asyncio.Task[Any]) -> None:
    """Cancel it, and see that it is."""
    task.cancel()
    await asyncio.wait({task}, timeout=SLACK)
    assert task.done(), f"a call that was cancelled goes on: {task}"
    if not task.cancelled():
        raise AssertionError("the cancellation was swallowed") from task.exception()


async def _late(call: Coroutine[Any, Any, Any], seconds: float) -> Any:
    """The error of a call whose time runs out after so many seconds."""
    started = time.monotonic()
    late = f"a call that has {seconds} s has not ended"
    error = await _error(in_time(call, seconds + SLACK, late))
    took = time.monotonic() - started
    assert took > seconds - 0.05, f"a call that has {seconds} s ended after {took:.3f} s: {error!r}"
    return error


async def _error(call: Awaitable[Any]) -> Any:
    try:
        value = await call
    except AssertionError:
        raise
    except ResilientClientError as error:
        return error
    except Exception as error:
        raise AssertionError(f"{error!r} reached the caller: make it an error of ours") from error
    raise AssertionError(f"it answered {shortened(value)} instead of failing")
