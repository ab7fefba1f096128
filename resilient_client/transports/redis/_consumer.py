"""Durable events: one consumer of a group on a stream, each event acknowledged when handled.

What its server has not ended is delivered again, here or elsewhere: at least once, so a handler
must bear an event twice. One that fails every time is set aside in `<stream>.dead`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
from collections import deque
from contextlib import suppress
from fnmatch import translate
from typing import TYPE_CHECKING, Any

from resilient_client.errors import (
    ConnectionLost,
    InvalidPayloadError,
    NoHandlerError,
    ProtocolError,
    ResilientClientError,
    shown,
)
from resilient_client.events import Degraded
from resilient_client.message import Message
from resilient_client.transports._link import spawn
from resilient_client.transports._packets import read_request
from resilient_client.transports.redis._connection import Refused, error_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from resilient_client.errors import RemoteError
    from resilient_client.message import Reply
    from resilient_client.transports._base import App, Respond, Subscription
    from resilient_client.transports._link import ServerLink
    from resilient_client.transports.redis._session import Session

log = logging.getLogger("resilient_client.redis")

ACK_WAIT = 30.0
"""Seconds after which an event that its server has not ended goes to another."""
MAX_DELIVER = 5
"""Deliveries of one event before it is set aside."""
_BATCH = 64  # events asked for at once
_BLOCK = 1000  # milliseconds a read waits; below the silence that counts as a lost connection
_ACK_TIMEOUT = 5.0
_REMEMBERED = 1000  # events that were acknowledged
_LONGEST_WAIT = 30.0  # seconds before what Redis refuses is tried again
_ABSENT = 3600.0  # seconds after which a consumer that has nothing in work is taken for dead
_NEVER = "18446744073709551615-18446744073709551615"  # the last id there can be
_FORGET = r"""
for _, each in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local of = {}
  for i = 1, #each, 2 do of[each[i]] = each[i + 1] end
  if of.pending == 0 and of.idle > tonumber(ARGV[2])
      and string.match(of.name, '%-%d+%-%x%x%x%x%x%x%x%x$') then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], of.name)
  end
