"""One connection to a NATS server: nats-py speaks the protocol, over a socket of ours.

nats-py shakes hands, authenticates, parses and keeps alive. What it would do besides is done here,
because its own way loses messages or hangs: publishing into a buffer that outlives the connection,
a queue and a task for each subscription, reconnecting, and noticing the end of a connection only
after it has flushed what can no longer be flushed.
"""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import nats.aio.errors
import nats.errors
from nats.aio.client import Client, RawCredentials
from nats.aio.transport import Transport
from nats.protocol.command import sub_cmd, unsub_cmd

from resilient_client._json import decode, encode
from resilient_client.errors import (
    ConfigurationError,
    ConnectError,
    PayloadError,
    ProtocolError,
    ResilientClientError,
)
from resilient_client.transports._base import Target
from resilient_client.transports._link import spawn
from resilient_client.transports._metadata import MAX_METADATA_KEYS, MAX_METADATA_NAME, sanitised
from resilient_client.transports._stream import Stream, dial, not_connected

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

log = logging.getLogger("resilient_client.nats")

DEFAULT_PORT = 4222
CONNECT_TIMEOUT = 2.0
"""Seconds for one server of several: for its address, its handshake, and each of its answers."""
CERTIFICATE_WAIT = 0.1
"""Seconds for a server that asks for certificates to say that it does not like ours: with TLS 1.3
that comes after the handshake, and would be lost if we went on writing."""
MAX_SIZE = 128 * 1024 * 1024
"""Bytes of one message; no server can be configured to send more than half of it."""
MAX_LINE = 1024 * 1024
"""Bytes of one line of the protocol; INFO of a large cluster is the longest."""
_CHUNK = 64 * 1024
_FIRST_SID = 1 << 20  # nats-py counts its own from 1
_NO_RESPONDERS = b"NATS/1.0 503"
_PERMISSIONS = "permissions violation"
_REFUSED = re.compile(r"authorization violation|credentials|authentication (expired|revoked)|nkey")
_is_token = lru_cache(maxsize=1024)(re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch)
_credentials = re.compile(
    r"BEGIN NATS USER JWT.*\n\S+\n(?s:.*)BEGIN USER NKEY SEED.*\n(\S+)\n"
).search
_no_subject = re.compile(r"[\x00-\x20\x7f]|^\.|\.\.|\.$|^$").search


# ---- subjects and headers ----


@lru_cache(maxsize=1024)
def checked_subject(subject: str, *, wildcards: bool = False) -> str:
    """The subject, if NATS can carry it.

    Raises:
        ConfigurationError: it is empty, holds blanks or empty tokens, or a wildcard out of place.
    """
    if _no_subject(subject):
        raise ConfigurationError(
            f"{subject!r} cannot be a NATS subject",
            hint="no blanks, and something between the dots",
        )
    tokens = subject.split(".")
    if not wildcards and ("*" in tokens or tokens[-1] == ">"):
        raise ConfigurationError(
            f"{subject!r} is a NATS wildcard: nothing can be sent to it",
            hint="wildcards are for the patterns of handlers",
        )
    if ">" in tokens[:-1]:
        raise ConfigurationError(f"{subject!r} has something after its >", hint="> comes last")
    return subject


def header_block(headers: Mapping[str, str]) -> bytes:
    """The headers as they travel.

    Raises:
        PayloadError: a name or a value that no NATS header can have.
    """
    text = "NATS/1.0\r\n"
    for name, value in headers.items():
        if not _is_token(name):
            raise PayloadError(f"header {name!r} holds a character that no NATS header can")
        text += f"{name}: {value}\r\n"
    if text.count("\n") != len(headers) + 1:
        raise PayloadError("a header's value holds a line's end")
    return f"{text}\r\n".encode(errors="replace")


def read_headers(block: bytes) -> Mapping[str, str]:
    """Lower-case names to values, of several values the first, as in Nest; bounded and printable.

    See `sanitised` for the bounds.
    """
    lines = block.decode(errors="replace").split("\r\n")
    headers: dict[str, str] = {}
    for line in lines[1:-2]:
        name, colon, value = line.partition(":")
        if colon:
            headers.setdefault(name.lower(), value.strip())
    if (
        len(block) <= MAX_METADATA_NAME  # then every bound is kept
        and len(headers) <= MAX_METADATA_KEYS
        and "".join(lines).isprintable()
        and "" not in headers
    ):
        return headers
    return sanitised(headers)


