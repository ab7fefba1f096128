"""What a transport is, on both ends.

A transport is one module of this package, named after its URL scheme, with a `ClientTransport` and
a `ServerListener`. Nothing registers it: it is found by its name.
"""

from __future__ import annotations

import base64
import errno
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import SplitResult, unquote, urlsplit

from resilient_client.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

    from resilient_client.clock import Clock
    from resilient_client.codecs import Codec
    from resilient_client.errors import RemoteError
    from resilient_client.events import Event, Status
    from resilient_client.message import Call, Message, Pattern, Receipt, Reply

DEFAULT_MAX_SIZE = 16 * 1024 * 1024
"""Bytes of one message, each way."""


class Transport(Protocol):
    """The client's end: carries one call to one endpoint and brings the reply back.

    A class `ClientTransport` in the transport's module, made with `(target, env, **options)`.
    A true `url_path` says that the path of a URL means something to it, a true `url_tls` that an s
    after the scheme asks for TLS, a true `url_login` that user and password are used; elsewhere
    they are refused.

    It owns connecting, the table of pending replies and the mapping of its library's errors to
    ours; deadlines arrive as numbers on the call, retries and breakers are not its business.

    One that is made for a second event loop once the first has closed (or was left behind in a
    forking parent) has `forget_loop()`: it becomes as new without touching its connections, for no
    callback of that loop will run again, and a parent's socket is the parent's.
    """

    @property
    def endpoint(self) -> str:
        """The URL of the peer, credentials redacted."""

    @property
    def status(self) -> Status:
        """The state of the connection."""

    def encode(self, call: Call) -> None:
        """Put the payload into `call.body`, once however many attempts follow.

        Raises:
            PayloadError: it cannot be encoded, or is larger than this transport may carry.
        """

    def decode(self, body: Any, type: Any, /) -> Any:  # noqa: A002
        """The value of a reply's or item's body as `type`.

        Raises:
            PayloadError: it is not such a value; the text says where.
        """

    def idempotent(self, call: Call) -> bool:
        """Whether the protocol itself says that executing this call twice is harmless."""

    async def connect(self, deadline: float) -> None:
        """Have a connection by `deadline`, or raise `ConnectError`."""

    def request(self, call: Call) -> Awaitable[Reply]:
        """Send a request and wait for its reply: a value, or for `kind == "stream"` the items.

        A stream is returned with its first item at hand (or at its end). By
        `call.connect_deadline` there is a connection, by `call.attempt_deadline` a reply, or
        `call.expired(...)` is raised. Sets `call.sent` just before it writes. Cancelled, it leaves
        nothing behind.

        Raises:
            ConnectError: no connection; nothing was sent.
            ConnectionLost: the connection ended after the request was written.
            ReplyTimeout, DeadlineExceeded: no reply in time.
            ProtocolError: the peer does not speak this protocol.
            RemoteError: the peer answered with an error.
        """

    def publish(self, call: Call) -> Receipt | Awaitable[Receipt]:
        """Hand an event over, by `call.attempt_deadline`, and say what is proved about it.

        A coroutine function, or a plain one where there may be nothing to wait for.
        """

    async def aclose(self) -> None:
        """Fail what is pending with `ConnectionLost` and leave nothing behind. Idempotent."""


class Respond(Protocol):
    """Puts a handler's reply on the wire: at once, or while what it returns is awaited.

    Called, and awaited, in the handler's own task. An `async def` is one; where nearly every reply
    can be written at once, a plain function that mostly returns None saves a coroutine for each.
    """

    def __call__(self, reply: Reply, /) -> Awaitable[None] | None: ...


class Job(Protocol):
    """One message being handled.

    Attributes:
        message: as it was accepted.
        cancelled: it was, other than by a cancellation of the task it ran in.
        expired: and that because its time was up.
    """

    message: Message
    cancelled: bool
    expired: bool

    def cancel(self) -> None:
        """The caller has left: cancel the request's handler. An event's handlers run on."""

    def unanswered(self) -> RemoteError:
        """Why there was no reply: its time was up, or the server's."""


class Slots(Protocol):
    """The handlers that run for one connection or consumer, and the cap on their number."""

    @property
    def jobs(self) -> Collection[object]:
        """Those that run."""

    def drop(self) -> None:
        """Forget the events that wait for a free handler: they were not accepted yet.

        Whoever sent them has left and is told so, or the broker gives them to another server.
        """

    def cancel(self, id: Any) -> Sequence[Job]:  # noqa: A002
        """The caller of the request with this `Message.id` has left: cancel what handles it.

        Returns what that was: several where patterns overlap and each has its handler.
        """

    def close(self) -> None:
        """The connection is gone: cancel its request handlers; event handlers run to their end."""


class Subscription(Protocol):
    """One registered pattern.

    Attributes:
        pattern, route: as registered, and its lookup key.
        is_event: for events; otherwise for requests.
        extras: options of this one handler that only its transport understands.
    """

    pattern: Pattern
    route: str
    is_event: bool
    extras: Mapping[str, Any]


