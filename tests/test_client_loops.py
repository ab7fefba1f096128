"""A ClientProxy belongs to the event loop of its first use, until that loop has closed."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import uvloop
from pybreaker import CircuitMemoryStorage

from resilient_client import (
    Bulkhead,
    CircuitBreaker,
    ClientProxy,
    ConfigurationError,
    ConnectError,
    Retry,
    RetryBudget,
    Server,
    standard,
)
from resilient_client.testing import ScriptedTransport
from tests.server_thread import BOUND, Served, serving
from tests.test_sync import in_child, needs_fork, until

Factory = Callable[[], asyncio.AbstractEventLoop]


@pytest.fixture(params=["tcp", "memory"])
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    url = "tcp://127.0.0.1:0" if request.param == "tcp" else "memory://loops"
    with serving(url) as server:
        yield server


@pytest.fixture
def tcp() -> Iterator[Served]:
    with serving() as server:
        yield server


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def factory(request: pytest.FixtureRequest) -> Factory:
    return request.param  # type: ignore[no-any-return]


@contextlib.contextmanager
def connections_left_open() -> Iterator[None]:
    """asyncio says so of a socket whose loop was closed before it, as it should."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            yield
        finally:
            gc.collect()


def on(factory: Factory, coroutine: Any) -> Any:
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(coroutine)


