"""A server with a loop and a thread of its own, for tests of clients that have no loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

from resilient_client import Context, RemoteError, Server

BOUND = 10.0


class Served:
    """A running server: its URL, and what its handlers saw."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.url = ""
        self.seen: list[Any] = []
        self.contexts: list[Context] = []
        self.cancelled = threading.Event()
        self.waiting = threading.Event()
        self.streaming = 0
        self.ready = threading.Event()
        self.loop: asyncio.AbstractEventLoop
        self.stopping: asyncio.Event
        self.error: BaseException | None = None

    def connections(self) -> int:
        return len(self.server._listeners[0].streams)  # type: ignore[attr-defined]


def register(server: Server, served: Served) -> None:
    @server.message_pattern("sum")
    async def add(numbers: list[int], context: Context) -> int:
        served.contexts.append(context)
        return sum(numbers)

    @server.message_pattern("echo")
    async def echo(payload: Any) -> Any:
        return payload

    @server.message_pattern("refuse")
    async def refuse(payload: Any) -> Any:
        raise RemoteError("not like this")

    @server.message_pattern("wait")
    async def wait(seconds: float, context: Context) -> str:
        served.contexts.append(context)
        served.waiting.set()
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            served.cancelled.set()
            raise
        return "waited"

    @server.message_pattern("count")
    async def count(n: int) -> AsyncIterator[int]:
        served.streaming += 1
        try:
            for i in range(n):
                if i >= 100:
                    await asyncio.sleep(0.005)  # time to be cancelled before the end
                yield i
        except (asyncio.CancelledError, GeneratorExit):
            served.cancelled.set()
            raise
        finally:
            served.streaming -= 1

    @server.message_pattern("burst")
    async def burst(n: int) -> AsyncIterator[int]:
        for i in range(n):
            yield i

    @server.message_pattern("break")
    async def broken(n: int) -> AsyncIterator[int]:
        for i in range(n):
            yield i
        raise RemoteError("no more")

    @server.event_pattern("news")
    async def news(payload: Any, context: Context) -> None:
        served.contexts.append(context)
        served.seen.append(payload)


@contextmanager
def serving(url: str = "tcp://127.0.0.1:0") -> Iterator[Served]:
    server = Server(url, telemetry=False, grace=0.1)
    served = Served(server)
    register(server, served)

    async def main() -> None:
        served.loop = asyncio.get_running_loop()
        served.stopping = asyncio.Event()
        async with server:
            served.url = server.addresses[0]
            served.ready.set()
            await served.stopping.wait()

    def run() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            served.error = error
        finally:
            served.ready.set()

    thread = threading.Thread(target=run, name="server", daemon=True)
    thread.start()
    assert served.ready.wait(BOUND)
    if served.error is not None:
        raise served.error
    try:
        yield served
    finally:
        served.loop.call_soon_threadsafe(served.stopping.set)
        thread.join(BOUND)
        assert not thread.is_alive()
        assert served.error is None
