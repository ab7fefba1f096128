"""How to reach an MQTT broker, and as whom: what both ends of a connection have in common."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from os import urandom
from typing import TYPE_CHECKING

from resilient_client._checks import integer
from resilient_client.errors import ConfigurationError, ConnectError
from resilient_client.transports._socket import client_tls, dial
from resilient_client.transports.mqtt._codec import ENVELOPE
from resilient_client.transports.mqtt._connection import Connection, Login
from resilient_client.transports.mqtt._reasons import TAKEN_OVER

if TYPE_CHECKING:
    import ssl

    from resilient_client.transports._base import Target
    from resilient_client.transports.mqtt._connection import Owner

DEFAULT_PORT, DEFAULT_TLS_PORT = 1883, 8883
DEFAULT_KEEPALIVE = 10
"""Seconds: a broker that is silent for that long is taken for dead, and this is what it is told."""
_ALERT_WITHIN = 0.5  # seconds
_TAKEOVERS_WITHIN = 10.0  # seconds between two that mean: there are two of us


class Connector:
    """Makes the connections of one end, which it calls back as its `Owner`.

    Attributes:
        version: the protocol's own number: 5, or 4 for 3.1.1.
    """

    def __init__(
        self,
        owner: Owner,
        target: Target,
        *,
        version: int | str,
        client_id: str | None,
        keepalive: int,
        expiry: int,
        tls: bool | ssl.SSLContext,
        max_size: int,
    ) -> None:
        if expiry and client_id is None:
            raise ConfigurationError(
                "a session that outlives its connection needs a name",
                hint="give client_id=, another one to each replica",
            )
        integer("session_expiry", expiry, 0, 0xFFFFFFFF)
        integer("keepalive", keepalive, 0, 0xFFFF)
        self._owner = owner
        self._target = target
        self._tls = client_tls(tls, secure=target.scheme == "mqtts")
        self._login = Login(
            version=_version(version),
            client_id=_new_id() if client_id is None else client_id,
            username=target.username,
            password=target.password,
            keepalive=keepalive,
            expiry=expiry,
            limit=max_size + ENVELOPE,
        )
        self._login.packet()  # what cannot be said is refused here, not at dialling
        self.version = self._login.version
        self._named = client_id is not None
        self._taken_over = -_TAKEOVERS_WITHIN
        self._two_of_us = False

    def renew(self) -> None:
        """Be another client from now on, if we have no name: a forked child must not be both."""
        if not self._named:
            self._login = replace(self._login, client_id=_new_id())

    async def connect(self) -> Connection:
        """A connection that its owner has made ready.

        Raises:
            ConnectError: the broker is not there, or not now.
            ConfigurationError: it refuses us, and will again.
        """
        if self._two_of_us:
            self._two_of_us = False
            raise ConfigurationError(
                f"another client connects to {self._target} as {self._login.client_id!r}, and each "
                "takes over the other's session",
                hint="give each its own client_id=",
            )
        connection = await self._reach()
        try:
            await connection.open()
            await self._owner.ready(connection)
        except BaseException as error:
            connection.break_off("it could not be made ready")
            if self._tls is not None and connection.closed and isinstance(error, ConnectError):
                await self._hear_alert()
            raise
        return connection

    async def _reach(self) -> Connection:
        endpoint = str(self._target)
        return await dial(
            lambda: Connection(self._login, self._owner, endpoint, self._lost),
            self._target,
            DEFAULT_TLS_PORT if self._tls else DEFAULT_PORT,
            self._tls,
        )

    async def _hear_alert(self) -> None:
        """Raise what TLS says, if it is TLS that refuses us.

        In TLS 1.3 a missing certificate is refused after the handshake, and by then our CONNECT is
        under way: where the broker closes without reading it, its alert is lost with the rest.
        """
        connection = await self._reach()
        try:
            async with asyncio.timeout(_ALERT_WITHIN):
                await connection.open(silent=True)
        except TimeoutError:
            return
        finally:
            connection.break_off("it was made to hear a reason")

    def _lost(self, connection: Connection) -> None:
        if connection.reason_code == TAKEN_OVER:
            now = time.monotonic()
            self._two_of_us = now - self._taken_over < _TAKEOVERS_WITHIN
            self._taken_over = now
        elif self._named and connection.brief:
            connection.reason += f": does another client call itself {self._login.client_id!r}?"
        self._owner.ended(connection)


def _new_id() -> str:
    return f"rc{urandom(10).hex()}"


def checked_qos(qos: int) -> int:
    """The quality of service, if it is one that is spoken here."""
    if qos in (0, 1):
        return qos
    raise ConfigurationError(
        f"qos={qos} is not spoken here",
        hint="give 0 or 1; what QoS 2 promises ends at the broker: use an idempotency key",
    )


def _version(version: int | str) -> int:
    known = {"5": 5, "5.0": 5, "3.1.1": 4, "4": 4}
    try:
        return known[str(version)]
    except KeyError:
        raise ConfigurationError(
            f"version={version!r} of MQTT is not spoken here", hint="give 5 or 3.1.1"
        ) from None
