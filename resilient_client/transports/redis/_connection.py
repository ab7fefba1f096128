"""One connection to Redis: commands answered in order, and messages of subscriptions."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

import hiredis

from resilient_client.errors import (
    ConfigurationError,
    ConnectError,
    ConnectionLost,
    ProtocolError,
    ResilientClientError,
    Throttled,
)
from resilient_client.transports._socket import SocketProtocol

if TYPE_CHECKING:
    from collections.abc import Callable


HEARTBEAT = 1.0
"""Seconds between two pings; Redis answers them on connections that only listen, too."""
SILENT_BEATS = 3
"""Pings in a row without any byte from Redis before it is taken for gone: 3 to 4 s of silence."""

_MORE = object()
_MESSAGES = (b"message", b"pmessage")
_READ_SIZE = 64 * 1024


class Refused(Exception):  # noqa: N818  (Redis said no: a reply, not a fault of ours)
    """Redis's own error, as the reply to one command. Never leaves the transport: see `error_of`.

    Attributes:
        code: its first word, such as NOPERM.
    """

    @property
    def code(self) -> str:
        return str(self).partition(" ")[0]


class Connection(SocketProtocol):
    """Commands in, their replies out in the same order.

    Args:
        on_message: gets each message of this connection's subscriptions: a list that begins with
            `b"message"` or `b"pmessage"`. None on a connection that subscribes to nothing.
        on_lost: called with the reason when the connection has ended.
    """

    def __init__(
        self,
        on_message: Callable[[list[bytes]], None] | None,
        on_lost: Callable[[str], None],
    ) -> None:
        super().__init__()
        self.closed = True  # until it is made
        self.on_lost: Callable[[str], None] | None = on_lost
        self.ended_by: Exception | None = None
        self._on_message = on_message
        self._reader = hiredis.Reader(replyError=Refused, notEnoughData=_MORE)
        self._view = memoryview(bytearray(_READ_SIZE))
        self._waiting: deque[Callable[[Any], None]] = deque()
        self._silent = 0
        self._unsent = 0
        self._beat: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.closed = False

    def watch(self) -> None:
        """Ping from now on.

        Not as soon as it is made: where the dial is cancelled in that moment, uvloop closes it
        without a word, and so without end.
        """
        if not self.closed:
            self._beat = self.loop.call_later(HEARTBEAT, self._ping)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        self._silent = 0
        reader, waiting, on_message = self._reader, self._waiting, self._on_message
        reader.feed(self._view, 0, nbytes)  # type: ignore[arg-type]  # any buffer
        while True:
            try:
                reply = reader.gets()
            except (hiredis.HiredisError, MemoryError, TypeError) as error:
                what = str(error) or "it announces more than there is memory for"
                self.give_up(ProtocolError(f"this is no Redis: {what}"))
                return
            if reply is _MORE:
                return
            if on_message is not None and type(reply) is list and reply and reply[0] in _MESSAGES:
                try:
                    on_message(reply)
                except (IndexError, TypeError, AttributeError):
                    if _is_message(reply):
                        raise
                    self.give_up(ProtocolError("this is no Redis: it sends messages that are none"))
                    return
            elif waiting:
                waiting.popleft()(reply)
            elif type(reply) is Refused:  # it says why it hangs up, before it was asked
                self.give_up(reply)
                return
            else:
                self.give_up(ProtocolError("this is no Redis: it speaks without being asked"))
                return

    def ask(self, on_reply: Callable[[Any], None], *command: str | bytes | int) -> None:
        """Send a command; `on_reply` gets the reply, a `Refused` or a `ConnectionLost`."""
        if self.closed:
            on_reply(ConnectionLost("the connection was closed"))
            return
        try:
            data = hiredis.pack_command(command)  # type: ignore[arg-type]  # a tuple of any length
        except UnicodeEncodeError as error:  # half of a surrogate pair, in a pattern say
            on_reply(Refused(f"ERR {error}"))
            return
        self._waiting.append(on_reply)
        self.send(data)

    def call(self, *command: str | bytes | int) -> asyncio.Future[Any]:
        """Send a command; the future gives its reply, or raises `Refused` or `ConnectionLost`."""
        future: asyncio.Future[Any] = self.loop.create_future()

        def settle(reply: Any) -> None:
            if future.done():
                return
            if isinstance(reply, Exception):
                future.set_exception(reply)
                future.exception()  # whoever asked may have left
            else:
                future.set_result(reply)

        self.ask(settle, *command)
        return future

    def _ping(self) -> None:
        """Look whether anything was heard since the last pings: a frozen peer closes nothing."""
        unsent = self.transport.get_write_buffer_size()
        self._silent = 0 if 0 < unsent < self._unsent else self._silent + 1
        self._unsent = unsent
        if self._silent > SILENT_BEATS:
            self.give_up(ConnectionLost(f"Redis was silent for {SILENT_BEATS * HEARTBEAT} s"))
            return
        self._beat = self.loop.call_later(HEARTBEAT, self._ping)
        self.ask(ignore, "PING")

    def give_up(self, error: Exception) -> None:
        """End it at once, for this reason."""
        if not self.closed:
            self.ended_by = error
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._beat is not None:
            self._beat.cancel()
        if self.ended_by is None:
            self.ended_by = exc
        error = self.ended_by
        reason = "Redis closed the connection"
        if error is not None:  # of ours without its hint: it may become another error
            reason = str(error.args[0] if isinstance(error, ResilientClientError) else error)
        waiting, self._waiting = self._waiting, deque()
        for on_reply in waiting:
            on_reply(ConnectionLost(reason))
        on_lost, self.on_lost = self.on_lost, None
        if on_lost is not None:
            on_lost(reason)


def _is_message(reply: list[Any]) -> bool:
    return len(reply) in (3, 4) and all(type(each) is bytes for each in reply)


def ignore(reply: Any) -> None:
    """Nothing hangs on the answer."""


_NOT_NOW = frozenset(
    "LOADING MASTERDOWN CLUSTERDOWN READONLY TRYAGAIN BUSY MISCONF NOREPLICAS".split()
)
_LOGIN = frozenset({"WRONGPASS", "NOAUTH"})
_CLUSTER = frozenset({"MOVED", "ASK", "CROSSSLOT"})


def error_of(refused: Refused, doing: str) -> ResilientClientError:
    """What a refusal of Redis is to a caller: it was not executed, whatever it was."""
    text = f"{doing}: Redis says {refused}"
    code = refused.code
    if code in _LOGIN or " AUTH " in str(refused):
        return ConfigurationError(text, hint="check the user and password in the URL")
    if code == "NOPERM":
        return ConfigurationError(
            text, hint="give the user this command, key or channel: ACL SETUSER name +@all ~* &*"
        )
    if code in _CLUSTER:
        return ConfigurationError(text, hint="this is a cluster: name the node that has the key")
    if code == "OOM":
        return Throttled(text, sent=False)
    if code in _NOT_NOW or "max number of clients" in str(refused):
        return ConnectError(text, hint="Redis is there but cannot do this now")
    return ConfigurationError(text)
