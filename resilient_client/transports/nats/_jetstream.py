"""Durable events: streams made when they are missing, and consumers that replicas share.

JetStream's API is asked in its own JSON, so that a stream's settings that this package does not
know stay as they are.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from resilient_client._json import encode
from resilient_client.clock import call_later
from resilient_client.context import fresh_id
from resilient_client.errors import (
    ConfigurationError,
    ConnectError,
    InvalidPayloadError,
    ProtocolError,
    ResilientClientError,
    Throttled,
)
from resilient_client.events import Degraded
from resilient_client.message import Message
from resilient_client.transports._packets import read_request
from resilient_client.transports.nats._wire import joined, read_headers, status

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from resilient_client.clock import TimerHandle
    from resilient_client.message import Reply
    from resilient_client.transports._base import App
    from resilient_client.transports.nats._connection import Connection

log = logging.getLogger("resilient_client.nats")

MESSAGE_ID = "Nats-Msg-Id"
EXPECTED_STREAM = "Nats-Expected-Stream"
KEPT = 7 * 24 * 3600
"""Seconds that a stream made here keeps its events."""
ACK_WAIT = 30.0
MAX_DELIVER = 5
_NANO = 1_000_000_000
_BATCH = 64  # events asked for at once
_EXPIRES = 30.0  # seconds the server holds such a question
_HEARTBEAT = 3.0  # seconds after which the server says that it still has it
_SILENCE = 2 * _HEARTBEAT + 1.0  # after which it is put again: whoever had it is gone
_STILL_THERE, _EXPIRED = 100, frozenset({404, 408})  # what the server says of such a question
_LATER = 0.5  # seconds until it is put again when nobody answers it
_LONGEST_DELAY = 30.0  # seconds before an event is delivered again after its handler failed
_NO_STREAM, _NAME_IN_USE, _NO_PEERS = 10059, 10058, 10005
_FULL = frozenset({10023, 10028, 10047, 10077})  # resources, memory, disk; the stream's own limits
_name = re.compile(r"[^\s.*>/\\]+").fullmatch


def checked_name(stream: str) -> str:
    """The stream's name, if it can be one."""
    if not _name(stream):
        raise ConfigurationError(
            f"{stream!r} cannot be a stream's name", hint="no blanks, dots, stars, > or slashes"
        )
    return stream


def refused(error: Mapping[str, Any], what: str) -> ResilientClientError:
    """JetStream's own refusal: of a state that may pass, or of what will never do."""
    text = f"{what}: {error.get('description', 'refused')}"
    code = error.get("code")
    if error.get("err_code") in _FULL:
        return Throttled(text, status=503, sent=False)
    if (isinstance(code, int) and code >= 500) or error.get("err_code") == _NO_PEERS:
        return ConnectError(text, hint="the broker cannot store it now")
    return ConfigurationError(text, sent=False)


def _covers(pattern: str, subject: str) -> bool:
    """Whether everything that `subject` stands for is among what `pattern` stands for."""
    mine, others = pattern.split("."), subject.split(".")
    for index, part in enumerate(mine):
        if part == ">":
            return len(others) > index
        if index >= len(others) or others[index] == ">" or part not in ("*", others[index]):
            return False
    return len(mine) == len(others)


async def ensure_stream(connection: Connection, stream: str, subjects: Sequence[str]) -> None:
    """Make the stream if it is missing, and let it take these subjects if it does not.

    Raises:
        ConfigurationError: it cannot be: no JetStream, no permission, another stream has one of
            the subjects.
        ConnectError: no answer.
    """
    for _ in range(10):
        info = await connection.api(f"STREAM.INFO.{stream}")
        error = info.get("error")
        if error is None:
            config = info["config"]
            known: list[str] = config.get("subjects") or []
            new = [each for each in subjects if not any(_covers(k, each) for k in known)]
            if not new:
                return
            new = [each for each in new if not any(_covers(n, each) for n in new if n != each)]
            kept = [each for each in known if not any(_covers(n, each) for n in new)]
            answer = await connection.api(
                f"STREAM.UPDATE.{stream}", {**config, "subjects": [*kept, *new]}
            )
        elif error.get("err_code") == _NO_STREAM:
            outer = [
                each
                for each in subjects
                if not any(_covers(o, each) for o in subjects if o != each)
            ]
            answer = await connection.api(
                f"STREAM.CREATE.{stream}",
                {
                    "name": stream,
                    "subjects": outer,
                    "storage": "file",
                    "max_age": KEPT * _NANO,
                },
            )
        else:
            raise refused(error, f"stream {stream}")
        error = answer.get("error")
        if error is not None and error.get("err_code") != _NAME_IN_USE:
            raise refused(error, f"stream {stream}")
        if error is not None:
            await asyncio.sleep(random.uniform(0.01, 0.1))
        # Another program may have changed it in the same moment: look again.
    raise ConnectError(f"stream {stream} is being changed by others all the time")


