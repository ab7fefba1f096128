"""memory:// - client and server in one process, between loops and threads alike.

The URL's host is the name of the bus. Payloads are encoded as on any wire, so that what works here
works there.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, Any

from resilient_client.errors import (
    ConfigurationError,
    ConnectError,
    ConnectionLost,
    PayloadError,
    RemoteError,
    client_closed,
    remote_error,
    wire_error,
)
from resilient_client.message import NO_VALUE, Message, Receipt, Reply
from resilient_client.transports._base import DEFAULT_MAX_SIZE
from resilient_client.transports._replies import PendingReplies
from resilient_client.transports._transport import BaseTransport

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from resilient_client.message import Call
    from resilient_client.transports._base import App, Environment, Job, Target

log = logging.getLogger("resilient_client.server")

_buses: dict[str, ServerListener] = {}
_lock = threading.Lock()


def _forget() -> None:
    """In a forked child: the servers' loops run in the parent only."""
    global _lock  # noqa: PLW0603
    _lock = threading.Lock()
    _buses.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _post(loop: asyncio.AbstractEventLoop, callback: Callable[..., object], *args: Any) -> None:
    """Run it on that loop; a loop that has closed has nobody left to tell."""
    if loop is asyncio.get_running_loop():
        loop.call_soon(callback, *args)
        return
    with suppress(RuntimeError):  # closed
        loop.call_soon_threadsafe(callback, *args)


class _Parcel:
    """One request on the bus, and the way back to its caller."""

    __slots__ = ("job", "key", "largest", "left", "listener", "loop", "replies")

    def __init__(
        self, replies: PendingReplies, key: int, listener: ServerListener, largest: int
    ) -> None:
        self.largest = largest  # bytes that the caller takes
        self.replies = replies
        self.key = key
        self.listener = listener
        self.loop = asyncio.get_running_loop()
        self.job: Job | None = None
        self.left = False

    def leave(self) -> None:
        """On the caller's loop: it does not wait any more."""
        _post(self.listener.loop, self._cancel)

    def _cancel(self) -> None:
        self.left = True
        self.listener.parcels.discard(self)
        if self.job is not None:
            self.job.cancel()

    async def respond(self, reply: Reply) -> None:
        """On the server's loop: put the reply on the bus."""
        try:
            if reply.error is not None:
                self.fail(reply.error)
            elif reply.items is not None:
                try:
                    while True:
                        self._value(await reply.items.receive(float("inf")), last=False)
                except StopAsyncIteration:
                    _post(self.loop, self.replies.end, self.key)
                except RemoteError as error:
                    self.fail(error)
            elif reply.body is NO_VALUE:
                _post(self.loop, self.replies.end, self.key)
            else:
                self._value(reply.body, reply.headers, last=True)
        except PayloadError as error:
            log.error("a reply could not be sent: %s", error.args[0])  # noqa: TRY400
            self.fail(RemoteError(f"the reply cannot be sent: {error.args[0]}", status=500))
        self.listener.parcels.discard(self)  # one that is cut short stays: its caller is to be told

    def _value(self, body: Any, headers: Mapping[str, str] | None = None, *, last: bool) -> None:
        self.listener.check(body)
        _post(self.loop, self._arrived, body, last, headers)

    def _arrived(self, body: Any, last: bool, headers: Mapping[str, str] | None) -> None:  # noqa: FBT001
        """On the caller's loop."""
        if len(body) <= self.largest:
            self.replies.value(self.key, body, last, headers)
            return
        text = f"the answer has {len(body)} bytes, more than max_size={self.largest}"
        self.replies.fail(self.key, PayloadError(text, sent=True))
        self.leave()

    def fail(self, error: RemoteError) -> None:
        """On the server's loop: answer with this error."""
        codec = self.listener.app.codec
        encoded = codec.encode(wire_error(error))
        self.listener.check(encoded)
        _post(self.loop, self.replies.fail, self.key, remote_error(codec.decode(encoded, Any)))

    def lost(self) -> None:
        """The server has gone."""
        _post(self.loop, self.replies.fail, self.key, ConnectionLost("the server was closed"))


