"""Where Redis is, and how it lets us in."""

from __future__ import annotations

import asyncio
import re
import ssl
from functools import partial
from typing import TYPE_CHECKING, Any

from resilient_client.errors import (
    ConfigurationError,
    ConnectError,
    ConnectionLost,
    ProtocolError,
    ResilientClientError,
)
from resilient_client.transports._socket import client_tls, dial
from resilient_client.transports.redis._connection import Connection, Refused, error_of, ignore
from resilient_client.transports.redis._session import together

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilient_client.transports._base import Target
    from resilient_client.transports.redis._session import Session

DEFAULT_PORT = 6379


def no_queues(who: str) -> ConfigurationError:
    """The refusal of `queue=`, wherever it was given."""
    return ConfigurationError(
        f"{who} has no queue groups",
        hint="every subscriber of a Redis channel gets every message: share events with stream=, "
        "requests over nats:// or amqp://",
    )


class Connector:
    """Where Redis is and how to be let in. The options are redis-py's, where it has them.

    Args:
        tls: an `ssl.SSLContext`, or true for one that trusts the system's authorities; `rediss://`
            alone means the latter.
        username, password: instead of those in the URL.
        db: instead of the number in the URL's path.
        ssl_ca_certs, ssl_certfile, ssl_keyfile: paths of PEM files, instead of `tls=`; read anew
            for every connection, for certificates are renewed.
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
        self._target = target
        self._username = (username if username is not None else target.username) or None
        self._password = (password if password is not None else target.password) or None
        self._db = _database(target) if db is None else db
        self._files: tuple[str | None, str | None, str | None] | None = None
        if (ssl_ca_certs or ssl_certfile) and not isinstance(tls, ssl.SSLContext):
            self._files = ssl_ca_certs, ssl_certfile, ssl_keyfile
            _context(*self._files)
        self._tls = client_tls(tls, secure=target.scheme == "rediss")

    async def connect(self, session: Session, *, reader: bool = False) -> None:
        """Open the session's connections, each logged in. It is aborted when that fails.

        Raises:
            ConnectError, ConfigurationError: see `_connect`.
        """
        makers: list[Callable[[], Connection]] = [
            session.make,
            partial(session.make, subscribes=True),
        ]
        if reader:
            makers.append(session.make)
        tls = self._context()
        try:
            session.commands, session.messages, *more = await together(
                _connect(make, self._target, tls, self._username, self._password, self._db)
                for make in makers
            )
            if more:
                session.reader = more[0]
            session.check()
        except BaseException:
            session.abort()
            raise

    def _context(self) -> ssl.SSLContext | None:
        if self._files is None:
            return self._tls
        try:
            return _context(*self._files)
        except ConfigurationError as error:  # they were good once: they are being renewed
            raise ConnectError(*error.args) from None


async def _connect(
    make: Callable[[], Connection],
    target: Target,
    tls: ssl.SSLContext | None,
    username: str | None,
    password: str | None,
    db: int,
) -> Connection:
    """A connection that is logged in and answers.

    Raises:
        ConnectError: Redis is not there, or not ready.
        ConfigurationError: it will not have us: wrong credentials or database, say.
    """
    connection = await dial(make, target, DEFAULT_PORT, tls)
    connection.watch()
    try:
        replies: list[tuple[str, asyncio.Future[Any]]] = []

        def ask(*command: str | int) -> None:
            replies.append((str(command[0]), connection.call(*command)))

        if password is not None or username is not None:
            login = (username, password or "") if username else (password or "",)
            ask("AUTH", *login)
        if db:
            ask("SELECT", db)
        ask("PING")
        for command, reply in replies:
            try:
                await reply
            except Refused as error:
                # it may log in and not ping; a Redis whose disk is full refuses pings, too
                if command == "PING" and error.code in {"NOPERM", "MISCONF"}:
                    continue
                if password:
                    # a Redis without AUTH repeats what it was given, in quotes of some kind
                    said = re.sub(rf"(['`]){re.escape(password)}\1", "***", str(error))
                    error = Refused(said)
                raise error_of(error, f"connecting to {target}") from None
    except ConnectionLost as error:
        cause = connection.ended_by
        if tls is not None and not isinstance(cause, ssl.SSLError):
            cause = await _look_again(target, tls)
        raise _unwelcome(cause, target, error) from None
    except BaseException:
        connection.on_lost = None
        connection.transport.abort()
        raise
    return connection


async def _look_again(target: Target, tls: ssl.SSLContext) -> Exception | None:
    """Why a new connection is closed: what was written at once may have hidden the alert."""
    probe = await dial(lambda: Connection(None, ignore), target, DEFAULT_PORT, tls)
    try:
        for _ in range(10):
            if probe.closed:
                break
            await asyncio.sleep(0.02)
    finally:
        probe.transport.abort()
    return probe.ended_by


def _unwelcome(
    cause: Exception | None, target: Target, error: ConnectionLost
) -> ResilientClientError:
    """Why Redis closed a new connection; with TLS 1.3 it looks at our certificate only then."""
    if isinstance(cause, Refused):
        return error_of(cause, f"connecting to {target}")
    if isinstance(cause, ssl.SSLError) and "ALERT" in (cause.reason or ""):
        return ConfigurationError(
            f"{target} does not accept our certificate: {cause.reason}",
            hint="give tls= an ssl.SSLContext that has loaded one it knows",
        )
    if isinstance(cause, ProtocolError):
        return ConnectError(f"{target}: {cause.args[0]}", hint=cause.hint)
    return ConnectError(f"{target}: {error.args[0]}")


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