def status(block: bytes | None) -> int:
    """The status the server itself put into a header block: 503 is "no responders"; 0 is none."""
    if block is None or block[8:9] != b" ":
        return 0
    number = block[9:12]
    return int(number) if number.isdigit() else 0


# ---- errors ----

_CLASSES: dict[type[Exception], type[ResilientClientError]] = {
    nats.errors.Error: ConnectError,
    nats.errors.AuthorizationError: ConfigurationError,
    nats.errors.BadHeaderError: PayloadError,
    nats.errors.BadSubjectError: ConfigurationError,
    nats.errors.BadSubscriptionError: ProtocolError,
    nats.errors.BadTimeoutError: ConfigurationError,
    nats.errors.ConnectionClosedError: ConnectError,
    nats.errors.ConnectionDrainingError: ConnectError,
    nats.errors.ConnectionReconnectingError: ConnectError,
    nats.errors.DrainTimeoutError: ConnectError,
    nats.errors.FlushTimeoutError: ConnectError,
    nats.errors.InvalidCallbackTypeError: ConfigurationError,
    nats.errors.InvalidUserCredentialsError: ConfigurationError,
    nats.errors.JsonParseError: ProtocolError,
    nats.errors.MaxPayloadError: PayloadError,
    nats.errors.MsgAlreadyAckdError: ProtocolError,
    nats.errors.NoRespondersError: ConnectError,
    nats.errors.NoServersError: ConnectError,
    nats.errors.NotJSMessageError: ProtocolError,
    nats.errors.OutboundBufferLimitError: ConnectError,
    nats.errors.ProtocolError: ProtocolError,
    nats.errors.SecureConnFailedError: ConfigurationError,
    nats.errors.SecureConnRequiredError: ConfigurationError,
    nats.errors.SecureConnWantedError: ConfigurationError,
    nats.errors.ServerNotInPoolError: ConnectError,
    nats.errors.SlowConsumerError: ConnectError,
    nats.errors.StaleConnectionError: ConnectError,
    nats.errors.TimeoutError: ConnectError,
    nats.errors.UnexpectedEOF: ConnectError,
}
"""What nats-py's exceptions mean before anything was published through it, which is all we let it
do. nats.aio.errors has other names for the same; nats.js is not used."""


def translate(error: Exception, target: Target) -> ResilientClientError:
    """Our error for one that nats-py raised while connecting, or asking JetStream's API."""
    if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLCertVerificationError):
        return ConfigurationError(
            f"{target} refused the TLS handshake: {error.reason or 'no reason given'}",
            hint="does it ask for a certificate? tls= takes an ssl.SSLContext that has loaded it",
        )
    if isinstance(error, nats.errors.Error):
        text = str(error).removeprefix("nats: ").strip("'")
        if _REFUSED.search(text.lower()):
            return ConfigurationError(
                f"{target} refused the credentials: {text}",
                hint="check user and password, token=, nkey= or credentials=",
            )
        meaning = next(_CLASSES[each] for each in type(error).__mro__ if each in _CLASSES)
        return meaning(f"{target}: {text}", sent=False)
    if isinstance(error, TimeoutError):
        return ConnectError(f"no answer from {target}")
    if isinstance(error, OSError):
        return not_connected(target, error)
    return ProtocolError(f"{target}: {type(error).__name__}", sent=False)


# ---- the socket ----


