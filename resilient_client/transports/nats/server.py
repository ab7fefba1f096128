"""The server's end: a subscription for each pattern, replies to where requests say."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from resilient_client._checks import integer, seconds
from resilient_client.context import PEER_HEADER, fresh_id
from resilient_client.errors import (
    ConfigurationError,
    ConnectError,
    ProtocolError,
    ResilientClientError,
)
from resilient_client.events import Degraded
from resilient_client.message import Message
from resilient_client.transports._backlog import Backlog, Seldom
from resilient_client.transports._link import FIRST_WAIT, LONGEST_WAIT, ServerLink, spawn
from resilient_client.transports._nest import CANCEL_ROUTE, answer, answer_by_broker, is_ours
from resilient_client.transports._packets import read_request
from resilient_client.transports.nats import _jetstream
from resilient_client.transports.nats._connector import Connector
from resilient_client.transports.nats._wire import checked_subject, joined
from resilient_client.transports.nats.client import HEARTBEAT

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping, Sequence

    from resilient_client.message import Reply
    from resilient_client.transports._base import App, Subscription, Target
    from resilient_client.transports.nats._connection import Connection

log = logging.getLogger("resilient_client.nats")

MAX_GREETED = 4096  # clients of our make that are remembered as knowing us
_BROKERS_OWN = b"$"
"""Begins the subjects of the broker's own API: what is sent there is a command. Nobody waits there
for a reply, but somebody may want us to send the command, with rights of ours."""
_PRIVATE = (b"_INBOX.", _BROKERS_OWN, CANCEL_ROUTE.encode())  # no pattern of > alone means these


class _Subject:
    """One subscription: its own cap on running handlers, and what waits for it."""

    def __init__(self, listener: ServerListener, app: App, route: str, queue: str) -> None:
        self.route = route
        self.queue = queue
        self.sid = 0
        tokens = route.split(".")
        self._wild = "*" in tokens or tokens[-1] == ">"
        self._any = tokens[0] in ("*", ">")
        self._listener = listener
        self._now = app.clock.now
        self.backlog = Backlog(app, "nats", listener.address)

    def received(self, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        """A message has arrived."""
        if self._any and subject.startswith(_PRIVATE):
            return
        try:
            request = read_request(data)
        except ProtocolError as error:
            log.warning("a message on %.200r was dropped: %s", self.route, error.args[0])
            return
        metadata = joined(request.metadata, headers)
        respond = None
        if reply and request.id is not None:
            if reply.startswith(_BROKERS_OWN):
                self._listener.refuse(self.route, reply)
                return
            respond = partial(self._listener.respond, reply, request.id)
            if PEER_HEADER in metadata:
                self._listener.greet(reply, metadata, request.id)
        message = Message(
            self.route,
            request.data,
            metadata,
            None if respond is None else reply,  # its id is unique to its inbox only
            received=self._now(),
            subject=subject.decode(errors="replace") if self._wild else None,
            raw=(subject, reply, data, headers),
        )
        self.backlog.accept(message, respond)


class ServerListener:
    """The server's end.

    Args:
        queue: the queue group: of its members one gets each message. Without it every replica gets
            each, and answers it. A handler may have its own: `message_pattern(p, queue=...)`.
        stream: the JetStream stream whose events are handled, made when it is missing. Replicas of
            one `queue` share its durable consumers.
        ack_wait: seconds until an event of a dead replica is delivered to another.
        max_deliver: how often one event is delivered, at most.
        tls, token, nkey, credentials, servers, heartbeat: as for the client.
    """

    url_login = True

    handler_options = frozenset({"queue"})

    def __init__(
        self,
        target: Target,
        app: App,
        *,
        queue: str | None = None,
        stream: str | None = None,
        ack_wait: float = _jetstream.ACK_WAIT,
        max_deliver: int = _jetstream.MAX_DELIVER,
        tls: bool | ssl.SSLContext = False,
        token: str | None = None,
        nkey: str | None = None,
        credentials: str | None = None,
        servers: str | Sequence[str] = (),
        heartbeat: float = HEARTBEAT,
    ) -> None:
        self.address = str(target)
        self._app = app
        self._connector = Connector(
            target,
            servers=servers,
            tls=tls,
            token=token,
            nkey=nkey,
            credentials=credentials,
            heartbeat=heartbeat,
        )
        self._queue = "" if queue is None else checked_subject(queue)
        self._stream = None if stream is None else _jetstream.checked_name(stream)
        self._ack_wait = seconds("ack_wait", ack_wait, finite=True)
        self._max_deliver = integer("max_deliver", max_deliver)
        self._subjects: list[_Subject] = []
        self._consumers: list[_jetstream.Consumer] = []
        self._durable: list[str] = []
        self._cancels = f"{CANCEL_ROUTE}.{fresh_id()}"
        self._greets = False  # whether we may hear of callers that have left
        self._greeted: set[bytes] = set()
        self._refused = Seldom(app.clock)
        self._strange = Seldom(app.clock)
        self._stopped = False
        self._restoring: asyncio.Task[None] | None = None
        self._ready: Connection | None = None  # subscribed on, if not yet the link's own
        self._link: ServerLink[Connection] = ServerLink(self.address, self._dial, app)

    def check_pattern(self, handler: Subscription) -> None:
        """Refuse a pattern that cannot be a subject.

        Raises:
            ConfigurationError: see `checked_subject`.
        """
        checked_subject(handler.route, wildcards=True)
        queue = handler.extras.get("queue")
        if queue is not None:
            checked_subject(queue)

    async def start(self) -> None:
        """See `ServerListener.start`."""
        queues: dict[str, str] = {}
        durable: dict[str, str] = {}
        for handler in self._app.subscriptions():
            known = durable if handler.is_event and self._stream is not None else queues
            queue = handler.extras.get("queue", self._queue)
            if known.setdefault(handler.route, queue) != queue:
                raise ConfigurationError(
                    f"the handlers of {handler.route!r} are in the queue groups "
                    f"{known[handler.route]!r} and {queue!r}",
                    hint="all handlers of one pattern are in one group",
                )
        self._subjects = [_Subject(self, self._app, *each) for each in queues.items()]
        self._durable = list(durable)
        self._consumers = [
            _jetstream.Consumer(
                self._app,
                self.address,
                route,
                self._stream or "",
                queue or "resilient_client",
                ack_wait=self._ack_wait,
                max_deliver=self._max_deliver,
                current=self._current,
                connected=self._connected,
                gone=self._restore,
            )
            for route, queue in durable.items()
        ]
        self._stopped = False
        await self._link.start()

    def _current(self) -> Connection | None:
        """The connection to write to: messages may arrive before dialling has ended."""
        ready = self._ready
        return None if ready is None or ready.closed else ready

    async def _connected(self) -> Connection:
        """A connection to write to; one that was lost comes back as a rule."""
        return self._current() or await self._link.soon()

    async def _dial(self) -> Connection:
        connection: Connection | None = None

        def ended(reason: str) -> None:
            if connection is not None:
                self._link.lost(connection, reason)

        def violated(text: str) -> None:
            if self._link.current is None:
                return  # the dial fails with it
            if "violation for publish" not in text or self._refused.due():  # it is every reply
                self._app.notify(Degraded(self.address, text))

        connection = await self._connector.connect(ended, violated)
        self._ready = connection
        try:
            if not self._stopped:
                await self._subscribe(connection)
        except BaseException:
            await connection.aclose()
            raise
        connection.established = True
        return connection

    async def _subscribe(self, connection: Connection) -> None:
        for subject in self._subjects:
            subject.sid = connection.subscribe(subject.route, subject.received, subject.queue)
        await connection.round_trip()
        if self._restoring is not None:
            self._restoring.cancel()  # it was about the connection before
            self._restoring = None
        try:
            await self._attach(connection)
        except ConnectError as error:
            if self._link.status != "reconnecting" or connection.closed:
                raise
            # requests need no JetStream: they are served while it is not there
            reason = f"no events of stream {self._stream}: {error.args[0]}"
            self._app.notify(Degraded(self.address, reason))
            self._restore(connection)
        self._greeted.clear()
        connection.subscribe(self._cancels, self._cancel)
        try:
            await connection.round_trip()
        except ConfigurationError:  # not permitted: then the deadline alone ends what is left
            self._greets = False
        else:
            self._greets = True

    async def _attach(self, connection: Connection) -> None:
        """Have the stream and its consumers, as far as they are not there on this connection."""
        missing = [each for each in self._consumers if each.attached is not connection]
        if missing and self._stream is not None:
            await _jetstream.ensure_stream(connection, self._stream, self._durable)
            for consumer in missing:
                await consumer.attach(connection)
            await connection.round_trip()

    def _restore(self, connection: Connection) -> None:
        """Have the events of the stream again, as soon as it can be had."""
        if self._restoring is None or self._restoring.done():
            self._restoring = spawn(self._restored(connection), f"restore {self._stream}")

    async def _restored(self, connection: Connection) -> None:
        wait = FIRST_WAIT
        while not self._stopped and not connection.closed:
            try:
                await self._attach(connection)
            except ConnectError:
                await asyncio.sleep(wait)
                wait = min(LONGEST_WAIT, 2 * wait)
            except ResilientClientError as error:
                log.error("%s: %s", self.address, error)  # noqa: TRY400
                connection.abort()  # it comes back, and is refused
            else:
                return

    def refuse(self, route: str, reply: bytes) -> None:
        """Tell of a request that is not run, because of where it wants its reply."""
        if self._strange.due():
            log.warning("a request on %.200r is dropped: its reply is for %.200r", route, reply)

    def greet(self, reply: bytes, headers: Mapping[str, str], id_json: bytes) -> None:
        """Show ourselves to a client of our make, so that it tells us when a caller leaves."""
        inbox = reply.rpartition(b".")[0]
        connection = self._current()
        if inbox in self._greeted or not self._greets or connection is None:
            return
        if not is_ours(headers, id_json):
            return
        if len(self._greeted) >= MAX_GREETED:
            self._greeted.clear()
        self._greeted.add(inbox)
        connection.send(
            connection.message(
                reply.decode(errors="replace"), "", {PEER_HEADER: self._cancels}, b""
            )
        )

    def _cancel(self, _subject: bytes, _reply: bytes, data: bytes, _headers: Any) -> None:
        for subject in self._subjects:
            subject.backlog.slots.cancel(data)

    async def respond(self, to: bytes, id_json: bytes, reply: Reply) -> None:
        """Write a reply; one that the broker would not take becomes an error."""
        subject = to.decode(errors="replace")

        async def write(connection: Connection, data: bytes) -> None:
            if connection.closed or connection.socket.congested:
                await connection.socket.drained()
            connection.send(connection.message(subject, "", None, data))

        codec, connection = self._app.codec, self._current()
        if reply.items is None and connection is not None and not connection.socket.congested:
            await answer(reply, id_json, partial(write, connection), codec)
        else:
            await answer_by_broker(reply, id_json, self._connected, write, codec)

    async def stop(self) -> None:
        """See `ServerListener.stop`."""
        self._stopped = True
        for consumer in self._consumers:
            consumer.stop()
        connection = self._link.current
        if connection is None:
            return
        for subject in self._subjects:
            connection.unsubscribe(subject.sid)
        try:
            await connection.round_trip(1.0)  # what was under way has arrived
        except (ConfigurationError, ConnectionError):
            log.debug("the broker did not see %s leave", self.address)

    async def aclose(self) -> None:
        """See `ServerListener.aclose`."""
        self._stopped = True
        for consumer in self._consumers:
            consumer.close()
        for subject in self._subjects:
            subject.backlog.close()
        if self._restoring is not None:
            self._restoring.cancel()
            await asyncio.wait({self._restoring})
        connection = await self._link.aclose()
        if connection is not None:
            await connection.aclose()
