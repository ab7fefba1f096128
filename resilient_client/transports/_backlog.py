"""Events of a consumer that cannot be paused: kept within bounds until a handler is free."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from resilient_client.events import Degraded

if TYPE_CHECKING:
    from resilient_client.clock import Clock
    from resilient_client.message import Message
    from resilient_client.transports._base import App, Job, Respond

BACKLOG_EVENTS = 10_000
BACKLOG_BYTES = 16 * 1024 * 1024
SILENCE = 10.0
"""Seconds in which the same trouble, when it comes again, is not told again."""


class Seldom:
    """Whether trouble that goes on is to be told: once in `SILENCE`."""

    __slots__ = ("_clock", "_until")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._until = 0.0

    def due(self) -> bool:
        """True when it has not been for so long."""
        now = self._clock.now()
        if now < self._until:
            return False
        self._until = now + SILENCE
        return True


class Backlog:
    """Stands between a subscription and the app where the broker does not wait for a slow consumer.

    Requests pass: over its caps the app answers them as throttled. Events that find every handler
    busy wait here, at most `BACKLOG_EVENTS` of `BACKLOG_BYTES` together; what comes beyond is
    dropped, and the server's observers are told when that begins and how it ended; of what begins
    again within `SILENCE` only the number of events, later.

    Attributes:
        slots: the consumer's share of the app's caps.
        dropped: events lost in this way, since the start.
    """

    def __init__(self, app: App, transport: str, endpoint: str) -> None:
        self.slots = app.slots(self._pause, self._resume, farewell=True)
        self.dropped = 0
        self._app = app
        self._transport = transport
        self._endpoint = endpoint
        self._waiting: deque[Message] = deque()
        self._size = 0
        self._paused = False
        self._dropped_before = 0  # as last told
        self._dropping = self._told = False
        self._seldom = Seldom(app.clock)

    def accept(self, message: Message, respond: Respond | None) -> Job | None:
        """See `App.accept`."""
        if message.id is not None or not self._paused:
            return self._app.accept(message, respond, self.slots, self._transport)
        size = len(message.body)
        if len(self._waiting) >= BACKLOG_EVENTS or self._size + size > BACKLOG_BYTES:
            self.dropped += 1
            if not self._dropping:
                self._dropping = True
                self._told = self._seldom.due()
                if self._told:
                    self._tell("the handlers are too slow: events are dropped from now on")
            return None
        self._waiting.append(message)
        self._size += size
        return None

    def _pause(self) -> None:
        self._paused = True

    def _resume(self) -> None:
        self._paused = False
        waiting = self._waiting
        while waiting and not self._paused:
            message = waiting.popleft()
            self._size -= len(message.body)
            self._app.accept(message, None, self.slots, self._transport)
        if self._dropping and not waiting:
            self._dropping = False
            if self._told:
                self._tell_lost()

    def _tell_lost(self) -> None:
        lost, self._dropped_before = self.dropped - self._dropped_before, self.dropped
        self._tell(f"{lost} events were dropped while the handlers were too slow")

    def _tell(self, reason: str) -> None:
        self._app.notify(Degraded(self._endpoint, reason))

    def close(self) -> None:
        """Nothing more is handled: cancel request handlers, forget the events that wait."""
        if self._waiting:
            self._tell(f"{len(self._waiting)} events were still waiting when the server closed")
        if self.dropped > self._dropped_before:
            self._tell_lost()
        self._waiting.clear()
        self._size = 0
        self.slots.drop()
        self.slots.close()
