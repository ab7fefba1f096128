"""The same over TCP, on the wire that a NestJS service speaks; both ends in one program."""

import asyncio
from dataclasses import dataclass

from resilient_client import ClientProxy, Context, NoHandlerError, Server

# Port 0 is any free port; a service of yours says which: Server("tcp://0.0.0.0:3001").
server = Server("tcp://127.0.0.1:0")


@dataclass
class Order:
    id: int
    items: list[str]


@server.message_pattern("orders.get")
async def get_order(order_id: int, context: Context) -> Order:
    print(f"asked for order {order_id}, {context.remaining:.0f} s left")
    return Order(order_id, ["tea", "cup"])


async def main() -> None:
    async with server:
        url = server.addresses[0]  # Nest: { transport: Transport.TCP, options: { port } }
        async with ClientProxy(url) as orders:
            order = await orders.send("orders.get", 7, returns=Order, timeout=5)
            print("got", order)
            try:
                await orders.send("orders.delete", 7)
            except NoHandlerError as error:
                print("as Nest says it:", error.message)
            health = await orders.ping()
            print("reachable:", health.reachable, "- connection:", orders.status)


if __name__ == "__main__":
    asyncio.run(main())
