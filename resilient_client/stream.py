"""The values of one answer, as the caller iterates over them."""

from __future__ import annotations

import asyncio
from math import inf
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from resilient_client.errors import DeadlineExceeded, ReplyTimeout, ResilientClientError
from resilient_client.loops import close_behind, running_loop
from resilient_client.message import NO_VALUE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType

    from resilient_client.message import Call, Items, Reply

T = TypeVar("T")
_BUSY = "another task is waiting for this stream's next value"


class Stream(Generic[T]):
    """An async iterator over an answer's values; opened by the first step.

    Leaving it early cancels the call: at once with `aclose` or `async with`, otherwise when the
    iterator is dropped.
    """

    def __init__(
        self,
        start: Callable[[], Awaitable[tuple[Call, Reply]]],
        decode: Callable[[Any, Any], Any],
        returns: Any,
        now: Callable[[], float],
        conclude: Callable[[ResilientClientError, Call], None],
    ) -> None:
        self._start = start
        self._decode = decode
        self._returns = returns
        self._now = now
        self._conclude = conclude
        self._call: Call | None = None
        self._reply: Reply | None = None
        self._items: Items | None = None
        self._finished = False
        self._stepping = False
        self._opener: asyncio.Task[Any] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def __aiter__(self) -> Self:
        return self

    async def _open(self) -> None:
        self._loop = running_loop()
        opener = self._opener = asyncio.current_task()
        cancels = 0 if opener is None else opener.cancelling()
        try:
            self._call, self._reply = await self._start()
        except BaseException as error:
            self._finished = True
            left = self._was_left(opener, cancels)
            if left and isinstance(error, Exception | asyncio.CancelledError):
                return
            if isinstance(error, StopAsyncIteration):  # of a policy, say: it would read as the end
                text = "opening the stream raised StopAsyncIteration"
                raise RuntimeError(text) from error  # noqa: TRY004
            raise
        self._was_left(opener, cancels)
        self._items = self._reply.items
        if self._finished:  # another task has closed it meanwhile
            await self.aclose()

    def _was_left(self, opener: asyncio.Task[Any] | None, cancels: int) -> bool:
        """Whether opening has ended because another task has left, and for no other reason.

        Args:
            opener: the task that opened it.
            cancels: how often that had been cancelled before.
        """
        waiting, self._opener = self._opener, None
        return opener is not None and waiting is None and opener.uncancel() <= cancels

    async def __anext__(self) -> T:
        if self._finished:
            raise StopAsyncIteration
        if self._stepping:
            raise RuntimeError(_BUSY)
        self._stepping = True  # until the value is there: with an error, the stream has ended
        if self._reply is None:
            await self._open()
            if self._finished:
                raise StopAsyncIteration
        call, reply, items = self._call, self._reply, self._items
        assert call is not None and reply is not None  # noqa: S101, PT018
        if items is None:
            return self._only(call, reply)
        try:
            idle = call.idle_timeout
            deadline = call.deadline if idle == inf else min(call.deadline, self._now() + idle)
            try:
                body = await items.receive(deadline)
            except ReplyTimeout:
                if deadline < call.deadline:
                    raise
                raise DeadlineExceeded("the stream's time ran out", sent=True) from None
            value = body if reply.decoded else self._decode(body, self._returns)
        except StopAsyncIteration:
            self._finished = True
            reply.complete(None, seen=call.received > 0)
            raise
        except BaseException as error:
            self._finished = True
            reply.complete(error, seen=call.received > 0)
            await items.aclose()
            if isinstance(error, ResilientClientError):
                if self._items is None:  # whatever it says, it comes of the `aclose` meanwhile
                    raise StopAsyncIteration from None
                self._conclude(error, call)
            raise
        call.received += 1
        self._stepping = False
        return value  # type: ignore[no-any-return]

    def _only(self, call: Call, reply: Reply) -> T:
        """The value of a policy that answered with a plain reply."""
        self._finished = True
        if reply.body is NO_VALUE:
            raise StopAsyncIteration
        try:
            value = reply.body if reply.decoded else self._decode(reply.body, self._returns)
        except ResilientClientError as error:
            self._conclude(error, call)
            raise
        return value  # type: ignore[no-any-return]

    @property
    def at_hand(self) -> bool:
        """Whether the next step is certain not to wait: a value, the end or an error is there."""
        return self._finished or getattr(self._items, "at_hand", False)

    async def aclose(self) -> None:
        """Leave: the peer is told to stop where the transport can. Idempotent.

        For another task that waits for the next value, the stream is at its end.
        """
        self._finished = True
        if self._opener is not None:
            opener, self._opener = self._opener, None
            opener.cancel()
        elif self._items is not None:
            items, self._items = self._items, None
            assert self._reply is not None and self._call is not None  # noqa: S101, PT018
            self._reply.complete(asyncio.CancelledError(), seen=self._call.received > 0)
            await items.aclose()

    async def __aenter__(self) -> Self:
        if self._reply is None and not self._finished:
            if self._stepping:
                raise RuntimeError(_BUSY)
            self._stepping = True
            await self._open()
            self._stepping = False
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        items, loop = self._items, self._loop
        if items is None or self._finished or loop is None:
            return
        self._finished = True
        reply, call = self._reply, self._call

        async def leave() -> None:
            if reply is not None and call is not None:
                reply.complete(asyncio.CancelledError(), seen=call.received > 0)
            await items.aclose()

        close_behind(loop, leave, "leave a stream")
