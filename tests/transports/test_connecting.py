"""A peer that cannot be reached in the time there is, over every transport."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, aclosing
from itertools import pairwise
from math import inf
from typing import Any

import httpx
import pytest
import uvloop

from resilient_client import (
    ClientProxy,
    ConnectError,
    DeadlineExceeded,
    Server,
    correlation_id,
    standard,
)
from resilient_client.errors import ConnectTimeout, Outcome
from resilient_client.testing import FakeClock
from resilient_client.transports import Link
from resilient_client.transports._link import spawn
from tests.peers.process import free_port
from tests.peers.proxy import TcpProxy
from tests.waiting import eventually

SCHEMES = ("tcp", "http", "redis", "nats", "amqp", "mqtt", "kafka", "grpc")


@pytest.fixture
def nowhere() -> Iterator[str]:
    """Host and port of a listener whose queue is full: who dials it hears nothing."""
    with ExitStack() as sockets:
        listener = sockets.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            waiting = sockets.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def client_of(scheme: str, nowhere: str, **settings: Any) -> ClientProxy:
    if scheme == "amqp":
        settings["queue"] = "orders"
    if scheme == "httpx":
        scheme, settings["client"] = "http", httpx.AsyncClient()
    return ClientProxy(f"{scheme}://{nowhere}", telemetry=False, **settings)


@pytest.mark.parametrize("kind", ["send", "emit", "stream"])
@pytest.mark.parametrize("scheme", [*SCHEMES, "httpx"])
async def test_a_call_whose_time_ends_while_connecting_says_that_its_time_ran_out(
    scheme: str, kind: str, nowhere: str
) -> None:
    # until httpx has told of a connection it may have sent, and it loads most of itself at first
    timeout = 1.0 if scheme == "httpx" else 0.2
    async with aclosing(client_of(scheme, nowhere)) as client:
        with pytest.raises(ConnectTimeout) as raised:
            if kind == "send":
                await client.send("orders", timeout=timeout)
            elif kind == "emit":
                await client.emit("orders", timeout=timeout)
            else:
                await anext(aiter(client.stream("orders", timeout=timeout)))
    assert isinstance(raised.value, ConnectError)
    assert isinstance(raised.value, DeadlineExceeded)
    assert isinstance(raised.value, TimeoutError)
    assert raised.value.outcome is Outcome.NEVER_SENT
    assert not raised.value.sent
    assert len(raised.value.attempts) == 1 or scheme == "httpx"  # that is told a little earlier


@pytest.mark.parametrize("scheme", [*SCHEMES, "httpx"])
async def test_an_attempt_whose_time_ends_while_connecting_is_followed_by_another(
    scheme: str, nowhere: str
) -> None:
    policies = standard(timeout=5.0, attempt_timeout=0.1)
    async with aclosing(client_of(scheme, nowhere, policies=policies)) as client:
        with pytest.raises(ConnectError) as raised:
            await client.send("orders")
    assert not isinstance(raised.value, TimeoutError)
    assert not raised.value.sent
    assert len(raised.value.attempts) == 3


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("scheme", ["tcp", "http"])
def test_of_a_names_addresses_the_one_that_answers_is_taken(
    scheme: str, loop: Any, nowhere: str
) -> None:
    server = Server(f"{scheme}://127.0.0.1:0")

    @server.message_pattern("sum")
    def add(numbers: list[int]) -> int:
        return sum(numbers)

    plain: Any = None

    async def resolve(host: str, port: int, **options: Any) -> list[Any]:
        if host == "127.0.0.1":  # uvloop asks for what is an address, too
            return await plain(host, port, **options)
        there = ("127.0.0.1", port)
        dead = ("127.0.0.1", int(nowhere.rpartition(":")[2]))
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", each) for each in (dead, there)]

    async def call() -> int:
        nonlocal plain
        loop = asyncio.get_running_loop()
        plain, loop.getaddrinfo = loop.getaddrinfo, resolve  # type: ignore[method-assign]
        async with server:
            url = server.addresses[0].replace("127.0.0.1", "two-addresses.test")
            async with ClientProxy(url, telemetry=False) as client:
                return await client.send("sum", [1, 2], returns=int)

    with asyncio.Runner(loop_factory=loop) as runner:
        assert runner.run(call()) == 3


async def test_a_name_whose_addresses_all_refuse_says_why_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def resolve(*_: Any, **__: Any) -> list[Any]:
        addresses = [("127.0.0.1", free_port()), ("127.0.0.1", free_port())]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", each) for each in addresses]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
    async with aclosing(client_of("redis", "two-addresses.test:6379")) as client:
        with pytest.raises(ConnectError, match=r"two-addresses\.test:6379: Connection refused"):
            await client.connect()


@pytest.mark.parametrize("scheme", ["tcp", "http"])
async def test_what_can_be_no_name_is_nobody(scheme: str) -> None:
    async with aclosing(client_of(scheme, "a..b:1", policies=())) as client:
        with pytest.raises(ConnectError, match="no host's name"):
            await client.send("orders")


async def test_a_name_that_cannot_be_asked_for_now_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = Server("tcp://127.0.0.1:0")
    server.message_pattern("sum")(sum)
    refusals = 0

    async def resolve(host: str, port: int, **_: Any) -> list[Any]:
        nonlocal refusals
        if way.accepted and refusals < 3:
            refusals += 1
            raise RuntimeError("can't start new thread")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
    async with server, TcpProxy(int(server.addresses[0].rpartition(":")[2])) as way:
        async with client_of("tcp", f"a-name.test:{way.port}") as client:
            assert await client.send("sum", [1, 2]) == 3
            way.cut()
            await eventually(lambda: refusals == 3 and client.status == "connected")
            assert await client.send("sum", [1, 2]) == 3


async def test_a_dial_that_fails_in_an_odd_way_is_followed_by_another(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tries: list[object] = []
    changes: list[tuple[str, str]] = []

    async def dial() -> object:
        tries.append(object())
        if len(tries) in (1, 3, 4):
            raise LookupError("a fault in a library at x://user:secret@host")
        return tries[-1]

    link = Link[object](
        "x://host",
        dial,
        clock=FakeClock(autojump=True),
        notify=lambda event: changes.append((event.old, event.new)),  # type: ignore[union-attr]
    )
    with pytest.raises(LookupError):
        await link.get(inf)
    assert link.status == "idle"
    link.lost(await link.get(inf), "cut")
    await eventually(lambda: link.status == "connected")
    assert link.current is tries[4]
    assert caplog.text.count("x://host: dialling failed") == 1
    await link.aclose()
    assert changes == [
        ("idle", "connecting"), ("connecting", "idle"),
        ("idle", "connecting"), ("connecting", "connected"),
        ("connected", "reconnecting"), ("reconnecting", "connected"),
        ("connected", "closed"),
    ]  # fmt: skip


async def test_waits_between_dials_double_to_a_second_and_begin_anew_after_a_steady_time() -> None:
    clock = FakeClock(autojump=True)
    dialled: list[float] = []
    fails = 8

    async def dial() -> object:
        dialled.append(clock.now())
        if 1 < len(dialled) <= fails:
            raise ConnectError("refused")
        return object()

    link = Link[object]("x://host", dial, clock=clock, notify=lambda event: None)

    async def waits(steady: float) -> list[float]:
        """The gaps between the dials that follow a loss."""
        connection = await link.get(inf)
        await clock.sleep(steady)
        dialled[:] = [clock.now()]
        link.lost(connection, "cut")
        await eventually(lambda: link.status == "connected")
        return [after - before for before, after in pairwise(dialled)]

    first, *others = await waits(2.0)
    assert first == 0
    longest = [0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0]
    assert len(others) == len(longest)
    for gap, limit in zip(others, longest, strict=True):
        assert limit / 2 <= round(gap, 9) <= limit
    fails = 0
    (gap,) = await waits(0.5)  # a peer that accepts and closes is not dialled without a pause
    assert 0.5 <= gap <= 1.0
    assert await waits(2.0) == [0]


async def test_whoever_calls_while_a_link_comes_back_shares_its_dial() -> None:
    gate, dialled = asyncio.Event(), []

    async def dial() -> object:
        dialled.append(object())
        if len(dialled) == 2:
            raise ConnectError("refused")
        if len(dialled) == 3:
            await gate.wait()
        return dialled[-1]

    link = Link[object]("x://host", dial, clock=FakeClock(), notify=lambda event: None)
    link.lost(await link.get(inf), "cut")
    await eventually(lambda: len(dialled) == 2)
    call = asyncio.ensure_future(link.get(inf))  # ends the pause before the next dial
    await eventually(lambda: len(dialled) == 3)
    for _ in range(5):
        await asyncio.sleep(0)
    gate.set()
    assert await call is link.current is dialled[2]
    await eventually(lambda: link._keeper is None)
    assert (link.dials, len(dialled)) == (3, 3)


async def test_a_task_of_ours_is_kept_until_it_has_ended_and_in_no_callers_context() -> None:
    kept: set[asyncio.Task[Any]] = set()
    token = correlation_id.set("caller")
    seen: list[str | None] = []

    async def look() -> None:
        seen.append(correlation_id.get())

    task = spawn(look(), "look", kept)
    correlation_id.reset(token)
    assert kept == {task}
    await eventually(lambda: not kept)
    assert (task.get_name(), seen) == ("look", [None])


async def test_what_the_system_says_is_told_on_windows_too(monkeypatch: pytest.MonkeyPatch) -> None:
    # there os.strerror knows no number of a socket's, and the socket module has a table of its own
    monkeypatch.setattr(os, "strerror", lambda _: "Unknown error")
    table = {errno.ECONNREFUSED: "Connection refused."}
    monkeypatch.setattr(socket, "errorTab", table, raising=False)
    client = ClientProxy(f"tcp://127.0.0.1:{free_port()}", policies=(), telemetry=False)
    with pytest.raises(ConnectError, match="Connection refused"):
        await client.send("x")
    await client.aclose()