class _Socket(Stream):
    """The bytes. Messages of our own subscriptions are taken out here, the rest is the library's.

    Attributes:
        receivers: what is called with the messages of a subscription, by its id.
        ended: called once, with the reason, as soon as the connection is over.
        error: what ended it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ended: Callable[[str], None] | None = None
        self.error: Exception | None = None
        self._chunk = memoryview(bytearray(_CHUNK))
        self.receivers: dict[bytes, Any] = {}  # by subscription
        self._rest = bytearray()  # the beginning of what has not arrived whole
        self._needed = 0  # bytes of it that must be there before it is worth a look
        self._received = bytearray()  # for the library
        self._waiter: asyncio.Future[None] | None = None

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._chunk

    def buffer_updated(self, nbytes: int) -> None:
        rest = self._rest
        rest += self._chunk[:nbytes]
        if len(rest) < self._needed:
            return
        data = bytes(rest)
        try:
            read = self._read(data)
        except (ValueError, IndexError):
            self.end("the server sent a message that cannot be read")
            self.transport.abort()
            return
        del rest[:read]
        if len(rest) > MAX_LINE > self._needed:
            self.end("the server sent a line that does not end")
            self.transport.abort()

    def _read(self, data: bytes) -> int:
        """Deliver the messages in it, leave the rest to the library; how much of it was whole."""
        start, found, receivers = 0, data.find, self.receivers
        self._needed = 0
        while (end := found(b"\r\n", start)) >= 0:
            body = end + 2
            kind = data[start : start + 4]
            if kind in (b"MSG ", b"HMSG"):
                # MSG subject sid [reply] size; HMSG subject sid [reply] header-size size
                words = data[start:end].split()
                size = int(words[-1])
                if not 0 <= size <= MAX_SIZE:
                    raise ValueError(size)
                after = body + size
                if after + 2 > len(data):
                    self._needed = after + 2 - start
                    break
                receive = receivers.get(words[2])
                if receive is None:
                    self._received += data[start : after + 2]
                    self._wake()
                elif kind == b"MSG ":
                    reply = words[3] if len(words) == 5 else b""
                    self._hand_over(receive, words[1], reply, data[body:after], None)
                else:
                    reply = words[3] if len(words) == 6 else b""
                    split = body + int(words[-2])
                    self._hand_over(receive, words[1], reply, data[split:after], data[body:split])
                start = after + 2
            else:
                self._received += data[start:body]
                self._wake()
                start = body
        return start

    def _hand_over(
        self, receive: Any, subject: bytes, reply: bytes, data: bytes, headers: bytes | None
    ) -> None:
        try:
            receive(subject, reply, data, headers)
        except Exception:  # the others are not to suffer
            log.exception("a message on %.200r could not be handled", subject)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def read(self) -> bytes:
        """What has arrived; b"" at the end."""
        while not self._received and not self.closed:
            await self._more()
        data = bytes(self._received)
        self._received.clear()
        return data

    async def readline(self) -> bytes:
        """A line with its end; for the handshake.

        Raises:
            OSError: the connection ended before.
        """
        while (end := self._received.find(b"\n") + 1) == 0:
            if self.closed:
                raise self.error or ConnectionResetError("the server closed the connection")
            await self._more()
        line = bytes(self._received[:end])
        del self._received[:end]
        return line

    async def _more(self) -> None:
        self._waiter = self.loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    async def settle(self, seconds: float) -> None:
        """Wait that long for a connection to end that is about to.

        Raises:
            OSError: it did.
        """
        try:
            async with asyncio.timeout(seconds):
                while not self.closed:
                    await self._more()
        except TimeoutError:
            return
        raise self.error or ConnectionResetError("the server closed the connection")

    async def start_tls(self, context: ssl.SSLContext, hostname: str) -> None:
        """Encrypt from here on."""
        transport = await self.loop.start_tls(
            self.transport, self, context, server_hostname=hostname
        )
        if transport is None:
            raise self.error or ConnectionResetError("the server closed the connection")
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.error = exc
        self._wake()
        self.end(str(exc) if exc is not None else "the server closed the connection")

    def end(self, reason: str) -> None:
        """Tell that the connection is over, if that was not told yet."""
        ended, self.ended = self.ended, None
        if ended is not None:
            ended(reason)


class _Wire(Transport):
    """What nats-py sees of the socket: connected already, never blocking, never failing to close.

    Args:
        must_encrypt: send nothing before TLS is on. (A server that does not ask for TLS would be
            sent the credentials in the clear.)
    """

    def __init__(self, socket: _Socket, target: Target, *, must_encrypt: bool) -> None:
        self._socket = socket
        self._target = target
        self._must_encrypt = must_encrypt
        self._verifies = False

    async def connect(self, uri: Any, buffer_size: int, connect_timeout: float) -> None:
        """Connected already."""

    async def connect_tls(
        self, uri: Any, ssl_context: ssl.SSLContext, buffer_size: int, connect_timeout: float
    ) -> None:
        async with asyncio.timeout(connect_timeout):
            await self._socket.start_tls(ssl_context, self._target.host)
            if self._verifies:
                await self._socket.settle(CERTIFICATE_WAIT)
        self._must_encrypt = False

    def write(self, payload: bytes) -> None:
        if self._must_encrypt:
            raise ConfigurationError(
                f"tls= is given, but {self._target} does not speak TLS",
                hint="switch it on there, or leave tls= out",
            )
        if not self._socket.closed:
            self._socket.flush()
            self._socket.transport.write(payload)

    def writelines(self, payload: list[bytes]) -> None:
        self.write(b"".join(payload))

    async def read(self, buffer_size: int) -> bytes:
        return await self._socket.read()

    async def readline(self) -> bytes:
        line = await self._socket.readline()
        self._verifies = b'"tls_verify":true' in line
        return line

    async def drain(self) -> None:
        """The library writes too little to wait for."""

    def close(self) -> None:
        self._socket.transport.abort()  # a peer that does not read would keep what is unsent

    async def wait_closed(self) -> None:
        """Closed it is, for all that the library needs."""

    def at_eof(self) -> bool:
        return self._socket.closed

    def __bool__(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]  (untyped there)
        return True


class _Library(Client):
    """nats-py's client, with our socket."""

    def __init__(self, wire: _Wire) -> None:
        super().__init__()
        self._transport = wire

    def on_reader_end(self, callback: Callable[[], object]) -> None:
        """The reader ends with the connection, and on bytes that it does not understand."""
        assert self._reading_task is not None  # noqa: S101
        self._reading_task.add_done_callback(lambda _: callback())