class ClientTransport(BaseTransport):
    """The client's end of a bus in this process."""

    def __init__(
        self, target: Target, env: Environment, *, max_size: int = DEFAULT_MAX_SIZE
    ) -> None:
        super().__init__(target, env, max_size)
        self._name = target.hostport
        self._replies = PendingReplies(env.clock, self._tally)
        self._keys = count()

    def _listener(self) -> ServerListener:
        if self.status == "closed":
            raise client_closed()
        listener = _buses.get(self._name)
        if listener is None or listener.loop.is_closed():
            if self.status == "connected":
                self._change("reconnecting")
            raise ConnectError(
                f"no server listens on {self.endpoint}",
                hint=f"start Server({self.endpoint!r}) in this process first",
            )
        self._change("connected")
        return listener

    async def connect(self, deadline: float) -> None:
        """See `Transport.connect`."""
        self._listener()

    async def request(self, call: Call) -> Reply:
        """See `Transport.request`."""
        listener = self._listener()
        key = next(self._keys)
        replies = self._replies
        parcel = _Parcel(replies, key, listener, self._max_size)
        message = Message(call.route, call.body, call.metadata, key)

        def write() -> None:
            call.sent = True
            _post(listener.loop, listener.request, message, parcel)

        return await replies.exchange(key, call, write, parcel.leave)

    async def publish(self, call: Call) -> Receipt:
        """See `Transport.publish`."""
        listener = self._listener()
        call.sent = True
        _post(listener.loop, listener.event, Message(call.route, call.body, call.metadata))
        return Receipt("accepted", listener.app.receivers(call.route))

    def forget_loop(self) -> None:
        """See `Transport`."""
        self._replies = PendingReplies(self._clock, self._tally)

    async def aclose(self) -> None:
        """See `Transport.aclose`."""
        self._change("closed")
        self._replies.close()


class ServerListener:
    """The server's end of a bus in this process."""

    loop: asyncio.AbstractEventLoop

    def __init__(self, target: Target, app: App, *, max_size: int = DEFAULT_MAX_SIZE) -> None:
        self.address = str(target)
        self.app = app
        self.parcels: set[_Parcel] = set()
        self._name = target.hostport
        self._max_size = max_size
        self._slots = app.slots(lambda: None, lambda: None)

    async def start(self) -> None:
        """See `ServerListener.start`."""
        self.loop = asyncio.get_running_loop()
        with _lock:
            other = _buses.get(self._name)
            if other is not None and not other.loop.is_closed():
                raise ConfigurationError(
                    f"a server already listens on {self.address}",
                    hint="give this one another name, or close the other first",
                )
            _buses[self._name] = self

    def request(self, message: Message, parcel: _Parcel) -> None:
        """On the server's loop: a request has arrived."""
        if parcel.left:
            return
        if _buses.get(self._name) is not self:
            parcel.lost()
            return
        try:
            self.check(message.body)
        except PayloadError as error:
            parcel.fail(RemoteError(f"the payload is refused: {error.args[0]}", status=413))
            return
        self.parcels.add(parcel)
        message.received = self.app.clock.now()
        parcel.job = self.app.accept(message, parcel.respond, self._slots, "memory")

    def event(self, message: Message) -> None:
        """On the server's loop: an event has arrived."""
        try:
            self.check(message.body)
        except PayloadError as error:
            log.warning("an event was dropped: %s", error.args[0])
            return
        message.received = self.app.clock.now()
        self.app.accept(message, None, self._slots, "memory")

    def check(self, body: Any) -> None:
        """Raise `PayloadError` for a payload that is too large."""
        if len(body) > self._max_size:
            raise PayloadError(f"it has {len(body)} bytes, more than max_size= allows")

    async def stop(self) -> None:
        """See `ServerListener.stop`."""
        with _lock:
            if _buses.get(self._name) is self:
                del _buses[self._name]

    async def aclose(self) -> None:
        """See `ServerListener.aclose`."""
        await self.stop()
        parcels, self.parcels = self.parcels, set()
        for parcel in parcels:
            parcel.lost()
