"""The table of replies that are waited for, with one timer for all of them."""

from __future__ import annotations

import asyncio
from collections import deque
from math import inf
from typing import TYPE_CHECKING, Any, NoReturn

from resilient_client.clock import Alarm, DeadlineTimer
from resilient_client.errors import ConnectionLost, Overloaded, ReplyTimeout, ResilientClientError
from resilient_client.message import NO_VALUE, Reply
from resilient_client.transports._transport import Tally

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilient_client.clock import Clock
    from resilient_client.message import Call

    _Waiting = tuple[asyncio.Future[Reply], Call, Callable[[], object] | None]

STREAM_ITEMS = 10_000
STREAM_BYTES = 16 * 1024 * 1024


class PendingReplies(DeadlineTimer):
    """Who waits for which reply, by id, on one connection or several.

    Every entry ends exactly once: resolved, failed, expired (at the attempt's deadline) or
    forgotten (nobody waits any more). A reply without an entry is counted as an orphan.
    """

    __slots__ = ("__weakref__", "_new_future", "_table", "_tally")

    def __init__(self, clock: Clock, tally: Tally | None = None) -> None:
        super().__init__(clock)
        self._new_future: Callable[[], asyncio.Future[Reply]] | None = None
        self._table: dict[Any, _Waiting | ItemStream] = {}
        self._tally = Tally() if tally is None else tally
        self._tally.watch(self)

    def __len__(self) -> int:
        return len(self._table)

    def routes(self) -> set[str]:
        """The routes whose replies are waited for."""
        entries = self._table.values()
        return {(e.call if isinstance(e, ItemStream) else e[1]).route for e in entries}

    def __contains__(self, key: Any) -> bool:
        return key in self._table

    async def exchange(
        self,
        key: Any,
        call: Call,
        write: Callable[[], object],
        leave: Callable[[], object],
    ) -> Reply:
        """Write a request and wait for its reply; of a stream, for the first value.

        Args:
            write: sets `call.sent` and writes; the entry is in the table by then. Where an error
                says that nothing was sent after all, `call.sent` is put back to what it was.
            leave: called when the caller has left, has its one value of what may be more, or gives
                this attempt up for another: for telling the peer to stop. Not called at the call's
                deadline, which the peer knows.
        """
        before = call.sent
        try:
            if call.kind == "stream":
                items = self.open(key, call, leave)
                write()
                return await items.opened()
            future = self.expect(key, call, leave)
            write()
            return await future
        except BaseException as error:
            self.forget(key)
            future = None  # its error's traceback holds this frame
            if isinstance(error, ResilientClientError):
                call.sent = call.sent if error.sent else before
            if isinstance(error, asyncio.CancelledError | ReplyTimeout) and call.kind != "stream":
                leave()  # a stream's items have done so already
            raise

    def expect(
        self, key: Any, call: Call, leave: Callable[[], object] | None = None
    ) -> asyncio.Future[Reply]:
        """A future for the one reply; register before writing, `forget` when done waiting.

        Args:
            leave: called when the reply is a value that others may follow.
        """
        new = self._new_future
        if new is None:  # a table serves one loop; asking for it costs as much as the rest
            new = self._new_future = asyncio.get_running_loop().create_future
        future = new()
        self._table[key] = (future, call, leave)
        if call.attempt_deadline < self.at:
            self.set(call.attempt_deadline)
        return future

    def open(
        self, key: Any, call: Call, on_leave: Callable[[], object] | None = None
    ) -> ItemStream:
        """A stream of replies; `on_leave` is called when its consumer leaves before the end."""
        stream = self._table[key] = ItemStream(self, key, call, on_leave)
        return stream

    def forget(self, key: Any) -> None:
        """Nobody waits for this any more."""
        self._table.pop(key, None)

    def value(self, key: Any, body: Any, last: bool, headers: Any = None) -> bool:  # noqa: FBT001
        """A value arrived. False when nobody waits for it."""
        entry = self._table.pop(key, None)
        if entry is None:
            self._tally.orphans += 1
            return False
        if type(entry) is tuple:
            if not entry[0].done():
                entry[0].set_result(Reply(body, headers))
                if not last and entry[2] is not None:
                    entry[2]()
            return True
        stream: ItemStream = entry  # type: ignore[assignment]
        if last:
            stream.feed(body)
            stream.finish(None)
        else:
            self._table[key] = stream
            stream.feed(body)  # which may take it out again
        return True

    def end(self, key: Any) -> None:
        """The answer ended without a further value."""
        entry = self._table.pop(key, None)
        if entry is None:
            return
        if type(entry) is tuple:
            if not entry[0].done():
                entry[0].set_result(Reply(NO_VALUE))
        else:
            entry.finish(None)  # type: ignore[union-attr]

    def fail(self, key: Any, error: BaseException) -> None:
        """The answer is an error, or will not come."""
        entry = self._table.pop(key, None)
        if entry is None:
            self._tally.orphans += 1
        else:
            _fail(entry, error)

    def fail_all(self, make: Callable[[], BaseException]) -> None:
        """None of them will come: each gets an error of its own."""
        table, self._table = self._table, {}
        self.stop()
        for entry in table.values():
            _fail(entry, make())

    def close(self) -> None:
        """The client closes: none of them is waited for any more, and each one's `leave` called."""
        for entry in tuple(self._table.values()):
            leave = entry.on_leave if isinstance(entry, ItemStream) else entry[2]
            if leave is not None:
                leave()
        self.fail_all(lambda: ConnectionLost("the client was closed"))

    def alarm(self, deadline: float, due: Callable[[], object]) -> Alarm:
        """Call `due` at that time of the table's clock."""
        alarm = Alarm(self._clock, due)
        alarm.set(deadline)
        return alarm

    def _look(self, now: float) -> float:
        nearest = inf
        for key, entry in tuple(self._table.items()):
            if type(entry) is tuple:
                future, call, _ = entry
                if call.attempt_deadline > now:
                    nearest = min(nearest, call.attempt_deadline)
                else:
                    del self._table[key]
                    if not future.done():
                        future.set_exception(call.expired(sent=True))
        return nearest


