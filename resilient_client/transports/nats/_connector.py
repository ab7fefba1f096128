"""Where the servers are and how they let us in."""

from __future__ import annotations

import asyncio
import re
import ssl
from typing import TYPE_CHECKING, Any

from resilient_client._checks import seconds
from resilient_client.errors import (
    ConfigurationError,
    ConnectError,
    ProtocolError,
    ResilientClientError,
)
from resilient_client.transports._base import Target
from resilient_client.transports._socket import client_tls, dial, is_address
from resilient_client.transports.nats._connection import ANSWER_TIMEOUT, Connection
from resilient_client.transports.nats._library import Library, RawCredentials, Wire, translate
from resilient_client.transports.nats._socket import Socket

if TYPE_CHECKING:
    from collections.abc import Callable

DEFAULT_PORT = 4222
CONNECT_TIMEOUT = 2.0
"""Seconds for one server of several: for its address and its handshake."""
MAX_DISCOVERED = 100
"""Further servers that are remembered."""
_PERMISSIONS = "permissions violation"
_credentials = re.compile(
    r"BEGIN NATS USER JWT.*\n\S+\n(?s:.*)BEGIN USER NKEY SEED.*\n(\S+)\n"
).search


class Connector:
    """Where the servers are and how one is admitted: dials them, each in its turn.

    Args:
        servers: further members of the cluster, as host:port or nats://host:port.
        tls: an `ssl.SSLContext`, or true for one that trusts the system's authorities.
        nkey: the seed, or the path of a file that holds it.
        credentials: the path of a .creds file.
        heartbeat: seconds between two pings; after two without an answer the connection is over.

    Raises:
        ConfigurationError: more than one way to be admitted, a server that is no address, or no
            number of seconds.
    """

    def __init__(
        self,
        target: Target,
        *,
        servers: Any,
        tls: bool | ssl.SSLContext,
        token: str | None,
        nkey: str | None,
        credentials: str | None,
        heartbeat: float,
    ) -> None:
        if isinstance(servers, str):
            servers = servers.split(",")
        self._targets = [target, *map(_member, servers)]
        self._connection: Connection | None = None  # the last, which knows further servers
        self._discovered: dict[str, Target] = {}
        self._names: dict[str, str] = {}  # on the certificates of those known by address only
        self._jetstream = False
        self._turn = 0
        self._tls = client_tls(tls)
        self._heartbeat = seconds("heartbeat", heartbeat)
        if target.password is None and target.username is not None and token is None:
            token = target.username  # as nats-py and the nats command read it
        ways = {
            "user and password": target.password,
            "token=": token,
            "nkey=": nkey,
            "credentials=": credentials,
        }
        given = [name for name, value in ways.items() if value is not None]
        if len(given) > 1:
            raise ConfigurationError(f"{' and '.join(given)}: one of them is enough")
        self._login: dict[str, Any] = {}
        if target.password is not None:
            self._login = {"user": target.username or "", "password": target.password}
        elif token is not None:
            self._login = {"token": token}
        self._nkey = nkey
        self._credentials = credentials

    async def connect(
        self, ended: Callable[[str], None], violated: Callable[[str], object]
    ) -> Connection:
        """Connect to the first server that lets us, beginning with the one whose turn it is.

        Raises:
            ConnectError: none of them is there.
            ConfigurationError: one is, but will never let us in.
        """
        self.learn()
        known = {target.hostport: target for target in self._targets}
        for hostport, target in self._discovered.items():
            known.setdefault(hostport, target)
        targets = list(known.values())
        failed: ConnectError | None = None
        for _ in targets:
            target = targets[self._turn % len(targets)]
            try:
                connection = await self._connect(target, ended, violated)
            except ConnectError as error:
                failed = error
                self._turn += 1
            else:
                connection.jetstream = self._jetstream
                self._connection = connection
                return connection
        assert failed is not None  # noqa: S101
        raise failed

    def learn(self) -> None:
        """Keep what the last connection knew of its cluster, whose members come and go, not it."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        self._turn += 1  # another than the one that was lost, if there is another
        self._jetstream = connection.jetstream
        found = connection.discovered()[:MAX_DISCOVERED]
        if not found:
            return
        self._discovered = {hostport: Target(f"nats://{hostport}") for hostport in found}
        name = connection.server_name
        self._names = {
            hostport: name
            for hostport, target in self._discovered.items()
            if is_address(target.host) and not is_address(name)
        }

    async def _connect(
        self, target: Target, ended: Callable[[str], None], violated: Callable[[str], object]
    ) -> Connection:
        login = {**self._login, **self._secret()}
        socket: Socket | None = None
        connection: Connection | None = None
        library: Library | None = None

        async def told(error: Exception) -> None:
            text = str(error).removeprefix("nats: ")
            if connection is not None and _PERMISSIONS in text:
                connection.violated(text)

        try:
            async with asyncio.timeout(2 * CONNECT_TIMEOUT if self._tls else CONNECT_TIMEOUT):
                socket = await dial(Socket, target, DEFAULT_PORT, None)
                name = self._names.get(target.hostport, target.host)
                wire = Wire(socket, target, name, must_encrypt=self._tls is not None)
                library = Library(wire)
                await library.connect(
                    [f"nats://{target.address(DEFAULT_PORT)}"],
                    error_cb=told,
                    allow_reconnect=False,
                    max_reconnect_attempts=1,
                    dont_randomize=True,
                    connect_timeout=ANSWER_TIMEOUT,  # type: ignore[arg-type]
                    ping_interval=self._heartbeat,  # type: ignore[arg-type]
                    max_outstanding_pings=1,
                    tls=self._tls,
                    **login,
                )
            if not library.is_connected:
                raise ProtocolError(
                    f"{target} does not shake hands as a NATS server does", sent=False
                )
            connection = Connection(target, name, socket, library, ended, violated)
            return connection
        except ResilientClientError:
            raise
        except Exception as error:
            raise translate(error, target) from error
        finally:
            if connection is None and socket is not None:
                if library is not None and library.is_connected:
                    await library.close()
                socket.transport.abort()

    def _secret(self) -> dict[str, Any]:
        """Read anew for every connection: files may be renewed."""
        if self._nkey is not None:
            seed = self._nkey.strip()
            if not seed.startswith("SU"):
                seed = _read(seed, "nkey=").strip()
            _check_seed(seed)
            return {"nkeys_seed_str": seed}
        if self._credentials is not None:
            text = _read(self._credentials, "credentials=")
            found = _credentials(text)
            if found is None:
                raise ConfigurationError(
                    "the file of credentials= holds no user JWT and seed",
                    hint="it is what `nsc generate creds` writes",
                )
            _check_seed(found[1])
            return {"user_credentials": RawCredentials(text)}
        return {}


def _member(text: str) -> Target:
    """One of `servers=`, as host:port or as the URL that Nest and the nats command take."""
    try:
        target = Target(text.strip() if "://" in text else f"nats://{text.strip()}")
        target.port(DEFAULT_PORT)
        if target.scheme in {"nats", "tls"} and target.url.hostname and target.username is None:
            return target
    except ValueError:
        pass
    raise ConfigurationError(  # without the text, which may hold a password
        "servers= holds something that is no address",
        hint="write host:port; user and password are those of the URL",
    )


def _check_seed(seed: str) -> None:
    try:
        import nkeys
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"nkey= and credentials= need the library {error.name!r}, which is not installed",
            hint='pip install "resilient-client[nats]"',
        ) from error
    try:
        nkeys.from_seed(bytearray(seed.encode())).wipe()
    except Exception:  # noqa: BLE001  (whatever it says, nothing of the seed is shown)
        raise ConfigurationError("the seed of the nkey is not one: it begins with SU") from None


def _read(path: str, option: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:  # noqa: PTH123
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise ConfigurationError(
            f"the file of {option} cannot be read: {reason}",
            hint="give the path of the file" + (", or the seed" if option == "nkey=" else ""),
        ) from None
