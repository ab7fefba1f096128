"""The server's end: a subscription for every pattern, replies on `<channel>.reply`."""

from __future__ import annotations

import asyncio
import logging
import ssl
from functools import partial
from typing import TYPE_CHECKING, Any

from resilient_client._checks import integer, seconds
from resilient_client.context import PING_PATTERN
from resilient_client.errors import (
    ConfigurationError,
    ConnectError,
    ConnectionLost,
    InvalidPayloadError,
    ProtocolError,
)
from resilient_client.message import Message, Reply
from resilient_client.transports._backlog import Backlog, Seldom
from resilient_client.transports._base import DEFAULT_MAX_SIZE
from resilient_client.transports._link import ServerLink
from resilient_client.transports._nest import (
    CANCEL_ROUTE,
    answer_by_broker,
    greeting_packet,
    is_ours,
    reply_packet,
    take_cancel,
)
from resilient_client.transports._packets import read_request, text_event
from resilient_client.transports.redis._connection import Refused
from resilient_client.transports.redis._connector import Connector, no_queues
from resilient_client.transports.redis._consumer import ACK_WAIT, MAX_DELIVER, Consumer
from resilient_client.transports.redis._session import Session, together
from resilient_client.transports.redis.client import STREAM_LENGTH

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from resilient_client.transports._base import App, Subscription, Target

log = logging.getLogger("resilient_client.redis")

_CANCEL = CANCEL_ROUTE.encode()


