"""What a handler that yields answers with: its values, encoded one by one."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
from math import inf
from typing import TYPE_CHECKING, Any

from resilient_client.message import NO_VALUE, Reply

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Iterator
    from concurrent.futures import Executor

    from resilient_client.codecs import Codec
    from resilient_client.context import Context
    from resilient_client.exception_handlers import ExceptionHandlers
    from resilient_client.handlers import Handler
    from resilient_client.jobs import Job
    from resilient_client.message import Items

TURN = 64
"""Values after which a stream lets everything else of its loop have its turn."""


async def carried(reply: Reply, items: Items, carry: Awaitable[None]) -> None:
    """Await what consumes a reply's items; then end them, and tell the policies that they have."""
    ended: BaseException | None = None
    try:
        await carry
    except BaseException as error:
        ended = error
        raise
    finally:
        try:
            await items.aclose()
        finally:
            reply.complete(ended, seen=True)
            del ended  # its traceback holds this frame


async def run_through(items: Items) -> None:
    """Take all of them, for nobody."""
    try:
        while True:
            await items.receive(inf)
    except StopAsyncIteration:
        return


def encoded(reply: Reply, codec: Codec) -> Reply:
    """What a server's policies answered; what is `decoded`, because it is their own, is encoded."""
    if not isinstance(reply, Reply):
        raise TypeError(f"a policy answered with a {type(reply).__name__}, not with a Reply")
    if not reply.decoded:
        return reply
    if reply.items is None:  # not the object itself: the policy may give it out again
        body = reply.body
        return Reply(body if body is NO_VALUE else codec.encode(body), reply.headers)
    reply.items, reply.decoded = _EncodedItems(reply.items, codec), False
    return reply


class _EncodedItems:
    """The values of a policy's own stream, encoded. See `message.Items`."""

    __slots__ = ("_codec", "_items", "aclose")

    def __init__(self, items: Items, codec: Codec) -> None:
        self._items = items
        self._codec = codec
        self.aclose = items.aclose

    async def receive(self, deadline: float) -> Any:
        """See `message.Items.receive`."""
        return self._codec.encode(await self._items.receive(deadline))


class HandlerItems:
    """What an async generator of the user's yields, encoded, its errors translated."""

    __slots__ = ("_codec", "_context", "_exceptions", "_given", "_handler", "_job", "_values")

    def __init__(
        self,
        values: AsyncIterator[Any],
        codec: Codec,
        exceptions: ExceptionHandlers,
        job: Job,
        context: Context,
        handler: Handler,
    ) -> None:
        self._values = aiter(values)
        self._codec = codec
        self._exceptions = exceptions
        self._job = job
        self._context = context
        self._handler = handler
        self._given = 0

    async def receive(self, deadline: float) -> Any:
        """See `message.Items.receive`; an error is a `RemoteError`."""
        self._given += 1
        try:
            if not self._given % TURN:  # the generator may never wait, and its peer take everything
                await asyncio.sleep(0)
            return self._codec.encode(await anext(self._values))
        except StopAsyncIteration:
            raise
        except BaseException as error:
            if not self._job.failed_by(error):
                raise
            with contextlib.suppress(Exception):  # the first error is the one to be told
                await self.aclose()
            answer = await self._exceptions.answer(error, self._job, self._handler, self._context)
            try:
                if answer is error:  # meant for the caller as it is
                    raise
                raise answer from error
            finally:
                del answer  # its traceback holds this frame

    async def aclose(self) -> None:
        """Stop the generator."""
        close = getattr(self._values, "aclose", None)
        if close is not None:
            await close()


async def threaded(
    values: Iterator[Any], executor: Executor, context: contextvars.Context
) -> AsyncIterator[Any]:
    """A plain generator's values, each made in a worker thread, in the handler's context.

    Whoever leaves early has it closed there, as soon as it has made the value it was asked for.
    """
    end = object()
    following = functools.partial(next, values, end)
    value: Any = None
    while value is not end:
        step = asyncio.wrap_future(executor.submit(context.run, following))
        try:
            value = await asyncio.shield(step)
            if value is not end:
                yield value
        except (asyncio.CancelledError, GeneratorExit):
            if (close := getattr(values, "close", None)) is not None:

                def leave(step: asyncio.Future[Any]) -> None:
                    if not step.cancelled() and step.exception() is None:  # else it has ended
                        executor.submit(context.run, close)

                step.add_done_callback(leave)
            raise
