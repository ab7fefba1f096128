"""A server and a client in one process: a request, a stream, an event, an error that travels."""

import asyncio
from collections.abc import AsyncIterator

from resilient_client import ClientProxy, RemoteError, Server

server = Server("memory://shop")


@server.message_pattern({"cmd": "total"})
async def total(prices: list[float]) -> float:
    if not prices:
        raise RemoteError("nothing to add up", code="E_EMPTY")
    return sum(prices)


@server.message_pattern("countdown")
async def countdown(start: int) -> AsyncIterator[int]:
    for number in range(start, 0, -1):
        yield number


@server.event_pattern("order_placed")
async def on_order_placed(order: dict[str, int]) -> None:
    print(f"order {order['id']} was placed")


async def main() -> None:
    async with server, ClientProxy("memory://shop") as shop:
        print("total:", await shop.send({"cmd": "total"}, [1.5, 2.5], returns=float))
        print("countdown:", [number async for number in shop.stream("countdown", 3)])
        receipt = await shop.emit("order_placed", {"id": 42})
        print(f"the event was {receipt.delivery}, by {receipt.receivers} handler")
        try:
            await shop.send({"cmd": "total"}, [])
        except RemoteError as error:
            print("refused:", error.message, error.code)


if __name__ == "__main__":
    asyncio.run(main())
