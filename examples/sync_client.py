"""Calling from code without an event loop: scripts, Flask, Django, Celery, a REPL."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from resilient_client import RemoteError, Server, SyncClientProxy

server = Server("tcp://127.0.0.1:0")


@server.message_pattern("square")
async def square(number: int) -> int:
    if number > 100:
        raise RemoteError("too big")
    return number * number


@server.message_pattern("count")
async def count(n: int) -> AsyncIterator[int]:
    for number in range(n):
        yield number


@contextmanager
def served() -> Iterator[str]:
    """The server in a thread of its own, for it needs an event loop; here is its address."""
    started = threading.Event()
    ended = asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        async with server:
            started.set()
            await ended.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    started.wait(10)
    try:
        yield server.addresses[0]
    finally:
        loops[0].call_soon_threadsafe(ended.set)
        thread.join()


with served() as url, SyncClientProxy(url) as numbers:
    print("square:", numbers.send("square", 12, returns=int))
    print("stream:", list(numbers.stream("count", 4)))
    with ThreadPoolExecutor(4) as pool:  # one client, any number of threads
        print("from four threads:", list(pool.map(lambda n: numbers.send("square", n), range(5))))
    try:
        numbers.send("square", 1000)
    except RemoteError as error:
        print("the same errors:", error.message)
