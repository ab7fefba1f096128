"""The conformance suite that the author of a transport runs."""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from resilient_client.client import ClientProxy
from resilient_client.context import Context
from resilient_client.errors import (
    ConnectionLost,
    DeadlineExceeded,
    InvalidPayloadError,
    NoHandlerError,
    PayloadError,
    RemoteError,
    ResilientClientError,
)
from resilient_client.server import Server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping

    from resilient_client.transports._base import App, Environment, ServerListener, Transport

SLACK = 2.0
"""Seconds a check allows beyond what is promised, for a machine busy with something else."""

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


class _Suite:
    """The server's handlers, and what they saw."""

    def __init__(self, *, object_patterns: bool = True) -> None:
        self.sum: Any = {"check": "sum"} if object_patterns else "check.sum"
        self.events: list[Any] = []
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
            await asyncio.sleep(seconds)
            return seconds

        @server.message_pattern("check.wait")
        async def wait(payload: Any) -> None:
            self.started.set()
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                self.cancelled.set()
                raise

        @server.message_pattern("check.about")
        async def about(context: Context) -> dict[str, Any]:
            return {
                "headers": {k: v for k, v in context.headers.items() if k.startswith("x-check")},
                "correlation_id": context.correlation_id,
                "attempt": context.attempt,
                "idempotency_key": context.idempotency_key,
                "remaining": context.remaining,
                "pattern": context.pattern,
            }

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

        @server.event_pattern("check.event")
        async def event(payload: Any) -> None:
            self.events.append(payload)


_checks: dict[str, Callable[[ClientProxy, _Suite], Awaitable[None]]] = {}


def _check(function: Any) -> Any:
    _checks[function.__name__.removeprefix("_")] = function
    return function


@_check
async def _values(client: ClientProxy, suite: _Suite) -> None:
    """Every JSON value comes back as it went."""
    for value in VALUES:
        assert (answer := await client.send("check.echo", value)) == value, (value, answer)
    assert await client.send(suite.sum, [1, 2, 3], returns=int) == 6


