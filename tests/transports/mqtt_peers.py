"""A broker that plays a script."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from resilient_client import ClientProxy
from resilient_client.transports.mqtt._codec import (
    PUBLISH,
    Delivery,
    PacketReader,
    read_properties,
    varint,
)
from tests.peers.script import scripted_peer

CONNACK = b"\x20\x03\x00\x00\x00"
Script = Callable[["Peer"], Awaitable[None]]


class Peer:
    """One connection, as a broker's script sees it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._packets = PacketReader(1 << 20)
        self._waiting: list[tuple[int, bytes]] = []

    async def packet(self, kind: int) -> bytes:
        """The body of the next packet of this kind."""
        while True:
            while self._waiting:
                first, body = self._waiting.pop(0)
                if first & 0xF0 == kind:
                    return body
            data = await self._reader.read(4096)
            if not data:
                raise ConnectionError
            room = self._packets.get_buffer(-1)
            room[: len(data)] = data
            self._waiting += self._packets.buffer_updated(len(data))

    async def message(self) -> tuple[Delivery, dict[int, Any]]:
        body = await self.packet(PUBLISH)
        size = int.from_bytes(body[:2], "big")
        return Delivery(0x32, body, 5), read_properties(body, 2 + size + 2)[0]

    def write(self, data: bytes) -> None:
        self._writer.write(data)

    async def welcome(self, connack: bytes = CONNACK) -> None:
        await self.packet(0x10)
        self.write(connack)

    async def subscribed(self, code: int | None = None, more: bytes = b"") -> None:
        """Answer a SUBSCRIBE: with this code, or the quality of service that was asked for."""
        body = await self.packet(0x80)
        codes, at = bytearray(), read_properties(body, 2)[1]
        while at < len(body):
            at += 3 + int.from_bytes(body[at : at + 2], "big")
            codes.append(body[at - 1] & 3 if code is None else code)
        answer = body[:2] + varint(len(more)) + more + codes
        self.write(b"\x90" + varint(len(answer)) + answer)


@asynccontextmanager
async def broker(script: Script) -> AsyncIterator[str]:
    """A broker that plays this script on every connection; its URL."""
    async with scripted_peer(lambda reader, writer: script(Peer(reader, writer))) as port:
        yield f"mqtt://127.0.0.1:{port}"


@asynccontextmanager
async def scripted_client(script: Script, **options: Any) -> AsyncIterator[ClientProxy]:
    async with broker(script) as url:
        client = ClientProxy(url, policies=(), telemetry=False, **options)
        try:
            yield client
        finally:
            await client.aclose()