class Connection:
    """A connection that is ready: authenticated, nothing subscribed yet.

    Args:
        ended: called once with the reason when it is over.
        violated: called with the server's text when it refuses a subject.

    Attributes:
        target: the server it is connected to.
        max_payload: bytes of one message, headers included, that the server takes.
    """

    def __init__(
        self,
        target: Target,
        socket: _Socket,
        library: _Library,
        ended: Callable[[str], None],
        violated: Callable[[str], object],
    ) -> None:
        self.target = target
        self.max_payload: int = library.max_payload
        self.violations: list[str] = []
        self._asking: dict[asyncio.Future[str], str] = {}  # what waits for JetStream's API
        self.socket = socket
        self._closing: asyncio.Task[None] | None = None
        self._violated = violated
        self._library = library
        self._sid = _FIRST_SID

        def over(reason: str) -> None:
            told = library.last_error
            ended(reason if told is None else str(told).removeprefix("nats: "))
            # nats-py's own tasks may not have noticed, and would stay
            self._closing = spawn(library.close(), f"close {target}")

        socket.ended = over
        library.on_reader_end(lambda: socket.transport.abort())  # noqa: PLW0108  (TLS replaces it)

    @property
    def closed(self) -> bool:
        """It has ended."""
        return self.socket.closed

    def violated(self, text: str) -> None:
        """The server refuses a subject; all it says of it is this text, in lower case."""
        subject = text.partition('"')[2].rpartition('"')[0]
        asking = [future for future, each in self._asking.items() if each == subject]
        for future in asking:
            if not future.done():
                future.set_result(text)
        if asking:
            return
        if len(self.violations) < 10:
            self.violations.append(text)
        self._violated(text)

    def message(
        self, subject: str, reply: str, headers: Mapping[str, str] | None, payload: bytes
    ) -> bytes:
        """A message as `send` takes it.

        Raises:
            PayloadError: it is more than the server takes, or a header's name cannot travel.
        """
        block = header_block(headers) if headers else b""
        size = len(block) + len(payload)
        if size > self.max_payload:
            raise PayloadError(
                f"the message has {size} bytes, more than the server's max_payload of "
                f"{self.max_payload}",
                hint="send less, or raise max_payload in the server's configuration",
            )
        if block:
            head = f"HPUB {subject} {reply} {len(block)} {size}\r\n".encode()
        else:
            head = f"PUB {subject} {reply} {size}\r\n".encode()
        return b"%b%b%b\r\n" % (head, block, payload)

    def send(self, message: bytes) -> None:
        """Write to the socket, in order."""
        self.socket.send(message)

    def subscribe(self, subject: str, receive: Any, queue: str = "") -> int:
        """Ask for a subject's messages; `round_trip` proves that the server has it."""
        self._sid += 1
        self.socket.receivers[b"%d" % self._sid] = receive
        self.socket.send(sub_cmd(subject, queue, self._sid))
        return self._sid

    def unsubscribe(self, sid: int) -> None:
        """No more of it; what is under way still arrives."""
        self.socket.send(unsub_cmd(sid, 0))

    async def round_trip(self, timeout: float = CONNECT_TIMEOUT) -> None:
        """Return when the server has read everything so far.

        Raises:
            ConnectError: it did not answer.
            ConfigurationError: it refused a subject meanwhile.
        """
        try:
            await self._library.flush(timeout)  # type: ignore[arg-type]
        except Exception as error:
            raise translate(error, self.target) from error
        if self.closed:
            raise ConnectError(f"{self.target} closed the connection")
        if self.violations:
            raise ConfigurationError(
                f"{self.target}: {self.violations[0]}",
                hint="give this user the permission",
            )

    async def api(self, subject: str, body: Any = None, timeout: float = CONNECT_TIMEOUT) -> Any:
        """Ask JetStream; the answer as decoded, `error` in it included.

        Raises:
            ConfigurationError: there is no JetStream.
            ConnectError: no answer.
        """
        payload = b"" if body is None else encode(body)
        subject = f"$JS.API.{subject}"
        refused: asyncio.Future[str] = self.socket.loop.create_future()
        self._asking[refused] = subject.lower()
        request = asyncio.ensure_future(self._library.request(subject, payload, timeout))
        try:
            waiting: set[asyncio.Future[Any]] = {request, refused}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if refused.done():
                raise ConfigurationError(
                    f"{self.target}: {refused.result()}",
                    hint="give this user the permission, or make the stream and leave it to others",
                )
            answer = await request
        except nats.errors.NoRespondersError:
            raise ConfigurationError(
                f"stream= is given, but {self.target} has no JetStream",
                hint="switch it on in the server's configuration: jetstream {}",
            ) from None
        except ResilientClientError:
            raise
        except Exception as error:
            raise translate(error, self.target) from error
        finally:
            del self._asking[refused]
            request.cancel()
            refused.cancel()
        return decode(answer.data)

    def discovered(self) -> list[str]:
        """Further servers of its cluster, as host:port."""
        return [server.netloc for server in self._library.discovered_servers]

    async def aclose(self) -> None:
        """Write what waits, and close."""
        self.socket.ended = None
        await self.socket.close()
        await self._library.close()


