"""What both ends keep: a connection for commands and one for subscriptions, lost together."""

from __future__ import annotations

import asyncio
import ssl
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from resilient_client.errors import ConfigurationError, ConnectError
from resilient_client.transports.redis._connection import Connection, Refused, connect, error_of

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from resilient_client.transports._base import Target


T = TypeVar("T")


class Session:
    """Connections that are one: when one of them ends, the others are closed.

    Attributes:
        commands: for everything but subscribing.
        messages: in subscriber mode.
        reader: for commands that block; None where nothing does.
    """

    commands: Connection
    messages: Connection
    reader: Connection | None = None

    def __init__(
        self,
        on_message: Callable[[list[bytes]], None],
        on_lost: Callable[[Session, str], None],
    ) -> None:
        self.closed = False
        self.reason = ""
        self._on_message = on_message
        self._on_lost = on_lost
        self._connections: list[Connection] = []

    def make(self, *, subscribes: bool = False) -> Connection:
        """A connection that belongs to this session."""
        connection = Connection(self._on_message if subscribes else None, self.lost)
        self._connections.append(connection)
        return connection

    def lost(self, reason: str) -> None:
        """One of the connections has ended."""
        if not self.closed:
            self.closed, self.reason = True, reason
            self.abort()
            self._on_lost(self, reason)

    def check(self) -> None:
        """Raise `ConnectError` when it has ended before anybody had it."""
        if self.closed:
            raise ConnectError(f"the new connection has ended: {self.reason}")

    def abort(self) -> None:
        """End them all at once."""
        self.closed = True
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
        self.closed = True
        for connection in self._connections:
            connection.on_lost = None
        await asyncio.gather(
            *(connection.close() for connection in self._connections if not connection.closed)
        )


class Door:
    """Where Redis is and how to be let in. The options are redis-py's, where it has them.

    Args:
        tls: an `ssl.SSLContext`, or true for one that trusts the system's authorities; `rediss://`
            alone means the latter.
        username, password: instead of those in the URL.
        db: instead of the number in the URL's path.
        ssl_ca_certs, ssl_certfile, ssl_keyfile: paths of PEM files, instead of `tls=`.
    """

    def __init__(
        self,
        target: Target,
        *,
        tls: bool | ssl.SSLContext = False,
        username: str | None = None,
        password: str | None = None,
        db: int | None = None,
        ssl_ca_certs: str | None = None,
        ssl_certfile: str | None = None,
        ssl_keyfile: str | None = None,
    ) -> None:
        self.target = target
        self._username = username if username is not None else target.username
        self._password = password if password is not None else target.password
        self._db = _database(target) if db is None else db
        self._tls: ssl.SSLContext | None = None
        if isinstance(tls, ssl.SSLContext):
            self._tls = tls
        elif tls or target.scheme == "rediss" or ssl_ca_certs or ssl_certfile:
            self._tls = _context(ssl_ca_certs, ssl_certfile, ssl_keyfile)

    async def enter(self, session: Session, *, reader: bool = False) -> None:
        """Open the session's connections, each logged in. It is aborted when that fails.

        Raises:
            ConnectError, ConfigurationError: see `_connection.connect`.
        """
        makers: list[Callable[[], Connection]] = [
            session.make,
            partial(session.make, subscribes=True),
        ]
        if reader:
            makers.append(session.make)
        try:
            session.commands, session.messages, *more = await together(
                connect(make, self.target, self._tls, self._username, self._password, self._db)
                for make in makers
            )
            if more:
                session.reader = more[0]
            session.check()
        except BaseException:
            session.abort()
            raise


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


def _database(target: Target) -> int:
    text = target.url.path.strip("/")
    if not text:
        return 0
    if not (text.isascii() and text.isdigit()):
        raise ConfigurationError(
            f"{target} does not name a database", hint="the path is its number: redis://host/0"
        )
    return int(text)


def _context(authorities: str | None, certificate: str | None, key: str | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=authorities)
        if certificate is not None:
            context.load_cert_chain(certificate, key)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"the TLS files cannot be used: {error}") from error
    return context
