"""A connection that reads too slowly for its broker: ended, told, and made again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from resilient_client import ClientProxy, ConnectionLost, Server
from tests.peers.proxy import TcpProxy
from tests.waiting import eventually

BACK = ["reconnecting", "connected"]


async def ended_told_and_back(broker: Any, sign: str) -> None:
    """First the server's connection, then the client's: what was under way is lost, told, no more.

    Args:
        broker: drops a slow reader soon.
        sign: what it then writes into its log.
    """
    told: list[Any] = []
    heard: list[str] = []

    async def slow(proxy: TcpProxy, load: Callable[[], Any]) -> None:
        """Let nobody read until the broker has dropped that connection."""
        told.clear()
        already = broker.log.count(sign)
        proxy.stall("down")
        async with asyncio.timeout(20):
            while broker.log.count(sign) == already:
                await load()
        proxy.heal()
        await eventually(lambda: [each.new for each in told if hasattr(each, "new")] == BACK)

    def client_of(url: str, **options: Any) -> ClientProxy:
        return ClientProxy(url, policies=(), telemetry=False, **options)

    async with TcpProxy(broker.port) as servers, TcpProxy(broker.port) as clients:
        url = f"{broker.url.partition('://')[0]}://127.0.0.1:{{}}".format
        server = Server(url(servers.port), telemetry=False, observers=[told.append], grace=0.5)
        server.message_pattern("big")(lambda size: "x" * size)
        server.event_pattern("event")(lambda text: heard.append(text[:5]))
        client = client_of(url(clients.port), observers=[told.append])
        async with server, client, client_of(broker.url) as other:
            await slow(servers, lambda: other.emit("event", "early" + "x" * 500_000))
            heard.clear()
            while "after" not in heard:
                await other.emit("event", "after")
                await asyncio.sleep(0.05)
            pending: list[asyncio.Future[Any]] = []
            assert await client.send("big", 1) == "x"  # where replies come is listened to

            async def ask() -> None:
                pending.append(asyncio.ensure_future(client.send("big", 500_000, timeout=60)))
                await asyncio.sleep(0.02)

            await slow(clients, ask)
            lost = await asyncio.gather(*pending, return_exceptions=True)
            errors = [each for each in lost if not isinstance(each, str)]  # some did arrive
            assert errors
            assert all(isinstance(each, ConnectionLost) and each.sent for each in errors), errors
            assert await client.send("big", 1, timeout=5) == "x"