class App(Protocol):
    """The server, as a listener sees it."""

    clock: Clock
    codec: Codec
    draining: bool  # it takes nothing new in

    def subscriptions(self) -> Sequence[Subscription]:
        """What the handlers are registered for: what a broker's listener subscribes to."""

    def handles(self, route: str) -> bool:
        """Whether a request handler is registered for this route."""

    def receivers(self, route: str) -> int:
        """How many handlers hear an event of this route: without event handlers, the request's."""

    def slots(
        self, pause: Callable[[], None], resume: Callable[[], None], *, farewell: bool = False
    ) -> Slots:
        """A cap for one connection or consumer.

        Args:
            pause: called when nothing more should be read from it.
            resume: called when reading may go on.
            farewell: when the server ends, answer the requests that this cuts short. For brokers
                that do not tell the callers in another way: elsewhere their connection closes, or
                another server is given the request.
        """

    def accept(
        self, message: Message, respond: Respond | None, slots: Slots, transport: str
    ) -> Job | None:
        """Take in one message; returns at once.

        A request (`message.id` is not None) runs in a task that then awaits `respond(reply)`: a
        value, `reply.error` or `reply.items`. For an event, `respond` may be None; given, it is
        awaited once when all its handlers have ended, `reply.error` set when one of them failed:
        the place to acknowledge. None when nothing is to run.
        """

    async def serve(
        self, message: Message, respond: Respond, slots: Slots, transport: str
    ) -> Job | None:
        """Take in one request, and handle it in the caller's own task: `accept` without a task.

        Returns when `respond(reply)` has been awaited, or when the handler was cancelled before
        that: by its deadline, by `slots.close()` or by the server's end, none of which cancels what
        the caller does afterwards. A cancellation of the caller's task passes through. None when
        the request was refused.
        """

    def notify(self, event: Event) -> None:
        """Tell the server's observers, and its log."""


class ServerListener(Protocol):
    """The server's end: takes messages in for the app and puts its replies on the wire.

    A class `ServerListener` in the transport's module, made with `(target, app, **options)`. What
    single handlers may be registered with besides (`Subscription.extras`) is named in its
    `handler_options`, a frozenset; what else it wants of a handler, it checks in `check_pattern`.
    `url_path`, `url_tls` and `url_login` are as in `Transport`.

    Attributes:
        address: the URL really bound, once started.
    """

    address: str

    async def start(self) -> None:
        """Return when everything is bound, subscribed and acknowledged.

        Raises:
            ConfigurationError: it cannot be, and trying again would not help.
            ConnectError: the broker is not there.
        """

    async def stop(self) -> None:
        """Take nothing new in; replies still go out."""

    async def aclose(self) -> None:
        """Close the connections. Idempotent."""


class Target:
    """A URL taken apart; `str` and `repr` show it without credentials and query."""

    __slots__ = ("url",)

    def __init__(self, url: str) -> None:
        self.url: SplitResult = urlsplit(url)

    @property
    def scheme(self) -> str:
        """As written: a trailing s means TLS."""
        return self.url.scheme

    @property
    def hostport(self) -> str:
        """The host and port as written."""
        return self.url.netloc.rpartition("@")[2]

    @property
    def host(self) -> str:
        """The host's name or address."""
        return self.url.hostname or "localhost"

    def port(self, default: int) -> int:
        """The port, or the protocol's own; 0 is any free one on a server."""
        port = self.url.port
        return default if port is None else port

    def address(self, default_port: int) -> str:
        """Host and port as others take them: the brackets of IPv6 included."""
        host = self.host
        return f"{f'[{host}]' if ':' in host else host}:{self.port(default_port)}"

    def bound(self, port: int) -> str:
        """The URL with the port that a server has really got."""
        host = self.hostport
        if self.url.port is not None:
            host = host.rpartition(":")[0]
        return f"{self.scheme}://{host}:{port}{self.url.path.rstrip('/')}"

    def cannot_be_bound(self, error: Exception) -> ConfigurationError:
        """What a server's error says that cannot listen there."""
        number = getattr(error, "errno", None)
        hint = "is another process listening there? port 0 is any free one"
        if isinstance(error, socket.gaierror) or number == errno.EADDRNOTAVAIL:
            hint = "a server's host is an address of this machine: 127.0.0.1, or 0.0.0.0 for all"
        elif number == errno.EACCES:
            hint = "a port below 1024 takes special rights: take a higher one"
        return ConfigurationError(
            f"{self} cannot be bound: {getattr(error, 'strerror', None) or error}", hint=hint
        )

    @property
    def authorization(self) -> str | None:
        """User and password as HTTP's `authorization` header, if there are any."""
        if self.url.username is None:
            return None
        pair = f"{self.username}:{self.password or ''}".encode()
        return f"Basic {base64.b64encode(pair).decode()}"

    @property
    def username(self) -> str | None:
        """Percent-decoded."""
        return None if self.url.username is None else unquote(self.url.username)

    @property
    def password(self) -> str | None:
        """Percent-decoded; never shown."""
        return None if self.url.password is None else unquote(self.url.password)

    def __str__(self) -> str:
        return f"{self.url.scheme}://{self.hostport}{self.url.path}"

    def __repr__(self) -> str:
        return f"<Target {self}>"


@dataclass(slots=True)
class Environment:
    """What a client gives its transports besides the URL."""

    clock: Clock
    codec: Codec
    notify: Callable[[Event], None]
