"""The client's end: requests by publishing, replies on the pattern's shared reply channel."""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from copy import copy
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

from resilient_client._checks import integer
from resilient_client.context import PEER_HEADER
from resilient_client.errors import (
    ConnectError,
    ConnectionLost,
    NoHandlerError,
    PayloadError,
    ProtocolError,
    ResilientClientError,
)
from resilient_client.events import Degraded
from resilient_client.message import STORED, Receipt
from resilient_client.patterns import pattern_json
from resilient_client.transports._base import DEFAULT_MAX_SIZE
from resilient_client.transports._link import LinkedTransport, look_at, spawn
from resilient_client.transports._nest import CANCEL_ROUTE, Peers, cancel_packet, deliver
from resilient_client.transports._packets import event_packet, read_response, request_packet
from resilient_client.transports._replies import PendingReplies
from resilient_client.transports.redis._connection import Refused, error_of, ignore
from resilient_client.transports.redis._connector import Connector, no_queues
from resilient_client.transports.redis._session import Session

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilient_client.message import Call, Reply
    from resilient_client.transports._base import Environment, Target

log = logging.getLogger("resilient_client.redis")

STREAM_LENGTH = 1_000_000
"""Entries a stream keeps, about; older ones are dropped, read or not."""
REPLY_CHANNELS = 256
"""Reply channels kept subscribed; beyond it those that nobody waits on are given up."""

_NOBODY = "nobody is subscribed to this pattern"


class _ClientSession(Session):
    """A session, and what is waited for on it."""

    def __init__(
        self,
        on_message: Callable[[list[bytes]], None],
        on_lost: Callable[[Session, str], None],
        replies: PendingReplies,
    ) -> None:
        super().__init__(on_message, on_lost)
        self.replies = replies
        self.prefix = os.urandom(8).hex()  # reply channels are shared: ids are unique everywhere
        self.mark = self.prefix.encode()
        self.ids = count(1)
        self.peers = Peers(self._tell)  # all on one channel, which only they hear
        self.heard: set[str] = set()  # reply channels that Redis has confirmed
        self.asked: dict[str, asyncio.Task[None]] = {}

    def next_id(self) -> str:
        return f"{self.prefix}{next(self.ids):x}"

    def _tell(self, channel: str, key: str) -> None:
        self.commands.ask(ignore, "PUBLISH", channel, cancel_packet(key))