class Place:
    """Where the servers are and how one is admitted: dials them, each in its turn.

    Args:
        servers: further members of the cluster, as host:port.
        tls: an `ssl.SSLContext`, or true for one that trusts the system's authorities.
        nkey: the seed, or the path of a file that holds it.
        credentials: the path of a .creds file.
        heartbeat: seconds between two pings; after two without an answer the connection is over.

    Raises:
        ConfigurationError: more than one way to be admitted.
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
        self._targets = [target, *(Target(f"nats://{each.strip()}") for each in servers)]
        self._discovered: list[str] = []
        self._turn = 0
        self._tls = ssl.create_default_context() if tls is True else tls or None
        self._heartbeat = heartbeat
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

    async def connect(self, ended: Callable[[str], None], violated: Any) -> Connection:
        """Connect to the first server that lets us, beginning with the one whose turn it is.

        Raises:
            ConnectError: none of them is there.
            ConfigurationError: one is, but will never let us in.
        """
        known = {target.hostport: target for target in self._targets}
        for hostport in self._discovered:
            known.setdefault(hostport, Target(f"nats://{hostport}"))
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
                self._discovered = connection.discovered()[:100]
                return connection
        assert failed is not None  # noqa: S101
        raise failed

    async def _connect(
        self, target: Target, ended: Callable[[str], None], violated: Any
    ) -> Connection:
        login = {**self._login, **self._secret()}
        socket: _Socket | None = None
        connection: Connection | None = None
        library: _Library | None = None

        async def told(error: Exception) -> None:
            text = str(error).removeprefix("nats: ")
            if connection is not None and _PERMISSIONS in text:
                connection.violated(text)

        try:
            async with asyncio.timeout(2 * CONNECT_TIMEOUT if self._tls else CONNECT_TIMEOUT):
                socket = await dial(_Socket, target, DEFAULT_PORT, None)
                wire = _Wire(socket, target, must_encrypt=self._tls is not None)
                library = _Library(wire)
                await library.connect(
                    [f"nats://{target.host}:{target.port(DEFAULT_PORT)}"],
                    error_cb=told,
                    allow_reconnect=False,
                    max_reconnect_attempts=1,
                    dont_randomize=True,
                    connect_timeout=CONNECT_TIMEOUT,  # type: ignore[arg-type]
                    ping_interval=self._heartbeat,  # type: ignore[arg-type]
                    max_outstanding_pings=1,
                    tls=self._tls,
                    **login,
                )
            if not library.is_connected:
                raise ProtocolError(
                    f"{target} does not shake hands as a NATS server does", sent=False
                )
            connection = Connection(target, socket, library, ended, violated)
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
