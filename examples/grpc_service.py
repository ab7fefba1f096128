"""gRPC without generated code: the .proto is read when the program starts; both ends in one.

It needs the extra: `pip install "resilient-client[grpc]"`.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from resilient_client import ClientProxy, RemoteError, Server

PROTO = """
syntax = "proto3";
package shop;
service Orders {
  rpc Get(OrderId) returns (Order);
  rpc Watch(OrderId) returns (stream Order);
}
message OrderId { int64 id = 1; }
message Order { int64 id = 1; string state = 2; repeated string item_names = 3; }
"""


@dataclass
class Order:
    id: int
    state: str
    itemNames: list[str]  # noqa: N815  (as Nest spells item_names)


def make(proto: Path) -> Server:
    server = Server("grpc://127.0.0.1:0", proto=proto)

    @server.message_pattern("shop.Orders/Get")
    async def get(payload: dict) -> Order:
        if payload["id"] != 7:
            raise RemoteError(payload={"code": 5, "message": f"no order {payload['id']}"})
        return Order(7, "paid", ["tea", "cup"])

    @server.message_pattern("shop.Orders/Watch")
    async def watch(payload: dict) -> AsyncIterator[dict]:
        for state in ("paid", "packed", "sent"):
            yield {"id": payload["id"], "state": state}

    return server


async def main(server: Server) -> None:
    async with server:
        url = server.addresses[0]
        async with ClientProxy(url) as orders:  # asks the server's reflection; or give it proto=
            print("got", await orders.send("shop.Orders/Get", {"id": 7}, returns=Order))
            async for order in orders.stream("Orders/Watch", {"id": 7}):
                print("now it is", order["state"])
            try:
                await orders.send("Orders/Get", {"id": 8})
            except RemoteError as error:
                print(error.code, error.message)


with tempfile.TemporaryDirectory() as folder:
    proto = Path(folder, "shop.proto")
    proto.write_text(PROTO)
    asyncio.run(main(make(proto)))