class ClientTransport(LinkedTransport[_ClientSession]):
    """The client's end: one connection to publish, one for replies; calls matched by id.

    Args:
        tls: an `ssl.SSLContext`, or true for one that trusts the system's authorities; with
            `rediss://` only where the latter does not do.
        username, password, db: instead of what the URL says.
        ssl_ca_certs, ssl_certfile, ssl_keyfile: paths of PEM files, instead of `tls=`.
        stream: events are added to this stream instead of being published.
        stream_length: entries it keeps, about; older ones are dropped, read or not.
        queue: refused: pub/sub cannot share.
        max_size: bytes of one payload, each way.
    """

    url_path = True
    url_tls = True
    url_login = True

    def __init__(
        self,
        target: Target,
        env: Environment,
        *,
        tls: bool | ssl.SSLContext = False,
        username: str | None = None,
        password: str | None = None,
        db: int | None = None,
        ssl_ca_certs: str | None = None,
        ssl_certfile: str | None = None,
        ssl_keyfile: str | None = None,
        stream: str | None = None,
        stream_length: int = STREAM_LENGTH,
        queue: str | None = None,
        max_size: int = DEFAULT_MAX_SIZE,
    ) -> None:
        if queue is not None:
            raise no_queues("redis://")
        super().__init__(target, env, max_size)
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
        self._stream = stream
        self._stream_length = integer("stream_length", stream_length)

    # ---------------------------------------------------------------------------- the connection

    async def _dial(self) -> _ClientSession:
        session = _ClientSession(
            lambda message: self._received(session, message),
            lambda _, reason: self._lost(session, reason),
            PendingReplies(self._clock, self._tally),
        )
        await self._connector.connect(session)
        if self._stream is not None:
            await self._look_at_disk(session)
        session.check()
        return session

    async def _look_at_disk(self, session: _ClientSession) -> None:
        """Tell when Redis writes what it is given to no file; where it does not say, believe it."""
        try:
            info = await session.commands.call("INFO", "persistence")
        except Refused:
            return
        except ConnectionLost as error:
            session.abort()
            raise ConnectError(error.args[0]) from None
        except BaseException:
            session.abort()
            raise
        if b"aof_enabled:0" in info:
            reason = "Redis keeps no append-only file: its streams do not outlive a restart"
            log.warning("%s: %s", self.endpoint, reason)
            self._notify(Degraded(self.endpoint, reason))

    def _lost(self, session: _ClientSession, reason: str) -> None:
        session.replies.fail_all(lambda: ConnectionLost(reason))
        self._link.lost(session, reason)

    async def _ready(self, call: Call, channel: str | None = None) -> _ClientSession:
        """A session that can be written to, and listens to the reply channel."""
        while True:
            session = self._link.current or await self._link.get(call.connect_deadline, call)
            if session.commands.congested:
                await self._drained(session.commands, call)
            elif channel is None or channel in session.heard:
                return session
            else:
                async with self._before_sending(call):
                    await self._listen(session, channel)
                if session.closed:  # not dialled again and again for one that ends each time
                    raise ConnectError(f"{self.endpoint}: {session.reason}")

    async def _listen(self, session: _ClientSession, channel: str) -> None:
        """Wait for the confirmation of a reply channel; all who ask for it wait for the same."""
        task = session.asked.get(channel)
        if task is None:
            self._give_up_idle(session)
            task = spawn(self._subscribe(session, channel), f"subscribe {channel}")
            task.add_done_callback(look_at)
            session.asked[channel] = task
        try:
            await asyncio.shield(task)
        except ResilientClientError as error:  # several get it: each its own
            raise copy(error) from None

    async def _subscribe(self, session: _ClientSession, channel: str) -> None:
        try:
            await session.subscribe("SUBSCRIBE", channel)
            session.heard.add(channel)
        finally:  # not later: who finds this task ended would wait for it over and over
            del session.asked[channel]

    def _give_up_idle(self, session: _ClientSession) -> None:
        """Keep the number of reply channels within bounds."""
        if len(session.heard) < REPLY_CHANNELS:
            return
        awaited = {f"{route}.reply" for route in session.replies.routes()}
        for channel in session.heard - awaited:
            session.heard.discard(channel)
            session.messages.ask(ignore, "UNSUBSCRIBE", channel)

    # --------------------------------------------------------------------------------- messages

    def _received(self, session: _ClientSession, message: list[bytes]) -> None:
        raw = message[-1]
        if session.mark not in raw:
            return  # the reply to another client of this pattern
        try:
            response = read_response(raw, by_id=True)
        except ProtocolError as error:
            log.warning("a message on %r was dropped: %s", message[1], error.args[0])
            return
        key = response.id
        if key is None or not key.startswith(session.prefix):
            return
        if response.metadata and PEER_HEADER in response.metadata:
            session.peers.meet(CANCEL_ROUTE)
        if response.value is not None and len(response.value) > self._max_size:
            text = f"the answer has {len(response.value)} bytes, more than max_size="
            session.replies.fail(key, PayloadError(f"{text}{self._max_size}", sent=True))
            return
        deliver(session.replies, key, response, self._codec)

    async def request(self, call: Call) -> Reply:
        """See `Transport.request`."""
        session = self._link.current
        channel = f"{call.route}.reply"
        if session is None or channel not in session.heard or session.commands.congested:
            session = await self._ready(call, channel)
        key = session.next_id()
        if not session.peers.met:
            call.metadata[PEER_HEADER] = key
        packet = request_packet(pattern_json(call.pattern), call.body, call.metadata, key)
        replies = session.replies

        def published(receivers: Any) -> None:
            if type(receivers) is not int:
                replies.fail(key, _error_in(receivers, f"PUBLISH {call.route}"))
            elif not receivers:
                replies.fail(key, NoHandlerError(_NOBODY, sent=False))

        def write() -> None:
            call.sent = True
            session.commands.ask(published, "PUBLISH", call.route, packet)

        return await replies.exchange(key, call, write, partial(session.peers.leave, key))

    async def publish(self, call: Call) -> Receipt:
        """See `Transport.publish`."""
        session = await self._ready(call)
        key = session.next_id()
        packet = event_packet(pattern_json(call.pattern), call.body, call.metadata)
        replies, stream = session.replies, self._stream
        command: tuple[Any, ...] = ("PUBLISH", call.route, packet)
        if stream is not None:
            length = self._stream_length
            command = ("XADD", stream, "MAXLEN", "~", length, "*", "packet", packet)
        done = partial(_handed_over, session, key, f"{command[0]} {stream or call.route}")

        def write() -> None:
            call.sent = True
            session.commands.ask(done, *command)

        reply = await replies.exchange(key, call, write, _nothing)
        if self._stream is None:
            return Receipt("accepted", reply.body)
        return STORED

    # -------------------------------------------------------------------------------- its life

    async def aclose(self) -> None:
        """See `Transport.aclose`."""
        session = await self._link.aclose()
        if session is not None:
            session.replies.close()
            await session.close()


def _handed_over(session: _ClientSession, key: str, doing: str, reply: Any) -> None:
    """Redis has answered an event: with the receivers, or its id in the stream."""
    if isinstance(reply, Exception):
        session.replies.fail(key, _error_in(reply, doing))
        if isinstance(reply, Refused) and reply.code == "READONLY":
            # the host's name may lead to another Redis by now
            session.commands.give_up(ConnectionLost("Redis has become a replica"))
    else:
        session.replies.value(key, reply, last=True)


def _error_in(reply: Any, doing: str) -> ResilientClientError:
    """The error that Redis gave for an answer, or the connection instead of one."""
    if isinstance(reply, Refused):
        return error_of(reply, doing)
    if isinstance(reply, ConnectionLost):
        return reply
    return ProtocolError(f"{doing}: Redis answered {type(reply).__name__}")


def _nothing() -> None:
    """There is no taking an event back."""
