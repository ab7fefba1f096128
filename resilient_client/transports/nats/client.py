"""The client's end: one wildcard inbox for all replies."""

from __future__ import annotations

import asyncio
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

from resilient_client._json import decode
from resilient_client.context import PEER_HEADER, fresh_id
from resilient_client.errors import (
    ConfigurationError,
    ConnectError,
    ConnectionLost,
    NoHandlerError,
    PayloadError,
    ProtocolError,
)
from resilient_client.events import Degraded
from resilient_client.message import STORED, WRITTEN
from resilient_client.patterns import pattern_json
from resilient_client.transports._base import DEFAULT_MAX_SIZE
from resilient_client.transports._link import Link, LinkedTransport
from resilient_client.transports._nest import CANCEL_ROUTE, Peers, deliver
from resilient_client.transports._packets import event_packet, read_response, request_packet
from resilient_client.transports._replies import PendingReplies
from resilient_client.transports._transport import BaseTransport
from resilient_client.transports.nats import _jetstream
from resilient_client.transports.nats._connector import Connector
from resilient_client.transports.nats._wire import checked_subject, read_headers, status

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Sequence

    from resilient_client.codecs import Codec
    from resilient_client.message import Call, Receipt, Reply
    from resilient_client.transports._base import Environment, Target
    from resilient_client.transports.nats._connection import Connection

NO_RESPONDERS = 503
HEARTBEAT = 5.0
MAX_SUBJECTS = 10_000
_NOBODY = "nobody is subscribed to this subject"
_STORED = "s"  # begins the key of a message that JetStream acknowledges


class _Session:
    """One connection of the client, its inbox and who waits there."""

    def __init__(self, inbox: str, replies: PendingReplies, codec: Codec) -> None:
        self.inbox = inbox
        self.replies = replies
        self.subjects: dict[str, str] = {}  # of who waits: the keys of this table of pending
        self.streamed: set[str] = set()  # subjects that the stream is known to take
        self.making = asyncio.Lock()  # of the stream
        self.peers = Peers(self._tell)  # each has a subject of its own for that
        self.connection: Connection
        self._codec = codec
        self._skip = len(inbox)

    def received(self, subject: bytes, _: bytes, data: bytes, headers: bytes | None) -> None:
        """A message has come into the inbox."""
        key = subject[self._skip :].decode(errors="replace")
        if not data and headers is not None:
            if status(headers) == NO_RESPONDERS:
                self.replies.fail(key, NoHandlerError(_NOBODY, sent=False))
                return
            peer = read_headers(headers).get(PEER_HEADER)
            if peer is not None:
                self._meet(peer)
                return
        if key.startswith(_STORED):
            self.replies.value(key, data, last=True)
            return
        try:
            response = read_response(data)
            if response.external and response.id == key:
                response = read_response(data, by_id=True)
        except ProtocolError as error:
            self.replies.fail(key, error)
        else:
            deliver(self.replies, key, response, self._codec)

    def _meet(self, peer: str) -> None:
        """A server of our make says where it hears of callers that have left."""
        if not peer.startswith(f"{CANCEL_ROUTE}."):
            return
        try:
            checked_subject(peer)
        except ConfigurationError:
            return  # a stranger's words
        self.peers.meet(peer)

    def _tell(self, peer: str, key: str) -> None:
        if not self.connection.closed:
            reply = f"{self.inbox}{key}".encode()
            self.connection.send(self.connection.message(peer, "", None, reply))

    def violated(self, text: str) -> bool:
        """The server refuses something: whoever waits because of it is told. False: nobody is."""
        subject = text.partition('"')[2].rpartition('"')[0]
        found = [key for key, each in self.subjects.items() if each.lower() == subject]
        for key in found:
            self.replies.fail(
                key,
                ConfigurationError(
                    f"{self.connection.target}: {text}",
                    sent=False,
                    hint="give this user the permission to publish there",
                ),
            )
        return bool(found)


