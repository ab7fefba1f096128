"""The server's end as an ASGI application."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from resilient_client.transports._base import DEFAULT_MAX_SIZE
from resilient_client.transports.http._exchange import Exchange
from resilient_client.transports.http._fields import FieldsCodec
from resilient_client.transports.http._responses import Disconnected, Refused
from resilient_client.transports.http._routing import Router

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    from resilient_client.transports._base import App
    from resilient_client.transports.http._exchange import Receive, Scope, Send

    Application = Callable[[Scope, Receive, Send], Awaitable[None]]

log = logging.getLogger("resilient_client.http")


def asgi_app(
    app: App,
    *,
    base: str = "",
    max_size: int = DEFAULT_MAX_SIZE,
    lifespan: Callable[[], AbstractAsyncContextManager[Any]] | None = None,
) -> Application:
    """The application: to be mounted, or run by any ASGI server.

    Args:
        base: the path that everything stands below; what it is mounted at comes off by itself.
        max_size: bytes of one payload, each way.
        lifespan: entered when an ASGI server starts the application, left when it stops it.
    """
    router = Router(app)
    codec = FieldsCodec(app.codec)

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "http":
            exchange = Exchange(app, scope, receive, send)
            try:
                await exchange.serve(router, codec, base, max_size)
            except Refused as refusal:
                await exchange.refuse(refusal)
            except Disconnected:
                log.debug("a caller left before it had sent everything")
        elif kind == "lifespan":
            await _live(lifespan, receive, send)
        elif kind == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1003})
        else:
            raise NotImplementedError(f"the ASGI scope {kind!r}")

    return application


async def _live(
    lifespan: Callable[[], AbstractAsyncContextManager[Any]] | None, receive: Receive, send: Send
) -> None:
    """ASGI's lifespan protocol."""
    phase = "startup"
    try:
        async with nullcontext() if lifespan is None else lifespan():
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            phase = "shutdown"
    except Exception as error:
        log.exception("the server's %s failed", phase)
        await send({"type": f"lifespan.{phase}.failed", "message": str(error)})
    else:
        await send({"type": "lifespan.shutdown.complete"})