end
"""  # in one step: a consumer that returned in between would lose what it was given
_NO_ROOM = frozenset({"OOM", "MISCONF", "NOREPLICAS"})  # Redis takes nothing that it had to keep
_REMOVED = "the stream {} or its group was removed, with what was in it: made anew"


class Consumer:
    """Reads a stream for one server.

    Args:
        link: where the current session is.
        stream, group: the key, and who shares its events.
        ack_wait: seconds; events in work are renewed three times in it.
        max_deliver: deliveries before an event is set aside.
        dead_length: entries that `<stream>.dead` keeps, about.
        is_glob: whether a subscription's pattern has wildcards.
    """

    def __init__(
        self,
        app: App,
        link: ServerLink[Session],
        *,
        endpoint: str,
        stream: str,
        group: str,
        ack_wait: float,
        max_deliver: int,
        dead_length: int,
        is_glob: Callable[[Subscription], bool],
    ) -> None:
        self.name = f"{socket.gethostname()}-{os.getpid()}-{os.urandom(4).hex()}"
        self.failed_acks = 0
        self._app = app
        self._link = link
        self._endpoint = endpoint
        self._stream = stream
        self._group = group
        self._ack_wait = ack_wait
        self._max_deliver = max_deliver
        self._dead_length = dead_length
        self._is_glob = is_glob
        self._globs: list[tuple[re.Pattern[str], str]] = []
        self._held: dict[bytes, bool] = {}  # ids of events in work; True: handled, not acknowledged
        self._acknowledged: deque[bytes] = deque(maxlen=_REMEMBERED)
        self._room = asyncio.Event()
        self._room.set()
        self._slots = app.slots(self._room.clear, self._room.set)
        self._tasks: set[asyncio.Task[None]] = set()
        self._begun = self._stopping = False

    # --------------------------------------------------------------------------------- its life

    async def begin(self, session: Session) -> None:
        """Go to work on a new session; the work on the one before has ended with it.

        A server that comes back to a Redis without room serves requests, which need none, and reads
        on as soon as it can.

        Raises:
            ConfigurationError: Redis refuses the stream or the group.
            ConnectError, Throttled: it cannot have them now.
        """
        self._globs = [
            (re.compile(translate(each.route.replace("[^", "[!"))), each.route)
            for each in self._app.subscriptions()
            if self._is_glob(each)
        ]
        if await self._make_group(session) and self._begun:
            self._tell(_REMOVED.format(self._stream))
        await self._try_rights(session)
        self._begun = True
        for work, name in ((self._read, "read"), (self._look_after, "look after")):
            spawn(self._unless_lost(session, work), f"{name} {self._stream}", self._tasks)

    async def _make_group(self, session: Session) -> bool | None:
        """Whether it was missing; None where that is left open, for Redis has no room for it.

        It begins at the oldest event there is.
        """
        try:
            await session.commands.call(
                "XGROUP", "CREATE", self._stream, self._group, "0", "MKSTREAM"
            )
        except Refused as error:
            if error.code == "BUSYGROUP":
                return False
            if self._begun and error.code in _NO_ROOM:
                return None
            raise error_of(error, f"XGROUP CREATE {self._stream} {self._group}") from None
        return True

    async def _try_rights(self, session: Session) -> None:
        """Do everything that working takes, in a way that changes nothing.

        Raises:
            ConfigurationError: this user may not, or Redis is too old.
        """
        stream, group, name = self._stream, self._group, self.name
        borne = {"NOGROUP"}  # removed in this moment: reading makes it anew
        if self._begun:
            borne |= _NO_ROOM
        for command in (
            ("XREADGROUP", "GROUP", group, name, "COUNT", 1, "STREAMS", stream, _NEVER),
            ("XPENDING", stream, group, "-", "+", 1, name),
            ("XCLAIM", stream, group, name, 0, "0-0", "JUSTID"),
            ("XAUTOCLAIM", stream, group, name, 2**52, "0-0", "COUNT", 1, "JUSTID"),
            ("XACK", stream, group, "0-0"),
        ):
            try:
                await session.commands.call(*command)
            except Refused as error:
                if error.code not in borne:
                    raise error_of(error, f"{command[0]} {stream}") from None

    async def _unless_lost(self, session: Session, work: Any) -> None:
        """Do it, again after an error of Redis's, until the session or the server ends."""
        wait = 0.5
        now = self._app.clock.now
        while not session.closed:
            began = now()
            try:
                await work(session)
            except ConnectionLost:
                return
            except Refused as error:
                if error.code in {"NOGROUP", "UNBLOCKED"}:
                    try:
                        made = await self._make_group(session)
                        if made:
                            self._tell(_REMOVED.format(self._stream))
                        if made is not None:
                            continue
                        self._tell(str(error_of(error, f"reading {self._stream}")))
                    except ConnectionLost:
                        return
                    except ResilientClientError as refused:
                        self._tell(str(refused))
                elif error.code == "READONLY":  # the host's name may lead to another Redis by now
                    session.commands.give_up(ConnectionLost("Redis has become a replica"))
                    return
                else:
                    self._tell(str(error_of(error, f"reading {self._stream}")))
            except Exception:
                log.exception("reading the stream %s failed", self._stream)
            else:
                return
            if now() - began > _LONGEST_WAIT:
                wait = 0.5  # that it had trouble before is long ago
            await asyncio.sleep(wait)
            wait = min(_LONGEST_WAIT, wait * 2)

    def stop(self) -> None:
        """Take nothing new in; events that have not begun are left to others."""
        self._stopping = True
        session = self._link.current
        if session is not None and session.reader is not None:
            session.reader.on_lost = None
            session.reader.transport.abort()
        self._slots.drop()

    async def close(self) -> None:
        """Give back what is not acknowledged, so that others need not wait for it."""
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(tuple(self._tasks))
        self._slots.close()
        session = self._link.current
        if session is None:
            return
        call, stream, group, name = session.commands.call, self._stream, self._group, self.name
        try:
            async with asyncio.timeout(1.0):
                pending = await call("XPENDING", stream, group, "-", "+", 10_000, name)
                if pending:
                    ids = [each[0] for each in pending]
                    idle = int(self._ack_wait * 1000)
                    await call("XCLAIM", stream, group, name, 0, *ids, "IDLE", idle, "JUSTID")
                else:
                    await call("XGROUP", "DELCONSUMER", stream, group, name)
        except (ConnectionLost, Refused, TimeoutError) as error:
            log.debug("leaving the group %s failed: %s", group, error)

    # ---------------------------------------------------------------------------------- reading

    async def _read(self, session: Session) -> None:
        assert session.reader is not None  # noqa: S101
        await self._recover(session)
        while not self._stopping:
            await self._room.wait()
            reply = await session.reader.call(
                "XREADGROUP", "GROUP", self._group, self.name, "COUNT", _BATCH, "BLOCK", _BLOCK,
                "STREAMS", self._stream, ">",
            )  # fmt: skip
            for entry, fields in reply[0][1] if reply else ():
                self._take(entry, fields, 1)

    async def _recover(self, session: Session) -> None:
        """What was given to us on the connection before: acknowledge it, or take it."""
        call, stream, group = session.commands.call, self._stream, self._group
        given = [e[0] for e in await call("XPENDING", stream, group, "-", "+", 10_000, self.name)]
        # What it has answered last, a Redis that was killed may not have written to its file yet.
        self._held.update(dict.fromkeys(set(given).intersection(self._acknowledged), True))
        for entry in [each for each, handled in self._held.items() if handled]:
            if entry in given:
                await self._acknowledge(entry)
            else:  # somebody else has, or it is gone
                del self._held[entry]
        lost = [each for each in given if each not in self._held]
        if lost:
            await self._take_redelivered(
                session, await call("XCLAIM", stream, group, self.name, 0, *lost)
            )

    async def _look_after(self, session: Session) -> None:
        """Renew what is in work here, take over what was left undone elsewhere."""
        wait = int(self._ack_wait * 1000)
        stream, group, call = self._stream, self._group, session.commands.call
        loop, looked = asyncio.get_running_loop(), -_ABSENT
        while not session.closed:
            if loop.time() - looked > _ABSENT:
                looked = loop.time()
                await self._forget_the_dead(session)
            running = [each for each, handled in self._held.items() if not handled]
            for start in range(0, len(running), 1000):
                ids = running[start : start + 1000]
                await call("XCLAIM", stream, group, self.name, 0, *ids, "JUSTID")
            cursor: bytes = b"0-0"
            while not self._stopping and self._room.is_set():
                cursor, entries, *_ = await call(
                    "XAUTOCLAIM", stream, group, self.name, wait, cursor, "COUNT", _BATCH
                )
                await self._take_redelivered(session, entries)
                if cursor == b"0-0":
                    break
            with suppress(TimeoutError):
                async with asyncio.timeout(self._ack_wait / 3):  # hours, perhaps
                    await session.over.wait()

    async def _forget_the_dead(self, session: Session) -> None:
        """Strike consumers like this one off the group that went without a word, long ago."""
        longest = int(max(_ABSENT, 10 * self._ack_wait) * 1000)
        try:
            await session.commands.call("EVAL", _FORGET, 1, self._stream, self._group, longest)
        except Refused as error:  # they cost some bytes each, no more
            log.debug("dead consumers stay in the group %s: %s", self._group, error)

    async def _take_redelivered(self, session: Session, entries: Iterable[Any]) -> None:
        """Take events that were delivered before, unless they were too often."""
        for entry, fields in entries:
            if entry in self._held:
                if self._held[entry]:  # Redis has not taken its acknowledgement
                    await self._acknowledge(entry)
                continue
            found = await session.commands.call(
                "XPENDING", self._stream, self._group, entry, entry, 1
            )
            deliveries = found[0][3] if found else 1
            if deliveries > self._max_deliver and fields is not None and entry not in self._held:
                self._held[entry] = False
                await self._set_aside(entry, fields, "no server has survived it", deliveries - 1)
            else:
                self._take(entry, fields, deliveries)

    # --------------------------------------------------------------------------------- handling

    def _take(self, entry: bytes, fields: list[bytes] | None, deliveries: int) -> None:
        """Hand one event to the app."""
        if entry in self._held:
            return
        self._held[entry] = False
        if fields is None:
            self._tell(f"{self._stream} was trimmed: events were dropped before they were handled")
            self._later(self._acknowledge(entry))
            return
        raw = dict(zip(fields[::2], fields[1::2], strict=False)).get(b"packet")
        try:
            if raw is None:
                raise ProtocolError("an entry without a packet")
            request = read_request(raw)
            path = request.route
            if path is None:
                raise ProtocolError("an event without a pattern")
        except ProtocolError as error:
            self._later(self._set_aside(entry, fields, error.args[0], deliveries))
            return
        routes = [path] if self._app.receivers(path) else []
        routes += [route for glob, route in self._globs if route != path and glob.match(path)]
        respond = self._respond_at_the_last(entry, fields, deliveries, max(1, len(routes)))
        for route in routes or [path]:
            message = Message(
                route,
                request.data,
                request.metadata,
                None,
                received=self._app.clock.now(),
                subject=None if route == path else path,
                raw=(entry, fields),
            )
            self._app.accept(message, respond, self._slots, "redis")

    def _respond_at_the_last(
        self, entry: bytes, fields: list[bytes], deliveries: int, left: int
    ) -> Respond:
        """An event is over when the handlers of all `left` patterns that match it have ended."""
        failure: RemoteError | None = None

        async def respond(reply: Reply) -> None:
            nonlocal left, failure
            left -= 1
            failure = failure or reply.error
            if not left:
                await self._ended(entry, fields, deliveries, failure)

        return respond

    async def _ended(
        self,
        entry: bytes,
        fields: list[bytes],
        deliveries: int,
        error: RemoteError | None,
    ) -> None:
        """The handlers have ended: acknowledge, leave for another try, or set aside."""
        if error is None or isinstance(error, NoHandlerError):
            await self._acknowledge(entry)
        elif isinstance(error, InvalidPayloadError) or deliveries >= self._max_deliver:
            await self._set_aside(entry, fields, error.message, deliveries)
        else:
            self._held.pop(entry, None)
            log.warning(
                "event %s of %s failed (delivery %d of %d), the next is in %s s: %s",
                entry.decode(), self._stream, deliveries, self._max_deliver, self._ack_wait,
                shown(error.message),
            )  # fmt: skip

    async def _acknowledge(self, entry: bytes) -> None:
        if entry in self._held:
            self._held[entry] = True
        try:
            await self._command("XACK", self._stream, self._group, entry)
        except ResilientClientError as error:
            self.failed_acks += 1  # it stays held: when Redis brings it again, it is not run again
            log.warning("event %s could not be acknowledged: %s", entry.decode(), error)
        else:
            self._held.pop(entry, None)
            self._acknowledged.append(entry)

    async def _set_aside(
        self,
        entry: bytes,
        fields: list[bytes],
        reason: str,
        deliveries: int,
    ) -> None:
        """Put an event that cannot be handled where a person can look at it."""
        dead = f"{self._stream}.dead"
        self._tell(f"event {entry.decode()} was set aside in {dead}: {reason}")
        about = [
            b"id",
            entry,
            b"group",
            self._group,
            b"reason",
            reason.encode(errors="replace"),
            b"deliveries",
            deliveries,
        ]
        try:
            await self._command(
                "XADD", dead, "MAXLEN", "~", self._dead_length, "*", *fields, *about
            )
        except ResilientClientError as error:
            self._held.pop(entry, None)
            log.error("event %s could not be set aside: %s", entry.decode(), error)  # noqa: TRY400
            return
        await self._acknowledge(entry)

    async def _command(self, *command: Any) -> Any:
        """On whatever session there is in the next seconds.

        Raises:
            ConnectError, ConnectionLost, ConfigurationError: it was not done, as far as is known.
        """
        session = await self._link.soon()
        try:
            async with asyncio.timeout(_ACK_TIMEOUT):
                return await session.commands.call(*command)
        except TimeoutError:
            raise ConnectionLost("Redis did not answer in time") from None
        except Refused as error:
            raise error_of(error, command[0]) from None

    def _later(self, work: Any) -> None:
        spawn(work, f"settle {self._stream}", self._tasks)

    def _tell(self, reason: str) -> None:
        self._app.notify(Degraded(self._endpoint, reason))
