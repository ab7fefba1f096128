"""A transport of one's own: Nest's packets, one a line, over a Unix domain socket."""

import asyncio
import contextlib
import logging
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

from resilient_client import (
    Call,
    ClientProxy,
    ConnectError,
    ConnectionLost,
    Message,
    ProtocolError,
    Receipt,
    Reply,
    Server,
)
from resilient_client.testing import check_transport
from resilient_client.transports import (
    CANCEL_ROUTE,
    App,
    Environment,
    LinkedTransport,
    PendingReplies,
    Slots,
    Target,
    answer,
    cancel_packet,
    deliver,
    event_packet,
    pattern_json,
    read_request,
    read_response,
    request_packet,
)

LINE = 32 * 1024 * 1024  # bytes of one packet: a payload and what stands around it


class Connection:
    """The client's end of one socket: the calls that wait for it, and who reads its answers."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.replies: PendingReplies
        self.reading: asyncio.Task[None]

    def write(self, packet: bytes) -> None:
        self.writer.write(packet + b"\n")  # compact JSON holds no line end


class UnixTransport(LinkedTransport[Connection]):
    """The client's end. The base class encodes and decodes payloads, `Link` keeps a connection."""

    def __init__(self, path: Path, env: Environment) -> None:
        super().__init__(Target(f"unix://{path}"), env)
        self._path = path
        self._ids = count(1)

    async def _dial(self) -> Connection:
        try:
            streams = await asyncio.open_unix_connection(self._path, limit=LINE)
        except OSError as error:  # the library's errors become ours here, all of them
            raise ConnectError(f"{self.endpoint}: {error.strerror}") from error
        connection = Connection(*streams)
        connection.replies = PendingReplies(self._clock, self._tally)
        connection.reading = asyncio.create_task(self._read(connection))
        return connection

    async def _read(self, connection: Connection) -> None:
        reason = "the peer closed the connection"
        try:
            while line := await connection.reader.readline():
                response = read_response(line)
                deliver(connection.replies, response.id, response, self._codec)
        except (OSError, ValueError, ProtocolError) as error:  # ValueError: a line is too long
            reason = str(error)
        # Not where it is cancelled: then the client closes, or its event loop ends.
        connection.writer.close()
        connection.replies.fail_all(lambda: ConnectionLost(reason))
        self._link.lost(connection, reason)

    async def request(self, call: Call) -> Reply:
        connection = await self._link.get(call.connect_deadline)
        key = str(next(self._ids))
        packet = request_packet(pattern_json(call.pattern), call.body, call.metadata, key)

        def write() -> None:
            call.sent = True  # just before it is written: from here on it may have been executed
            connection.write(packet)

        # It fails at call.attempt_deadline; who is cancelled, or leaves a stream, tells the peer.
        leave = partial(self._leave, connection, key)
        return await connection.replies.exchange(key, call, write, leave)

    def _leave(self, connection: Connection, key: str) -> None:
        """Nobody waits any more: the handler need not go on."""
        if not connection.writer.is_closing():
            connection.write(cancel_packet(key))

    async def publish(self, call: Call) -> Receipt:
        connection = await self._link.get(call.connect_deadline)
        call.sent = True
        connection.write(event_packet(pattern_json(call.pattern), call.body, call.metadata))
        return Receipt("written")  # no more is known

    async def aclose(self) -> None:
        connection = await self._link.aclose()
        if connection is not None:
            connection.replies.fail_all(lambda: ConnectionLost("the client was closed"))
            with contextlib.suppress(OSError):
                await connection.writer.drain()  # what was written has left
            connection.reading.cancel()
            await asyncio.wait({connection.reading})
            connection.writer.close()


class UnixListener:
    """The server's end: messages in, replies out."""

    def __init__(self, path: Path, app: App) -> None:
        self.address = f"unix://{path}"
        self._path = path
        self._app = app
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._accept, self._path, limit=LINE)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        may_read = asyncio.Event()
        may_read.set()
        slots = self._app.slots(may_read.clear, may_read.set)  # full: events wait, and so do we

        async def write(packet: bytes) -> None:
            writer.write(packet + b"\n")
            await writer.drain()

        try:
            while line := await reader.readline():
                self._take(line, slots, write)
                await may_read.wait()
        except (OSError, ValueError, ProtocolError):
            return  # the caller has gone, or has to: its handlers are cancelled below
        finally:
            slots.close()
            writer.close()

    def _take(self, line: bytes, slots: Slots, write: Callable[[bytes], Awaitable[None]]) -> None:
        request = read_request(line)
        if request.route == CANCEL_ROUTE:
            slots.cancel(request.data)
            return

        async def respond(reply: Reply) -> None:
            await answer(reply, request.id, write, self._app.codec)

        message = Message(
            request.route or "",
            request.data,
            request.metadata,
            request.id,
            received=self._app.clock.now(),
        )
        self._app.accept(message, respond if request.id else None, slots, "unix")

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()

    async def aclose(self) -> None:
        await self.stop()
        for task in tuple(self._connections):
            task.cancel()
        if self._connections:
            await asyncio.wait(self._connections)
        self._path.unlink(missing_ok=True)


async def main() -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "service.sock"
        server = Server(partial(UnixListener, path))

        @server.message_pattern("sum")
        async def add(numbers: list[int]) -> int:
            return sum(numbers)

        async with server, ClientProxy(partial(UnixTransport, path), name="sums") as client:
            print("sum:", await client.send("sum", [1, 2, 3], returns=int))
            print(client)

        # One check makes a handler fail on purpose; the server's log would show how.
        logging.getLogger("resilient_client.server").setLevel(logging.CRITICAL)
        checks = await check_transport(partial(UnixListener, path), partial(UnixTransport, path))
        print("passed:", ", ".join(checks))


if __name__ == "__main__":
    if sys.platform == "win32":
        sys.exit("Unix domain sockets: Linux and macOS")
    asyncio.run(main())
