"""What is under way in a call with more than one message, in either direction."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import Any

from resilient_client.errors import ConnectionLost, PayloadError, ReplyTimeout, ResilientClientError
from resilient_client.message import NO_VALUE, Call
from resilient_client.transports._link import spawn
from resilient_client.transports.grpc._channel import Connection
from resilient_client.transports.grpc._library import ERRORS, aio
from resilient_client.transports.grpc._methods import Method
from resilient_client.transports.grpc._patterns import PatternsMethod
from resilient_client.transports.grpc._waits import Waits

Fail = Callable[[BaseException, Connection], ResilientClientError]
"""What makes our error out of grpcio's."""


def left_by_caller() -> bool:
    """Whether a cancellation is the caller's: grpcio raises one too when a channel is closed."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def cancelled(requests: Requests | None) -> ResilientClientError:
    """Why a call was cancelled, when its caller did not."""
    if requests is not None and requests.error is not None:
        return requests.error
    return ConnectionLost("the client was closed")


class _Kept:
    """grpcio's call, but that what its peer has ended it with stays that."""

    __slots__ = ("_call",)

    def __init__(self, call: Any) -> None:
        self._call = call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)

    def set_internal_error(self, said: str) -> None:
        """A message could not be written any more: the peer's status is on its way."""


def keep_status(rpc: Any) -> None:
    """Let a call that writes messages end as its peer has ended it, whatever was to be written.

    grpcio makes up a status of its own where it notices the end first while it writes. The way
    round that is private: where a release has it otherwise, that status is told as what it is.
    """
    call = getattr(rpc, "_cython_call", None)
    if hasattr(call, "set_internal_error"):
        rpc._cython_call = _Kept(call)  # noqa: SLF001


class Asked:
    """A call's method and its request, or requests, encoded once for all attempts.

    Attributes:
        method: what is called.
        raw: the one request.
        source: of a stream of requests, a list of their bytes or an async iterable of data.
        begun: an attempt has taken something out of the source.
    """

    __slots__ = ("begun", "method", "raw", "source")

    def __init__(self, method: Method, raw: bytes, source: Any = None) -> None:
        self.method = method
        self.raw = raw
        self.source = source
        self.begun = False


class Requests:
    """The requests of a call that has a stream of them, encoded as they are wanted.

    Raises:
        PayloadError: an earlier attempt has used them up.
    """

    __slots__ = ("_asked", "_closing", "_encode", "_over", "_raws", "_writer", "error")

    def __init__(
        self, asked: Asked, encode: Callable[[Any], bytes], closing: set[asyncio.Task[None]]
    ) -> None:
        self.error: ResilientClientError | None = None
        self._asked = asked
        self._encode = encode
        self._closing = closing
        self._raws = self._each()
        self._writer: asyncio.Task[Any] | None = None  # of the library, once it has begun
        self._over = False
        source = asked.source
        if asked.begun and hasattr(source, "__aiter__") and aiter(source) is source:
            raise PayloadError(
                "the stream of requests was used up by an earlier attempt",
                hint="give a list, or an object whose __aiter__ begins anew",
            )

    def each(self) -> AsyncGenerator[bytes]:
        """The bytes of each request; what goes wrong is kept in `error`, the call is cancelled."""
        return self._raws

    def close(self) -> None:
        """The call has ended, as its peer may end it at any time: so does the source.

        The library would let it wait for the next request for ever.
        """
        writer = self._writer
        if writer is None or self._over:
            return
        if not writer.done() and not writer.cancelling():
            writer.cancel()
        spawn(self._close(writer), "end a stream of requests", self._closing)

    async def _close(self, writer: asyncio.Task[Any]) -> None:
        await asyncio.wait({writer})
        with suppress(Exception):  # nobody waits for it any more
            await self._raws.aclose()

    async def _each(self) -> AsyncGenerator[bytes]:
        asked, encode = self._asked, self._encode
        asked.begun = True
        if isinstance(asked.source, list):
            for raw in asked.source:
                yield raw
            return
        self._writer = asyncio.current_task()
        items = aiter(asked.source)
        try:
            async for item in items:
                yield encode(item)
        except PayloadError as error:
            self.error = error
            error.sent = True
            raise
        except Exception as error:
            self.error = PayloadError(f"the stream of requests failed: {error}", sent=True)
            self.error.__cause__ = error
            raise
        finally:
            self._over = True
            close = getattr(items, "aclose", None)
            if close is not None:
                await close()


class Items:
    """The responses of one call, read as they are wanted: HTTP/2 slows the peer down."""

    __slots__ = (
        "_connection", "_ended", "_fail", "_first", "_method", "_requests", "_rpc", "_waits",
    )  # fmt: skip

    def __init__(
        self,
        method: Method,
        rpc: Any,
        connection: Connection,
        requests: Requests | None,
        fail: Fail,
        waits: Waits,
    ) -> None:
        self._method = method
        self._rpc = rpc
        self._connection = connection
        self._requests = requests
        self._fail = fail
        self._waits = waits
        self._first: list[Any] = []
        self._ended = False

    async def opened(self, call: Call) -> None:
        """Have the first value, or the end, by the call's `attempt_deadline`."""
        try:
            self._first = [await self._next(call.attempt_deadline)]
        except StopAsyncIteration:
            return
        except ReplyTimeout:
            raise call.expired(sent=True) from None

    async def receive(self, deadline: float) -> Any:
        """See `message.Items.receive`."""
        if self._first:
            return self._first.pop()
        return await self._next(deadline)

    async def _next(self, deadline: float) -> Any:
        if self._ended:
            raise StopAsyncIteration
        raw = await self._read(deadline)
        if raw is aio.EOF:
            self._end()
            raise StopAsyncIteration
        if not self._method.responses:
            self._end()
        if isinstance(self._method, PatternsMethod):
            value = self._method.value(raw)
            if value is NO_VALUE:
                self._end()
                raise StopAsyncIteration
            raw = value
        return self._method, raw

    async def _read(self, deadline: float) -> Any:
        """The next message or `EOF`, by that time."""
        connection = self._connection
        wait = self._waits.begin(deadline)
        try:
            return await (self._rpc.read() if self._method.responses else self._rpc)
        except ERRORS as error:
            failure = self._fail(error, connection)
        except asyncio.CancelledError:
            self._rpc.cancel()  # the library does not where its request has just been written
            if self._waits.expired(wait):
                failure = ReplyTimeout("the stream was silent for too long")
            elif left_by_caller():
                self._end()
                raise
            else:
                failure = cancelled(self._requests)
        finally:
            self._waits.end(wait)
            del connection, wait  # an error's traceback holds this frame
        self._end()
        try:
            raise failure
        finally:
            del failure

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            if self._requests is not None:
                self._requests.close()
            self._connection.ended()
            del self._connection

    async def aclose(self) -> None:
        """See `message.Items.aclose`: the server is told."""
        self._first.clear()
        if not self._ended:
            self._rpc.cancel()
            self._end()