def consumer_name(group: str, subject: str) -> str:
    """The durable name of a group's consumer of one subject: readable, and unique."""
    digest = hashlib.sha256(f"{group} {subject}".encode()).hexdigest()[:8]
    readable = re.sub(r"[^A-Za-z0-9_-]+", "_", f"{group}_{subject}")[:48]
    return f"{readable}_{digest}"


class Consumer:
    """One durable consumer: asks for as many events as may run, acknowledges after the handlers.

    Args:
        ack_wait: seconds after which the broker delivers again what a dead server had; a live one
            says in between that it is at it.
        max_deliver: how often it delivers one event at most.
        current, connected: the connection to write to, and how to wait for it.
        gone: called with the connection when the consumer has to be attached anew.
    """

    def __init__(
        self,
        app: App,
        endpoint: str,
        route: str,
        stream: str,
        group: str,
        *,
        ack_wait: float,
        max_deliver: int,
        current: Callable[[], Connection | None],
        connected: Callable[[], Awaitable[Connection]],
        gone: Callable[[Connection], object],
    ) -> None:
        self.attached: Connection | None = None  # where events come from
        self._gone = gone
        self._app = app
        self._endpoint = endpoint
        self._route = route
        self._wild = "*" in route or ">" in route
        self._stream = stream
        self._name = consumer_name(group, route)
        self._ack_wait = ack_wait
        self._max_deliver = max_deliver
        self._current = current
        self._connected = connected
        self._slots = app.slots(self._pause, self._resume)
        self._paused = self._stopped = False
        self._unacknowledged: dict[bytes, None] = {}  # what was delivered and is not acknowledged
        self._inbox = b""
        self._sid = 0
        self._asked = 0  # events the server may still send
        self._misses = 0
        self._heard = False
        self._watch: TimerHandle | None = None
        self._progress: TimerHandle | None = None

    async def attach(self, connection: Connection) -> None:
        """Make the consumer if it is missing, and begin to take events from it.

        Raises:
            ConfigurationError: it cannot be made.
            ConnectError: no answer.
        """
        answer = await connection.api(
            f"CONSUMER.DURABLE.CREATE.{self._stream}.{self._name}",
            {
                "stream_name": self._stream,
                "config": {
                    "durable_name": self._name,
                    "ack_policy": "explicit",
                    "ack_wait": int(self._ack_wait * _NANO),
                    "max_deliver": self._max_deliver,
                    "filter_subject": self._route,
                    "deliver_policy": "all",
                },
            },
        )
        if (error := answer.get("error")) is not None:
            raise refused(error, f"consumer {self._name} of stream {self._stream}")
        self._inbox = f"_INBOX.{fresh_id()}".encode()
        self.attached = connection
        self._sid = connection.subscribe(self._inbox.decode(), self._received)
        self._asked = self._misses = 0
        self._ask()

    def _ask(self) -> None:
        connection = self.attached
        count = _BATCH - self._asked
        if connection is None or connection.closed or count < _BATCH // 2:
            return
        if self._paused or self._stopped:
            return
        self._asked = _BATCH
        body = encode(
            {
                "batch": count,
                "expires": int(_EXPIRES * _NANO),
                "idle_heartbeat": int(_HEARTBEAT * _NANO),
            }
        )
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._name}"
        connection.send(connection.message(subject, self._inbox.decode(), None, body))
        self._ask_after(_SILENCE)

    def _ask_after(self, seconds: float) -> None:
        """Ask once more after that much silence."""
        if self._watch is not None:
            self._watch.cancel()
        self._heard = False
        self._watch = call_later(self._app.clock, seconds, self._ask_anew)

    def _ask_anew(self) -> None:
        if self._heard:
            self._ask_after(_SILENCE)
        else:
            self._asked = 0
            self._ask()

    def _received(self, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        self._heard = True
        code = status(headers)
        if code and subject == self._inbox:
            self._status_received(code, headers)
            return
        self._misses = 0
        self._asked -= 1
        if self._stopped:
            self._acknowledge(reply, b"-NAK")
            return
        if not self._unacknowledged:
            self._progress = call_later(self._app.clock, self._ack_wait / 3, self._in_progress)
        self._unacknowledged[reply] = None
        self._accept(subject, reply, data, headers)
        self._ask()

    def _status_received(self, code: int, headers: bytes | None) -> None:
        """A word of the server's own about what was asked for."""
        if code == _STILL_THERE:
            self._ask_after(_SILENCE)
            return
        left = read_headers(headers or b"").get("nats-pending-messages", "")
        self._asked -= min(self._asked, int(left) if left.isdigit() else _BATCH)
        if code in _EXPIRED:
            self._ask()
            return
        self._misses += 1
        deleted = code == 409 and b"Deleted" in (headers or b"")
        connection, self._asked = self.attached, 0
        if connection is not None and (deleted or self._misses > 10):
            what = "is gone" if deleted else "does not answer"
            text = f"consumer {self._name} of stream {self._stream} {what}"
            self._app.notify(Degraded(self._endpoint, text))
            self.detach()
            self._gone(connection)
        else:
            self._ask_after(_LATER)

    def _accept(self, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        try:
            packet = read_request(data)
        except ProtocolError as error:
            log.warning("an event in stream %s cannot be read: %s", self._stream, error.args[0])
            self._acknowledge(reply, b"+TERM")
            return

        async def respond(answer: Reply) -> None:
            if self._current() is None:  # else the event would be delivered again
                with suppress(ConnectError):
                    await self._connected()
            self._handled(reply, answer)

        message = Message(
            self._route,
            packet.data,
            joined(packet.metadata, headers),
            received=self._app.clock.now(),
            subject=subject.decode(errors="replace") if self._wild else None,
            raw=(subject, reply, data, headers),
        )
        self._app.accept(message, respond, self._slots, "nats")

    def _handled(self, reply: bytes, answer: Reply) -> None:
        """All handlers of an event have ended."""
        if answer.error is None:
            self._acknowledge(reply, b"+ACK")
            return
        # $JS.ACK.<stream>.<consumer>.<delivered>.<sequence>..., or with a domain and an account
        tokens = reply.decode().split(".")
        delivered, sequence = tokens[4:6] if len(tokens) == 9 else tokens[6:8]
        if isinstance(answer.error, InvalidPayloadError) or int(delivered) >= self._max_deliver:
            text = (
                f"event {sequence} of stream {self._stream} is given up after {delivered} "
                f"deliveries: {answer.error.message}"
            )
            self._app.notify(Degraded(self._endpoint, text))
            self._acknowledge(reply, b"+TERM")
        else:
            delay = min(_LONGEST_DELAY, 0.5 * 2 ** int(delivered))
            self._acknowledge(reply, b'-NAK {"delay": %d}' % (delay * _NANO))

    def _acknowledge(self, reply: bytes, word: bytes) -> None:
        """Say what became of an event; with the connection gone it is delivered again later."""
        self._unacknowledged.pop(reply, None)
        if not self._unacknowledged and self._progress is not None:
            self._progress.cancel()
        connection = self._current()
        if connection is not None:
            connection.send(connection.message(reply.decode(), "", None, word))
        elif word == b"+ACK":
            log.warning("an event could not be acknowledged: it will be delivered again")

    def _in_progress(self) -> None:
        connection = self._current()
        if connection is not None:
            for reply in self._unacknowledged:
                connection.send(connection.message(reply.decode(), "", None, b"+WPI"))
        if self._unacknowledged:
            self._progress = call_later(self._app.clock, self._ack_wait / 3, self._in_progress)

    def _pause(self) -> None:
        self._paused = True

    def _resume(self) -> None:
        self._paused = False
        self._ask()

    def detach(self) -> None:
        """Take nothing more from there: the server forgets what it was asked for."""
        connection, self.attached = self.attached, None
        if self._watch is not None:
            self._watch.cancel()
        if connection is not None and not connection.closed:
            connection.unsubscribe(self._sid)

    def stop(self) -> None:
        """Take nothing new."""
        self._stopped = True
        self.detach()

    def close(self) -> None:
        """Give back what was not done, for another replica to do."""
        for reply in tuple(self._unacknowledged):
            self._acknowledge(reply, b"-NAK")
        for timer in (self._watch, self._progress):
            if timer is not None:
                timer.cancel()
        self._slots.drop()
        self._slots.close()
