"""One program on every transport: `python examples/any_transport.py [URL]`.

memory://shop, tcp://127.0.0.1:0, http://127.0.0.1:0, grpc://127.0.0.1:0, and with a broker
redis://, nats://, amqp://, mqtt://, kafka://; an error names the extra that one needs. Nothing but
the URL changes, and the options that a transport cannot do without.
"""

import asyncio
import sys
from collections.abc import AsyncIterator

from resilient_client import ClientProxy, Server

NEEDED = {
    "amqp": {"queue": "shop", "durable": False},  # RabbitMQ: where requests and events go
    "kafka": {"group": "shop"},  # the servers that share the work
}


async def main(url: str) -> None:
    options = NEEDED.get(url.partition("://")[0], {})
    server = Server(url, **options)
    heard = asyncio.Event()

    @server.message_pattern("shop.total")
    async def total(prices: list[int]) -> int:
        return sum(prices)

    @server.message_pattern("shop.countdown")
    async def countdown(start: int) -> AsyncIterator[int]:
        for left in range(start, 0, -1):
            yield left

    @server.event_pattern("shop.sold")
    async def sold(article: dict) -> None:
        print("sold:", article["name"])
        heard.set()

    async with server, ClientProxy(server.addresses[0], **options) as shop:
        print("total:", await shop.send("shop.total", [1, 2, 3], returns=int))
        print("countdown:", [left async for left in shop.stream("shop.countdown", 3, returns=int)])
        receipt = await shop.emit("shop.sold", {"name": "tea"})
        await heard.wait()
        print("the event was", receipt.delivery)


asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "memory://shop"))