class ServerListener:
    """The server's end: one connection that hears, one that replies; one more for a stream.

    Args:
        tls, username, password, db, ssl_ca_certs, ssl_certfile, ssl_keyfile: see `ClientTransport`.
        wildcards: whether `*` and `?` in a string pattern stand for anything.
        stream: events are also read from this stream, each by one server of the group.
        group: the consumer group, one for each service that is to hear every event; by default
            named as the stream.
        ack_wait: seconds after which an event that its server has not ended goes to another.
        max_deliver: how often an event is tried before it is set aside in `<stream>.dead`.
        stream_length: entries that `<stream>.dead` keeps, about.
        queue: refused: pub/sub cannot share.
        max_size: bytes of one payload, each way.
    """

    url_path = True
    url_tls = True
    url_login = True
    handler_options = frozenset({"queue"})

    def __init__(
        self,
        target: Target,
        app: App,
        *,
        tls: bool | ssl.SSLContext = False,
        username: str | None = None,
        password: str | None = None,
        db: int | None = None,
        ssl_ca_certs: str | None = None,
        ssl_certfile: str | None = None,
        ssl_keyfile: str | None = None,
        wildcards: bool = True,
        stream: str | None = None,
        group: str | None = None,
        ack_wait: float = ACK_WAIT,
        max_deliver: int = MAX_DELIVER,
        stream_length: int = STREAM_LENGTH,
        queue: str | None = None,
        max_size: int = DEFAULT_MAX_SIZE,
    ) -> None:
        if queue is not None:
            raise no_queues("redis://")
        self.address = str(target)
        self._app = app
        self._max_size = max_size
        self._wildcards = wildcards
        self._connector = Connector(
            target,
            tls=tls,
            username=username,
            password=password,
            db=db,
            ssl_ca_certs=ssl_ca_certs,
            ssl_certfile=ssl_certfile,
            ssl_keyfile=ssl_keyfile,
        )
        self._link = ServerLink[Session](self.address, self._dial, app)
        self._backlog = Backlog(app, "redis", self.address)
        self._refused = Seldom(app.clock)
        self._make_consumer: Callable[[], Consumer] | None = None
        if stream is not None:
            self._make_consumer = partial(
                Consumer,
                app,
                self._link,
                endpoint=self.address,
                stream=stream,
                group=stream if group is None else group,
                ack_wait=seconds("ack_wait", ack_wait, finite=True),
                max_deliver=integer("max_deliver", max_deliver),
                dead_length=integer("stream_length", stream_length),
                is_glob=self._is_glob,
            )
        self._routes: dict[bytes, str] = {}  # by channel or channel pattern
        self._globs: set[bytes] = set()
        self._stopping = True  # not started yet
        self._consumer: Consumer | None = None

    def check_pattern(self, handler: Subscription) -> None:
        """Refuse what a handler asks for and Redis does not have."""
        if "queue" in handler.extras:
            raise no_queues(f"{handler.route}: redis://")
        try:
            handler.route.encode()
        except UnicodeEncodeError as error:
            raise ConfigurationError(f"a channel cannot be named so: {error}") from None

    def _is_glob(self, subscription: Subscription) -> bool:
        """`*` and `?` also match themselves, so nothing is lost where none was meant."""
        pattern = subscription.pattern
        return self._wildcards and isinstance(pattern, str) and ("*" in pattern or "?" in pattern)

    # ---------------------------------------------------------------------------- the connection

    async def _dial(self) -> Session:
        session = Session(self._received, lambda _, reason: self._link.lost(session, reason))
        await self._connector.connect(session, reader=self._consumer is not None)
        try:
            if not self._stopping:
                wanted = [
                    ("PSUBSCRIBE" if n in self._globs else "SUBSCRIBE", n) for n in self._routes
                ]
                await together(
                    self._subscribe(session, *each) for each in [*wanted, ("SUBSCRIBE", _CANCEL)]
                )
                if self._consumer is not None:
                    await self._consumer.begin(session)
        except ConnectionLost as error:
            session.abort()
            raise ConnectError(f"{self.address}: {error.args[0]}") from None
        except BaseException:
            session.abort()
            raise
        session.check()
        return session

    async def _subscribe(self, session: Session, command: str, name: bytes) -> None:
        try:
            await session.subscribe(command, name)
        except ConfigurationError as error:
            if name not in {_CANCEL, PING_PATTERN.encode()}:
                raise
            log.warning("the channels of this package are refused, it does without: %s", error)

    async def start(self) -> None:
        """See `ServerListener.start`."""
        for subscription in self._app.subscriptions():
            name = subscription.route.encode()
            self._routes[name] = subscription.route
            if self._is_glob(subscription):
                self._globs.add(name)
        self._stopping = False
        if self._link.status == "closed":  # it has been started before
            self._backlog = Backlog(self._app, "redis", self.address)
        if self._make_consumer is not None:
            self._consumer = self._make_consumer()
        await self._link.start()

    # --------------------------------------------------------------------------------- messages

    def _received(self, message: list[bytes]) -> None:
        name, channel, raw = message[1], message[-2], message[-1]
        glob = len(message) == 4
        if channel == _CANCEL:
            if not glob:
                take_cancel(raw, self._backlog.slots)
            return
        try:
            request = read_request(raw)
        except ProtocolError:
            request = text_event(raw)
        if glob and request.external and channel.endswith(b".reply"):
            return  # a reply, perhaps our own: a wildcard hears them too
        route = self._routes.get(name)
        if route is None:
            return
        id_json = request.id
        reply_channel = channel + b".reply"
        if len(request.data) > self._max_size:
            self._too_large(route, len(request.data), reply_channel, id_json)
            return
        if id_json is not None and is_ours(request.metadata, id_json):
            self._publish(reply_channel, greeting_packet(id_json))
        self._backlog.accept(
            Message(
                route,
                request.data,
                request.metadata,
                id_json,
                received=self._app.clock.now(),
                subject=channel.decode(errors="replace") if glob else None,
                raw=message,
            ),
            None if id_json is None else partial(self._respond, reply_channel, id_json),
        )

    def _too_large(self, route: str, size: int, channel: bytes, id_json: bytes | None) -> None:
        text = f"the payload has {size} bytes, more than max_size={self._max_size}"
        log.warning("%s: %s", route, text)
        if id_json is not None:
            reply = Reply(error=InvalidPayloadError(text))
            self._publish(channel, reply_packet(reply, id_json, self._app.codec))

    def _publish(self, channel: bytes, data: bytes) -> None:
        session = self._link.current
        if session is not None:
            session.commands.ask(self._published, "PUBLISH", channel, data)

    def _published(self, receivers: Any) -> None:
        """Redis's answer to a reply: the caller cannot be told of a refusal, so the log is."""
        if isinstance(receivers, Refused) and self._refused.due():
            log.error("replies are refused: Redis says %s", receivers)

    def _respond(self, channel: bytes, id_json: bytes, reply: Reply) -> Awaitable[None] | None:
        session = self._link.current
        if reply.items is None and session is not None and not session.commands.congested:
            data = reply_packet(reply, id_json, self._app.codec)
            session.commands.ask(self._published, "PUBLISH", channel, data)
            return None
        write, codec = _Writer(channel, self._published), self._app.codec
        return answer_by_broker(reply, id_json, self._link.soon, write, codec)

    # -------------------------------------------------------------------------------- its life

    async def stop(self) -> None:
        """See `ServerListener.stop`."""
        if self._stopping:
            return
        self._stopping = True
        if self._consumer is not None:
            self._consumer.stop()
        session = self._link.current
        if session is None:
            return
        names = [("PUNSUBSCRIBE" if n in self._globs else "UNSUBSCRIBE", n) for n in self._routes]
        try:
            async with asyncio.timeout(1.0):
                await together(session.subscribe(*each) for each in names)
        except (ConnectionLost, TimeoutError, ConfigurationError):
            log.debug("%s: not every subscription was ended", self.address)

    async def aclose(self) -> None:
        """See `ServerListener.aclose`."""
        self._stopping = True
        self._backlog.close()
        if self._consumer is not None:
            await self._consumer.close()
        session = await self._link.aclose()
        if session is not None:
            await session.close()


class _Writer:
    """Publishes the packets of one reply, and notices that nobody hears them any more."""

    __slots__ = ("_channel", "_gone", "_told")

    def __init__(self, channel: bytes, told: Callable[[Any], object]) -> None:
        self._channel = channel
        self._told = told
        self._gone = False

    async def __call__(self, session: Session, data: bytes) -> None:
        if session.closed or session.commands.congested:
            await session.commands.drained()
        if self._gone:
            raise ConnectionError("the caller has gone")
        session.commands.ask(self._published, "PUBLISH", self._channel, data)

    def _published(self, receivers: Any) -> None:
        self._told(receivers)
        if receivers == 0:
            self._gone = True
