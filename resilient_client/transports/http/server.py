"""The server's end of http:// and https://, by itself: the ASGI application on uvicorn."""

from __future__ import annotations

import asyncio
import ssl
from email.utils import formatdate
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from resilient_client._checks import integer
from resilient_client.errors import ConfigurationError
from resilient_client.transports._base import DEFAULT_MAX_SIZE
from resilient_client.transports._socket import UNREAD_TIMEOUT, listen
from resilient_client.transports.http._requests import rest_template
from resilient_client.transports.http.asgi import asgi_app

if TYPE_CHECKING:
    from resilient_client.transports._base import App, Subscription, Target

HEAD_TIMEOUT = 30.0
"""Seconds that a connection may take for the head of a request, its first included."""
_CLOSING = 1.0  # seconds that connections get to close by themselves


class ServerListener:
    """The server's end: uvicorn's protocol on sockets of our own, without its process around it.

    Args:
        tls: for https://, an `ssl.SSLContext` with the server's certificate.
        max_size: bytes of one payload, each way.
        keep_alive: seconds an idle connection is kept.
    """

    url_path = True
    url_tls = True

    def __init__(
        self,
        target: Target,
        app: App,
        *,
        tls: bool | ssl.SSLContext = False,
        max_size: int = DEFAULT_MAX_SIZE,
        keep_alive: int = 5,
    ) -> None:
        secure = target.scheme == "https"
        if not isinstance(tls, ssl.SSLContext) if secure else tls:
            raise ConfigurationError(
                "https:// needs tls= with the server's certificate"
                if secure
                else "tls= means nothing to http://",
                hint="give tls= an ssl.SSLContext that has loaded it"
                if secure
                else "write https://",
            )
        self.address = str(target)
        self._target = target
        self._tls = tls if isinstance(tls, ssl.SSLContext) else None
        self._port = target.port(443 if secure else 80)
        self._base = unquote(target.url.path).rstrip("/")
        self._config, self._state = _uvicorn(
            asgi_app(app, base=self._base, max_size=max_size),
            integer("keep_alive", keep_alive, 0),
        )
        self._server: asyncio.Server | None = None
        self._awaited: dict[Any, tuple[Any, float]] = {}  # connections that may ask
        self._unread: dict[Any, tuple[int, float]] = {}  # those with something left to read
        self._ticking: asyncio.TimerHandle | None = None

    def check_pattern(self, handler: Subscription) -> None:
        """Refuse a REST pattern that is none, when it is registered."""
        rest_template(handler.route)

    async def start(self) -> None:
        """See `ServerListener.start`."""
        loop = asyncio.get_running_loop()
        config, state = self._config, self._state
        try:
            self._server = await listen(
                lambda: config.http_protocol_class(
                    config=config, server_state=state, app_state={}, _loop=loop
                ),
                self._target.host,
                self._port,
                self._tls,
                backlog=config.backlog,
            )
        except OSError as error:
            raise self._target.cannot_be_bound(error) from error
        self.address = self._target.bound(self._server.sockets[0].getsockname()[1])
        self._tick()

    def _tick(self) -> None:
        """RFC 9110 section 6.6.1: a server with a clock sends the date."""
        now = formatdate(usegmt=True).encode()
        self._state.default_headers = [(b"date", now)]
        loop = asyncio.get_running_loop()
        self._close_idle(loop.time())
        self._drop_unread(loop.time())
        self._ticking = loop.call_later(1.0, self._tick)

    def _close_idle(self, now: float) -> None:
        """Close connections that do not ask; uvicorn sees to those that have asked before."""
        awaited = {}
        for connection in tuple(self._state.connections):
            last = connection.cycle
            if connection.timeout_keep_alive_task or not (last is None or last.response_complete):
                continue
            known, since = self._awaited.get(connection, (last, now))
            if known is not last:
                since = now
            awaited[connection] = last, since
            if now - since > HEAD_TIMEOUT:
                connection.transport.close()
        self._awaited = awaited

    def _drop_unread(self, now: float) -> None:
        """Drop connections that do not read: an answer, and perhaps a handler, waits for each."""
        unread = {}
        for connection in tuple(self._state.connections):
            size = connection.transport.get_write_buffer_size()
            if not size:
                continue
            before, since = self._unread.get(connection, (size, now))
            if size != before:
                since = now
            unread[connection] = size, since
            if now - since > UNREAD_TIMEOUT:
                connection.transport.abort()
        self._unread = unread

    async def stop(self) -> None:
        """See `ServerListener.stop`: a connection closes after its next answer, which says so.

        An idle one stays for now: a request may be on its way that is safe to repeat if it is
        refused, but not if it meets the end of its connection.
        """
        if self._server is not None:
            self._server.close()

    async def aclose(self) -> None:
        """See `ServerListener.aclose`."""
        await self.stop()
        if self._ticking is not None:
            self._ticking.cancel()
        self._awaited.clear()
        self._unread.clear()
        for connection in tuple(self._state.connections):
            connection.shutdown()
        try:
            async with asyncio.timeout(_CLOSING):
                while self._state.connections or self._state.tasks:  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
        except TimeoutError:
            for connection in tuple(self._state.connections):
                if connection.transport is not None:
                    connection.transport.abort()
            tasks = tuple(self._state.tasks)
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks, timeout=_CLOSING)


def _uvicorn(application: Any, keep_alive: int) -> tuple[Any, Any]:
    """Its configuration, quiet and without a life of its own, and the state of its connections."""
    try:
        import uvicorn
        from uvicorn.server import ServerState
    except ImportError as error:
        raise ConfigurationError(
            "an HTTP server needs the library 'uvicorn', which is not installed",
            hint='pip install "resilient-client[http-server]"',
        ) from error
    config = uvicorn.Config(
        application,
        interface="asgi3",
        loop="none",
        http="h11",  # httptools, which "auto" would take where it is installed, bounds no headers
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=keep_alive,
    )
    config.load()
    return config, ServerState()
