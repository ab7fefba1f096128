"""Where RabbitMQ is, and how it lets us in."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from resilient_client._checks import integer
from resilient_client.errors import ConfigurationError
from resilient_client.transports._socket import client_tls, dial
from resilient_client.transports.amqp import _wire as wire
from resilient_client.transports.amqp._channel import ignore
from resilient_client.transports.amqp._connection import Connection

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from resilient_client.transports._base import Target

PORT, TLS_PORT = 5672, 5671
HEARTBEAT = 5
"""Seconds: as Nest. A broker that is silent for twice as long is taken for dead."""


@dataclass(frozen=True, slots=True)
class Login:
    """Where to connect, and as whom."""

    target: Target
    tls: ssl.SSLContext | None = None
    external: bool = False  # the certificate says who we are
    heartbeat: int = HEARTBEAT

    @property
    def virtual_host(self) -> str:
        """No path, and a bare slash, are the default one."""
        return unquote(self.target.url.path[1:]) or "/"

    def start_ok(self, start: Any) -> Any:
        """The answer to the broker's greeting."""
        offered = str(start.mechanisms).split()
        mechanism = "EXTERNAL" if self.external else "PLAIN"
        if mechanism not in offered:
            raise ConfigurationError(
                f"RabbitMQ at {self.target} does not offer {mechanism}, only {', '.join(offered)}"
            )
        user, password = self.target.username, self.target.password
        response = "" if self.external else f"\0{user or 'guest'}\0{_password(user, password)}"
        capabilities: Any = {
            "authentication_failure_close": True,
            "basic.nack": True,
            "connection.blocked": True,
            "consumer_cancel_notify": True,
            "publisher_confirms": True,
        }
        properties = {
            "product": "resilient_client",
            "platform": "Python",
            "capabilities": capabilities,
        }
        return wire.StartOk(properties, mechanism, response, "en_US")


def _password(user: str | None, password: str | None) -> str:
    if password is not None:
        return password
    return "guest" if user is None else ""


def login(
    target: Target,
    tls: bool | ssl.SSLContext,  # noqa: FBT001
    auth: str,
    heartbeat: int,
) -> Login:
    """Where to connect and as whom, from a transport's options.

    Raises:
        ConfigurationError: an option that cannot work.
    """
    if auth not in {"plain", "external"}:
        raise ConfigurationError(f"auth={auth!r} is neither plain nor external")
    integer("heartbeat", heartbeat, 0, 0xFFFF)
    context = client_tls(tls, secure=target.scheme == "amqps")
    return Login(target, context, external=auth == "external", heartbeat=heartbeat)


async def connect(
    login: Login,
    max_body: int,
    lost: Callable[[Connection, str], object],
    blocked: Callable[[str], object] = ignore,
) -> Connection:
    """An open connection.

    Raises:
        ConnectError, ProtocolError: nobody is there, or no broker.
        ConfigurationError: the broker does not let us in, and will not.
    """
    make = partial(Connection, login, max_body, lost, blocked)
    connection = await dial(make, login.target, TLS_PORT if login.tls else PORT, login.tls)
    try:
        await connection.open()
    except BaseException:
        connection.abort("given up while opening")
        raise
    return connection