@pytest.fixture
def elsewhere() -> Iterator[asyncio.AbstractEventLoop]:
    """Another loop, running in another thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join(BOUND)
    loop.close()


def test_another_live_loop_is_refused_and_told_what_to_use(
    served: Served, elsewhere: asyncio.AbstractEventLoop
) -> None:
    client = ClientProxy(served.url, telemetry=False)

    async def first() -> None:
        assert await client.send("sum", [1]) == 1

    async def consume() -> None:
        async for _ in client.stream("count", 1):
            pass

    asyncio.run_coroutine_threadsafe(first(), elsewhere).result(BOUND)
    for call in (
        lambda: client.send("sum", [1]),
        lambda: client.emit("news", 1),
        client.ping,
        client.connect,
        client.aclose,
        consume,
    ):
        with pytest.raises(ConfigurationError, match="another event loop") as caught:
            asyncio.run(call())  # type: ignore[operator]
        assert "SyncClientProxy" in caught.value.hint
    asyncio.run_coroutine_threadsafe(first(), elsewhere).result(BOUND)  # it goes on over there
    asyncio.run_coroutine_threadsafe(client.aclose(), elsewhere).result(BOUND)


def test_after_its_loop_has_closed_it_connects_anew(served: Served, factory: Factory) -> None:
    client = ClientProxy(served.url, telemetry=False)

    async def use() -> list[Any]:
        items = [item async for item in client.stream("count", 3)]
        await client.emit("news", 1)
        return [await client.send("sum", [1, 2], returns=int), items, client.status]

    with connections_left_open():
        for _ in range(3):
            assert on(factory, use()) == [3, [0, 1, 2], "connected"]
            assert client.status == "idle"
        on(factory, client.aclose())
    assert client.status == "closed"
    with pytest.raises(ConnectError, match="closed"):
        asyncio.run(client.send("sum", [1]))


def test_a_client_over_a_client_of_the_users_stays_closed_in_another_loop_too() -> None:
    answers = httpx.MockTransport(lambda request: httpx.Response(200, json=7))
    client = ClientProxy(
        "http://peer.invalid", client=httpx.AsyncClient(transport=answers), telemetry=False
    )

    async def use() -> None:
        assert await client.send("GET /x") == 7
        await client.aclose()

    asyncio.run(use())
    with pytest.raises(ConnectError, match="closed"):
        asyncio.run(client.send("GET /x"))
    assert client.status == "closed"


def test_nothing_of_the_dead_loop_is_left(tcp: Served, factory: Factory) -> None:
    client = ClientProxy(tcp.url, telemetry=False)

    async def use() -> None:
        await client.send("sum", [1])

    with connections_left_open():
        for _ in range(3):
            on(factory, use())
            gc.collect()
        on(factory, client.aclose())
    until(lambda: tcp.connections() == 0)


def test_entering_again_on_a_second_loop(served: Served, factory: Factory) -> None:
    client = ClientProxy(served.url, telemetry=False)

    async def use() -> None:
        await client.connect()
        assert await client.send("sum", [1]) == 1

    with connections_left_open():
        on(factory, use())
        on(factory, use())
        on(factory, client.aclose())


def test_a_call_cancelled_with_its_loop_leaves_no_permit_behind(
    served: Served, factory: Factory
) -> None:
    client = ClientProxy(served.url, policies=[Bulkhead(1), CircuitBreaker()], telemetry=False)

    async def leave_pending() -> None:
        pending = asyncio.ensure_future(client.send("wait", 20))
        while not served.waiting.is_set():
            await asyncio.sleep(0.005)
        assert not pending.done()

    async def use() -> int:
        return await client.send("sum", [1], returns=int)

    with connections_left_open():
        on(factory, leave_pending())
        assert on(factory, use()) == 1
        on(factory, client.aclose())


def test_a_loop_closed_with_calls_pending_leaves_no_permit_behind(tcp: Served) -> None:
    """Without asyncio.run, which cancels them first."""
    client = ClientProxy(tcp.url, policies=[Bulkhead(1), CircuitBreaker()], telemetry=False)

    async def until_waiting() -> None:
        while not tcp.waiting.is_set():
            await asyncio.sleep(0.005)

    loop = asyncio.new_event_loop()
    pending = loop.create_task(client.send("wait", 20))
    loop.run_until_complete(until_waiting())
    with connections_left_open():
        loop.close()
        assert asyncio.run(client.send("sum", [1], returns=int)) == 1
        asyncio.run(client.aclose())
        pending._log_destroy_pending = False  # type: ignore[attr-defined]
        pending.get_coro().close()  # type: ignore[union-attr]
        del pending


def test_a_loop_that_closed_while_reconnecting_does_not_matter(factory: Factory) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    client = ClientProxy(f"tcp://127.0.0.1:{address[1]}", policies=(), telemetry=False)

    async def lose() -> None:
        await client.connect()
        accepted, _ = listener.accept()
        listener.close()
        accepted.close()
        while client.status != "reconnecting":
            await asyncio.sleep(0.005)

    with connections_left_open():
        on(factory, lose())
        with serving(f"tcp://127.0.0.1:{address[1]}"):

            async def use() -> int:
                return await client.send("sum", [1], returns=int)

            assert on(factory, use()) == 1
            on(factory, client.aclose())


def test_the_breaker_keeps_its_state_and_its_identity(served: Served) -> None:
    client = ClientProxy(served.url, telemetry=False)
    breaker = client.circuit_breaker

    async def use() -> Any:
        return await client.send("sum", [1])

    with connections_left_open():
        assert asyncio.run(use()) == 1
        breaker.open()
        with pytest.raises(Exception, match="open"):
            asyncio.run(use())
        assert client.circuit_breaker is breaker
        breaker.close()
        assert asyncio.run(use()) == 1
        asyncio.run(client.aclose())


def test_several_endpoints_keep_their_breakers(served: Served) -> None:
    client = ClientProxy(
        [served.url, "memory://nobody"]
        if "memory" in served.url
        else [served.url, "tcp://127.0.0.1:1"],
        telemetry=False,
    )
    before = client.circuit_breakers

    async def use() -> Any:
        return await client.send("sum", [1])

    with connections_left_open():
        for _ in range(3):
            assert asyncio.run(use()) == 1
        asyncio.run(client.aclose())
    assert client.circuit_breakers == before
    assert all(client.circuit_breakers[url] is before[url] for url in before)


def test_an_object_shared_by_clients_of_two_live_loops_is_refused(
    served: Served, elsewhere: asyncio.AbstractEventLoop
) -> None:
    for shared in (
        [CircuitBreaker()],
        [Retry(budget=RetryBudget())],
    ):
        here = ClientProxy(served.url, policies=shared, telemetry=False)
        there = ClientProxy(served.url, policies=shared, telemetry=False)
        asyncio.run_coroutine_threadsafe(there.ping(), elsewhere).result(BOUND)
        with pytest.raises(ConfigurationError, match="event loop"):
            asyncio.run(here.ping())
        asyncio.run_coroutine_threadsafe(there.aclose(), elsewhere).result(BOUND)


def test_a_memory_server_whose_loop_has_closed_is_not_there_any_more() -> None:
    server = Server("memory://gone", telemetry=False)
    server.message_pattern("x")(lambda: 1)
    asyncio.run(server.start())

    async def use() -> None:
        client = ClientProxy("memory://gone", policies=(), telemetry=False)
        for call in (client.send("x"), client.emit("x"), client.connect()):
            with pytest.raises(ConnectError, match="no server"):
                await call
        heir = Server("memory://gone", telemetry=False, grace=0.1)
        heir.message_pattern("x")(lambda: 2)
        async with heir:
            assert await client.send("x") == 2

    asyncio.run(use())


def test_a_client_that_is_dropped_with_its_loop_ends_the_mirror_of_its_breaker() -> None:
    async def use(client: ClientProxy) -> None:
        assert await client.send("x") == 1

    def mirrors() -> list[str]:
        return [each.name for each in threading.enumerate() if "circuit-storage" in each.name]

    breaker = CircuitBreaker(state_storage=CircuitMemoryStorage("closed"))
    for _ in range(2):
        client = ClientProxy(ScriptedTransport([1]), policies=[breaker], telemetry=False)
        asyncio.run(use(client))
        assert len(mirrors()) == 1
        del client
        gc.collect()
        until(lambda: not mirrors())


@needs_fork
def test_in_a_forked_child_it_connects_anew_without_touching_the_parents_connection(
    tcp: Served,
) -> None:
    client = ClientProxy(tcp.url, policies=standard(), telemetry=False)
    loop = asyncio.new_event_loop()

    async def use() -> int:
        return await client.send("sum", [1], returns=int)

    async def use_and_close() -> list[Any]:
        answer = await use()
        await client.aclose()
        return [answer, client.status]

    try:
        assert loop.run_until_complete(use()) == 1
        assert in_child(lambda: client.status) == "'idle'"
        assert in_child(lambda: asyncio.run(use_and_close())) == "[1, 'closed']"
        assert in_child(lambda: asyncio.run(client.aclose())) == "None"
        until(lambda: tcp.connections() == 1)
        assert loop.run_until_complete(use()) == 1
        loop.run_until_complete(client.aclose())
    finally:
        loop.close()


def test_a_client_dropped_in_a_loop_that_ends_at_once_is_not_kept(
    tcp: Served, factory: Factory, caplog: pytest.LogCaptureFixture
) -> None:
    """Without asyncio.run, which would run the loop until what closes the client has ended."""
    breaker = CircuitBreaker()
    dropped: list[weakref.ref[Any]] = []

    async def use() -> None:
        client = ClientProxy(tcp.url, policies=[breaker], telemetry=False)
        assert await client.send("sum", [1, 2], returns=int) == 3
        async for _ in (stream := client.stream("count", 50)):
            break
        dropped.extend((weakref.ref(client), weakref.ref(stream)))

    with connections_left_open():
        for _ in range(3):
            loop = factory()
            loop.run_until_complete(use())
            loop.close()
            del loop
            gc.collect()
        assert [each() for each in dropped] == [None] * 6
    assert not breaker._heard_by.observers
    assert not caplog.records
    until(lambda: tcp.connections() == 0)


def test_a_client_dropped_as_its_loop_ends_ends_the_mirror_of_its_breaker() -> None:
    breaker = CircuitBreaker(state_storage=CircuitMemoryStorage("closed"))

    async def use() -> None:
        client = ClientProxy(ScriptedTransport([1]), policies=[breaker], telemetry=False)
        assert await client.send("x") == 1

    loop = asyncio.new_event_loop()
    loop.run_until_complete(use())
    loop.close()
    del loop
    gc.collect()
    until(lambda: not [each for each in threading.enumerate() if "circuit-storage" in each.name])
