"""What a transport is, on both ends.

A transport is one module of this package, named after its URL scheme, with a `ClientTransport` and
a `ServerListener`. Nothing registers it: `open_transport` finds it by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Protocol
from urllib.parse import SplitResult, urlsplit

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from resilient_client.clock import Clock
    from resilient_client.codecs import Codec
    from resilient_client.events import Event, Status
    from resilient_client.message import Call, Message, Pattern, Receipt, Reply

DEFAULT_MAX_SIZE = 16 * 1024 * 1024
"""Bytes of one message, each way."""


class Transport(Protocol):
    """The client's end: carries one call to one endpoint and brings the reply back.

    It owns connecting, the table of pending replies and the mapping of its library's errors to
    ours; deadlines arrive as numbers on the call, retries and breakers are not its business.

    Attributes:
        endpoint: the URL of the peer, credentials redacted.
        status: the state of the connection.
    """

    endpoint: str
    status: Status

    def encode(self, call: Call) -> None:
        """Put the payload into `call.body`, once however many attempts follow.

        Raises:
            PayloadError: it cannot be encoded, or is larger than this transport may carry.
        """

    def decode(self, body: Any, type: Any) -> Any:  # noqa: A002
        """The value of a reply's or item's body as `type`.

        Raises:
            PayloadError: it is not such a value; the text says where.
        """

    def idempotent(self, call: Call) -> bool:
        """Whether the protocol itself says that executing this call twice is harmless."""

    async def connect(self, deadline: float) -> None:
        """Have a connection by `deadline`, or raise `ConnectError`."""

    async def request(self, call: Call) -> Reply:
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

    async def publish(self, call: Call) -> Receipt:
        """Hand an event over, by `call.attempt_deadline`, and say what is proved about it."""

    async def aclose(self) -> None:
        """Fail what is pending with `ConnectionLost` and leave nothing behind. Idempotent."""


class Respond(Protocol):
    """Puts a handler's reply on the wire; awaited in the handler's own task."""

    async def __call__(self, reply: Reply, /) -> None: ...


class Slots(Protocol):
    """The cap of one connection or consumer on handlers running for it, as the server counts them.

    A listener that reads from a connection makes one with `App.slots(pause, resume)`: `pause` is
    called when the connection should not be read from any more, `resume` when it may.
    """

    def close(self) -> None:
        """The connection is gone: cancel its request handlers; event handlers run to their end."""


class App(Protocol):
    """The server, as a listener sees it."""

    clock: Clock
    codec: Codec

    def patterns(self) -> Sequence[Subscription]:
        """What the handlers are registered for: what a broker's listener subscribes to."""

    def slots(self, pause: Callable[[], None], resume: Callable[[], None]) -> Slots:
        """A cap for one connection."""

    def accept(
        self, message: Message, respond: Respond | None, slots: Slots, transport: str
    ) -> asyncio.Task[Any] | None:
        """Take in one message; returns at once.

        The handler runs in a task, which for a request then awaits `respond(reply)`: a value, an
        error (`reply.error`) or items. For an event `respond` is None, or is called with a reply
        whose `receipt` tells how many handlers it has, when the transport wants to know (HTTP), and
        after the handlers when `reply.error` or success must decide on an acknowledgement.
        Returns the task, whose cancellation is the caller's leaving; None when nothing runs.
        """

    def notify(self, event: Event) -> None:
        """Tell the server's observers."""


class Subscription(Protocol):
    """One registered pattern."""

    pattern: Pattern
    route: str
    is_event: bool


class ServerListener(Protocol):
    """The server's end: takes messages in for the app and puts its replies on the wire.

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
    """A URL taken apart: what a transport's constructor is given.

    `text` and `repr` show it without credentials.
    """

    __slots__ = ("query", "url")

    schemes: ClassVar[tuple[str, ...]] = ()

    def __init__(self, url: str) -> None:
        self.url: SplitResult = urlsplit(url)
        self.query = self.url.query

    @property
    def text(self) -> str:
        """The URL for people: without user, password and query."""
        return f"{self.url.scheme}://{self.hostport}{self.url.path}"

    @property
    def hostport(self) -> str:
        """The host and port as written."""
        return self.url.netloc.rpartition("@")[2]

    @property
    def host(self) -> str:
        """The host's name or address."""
        return self.url.hostname or "localhost"

    def port(self, default: int) -> int:
        """The port, or the protocol's own."""
        port = self.url.port
        return default if port is None else port

    def __repr__(self) -> str:
        return f"<Target {self.text}>"


class Environment(Protocol):
    """What a client gives its transports besides the URL."""

    clock: Clock
    codec: Codec
    headers: Mapping[str, str]
    notify: Callable[[Event], None]
    on_close: Callable[[], Awaitable[None]]
