"""What both ends keep: a connection for commands and one for subscriptions, lost together."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from resilient_client.errors import ConnectError
from resilient_client.transports.redis._connection import Connection, Refused, error_of

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable


T = TypeVar("T")


class Session:
    """Connections that are one: when one of them ends, the others are closed.

    Attributes:
        commands: for everything but subscribing.
        messages: in subscriber mode.
        reader: for commands that block; None where nothing does.
        over: set when it has ended.
    """

    commands: Connection
    messages: Connection
    reader: Connection | None = None

    def __init__(
        self,
        on_message: Callable[[list[bytes]], None],
        on_lost: Callable[[Session, str], None],
    ) -> None:
        self.over = asyncio.Event()
        self.reason = ""
        self._on_message = on_message
        self._on_lost = on_lost
        self._connections: list[Connection] = []

    @property
    def closed(self) -> bool:
        """It has ended."""
        return self.over.is_set()

    def make(self, *, subscribes: bool = False) -> Connection:
        """A connection that belongs to this session."""
        connection = Connection(self._on_message if subscribes else None, self.lost)
        self._connections.append(connection)
        return connection

    def lost(self, reason: str) -> None:
        """One of the connections has ended."""
        if not self.closed:
            self.reason = reason
            self.abort()
            self._on_lost(self, reason)

    def check(self) -> None:
        """Raise `ConnectError` when it has ended before anybody had it."""
        if self.closed:
            raise ConnectError(f"the new connection has ended: {self.reason}")

    def abort(self) -> None:
        """End them all at once."""
        self.over.set()
        for connection in self._connections:
            connection.on_lost = None
            if not connection.closed:
                connection.transport.abort()

    async def subscribe(self, command: str, name: str | bytes) -> None:
        """Subscribe (or the like), and wait for the confirmation.

        Raises:
            ConfigurationError: Redis refuses.
            ConnectionLost: it is gone.
        """
        try:
            await self.messages.call(command, name)
        except Refused as error:
            shown = name if isinstance(name, str) else name.decode(errors="replace")
            raise error_of(error, f"{command} {shown}") from None

    async def close(self) -> None:
        """Close them, giving what is written a moment to leave."""
        self.over.set()
        for connection in self._connections:
            connection.on_lost = None
        await asyncio.gather(
            *(connection.close() for connection in self._connections if not connection.closed)
        )


async def together(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results; at the first failure the others are cancelled and it is raised alone."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