@_check
async def _sizes(client: ClientProxy, suite: _Suite) -> None:
    """A big message passes; one over the limit is refused before anything is written."""
    for size in (1_000, 70_000, 1_000_000):
        text = "\u00eb\U0001f600" * (size // 6)
        assert await client.send("check.echo", text) == text, size
    try:
        await client.send("check.echo", "x" * (17 * 1024 * 1024))
    except PayloadError as error:
        assert not error.sent
    else:
        raise AssertionError("17 MiB were not refused")


@_check
async def _parallel(client: ClientProxy, suite: _Suite) -> None:
    """Many in flight, answered out of order, each gets its own answer."""
    delays = [0.1 - i * 0.001 for i in range(64)]
    assert await asyncio.gather(*(client.send("check.delay", each) for each in delays)) == delays


@_check
async def _errors(client: ClientProxy, suite: _Suite) -> None:
    """Five different errors, at once, never a timeout."""
    boom = await _error(client.send("check.boom", timeout=20))
    assert type(boom) is RemoteError, boom
    assert (boom.message, boom.code, boom.sent) == ("boom", "E_BOOM", True), boom
    bug = await _error(client.send("check.bug", timeout=20))
    assert type(bug) is RemoteError, bug
    assert bug.message == "Internal server error", bug
    assert "secret" not in str(bug)
    refused = await _error(client.send(suite.sum, ["one"], timeout=20))
    assert isinstance(refused, InvalidPayloadError), refused
    unusable = await _error(client.send("check.echo", "text", returns=int, timeout=20))
    assert isinstance(unusable, PayloadError), unusable
    unsendable = await _error(client.send("check.echo", object(), timeout=20))
    assert isinstance(unsendable, PayloadError), unsendable
    assert not unsendable.sent


@_check
async def _error_payloads(client: ClientProxy, suite: _Suite) -> None:
    """An error's payload arrives untouched."""
    for payload in ("text", {"message": "m", "status": 418, "more": [1]}, [1, 2], 42):
        error = await _error(client.send("check.remote", payload))
        assert isinstance(error, RemoteError), error
        assert error.payload == payload, (error.payload, payload)


@_check
async def _no_handler(client: ClientProxy, suite: _Suite) -> None:
    """A pattern nobody handles is told from one that is slow."""
    started = time.monotonic()
    error = await _error(client.send("check.nobody", 1, timeout=20))
    assert isinstance(error, NoHandlerError), error
    assert time.monotonic() - started < 10, "it took as long as a timeout"


@_check
async def _headers(client: ClientProxy, suite: _Suite) -> None:
    """Headers, correlation id, idempotency key and remaining time arrive."""
    about = await client.send(
        "check.about",
        headers={"X-Check": "yes", "x-correlation-id": "one.two"},
        idempotency_key="key-1",
        timeout=30,
    )
    assert about["headers"] == {"x-check": "yes"}, about
    assert about["correlation_id"] == "one.two", about
    assert about["idempotency_key"] == "key-1", about
    assert about["attempt"] == 1, about
    assert about["pattern"] == "check.about", about
    assert 20 < about["remaining"] <= 30, about


@_check
async def _streams(client: ClientProxy, suite: _Suite) -> None:
    """A stream's values in order; none; an error after them."""
    assert [i async for i in client.stream("check.count", 100, returns=int)] == list(range(100))
    assert [i async for i in client.stream("check.count", 0)] == []
    got: list[int] = []
    try:
        async for i in client.stream("check.torn", 3):
            got.append(i)  # noqa: PERF401
    except RemoteError as error:
        assert error.message == "torn"
    else:
        raise AssertionError("the stream's error was lost")
    assert got == [0, 1, 2], got
    assert await client.send("check.count", 3) == 0, "send gives the first value"
    assert await client.send("check.count", 0) is None
    assert [i async for i in client.stream("check.echo", 7)] == [7]


@_check
async def _leave_stream(client: ClientProxy, suite: _Suite) -> None:
    """Leaving a stream stops its handler; whoever asks for one value leaves with that."""
    suite.cancelled.clear()
    async with client.stream("check.endless") as items:
        async for i in items:
            if i == 2:
                break
    await asyncio.wait_for(suite.cancelled.wait(), 5 + SLACK)
    suite.cancelled.clear()
    assert await client.send("check.endless", timeout=60) == 0
    await asyncio.wait_for(suite.cancelled.wait(), 5 + SLACK)


@_check
async def _events(client: ClientProxy, suite: _Suite) -> None:
    """An event reaches its handler, and the receipt promises no more than is known."""
    suite.events.clear()
    for i in range(10):
        receipt = await client.emit("check.event", i)
        assert receipt.delivery in ("written", "accepted", "stored"), receipt
    for _ in range(500):
        if len(suite.events) == 10:
            break
        await asyncio.sleep(0.01)
    assert sorted(suite.events) == list(range(10)), suite.events


@_check
async def _deadline(client: ClientProxy, suite: _Suite) -> None:
    """A timeout is a timeout, and the server stops working on it."""
    suite.cancelled.clear()
    started = time.monotonic()
    error = await _error(client.send("check.wait", timeout=0.3))
    took = time.monotonic() - started
    assert isinstance(error, DeadlineExceeded), error
    assert error.sent
    assert 0.25 < took < 0.3 + SLACK, took
    await asyncio.wait_for(suite.cancelled.wait(), 2 + SLACK)


@_check
async def _for_ever(client: ClientProxy, suite: _Suite) -> None:
    """A timeout of months, years or more than any clock counts is as good as none."""
    for timeout in (5e6, 1e9, float(sys.maxsize), sys.float_info.max):
        assert await client.send("check.echo", 1, timeout=timeout) == 1, timeout
        values = client.stream("check.count", 1, timeout=timeout, idle_timeout=timeout)
        assert [value async for value in values] == [0], timeout
        await client.emit("check.event", timeout, timeout=timeout)


@_check
async def _cancel(client: ClientProxy, suite: _Suite) -> None:
    """A caller that leaves stops its handler."""
    suite.cancelled.clear()
    suite.started.clear()
    task = asyncio.ensure_future(client.send("check.wait", timeout=50))
    await asyncio.wait_for(suite.started.wait(), 5 + SLACK)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        await asyncio.wait_for(suite.cancelled.wait(), 5 + SLACK)
    else:
        raise AssertionError("the cancellation was swallowed")


@_check
async def _cancel_storm(client: ClientProxy, suite: _Suite) -> None:
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
            assert result == 0.02 + (2 * i + 1) / 10_000, (turn, i, result)
    assert await client.send("check.echo", "after") == "after"


@_check
async def _ping(client: ClientProxy, suite: _Suite) -> None:
    """A ping finds the server."""
    health = await client.ping(timeout=10)
    assert health.reachable, health
    assert health.latency is not None
    assert client.status == "connected", client.status


@_check
async def _close(client: ClientProxy, suite: _Suite) -> None:
    """Closing fails what is pending, at once and with the truth; closing twice is harmless."""
    suite.started.clear()
    task = asyncio.ensure_future(client.send("check.wait", timeout=50))
    await asyncio.wait_for(suite.started.wait(), 5 + SLACK)
    await client.aclose()
    error = await _error(asyncio.wait_for(task, 2 + SLACK))
    assert isinstance(error, ConnectionLost), error
    await client.aclose()
    assert client.status == "closed"
    after = await _error(client.send("check.echo", 1))
    assert not after.sent


async def _error(call: Awaitable[Any]) -> Any:
    try:
        value = await call
    except ResilientClientError as error:
        return error
    raise AssertionError(f"it answered {value!r} instead of failing")


async def check_transport(
    listen: str | Callable[[App], ServerListener],
    connect: str | Callable[[Environment], Transport] | None = None,
    *,
    skip: Collection[str] = (),
    options: Mapping[str, Any] | None = None,
) -> list[str]:
    """Run every check of what a transport promises; the names of those that were run.

    Args:
        listen: what `Server` is given: a URL, or a function from the app to a listener.
        connect: what `ClientProxy` is given; by default the address the server really bound.
        skip: names of checks that this transport cannot pass, because its protocol cannot;
            "object_patterns" where a pattern can only be a text.
        options: the transport's own, for both ends.

    Raises:
        AssertionError: a check failed; the error's notes name it and say what it checks.
    """
    names = {*_checks, "object_patterns"}
    if unknown := set(skip) - names:
        raise ValueError(f"there is no check {sorted(unknown)}; there are {sorted(names)}")
    own = dict(options or {})
    run: list[str] = []
    before = asyncio.all_tasks()
    for name, check in _checks.items():
        if name in skip:
            continue
        suite = _Suite(object_patterns="object_patterns" not in skip)
        async with AsyncExitStack() as stack:
            server = Server(listen, telemetry=False, grace=0.0, **own)
            suite.register(server)
            await stack.enter_async_context(server)
            target: Any = server.addresses[0] if connect is None else connect
            client = ClientProxy(target, policies=(), telemetry=False, **own)
            await stack.enter_async_context(client)
            try:
                await asyncio.wait_for(check(client, suite), 60)
            except BaseException as error:
                error.add_note(f"check_transport: {name}: {check.__doc__}")
                raise
        run.append(name)
    for _ in range(20):
        await asyncio.sleep(0.01)
        if not asyncio.all_tasks() - before:
            break
    left = asyncio.all_tasks() - before
    assert not left, f"tasks were left behind: {left}"
    return run
