"""The connections to one server, exact under cancellation.

A request that is given up closes its connection: the server learns that nobody waits, and the pool
loses nothing. (httpx's own pool loses a place for ever when a request is cancelled at the wrong
moment, and walks over all its requests at each one.)
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from typing import TYPE_CHECKING

from resilient_client.clock import Deadlines, call_later
from resilient_client.errors import (
    ConnectError,
    ConnectionLost,
    DeadlineExceeded,
    Overloaded,
    ResilientClientError,
    client_closed,
)
from resilient_client.transports._link import DIAL_TIMEOUT
from resilient_client.transports._socket import connect, not_connected
from resilient_client.transports.http._connection import Connection

if TYPE_CHECKING:
    from resilient_client.clock import Clock
    from resilient_client.message import Call


_TURNS = 3  # of a loop, in which it notices what has arrived on a connection


class Pool:
    """The connections to one server.

    Args:
        limit: connections at once, in use or idle.
        patience: seconds a request waits for one of them to become free.
        keep: seconds an idle connection is kept; below what servers keep it (5 s with uvicorn and
            Node), so that no request meets the closing of an idle connection.
    """

    def __init__(
        self,
        endpoint: str,
        host: str,
        port: int,
        tls: ssl.SSLContext | None,
        *,
        clock: Clock,
        limit: int = 100,
        patience: float = 2.0,
        keep: float = 4.0,
    ) -> None:
        self.endpoint = endpoint
        self.deadlines = Deadlines(clock, Connection.expire)
        self._host = host
        self._port = port
        self._tls = tls
        self._clock = clock
        self._limit = limit
        self._patience = patience
        self._keep = keep
        self._open = 0  # connections, and permits to make one
        self._idle: deque[Connection] = deque()
        self._busy: set[Connection] = set()
        self._waiting: deque[asyncio.Future[Connection | None]] = deque()
        self._reaper: asyncio.TimerHandle | None = None
        self.closed = False

    async def acquire(self, deadline: float, call: Call | None = None) -> Connection:
        """A connection with nothing in progress; give it back with `release`.

        Raises:
            ConnectError: there is none by `deadline`.
            Overloaded: all are in use, and none became free within the pool's patience.
            DeadlineExceeded: the end of the call's own time came first.
        """
        if self.closed:
            raise client_closed()
        connection = self._from_idle()
        if connection is None:
            if self._open < self._limit:
                self._open += 1
            else:
                connection = await self._turn(deadline, call)
        if connection is not None and connection.unread():
            connection = await self._looked_at(connection)
        if connection is None or connection.closed:
            try:
                connection = await self._dial(deadline, call)
            except BaseException:
                self._give(None)
                raise
        self._busy.add(connection)
        return connection

    async def _looked_at(self, connection: Connection) -> Connection | None:
        """It, unless the peer has closed it while this loop was busy with something else."""
        self._busy.add(connection)
        try:
            for _ in range(_TURNS):
                await asyncio.sleep(0)
        except BaseException:
            self.release(connection)
            raise
        self._busy.discard(connection)
        if connection.reusable:
            return connection
        connection.abort()
        return None

    def release(self, connection: Connection) -> None:
        """Done with it: it is kept if it is fit for another request, and closed if it is not."""
        self._busy.discard(connection)
        if connection.reusable and not self.closed:
            self._give(connection)
        else:
            connection.abort()
            self._give(None)

    def lost(self, connection: Connection) -> None:
        """The peer closed it, or we did."""
        if connection in self._idle:
            self._idle.remove(connection)
            self._give(None)

    def _from_idle(self) -> Connection | None:
        now = asyncio.get_running_loop().time()
        while self._idle:
            connection = self._idle.pop()  # the one used last: the others may grow old and go
            if now < connection.keep_until and connection.reusable:
                return connection
            self._open -= 1
            connection.close()
        return None

    async def _turn(self, deadline: float, call: Call | None) -> Connection | None:
        """Wait until a connection, or the permit to make one, is handed over."""
        future: asyncio.Future[Connection | None] = asyncio.get_running_loop().create_future()

        left = deadline - self._clock.now()
        patience = min(self._patience, left)
        text = f"all {self._limit} connections to {self.endpoint} are in use"
        hint = "raise max_connections=, or send less at once"
        error: ResilientClientError = Overloaded(text, hint=hint)
        if call is not None and left <= self._patience and deadline >= call.deadline:
            error = DeadlineExceeded(f"the call's time ran out: {text}", sent=call.sent, hint=hint)

        def over() -> None:
            if not future.done():
                future.set_exception(error)

        self._waiting.append(future)
        timer = call_later(self._clock, patience, over)
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self._give(future.result())
            raise
        finally:
            timer.cancel()

    def _give(self, connection: Connection | None) -> None:
        """Hand a connection, or the permit to make one, to whoever waits longest."""
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(connection)
                return
        if connection is None:
            self._open -= 1
            return
        loop = asyncio.get_running_loop()
        connection.keep_until = loop.time() + connection.kept_by_peer(self._keep)
        self._idle.append(connection)
        if self._reaper is None:
            self._reaper = loop.call_later(self._keep, self._reap)

    def _reap(self) -> None:
        """Close what has been idle for too long."""
        self._reaper = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        while self._idle and self._idle[0].keep_until <= now + 0.01:
            self._open -= 1
            self._idle.popleft().close()
        if self._idle:
            self._reaper = loop.call_at(self._idle[0].keep_until, self._reap)

    async def _dial(self, deadline: float, call: Call | None) -> Connection:
        """Connect: the name is resolved anew each time."""
        left = min(DIAL_TIMEOUT, deadline - self._clock.now())
        try:
            async with asyncio.timeout(left):
                connection = await connect(
                    lambda: Connection(self), self._host, self._port, self._tls
                )
        except TimeoutError as error:
            text = f"no connection to {self.endpoint} in {max(0.0, left):.3g} s"
            late = ConnectError(text)
            if call is not None and not error.errno and left < DIAL_TIMEOUT:
                late = call.unready(text)
            raise late from (error.__cause__ if error.errno else None)
        except OSError as error:
            raise not_connected(self.endpoint, error) from error
        if self.closed:
            connection.abort()
            raise client_closed()
        return connection

    async def warm(self, deadline: float) -> None:
        """Have at least one connection, or raise `ConnectError`."""
        if not self._idle and not self._busy:
            self.release(await self.acquire(deadline))

    def forget(self) -> None:
        """The loop of these connections has closed; they went with it."""
        self._idle.clear()
        self._busy.clear()
        self._waiting.clear()
        self.deadlines = Deadlines(self._clock, Connection.expire)
        self._reaper = None
        self._open = 0

    async def aclose(self) -> None:
        """Fail what is in progress with `ConnectionLost`, and close everything. Idempotent."""
        self.closed = True
        if self._reaper is not None:
            self._reaper.cancel()
            self._reaper = None
        self.deadlines.clear()
        for future in self._waiting:
            if not future.done():
                future.set_exception(client_closed())
        self._waiting.clear()
        left = [*self._idle, *self._busy]
        for connection in self._busy:
            connection.shut(ConnectionLost("the client was closed"))
        self._idle.clear()
        for connection in left:
            connection.close()
        try:
            async with asyncio.timeout(1.0):
                while not all(connection.closed for connection in left):  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
        except TimeoutError:
            for connection in left:
                connection.abort()
            await asyncio.sleep(0)
