"""One partition at a server: what runs, what waits, and up to where all is finished."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_WAITING, _RUNNING, _DONE, _DROPPED = range(4)


class Lane:
    """Starts records in order, those of one key one after another, and keeps the finished prefix.

    A partition that is taken away and comes back keeps its lane: what still runs here, or has ended
    here, is not started again.

    Args:
        start: told to begin with these records; `finished` must be called with them at the end.
        concurrency: records running at once; None is no limit.
        batch: start up to so many records together, one such batch at a time; 0 is one by one.
    """

    def __init__(
        self,
        start: Callable[[Lane, list[Any]], object],
        *,
        concurrency: int | None = None,
        batch: int = 0,
    ) -> None:
        self.prefix: int | None = None
        """The offset up to which everything is finished: what to commit."""
        self.committed: int | None = None
        self.next = 0
        """The offset behind what was added last: nothing before it is read again but by `begin`."""
        self.running = 0
        self.resting = 0
        """How many of those that run wait for another attempt."""
        self._start = start
        self._limit = 1 if batch else concurrency
        self._batch = batch
        self._order: deque[int] = deque()  # offsets seen, from the prefix on
        self._states: dict[int, int] = {}
        self._ready: deque[Any] = deque()
        self._chains: dict[bytes, deque[Any]] = {}
        self.waiting = 0

    def begin(self, offset: int) -> int:
        """Reading (again) from the committed offset: where to read from.

        What another member has finished meanwhile counts.
        """
        if self.prefix is None or offset > self.prefix:
            while self._order and self._order[0] < offset:
                self._states.pop(self._order.popleft(), None)
            self.prefix = offset
            self._advance()
        self.next = self.prefix
        return self.prefix

    def pass_over(self, offset: int) -> bool:
        """Nothing before this offset is to be handled: whether that is news, and none is left."""
        if self._order or self.prefix is None or offset <= self.prefix:
            return False
        self.prefix = self.next = offset
        return True

    def add(self, records: Sequence[Any]) -> None:
        """Records as they were read, in order."""
        self.next = records[-1].offset + 1
        for record in records:
            offset = record.offset
            if self.prefix is not None and offset < self.prefix:
                continue
            state = self._states.get(offset)
            if state is None:
                self._order.append(offset)
            elif state != _DROPPED:
                continue
            self._states[offset] = _WAITING
            self.waiting += 1
            if not self._batch and record.key:
                chain = self._chains.get(record.key)
                if chain is not None:
                    chain.append(record)
                    continue
                self._chains[record.key] = deque()
            self._ready.append(record)
        self._go_on()

    def _go_on(self) -> None:
        while self._ready and (self._limit is None or self.running < self._limit):
            count = min(self._batch, len(self._ready)) or 1
            records = [self._ready.popleft() for _ in range(count)]
            for record in records:
                self._states[record.offset] = _RUNNING
            self.waiting -= count
            self.running += 1
            self._start(self, records)

    def finished(self, records: Sequence[Any]) -> None:
        """These are done with, and will never be started again."""
        self._ended(records, _DONE)

    def dropped(self, records: Sequence[Any]) -> None:
        """These were given up: they are started again where they are read again."""
        self._ended(records, _DROPPED)

    def runs(self, record: Any) -> bool:
        """Whether it was started here, and nobody has finished it."""
        return self._states.get(record.offset) == _RUNNING

    def _ended(self, records: Sequence[Any], state: int) -> None:
        self.running -= 1
        for record in records:
            if record.offset in self._states:
                self._states[record.offset] = state
            if not self._batch and record.key:
                chain = self._chains.get(record.key)
                if chain:
                    self._ready.append(chain.popleft())
                else:
                    self._chains.pop(record.key, None)
        self._advance()
        self._go_on()

    def _advance(self) -> None:
        while self._order and self._states.get(self._order[0]) == _DONE:
            offset = self._order.popleft()
            del self._states[offset]
            self.prefix = offset + 1

    def drop_waiting(self) -> None:
        """Forget what was not started: the partition is given up, or the server stops."""
        for record in self._ready:
            self._chains.pop(record.key, None)  # it was the first of its key
        for chain in self._chains.values():
            chain.clear()
        self._ready.clear()
        for offset, state in self._states.items():
            if state == _WAITING:
                self._states[offset] = _DROPPED
        self.waiting = 0