class ClientTransport(LinkedTransport[_Session]):
    """The client's end.

    Args:
        tls: an `ssl.SSLContext`, or true for one that trusts the system's authorities.
        token, nkey, credentials: how to be admitted, where not by the URL's user and password:
            a token, an nkey's seed or the path of its file, the path of a .creds file.
        servers: further members of the cluster, as "host:port,host:port" or a list.
        stream: the JetStream stream that keeps events.
        inbox_prefix: of the subject where replies arrive.
        heartbeat: seconds between two pings; after two without an answer the connection is over.
        max_size: bytes of one payload; the server's own limit is smaller as a rule.
    """

    url_login = True

    def __init__(
        self,
        target: Target,
        env: Environment,
        *,
        tls: bool | ssl.SSLContext = False,
        token: str | None = None,
        nkey: str | None = None,
        credentials: str | None = None,
        servers: str | Sequence[str] = (),
        stream: str | None = None,
        inbox_prefix: str = "_INBOX",
        heartbeat: float = HEARTBEAT,
        max_size: int = DEFAULT_MAX_SIZE,
    ) -> None:
        super().__init__(target, env, max_size)
        self._connector = Connector(
            target,
            servers=servers,
            tls=tls,
            token=token,
            nkey=nkey,
            credentials=credentials,
            heartbeat=heartbeat,
        )
        self._inbox_prefix = checked_subject(inbox_prefix)
        self._stream = None if stream is None else _jetstream.checked_name(stream)
        self._ids = count(1)
        self._link = Link[_Session](self.endpoint, self._dial, clock=env.clock, notify=env.notify)

    async def _dial(self) -> _Session:
        session = _Session(
            f"{self._inbox_prefix}.{fresh_id()}.",
            PendingReplies(self._clock, self._tally),
            self._codec,
        )

        def ended(reason: str) -> None:
            session.replies.fail_all(lambda: ConnectionLost(reason))
            self._link.lost(session, reason)

        def violated(text: str) -> None:
            if not session.violated(text):
                self._notify(Degraded(self.endpoint, text))

        connection = session.connection = await self._connector.connect(ended, violated)
        try:
            connection.subscribe(f"{session.inbox}*", session.received)
            await connection.round_trip()
        except BaseException:
            await connection.aclose()
            raise
        connection.established = True
        return session

    def encode(self, call: Call) -> None:
        """See `Transport.encode`; a route that cannot be a subject is refused here too."""
        checked_subject(call.route)
        BaseTransport.encode(self, call)  # `super()` takes longer than what it calls
        if self._stream is not None and call.kind == "emit":
            key = call.idempotency_key
            call.headers[_jetstream.MESSAGE_ID] = (
                fresh_id() if key is None else f"{call.route} {key}"
            )

    def idempotent(self, call: Call) -> bool:
        """See `Transport.idempotent`: a stream keeps what it is given twice once."""
        return self._stream is not None and call.kind == "emit"

    async def _writable(self, call: Call) -> _Session:
        session = self._link.current or await self._link.get(call.connect_deadline, call)
        if session.connection.socket.congested:
            await self._drained(session.connection.socket, call)
        return session

    async def request(self, call: Call) -> Reply:
        """See `Transport.request`."""
        session = self._link.current
        if session is None or session.connection.socket.congested:
            session = await self._writable(call)
        key = str(next(self._ids))
        metadata = call.metadata
        metadata[PEER_HEADER] = key
        message = session.connection.message(
            call.route,
            session.inbox + key,
            metadata,
            request_packet(pattern_json(call.pattern), call.body, None, key),
        )

        def write() -> None:
            call.sent = True
            session.connection.send(message)

        leave = partial(session.peers.leave, key)
        session.subjects[key] = call.route
        try:
            return await session.replies.exchange(key, call, write, leave)
        finally:
            del session.subjects[key]

    def publish(self, call: Call) -> Receipt | Awaitable[Receipt]:
        """See `Transport.publish`."""
        session = self._link.current
        if session is None or session.connection.socket.congested or self._stream is not None:
            return self._publish(call)
        return _written(session.connection, call)

    async def _publish(self, call: Call) -> Receipt:
        session = await self._writable(call)
        if self._stream is None:
            return _written(session.connection, call)
        packet = event_packet(pattern_json(call.pattern), call.body)
        return await self._store(session, call, packet)

    async def _store(self, session: _Session, call: Call, packet: bytes) -> Receipt:
        """Publish into the stream, which is made when it is missing, and wait until it has it."""
        assert self._stream is not None  # noqa: S101
        headers = {**call.metadata, _jetstream.EXPECTED_STREAM: self._stream}
        answer = None
        if call.route in session.streamed:
            answer = await self._stored(session, call, headers, packet)
            if answer is None:
                session.streamed.discard(call.route)
        if answer is None:  # not known yet, or gone since
            async with self._before_sending(call), session.making:
                if call.route not in session.streamed:
                    await _jetstream.ensure_stream(session.connection, self._stream, [call.route])
                    session.streamed.add(call.route)
            answer = await self._stored(session, call, headers, packet)
            if len(session.streamed) > MAX_SUBJECTS:
                session.streamed.clear()
        if answer is None:
            raise ConnectError(f"no stream takes {call.route!r} now")
        return STORED

    async def _stored(
        self, session: _Session, call: Call, headers: dict[str, str], packet: bytes
    ) -> dict[str, Any] | None:
        """The stream's acknowledgement, or its refusal; None when there is no such stream."""
        key = f"{_STORED}{next(self._ids)}"
        message = session.connection.message(call.route, session.inbox + key, headers, packet)
        before, call.sent = call.sent, True
        session.subjects[key] = call.route
        future = session.replies.expect(key, call)
        try:
            session.connection.send(message)
            answer = decode((await future).body)
            error = answer.get("error")
        except NoHandlerError:
            call.sent = before
            return None
        except ConfigurationError:  # no permission
            call.sent = before
            raise
        except (PayloadError, AttributeError):
            raise ProtocolError("this is not JetStream's answer") from None
        finally:
            session.replies.forget(key)
            del session.subjects[key], future
        if error is not None:
            call.sent = before
            raise _jetstream.refused(error, f"stream {self._stream}")
        return answer  # type: ignore[no-any-return]

    def forget_loop(self) -> None:
        """See `Transport`."""
        super().forget_loop()
        self._connector.learn()

    async def aclose(self) -> None:
        """See `Transport.aclose`."""
        session = await self._link.aclose()
        if session is not None:
            session.replies.close()
            await session.connection.aclose()


def _written(connection: Connection, call: Call) -> Receipt:
    packet = event_packet(pattern_json(call.pattern), call.body)
    message = connection.message(call.route, "", call.metadata, packet)
    call.sent = True
    connection.socket.send(message)
    return WRITTEN
