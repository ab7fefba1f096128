"""The server's end: a consumer of the queue, and replies on a connection of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from resilient_client._checks import integer
from resilient_client.errors import ConfigurationError
from resilient_client.transports._base import DEFAULT_MAX_SIZE
from resilient_client.transports._link import ServerLink
from resilient_client.transports.amqp._connector import HEARTBEAT, login
from resilient_client.transports.amqp._consumer import Consumer
from resilient_client.transports.amqp._topology import MAX_NAME, Routes, Topology

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping

    from resilient_client.transports._base import App, Subscription, Target

PREFETCH = 256
"""Messages handed out and not acknowledged: as many as one consumer's handlers may run."""


class ServerListener:
    """The server's end.

    Args:
        queue, durable, auto_delete, arguments, declare, exchange, auth, heartbeat, tls, max_size:
            see the client.
        prefetch: messages handed out before one is acknowledged; 0 is no bound.
        ack: True acknowledges a message when its handlers have ended; an event whose handler failed
            is dropped then, to the queue's dead letters if it has such. "requeue" lets it be tried
            once more. False is Nest's default: handed out is done, a crash loses it.
    """

    url_path = True
    url_tls = True
    url_login = True

    def __init__(
        self,
        target: Target,
        app: App,
        *,
        queue: str | None = None,
        durable: bool = True,
        auto_delete: bool = False,
        arguments: Mapping[str, Any] | None = None,
        declare: bool = True,
        exchange: str | None = None,
        prefetch: int = PREFETCH,
        ack: bool | str = True,
        auth: str = "plain",
        heartbeat: int = HEARTBEAT,
        tls: bool | ssl.SSLContext = False,
        max_size: int = DEFAULT_MAX_SIZE,
    ) -> None:
        if isinstance(ack, str) and ack != "requeue":
            raise ConfigurationError(f'ack={ack!r} is none of True, False and "requeue"')
        self.address = str(target)
        self.app = app
        self.topology = Topology.checked(queue, exchange, durable, auto_delete, declare, arguments)
        self.login = login(target, tls, auth, heartbeat)
        self.prefetch = integer("prefetch", prefetch, 0, 0xFFFF)
        self.ack = bool(ack)
        self.requeue = ack == "requeue"
        self.max_size = max_size
        self.routes: Routes | None = None
        self.link = ServerLink[Consumer](self.address, self._dial, app)

    def check_pattern(self, handler: Subscription) -> None:
        """Refuse a pattern that cannot be a routing key.

        Raises:
            ConfigurationError: it is too long.
        """
        if self.topology.exchange is not None and len(handler.route.encode()) > MAX_NAME:
            raise ConfigurationError(
                f"the pattern {handler.route:.40}... has more than {MAX_NAME} bytes, too many"
                " for a routing key"
            )

    async def _dial(self) -> Consumer:
        consumer = Consumer(self)
        await consumer.prepare()
        return consumer

    async def start(self) -> None:
        """See `ServerListener.start`."""
        if self.topology.exchange is not None:
            self.routes = Routes(self.app)
        await self.link.start()

    async def stop(self) -> None:
        """See `ServerListener.stop`."""
        if self.link.current is not None:
            await self.link.current.stop()

    async def aclose(self) -> None:
        """See `ServerListener.aclose`."""
        consumer = await self.link.aclose()
        if consumer is not None:
            await consumer.aclose()