def _fail(entry: _Waiting | ItemStream, error: BaseException) -> None:
    if type(entry) is tuple:
        if not entry[0].done():
            entry[0].set_exception(error)
    else:
        entry.finish(error)  # type: ignore[union-attr]


class Ending:
    """The error that values may end with."""

    __slots__ = ("_error",)

    def __init__(self) -> None:
        self._error: BaseException | None = None

    def _raise_error(self) -> NoReturn:
        error, self._error = self._error, None
        assert error is not None  # noqa: S101
        try:
            raise error
        finally:
            del error  # its traceback holds this frame


class ItemStream(Ending):
    """The values of one streamed answer, buffered within bounds.

    A consumer that falls more than `STREAM_ITEMS` values or `STREAM_BYTES` behind gets what is
    buffered and then `Overloaded`: the peer cannot be slowed down here, and nothing is kept for
    ever.
    """

    __slots__ = ("_buffer", "_ended", "_key", "_size", "_table", "_waiter", "call", "on_leave")

    def __init__(
        self,
        table: PendingReplies,
        key: Any,
        call: Call,
        on_leave: Callable[[], object] | None,
    ) -> None:
        super().__init__()
        self._table = table
        self._key = key
        self.call = call
        self.on_leave = on_leave
        self._buffer: deque[Any] = deque()
        self._size = 0
        self._ended = False
        self._waiter: asyncio.Future[bool] | None = None

    def feed(self, body: Any) -> None:
        """A value arrived."""
        if self._ended:
            return
        self._size += len(body) if isinstance(body, bytes | memoryview) else 1
        if len(self._buffer) >= STREAM_ITEMS or self._size > STREAM_BYTES:
            self._leave()
            self.finish(Overloaded("the stream's consumer is too far behind", sent=True))
            return
        self._buffer.append(body)
        self._wake()

    def finish(self, error: BaseException | None) -> None:
        """No further value: the end, or an error after what is buffered."""
        if not self._ended:
            self._ended, self._error = True, error
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(True)

    def _leave(self) -> None:
        self._table.forget(self._key)
        on_leave, self.on_leave = self.on_leave, None
        if on_leave is not None and not self._ended:
            on_leave()

    async def opened(self) -> Reply:
        """Wait for the first value, the end or an error, by the call's `attempt_deadline`."""
        call = self.call
        try:
            if not self._buffer and not self._ended and not await self._wait(call.attempt_deadline):
                raise call.expired(sent=True)
            if not self._buffer and self._error is not None:
                self._raise_error()
        except BaseException:
            await self.aclose()
            raise
        return Reply(items=self)

    @property
    def at_hand(self) -> bool:
        """Whether `receive` will not wait."""
        return bool(self._buffer) or self._ended

    async def receive(self, deadline: float) -> Any:
        """See `message.Items.receive`."""
        while not self._buffer:
            if self._ended:
                if self._error is not None:
                    self._raise_error()
                raise StopAsyncIteration
            if not await self._wait(deadline):
                raise ReplyTimeout("the stream was silent for too long")
        body = self._buffer.popleft()
        self._size -= len(body) if isinstance(body, bytes | memoryview) else 1
        return body

    async def _wait(self, deadline: float) -> bool:
        """Until something changes; False when `deadline` came first."""
        waiter: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiter = waiter
        alarm = None

        def silence() -> None:
            if not waiter.done():
                waiter.set_result(False)

        if deadline < inf:
            alarm = self._table.alarm(deadline, silence)
        try:
            return await waiter
        finally:
            self._waiter = None
            if alarm is not None:
                alarm.stop()

    async def aclose(self) -> None:
        """See `message.Items.aclose`."""
        self._leave()
        self._ended = True
        self._buffer.clear()
        self._wake()
