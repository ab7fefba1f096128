"""A TCP proxy whose connections a test can cut, refuse, stall, slow down or swallow."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Iterator
from typing import Literal, Self

from tests.peers.process import free_port

Direction = Literal["up", "down", "both"]  # up: from the client to the target
CHUNK = 64 * 1024
RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER with no time: closing sends RST


class _Way:
    """One direction's faults, for all connections."""

    def __init__(self) -> None:
        self.delay = 0.0
        self.swallow = False
        self.flows = asyncio.Event()
        self.flows.set()
        self.cut_after: int | None = None
        self.forwarded = 0


class _Pair:
    """One client's connection and the one to the target."""

    def __init__(self, client: socket.socket, target: socket.socket) -> None:
        self.client = client
        self.target = target
        self.damaged = False  # bytes were swallowed: it must not go on
        self.ending = False
        self.task: asyncio.Task[None] | None = None

    def reset_on_close(self) -> None:
        for side in (self.client, self.target):
            with contextlib.suppress(OSError):  # closed already
                side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)


class TcpProxy:
    """``async with TcpProxy(port) as proxy: connect to proxy.port``; listens on 127.0.0.1.

    Faults are for everybody at once, those connected and those to come, until ``heal()``.
    """

    def __init__(self, target_port: int, *, target_host: str = "127.0.0.1") -> None:
        self.target = (target_host, target_port)
        self.host = "127.0.0.1"
        self.port = free_port()
        self.accepted = 0  # connections so far
        self._ways = {"up": _Way(), "down": _Way()}
        self._pairs: set[_Pair] = set()
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    async def __aenter__(self) -> Self:
        self.accept()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    @property
    def connections(self) -> int:
        """How many are open now."""
        return len(self._pairs)

    def forwarded(self, direction: Literal["up", "down"]) -> int:
        """How many bytes went through so far."""
        return self._ways[direction].forwarded

    async def wait_connections(self, count: int, timeout: float = 5.0) -> None:
        """Until exactly ``count`` connections are open."""
        async with asyncio.timeout(timeout):
            while len(self._pairs) != count:
                self._changed.clear()
                await self._changed.wait()

    # Faults.

    def cut(self) -> None:
        """Reset (RST) every connection, on both sides; new ones are accepted as before."""
        for pair in list(self._pairs):
            self._reset(pair)

    def cut_after(self, count: int, direction: Literal["up", "down"] = "down") -> None:
        """Let ``count`` more bytes through in that direction, then reset everything, once."""
        self._ways[direction].cut_after = count

    def refuse(self) -> None:
        """Connection attempts get ECONNREFUSED from now on; what is open stays."""
        if self._accepting is not None:
            self._accepting.cancel()
            self._accepting = None
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    def accept(self) -> None:
        """Listen (again), on the same port."""
        if self._listener is not None:
            return
        listener = socket.create_server((self.host, self.port), backlog=128)
        listener.setblocking(False)
        self._listener = listener
        self._accepting = asyncio.get_running_loop().create_task(self._accept(listener))

    def blackhole(self, direction: Direction = "both") -> None:
        """Take every byte and forward none. ``heal()`` resets the connections that lost some."""
        for way in self._choose(direction):
            way.swallow = True

    def stall(self, direction: Direction = "both") -> None:
        """Stop reading: the sender's buffers fill up; nothing is lost, ``heal()`` lets it flow."""
        for way in self._choose(direction):
            way.flows.clear()

    def delay(self, seconds: float, direction: Direction = "both") -> None:
        """Deliver every byte that much later, in order."""
        for way in self._choose(direction):
            way.delay = seconds

    def heal(self) -> None:
        """Undo stall, blackhole and delay, and listen again."""
        for way in self._ways.values():
            way.delay = 0.0
            way.swallow = False
            way.cut_after = None
            way.flows.set()
        for pair in [pair for pair in self._pairs if pair.damaged]:
            self._reset(pair)
        self.accept()

    async def aclose(self) -> None:
        self.refuse()
        tasks = [pair.task for pair in self._pairs if pair.task is not None]
        self.cut()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # let the cancelled accept task end

    def _choose(self, direction: Direction) -> Iterator[_Way]:
        return (way for name, way in self._ways.items() if direction in (name, "both"))

    def _reset(self, pair: _Pair) -> None:
        pair.reset_on_close()
        if pair.task is not None and not pair.ending:
            pair.ending = True  # a second cancel would interrupt the clean-up of the first
            pair.task.cancel()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            client, _ = await loop.sock_accept(listener)
            self.accepted += 1
            target = socket.socket()
            for side in (client, target):
                side.setblocking(False)
                side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pair = _Pair(client, target)
            self._pairs.add(pair)
            self._changed.set()
            pair.task = loop.create_task(self._serve(pair))

    async def _serve(self, pair: _Pair) -> None:
        try:
            try:
                await asyncio.get_running_loop().sock_connect(pair.target, self.target)
            except OSError:  # the target is down: so are we, to this client
                pair.reset_on_close()
                return
            pumps = [
                asyncio.create_task(self._pump(pair, pair.client, pair.target, self._ways["up"])),
                asyncio.create_task(self._pump(pair, pair.target, pair.client, self._ways["down"])),
            ]
            try:
                await asyncio.gather(*pumps)
            except OSError:  # one side was reset: pass it on
                pair.reset_on_close()
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        finally:
            pair.client.close()
            pair.target.close()
            self._pairs.discard(pair)
            self._changed.set()

    async def _pump(
        self, pair: _Pair, source: socket.socket, sink: socket.socket, way: _Way
    ) -> None:
        """Read on one side and hand over to a second task, so that delays do not add up."""
        loop = asyncio.get_running_loop()
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=64)
        writer = asyncio.create_task(self._write(pair, sink, way, waiting))
        try:
            while True:
                await way.flows.wait()
                data = await loop.sock_recv(source, CHUNK)
                await way.flows.wait()
                if way.swallow:
                    pair.damaged = True
                    if data:
                        continue
                    await asyncio.Event().wait()  # the end is swallowed too
                put = asyncio.create_task(waiting.put((loop.time() + way.delay, data)))
                await asyncio.wait([put, writer], return_when=asyncio.FIRST_COMPLETED)
                if writer.done():
                    put.cancel()
                    break
                if not data:
                    break
            await writer
        finally:
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)

    async def _write(
        self,
        pair: _Pair,
        sink: socket.socket,
        way: _Way,
        waiting: asyncio.Queue[tuple[float, bytes]],
    ) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due, data = await waiting.get()
            if due > loop.time():
                await asyncio.sleep(due - loop.time())
            if not data:
                sink.shutdown(socket.SHUT_WR)
                return
            cut = way.cut_after is not None and len(data) >= way.cut_after
            if way.cut_after is not None:
                data = data[: way.cut_after]
                way.cut_after = None if cut else way.cut_after - len(data)
            await loop.sock_sendall(sink, data)
            way.forwarded += len(data)
            if cut:
                self.cut()
                return
