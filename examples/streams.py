"""Streams: values as they come, an error after some of them, and leaving early."""

import asyncio
from collections.abc import AsyncIterator

from resilient_client import ClientProxy, RemoteError, ReplyTimeout, Server

server = Server("memory://ticker")


@server.message_pattern("ticks")
async def ticks(pause: float) -> AsyncIterator[int]:
    number = 0
    try:
        while True:
            yield number
            number += 1
            await asyncio.sleep(pause)
    finally:
        print("  the handler was stopped")


@server.message_pattern("torn")
async def torn() -> AsyncIterator[str]:
    yield "one"
    yield "two"
    raise RemoteError("the source broke")


async def main() -> None:
    async with server, ClientProxy("memory://ticker") as ticker:
        print("leave after three:")
        async with ticker.stream("ticks", 0.01, returns=int) as items:  # stopped when this ends
            async for item in items:
                print(" ", item)
                if item == 2:
                    break
        await asyncio.sleep(0.05)

        print("an error after some values comes after them:")
        try:
            async for text in ticker.stream("torn"):
                print(" ", text)
        except RemoteError as error:
            print("  then:", error.message)

        print("a stream that falls silent is not waited for:")
        try:
            async for item in ticker.stream("ticks", 60, idle_timeout=0.1):
                print(" ", item)
        except ReplyTimeout as error:
            print("  then:", error.args[0])
        await asyncio.sleep(0.05)


if __name__ == "__main__":
    asyncio.run(main())
