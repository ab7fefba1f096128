"""The cuttable proxy: each fault is what it says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.peers.proxy import TcpProxy


@asynccontextmanager
async def echo_through_proxy() -> AsyncIterator[TcpProxy]:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            writer.transport.abort()
        finally:
            writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    try:
        async with TcpProxy(server.sockets[0].getsockname()[1]) as proxy:
            yield proxy
    finally:
        server.close()
        await asyncio.sleep(0.05)  # let the echoes see the end


async def connect(proxy: TcpProxy) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(proxy.host, proxy.port)


async def ask(pair: tuple[asyncio.StreamReader, asyncio.StreamWriter], data: bytes) -> bytes:
    reader, writer = pair
    writer.write(data)
    async with asyncio.timeout(2):
        return await reader.readexactly(len(data))


async def test_bytes_and_the_end_pass_through_in_both_directions() -> None:
    async with echo_through_proxy() as proxy:
        reader, writer = pair = await connect(proxy)
        big = bytes(range(256)) * 4000
        assert await ask(pair, big) == big
        assert proxy.forwarded("up") == proxy.forwarded("down") == len(big)
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(), 2) == b""
        writer.close()
        await proxy.wait_connections(0)


async def test_cut_resets_what_is_open_and_new_connections_work() -> None:
    async with echo_through_proxy() as proxy:
        pair = await connect(proxy)
        await ask(pair, b"x")
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(pair[0].read(1), 2)
        pair[1].close()
        again = await connect(proxy)
        assert await ask(again, b"y") == b"y"
        again[1].close()


async def test_refuse_keeps_what_is_open_and_accept_takes_the_same_port() -> None:
    async with echo_through_proxy() as proxy:
        pair = await connect(proxy)
        await ask(pair, b"x")
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            await connect(proxy)
        assert await ask(pair, b"z") == b"z"
        pair[1].close()
        port = proxy.port
        proxy.accept()
        assert proxy.port == port
        again = await connect(proxy)
        assert await ask(again, b"y") == b"y"
        again[1].close()


async def test_a_blackhole_takes_bytes_and_healing_resets_who_lost_some() -> None:
    async with echo_through_proxy() as proxy:
        pair, quiet = await connect(proxy), await connect(proxy)
        await ask(pair, b"x")
        await ask(quiet, b"x")
        proxy.blackhole("down")
        pair[1].write(b"lost")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pair[0].read(1), 0.2)
        proxy.heal()
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(pair[0].read(1), 2)
        assert await ask(quiet, b"y") == b"y"
        pair[1].close()
        quiet[1].close()


async def test_a_stall_loses_nothing() -> None:
    async with echo_through_proxy() as proxy:
        pair = await connect(proxy)
        await ask(pair, b"x")
        proxy.stall()
        pair[1].write(b"later")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pair[0].read(1), 0.2)
        proxy.heal()
        assert await asyncio.wait_for(pair[0].readexactly(5), 2) == b"later"
        pair[1].close()


async def test_a_delay_counts_once_for_bytes_sent_together() -> None:
    async with echo_through_proxy() as proxy:
        pair = await connect(proxy)
        await ask(pair, b"x")
        proxy.delay(0.5, "up")
        started = time.monotonic()
        for _ in range(5):
            pair[1].write(b"abc")
            await asyncio.sleep(0.01)
        async with asyncio.timeout(5):
            await pair[0].readexactly(15)
        assert 0.5 <= time.monotonic() - started < 2.5
        pair[1].close()


async def test_cut_after_resets_in_the_middle_of_a_message() -> None:
    async with echo_through_proxy() as proxy:
        pair = await connect(proxy)
        await ask(pair, b"x")
        proxy.cut_after(3)
        pair[1].write(b"abcdef")
        received = b""
        with pytest.raises(ConnectionResetError):
            async with asyncio.timeout(2):
                while True:
                    received += await pair[0].read(10)
        assert b"abc".startswith(received)  # RST may overtake what was in the kernel's buffers
        pair[1].close()


async def test_a_target_that_is_down_resets_the_client() -> None:
    async with TcpProxy(1) as proxy:
        reader, writer = await connect(proxy)
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(1), 2)
        writer.close()
