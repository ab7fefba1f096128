"""The acknowledgements of what a server has been given, in as few frames as may be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resilient_client.transports.amqp import _wire as wire

if TYPE_CHECKING:
    from resilient_client.transports.amqp._connection import Connection


class Acknowledgements:
    """What is to be acknowledged, written in groups: several at a time are one frame."""

    def __init__(self, connection: Connection, number: int) -> None:
        self._connection = connection
        self._number = number
        self._open: set[int] = set()
        self._fresh: list[int] = []
        self._floor = 0  # everything up to here is settled
        self._settled: set[int] = set()  # of what is above
        self._flushing = False

    def add(self, tag: int) -> None:
        """A message to be settled once."""
        self._open.add(tag)

    def ack(self, tag: int) -> None:
        """It has been handled. The second time this does nothing."""
        if tag in self._open:
            self._open.discard(tag)
            self._fresh.append(tag)
            if not self._flushing:
                self._flushing = True
                self._connection.loop.call_soon(self.flush)

    def nack(self, tag: int, *, requeue: bool) -> None:
        """It has not."""
        if tag in self._open:
            self._open.discard(tag)
            self._settled.add(tag)
            if not self._connection.closed:
                self._connection.send(wire.nack_frame(self._number, tag, requeue=requeue))

    def flush(self) -> None:
        """Write what is due."""
        self._flushing = False
        fresh, self._fresh = self._fresh, []
        if not fresh or self._connection.closed:
            return
        settled = self._settled
        settled.update(fresh)
        while self._floor + 1 in settled:
            self._floor += 1
            settled.discard(self._floor)
        low = [tag for tag in fresh if tag <= self._floor]
        frames = [wire.ack_frame(self._number, tag) for tag in fresh if tag > self._floor]
        if low:
            # the last one must be outstanding, so not just any up to the floor
            frames.append(wire.ack_frame(self._number, max(low), multiple=len(low) > 1))
        self._connection.send(b"".join(frames))
